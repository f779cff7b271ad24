// Kernels whose traffic is known beforehand.

#include "block.cuh"
#include "call.h"

// Every block copies one row of `count` words, 4 bytes (`variant` 0) or 16 bytes (1) at a time.
MOERL_KERNEL(copy_rows, TestCall, 1024) {
    const uint32_t* from = p.input + block_index() * p.stride;
    uint32_t* to = p.output + block_index() * p.count;
    if (p.variant == 0) {
        for (uint64_t i = thread_index(); i < p.count; i += block_size()) store(to + i, load(from + i));
    } else {
        for (uint64_t i = 4 * thread_index(); i < p.count; i += 4 * block_size()) store16(to + i, load16_stream(from + i));
    }
}

// Thread i loads word i * stride, and then again for `number` more times.
MOERL_KERNEL(strided_loads, TestCall, 1024) {
    uint32_t sum = 0;
    for (uint32_t n = 0; n <= p.number; n++) sum += load(p.input + thread_index() * p.stride);
    store(p.output + block_index() * block_size() + thread_index(), sum);
}

// Adds 1 to every word in place; the input of the launch is the same memory as its output.
MOERL_KERNEL(increment_in_place, TestCall, 1024) {
    uint32_t* words = const_cast<uint32_t*>(p.input);
    for (uint64_t i = thread_index(); i < p.count; i += block_size()) store(words + i, load(words + i) + 1);
}

MOERL_KERNEL(asynchronous_load, TestCall, 1024) {
    MOERL_SHARED(Words4, stage, 64);
    copy_async<16>(stage + thread_index(), p.input + 4 * thread_index());
    copy_async_commit();
    copy_async_wait<0>();
    atomic_add(p.counters, stage[thread_index()].w[0]);
}
