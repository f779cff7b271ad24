// The C interface between the emulator's runtime and src/device/emulator/ffi.rs, which mirrors these structures by hand; both sides
// assert the same sizes. Nothing here is seen by a kernel.
#ifndef MOERL_EMULATION_H
#define MOERL_EMULATION_H

#include <stddef.h>
#include <stdint.h>

// What a kernel sees added to every address. On x86-64 the sum is not a canonical address, so that following it faults whatever the
// process has mapped; elsewhere bit 55 selects the kernel's half of the address space, with the same effect (bits above it may be
// ignored as a tag on AArch64).
#if defined(__x86_64__)
#define MOERL_EMULATION_ALIAS (1ull << 62)
#else
#define MOERL_EMULATION_ALIAS (1ull << 55)
#endif

#ifdef __cplusplus
extern "C" {
#endif

// A kernel compiled for the CPU; MOERL_KERNEL makes one.
struct MoerlEmulationKernel {
    const char* name;
    void (*body)(const void* params);
    uint64_t params_bytes;
    uint32_t max_threads;
};

// The kernels of one archive, as build/emulation.rs found them in the sources.
struct MoerlEmulationTable {
    const char* name;  // the same in a stand-in
    const struct MoerlEmulationKernel* const* kernels;
    uint64_t count;
};

// A buffer that the kernel may touch: rows of `row_bytes`, `stride_bytes` apart (equal where there is no gap), `bytes` in all.
struct MoerlEmulationRange {
    const char* name;
    uint64_t address;  // the real one
    uint64_t bytes;
    uint64_t row_bytes;
    uint64_t stride_bytes;
    uint64_t writable;
};

// What a launch did to one buffer. Gaps between rows are not counted anywhere. A sector is 32 bytes at a 32-byte boundary.
struct MoerlEmulationTraffic {
    uint64_t loads;  // accesses by threads, asynchronous copies included
    uint64_t stores;
    uint64_t atomics;  // neither loads nor stores
    uint64_t load_bytes;
    uint64_t store_bytes;
    uint64_t bytes_loaded_once;
    uint64_t bytes_loaded_again;  // more than once
    uint64_t bytes_stored_once;
    uint64_t bytes_stored_again;
    uint64_t most_loads;  // of any one byte (65535 stands for that many or more)
    uint64_t most_stores;
    uint64_t load_sectors;  // distinct ones of each block, added over the blocks
    uint64_t store_sectors;
    uint64_t warp_load_sectors;  // distinct ones of each instruction of a warp, added up; an estimate, for information
    uint64_t warp_store_sectors;
};

enum MoerlEmulationSchedule {
    MOERL_SCHEDULE_IN_ORDER = 0,    // the lowest thread that can run
    MOERL_SCHEDULE_REVERSE = 1,     // the highest
    MOERL_SCHEDULE_RANDOM = 2,      // any, drawn anew at every switch
    MOERL_SCHEDULE_PRIORITIES = 3,  // the one with the highest priority; priorities are drawn per warp and per thread for each block
};

struct MoerlEmulationLaunch {
    const struct MoerlEmulationTable* table;
    const char* kernel;
    const void* params;
    uint64_t params_bytes;
    const struct MoerlEmulationRange* ranges;
    uint64_t range_count;
    struct MoerlEmulationTraffic* traffic;  // one per range, or null: do not meter
    uint64_t seed;
    uint32_t schedule;
    uint32_t blocks_in_flight;  // blocks whose threads are interleaved; 1: one block after the other
    uint32_t blocks;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t reserved;
};

#ifdef __cplusplus
static_assert(sizeof(MoerlEmulationRange) == 48, "as src/device/emulator/ffi.rs has it");
static_assert(sizeof(MoerlEmulationTraffic) == 120, "as src/device/emulator/ffi.rs has it");
static_assert(sizeof(MoerlEmulationLaunch) == 88, "as src/device/emulator/ffi.rs has it");
#endif

enum MoerlEmulationResult {
    MOERL_EMULATION_DONE = 0,
    MOERL_EMULATION_REFUSED = 1,  // no such kernel, or a launch that CUDA would refuse
    MOERL_EMULATION_FAULT = 2,    // the kernel did something wrong
};

// Runs a kernel to its end. What went wrong is written to `message`, always terminated.
int moerl_emulation_launch(const struct MoerlEmulationLaunch* launch, char* message, size_t message_bytes);

// What the kernels were compiled under: "address", "thread", or empty for no sanitizer.
const char* moerl_emulation_sanitizer(void);

// Kernels and runtime compiled once more, under a sanitizer, into a shared library that exports one of these, `moerl_emulation_stand_in`. In a process that has
// loaded it, it takes every launch in the place of the copy that is linked in: the same test binaries serve plain and sanitized kernels.
struct MoerlEmulationStandIn {
    const char* sanitizer;
    int (*launch)(const struct MoerlEmulationLaunch* launch, char* message, size_t message_bytes);
};

#ifdef __cplusplus
}
#endif

#endif
