// What a segment decides on its own, in f64 from its planes.
#pragma once

#include "partial.cuh"

struct Judged {
    double x;          // of the configured level; NaN where an input that is not finite shows
    double log_ratio;  // sum m delta
    double count;
    float weight;      // final unless a group decides
    bool is_dropped, is_kept, shows, is_faulty;
};

struct Pieces {
    uint64_t first, end;
};

MOERL_DEVICE double nan_f64() { return static_cast<double>(f32_of(0x7fc00000u)); }
MOERL_DEVICE bool is_nan(double x) { return x != x; }
MOERL_DEVICE double greater(double a, double b) { return b > a ? b : a; }
MOERL_DEVICE bool is_finite_f64(double x) { return x - x == 0.0; }

MOERL_DEVICE Pieces pieces_of(const MoerlCorrection& p, uint64_t segment) {
    if (p.first_piece == nullptr) return {segment, segment + 1};
    return {load(p.first_piece + segment), load(p.first_piece + segment + 1)};
}

// A plane of all the segment's pieces; nothing where it does not exist.
MOERL_DEVICE double plane_of(const MoerlCorrection& p, uint32_t plane, const Pieces& pieces) {
    const bool greatest = is_maximum_plane(plane);
    double total = greatest ? -static_cast<double>(f32_of(0x7f800000u)) : 0.0;
    if (p.place[plane] == 255) return total;
    for (uint64_t piece = pieces.first; piece < pieces.end; piece++) total = joined(greatest, total, load(plane_at(p, plane, piece)));
    return total;
}
MOERL_DEVICE double plane_of(const MoerlCorrection& p, uint32_t plane, uint64_t piece) { return plane_of(p, plane, {piece, piece + 1}); }

MOERL_DEVICE double saturated(const MoerlCorrection& p, double x) {
    const double bound = static_cast<double>(p.saturation);
    return x < -bound ? -bound : (x > bound ? bound : x);
}

MOERL_DEVICE bool is_within(double low, double x, double high) { return low <= x && x <= high; }

// exp x, bounded or banded.
MOERL_DEVICE float shaped(const MoerlCorrection& p, double x) {
    if (is_nan(x)) return f32_of(0x7fc00000u);
    const double bounded = saturated(p, x);
    const float weight = expf(static_cast<float>(bounded));
    if (p.weight == MOERL_CORRECTION_CLAMP) return fminf(fmaxf(weight, p.low), p.high);
    if (p.weight == MOERL_CORRECTION_BAND && !is_within(p.log_low, bounded, p.log_high)) return 0.0f;
    return weight;
}

MOERL_DEVICE double k3_f64(double x) { return expm1(x) - x; }

// The statistic of a rejection of segments.
MOERL_DEVICE double statistic_of(const MoerlCorrection& p, uint32_t statistic, uint64_t segment, const Pieces& pieces, const Judged& judged) {
    const double count = judged.count;
    const double bound = static_cast<double>(DIVERGENCE_CLAMP);
    switch (statistic) {
        case MOERL_CORRECTION_OF_SUM: return saturated(p, judged.log_ratio);
        case MOERL_CORRECTION_OF_MEAN: return saturated(p, judged.log_ratio / count);
        case MOERL_CORRECTION_OF_SUM_K1: return plane_of(p, MOERL_CORRECTION_K1, pieces);
        case MOERL_CORRECTION_OF_SUM_K2: return plane_of(p, MOERL_CORRECTION_K2, pieces);
        case MOERL_CORRECTION_OF_SUM_K3: return plane_of(p, MOERL_CORRECTION_K3, pieces);
        case MOERL_CORRECTION_OF_MEAN_K1: return plane_of(p, MOERL_CORRECTION_K1, pieces) / count;
        case MOERL_CORRECTION_OF_MEAN_K2: return plane_of(p, MOERL_CORRECTION_K2, pieces) / count;
        case MOERL_CORRECTION_OF_MEAN_K3: return plane_of(p, MOERL_CORRECTION_K3, pieces) / count;
        case MOERL_CORRECTION_OF_BAD_ANSWER: {
            const double advantage = p.advantage_per_token ? plane_of(p, MOERL_CORRECTION_ADVANTAGE, pieces) : static_cast<double>(load(p.advantages + segment));
            if (advantage >= 0.0) return -static_cast<double>(f32_of(0x7f800000u));
            const double current = p.current_log_ratio != nullptr ? load(p.current_log_ratio + segment) : 0.0;
            return -(judged.log_ratio + current) / count;
        }
        default: break;
    }
    // Both divergences are convex: the largest is at an end.
    const double high = plane_of(p, MOERL_CORRECTION_MAX, pieces), low = -plane_of(p, MOERL_CORRECTION_MAX_NEGATIVE, pieces);
    if (low > high) return 0.0;  // no sound token
    double most = 0.0;
    MOERL_ROLLED
    for (int end = 0; end < 2; end++) {
        const double at = end == 0 ? low : high, x = at > bound ? bound : (at < -bound ? -bound : at);
        most = greater(most, statistic == MOERL_CORRECTION_OF_MAX_K2 ? 0.5 * x * x : k3_f64(x));
    }
    return most;
}

MOERL_DEVICE bool keeps_segment(const MoerlCorrection& p, const MoerlCorrectionOption& option, uint64_t segment, const Pieces& pieces, const Judged& judged) {
    if (option.statistic == MOERL_CORRECTION_OF_EXTREMES) {
        return !(-plane_of(p, MOERL_CORRECTION_MAX_NEGATIVE, pieces) < option.low || plane_of(p, MOERL_CORRECTION_MAX, pieces) > option.high);
    }
    return is_within(option.low, statistic_of(p, option.statistic, segment, pieces, judged), option.high);
}

MOERL_DEVICE bool keeps_turn(const MoerlCorrection& p, const MoerlCorrectionOption& option, uint64_t piece) {
    const double count = plane_of(p, MOERL_CORRECTION_COUNT, piece);
    if (!(count > 0.0)) return true;
    return is_within(option.low, saturated(p, plane_of(p, MOERL_CORRECTION_LOG_RATIO, piece) / count), option.high);
}

// log W of the balance heuristic; NaN where it has none.
MOERL_DEVICE double balance(const MoerlCorrection& p, uint64_t segment) {
    const double target = load(p.target_logprobs + segment);
    const double* const proposals = p.proposal_logprobs + segment * p.proposals;
    double largest = -static_cast<double>(f32_of(0x7f800000u)), sum = 0.0;
    bool is_sound = true;
    for (uint32_t j = 0; j < p.proposals; j++) {
        const double term = p.log_proportions[j] + (load(proposals + j) - target);
        is_sound = is_sound && !is_nan(term);
        largest = term > largest ? term : largest;
    }
    for (uint32_t j = 0; j < p.proposals; j++) sum += exp(p.log_proportions[j] + (load(proposals + j) - target) - largest);
    const double log_weight = -(largest + log(sum));
    return is_sound && is_finite_f64(log_weight) ? log_weight : nan_f64();
}

// `count_option(option, tokens)` is told of every rejection and how many tokens it rejects.
template <class Count> MOERL_DEVICE Judged judge(const MoerlCorrection& p, uint64_t segment, Count count_option) {
    const Pieces pieces = pieces_of(p, segment);
    Judged r;
    r.count = plane_of(p, MOERL_CORRECTION_COUNT, pieces);
    r.log_ratio = plane_of(p, MOERL_CORRECTION_LOG_RATIO, pieces);
    const bool has_unsound = plane_of(p, MOERL_CORRECTION_NONFINITE, pieces) > 0.0;
    const bool is_empty = !(r.count > 0.0);
    r.shows = has_unsound && p.nonfinite_policy == MOERL_PROPAGATE;
    r.is_dropped = has_unsound && p.nonfinite_policy == MOERL_DROP_SEGMENT;
    r.is_kept = !r.is_dropped;
    r.is_faulty = false;
    r.x = p.level == MOERL_CORRECTION_GEOMETRIC && !is_empty ? r.log_ratio / r.count : r.log_ratio;
    if (r.shows) r.x = nan_f64();
    for (uint32_t i = 0; i < p.option_count; i++) {
        const MoerlCorrectionOption& option = p.options[i];
        double rejected = 0.0;
        if (option.statistic <= MOERL_CORRECTION_OF_TOKEN_K3) {
            rejected = plane_of(p, MOERL_CORRECTION_REJECTED + option.rejected, pieces);
        } else if (is_empty || r.shows) {
            // Nothing to reject, or nothing to judge it by.
        } else if (option.statistic == MOERL_CORRECTION_OF_TURN) {
            for (uint64_t piece = pieces.first; piece < pieces.end; piece++) rejected += keeps_turn(p, option, piece) ? 0.0 : plane_of(p, MOERL_CORRECTION_COUNT, piece);
        } else if (!keeps_segment(p, option, segment, pieces, r)) {
            rejected = r.count;
            r.is_kept = false;
        }
        count_option(i, rejected);
    }
    r.weight = 1.0f;
    if (is_empty) {
        if (p.weight == MOERL_CORRECTION_MULTIPLE) r.x = 0.0;
        return r;
    }
    if (p.weight == MOERL_CORRECTION_SEQUENCE_MASK) {
        r.weight = static_cast<float>(is_within(p.log_low, saturated(p, r.log_ratio / r.count), p.log_high));
        if (r.shows) r.weight = f32_of(0x7fc00000u);
    } else if (p.weight == MOERL_CORRECTION_MULTIPLE) {
        r.x = balance(p, segment);
        r.is_faulty = is_nan(r.x);
        r.weight = r.is_faulty ? 0.0f : expf(static_cast<float>(r.x));
    } else if (p.level >= MOERL_CORRECTION_SEQUENCE) {
        r.weight = shaped(p, r.x);
    }
    if (r.is_dropped) r.weight = 0.0f;
    return r;
}

// What takes part in its group.
MOERL_DEVICE bool is_member(const Judged& judged) { return judged.count > 0.0 && judged.is_kept && !is_nan(judged.x); }
