// The CPU's half of device.cuh: the same names with the same meaning, and with checks that a GPU does not make.
//
// Included by device.cuh alone. Every helper takes the caller's source line as a hidden last argument, for its fault messages.
#pragma once

#include <math.h>
#include <string.h>

#include <type_traits>

#include "runtime.h"

// Not forced, as on the GPU: a function that every kernel takes in is compiled as often, and under a sanitizer that takes a compiler minutes.
#define MOERL_DEVICE inline
#define MOERL_UNROLL
#define MOERL_ROLLED
#define MOERL_SITE ::emulation::Site site = ::emulation::Site::here()

// A kernel is a plain function of its parameters, and a record of it that the generated table points to.
#define MOERL_ALL_REGISTERS(name, Params, max_threads)
#define MOERL_RESIDENT(name, Params, max_threads, blocks)
#define MOERL_KERNEL(name, Params, max_threads)                                                                                  \
    static void moerl_body_##name(const Params& p);                                                                              \
    extern "C" const MoerlEmulationKernel moerl_emulated_##name;                                                                 \
    const MoerlEmulationKernel moerl_emulated_##name = {                                                                         \
        #name, [](const void* params) { moerl_body_##name(*static_cast<const Params*>(params)); }, sizeof(Params), max_threads}; \
    static void moerl_body_##name([[maybe_unused]] const Params& p)

// The address of a static names the declaration: the same for all threads, another one for each instance of a template.
// A reference to an array, so that sizeof is what it is on a GPU and UBSan knows the bounds.
#define MOERL_SHARED(type, name, count)                     \
    static const char moerl_shared_##name = 0;              \
    type(&name)[count] = *reinterpret_cast<type(*)[count]>( \
        ::emulation::shared_array(&moerl_shared_##name, #name, sizeof(type) * (count), alignof(type), ::emulation::Site::here()))
#define MOERL_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::emulation::dynamic_shared())

// The parts that look at the runtime's state. ThreadSanitizer would take a call of its own for each word they read, for nothing: a call
// that it does not see costs less.
#if defined(__SANITIZE_THREAD__)
#define MOERL_UNSEEN inline __attribute__((noinline, no_sanitize_thread))
#else
#define MOERL_UNSEEN MOERL_DEVICE
#endif

// ---- indices ----------------------------------------------------------------------------------------------------------
MOERL_UNSEEN uint32_t thread_index() { return emulation::self->thread; }
MOERL_UNSEEN uint32_t block_index() { return emulation::self->block; }
MOERL_UNSEEN uint32_t block_size() { return emulation::self->threads; }
MOERL_UNSEEN uint32_t grid_size() { return emulation::self->blocks; }
MOERL_UNSEEN uint32_t lane_index() { return emulation::self->thread & 31u; }
MOERL_UNSEEN uint32_t warp_index() { return emulation::self->thread >> 5; }

// ---- global memory ------------------------------------------------------------------------------------------------------
namespace emulation {

// The real memory behind a kernel's pointer, after the check that the access may be made.
template <Access access, size_t bytes, size_t alignment, class T>
MOERL_UNSEEN T* real(T* pointer, Site site) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer) - MOERL_EMULATION_ALIAS;
    const Window& window = access == Access::Load ? self->loads : self->stores;
    const uintptr_t offset = address - window.first;
    const bool known = offset < window.bytes && bytes <= window.bytes - offset && address % alignment == 0;
    if (__builtin_expect(!known, 0)) reach(address, bytes, alignment, access, site);
    return reinterpret_cast<T*>(address);
}

MOERL_DEVICE Words4 load_words(const void* p, Site site) {
    Words4 r;
    memcpy(&r, real<Access::Load, 16, 16>(p, site), 16);
    return r;
}
MOERL_DEVICE void store_words(void* p, const Words4& v, Site site) { memcpy(real<Access::Store, 16, 16>(p, site), &v, 16); }

// C has no atomic minimum. Relaxed, as CUDA's are.
template <class T, class Better>
MOERL_DEVICE T atomic_choose(T* p, T v, Better better) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (better(v, old) && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
MOERL_DEVICE T atomic_smallest(T* p, T v) {
    return atomic_choose(p, v, [](T a, T b) { return a < b; });
}
template <class T>
MOERL_DEVICE T atomic_largest(T* p, T v) {
    return atomic_choose(p, v, [](T a, T b) { return a > b; });
}
template <class T>
MOERL_DEVICE T* real_atomic(T* p, Site site) {
    may_switch();
    return real<Access::Atomic, sizeof(T), sizeof(T)>(p, site);
}
template <class T>
MOERL_DEVICE T* shared_atomic(T* p) {
    may_switch();
    return p;
}

}  // namespace emulation

template <class T>
MOERL_DEVICE T load(const T* p, MOERL_SITE) {
    return *emulation::real<emulation::Access::Load, sizeof(T), alignof(T)>(p, site);
}
template <class T>
MOERL_DEVICE void store(T* p, T value, MOERL_SITE) {
    *emulation::real<emulation::Access::Store, sizeof(T), alignof(T)>(p, site) = value;
}
template <class T>
MOERL_DEVICE T load_stream(const T* p, MOERL_SITE) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "scalar of 1, 2, 4 or 8 bytes");
    return load(p, site);
}
template <class T>
MOERL_DEVICE void store_stream(T* p, T value, MOERL_SITE) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "scalar of 1, 2, 4 or 8 bytes");
    store(p, value, site);
}
MOERL_DEVICE Words4 load16(const void* p, MOERL_SITE) { return emulation::load_words(p, site); }
MOERL_DEVICE Words4 load16_stream(const void* p, MOERL_SITE) { return emulation::load_words(p, site); }
MOERL_DEVICE Words4 load16_once(const void* p, MOERL_SITE) { return emulation::load_words(p, site); }
MOERL_DEVICE void store16(void* p, Words4 v, MOERL_SITE) { emulation::store_words(p, v, site); }
MOERL_DEVICE void store16_stream(void* p, Words4 v, MOERL_SITE) { emulation::store_words(p, v, site); }

MOERL_DEVICE uint64_t load_relaxed(const uint64_t* p, MOERL_SITE) {
    return __atomic_load_n(emulation::real<emulation::Access::Load, 8, 8>(p, site), __ATOMIC_RELAXED);
}
MOERL_DEVICE uint32_t load_relaxed(const uint32_t* p, MOERL_SITE) {
    return __atomic_load_n(emulation::real<emulation::Access::Load, 4, 4>(p, site), __ATOMIC_RELAXED);
}

MOERL_DEVICE uint64_t atomic_min(uint64_t* p, uint64_t v, MOERL_SITE) {
    return emulation::atomic_smallest(emulation::real_atomic(p, site), v);
}
MOERL_DEVICE uint32_t atomic_min(uint32_t* p, uint32_t v, MOERL_SITE) {
    return emulation::atomic_smallest(emulation::real_atomic(p, site), v);
}
MOERL_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v, MOERL_SITE) {
    return emulation::atomic_largest(emulation::real_atomic(p, site), v);
}
MOERL_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v, MOERL_SITE) {
    return __atomic_fetch_add(emulation::real_atomic(p, site), v, __ATOMIC_RELAXED);
}
MOERL_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t v, MOERL_SITE) {
    return __atomic_fetch_add(emulation::real_atomic(p, site), v, __ATOMIC_RELAXED);
}
MOERL_DEVICE void fence_device() { emulation::fence(); }

// ---- shared memory ------------------------------------------------------------------------------------------------------
MOERL_DEVICE uint32_t shared_atomic_add(uint32_t* p, uint32_t v) {
    return __atomic_fetch_add(emulation::shared_atomic(p), v, __ATOMIC_RELAXED);
}
MOERL_DEVICE uint32_t shared_atomic_min(uint32_t* p, uint32_t v) { return emulation::atomic_smallest(emulation::shared_atomic(p), v); }
MOERL_DEVICE uint32_t shared_atomic_max(uint32_t* p, uint32_t v) { return emulation::atomic_largest(emulation::shared_atomic(p), v); }
MOERL_DEVICE uint32_t shared_atomic_or(uint32_t* p, uint32_t v) {
    return __atomic_fetch_or(emulation::shared_atomic(p), v, __ATOMIC_RELAXED);
}
MOERL_DEVICE uint64_t shared_atomic_min(uint64_t* p, uint64_t v) { return emulation::atomic_smallest(emulation::shared_atomic(p), v); }

template <int BYTES>
MOERL_DEVICE void copy_async(void* shared, const void* global, MOERL_SITE) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    emulation::copy_async(shared, reinterpret_cast<uintptr_t>(global) - MOERL_EMULATION_ALIAS, BYTES, site);
}
MOERL_DEVICE void copy_async_commit() { emulation::copy_async_commit(); }
template <int PENDING>
MOERL_DEVICE void copy_async_wait() {
    emulation::copy_async_wait(PENDING);
}

// ---- block --------------------------------------------------------------------------------------------------------------
MOERL_DEVICE void sync_block(MOERL_SITE) { emulation::sync_block(emulation::Barrier::Plain, false, site); }
MOERL_DEVICE bool sync_block_or(bool p, MOERL_SITE) { return emulation::sync_block(emulation::Barrier::Or, p, site) != 0; }
MOERL_DEVICE bool sync_block_and(bool p, MOERL_SITE) { return emulation::sync_block(emulation::Barrier::And, p, site) != 0; }
MOERL_DEVICE uint32_t sync_block_count(bool p, MOERL_SITE) { return emulation::sync_block(emulation::Barrier::Count, p, site); }

// ---- warp: every lane of `mask` must make the same call -------------------------------------------------------------------
namespace emulation {

template <class T>
MOERL_DEVICE T move(Collective kind, T value, int source, uint32_t mask, Site site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a number of 4 or 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    word = collect(kind, word, static_cast<uint32_t>(source), mask, site);
    memcpy(&value, &word, sizeof(T));
    return value;
}

}  // namespace emulation

MOERL_DEVICE void sync_warp(uint32_t mask = FULL_WARP, MOERL_SITE) { emulation::collect(emulation::Collective::Sync, 0, 0, mask, site); }
template <class T>
MOERL_DEVICE T shuffle(T v, int lane, uint32_t mask = FULL_WARP, MOERL_SITE) {
    return emulation::move(emulation::Collective::Shuffle, v, lane & 31, mask, site);
}
// Past the warp's ends a lane keeps its own value.
template <class T>
MOERL_DEVICE T shuffle_xor(T v, int lanes, uint32_t mask = FULL_WARP, MOERL_SITE) {
    const int own = static_cast<int>(lane_index()), source = own ^ lanes;
    return emulation::move(emulation::Collective::ShuffleXor, v, source > 31 || source < 0 ? own : source, mask, site);
}
template <class T>
MOERL_DEVICE T shuffle_up(T v, int lanes, uint32_t mask = FULL_WARP, MOERL_SITE) {
    const int own = static_cast<int>(lane_index()), source = own - lanes;
    return emulation::move(emulation::Collective::ShuffleUp, v, source < 0 ? own : source, mask, site);
}
template <class T>
MOERL_DEVICE T shuffle_down(T v, int lanes, uint32_t mask = FULL_WARP, MOERL_SITE) {
    const int own = static_cast<int>(lane_index()), source = own + lanes;
    return emulation::move(emulation::Collective::ShuffleDown, v, source > 31 ? own : source, mask, site);
}
MOERL_DEVICE uint32_t ballot(bool p, uint32_t mask, MOERL_SITE) {
    return static_cast<uint32_t>(emulation::collect(emulation::Collective::Ballot, p, 0, mask, site));
}
MOERL_DEVICE bool any(bool p, uint32_t mask, MOERL_SITE) { return emulation::collect(emulation::Collective::Any, p, 0, mask, site) != 0; }
MOERL_DEVICE bool all(bool p, uint32_t mask, MOERL_SITE) { return emulation::collect(emulation::Collective::All, p, 0, mask, site) != 0; }
MOERL_DEVICE uint32_t match_any(uint32_t v, uint32_t mask = FULL_WARP, MOERL_SITE) {
    return static_cast<uint32_t>(emulation::collect(emulation::Collective::MatchAny, v, 0, mask, site));
}
MOERL_DEVICE uint32_t reduce_add_u32(uint32_t v, uint32_t mask = FULL_WARP, MOERL_SITE) {
    return static_cast<uint32_t>(emulation::collect(emulation::Collective::Add, v, 0, mask, site));
}
MOERL_DEVICE uint32_t reduce_min_u32(uint32_t v, uint32_t mask = FULL_WARP, MOERL_SITE) {
    return static_cast<uint32_t>(emulation::collect(emulation::Collective::Min, v, 0, mask, site));
}
MOERL_DEVICE uint32_t reduce_max_u32(uint32_t v, uint32_t mask = FULL_WARP, MOERL_SITE) {
    return static_cast<uint32_t>(emulation::collect(emulation::Collective::Max, v, 0, mask, site));
}

#include "arithmetic.h"
