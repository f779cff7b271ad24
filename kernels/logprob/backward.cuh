// The gradient of the logits, panel by panel: one read, one write.
#pragma once

#include "panel.cuh"

// How a row's gradient comes about, in shared memory.
struct RowGradient {
    enum Kind { ZERO, FAULTY, LIVE };
    Kind kind;
    int32_t label;
    float max, scale;    // of exponent_of
    float constant;      // -(a - b * A/s - c) / s
    float slope;         // -b * ln 2 / s
    float reciprocal;    // 1 / temperature
    float at_label;      // the label column's gradient, finished
};

MOERL_DEVICE float load_optional(const float* array, uint64_t row) { return array != nullptr ? load(array + row) : 0.0f; }

// Everything in f64 but the one exponential that the label's column shares with the others: 1 - p is formed here, where it does not cancel
// against a rounded p.
MOERL_DEVICE RowGradient row_gradient(const MoerlLogprobBackward& p, uint64_t row) {
    RowGradient g = {};
    const Row r = read_row(p, row);
    const float a = load_optional(p.d_logprobs, row), b = load_optional(p.d_entropy, row), c = load_optional(p.d_lse, row);
    g.kind = RowGradient::ZERO;
    if (r.absent || (a == 0.0f && b == 0.0f && c == 0.0f)) return g;
    const MoerlPartial saved = {load(&p.saved[row].max_logit), load(&p.saved[row].sum), load(&p.saved[row].weighted), load(&p.saved[row].label)};
    const bool is_upstream_finite = is_finite(a) && is_finite(b) && is_finite(c);
    const bool is_row_valid = r.scalable && is_finite(saved.max_logit) && saved.sum >= 1.0f;
    g.kind = RowGradient::FAULTY;
    if (!is_upstream_finite || !is_row_valid || (r.label == LABEL_OUTSIDE && a != 0.0f)) return g;

    const double sum = saved.sum, mean = saved.weighted * LN_2 / sum, temperature = temperature_of(p, r);
    g.kind = RowGradient::LIVE;
    g.label = r.label;
    g.max = saved.max_logit;
    g.scale = r.scale;
    g.constant = static_cast<float>(-(a - b * mean - c) / sum);
    g.slope = static_cast<float>(-b * LN_2 / sum);
    g.reciprocal = static_cast<float>(1.0 / temperature);
    if (r.label >= 0) {
        const float t = exponent_of(saved.label, g.max, g.scale);
        const double chosen = exp2_approx(t) / sum;
        g.at_label = static_cast<float>((a * (1.0 - chosen) + chosen * (b * (mean - t * LN_2) + c)) / temperature);
    }
    return g;
}

// The label's term is not in here: its column is stored a second time.
MOERL_DEVICE float gradient_of(float x, const RowGradient& g) {
    const float t = exponent_of(x, g.max, g.scale);
    return exp2_approx(t) * fmaf(g.slope, t, g.constant) * g.reciprocal;
}

template <class G, int COUNT> MOERL_DEVICE void store_packs(G* at, const float (&values)[COUNT]) {
    if constexpr (COUNT < PACK<G>) {
        // Narrower than what it is made of: half a pack.
        static_assert(COUNT * sizeof(G) == 8, "a pack of f32 in a 16-bit type");
        const uint64_t low = from_f32_x2<G>(values[0], values[1]), high = from_f32_x2<G>(values[2], values[3]);
        store_stream(reinterpret_cast<uint64_t*>(at), high << 32 | low);
    } else {
        MOERL_UNROLL
        for (int first = 0; first < COUNT; first += PACK<G>) {
            float part[PACK<G>];
            MOERL_UNROLL
            for (int i = 0; i < PACK<G>; i++) part[i] = values[first + i];
            store16_stream(at + first, pack<G>(part));
        }
    }
}

// Columns [0, written) of a panel are written, the first `counted` of them from logits.
struct Extent {
    int counted, written;
};

// Packs that a lane has on its way at once: 128 bytes.
constexpr int STRIP = 8;

// The first `packs` packs behind `logits` and `gradient`, both at a 16-byte boundary. In place they are the same memory, so a
// strip is loaded before it is stored, by the same lanes.
template <class T, class G>
MOERL_DEVICE void gradient_packs(const T* logits, G* gradient, int packs, const RowGradient& g) {
    const int lane = static_cast<int>(lane_index());
    for (int first = 0; first < packs; first += STRIP * WARP) {
        Words4 held[STRIP];
        MOERL_UNROLL
        for (int turn = 0; turn < STRIP; turn++) {
            const int slot = first + turn * WARP + lane;
            if (slot < packs) held[turn] = load16_once(logits + slot * PACK<T>);
        }
        MOERL_UNROLL
        for (int turn = 0; turn < STRIP; turn++) {
            const int slot = first + turn * WARP + lane;
            float x[PACK<T>];
            unpack<T>(held[turn], x);
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) x[i] = gradient_of(x[i], g);
            if (slot < packs) store_packs(gradient + slot * PACK<T>, x);
        }
    }
}

// A panel's gradient where the row is live.
template <class T, class G>
MOERL_DEVICE void live_panel(const T* logits, G* gradient, Extent extent, int label, const RowGradient& g) {
    const int lane = static_cast<int>(lane_index());
    Cut c = cut<T>(columns_to_boundary(logits), extent.counted);
    const bool aligned_alike = columns_to_boundary(gradient + c.head) == 0;
    if (!aligned_alike) c = {extent.written, 0, 0};
    gradient_packs(logits + c.head, gradient + c.head, c.full, g);

    // The columns before and behind the packs, padding included, one by one.
    const int before = c.head < extent.written ? c.head : extent.written;
    const int behind = c.head + c.full * PACK<T>;
    const int edges = before + (behind < extent.written ? extent.written - behind : 0);
    for (int i = lane; i < edges; i += WARP) {
        const int column = i < before ? i : behind + (i - before);
        const float value = column < extent.counted ? gradient_of(to_f32(load(logits + column)), g) : 0.0f;
        store_stream(gradient + column, from_f32<G>(value));
    }

    // The label's column again, by the lane that has just stored it: a thread's stores to one address stay in order.
    if (label < 0 || label >= extent.counted) return;
    const bool in_pack = label >= c.head && label < behind;
    const int owner = in_pack ? (label - c.head) / PACK<T> : label < before ? label : before + (label - behind);
    if (lane == owner % WARP) store_stream(gradient + label, from_f32<G>(g.at_label));
}

// A panel of a row without gradient, or of a faulty one: `value` in the counted columns, +0.0 in the padding; nothing is read.
template <class G> MOERL_DEVICE void fill_panel(G* gradient, Extent extent, float value) {
    const int lane = static_cast<int>(lane_index());
    const Cut c = cut<G>(columns_to_boundary(gradient), value == 0.0f ? extent.written : extent.counted);
    float values[PACK<G>];
    MOERL_UNROLL
    for (int i = 0; i < PACK<G>; i++) values[i] = value;
    for (int slot = lane; slot < c.full; slot += WARP) store_packs(gradient + c.head + slot * PACK<G>, values);

    const int before = c.head < extent.written ? c.head : extent.written;
    const int behind = c.head + c.full * PACK<G>;
    const int edges = before + (behind < extent.written ? extent.written - behind : 0);
    for (int i = lane; i < edges; i += WARP) {
        const int column = i < before ? i : behind + (i - before);
        store_stream(gradient + column, from_f32<G>(column < extent.counted ? value : 0.0f));
    }
}

MOERL_DEVICE int up_to_panel(uint32_t end, uint32_t start) {
    return end <= start ? 0 : static_cast<int>(end - start < PANEL ? end - start : PANEL);
}

// Blocks take groups of rows; `shares` blocks take one group together. Nothing is summed here, so any division gives the same bits.
template <class T, class G> MOERL_DEVICE void backward_by_rows(const MoerlLogprobBackward& p) {
    MOERL_SHARED(RowGradient, rows, WARP);
    const uint64_t number = block_index() / p.shares;
    const uint32_t share = block_index() % p.shares, warps = block_size() / WARP;
    const uint64_t count = (p.rows - number + p.groups - 1) / p.groups;
    if (warp_index() == 0 && lane_index() < count) rows[lane_index()] = row_gradient(p, row_of(p, number, static_cast<int>(lane_index())));
    sync_block();

    uint32_t panel = share * warps + warp_index(), turn = 0;
    while (true) {
        for (; panel >= p.panels; panel -= p.panels) turn++;
        if (turn >= count) return;
        const RowGradient g = rows[turn];
        const int64_t row = static_cast<int64_t>(row_of(p, number, static_cast<int>(turn)));
        const uint32_t start = panel * PANEL;
        const Extent extent = {up_to_panel(p.vocabulary, start), up_to_panel(p.columns, start)};
        G* const gradient = static_cast<G*>(p.d_logits) + row * p.d_logits_stride + start;
        if (g.kind == RowGradient::LIVE) {
            const T* const logits = static_cast<const T*>(p.logits) + row * p.logits_stride + start;
            live_panel(logits, gradient, extent, g.label - static_cast<int32_t>(start), g);
        } else {
            fill_panel(gradient, extent, g.kind == RowGradient::ZERO ? 0.0f : not_a_number());
        }
        panel += p.shares * warps;
    }
}
