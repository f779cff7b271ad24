// The gradient of the logits, panel by panel: one read, one write.
#pragma once

#include "panel.cuh"

// What every column of a row needs.
struct Slope {
    float max, scale;    // of exponent_of
    float constant;      // -(a - b * A/s - c) / s
    float linear;        // -b * ln 2 / s
    float reciprocal;    // 1 / temperature
};

// How a row's gradient comes about, in shared memory.
struct RowGradient {
    enum Kind { ZERO, FAULTY, LIVE };
    Kind kind;
    int32_t label;
    float at_label;      // the label column's gradient, finished
    Slope slope;
};

MOERL_DEVICE float load_optional(const float* array, uint64_t row) { return array != nullptr ? load(array + row) : 0.0f; }

// Everything in f64 but the one exponential that the label's column shares with the others: 1 - p is formed here, where it does not cancel
// against a rounded p. What is known goes to shared memory at once, so that no register keeps it through the divisions.
MOERL_DEVICE void put_row_gradient(const MoerlLogprobBackward& p, uint64_t row, RowGradient& to) {
    const Row r = read_row(p, row);
    const float a = load_optional(p.d_logprobs, row), b = load_optional(p.d_entropy, row), c = load_optional(p.d_lse, row);
    to.kind = RowGradient::ZERO;
    if (r.absent || (a == 0.0f && b == 0.0f && c == 0.0f)) return;
    const MoerlPartial saved = {load(&p.saved[row].max_logit), load(&p.saved[row].sum), load(&p.saved[row].weighted), load(&p.saved[row].label)};
    const bool is_upstream_finite = is_finite(a) && is_finite(b) && is_finite(c);
    const bool is_row_valid = r.scalable && is_finite(saved.max_logit) && saved.sum >= 1.0f;
    to.kind = RowGradient::FAULTY;
    if (!is_upstream_finite || !is_row_valid || (r.label == LABEL_OUTSIDE && a != 0.0f)) return;

    to.kind = RowGradient::LIVE;
    to.label = r.label;
    to.slope.max = saved.max_logit;
    to.slope.scale = r.scale;
    const double temperature = temperature_of(p, r);
    to.slope.reciprocal = static_cast<float>(1.0 / temperature);
    const double sum = saved.sum, mean = saved.weighted * LN_2 / sum;
    to.slope.constant = static_cast<float>(-(a - b * mean - c) / sum);
    to.slope.linear = static_cast<float>(-b * LN_2 / sum);
    if (r.label < 0) return;
    const float t = exponent_of(saved.label, saved.max_logit, r.scale);
    const double chosen = exp2_approx(t) / sum;
    to.at_label = static_cast<float>((a * (1.0 - chosen) + chosen * (b * (mean - t * LN_2) + c)) / temperature);
}

// The label's term is not in here: its column is stored a second time.
MOERL_DEVICE float gradient_of(float x, const Slope& g) {
    const float t = exponent_of(x, g.max, g.scale);
    return exp2_approx(t) * fmaf(g.linear, t, g.constant) * g.reciprocal;
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

// A stretch of a row: the columns [first, written) behind a boundary of the gradient's lines are written, those below `counted` from
// logits. Whole warps store whole lines but at a row's ends, whatever its address.
struct Stretch {
    int64_t start;  // the boundary, as a column: below 0 where the row begins behind it
    int first, counted, written;
};

constexpr int LINE = 128;  // bytes of a line of the caches

MOERL_DEVICE int up_to_panel(int64_t columns) { return columns < 0 ? 0 : columns < PANEL ? static_cast<int>(columns) : PANEL; }

template <class G> MOERL_DEVICE Stretch stretch_of(const MoerlLogprobBackward& p, const G* gradient, uint32_t panel) {
    const int behind = static_cast<int>(reinterpret_cast<uintptr_t>(gradient) % LINE / sizeof(G));
    const int64_t start = static_cast<int64_t>(panel) * PANEL - behind;
    return {start, start < 0 ? behind : 0, up_to_panel(p.vocabulary - start), up_to_panel(p.columns - start)};
}

// Whole packs of `width` columns among [from, to), and the columns around them up to `written`, which go one by one.
struct Parts {
    int begin, end;     // the packs' columns
    int before, edges;  // how many single columns lie before these, and how many in all
    int from;

    MOERL_DEVICE int edge(int i) const { return i < before ? from + i : end + (i - before); }
    // The lane that stores a column.
    MOERL_DEVICE int owner(int column, int width) const {
        const int at = column < begin ? column - from : column < end ? column / width : before + (column - end);
        return at % WARP;
    }
};

MOERL_DEVICE Parts parts_of(int from, int to, int written, int width) {
    int begin = (from + width - 1) / width * width, end = to / width * width;
    if (begin >= end) begin = end = from;
    return {begin, end, begin - from, begin - from + (written - end), from};
}

// Packs that a lane has on its way at once: 128 bytes.
constexpr int STRIP = 8;

// The packs of columns [begin, end) behind `logits` and `gradient`, both at a 16-byte boundary. In place they are the same memory, so a
// strip is loaded before it is stored, by the same lanes.
template <class T, class G>
MOERL_DEVICE void gradient_packs(const T* logits, G* gradient, int begin, int end, const Slope& g) {
    const int lane = static_cast<int>(lane_index());
    const int skipped = begin / PACK<T>, last = end / PACK<T>;
    const uint32_t packs = static_cast<uint32_t>(last - skipped);
    MOERL_ROLLED
    for (int first = 0; first < last; first += STRIP * WARP) {
        Words4 held[STRIP];
        MOERL_UNROLL
        for (int turn = 0; turn < STRIP; turn++) {
            const int slot = first + turn * WARP + lane;
            if (static_cast<uint32_t>(slot - skipped) < packs) held[turn] = load16_once(logits + slot * PACK<T>);
        }
        MOERL_UNROLL
        for (int turn = 0; turn < STRIP; turn++) {
            const int slot = first + turn * WARP + lane;
            float x[PACK<T>];
            unpack<T>(held[turn], x);
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) x[i] = gradient_of(x[i], g);
            if (static_cast<uint32_t>(slot - skipped) < packs) store_packs(gradient + slot * PACK<T>, x);
        }
    }
}

// A stretch's gradient where the row is live; `logits` and `gradient` are its boundary. `row` is in shared memory, of which registers hold
// what every column needs.
template <class T, class G> MOERL_DEVICE void live_stretch(const T* logits, G* gradient, const Stretch& s, const RowGradient& row) {
    const int lane = static_cast<int>(lane_index());
    const bool aligned_alike = columns_to_boundary(logits) == 0;
    const Parts parts = parts_of(s.first, aligned_alike ? s.counted : 0, s.written, PACK<T>);
    const Slope g = row.slope;
    gradient_packs(logits, gradient, parts.begin, parts.end, g);

    // The columns before and behind the packs, padding included.
    for (int i = lane; i < parts.edges; i += WARP) {
        const int column = parts.edge(i);
        const float value = column < s.counted ? gradient_of(to_f32(load(logits + column)), g) : 0.0f;
        store_stream(gradient + column, from_f32<G>(value));
    }

    // The label's column again, by the lane that has just stored it: a thread's stores to one address stay in order. What is no label is
    // negative, and so below the first column of a row.
    const int64_t label = row.label - s.start;
    if (label < s.first || label >= s.counted) return;
    const int column = static_cast<int>(label);
    if (lane == parts.owner(column, PACK<T>)) store_stream(gradient + column, from_f32<G>(row.at_label));
}

// A stretch of a row without gradient, or of a faulty one: `value` in the counted columns, +0.0 in the padding; nothing is read.
template <class G> MOERL_DEVICE void fill_stretch(G* gradient, const Stretch& s, float value) {
    const int lane = static_cast<int>(lane_index());
    const Parts parts = parts_of(s.first, value == 0.0f ? s.written : s.counted, s.written, PACK<G>);
    float values[PACK<G>];
    MOERL_UNROLL
    for (int i = 0; i < PACK<G>; i++) values[i] = value;
    for (int column = lane * PACK<G>; column < parts.end; column += WARP * PACK<G>) {
        if (column >= parts.begin) store_packs(gradient + column, values);
    }
    for (int i = lane; i < parts.edges; i += WARP) {
        const int column = parts.edge(i);
        store_stream(gradient + column, from_f32<G>(column < s.counted ? value : 0.0f));
    }
}

// What a warp does next, in shared memory.
struct Work {
    RowGradient gradient;
    uint64_t row;
    uint32_t panel;
};
constexpr uint32_t NO_PANEL = ~0u;

// Panels of all rows, dealt to all warps in turn, so that live rows are shared by all; the warps of a block take panels that lie far
// apart. A lane prepares what its warp does in one of the next 32 turns. Nothing is summed here, so any division gives the same bits.
template <class T, class G> MOERL_DEVICE void backward_by_panels(const MoerlLogprobBackward& p) {
    MOERL_SHARED(Work, works, 8 * WARP);
    Work* const mine = works + warp_index() * WARP;
    const uint32_t warp = warp_index() * grid_size() + block_index();
    if (warp >= p.step) return;
    for (uint32_t first = 0;; first += WARP) {
        const uint64_t unit = warp + static_cast<uint64_t>(p.step) * (first + lane_index()), row = unit / p.panels;
        Work& prepared = mine[lane_index()];
        prepared.panel = NO_PANEL;
        if (row < p.rows) {
            prepared.row = row;
            prepared.panel = static_cast<uint32_t>(unit % p.panels);
            put_row_gradient(p, row, prepared.gradient);
        }
        sync_warp();
        MOERL_ROLLED
        for (int turn = 0; turn < WARP; turn++) {
            const Work& work = mine[turn];
            if (work.panel == NO_PANEL) return;
            const int64_t at = static_cast<int64_t>(work.row);
            G* const gradient = static_cast<G*>(p.d_logits) + at * p.d_logits_stride;
            const Stretch s = stretch_of(p, gradient, work.panel);
            if (work.gradient.kind == RowGradient::LIVE) {
                const T* const logits = static_cast<const T*>(p.logits) + at * p.logits_stride;
                live_stretch(logits + s.start, gradient + s.start, s, work.gradient);
            } else {
                fill_stretch(gradient + s.start, s, work.gradient.kind == RowGradient::ZERO ? 0.0f : not_a_number());
            }
        }
        sync_warp();  // every lane has read what is prepared anew
    }
}
