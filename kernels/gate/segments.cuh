// The rows of a warp in shared memory, for kernels in which LANES lanes share a row: every lane has a run of consecutive columns to itself.
//
// Lane l of a row has the columns from l * (E / LANES) on. Runs are padded with -inf to whole blocks of 32 columns, and lie an odd number of
// 16-byte steps apart: eight lanes that read 16 bytes at the same place of their runs then meet in no bank.
#pragma once

#include "../pack.cuh"

constexpr uint32_t BLOCK = 32;  // columns

template <class V, int LANES> struct Segments {
    unsigned char* place;  // the warp's
    uint32_t run;          // columns of a lane
    uint32_t stride;       // bytes from one lane's to the next one's

    static MOERL_DEVICE uint32_t padded(uint32_t run) { return (run + BLOCK - 1) / BLOCK * BLOCK; }

    MOERL_DEVICE Segments(unsigned char* where, uint32_t experts)
        : place(where), run(experts / LANES), stride(padded(experts / LANES) * static_cast<uint32_t>(sizeof(V)) + 16) {}

    MOERL_DEVICE unsigned char* behind() const { return place + WARP * stride; }
    MOERL_DEVICE V* of(uint32_t lane) const { return reinterpret_cast<V*>(place + lane * stride); }
    MOERL_DEVICE V* own() const { return of(lane_index()); }
    MOERL_DEVICE uint32_t blocks() const { return padded(run) / BLOCK; }

    // Of the row of which `row_lane` is the first lane.
    MOERL_DEVICE V at(uint32_t row_lane, uint32_t column) const {
        uint32_t lane = row_lane, first = 0;
        MOERL_UNROLL
        for (int l = 1; l < LANES; l++) {
            const bool further = column >= static_cast<uint32_t>(l) * run;
            lane = further ? row_lane + static_cast<uint32_t>(l) : lane;
            first = further ? static_cast<uint32_t>(l) * run : first;
        }
        return of(lane)[column - first];
    }
};

// 16 bytes of shared memory.
template <class V> MOERL_DEVICE Words4 words_of(const V* shared) { return *reinterpret_cast<const Words4*>(shared); }

template <class T> constexpr uint32_t MINUS_INFINITY = 0xff800000u;
template <> constexpr uint32_t MINUS_INFINITY<bf16> = 0xff80ff80u;
template <> constexpr uint32_t MINUS_INFINITY<f16> = 0xfc00fc00u;

// Loads each logit of the wanted rows once: `wanted` has the bits of their lanes. `rows` is the warp's first. Sixteen lanes take 256 bytes of a
// row at a time, two rows side by side. They are there for the whole warp after the next sync_warp.
template <class T, int LANES>
MOERL_DEVICE void read_rows(const Segments<T, LANES>& segments, const T* rows, int64_t row_stride, uint32_t experts, uint32_t wanted) {
    constexpr uint32_t ACROSS = 16, STEP = WARP / ACROSS;
    const uint32_t packs = experts / PACK<T>, run_packs = segments.run / PACK<T>, row = lane_index() / ACROSS;
    MOERL_ROLLED
    for (uint32_t pack = lane_index() % ACROSS; pack < packs; pack += ACROSS) {
        uint32_t place = pack * 16;
        MOERL_UNROLL
        for (uint32_t l = 1; l < LANES; l++) place += pack >= l * run_packs ? segments.stride - run_packs * 16 : 0;
        unsigned char* to = segments.place + row * LANES * segments.stride + place;
        const T* from = rows + static_cast<int64_t>(row) * row_stride + pack * PACK<T>;
        if (wanted == FULL_WARP) {
            MOERL_UNROLL
            for (uint32_t r = 0; r < WARP / LANES; r += STEP) {
                copy_async<16>(to + r * LANES * segments.stride, from);
                from += STEP * row_stride;
            }
        } else {
            MOERL_ROLLED
            for (uint32_t left = wanted >> (row * LANES); left != 0; left >>= STEP * LANES) {
                if ((left & 1u) != 0) copy_async<16>(to, from);
                to += STEP * LANES * segments.stride;
                from += STEP * row_stride;
            }
        }
    }
    copy_async_commit();
    for (uint32_t column = segments.run; column < Segments<T, LANES>::padded(segments.run); column += PACK<T>) {
        constexpr uint32_t fill = MINUS_INFINITY<T>;
        *reinterpret_cast<Words4*>(segments.own() + column) = {{fill, fill, fill, fill}};
    }
    copy_async_wait<0>();
}
