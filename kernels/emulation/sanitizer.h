// What the runtime tells AddressSanitizer and ThreadSanitizer. The runtime itself is compiled without -fsanitize; the build defines
// MOERL_EMULATION_ASAN or MOERL_EMULATION_TSAN when the kernels are compiled with it. Without either, all of this is nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(MOERL_EMULATION_ASAN)
#include <pthread.h>
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
void __asan_loadN(const void*, size_t);
void __asan_storeN(void*, size_t);
}
#elif defined(MOERL_EMULATION_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range_pc(void*, size_t, void* pc);
void __tsan_write_range_pc(void*, size_t, void* pc);
void __tsan_mutex_pre_signal(void*, unsigned flags);
void __tsan_mutex_post_signal(void*, unsigned flags);
}
#endif

namespace emulation {

#if defined(MOERL_EMULATION_ASAN)
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

// Between these two, ThreadSanitizer overlooks what the running fiber does, also that it acquires and releases. (They are meant for the
// inside of a condition variable. __tsan_ignore_thread_begin would keep a copy of the stack of every caller.)
inline void begin_quiet() {
#if defined(MOERL_EMULATION_TSAN)
    __tsan_mutex_pre_signal(nullptr, 0);
#endif
}
inline void end_quiet() {
#if defined(MOERL_EMULATION_TSAN)
    __tsan_mutex_post_signal(nullptr, 0);
#endif
}

// The runtime touches a kernel's memory in its place (an asynchronous copy): to be checked as if the kernel had, at `pc`. To be called in
// quiet.
inline void about_to_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes, [[maybe_unused]] void* pc) {
#if defined(MOERL_EMULATION_ASAN)
    __asan_loadN(p, bytes);
#elif defined(MOERL_EMULATION_TSAN)
    end_quiet();
    __tsan_read_range_pc(const_cast<void*>(p), bytes, pc);
    begin_quiet();
#endif
}
inline void about_to_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes, [[maybe_unused]] void* pc) {
#if defined(MOERL_EMULATION_ASAN)
    __asan_storeN(p, bytes);
#elif defined(MOERL_EMULATION_TSAN)
    end_quiet();
    __tsan_write_range_pc(p, bytes, pc);
    begin_quiet();
#endif
}

// memset, where AddressSanitizer does not look on: red zones are poisoned before they are filled.
inline void fill(char* first, unsigned char value, size_t bytes) {
#if defined(MOERL_EMULATION_ASAN)
    for (size_t i = 0; i < bytes; i++) static_cast<volatile char*>(first)[i] = static_cast<char>(value);
#else
    memset(first, value, bytes);
#endif
}

// An edge of happens-before: what came before a release(token) comes before what follows a later acquire(token). To be called out of quiet.
inline void release([[maybe_unused]] void* token) {
#if defined(MOERL_EMULATION_TSAN)
    __tsan_release(token);
#endif
}
inline void acquire([[maybe_unused]] void* token) {
#if defined(MOERL_EMULATION_TSAN)
    __tsan_acquire(token);
#endif
}

}  // namespace emulation
