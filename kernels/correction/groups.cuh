// Phase 2 where there are groups: self-normalised weights, and Metropolis chains. A warp takes a group, its lanes members in turn.
#pragma once

#include "finish.cuh"

struct Group {
    uint64_t index;
    uint32_t begin, end;  // of its members
};

template <class Visit> MOERL_DEVICE void for_group(const MoerlCorrection& p, const Group& group, Visit visit) {
    for (uint64_t at = static_cast<uint64_t>(group.begin) + lane_index(); at < group.end; at += WARP) visit(load(p.members + at));
}

// ---- self-normalised ----------------------------------------------------------------------------------------------------

struct GroupFacts {
    double largest;   // X, of attached weights saturated
    double total;     // of the relative weights exp(X - largest)
    double members;   // that take part
    double rewarded;  // of the relative weights of members with a finite reward
    double reward;    // of those, times their rewards
};

// X as the weights of the group have it. What is attached saturates: the gradient, 0 beyond the bound, is that of the same function.
MOERL_DEVICE double weighed_x(const MoerlCorrection& p, double x) { return p.weight == MOERL_CORRECTION_ATTACHED ? saturated(p, x) : x; }

// Without a member above -inf all weigh the same.
MOERL_DEVICE double relative_weight(const GroupFacts& facts, double x) {
    return facts.largest == -static_cast<double>(f32_of(0x7f800000u)) ? 1.0 : exp(x - facts.largest);
}

MOERL_DEVICE float reward_of(const MoerlCorrection& p, uint32_t segment) { return p.rewards != nullptr ? load(p.rewards + segment) : 0.0f; }

MOERL_DEVICE GroupFacts facts_of_group(const MoerlCorrection& p, const Group& group) {
    GroupFacts facts = {-static_cast<double>(f32_of(0x7f800000u)), 0.0, 0.0, 0.0, 0.0};
    for_group(p, group, [&](uint32_t segment) {
        const Judged judged = judge(p, segment);
        if (is_member(judged)) facts.largest = greater(facts.largest, weighed_x(p, judged.x));
    });
    facts.largest = warp_joined(true, facts.largest);
    for_group(p, group, [&](uint32_t segment) {
        const Judged judged = judge(p, segment);
        if (!is_member(judged)) return;
        const double weight = relative_weight(facts, weighed_x(p, judged.x));
        const float reward = reward_of(p, segment);
        facts.total += weight;
        facts.members += 1.0;
        if (!is_finite(reward)) return;
        facts.rewarded += weight;
        facts.reward += weight * static_cast<double>(reward);
    });
    facts.total = warp_joined(false, facts.total);
    facts.members = warp_joined(false, facts.members);
    facts.rewarded = warp_joined(false, facts.rewarded);
    facts.reward = warp_joined(false, facts.reward);
    return facts;
}

// The other members with a reward: their weights, and their weighted rewards.
struct Others {
    double weight, reward;
};

// A difference of sums, but for the one member that may be more than half of the sum: what would be left of it is rounding, so the others
// are added up again.
MOERL_DEVICE Others others_of(const MoerlCorrection& p, const Group& group, const GroupFacts& facts, uint32_t own, double weight, double reward) {
    Others others = {facts.rewarded - weight, facts.reward - weight * reward};
    if (weight > 0.5 * facts.rewarded) {
        others = {0.0, 0.0};
        for (uint64_t at = group.begin; at < group.end; at++) {
            const uint32_t segment = load(p.members + at);
            const Judged judged = judge(p, segment);
            const float its = reward_of(p, segment);
            if (segment == own || !is_member(judged) || !is_finite(its)) continue;
            const double relative = relative_weight(facts, weighed_x(p, judged.x));
            others.weight += relative;
            others.reward += relative * static_cast<double>(its);
        }
    }
    return others;
}

// R less the mean reward of the others, by their weights. Attached, w (R - sum w R) with w of sum 1: the same times w (1 - w), which does not
// cancel where one member has nearly all of the weight; 0 where X stands still.
MOERL_DEVICE double advantage_of(const MoerlCorrection& p, const Group& group, const GroupFacts& facts, uint32_t own, double x, double reward) {
    const double weight = relative_weight(facts, weighed_x(p, x));
    const Others others = others_of(p, group, facts, own, weight, reward);
    const double baseline = others.weight > 0.0 ? others.reward / others.weight : 0.0;
    if (p.weight != MOERL_CORRECTION_ATTACHED) return reward - baseline;
    if (x != saturated(p, x)) return 0.0;
    return weight / facts.rewarded * (others.weight / facts.rewarded) * (reward - baseline);
}

MOERL_DEVICE Settled normalised(const MoerlCorrection& p, const Group& group, const GroupFacts& facts, uint32_t segment, const Judged& judged) {
    Settled r = {1.0f, false, 0u, 0.0f};
    if (!(judged.count > 0.0)) return r;
    if (!is_member(judged)) {
        r.weight = judged.is_kept ? f32_of(0x7fc00000u) : 0.0f;
        if (p.weight == MOERL_CORRECTION_ATTACHED) r.advantage = r.weight;
        return r;
    }
    r.weight = static_cast<float>(facts.members * relative_weight(facts, weighed_x(p, judged.x)) / facts.total);
    const float reward = reward_of(p, segment);
    if (p.baseline_advantages != nullptr && is_finite(reward)) {
        r.advantage = static_cast<float>(advantage_of(p, group, facts, segment, judged.x, static_cast<double>(reward)));
    }
    return r;
}

// ---- Metropolis ---------------------------------------------------------------------------------------------------------

MOERL_DEVICE double log_uniform_of(const MoerlCorrection& p, uint32_t segment) {
    return log(p.uniforms != nullptr ? static_cast<double>(load(p.uniforms + segment)) : uniform_of(p, load(p.segment_ids + segment), 0u, 0u));
}

constexpr uint32_t NO_MEMBER = 0xffffffffu;

// A member on its way into the chain. X is NaN for one that takes no part.
struct ChainStep {
    double x, log_uniform;
    uint32_t member;
};

// What a chain was left in.
struct ChainState {
    double x;
    uint32_t member, spent;  // and how many rejections were spent on it, itself counted
};

MOERL_DEVICE void leave_state(const MoerlCorrection& p, uint64_t group, const ChainState& state) {
    if (state.member != NO_MEMBER) store(p.multiplicities + state.member, state.spent);
    else if (p.carry_multiplicity != nullptr) store(p.carry_multiplicity + group, state.spent);
}

MOERL_DEVICE void take_step(const MoerlCorrection& p, uint64_t group, const ChainStep& step, ChainState& state) {
    // The first state is taken as it comes. A NaN is below nothing.
    const bool accepts = !is_nan(step.x) && (is_nan(state.x) || step.log_uniform < step.x - state.x);
    if (!accepts) {
        state.spent++;
        store(p.multiplicities + step.member, 0u);
        return;
    }
    leave_state(p, group, state);
    state = {step.x, step.member, 1};
}

// One chain, members in order: the lanes bring 32 at a time, one of them walks. The multiplicities are left in the workspace, 0 where a
// member was rejected.
MOERL_DEVICE void walk_chain(const MoerlCorrection& p, const Group& group) {
    MOERL_SHARED(ChainStep, steps, DECIDING_THREADS);
    const uint32_t lane = lane_index();
    ChainState state = {p.carried != nullptr ? load(p.carried + group.index) : nan_f64(), NO_MEMBER, 0};
    for (uint64_t first = group.begin; first < group.end; first += WARP) {
        if (first + lane < group.end) {
            const uint32_t own = load(p.members + first + lane);
            const Judged judged = judge(p, own);
            const bool takes_part = is_member(judged);
            steps[thread_index()] = {takes_part ? judged.x : nan_f64(), takes_part ? log_uniform_of(p, own) : 0.0, own};
        }
        sync_warp();
        const uint64_t left = group.end - first;
        for (uint32_t i = 0; lane == 0 && i < WARP && i < left; i++) take_step(p, group.index, steps[thread_index() + i], state);
        sync_warp();
    }
    if (lane == 0) {
        leave_state(p, group.index, state);
        if (p.carry_log_weights != nullptr) store(p.carry_log_weights + group.index, state.x);
    }
    sync_warp();  // one lane wrote what all read
}

MOERL_DEVICE Settled chosen(const MoerlCorrection& p, uint32_t segment, const Judged& judged) {
    const uint32_t multiplicity = load(p.multiplicities + segment);
    const uint32_t weight = p.weight == MOERL_CORRECTION_METROPOLIS_MASK ? static_cast<uint32_t>(multiplicity != 0) : multiplicity;
    return {judged.count > 0.0 ? static_cast<float>(weight) : 1.0f, multiplicity != 0, multiplicity, 0.0f};
}

// -------------------------------------------------------------------------------------------------------------------------

template <bool TALLY> MOERL_DEVICE void decide_group(const MoerlCorrection& p, const Group& group, SegmentsSeen& seen, uint64_t& fault) {
    const bool is_normalised = p.weight == MOERL_CORRECTION_SELF_NORMALISED || p.weight == MOERL_CORRECTION_ATTACHED;
    const bool is_test = p.weight == MOERL_CORRECTION_METROPOLIS_MASK || p.weight == MOERL_CORRECTION_METROPOLIS_MULTIPLICITY;
    const bool is_chain = is_test && p.level != MOERL_CORRECTION_TOKEN;
    GroupFacts facts = {0.0, 0.0, 0.0, 0.0, 0.0};
    if (is_chain) walk_chain(p, group);
    if (is_normalised) facts = facts_of_group(p, group);
    if (p.expected_rewards != nullptr && lane_index() == 0) {
        store(p.expected_rewards + group.index, facts.rewarded > 0.0 ? facts.reward / facts.rewarded : 0.0);
    }
    double sum = 0.0, squares = 0.0, kept = 0.0;
    for_group(p, group, [&](uint32_t segment) {
        const Judged judged = judge(p, segment, [&](uint32_t option, double tokens) { see_rejection(seen, option, tokens); });
        Settled settled = {judged.weight, false, 0u, 0.0f};
        if (is_chain) settled = chosen(p, segment, judged);
        if (is_normalised) settled = normalised(p, group, facts, segment, judged);
        kept += settle<TALLY>(p, segment, judged, settled, seen, fault);
        const double weight = static_cast<double>(settled.weight);
        if (!(judged.count > 0.0) || !is_finite_f64(weight)) return;
        sum += weight;
        squares += weight * weight;
    });
    if constexpr (TALLY) {
        sum = warp_joined(false, sum);
        squares = warp_joined(false, squares);
        kept = warp_joined(false, kept);
        if (lane_index() != 0) return;
        seen.at[MOERL_CORRECTION_KEPT_GROUPS] += kept > 0.0 ? 1.0 : 0.0;
        if (squares > 0.0) seen.at[MOERL_CORRECTION_GROUP_ESS] += sum * sum / squares;
    }
}

template <bool TALLY> MOERL_DEVICE void correction_finish_groups_phase(const MoerlCorrection& p) {
    SegmentsSeen seen;
    see_none(seen);
    uint64_t fault = MOERL_NO_FAULT;
    const uint64_t index = static_cast<uint64_t>(block_index()) * DECIDING_WARPS + warp_index();
    if (index < p.group_count) decide_group<TALLY>(p, {index, load(p.group_ptr + index), load(p.group_ptr + index + 1)}, seen, fault);
    publish_fault(p.errors, fault);
    publish_seen<TALLY>(p, seen);
}
