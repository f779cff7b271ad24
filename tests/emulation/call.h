// The one parameter structure of the emulator's test kernels; tests/emulation/harness.rs mirrors it.
#pragma once

#include <stdint.h>

struct TestCall {
    const uint32_t* input;
    uint32_t* output;
    uint32_t* counters;
    uint64_t count;
    uint64_t stride;
    uint32_t number;
    uint32_t variant;
};
