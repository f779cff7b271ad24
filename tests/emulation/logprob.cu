// The kernels of logprob.cu, composed once more from their parts: as they should be, and each broken in one way that a plausible hand would break it.
// Which way is in ignore_index, -100 less the variant. tests/emulation/logprob.rs shows that what the suites compare tells each from the healthy one.

#include "logprob/backward.cuh"
#include "logprob/split.cuh"

enum Broken : int64_t {
    HEALTHY = 0,
    MAXIMUM_FROM_ZERO = 1,
    ORDER_OF_ARRIVAL = 2,
    NARROW_OFFSET = 3,
    PEELED_BY_ADDRESS = 4,
    NEGATIVE_ZERO = 5,
    MINIMUM_BEFORE_CLAMP = 6,
    ZERO_BY_LOGPROB_ALONE = 7,
    LABEL_AFTER_STORE = 8,
};

template <class Call> MOERL_DEVICE Broken variant_of(const Call& p) { return static_cast<Broken>(-100 - p.ignore_index); }

MOERL_DEVICE const float* panel_at(const MoerlLogprobForward& p, uint64_t row, uint32_t panel) {
    if (variant_of(p) != NARROW_OFFSET) return panel_of<float>(p, row, panel);
    const int32_t offset = static_cast<int32_t>(static_cast<int64_t>(row) * p.logits_stride);  // BROKEN: 32 bits
    return static_cast<const float*>(p.logits) + offset + static_cast<int64_t>(panel) * PANEL;
}

MOERL_DEVICE float broken_maximum(const MoerlLogprobForward& p, const Panel<float>& held) {
    const float largest = maximum(held);
    if (variant_of(p) == MAXIMUM_FROM_ZERO) return max_nan(0.0f, largest);  // BROKEN
    if (variant_of(p) != NEGATIVE_ZERO) return largest;
    uint32_t m = NOTHING<float>;
    for (int turn = 0; turn < TURNS<float>; turn++) m = max_words<float>(m, held.pack[turn]);
    return warp_max_nan(max_nan(f32_of(m), held.edge));  // BROKEN: without + 0.0f
}

MOERL_DEVICE MoerlPartial broken_reduce(const MoerlLogprobForward& p, const Panel<float>& held, int columns, float scale) {
    const Cap cap = cap_of(p);
    const float largest = broken_maximum(p, held), max = cap.of(largest);
    if (variant_of(p) == MINIMUM_BEFORE_CLAMP) {
        float sum = 0.0f;
        for (int turn = 0; turn < TURNS<float>; turn++) {
            for (int i = 0; i < 4; i++) {
                const float d = fminf(cap.of(f32_of(held.pack[turn].w[i])) - max, 0.0f);  // BROKEN: NaN becomes 0
                sum += exp2_approx(fmaxf(d * scale, LOWEST));
            }
        }
        return {max, warp_sum(sum), 0.0f, 0.0f};
    }
    if (variant_of(p) == PEELED_BY_ADDRESS) {
        Chains<false> chains = accumulate<float, false>(held, columns, max, scale, cap);
        return {max, fold<float>(chains.e, 0), fold<float>(chains.et, 0), 0.0f};  // BROKEN: whose chains these are depends on the address
    }
    return reduce<float, false>(held, columns, largest, scale, cap);
}

MOERL_KERNEL(broken_logprob_forward_f32, MoerlLogprobForward, 256) {
    MOERL_DYNAMIC_SHARED(MoerlPartial, records);
    MOERL_SHARED(uint32_t, arrived, 1);
    MOERL_SHARED(float, label, 1);
    const uint32_t panels = static_cast<uint32_t>(panels_of(p)), warps = block_size() / WARP;
    for (uint64_t row = block_index(); row < p.rows; row += grid_size()) {
        const Row r = read_row(p, row);
        if (thread_index() == 0) arrived[0] = 0, label[0] = -INFINITE;
        sync_block();
        for (uint32_t panel = warp_index(); panel < panels; panel += warps) {
            Panel<float> held;
            const int columns = columns_of(p, panel);
            fetch(held, panel_at(p, row, panel), columns);
            complete(held);
            const MoerlPartial record = broken_reduce(p, held, columns, r.scale);
            const int at = r.label - static_cast<int>(panel * PANEL);
            const float logit = at >= 0 && at < columns ? logit_at(held, columns, at) : -INFINITE;
            if (lane_index() != 0) continue;
            if (at >= 0 && at < columns) label[0] = cap_of(p).of(logit);
            const uint32_t turn = shared_atomic_add(arrived, 1u);
            records[variant_of(p) == ORDER_OF_ARRIVAL ? turn : panel] = record;  // BROKEN in that order
        }
        sync_block();
        if (warp_index() == 0) {
            MoerlPartial all = merge([&](int i) { return records[i]; }, static_cast<int>(panels), r.scale);
            if (panels == 1) all.max_logit = records[0].max_logit, all.sum = records[0].sum;
            const Finished f = finish(r, temperature_of(p, r), all, label[0]);
            if (lane_index() == 0) {
                store_finished(p, row, f);
                store_optional(p.logprobs, row, f.logprob);
            }
        }
        sync_block();
    }
}

MOERL_KERNEL(broken_logprob_backward_f32, MoerlLogprobBackward, 256) {
    for (uint64_t row = block_index(); row < p.rows; row += grid_size()) {
        RowGradient g = {};
        put_row_gradient(p, row, g);
        const bool no_upstream = load_optional(p.d_logprobs, row) == 0.0f;
        if (variant_of(p) == ZERO_BY_LOGPROB_ALONE && no_upstream) g.kind = RowGradient::ZERO;  // BROKEN: the others may not be zero
        if (warp_index() != 0) continue;
        for (uint32_t panel = 0; panel < p.panels; panel++) {
            float* const of_row = static_cast<float*>(p.d_logits) + static_cast<int64_t>(row) * p.d_logits_stride;
            const Stretch s = stretch_of(p, of_row, panel);
            float* const gradient = of_row + s.start;
            const float* const logits = static_cast<const float*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride + s.start;
            const int64_t label = g.label - s.start;
            if (g.kind != RowGradient::LIVE) {
                fill_stretch(gradient, s, 0.0f);
            } else if (variant_of(p) != LABEL_AFTER_STORE) {
                live_stretch(logits, gradient, s, g);
            } else {
                RowGradient unlabelled = g;
                unlabelled.label = NO_LABEL;
                live_stretch(logits, gradient, s, unlabelled);
                sync_warp();
                if (label < s.first || label >= s.counted || lane_index() != 0) continue;
                const float p_label = exp2_approx(exponent_of(load(logits + label), g.slope.max, g.slope.scale));  // BROKEN: in place it is no logit any more
                store(gradient + label, g.at_label * 0.5f + 0.5f * g.at_label * p_label);
            }
        }
    }
}
