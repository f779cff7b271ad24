// The arithmetic of device.cuh on the CPU. NaN results are the canonical NaN of CUDA (all ones but the sign), as PTX says of each of
// these instructions, so that results can be compared as bits.
#pragma once

MOERL_DEVICE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
MOERL_DEVICE float f32_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
MOERL_DEVICE int popcount(uint32_t x) { return __builtin_popcount(x); }
MOERL_DEVICE int leading_zeros(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
MOERL_DEVICE int lowest_set(uint32_t x) { return __builtin_ffs(static_cast<int>(x)) - 1; }

namespace emulation {

constexpr uint32_t CANONICAL_NAN = 0x7fffffffu;
constexpr uint16_t CANONICAL_NAN_16 = 0x7fffu;

}  // namespace emulation

// Exact to half a unit where the GPU is only exact to two. Both its argument and its result are flushed (.ftz): exactly what lies below
// -126 has a subnormal result, and the C library takes its time over those.
MOERL_DEVICE float exp2_approx(float x) {
    if (x != x) return f32_of(emulation::CANONICAL_NAN);
    return x < -126.0f ? 0.0f : exp2f(x);
}

// Not better than the GPU is: a kernel that relies on more than 2^-11 must not get it here. A mantissa cut to 11 bits is that far off.
MOERL_DEVICE float tanh_approx(float x) {
    if (x != x) return f32_of(emulation::CANONICAL_NAN);
    return f32_of(bits_of(tanhf(x)) & 0xfffff000u);
}

// Exact to half a unit where the GPU is only exact to one. Arguments and results below 2^-126 are zeros of their sign.
MOERL_DEVICE float reciprocal_approx(float x) {
    if (x != x) return f32_of(emulation::CANONICAL_NAN);
    if (fabsf(x) < 0x1p-126f) return copysignf(INFINITY, x);
    return fabsf(x) > 0x1p126f ? copysignf(0.0f, x) : 1.0f / x;
}

// Not fmaxf, which takes a number over a NaN and either zero over the other.
MOERL_DEVICE float max_nan(float a, float b) {
    if (a != a || b != b) return f32_of(emulation::CANONICAL_NAN);
    if (a == b) return f32_of(bits_of(a) & bits_of(b));  // equal numbers have equal bits, but for the zeros: +0 unless both are -0
    return a > b ? a : b;
}

MOERL_DEVICE float min_nan(float a, float b) {
    if (a != a || b != b) return f32_of(emulation::CANONICAL_NAN);
    if (a == b) return f32_of(bits_of(a) | bits_of(b));  // -0 if either is
    return a < b ? a : b;
}

MOERL_DEVICE float to_f32(float x) { return x; }
MOERL_DEVICE float to_f32(bf16 x) { return f32_of(static_cast<uint32_t>(x.bits) << 16); }

// Shifted into place, the exponent is 112 too small; a multiplication by 2^112 mends that for normal and subnormal numbers alike.
MOERL_DEVICE float to_f32(f16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
    if (magnitude > 0x7c00u) return f32_of(emulation::CANONICAL_NAN);
    if (magnitude == 0x7c00u) return f32_of(sign | 0x7f800000u);
    return f32_of(sign | bits_of(f32_of(magnitude << 13) * 0x1p112f));
}

template <class T>
MOERL_DEVICE T from_f32(float x);
template <>
MOERL_DEVICE float from_f32<float>(float x) {
    return x;
}

// Half a unit of the last kept place, less one bit unless that place is odd, carries exactly when the value must go up. The carry
// may run into the exponent, and into infinity, which is right.
template <>
MOERL_DEVICE bf16 from_f32<bf16>(float x) {
    if (x != x) return {emulation::CANONICAL_NAN_16};
    const uint32_t bits = bits_of(x);
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// Three ranges of the magnitude: at least 65520 rounds to infinity; below 2^-14 the result is a multiple of 2^-24, which an addition
// of 1/2 leaves in the low bits, rounded by the addition itself; in between as for bf16, with 13 bits to drop.
template <>
MOERL_DEVICE f16 from_f32<f16>(float x) {
    if (x != x) return {emulation::CANONICAL_NAN_16};
    const uint32_t sign = bits_of(x) >> 16 & 0x8000u, magnitude = bits_of(x) & 0x7fffffffu;
    uint32_t half;
    if (magnitude >= bits_of(65520.0f))
        half = 0x7c00u;
    else if (magnitude < bits_of(0x1p-14f))
        half = bits_of(f32_of(magnitude) + 0.5f) - bits_of(0.5f);
    else
        half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    return {static_cast<uint16_t>(sign | half)};
}

template <class T>
MOERL_DEVICE uint32_t from_f32_x2(float low, float high) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "two values in one word");
    return static_cast<uint32_t>(from_f32<T>(low).bits) | static_cast<uint32_t>(from_f32<T>(high).bits) << 16;
}

// Widening is exact and keeps the order, so the larger one in f32 is the larger one.
template <class T>
MOERL_DEVICE uint32_t max_nan_x2(uint32_t a, uint32_t b) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "two values in one word");
    const float low = max_nan(to_f32(T{static_cast<uint16_t>(a)}), to_f32(T{static_cast<uint16_t>(b)}));
    const float high = max_nan(to_f32(T{static_cast<uint16_t>(a >> 16)}), to_f32(T{static_cast<uint16_t>(b >> 16)}));
    return from_f32_x2<T>(low, high);
}

template <class T>
MOERL_DEVICE uint32_t count_above_x2(uint32_t counts, uint32_t words, uint32_t thresholds) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "two values in one word");
    const auto half = [](uint32_t word, int shift) { return to_f32(T{static_cast<uint16_t>(word >> shift)}); };
    const auto counted = [&](int shift) { return half(counts, shift) + (half(words, shift) > half(thresholds, shift) ? 1.0f : 0.0f); };
    return from_f32_x2<T>(counted(0), counted(16));
}

template <class T>
MOERL_DEVICE uint32_t min_nan_x2(uint32_t a, uint32_t b) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "two values in one word");
    const float low = min_nan(to_f32(T{static_cast<uint16_t>(a)}), to_f32(T{static_cast<uint16_t>(b)}));
    const float high = min_nan(to_f32(T{static_cast<uint16_t>(a >> 16)}), to_f32(T{static_cast<uint16_t>(b >> 16)}));
    return from_f32_x2<T>(low, high);
}

template <class T>
MOERL_DEVICE uint32_t at_least_x2(uint32_t a, uint32_t b) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "two values in one word");
    const bool low = to_f32(T{static_cast<uint16_t>(a)}) >= to_f32(T{static_cast<uint16_t>(b)});
    const bool high = to_f32(T{static_cast<uint16_t>(a >> 16)}) >= to_f32(T{static_cast<uint16_t>(b >> 16)});
    return (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
}
