// What device.h asks of the runtime. The state behind it stays in the runtime's own files, which are compiled without -fsanitize:
// bookkeeping that sanitizers can see is bookkeeping that they report.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "emulation.h"

namespace emulation {

// A place in a kernel's source: the default argument of every helper, so that a fault names the line of the caller.
struct Site {
    const char* file;
    int line;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Memory that the last access was found to lie in (one row of a buffer with gaps). Empty while traffic is metered, so that every
// access takes the slow road.
struct Window {
    uintptr_t first;
    size_t bytes;
};

// The part of a CUDA thread that kernels see.
struct Thread {
    uint32_t thread;
    uint32_t block;
    uint32_t threads;
    uint32_t blocks;
    Window loads;
    Window stores;
};

// The thread that runs at this moment. __thread, not thread_local: GCC's UBSan takes the wrapper that an extern thread_local goes
// through for a null pointer. A compiler may keep the value in a register over a switch: whoever is running again is the same thread.
extern __thread Thread* self __attribute__((tls_model("initial-exec")));

enum class Access : uint8_t { Load, Store, Atomic, AsyncCopy };

enum class Collective : uint8_t {
    Sync,
    Shuffle,
    ShuffleXor,
    ShuffleUp,
    ShuffleDown,
    Ballot,
    Any,
    All,
    MatchAny,
    Add,
    Min,
    Max,
};

enum class Barrier : uint8_t { Plain, Or, And, Count };

// Each of these ends the launch with a worded fault, and does not return, where the kernel is at fault.

// Checks an access that lies outside the thread's window.
void reach(uintptr_t address, size_t bytes, size_t alignment, Access access, Site site);
// The array of this declaration (`key` is its identity) in the running block; poisoned when the block's first thread asks for it.
void* shared_array(const void* key, const char* name, size_t bytes, size_t alignment, Site site);
void* dynamic_shared();

void copy_async(void* shared, uintptr_t global, size_t bytes, Site site);
void copy_async_commit();
void copy_async_wait(uint32_t pending);

uint32_t sync_block(Barrier kind, bool predicate, Site site);
// `source` is the lane whose value a shuffle returns.
uint64_t collect(Collective kind, uint64_t value, uint32_t source, uint32_t mask, Site site);

void fence();
// Called at every atomic: another thread, or another block in flight, may come between.
void may_switch();

[[noreturn]] void fail_at(Site site, const char* message);

}  // namespace emulation
