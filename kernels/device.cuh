// Every CUDA word that a kernel may use, in one place, with two implementations.
//
// nvcc reads the second half of this file; the emulator reads emulation/device.h, which defines exactly the same names on the
// CPU (MOERL_EMULATION). Kernels contain no CUDA built-in, no inline PTX and no raw dereference of a global pointer:
//
//   indices        thread_index() block_index() block_size() grid_size() lane_index() warp_index()      (grids and blocks have one dimension)
//   global memory  load load_stream load16 load16_stream store store_stream store16 store16_stream
//                  load_relaxed atomic_min atomic_max atomic_add  fence_device
//   async copies   copy_async<4|8|16>(shared, global)  copy_async_commit()  copy_async_wait<pending groups>()
//   shared memory  MOERL_SHARED(type, name, count)  MOERL_DYNAMIC_SHARED(type, name)  shared_atomic_*     (plain dereference is right here)
//   block          sync_block() sync_block_or(p) sync_block_and(p) sync_block_count(p)
//   warp           sync_warp shuffle shuffle_xor shuffle_up shuffle_down ballot any all match_any reduce_{add,min,max}_u32
//   arithmetic     exp2_approx tanh_approx reciprocal_approx fmaf (C's) {max,min}_nan {max,min}_nan_x2<bf16|f16> at_least_x2<bf16|f16>
//                  count_above_x2<bf16|f16> to_f32 from_f32 bits_of f32_of is_finite popcount ...
//
// A pointer that arrives in a parameter structure is GLOBAL: only the helpers may follow it (under emulation it lies in an
// inaccessible alias of the real memory, so that a raw p[i] faults). A kernel is declared with
//
//   MOERL_KERNEL(name, Params, max_threads) { ... uses p ... }
//
// one per line and instantiation, at the start of the line: the build scans for exactly that. MOERL_ALL_REGISTERS(name, Params, max_threads)
// or MOERL_RESIDENT(name, Params, max_threads, blocks) may stand before it.
#pragma once

#include <stdint.h>

#include "abi.h"

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// 16 bytes, the widest access.
struct alignas(16) Words4 { uint32_t w[4]; };

constexpr uint32_t FULL_WARP = 0xffffffffu;
constexpr int WARP = 32;

#ifdef MOERL_EMULATION

#include "emulation/device.h"

#else

#include <math_constants.h>

#define MOERL_DEVICE __device__ __forceinline__
#define MOERL_KERNEL(name, Params, max_threads) extern "C" __global__ void __launch_bounds__(max_threads) name(const __grid_constant__ Params p)
// Before a MOERL_KERNEL: it may take all the registers that one block leaves it. Without this ptxas may spill a few to fit one block more.
#define MOERL_ALL_REGISTERS(name, Params, max_threads) extern "C" __global__ void __launch_bounds__(max_threads, 1) name(const __grid_constant__ Params p);
// Before a MOERL_KERNEL: so many of its blocks are to share a multiprocessor, and the registers.
#define MOERL_RESIDENT(name, Params, max_threads, blocks) extern "C" __global__ void __launch_bounds__(max_threads, blocks) name(const __grid_constant__ Params p);
#define MOERL_SHARED(type, name, count) __shared__ type name[count]
#define MOERL_DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(128) unsigned char moerl_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(moerl_dynamic_shared)
#define MOERL_UNROLL _Pragma("unroll")
#define MOERL_ROLLED _Pragma("unroll 1")

// ---- indices ----------------------------------------------------------------------------------------------------------
MOERL_DEVICE uint32_t thread_index() { return threadIdx.x; }
MOERL_DEVICE uint32_t block_index() { return blockIdx.x; }
MOERL_DEVICE uint32_t block_size() { return blockDim.x; }
MOERL_DEVICE uint32_t grid_size() { return gridDim.x; }
MOERL_DEVICE uint32_t lane_index() { return threadIdx.x & 31u; }
MOERL_DEVICE uint32_t warp_index() { return threadIdx.x >> 5; }

// ---- global memory ------------------------------------------------------------------------------------------------------
// load: through the caches. load_stream: read once by the whole grid and never written during the launch; leaves L1 to others.
template <class T> MOERL_DEVICE T load(const T* p) { return *p; }
template <class T> MOERL_DEVICE void store(T* p, T value) { *p = value; }

template <class T> MOERL_DEVICE T load_stream(const T* p) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "scalar of 1, 2, 4 or 8 bytes");
    union { T value; uint64_t u64; uint32_t u32; uint16_t u16; } r;
    if constexpr (sizeof(T) == 1) {
        uint32_t v;
        asm volatile("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=r"(v) : "l"(p));
        r.u16 = static_cast<uint16_t>(v);
    } else if constexpr (sizeof(T) == 2) {
        asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(r.u16) : "l"(p));
    } else if constexpr (sizeof(T) == 4) {
        asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r.u32) : "l"(p));
    } else {
        asm volatile("ld.global.nc.L1::no_allocate.u64 %0, [%1];" : "=l"(r.u64) : "l"(p));
    }
    return r.value;
}
template <class T> MOERL_DEVICE void store_stream(T* p, T value) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "scalar of 1, 2, 4 or 8 bytes");
    union { T value; uint64_t u64; uint32_t u32; uint16_t u16; uint8_t u8; } r;
    r.value = value;
    if constexpr (sizeof(T) == 1) asm volatile("st.global.cs.u8 [%0], %1;" ::"l"(p), "r"(static_cast<uint32_t>(r.u8)) : "memory");
    else if constexpr (sizeof(T) == 2) asm volatile("st.global.cs.u16 [%0], %1;" ::"l"(p), "h"(r.u16) : "memory");
    else if constexpr (sizeof(T) == 4) asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(p), "r"(r.u32) : "memory");
    else asm volatile("st.global.cs.u64 [%0], %1;" ::"l"(p), "l"(r.u64) : "memory");
}

// 16 bytes at a 16-byte boundary.
MOERL_DEVICE Words4 load16(const void* p) {
    const uint4 v = *static_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
}
MOERL_DEVICE Words4 load16_stream(const void* p) {
    Words4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p));
    return r;
}
// As load16_stream, but not through the read-only path: for memory that the same launch overwrites (in-place gradients).
MOERL_DEVICE Words4 load16_once(const void* p) {
    Words4 r;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p) : "memory");
    return r;
}
MOERL_DEVICE void store16(void* p, Words4 v) { *static_cast<uint4*>(p) = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]); }
MOERL_DEVICE void store16_stream(void* p, Words4 v) { __stcs(static_cast<uint4*>(p), make_uint4(v.w[0], v.w[1], v.w[2], v.w[3])); }

// For memory that other blocks change by atomics at the same time; never a stale copy from L1.
MOERL_DEVICE uint64_t load_relaxed(const uint64_t* p) {
    uint64_t v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
MOERL_DEVICE uint32_t load_relaxed(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Integers only: the order of additions of floats would show in the result.
MOERL_DEVICE uint64_t atomic_min(uint64_t* p, uint64_t v) { return atomicMin(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v)); }
MOERL_DEVICE uint32_t atomic_min(uint32_t* p, uint32_t v) { return atomicMin(p, v); }
MOERL_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v) { return atomicMax(p, v); }
MOERL_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
MOERL_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t v) { return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v)); }
MOERL_DEVICE void fence_device() { __threadfence(); }

// ---- shared memory ------------------------------------------------------------------------------------------------------
MOERL_DEVICE uint32_t shared_atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
MOERL_DEVICE uint32_t shared_atomic_min(uint32_t* p, uint32_t v) { return atomicMin(p, v); }
MOERL_DEVICE uint32_t shared_atomic_max(uint32_t* p, uint32_t v) { return atomicMax(p, v); }
MOERL_DEVICE uint32_t shared_atomic_or(uint32_t* p, uint32_t v) { return atomicOr(p, v); }
MOERL_DEVICE uint64_t shared_atomic_min(uint64_t* p, uint64_t v) { return atomicMin(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v)); }

// A copy from global to shared memory that the thread does not wait for; both at a BYTES boundary.
// It has landed, for the issuing thread alone, once copy_async_wait<n> returned with at most n younger groups committed after it.
template <int BYTES> MOERL_DEVICE void copy_async(void* shared, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(BYTES) : "memory");
}
MOERL_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> MOERL_DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// ---- block --------------------------------------------------------------------------------------------------------------
MOERL_DEVICE void sync_block() { __syncthreads(); }
MOERL_DEVICE bool sync_block_or(bool p) { return __syncthreads_or(p) != 0; }
MOERL_DEVICE bool sync_block_and(bool p) { return __syncthreads_and(p) != 0; }
MOERL_DEVICE uint32_t sync_block_count(bool p) { return static_cast<uint32_t>(__syncthreads_count(p)); }

// ---- warp: every lane of `mask` must make the same call -------------------------------------------------------------------
MOERL_DEVICE void sync_warp(uint32_t mask = FULL_WARP) { __syncwarp(mask); }
template <class T> MOERL_DEVICE T shuffle(T v, int lane, uint32_t mask = FULL_WARP) { return __shfl_sync(mask, v, lane); }
template <class T> MOERL_DEVICE T shuffle_xor(T v, int lanes, uint32_t mask = FULL_WARP) { return __shfl_xor_sync(mask, v, lanes); }
template <class T> MOERL_DEVICE T shuffle_up(T v, int lanes, uint32_t mask = FULL_WARP) { return __shfl_up_sync(mask, v, lanes); }
template <class T> MOERL_DEVICE T shuffle_down(T v, int lanes, uint32_t mask = FULL_WARP) { return __shfl_down_sync(mask, v, lanes); }
// The votes have no default mask: nvcc still declares ballot, any and all of one argument, without a mask.
MOERL_DEVICE uint32_t ballot(bool p, uint32_t mask) { return __ballot_sync(mask, p); }
MOERL_DEVICE bool any(bool p, uint32_t mask) { return __any_sync(mask, p) != 0; }
MOERL_DEVICE bool all(bool p, uint32_t mask) { return __all_sync(mask, p) != 0; }
MOERL_DEVICE uint32_t match_any(uint32_t v, uint32_t mask = FULL_WARP) { return __match_any_sync(mask, v); }
MOERL_DEVICE uint32_t reduce_add_u32(uint32_t v, uint32_t mask = FULL_WARP) { return __reduce_add_sync(mask, v); }
MOERL_DEVICE uint32_t reduce_min_u32(uint32_t v, uint32_t mask = FULL_WARP) { return __reduce_min_sync(mask, v); }
MOERL_DEVICE uint32_t reduce_max_u32(uint32_t v, uint32_t mask = FULL_WARP) { return __reduce_max_sync(mask, v); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------------
MOERL_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
MOERL_DEVICE float f32_of(uint32_t bits) { return __uint_as_float(bits); }
MOERL_DEVICE int popcount(uint32_t x) { return __popc(x); }
MOERL_DEVICE int leading_zeros(uint32_t x) { return __clz(static_cast<int>(x)); }       // 32 for 0
MOERL_DEVICE int lowest_set(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }       // -1 for 0

// 2^x within 2^-22 relative; results below 2^-126 are 0.
MOERL_DEVICE float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// Within 2^-11 relative.
MOERL_DEVICE float tanh_approx(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// 1/x to the last place or the one before; arguments and results below 2^-126 are 0.
MOERL_DEVICE float reciprocal_approx(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// The larger one; NaN if either is NaN; -0 < +0.
MOERL_DEVICE float max_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
// The smaller one; NaN if either is NaN; -0 < +0.
MOERL_DEVICE float min_nan(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
// max_nan on both halves of a word.
template <class T> MOERL_DEVICE uint32_t max_nan_x2(uint32_t a, uint32_t b);
template <> MOERL_DEVICE uint32_t max_nan_x2<bf16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
template <> MOERL_DEVICE uint32_t max_nan_x2<f16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// min_nan on both halves of a word.
template <class T> MOERL_DEVICE uint32_t min_nan_x2(uint32_t a, uint32_t b);
template <> MOERL_DEVICE uint32_t min_nan_x2<bf16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
template <> MOERL_DEVICE uint32_t min_nan_x2<f16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// All ones in each half of the word where a >= b, else zeros; -0 >= +0, and NaN is not >= anything.
template <class T> MOERL_DEVICE uint32_t at_least_x2(uint32_t a, uint32_t b);
template <> MOERL_DEVICE uint32_t at_least_x2<bf16>(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 900
    uint32_t r;
    asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
#else
    const bool low = __uint_as_float(a << 16) >= __uint_as_float(b << 16);
    const bool high = __uint_as_float(a & 0xffff0000u) >= __uint_as_float(b & 0xffff0000u);
    return (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
#endif
}
template <> MOERL_DEVICE uint32_t at_least_x2<f16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// Two counters of type T in one word; each goes up by 1 where its half of `words` is above its half of `thresholds`. Exact up to 256.
template <class T> MOERL_DEVICE uint32_t count_above_x2(uint32_t counts, uint32_t words, uint32_t thresholds);
template <> MOERL_DEVICE uint32_t count_above_x2<f16>(uint32_t counts, uint32_t words, uint32_t thresholds) {
    uint32_t ones, r;
    asm("set.gt.f16x2.f16x2 %0, %1, %2;" : "=r"(ones) : "r"(words), "r"(thresholds));
    asm("add.f16x2 %0, %1, %2;" : "=r"(r) : "r"(counts), "r"(ones));
    return r;
}
template <> MOERL_DEVICE uint32_t count_above_x2<bf16>(uint32_t counts, uint32_t words, uint32_t thresholds) {
    uint32_t r;
#if __CUDA_ARCH__ >= 900
    uint32_t ones;
    asm("set.gt.bf16x2.bf16x2 %0, %1, %2;" : "=r"(ones) : "r"(words), "r"(thresholds));
    asm("add.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(counts), "r"(ones));
#else
    // A bf16 is the upper half of an f32. 0x3f80 is 1, of each half.
    const bool low = __uint_as_float(words << 16) > __uint_as_float(thresholds << 16);
    const bool high = __uint_as_float(words & 0xffff0000u) > __uint_as_float(thresholds & 0xffff0000u);
    const uint32_t ones = (low ? 0x3f80u : 0u) | (high ? 0x3f800000u : 0u);
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(ones), "r"(0x3f803f80u), "r"(counts));
#endif
    return r;
}

// Widening is exact; narrowing rounds to nearest, ties to even.
MOERL_DEVICE float to_f32(float x) { return x; }
MOERL_DEVICE float to_f32(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
MOERL_DEVICE float to_f32(f16 x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
    return r;
}
template <class T> MOERL_DEVICE T from_f32(float x);
template <> MOERL_DEVICE float from_f32<float>(float x) { return x; }
template <> MOERL_DEVICE bf16 from_f32<bf16>(float x) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
}
template <> MOERL_DEVICE f16 from_f32<f16>(float x) {
    f16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
}
// Two values into one word, the first in the low half.
template <class T> MOERL_DEVICE uint32_t from_f32_x2(float low, float high);
template <> MOERL_DEVICE uint32_t from_f32_x2<bf16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <> MOERL_DEVICE uint32_t from_f32_x2<f16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

#endif

// ---- of both ------------------------------------------------------------------------------------------------------------
// Neither NaN nor infinite.
MOERL_DEVICE bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }
