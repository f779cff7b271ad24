// Arrays with k elements a row, read and written slot by slot; or several at once, where a lane has them side by side at a boundary of their size.
#pragma once

#include "slots.cuh"

template <class V> constexpr bool IS_FLOAT = false;
template <> constexpr bool IS_FLOAT<float> = true;
template <> constexpr bool IS_FLOAT<bf16> = true;
template <> constexpr bool IS_FLOAT<f16> = true;

// f32 of floats, an integer of integers.
template <class To, class V> MOERL_DEVICE To widened(V v) {
    if constexpr (IS_FLOAT<V>) return to_f32(v);
    else return static_cast<To>(v);
}

// The V whose bits are the lowest of these.
template <class To, class V> MOERL_DEVICE To widened_bits(uint64_t bits) {
    if constexpr (!IS_FLOAT<V>) return static_cast<To>(static_cast<V>(bits));
    else if constexpr (sizeof(V) == 4) return f32_of(static_cast<uint32_t>(bits));
    else return to_f32(V{static_cast<uint16_t>(bits)});
}

// BYTES of global memory, at a boundary of as many.
template <int BYTES> MOERL_DEVICE uint64_t load_word(const void* from) {
    if constexpr (BYTES == 8) return load(static_cast<const uint64_t*>(from));
    else if constexpr (BYTES == 4) return load(static_cast<const uint32_t*>(from));
    else return load(static_cast<const uint16_t*>(from));
}

template <int WIDTH, class To, class V> MOERL_DEVICE void load_run(const V* from, To* x) {
    if constexpr (WIDTH * sizeof(V) == 16) {
        const Words4 words = load16(from);
        MOERL_UNROLL
        for (int s = 0; s < 4; s++) x[s] = widened_bits<To, V>(words.w[s]);
    } else {
        const uint64_t word = load_word<WIDTH * static_cast<int>(sizeof(V))>(from);
        MOERL_UNROLL
        for (int s = 0; s < WIDTH; s++) x[s] = widened_bits<To, V>(word >> (8 * sizeof(V) * static_cast<size_t>(s)));
    }
}

// Runs of WIDTH slots lie at boundaries of their size, and k ends with one.
template <class Slots, class V> MOERL_DEVICE bool has_runs(const V* first, uint32_t top_k) {
    return Slots::WIDTH > 1 && top_k % Slots::WIDTH == 0 && reinterpret_cast<uintptr_t>(first) % (Slots::WIDTH * sizeof(V)) == 0;
}

// The lane's slots of the row that begins at `row`; 0 where it has none. A lane whose row is not wanted reads nothing.
template <class Slots, class V, class To>
MOERL_DEVICE void load_slots(const V* array, int64_t row, uint32_t top_k, bool wanted, To (&x)[Slots::SLOTS]) {
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) x[s] = static_cast<To>(0);
    if (!wanted) return;
    const V* const first = array + row;
    if (has_runs<Slots>(first, top_k)) {
        MOERL_UNROLL
        for (int s = 0; s < Slots::SLOTS; s += Slots::WIDTH) {
            if (Slots::slot(s) < top_k) load_run<Slots::WIDTH>(first + Slots::slot(s), x + s);
        }
        return;
    }
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot(s) < top_k) x[s] = widened<To>(load(first + Slots::slot(s)));
    }
}

// The same of an array of floats of any type.
template <class Slots>
MOERL_DEVICE void load_float_slots(const void* array, uint32_t element, int64_t row, uint32_t top_k, bool wanted, float (&x)[Slots::SLOTS]) {
    if (element == MOERL_BF16) return load_slots<Slots>(static_cast<const bf16*>(array), row, top_k, wanted, x);
    if (element == MOERL_F16) return load_slots<Slots>(static_cast<const f16*>(array), row, top_k, wanted, x);
    load_slots<Slots>(static_cast<const float*>(array), row, top_k, wanted, x);
}

// A lane's slots at once, or as many as a store takes: WIDTH.
template <int WIDTH, int COUNT> MOERL_DEVICE void store_run(float* to, const float (&x)[COUNT], uint32_t first, uint32_t top_k) {
    static_assert(WIDTH == 2 || WIDTH == 4, "8 or 16 bytes");
    MOERL_UNROLL
    for (int s = 0; s < COUNT; s += WIDTH) {
        if (first + static_cast<uint32_t>(s) >= top_k) continue;
        if constexpr (WIDTH == 4) store16(to + s, Words4{{bits_of(x[s]), bits_of(x[s + 1]), bits_of(x[s + 2]), bits_of(x[s + 3])}});
        else store(reinterpret_cast<uint64_t*>(to + s), static_cast<uint64_t>(bits_of(x[s + 1])) << 32 | bits_of(x[s]));
    }
}

// The lane's slots of the row that begins at `to`.
template <class Slots> MOERL_DEVICE void store_slots(float* to, uint32_t top_k, const float (&x)[Slots::SLOTS]) {
    if constexpr (Slots::WIDTH > 1) {
        if (has_runs<Slots>(to, top_k)) return store_run<Slots::WIDTH>(to + Slots::slot(0), x, Slots::slot(0), top_k);
    }
    MOERL_UNROLL
    for (int s = 0; s < Slots::SLOTS; s++) {
        if (Slots::slot(s) < top_k) store(to + Slots::slot(s), x[s]);
    }
}
