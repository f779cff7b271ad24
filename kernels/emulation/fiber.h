// Stacks, and the switch from one to another.
#pragma once

#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "sanitizer.h"

namespace emulation {

// A place where execution stopped and can go on: a fiber's, or the host thread's own.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t saved;
#endif
    char* stack = nullptr;  // the lowest address
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // ASan's, while the context rests
    void* tsan = nullptr;

    // Makes the context begin at `entry` when it is switched to. `stagger` shifts the stack's top by some cache lines: stacks lie a
    // power of two apart, and without it the hot ends of all of them would compete for the same few sets of the cache.
    void begin(void (*entry)(), unsigned stagger);
    // Makes the context stand for the code that calls, so that it can be switched back to.
    void adopt_caller();
};

// Leaves `from` and goes on in `to`; returns when something switches back to `from`. `forever`: nothing will.
void switch_context(Context& from, Context& to, bool forever);
// The first words of every entry.
void arrived_by_switch();

// Maps a stack with an inaccessible page below it. Null where the system refuses.
char* map_stack();
void unmap_stack(char* stack);

#if defined(MOERL_EMULATION_ASAN) || defined(MOERL_EMULATION_TSAN)
constexpr size_t STACK_BYTES = 256 << 10;  // instrumented frames are several times as large
#else
constexpr size_t STACK_BYTES = 128 << 10;
#endif

}  // namespace emulation
