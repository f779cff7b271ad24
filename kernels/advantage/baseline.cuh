// The optimal token baseline.
//
//   e_t = (1 - 2 pi_t + sum pi^2) w_t^2     W_t = e_0 + ... + e_t over the segment's counted tokens
//   b_t = sum G W / (sum W + eps) over the group's members with a counted token of that index t     A_t = G_t - b_t
//
// e is the squared norm of the gradient of log pi_t in the logits, so W is the variance that a trajectory has gathered. A group of one has no baseline; nor,
// with zero_tail, has what is longer than the second longest member.
//
// Data. 13 bytes a token are read and W and the position written, 12 bytes, by segment in the order of counted tokens; then a block takes 128 indices of a
// group, reads G, W and position of every member, coalesced where nothing is masked, and writes A. Tiles of long segments are summed by a launch before.
#pragma once

#include "blocks.cuh"

constexpr uint32_t BASELINE_WARPS = 2;

struct BaselineStage {
    MoerlEnergy sums[CHAIN_BLOCKS];  // of blocks, then of all before them
    BlockList list;
    float returns[PADDED];
    float logprobs[PADDED];
    float sum_p2[PADDED];
    float weights[PADDED];
    uint8_t mask[MOERL_TILE];
};

MOERL_DEVICE void stage_unit(const MoerlTokenBaseline& p, const MoerlUnit& unit, BaselineStage& stage) {
    stage_floats(p.returns, unit, stage.returns);
    stage_floats(p.logprobs, unit, stage.logprobs);
    stage_floats(p.sum_p2, unit, stage.sum_p2);
    stage_floats(p.weights, unit, stage.weights);
    copy_async_commit();
    stage_mask(p.loss_mask, unit, stage.mask);
    copy_async_wait<0>();
    sync_warp();
}

struct Energy {
    double energy;
    bool counts, is_sound;
};

MOERL_DEVICE Energy energy_at(const MoerlTokenBaseline& p, const BaselineStage& stage, int slot) {
    const int at = padded(slot);
    const float logprob = stage.logprobs[at], sum_p2 = stage.sum_p2[at], weight = p.weights != nullptr ? stage.weights[at] : 1.0f;
    Energy r = {0.0, stage.mask[slot] != 0, false};
    r.is_sound = r.counts && is_finite(logprob) && is_finite(sum_p2) && is_finite(weight) && is_finite(stage.returns[at]);
    if (!r.is_sound) return r;
    const double energy = 1.0 - 2.0 * exp(static_cast<double>(logprob)) + static_cast<double>(sum_p2);
    // A sum of squares, whatever the rounding of its parts makes of it.
    r.energy = energy > 0.0 ? energy * static_cast<double>(weight) * static_cast<double>(weight) : 0.0;
    return r;
}

MOERL_DEVICE MoerlEnergy sum_block(const MoerlTokenBaseline& p, const BaselineStage& stage, int slot, int length) {
    MoerlEnergy sum = {0.0, 0};
    for (int i = 0; i < length; i++) {
        const Energy e = energy_at(p, stage, slot + i);
        sum.energy += e.energy;
        sum.tokens += e.is_sound ? 1u : 0u;
    }
    return sum;
}

MOERL_DEVICE MoerlEnergy load_energy(const MoerlEnergy* from) { return {load(&from->energy), load(&from->tokens)}; }
MOERL_DEVICE void store_energy(MoerlEnergy* to, const MoerlEnergy& e) {
    store(&to->energy, e.energy);
    store(&to->tokens, e.tokens);
}
MOERL_DEVICE MoerlEnergy plus(const MoerlEnergy& a, const MoerlEnergy& b) { return {a.energy + b.energy, a.tokens + b.tokens}; }
MOERL_DEVICE MoerlEnergy shuffle_energy(const MoerlEnergy& e, int lane) { return {shuffle(e.energy, lane), shuffle(e.tokens, lane)}; }

// Turns the sums of a segment's tiles into those of all tiles before each; a lane takes MOERL_TILE_GROUP tiles at a time.
MOERL_DEVICE void accumulate_tiles(const MoerlTokenBaseline& p, const Tile& t, uint64_t segment) {
    constexpr uint64_t ROUND = static_cast<uint64_t>(WARP) * MOERL_TILE_GROUP;
    const uint64_t lane = lane_index();
    MoerlEnergy before = {0.0, 0};
    for (uint64_t round = 0; round * ROUND < t.tiles; round++) {
        const uint64_t begin = round * ROUND + lane * MOERL_TILE_GROUP;
        const uint64_t end = begin + MOERL_TILE_GROUP < t.tiles ? begin + MOERL_TILE_GROUP : t.tiles;
        MoerlEnergy mine = {0.0, 0};
        for (uint64_t tile = begin; tile < end; tile++) mine = plus(mine, load_energy(p.energies + t.first + tile));
        MoerlEnergy entering = before;
        for (int other = 0; other < WARP; other++) {
            if (other == static_cast<int>(lane)) entering = before;
            before = plus(before, shuffle_energy(mine, other));
        }
        for (uint64_t tile = begin; tile < end; tile++) {
            MoerlEnergy* const at = p.energies + t.first + tile;
            const MoerlEnergy own = load_energy(at);
            store_energy(at, entering);
            entering = plus(entering, own);
        }
    }
    if (lane == 0) store(p.counts + segment, static_cast<uint32_t>(before.tokens));
}

// A launch for the segments of several tiles: the sums of each.
MOERL_DEVICE void sum_tiles(const MoerlTokenBaseline& p) {
    MOERL_SHARED(BaselineStage, stages, BASELINE_WARPS);
    const uint64_t index = static_cast<uint64_t>(block_index()) * BASELINE_WARPS + warp_index();
    if (index >= p.unit_count) return;
    const MoerlUnit unit = load_unit(p.units + index);
    if (unit.segments != 0) return;
    BaselineStage& stage = stages[warp_index()];
    stage_unit(p, unit, stage);
    const int slot = static_cast<int>(lane_index()) * BLOCK, left = static_cast<int>(unit.tokens) - slot;
    MoerlEnergy mine = {0.0, 0};
    if (left > 0) mine = sum_block(p, stage, slot, left < BLOCK ? left : BLOCK);
    mine.energy = warp_sum(mine.energy);
    mine.tokens = reduce_add_u32(static_cast<uint32_t>(mine.tokens));
    if (lane_index() == 0) store_energy(p.energies + index, mine);
    const Tile t = tile_of(p.offsets, unit, index);
    if (is_last(p.tickets + t.first, static_cast<uint32_t>(t.tiles))) accumulate_tiles(p, t, unit.segment);
}

// Writes what a block's counted tokens have gathered, in their order; 0 where nothing counts. Returns the sums behind the block.
MOERL_DEVICE MoerlEnergy scatter(const MoerlTokenBaseline& p, const MoerlUnit& unit, const BaselineStage& stage, const Block& block, MoerlEnergy before, uint32_t& lost, uint64_t& fault) {
    const uint64_t start = static_cast<uint64_t>(load(p.offsets + block.segment));
    for (int i = 0; i < block.length; i++) {
        const int slot = block.slot + i;
        const uint64_t token = unit.token + static_cast<uint64_t>(slot);
        const Energy e = energy_at(p, stage, slot);
        if (!e.is_sound) {
            store(p.advantages + token, 0.0f);
            if (e.counts) {
                lost++;
                keep_first(fault, fault_at(token, p.tag, MOERL_FAULT_NONFINITE_INPUT));
            }
            continue;
        }
        before.energy += e.energy;
        store(p.cumulative + start + before.tokens, before.energy);
        store(p.positions + start + before.tokens, static_cast<uint32_t>(token - start));
        before.tokens++;
    }
    return before;
}

MOERL_DEVICE void scatter_units(const MoerlTokenBaseline& p) {
    MOERL_SHARED(BaselineStage, stages, BASELINE_WARPS);
    const uint64_t index = static_cast<uint64_t>(block_index()) * BASELINE_WARPS + warp_index();
    uint64_t fault = MOERL_NO_FAULT;
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        BaselineStage& stage = stages[warp_index()];
        const uint32_t lane = lane_index();
        stage_unit(p, unit, stage);
        const BlockCounts counts = list_blocks(p.offsets, unit, stage.list);
        for (uint32_t b = lane; b < counts.chained; b += WARP) {
            const Block block = block_at(stage.list, unit, b);
            stage.sums[b] = sum_block(p, stage, block.slot, block.length);
        }
        sync_warp();
        if (lane < counts.chains) {
            const Chain chain = chain_at(stage.list, unit, lane);
            MoerlEnergy before = {0.0, 0};
            if (unit.segments == 0) before = load_energy(p.energies + index);
            for (uint32_t b = chain.first; b < chain.first + chain.blocks; b++) {
                const MoerlEnergy own = stage.sums[b];
                stage.sums[b] = before;
                before = plus(before, own);
            }
            if (unit.segments != 0) store(p.counts + chain.segment, static_cast<uint32_t>(before.tokens));
        }
        sync_warp();
        uint32_t lost = 0;
        for (uint32_t b = lane; b < counts.chained; b += WARP) scatter(p, unit, stage, block_at(stage.list, unit, b), stage.sums[b], lost, fault);
        for (uint32_t b = lane; b < counts.single; b += WARP) {
            const Block block = block_at(stage.list, unit, CHAIN_BLOCKS + b);
            const MoerlEnergy all = scatter(p, unit, stage, block, {0.0, 0}, lost, fault);
            store(p.counts + block.segment, static_cast<uint32_t>(all.tokens));
        }
        lost = reduce_add_u32(lost);
        if (lane == 0 && lost != 0 && p.nonfinite != nullptr) atomic_add(p.nonfinite, static_cast<uint64_t>(lost));
    }
    publish_fault(p.errors, fault);
}

// A thread takes a token index of a group.
MOERL_DEVICE void baseline_of_groups(const MoerlTokenBaseline& p) {
    const uint32_t group = load(&p.pieces[block_index()].group), index = load(&p.pieces[block_index()].index);
    const uint64_t t = static_cast<uint64_t>(index) * MOERL_BASELINE_TILE + thread_index();
    const uint32_t begin = load(p.group_ptr + group), end = load(p.group_ptr + group + 1);
    double weighted = 0.0, weight = 0.0;
    uint32_t members = 0, longest = 0, second = 0;
    for (uint32_t at = begin; at < end; at++) {
        const uint32_t segment = load(p.members + at), tokens = load(p.counts + segment);
        members += tokens != 0 ? 1u : 0u;
        if (tokens > second) second = tokens < longest ? tokens : longest;
        if (tokens > longest) longest = tokens;
        if (t >= tokens) continue;
        const uint64_t start = static_cast<uint64_t>(load(p.offsets + segment));
        const double own = load(p.cumulative + start + t);
        weight += own;
        weighted += own * static_cast<double>(load(p.returns + start + load(p.positions + start + t)));
    }
    // Without any variance there is nothing to reduce, and with eps = 0 nothing to divide by.
    const bool has_baseline = members > 1 && (!p.zero_tail || t < second) && weight > 0.0;
    const double baseline = has_baseline ? weighted / (weight + p.epsilon) : 0.0;
    for (uint32_t at = begin; at < end && t < longest; at++) {
        const uint32_t segment = load(p.members + at);
        if (t >= load(p.counts + segment)) continue;
        const uint64_t start = static_cast<uint64_t>(load(p.offsets + segment)), token = start + load(p.positions + start + t);
        store(p.advantages + token, static_cast<float>(static_cast<double>(load(p.returns + token)) - baseline));
    }
}
