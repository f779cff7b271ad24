// What the runtime tells AddressSanitizer and ThreadSanitizer. The runtime itself is compiled without -fsanitize; the build defines
// MOERL_EMULATION_ASAN or MOERL_EMULATION_TSAN when the kernels are compiled with it. Without either, all of this is nothing.
#pragma once

#include <stddef.h>

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
void __tsan_read_range(void*, size_t);
void __tsan_write_range(void*, size_t);
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

// The runtime touches a kernel's memory for it (an asynchronous copy): check that as if the kernel had.
inline void about_to_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(MOERL_EMULATION_ASAN)
    __asan_loadN(p, bytes);
#elif defined(MOERL_EMULATION_TSAN)
    __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void about_to_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(MOERL_EMULATION_ASAN)
    __asan_storeN(p, bytes);
#elif defined(MOERL_EMULATION_TSAN)
    __tsan_write_range(p, bytes);
#endif
}

// An edge of happens-before: what came before a release(token) comes before what follows a later acquire(token).
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
