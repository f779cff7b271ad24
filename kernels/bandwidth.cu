// What the memory of a device gives to a kernel that does nothing else: the measure that the other kernels are held against.
//
//   copy   out[i] = in[i]                 1 read, 1 write
//   read   sums[w] = xor of warp w's in   1 read
//   fill   out[i] = word                  1 write
//   empty  nothing: the price of a launch
//
// Data movement. A thread moves PACKS packs of 16 bytes, a warp's next to each other, all loads under way before the first is used; a grid
// covers the array once, as the kernels that are measured against this do.
#include "warp.cuh"

constexpr int PACKS = 4;

// The thread's packs: `visit(j, index)` for those that the array has.
template <class Visit> MOERL_DEVICE void for_packs(const MoerlBandwidth& p, Visit visit) {
    const uint64_t first = static_cast<uint64_t>(block_index()) * (block_size() * PACKS) + thread_index();
    MOERL_UNROLL
    for (int j = 0; j < PACKS; j++) {
        const uint64_t index = first + static_cast<uint64_t>(j) * block_size();
        if (index < p.packs) visit(j, index);
    }
}

MOERL_DEVICE const uint8_t* input_at(const MoerlBandwidth& p, uint64_t index) { return static_cast<const uint8_t*>(p.input) + 16 * index; }
MOERL_DEVICE uint8_t* output_at(const MoerlBandwidth& p, uint64_t index) { return static_cast<uint8_t*>(p.output) + 16 * index; }

MOERL_KERNEL(bandwidth_copy, MoerlBandwidth, 256) {
    Words4 packs[PACKS] = {};
    for_packs(p, [&](int j, uint64_t index) { packs[j] = load16_stream(input_at(p, index)); });
    for_packs(p, [&](int j, uint64_t index) { store16_stream(output_at(p, index), packs[j]); });
}

MOERL_KERNEL(bandwidth_read, MoerlBandwidth, 256) {
    Words4 packs[PACKS] = {};
    for_packs(p, [&](int j, uint64_t index) { packs[j] = load16_stream(input_at(p, index)); });
    uint32_t folded = 0;
    MOERL_UNROLL
    for (int j = 0; j < PACKS; j++) folded ^= packs[j].w[0] ^ packs[j].w[1] ^ packs[j].w[2] ^ packs[j].w[3];
    MOERL_UNROLL
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) folded ^= shuffle_xor(folded, lanes);
    const uint64_t warp = static_cast<uint64_t>(block_index()) * (block_size() / WARP) + warp_index();
    if (lane_index() == 0) store(static_cast<uint32_t*>(p.output) + warp, folded);
}

MOERL_KERNEL(bandwidth_fill, MoerlBandwidth, 256) {
    const Words4 pack = {{p.word, p.word, p.word, p.word}};
    for_packs(p, [&](int, uint64_t index) { store16_stream(output_at(p, index), pack); });
}

MOERL_KERNEL(bandwidth_empty, MoerlBandwidth, 1024) { static_cast<void>(p); }
