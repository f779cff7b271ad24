// The E logits of a row and the LANES lanes that share it, VALUES each.
//
// In registers: 16-byte packs, dealt round to the lanes. In shared memory ("staged"): as they lie in global memory, for a row that is gone
// over more than once; then column c belongs to lane c % LANES. Which lane has a column depends on E and the element type alone, and
// so do sums over a row.
#pragma once

#include "score.cuh"
#include "slots.cuh"

template <class T, int LANES, int VALUES> struct Columns {
    static constexpr int PACKS = VALUES / PACK<T>;

    static MOERL_DEVICE uint32_t first(int i) { return (static_cast<uint32_t>(i * LANES) + Group<LANES>::lane()) * PACK<T>; }
    // Increases with v within a lane.
    static MOERL_DEVICE uint32_t column(int v) { return first(v / PACK<T>) + static_cast<uint32_t>(v % PACK<T>); }

    // Columns from E on, and rows that are not wanted, hold -inf. Every logit of a wanted row is loaded once.
    static MOERL_DEVICE void read(const T* row, uint32_t experts, bool wanted, float (&x)[VALUES]) {
        const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
        MOERL_UNROLL
        for (int i = 0; i < PACKS; i++) {
            float values[PACK<T>];
            if (wanted && aligned && first(i) + PACK<T> <= experts) {
                unpack<T>(load16_stream(row + first(i)), values);
            } else {
                MOERL_UNROLL
                for (int j = 0; j < PACK<T>; j++) {
                    const uint32_t column = first(i) + static_cast<uint32_t>(j);
                    values[j] = wanted && column < experts ? to_f32(load(row + column)) : -INFINITY;
                }
            }
            MOERL_UNROLL
            for (int j = 0; j < PACK<T>; j++) x[i * PACK<T> + j] = values[j];
        }
    }
};

// A row's part of dynamic shared memory: its logits, a key for each, and a word for each group of experts.
template <class T, int LANES> struct Staged {
    T* logits;
    uint32_t* keys;
    uint32_t* groups;

    MOERL_DEVICE Staged(unsigned char* place, uint32_t experts) {
        const uint32_t padded = (experts + 7) / 8 * 8;
        logits = reinterpret_cast<T*>(place);
        keys = reinterpret_cast<uint32_t*>(logits + padded);
        groups = keys + padded;
    }

    // Loads each logit of a wanted row once. The row is there for its lanes after the next sync_warp.
    MOERL_DEVICE void read(const T* row, uint32_t experts, bool wanted) const {
        if (!wanted) return;
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
            for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) logits[c] = load(row + c);
            return;
        }
        const uint32_t whole = experts / PACK<T> * PACK<T>;
        for (uint32_t c = Group<LANES>::lane() * PACK<T>; c < whole; c += LANES * PACK<T>) {
            *reinterpret_cast<Words4*>(logits + c) = load16_stream(row + c);
        }
        for (uint32_t c = whole + Group<LANES>::lane(); c < experts; c += LANES) logits[c] = load(row + c);
    }

    MOERL_DEVICE float logit(uint32_t column) const { return to_f32(logits[column]); }
};

// What a row of logits comes to.
struct RowSum {
    float lse;      // log Σ exp after the softcap, NaN left out
    uint32_t nans;  // how many were
};

// Of a staged row; all zeros for others. Called by whole warps.
template <class T, int LANES>
MOERL_DEVICE RowSum sum_row(const Staged<T, LANES>& row, const MoerlGateRouter& router, bool wanted, bool needs_lse) {
    const uint32_t experts = wanted ? router.experts : 0;
    RowSum r = {0.0f, 0};
    float most = -INFINITY;
    for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) {
        const float x = row.logit(c);
        r.nans += x != x ? 1u : 0u;
        most = fmaxf(most, x);  // of a NaN and a number, the number. The softcap is increasing: it can wait
    }
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) {
        r.nans += shuffle_xor(r.nans, lanes);
        most = fmaxf(most, shuffle_xor(most, lanes));
    }
    if (!needs_lse) return r;
    most = capped(most, router.softcap);
    float sum = 0.0f;
    for (uint32_t c = Group<LANES>::lane(); c < experts; c += LANES) {
        const float y = exp2_approx((capped(row.logit(c), router.softcap) - most) * LOG2_E);
        sum += y == y ? y : 0.0f;
    }
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) sum += shuffle_xor(sum, lanes);
    r.lse = is_finite(most) ? most + logf(sum) : most;
    return r;
}

template <int LANES, int VALUES> MOERL_DEVICE uint32_t count_nans(const float (&x)[VALUES]) {
    uint32_t nans = 0;
    MOERL_UNROLL
    for (int v = 0; v < VALUES; v++) nans += x[v] != x[v] ? 1u : 0u;
    MOERL_UNROLL
    for (int lanes = 1; lanes < LANES; lanes *= 2) nans += shuffle_xor(nans, lanes);
    return nans;
}
