// Echoes a structure back, so that a test can see that host and device agree on where every field lies.

#include <stddef.h>

#include "abi_layout.h"
#include "device.cuh"

MOERL_KERNEL(echo, MoerlEchoCall, 32) {
    if (thread_index() != 0) return;
    store(&p.copy->input, p.sent.input);
    store(&p.copy->output, p.sent.output);
    store(&p.copy->count, p.sent.count);
    store(&p.copy->stride, p.sent.stride);
    store(&p.copy->real64, p.sent.real64);
    store(&p.copy->number, p.sent.number);
    store(&p.copy->offset, p.sent.offset);
    store(&p.copy->real32, p.sent.real32);
    store(&p.copy->small, p.sent.small);
    store(&p.copy->flag, p.sent.flag);
    store(&p.copy->last, p.sent.last);
    const uint64_t layout[12] = {
        sizeof(MoerlEcho),           offsetof(MoerlEcho, input),  offsetof(MoerlEcho, output), offsetof(MoerlEcho, count),
        offsetof(MoerlEcho, stride), offsetof(MoerlEcho, real64), offsetof(MoerlEcho, number), offsetof(MoerlEcho, offset),
        offsetof(MoerlEcho, real32), offsetof(MoerlEcho, small),  offsetof(MoerlEcho, flag),   offsetof(MoerlEcho, last)};
    for (int i = 0; i < 12; i++) store(&p.layout[i], layout[i]);
}
