// The gradient where some columns are not like the others: several ids a row, keep-sets, a softcap, shards.
#pragma once

#include "backward.cuh"
#include "keepset.cuh"

// What a distribution, of all columns or of the kept ones, puts into the gradient.
struct Share {
    float max, constant, slope;  // as in RowGradient
    double sum, mean;
    double id, entropy, lse;     // upstream: of all ids together, of the entropy, of the log-sum-exp
};

// A row, in shared memory.
struct GeneralRow {
    RowGradient::Kind kind;
    bool is_dense;         // the distribution of all columns has a gradient
    bool is_kept;          // and that of the kept ones
    float scale, reciprocal;
    double temperature;
    Share full, kept;
    double added_to_label; // of the upstream of the row's id: from a keep-set that stands for all columns
    KeepSet set;
    int32_t label;
    uint64_t row;
};

MOERL_DEVICE bool is_valid_record(const MoerlPartial& record) { return is_finite(record.max_logit) && record.sum >= 1.0f; }

MOERL_DEVICE Share share_of(const MoerlPartial& record, double id, double entropy, double lse) {
    Share s;
    s.max = record.max_logit;
    s.sum = record.sum;
    s.mean = record.weighted * LN_2 / s.sum;
    s.id = id;
    s.entropy = entropy;
    s.lse = lse;
    s.constant = static_cast<float>(-(id - entropy * s.mean - lse) / s.sum);
    s.slope = static_cast<float>(-entropy * LN_2 / s.sum);
    return s;
}

// The upstream of the ids together, an ignored one being absent; whether one of them is not zero, not finite, or of an id outside the vocabulary.
struct UpstreamIds {
    double sum;
    bool is_zero, is_finite, is_outside;
};

MOERL_DEVICE UpstreamIds upstream_of_ids(const MoerlLogprobBackward& p, uint64_t row) {
    UpstreamIds up = {0.0, true, true, false};
    for (uint32_t k = 0; p.d_logprobs != nullptr && k < p.ids; k++) {
        const float a = load(p.d_logprobs + row * p.ids + k);
        const int32_t id = id_of(p, row, k);
        if (id == NO_LABEL || a == 0.0f) continue;
        up.sum += a;
        up.is_zero = false;
        up.is_finite = up.is_finite && is_finite(a);
        up.is_outside = up.is_outside || id == LABEL_OUTSIDE;
    }
    return up;
}

// As put_row_gradient.
MOERL_DEVICE void put_general_row(const MoerlLogprobBackward& p, uint64_t row, GeneralRow& g) {
    g.row = row;
    const Row r = read_row(p, row);
    g.kind = RowGradient::ZERO;
    if (r.absent) return;
    const UpstreamIds ids = upstream_of_ids(p, row);
    const float b = load_optional(p.d_entropy, row), c = load_optional(p.d_lse, row);
    const float kept_a = load_optional(p.d_kept_logprobs, row), kept_b = load_optional(p.d_kept_entropy, row);
    const bool has_kept = !(kept_a == 0.0f && kept_b == 0.0f);
    if (ids.is_zero && b == 0.0f && c == 0.0f && !has_kept) return;
    g.kind = RowGradient::FAULTY;
    const MoerlPartial saved = load_partial(p.saved, row);
    const bool is_upstream_finite = ids.is_finite && is_finite(b) && is_finite(c) && is_finite(kept_a) && is_finite(kept_b);
    if (!is_upstream_finite || !r.scalable || ids.is_outside || (r.label == LABEL_OUTSIDE && kept_a != 0.0f)) return;
    g.is_dense = !(ids.is_zero && b == 0.0f && c == 0.0f);
    g.is_kept = has_kept;
    g.added_to_label = 0.0;
    double id = ids.sum, entropy = b;
    if (has_kept) {
        g.set = read_keep_set(p, row, p.first_row, p.call_rows);
        if (g.set.fault != 0) return;
        if (g.set.is_empty()) {
            g.added_to_label = kept_a;
            id += kept_a;
            entropy += kept_b;
            g.is_dense = true;
            g.is_kept = false;
        } else {
            const MoerlPartial kept = load_partial(p.kept_saved, row);
            if (!is_valid_record(kept)) return;
            g.kept = share_of(kept, kept_a, kept_b, 0.0);
        }
    }
    if (g.is_dense && !is_valid_record(saved)) return;
    g.kind = RowGradient::LIVE;
    g.full = share_of(saved, id, entropy, c);
    g.label = r.label;
    g.scale = r.scale;
    g.temperature = temperature_of(p, r);
    g.reciprocal = static_cast<float>(1.0 / g.temperature);
}

// A logit after the softcap, and the slope of that.
struct Capped {
    float value, slope;
};

MOERL_DEVICE Capped under_cap(const MoerlLogprobBackward& p, float x, float max) {
    const Cap cap = cap_of(p);
    return {fminf(cap.limited(x), max), p.logit_scale * cap.slope(x)};
}

MOERL_DEVICE Capped capped_at(const MoerlLogprobBackward& p, float x, float max) { return cap_of(p).is_on() ? under_cap(p, x, max) : Capped{x, 1.0f}; }

MOERL_DEVICE Slope slope_of(const GeneralRow& g) { return {g.full.max, g.scale, g.full.constant, g.full.slope, g.reciprocal}; }

// As gradient_of. Without a softcap the same bits.
MOERL_DEVICE float dense_gradient(const Capped& u, const Slope& g) { return gradient_of(u.value, g) * u.slope; }

// A share's gradient at a column whose ids have the upstream `own`: own - p * ids + p * (...), formed so that 1 - p does not cancel.
MOERL_DEVICE double share_at(const Share& s, float u, float scale, double own) {
    const float t = exponent_of(u, s.max, scale);
    const double chosen = exp2_approx(t) / s.sum;
    return own * (1.0 - chosen) - chosen * (s.id - own) + chosen * (s.entropy * (s.mean - t * LN_2) + s.lse);
}

// The gradient at a marked column. Cold.
MOERL_DEVICE float marked_gradient(const MoerlLogprobBackward& p, const GeneralRow& g, float x, int32_t column, bool is_kept) {
    double sum = 0.0;
    float slope = 1.0f;
    if (g.is_dense) {
        double own = 0.0;
        for (uint32_t k = 0; p.d_logprobs != nullptr && k < p.ids; k++) {
            if (id_of(p, g.row, k) == column) own += load(p.d_logprobs + g.row * p.ids + k);
        }
        if (column == g.label) own += g.added_to_label;
        const Capped u = capped_at(p, x, g.full.max);
        sum += share_at(g.full, u.value, g.scale, own);
        slope = u.slope;
    }
    if (is_kept) {
        const Capped u = capped_at(p, x, g.kept.max);
        sum += share_at(g.kept, u.value, g.scale, column == g.label ? g.kept.id : 0.0);
        slope = u.slope;
    }
    return static_cast<float>(sum / g.temperature * slope);
}

// Columns of a panel, a bit each, and 64 bits behind them for whoever looks at a pack across the end.
constexpr int MARK_WORDS = PANEL / 32 + 2;
struct Marks {
    uint32_t any[MARK_WORDS];   // columns of ids, kept columns
    uint32_t kept[MARK_WORDS];
};

// `count` <= 8 bits from bit `first` on.
MOERL_DEVICE uint32_t bits_from(const uint32_t* words, int first, int count) {
    const uint64_t two = static_cast<uint64_t>(words[first / 32 + 1]) << 32 | words[first / 32];
    return static_cast<uint32_t>(two >> (first % 32)) & ((1u << count) - 1u);
}

MOERL_DEVICE bool is_counted(const Stretch& s, int64_t at) { return at >= s.first && at < s.counted; }

MOERL_DEVICE void mark(uint32_t* words, int64_t at) { shared_atomic_or(words + at / 32, 1u << (at % 32)); }

// Marks what a stretch's counted columns have. One warp; returns whether there is anything.
MOERL_DEVICE bool mark_stretch(const MoerlLogprobBackward& p, const GeneralRow& g, Marks& marks, const Stretch& s) {
    const int lane = static_cast<int>(lane_index());
    for (int w = lane; w < MARK_WORDS; w += WARP) marks.any[w] = marks.kept[w] = 0;
    sync_warp();
    bool found = false;
    const auto put = [&](uint32_t* words, int64_t at) {
        if (!is_counted(s, at)) return;
        mark(words, at);
        found = true;
    };
    if (g.is_dense && p.tokens != nullptr) {
        for (uint32_t k = static_cast<uint32_t>(lane); k < p.ids; k += WARP) put(marks.any, id_of(p, g.row, k) - s.start);
    }
    if (g.is_kept) {
        const int64_t first = p.vocab_start + s.start;
        for (int64_t at = lower_bound(p.kept_ids, g.set.begin, g.set.end, first) + lane; at < g.set.end; at += WARP) {
            const int64_t column = load(p.kept_ids + at) - first;
            if (column >= s.counted) break;
            put(marks.kept, column);
            put(marks.any, column);
        }
        if (lane == 0 && p.strict_keep == 0) put(marks.kept, g.label - s.start), put(marks.any, g.label - s.start);
    }
    sync_warp();
    return any(found, FULL_WARP);
}

// As gradient_packs, with `COUNT` packs of a lane on their way; `put` makes the gradients of a pack whose columns are not marked. Then the marked
// columns again, by the lanes that have just stored them: a thread's stores to one address stay in order.
template <int COUNT, class T, class G, class Put>
MOERL_DEVICE void general_packs(const MoerlLogprobBackward& p, const GeneralRow& g, const Marks& marks, bool has_marks, bool reads_all, const T* logits,
                                G* gradient, const Parts& parts, int64_t start, Put put) {
    constexpr int WIDTH = PACK<T>;
    const int lane = static_cast<int>(lane_index());
    const int skipped = parts.begin / WIDTH, last = parts.end / WIDTH;
    const uint32_t packs = static_cast<uint32_t>(last - skipped);
    const auto is_ours = [&](int slot) { return static_cast<uint32_t>(slot - skipped) < packs; };
    MOERL_ROLLED
    for (int first = 0; first < last; first += COUNT * WARP) {
        Words4 held[COUNT];
        uint32_t todo[COUNT] = {};
        if (has_marks) {
            MOERL_UNROLL
            for (int turn = 0; turn < COUNT; turn++) {
                const int slot = first + turn * WARP + lane;
                if (is_ours(slot)) todo[turn] = bits_from(marks.any, slot * WIDTH, WIDTH);
            }
        }
        MOERL_UNROLL
        for (int turn = 0; turn < COUNT; turn++) {
            const int slot = first + turn * WARP + lane;
            if (is_ours(slot) && (reads_all || todo[turn] != 0)) held[turn] = load16_once(logits + slot * WIDTH);
        }
        MOERL_UNROLL
        for (int turn = 0; turn < COUNT; turn++) {
            const int slot = first + turn * WARP + lane;
            float x[WIDTH];
            unpack<T>(held[turn], x);
            put(x);
            if (is_ours(slot)) store_packs(gradient + slot * WIDTH, x);
        }
        while (has_marks) {
            int chosen = COUNT;
            uint32_t bits = 0;
            Words4 words = {};
            MOERL_UNROLL
            for (int turn = COUNT - 1; turn >= 0; turn--) {
                if (todo[turn] != 0) chosen = turn, bits = todo[turn], words = held[turn];
            }
            if (bits == 0) break;
            const int place = lowest_set(bits);
            MOERL_UNROLL
            for (int turn = 0; turn < COUNT; turn++) todo[turn] &= turn == chosen ? todo[turn] - 1 : ~0u;
            float x[WIDTH];
            unpack<T>(words, x);
            float logit = x[0];
            MOERL_UNROLL
            for (int i = 1; i < WIDTH; i++) logit = i == place ? x[i] : logit;
            const int column = (first + chosen * WARP + lane) * WIDTH + place;
            const bool is_kept = bits_from(marks.kept, column, 1) != 0;
            store_stream(gradient + column, from_f32<G>(marked_gradient(p, g, logit, static_cast<int32_t>(start) + column, is_kept)));
        }
    }
}

// Packs of a lane on their way under a softcap, which takes far longer than the logits take to come; and where next to none are read.
constexpr int SHORT_STRIP = 2;

// A stretch of a live row.
template <class T, class G>
MOERL_DEVICE void general_stretch(const MoerlLogprobBackward& p, const GeneralRow& g, const Marks& marks, bool has_marks, const T* logits, G* gradient, const Stretch& s) {
    const int lane = static_cast<int>(lane_index());
    const bool aligned_alike = columns_to_boundary(logits) == 0;
    const Parts parts = parts_of(s.first, aligned_alike ? s.counted : 0, s.written, PACK<T>);
    const Slope slope = slope_of(g);
    if (g.is_dense && !cap_of(p).is_on()) {
        general_packs<STRIP>(p, g, marks, has_marks, true, logits, gradient, parts, s.start, [&](float (&x)[PACK<T>]) {
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) x[i] = gradient_of(x[i], slope);
        });
    } else {
        // Without a dense gradient only what is marked is looked at.
        general_packs<SHORT_STRIP>(p, g, marks, has_marks, g.is_dense, logits, gradient, parts, s.start, [&](float (&x)[PACK<T>]) {
            MOERL_UNROLL
            for (int i = 0; i < PACK<T>; i++) x[i] = g.is_dense ? dense_gradient(under_cap(p, x[i], slope.max), slope) : 0.0f;
        });
    }

    for (int i = lane; i < parts.edges; i += WARP) {
        const int column = parts.edge(i);
        const bool is_marked = column < s.counted && bits_from(marks.any, column, 1) != 0;
        float value = 0.0f;
        if (column < s.counted && (g.is_dense || is_marked)) {
            const float x = to_f32(load(logits + column));
            value = is_marked ? marked_gradient(p, g, x, static_cast<int32_t>(s.start + column), bits_from(marks.kept, column, 1) != 0) : dense_gradient(capped_at(p, x, slope.max), slope);
        }
        store_stream(gradient + column, from_f32<G>(value));
    }
}

// A panel of a row. One warp.
template <class T, class G> MOERL_DEVICE void general_panel(const MoerlLogprobBackward& p, const GeneralRow& g, Marks& marks, uint32_t panel) {
    const int64_t row = static_cast<int64_t>(g.row);
    G* const gradient = static_cast<G*>(p.d_logits) + row * p.d_logits_stride;
    const Stretch s = stretch_of(p, gradient, panel);
    const bool is_live = g.kind == RowGradient::LIVE;
    const bool has_marks = is_live && mark_stretch(p, g, marks, s);
    if (is_live && (g.is_dense || has_marks)) {
        const T* const logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
        general_stretch(p, g, marks, has_marks, logits + s.start, gradient + s.start, s);
        sync_warp();  // every lane has read the marks
    } else {
        fill_stretch(gradient + s.start, s, g.kind == RowGradient::FAULTY ? not_a_number() : 0.0f);
    }
}

// Panels of a row that lie side by side, one for each warp of a block, in shared memory.
struct Piece {
    GeneralRow row;
    uint32_t first;
};

// Pieces of all rows, dealt to all blocks in turn, so that a row's ids and records are looked at once for all warps of a block. A lane of the first
// warp prepares one of the next 32 pieces. A row's last piece may be short, and so the warps take turns. Nothing is summed here, so any
// division gives the same bits.
template <class T, class G> MOERL_DEVICE void backward_general(const MoerlLogprobBackward& p) {
    MOERL_SHARED(Piece, pieces, WARP);
    MOERL_SHARED(Marks, marks, 8);
    const uint32_t warps = block_size() / WARP, per_row = (p.panels + warps - 1) / warps;
    MOERL_ROLLED
    for (uint64_t next = block_index();; next += static_cast<uint64_t>(p.step) * WARP) {
        if (warp_index() == 0) {
            const uint64_t number = next + static_cast<uint64_t>(p.step) * lane_index(), row = number / per_row;
            Piece& prepared = pieces[lane_index()];
            prepared.first = NO_PANEL;
            if (row < p.rows) {
                prepared.first = static_cast<uint32_t>(number % per_row) * warps;
                put_general_row(p, row, prepared.row);
            }
        }
        sync_block();
        MOERL_ROLLED
        for (uint32_t turn = 0; turn < WARP; turn++) {
            const Piece& piece = pieces[turn];
            if (piece.first == NO_PANEL) return;
            const uint32_t panel = piece.first + (warp_index() + turn) % warps;
            if (panel < p.panels) general_panel<T, G>(p, piece.row, marks[warp_index()], panel);
        }
        sync_block();  // every warp has read what is prepared anew
    }
}
