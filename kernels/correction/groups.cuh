// Phase 2 where there are groups: self-normalised weights, and Metropolis chains. A warp takes a group, its lanes members in turn.
#pragma once

#include "finish.cuh"

struct Group {
    uint64_t index;
    uint32_t begin, end;  // of its members
};

// ---- self-normalised ----------------------------------------------------------------------------------------------------

struct GroupFacts {
    double largest;   // X, of attached weights saturated
    double total;     // of the relative weights exp(X - largest)
    double members;   // that take part
    double rewarded;  // of the relative weights of members with a finite reward
    double reward;    // of those, times their rewards
};

constexpr uint32_t NO_MEMBER = 0xffffffffu;

// The one member that may weigh more than all others together: a difference of sums would leave nothing but rounding of these, so they are added up
// without it.
struct Heaviest {
    double weight;
    uint32_t member;
    double others, others_reward;  // their weights, and their weighted rewards
};

// X as the weights of the group have it. What is attached saturates: the gradient, 0 beyond the bound, is that of the same function.
MOERL_DEVICE double weighed_x(const MoerlCorrection& p, double x) { return p.weight == MOERL_CORRECTION_ATTACHED ? saturated(p, x) : x; }

// Without a member above -inf all weigh the same.
MOERL_DEVICE double relative_weight(const GroupFacts& facts, double x) {
    return facts.largest == -static_cast<double>(f32_of(0x7f800000u)) ? 1.0 : exp(x - facts.largest);
}

MOERL_DEVICE float reward_of(const MoerlCorrection& p, uint32_t segment) { return p.rewards != nullptr ? load(p.rewards + segment) : 0.0f; }

MOERL_DEVICE void add_member(GroupFacts& facts, Heaviest& heaviest, uint32_t segment, double weight, float reward) {
    facts.total += weight;
    facts.members += 1.0;
    if (!is_finite(reward)) return;
    facts.rewarded += weight;
    facts.reward += weight * static_cast<double>(reward);
    if (heaviest.member == NO_MEMBER || weight > heaviest.weight) {
        heaviest.weight = weight;
        heaviest.member = segment;
    }
}

MOERL_DEVICE void add_other(Heaviest& heaviest, uint32_t segment, double weight, float reward) {
    if (segment == heaviest.member || !is_finite(reward)) return;
    heaviest.others += weight;
    heaviest.others_reward += weight * static_cast<double>(reward);
}

// What the lanes have seen, in every lane. True if one member weighs more than the others, `heaviest` then.
MOERL_DEVICE bool join_members(GroupFacts& facts, Heaviest& heaviest) {
    facts.total = warp_joined(false, facts.total);
    facts.members = warp_joined(false, facts.members);
    facts.rewarded = warp_joined(false, facts.rewarded);
    facts.reward = warp_joined(false, facts.reward);
    const uint32_t lanes = ballot(heaviest.member != NO_MEMBER && heaviest.weight > 0.5 * facts.rewarded, FULL_WARP);
    heaviest.member = lanes != 0 ? shuffle(heaviest.member, lowest_set(lanes)) : NO_MEMBER;
    return lanes != 0;
}

// R less the mean reward of the others, by their weights. Attached, w (R - sum w R) with w of sum 1: the same times w (1 - w), which does not
// cancel where one member has nearly all of the weight; 0 where X stands still.
MOERL_DEVICE double advantage_of(const MoerlCorrection& p, const GroupFacts& facts, const Heaviest& heaviest, uint32_t segment, double x, double weight, double reward) {
    double others = facts.rewarded - weight, others_reward = facts.reward - weight * reward;
    if (segment == heaviest.member) {
        others = heaviest.others;
        others_reward = heaviest.others_reward;
    }
    const double baseline = others > 0.0 ? others_reward / others : 0.0;
    if (p.weight != MOERL_CORRECTION_ATTACHED) return reward - baseline;
    if (x != saturated(p, x)) return 0.0;
    return weight / facts.rewarded * (others / facts.rewarded) * (reward - baseline);
}

MOERL_DEVICE Settled normalised(const MoerlCorrection& p, const GroupFacts& facts, const Heaviest& heaviest, uint32_t segment, const Judged& judged, double weight, float reward) {
    Settled r = {1.0f, false, 0u, 0.0f};
    if (!(judged.count > 0.0)) return r;
    if (!is_member(judged)) {
        r.weight = judged.is_kept ? f32_of(0x7fc00000u) : 0.0f;
        if (p.weight == MOERL_CORRECTION_ATTACHED) r.advantage = r.weight;
        return r;
    }
    r.weight = static_cast<float>(facts.members * weight / facts.total);
    if (p.baseline_advantages != nullptr && is_finite(reward)) {
        r.advantage = static_cast<float>(advantage_of(p, facts, heaviest, segment, judged.x, weight, static_cast<double>(reward)));
    }
    return r;
}

// ---- Metropolis ---------------------------------------------------------------------------------------------------------

MOERL_DEVICE double log_uniform_of(const MoerlCorrection& p, uint32_t segment) {
    return log(p.uniforms != nullptr ? static_cast<double>(load(p.uniforms + segment)) : uniform_of(p, load(p.segment_ids + segment), 0u, 0u));
}

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

// The next 32 members of a chain, in order: the lanes brought them, one of them walks. The multiplicities are left in the workspace, 0 where a
// member was rejected.
MOERL_DEVICE void walk_chain(const MoerlCorrection& p, const Group& group, ChainStep* steps, uint64_t members, ChainState& state) {
    sync_warp();
    for (uint32_t i = 0; lane_index() == 0 && i < WARP && i < members; i++) take_step(p, group.index, steps[i], state);
    sync_warp();
}

MOERL_DEVICE void end_chain(const MoerlCorrection& p, const Group& group, const ChainState& state) {
    if (lane_index() == 0) {
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

// Every pass judges every member: what a segment decides takes thousands of instructions, which so stand there once.
enum GroupPass { PASS_CHAIN, PASS_LARGEST, PASS_TOTALS, PASS_OTHERS, PASS_DECIDE };

template <bool TALLY> MOERL_DEVICE void decide_group(const MoerlCorrection& p, const Group& group, SegmentsSeen& seen, uint64_t& fault) {
    MOERL_SHARED(ChainStep, steps, DECIDING_THREADS);
    const uint32_t lane = lane_index();
    const bool is_normalised = p.weight == MOERL_CORRECTION_SELF_NORMALISED || p.weight == MOERL_CORRECTION_ATTACHED;
    const bool is_test = p.weight == MOERL_CORRECTION_METROPOLIS_MASK || p.weight == MOERL_CORRECTION_METROPOLIS_MULTIPLICITY;
    const bool is_chain = is_test && p.level != MOERL_CORRECTION_TOKEN;
    GroupFacts facts = {-static_cast<double>(f32_of(0x7f800000u)), 0.0, 0.0, 0.0, 0.0};
    Heaviest heaviest = {0.0, NO_MEMBER, 0.0, 0.0};
    ChainState state = {is_chain && p.carried != nullptr ? load(p.carried + group.index) : nan_f64(), NO_MEMBER, 0};
    double sum = 0.0, squares = 0.0, kept = 0.0;
    uint32_t pass = is_chain ? PASS_CHAIN : (is_normalised ? PASS_LARGEST : PASS_DECIDE);
    while (true) {
        for (uint64_t first = group.begin; first < group.end; first += WARP) {
            const bool is_there = first + lane < group.end;
            const uint32_t segment = is_there ? load(p.members + first + lane) : 0;
            Judged judged = {0.0, 0.0, 0.0, 0.0f, false, false, false, false};
            if (is_there) {
                judged = judge(p, segment, [&](uint32_t option, double tokens) {
                    if (pass == PASS_DECIDE) see_rejection(seen, option, tokens);
                });
            }
            const bool takes_part = is_member(judged);
            if (pass == PASS_CHAIN) {
                if (is_there) steps[thread_index()] = {takes_part ? judged.x : nan_f64(), takes_part ? log_uniform_of(p, segment) : 0.0, segment};
                walk_chain(p, group, steps + thread_index() - lane, group.end - first, state);
                continue;
            }
            if (pass == PASS_LARGEST) {
                if (takes_part) facts.largest = greater(facts.largest, weighed_x(p, judged.x));
                continue;
            }
            const double weight = is_normalised && takes_part ? relative_weight(facts, weighed_x(p, judged.x)) : 0.0;
            const float reward = is_normalised && takes_part ? reward_of(p, segment) : 0.0f;
            if (pass != PASS_DECIDE) {
                if (takes_part && pass == PASS_TOTALS) add_member(facts, heaviest, segment, weight, reward);
                if (takes_part && pass == PASS_OTHERS) add_other(heaviest, segment, weight, reward);
                continue;
            }
            if (!is_there) continue;
            Settled settled = {judged.weight, false, 0u, 0.0f};
            if (is_chain) settled = chosen(p, segment, judged);
            if (is_normalised) settled = normalised(p, facts, heaviest, segment, judged, weight, reward);
            kept += settle<TALLY>(p, segment, judged, settled, seen, fault);
            const double its = static_cast<double>(settled.weight);
            if (!(judged.count > 0.0) || !is_finite_f64(its)) continue;
            sum += its;
            squares += its * its;
        }
        if (pass == PASS_DECIDE) break;
        bool has_heaviest = true;
        if (pass == PASS_CHAIN) end_chain(p, group, state);
        if (pass == PASS_LARGEST) facts.largest = warp_joined(true, facts.largest);
        if (pass == PASS_TOTALS) has_heaviest = join_members(facts, heaviest);
        if (pass == PASS_OTHERS) {
            heaviest.others = warp_joined(false, heaviest.others);
            heaviest.others_reward = warp_joined(false, heaviest.others_reward);
        }
        // Only baselines look at the others.
        pass = pass == PASS_CHAIN || (pass == PASS_TOTALS && (!has_heaviest || p.baseline_advantages == nullptr)) ? uint32_t{PASS_DECIDE} : pass + 1;
    }
    if (p.expected_rewards != nullptr && lane == 0) {
        store(p.expected_rewards + group.index, facts.rewarded > 0.0 ? facts.reward / facts.rewarded : 0.0);
    }
    if constexpr (TALLY) {
        sum = warp_joined(false, sum);
        squares = warp_joined(false, squares);
        kept = warp_joined(false, kept);
        if (lane != 0) return;
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
