// Advantages of tokens, from the end of every segment backwards.
//
//   y_t = w_t (r_t + gamma V_{t+1} - V_t) + gamma lambda c_t y_{t+1}     w = min(ratio_bar, ratio), c = min(trace_bar, ratio)
//   A_t = y_t, or r_t + gamma (V_{t+1} + y_{t+1}) - V_t
//
// With ratio 1 this is GAE, with V = 0 and lambda = 1 the discounted return. t + 1 is the next counted token; behind the last one stand the segment's own
// reward and gamma times the bootstrap.
//
// A run of tokens is an affine map of the state (value, y) to its right: its own value does not depend on the state, y = b + h value + a y. So blocks of
// 32 positions are mapped by a lane each, a lane per segment hands the state from block to block, and the lanes walk again and write. Segments of
// several tiles take a launch before: a map a tile; the last tile to arrive hands the state from tile to tile.
//
// Data. Each array is read once by a launch and the results are written once: 4 bytes a token for each of r, V and ratio, 1 for the mask, 4 for each result. Segments of
// more than 1024 tokens are read twice, the second time from the cache if it is large enough.
//
// All in f64: with gamma = lambda = 1 a million differences of values add up to one difference, and sums of f32 would leave nothing of it.
#pragma once

#include "blocks.cuh"

constexpr uint32_t RETURN_WARPS = 2;

struct ReturnStage {
    MoerlReturnMap maps[CHAIN_BLOCKS];  // then the states that enter the blocks
    BlockList list;
    float rewards[PADDED];              // then the advantages
    float values[PADDED];               // then the returns
    float ratios[PADDED];               // then the policy's weights
    uint8_t mask[MOERL_TILE];
};

MOERL_DEVICE MoerlReturnMap no_map() { return {0.0, 0.0, 0.0, 0.0, 0}; }

// Of a y that is 0 nothing is left, however far the traces have grown.
MOERL_DEVICE double traced(double a, double y) { return y == 0.0 ? 0.0 : a * y; }

MOERL_DEVICE MoerlReturnState through(const MoerlReturnMap& m, const MoerlReturnState& s) {
    if (m.counts == 0) return s;
    return {m.value, m.b + traced(m.h, s.value) + traced(m.a, s.y)};
}

// First `right`, then `left`.
MOERL_DEVICE MoerlReturnMap compose(const MoerlReturnMap& left, const MoerlReturnMap& right) {
    if (left.counts == 0) return right;
    if (right.counts == 0) return left;
    return {left.value, left.b + traced(left.h, right.value) + traced(left.a, right.b), traced(left.a, right.h), traced(left.a, right.a), 1};
}

MOERL_DEVICE void stage_unit(const MoerlTokenAdvantages& p, const MoerlUnit& unit, ReturnStage& stage) {
    stage_floats(p.token_rewards, unit, stage.rewards);
    stage_floats(p.values, unit, stage.values);
    stage_floats(p.ratio, unit, stage.ratios);
    copy_async_commit();
    stage_mask(p.loss_mask, unit, stage.mask);
    copy_async_wait<0>();
    sync_warp();
}

// What stands behind a segment's last token. False where it is not finite: then none of its tokens counts.
MOERL_DEVICE bool end_of(const MoerlTokenAdvantages& p, uint64_t segment, MoerlReturnState& state) {
    const float reward = p.segment_rewards != nullptr ? load(p.segment_rewards + segment) : 0.0f;
    const float bootstrap = p.bootstrap != nullptr ? load(p.bootstrap + segment) : 0.0f;
    state = {static_cast<double>(reward) + p.gamma * static_cast<double>(bootstrap), 0.0};
    return is_finite(reward) && is_finite(bootstrap);
}

struct Step {
    double reward, value, weight, trace;
    bool counts, is_sound;
};

MOERL_DEVICE Step step_at(const MoerlTokenAdvantages& p, const ReturnStage& stage, int slot, bool is_sound_segment) {
    const int at = padded(slot);
    const float reward = p.token_rewards != nullptr ? stage.rewards[at] : 0.0f;
    const float value = p.values != nullptr ? stage.values[at] : 0.0f;
    const float ratio = p.ratio != nullptr ? stage.ratios[at] : 1.0f;
    Step s;
    s.counts = stage.mask[slot] != 0;
    s.is_sound = s.counts && is_sound_segment && is_finite(reward) && is_finite(value) && is_finite(ratio);
    s.reward = static_cast<double>(reward);
    s.value = static_cast<double>(value);
    const double of_token = static_cast<double>(ratio);
    s.weight = of_token < p.ratio_bar ? of_token : p.ratio_bar;
    s.trace = p.decay * (of_token < p.trace_bar ? of_token : p.trace_bar);
    return s;
}

MOERL_DEVICE MoerlReturnMap map_of(const MoerlTokenAdvantages& p, const ReturnStage& stage, const Block& block) {
    MoerlReturnState end;
    const bool is_sound = end_of(p, block.segment, end);
    MoerlReturnMap m = no_map();
    for (int i = block.length - 1; i >= 0; i--) {
        const Step s = step_at(p, stage, block.slot + i, is_sound);
        if (!s.is_sound) continue;
        if (m.counts == 0) {
            m.b = s.weight * (s.reward - s.value);
            m.h = s.weight;
            m.a = s.trace;
        } else {
            m.b = s.weight * (s.reward + m.value - s.value) + s.trace * m.b;
            m.h *= s.trace;
            m.a *= s.trace;
        }
        m.value = p.gamma * s.value;
        m.counts = 1;
    }
    return m;
}

// Walks through a block from the state to its right, and leaves the results where its tokens were.
MOERL_DEVICE void walk(const MoerlTokenAdvantages& p, const MoerlUnit& unit, ReturnStage& stage, const Block& block, MoerlReturnState state, uint32_t& lost, uint64_t& fault) {
    MoerlReturnState end;
    const bool is_sound = end_of(p, block.segment, end);
    for (int i = block.length - 1; i >= 0; i--) {
        const int slot = block.slot + i, at = padded(slot);
        const Step s = step_at(p, stage, slot, is_sound);
        float advantage = 0.0f, result = 0.0f, weight = 0.0f;
        if (s.is_sound) {
            const double difference = s.reward + state.value - s.value;
            const double y = s.weight * difference + traced(s.trace, state.y);
            advantage = static_cast<float>(p.one_step ? difference + p.gamma * state.y : y);
            result = static_cast<float>(s.value + y);
            weight = static_cast<float>(s.weight);
            state = {p.gamma * s.value, y};
        } else if (s.counts) {
            advantage = p.left_out;
            lost++;
            keep_first(fault, fault_at(unit.token + static_cast<uint64_t>(slot), p.tag, MOERL_FAULT_NONFINITE_INPUT));
        }
        stage.rewards[at] = advantage;
        stage.values[at] = result;
        stage.ratios[at] = weight;
    }
}

MOERL_DEVICE MoerlReturnMap load_map(const MoerlReturnMap* from) { return {load(&from->value), load(&from->b), load(&from->h), load(&from->a), load(&from->counts)}; }

MOERL_DEVICE MoerlReturnMap shuffle_map(const MoerlReturnMap& m, int lane) {
    return {shuffle(m.value, lane), shuffle(m.b, lane), shuffle(m.h, lane), shuffle(m.a, lane), shuffle(m.counts, lane)};
}

// Hands the state from tile to tile of a segment, from its end: a lane composes MOERL_TILE_GROUP tiles, the lanes follow one another, and each goes through
// its tiles again.
MOERL_DEVICE void carry_tiles(const MoerlTokenAdvantages& p, const Tile& t, uint64_t segment) {
    constexpr uint64_t ROUND = static_cast<uint64_t>(WARP) * MOERL_TILE_GROUP;
    const uint64_t lane = lane_index();
    MoerlReturnState state;
    end_of(p, segment, state);
    for (uint64_t round = (t.tiles - 1) / ROUND + 1; round-- > 0;) {
        const uint64_t begin = round * ROUND + lane * MOERL_TILE_GROUP;
        const uint64_t end = begin + MOERL_TILE_GROUP < t.tiles ? begin + MOERL_TILE_GROUP : t.tiles;
        MoerlReturnMap mine = no_map();
        for (uint64_t tile = end; tile > begin; tile--) mine = compose(load_map(p.maps + t.first + tile - 1), mine);
        MoerlReturnState entering = state;
        for (int other = WARP - 1; other >= 0; other--) {
            if (other == static_cast<int>(lane)) entering = state;
            state = through(shuffle_map(mine, other), state);
        }
        for (uint64_t tile = end; tile > begin; tile--) {
            const uint64_t at = t.first + tile - 1;
            store(&p.carries[at].value, entering.value);
            store(&p.carries[at].y, entering.y);
            entering = through(load_map(p.maps + at), entering);
        }
    }
}

// A launch for the segments of several tiles: the map of each.
MOERL_DEVICE void map_tiles(const MoerlTokenAdvantages& p) {
    MOERL_SHARED(ReturnStage, stages, RETURN_WARPS);
    const uint64_t index = static_cast<uint64_t>(block_index()) * RETURN_WARPS + warp_index();
    if (index >= p.unit_count) return;
    const MoerlUnit unit = load_unit(p.units + index);
    if (unit.segments != 0) return;
    ReturnStage& stage = stages[warp_index()];
    const uint32_t lane = lane_index();
    stage_unit(p, unit, stage);
    const int slot = static_cast<int>(lane) * BLOCK, left = static_cast<int>(unit.tokens) - slot;
    MoerlReturnMap map = no_map();
    if (left > 0) map = map_of(p, stage, {slot, left < BLOCK ? left : BLOCK, unit.segment});
    // After a step every lane that matters holds its own blocks and as many to the right of them.
    MOERL_UNROLL
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const MoerlReturnMap right = shuffle_map(map, (static_cast<int>(lane) + lanes) % WARP);
        map = compose(map, right);
    }
    if (lane == 0) {
        MoerlReturnMap* const to = p.maps + index;
        store(&to->value, map.value);
        store(&to->b, map.b);
        store(&to->h, map.h);
        store(&to->a, map.a);
        store(&to->counts, map.counts);
    }
    const Tile t = tile_of(p.offsets, unit, index);
    if (is_last(p.tickets + t.first, static_cast<uint32_t>(t.tiles))) carry_tiles(p, t, unit.segment);
}

MOERL_DEVICE void walk_units(const MoerlTokenAdvantages& p) {
    MOERL_SHARED(ReturnStage, stages, RETURN_WARPS);
    const uint64_t index = static_cast<uint64_t>(block_index()) * RETURN_WARPS + warp_index();
    uint64_t fault = MOERL_NO_FAULT;
    if (index < p.unit_count) {
        const MoerlUnit unit = load_unit(p.units + index);
        ReturnStage& stage = stages[warp_index()];
        const uint32_t lane = lane_index();
        stage_unit(p, unit, stage);
        const BlockCounts counts = list_blocks(p.offsets, unit, stage.list);
        for (uint32_t b = lane; b < counts.chained; b += WARP) stage.maps[b] = map_of(p, stage, block_at(stage.list, unit, b));
        sync_warp();
        if (lane < counts.chains) {
            const Chain chain = chain_at(stage.list, unit, lane);
            MoerlReturnState state;
            end_of(p, chain.segment, state);
            if (unit.segments == 0) state = {load(&p.carries[index].value), load(&p.carries[index].y)};
            for (uint32_t b = chain.first + chain.blocks; b-- > chain.first;) {
                const MoerlReturnMap map = stage.maps[b];
                stage.maps[b].value = state.value;
                stage.maps[b].b = state.y;
                state = through(map, state);
            }
        }
        sync_warp();
        uint32_t lost = 0;
        for (uint32_t b = lane; b < counts.chained; b += WARP) walk(p, unit, stage, block_at(stage.list, unit, b), {stage.maps[b].value, stage.maps[b].b}, lost, fault);
        for (uint32_t b = lane; b < counts.single; b += WARP) {
            const Block block = block_at(stage.list, unit, CHAIN_BLOCKS + b);
            MoerlReturnState state;
            end_of(p, block.segment, state);
            walk(p, unit, stage, block, state, lost, fault);
        }
        sync_warp();
        store_floats(p.advantages, unit, stage.rewards);
        store_floats(p.returns, unit, stage.values);
        store_floats(p.policy_weights, unit, stage.ratios);
        lost = reduce_add_u32(lost);
        if (lane == 0 && lost != 0 && p.nonfinite != nullptr) atomic_add(p.nonfinite, static_cast<uint64_t>(lost));
    }
    publish_fault(p.errors, fault);
}
