// Walking rows panel by panel.
#pragma once

#include "finish.cuh"
#include "merge.cuh"
#include "order.cuh"

// Columns of a row's panel.
MOERL_DEVICE int columns_of(const MoerlLogprobForward& p, uint32_t panel) {
    const uint32_t left = p.vocabulary - panel * PANEL;
    return static_cast<int>(left < PANEL ? left : PANEL);
}

template <class T> MOERL_DEVICE const T* panel_of(const MoerlLogprobForward& p, uint64_t row, uint32_t panel) {
    return static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride + static_cast<int64_t>(panel) * PANEL;
}

template <class T> MOERL_DEVICE float raw_logit(const MoerlLogprobForward& p, uint64_t row, int64_t column) {
    return to_f32(load(static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride + column));
}

template <class T, class Cursor> MOERL_DEVICE void fetch_at(Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor) {
    if (cursor.is_valid()) fetch(panel, panel_of<T>(p, cursor.row(), cursor.panel()), columns_of(p, cursor.panel()));
}

// Where the logit of id k > 0 of a row waits for the row's record.
MOERL_DEVICE float* other_label(const MoerlLogprobForward& p, uint64_t row, uint32_t k) {
    if (p.other_labels != nullptr) return p.other_labels + row * (p.ids - 1) + k - 1;
    return p.logprobs != nullptr ? p.logprobs + row * p.ids + k : nullptr;
}

// The logits of the ids behind the first, as far as they are in the panel: a lane looks at an id.
template <class T> MOERL_DEVICE void put_other_labels(const Panel<T>& panel, const MoerlLogprobForward& p, uint64_t row, int64_t start, int columns) {
    const Cap cap = cap_of(p);
    for (uint32_t first = 1; first < p.ids; first += WARP) {
        const uint32_t k = first + lane_index();
        const int64_t at = k < p.ids ? id_of(p, row, k) - start : -1;
        for (uint32_t left = ballot(at >= 0 && at < columns, FULL_WARP); left != 0; left &= left - 1) {
            const int lane = lowest_set(left);
            const float logit = cap.of(logit_at(panel, columns, shuffle(static_cast<int>(at), lane)));
            float* const to = other_label(p, row, first + static_cast<uint32_t>(lane));
            if (lane_index() == 0 && to != nullptr) store(to, logit);
        }
    }
}

// The columns of the panel that precede each id: a lane brings an id and its logit.
template <class T, class Cursor> MOERL_DEVICE void count_ranks(const Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor, int64_t start, int columns) {
    const uint64_t row = cursor.row();
    for (uint32_t first = 0; first < p.ids; first += WARP) {
        const uint32_t k = first + lane_index();
        int32_t at = 0;  // below 2^31 on both sides, as the vocabulary is
        float logit = 0.0f;
        bool valid = false;
        if (k < p.ids) {
            const int64_t token = load_token(p, row, k);
            valid = token != p.ignore_index && token >= 0 && token < p.vocab_total;
            if (valid) {
                at = static_cast<int32_t>(token - p.vocab_start - start);
                logit = p.label_logits != nullptr ? load(p.label_logits + row * p.ids + k) : cursor.template raw_label<T>(k, token);
            }
        }
        for (uint32_t left = ballot(valid, FULL_WARP); left != 0; left &= left - 1) {
            const int lane = lowest_set(left);
            const uint32_t count = count_preceding(panel, columns, from_f32<T>(shuffle(logit, lane)), shuffle(at, lane));
            if (lane_index() == 0 && count > 0) atomic_add(p.rank + row * p.ids + first + static_cast<uint32_t>(lane), count);
        }
    }
}

// The row's best logit so far against the panel's, which is looked for only where it may stand before.
template <class T, class Cursor> MOERL_DEVICE void put_best(const Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor, int64_t start, int columns, float largest) {
    if (!is_finite(largest)) return;
    const uint64_t first = static_cast<uint64_t>(p.vocab_start + start);
    if (cursor.best() <= standing(largest, first)) return;
    cursor.put_best(standing(largest, first + column_of_largest(panel, columns, largest)));
}

// What the kernels are built for. Everything that few calls ask for is in one mode, behind branches that all threads take alike.
struct Plain {
    static constexpr bool SQUARES = false, IS_GENERAL = false;
    MOERL_DEVICE static NoCap cap(const MoerlLogprobForward&) { return {}; }
};
struct Squares {
    static constexpr bool SQUARES = true, IS_GENERAL = false;
    MOERL_DEVICE static NoCap cap(const MoerlLogprobForward&) { return {}; }
};
struct General {
    static constexpr bool SQUARES = true, IS_GENERAL = true;
    MOERL_DEVICE static Cap cap(const MoerlLogprobForward& p) { return cap_of(p); }
};

template <class T, class Mode, class Cursor> MOERL_DEVICE void reduce_at(Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor) {
    complete(panel);
    const int columns = columns_of(p, cursor.panel());
    const auto cap = Mode::cap(p);
    const float largest = maximum(panel);
    cursor.put_record(reduce<T, Mode::SQUARES>(panel, columns, largest, cursor.scale(), cap));
    // Ids that are no column, being negative, lie in no panel.
    const int32_t start = static_cast<int32_t>(cursor.panel() * PANEL), label = cursor.label() - start;
    if (cursor.label() >= 0 && label >= 0 && label < columns) cursor.put_label(cap.of(logit_at(panel, columns, label)));
    if constexpr (Mode::IS_GENERAL) {
        if (p.tokens != nullptr) put_other_labels(panel, p, cursor.row(), start, columns);
        if (p.rank != nullptr) count_ranks(panel, p, cursor, start, columns);
        if (p.argmax != nullptr || p.best != nullptr) put_best(panel, p, cursor, start, columns, largest);
    }
}

// One warp reduces the panels that `cursor` names, one after the other; while it works on one, the next one is on its way. Two panels
// to a round, so that none is moved from register to register.
template <class T, class Mode, class Cursor> MOERL_DEVICE void walk(const MoerlLogprobForward& p, Cursor cursor) {
    if constexpr (Mode::IS_GENERAL && sizeof(T) == 4) {
        // Two panels of f32 and what the general mode needs do not fit into 255 registers.
        for (; cursor.is_valid(); cursor.advance()) {
            Panel<T> panel;
            fetch_at(panel, p, cursor);
            reduce_at<T, Mode>(panel, p, cursor);
        }
    } else {
        Panel<T> even, odd;
        Cursor next = cursor;
        fetch_at(even, p, cursor);
        while (cursor.is_valid()) {
            next.advance();
            fetch_at(odd, p, next);
            reduce_at<T, Mode>(even, p, cursor);
            if (!next.is_valid()) return;
            cursor = next;
            cursor.advance();
            fetch_at(even, p, cursor);
            reduce_at<T, Mode>(odd, p, next);
            next = cursor;
        }
    }
}

// ---- a block walks whole rows ---------------------------------------------------------------------------------------------

// The rows of a group, in shared memory.
struct Group {
    Row row[WARP];
    float label[WARP];          // the label's logit, once it has been met
    MoerlPartial record[WARP];  // the row's record, once it is merged
    int walked[WARP];           // the rows that are read
    int count;                  // how many these are
    uint64_t number;            // of the group
    uint64_t fault;             // the block's first one; thread 0's alone, and here so that no register waits for it
};

// And what they need in the general mode.
struct GeneralGroup : Group {
    uint64_t best[WARP];        // the row's best logit so far: `standing`
    float raw[WARP];            // the first id's logit before the softcap, for its rank
};
template <class Mode> struct GroupOf { typedef Group Type; };
template <> struct GroupOf<General> { typedef GeneralGroup Type; };

// A warp's lanes write what the walk adds to or compares with.
template <class T> MOERL_DEVICE void open_general(const MoerlLogprobForward& p, GeneralGroup& group, uint64_t number) {
    const int lane = static_cast<int>(lane_index());
    const uint64_t row = row_of(p, number, lane);
    if (row >= p.rows) return;
    group.best[lane] = NO_STANDING;
    if (p.rank == nullptr) return;
    for (uint32_t k = 0; k < p.ids; k++) store(p.rank + row * p.ids + k, 0u);
    const Row& r = group.row[lane];
    if (p.label_logits == nullptr && is_read(r) && r.label >= 0) group.raw[lane] = raw_logit<T>(p, row, r.label);
}

// Warp 0, one lane per row.
MOERL_DEVICE void open_group(const MoerlLogprobForward& p, Group& group, uint64_t number) {
    const int lane = static_cast<int>(lane_index());
    const uint64_t row = row_of(p, number, lane);
    bool read = false;
    if (row < p.rows) {
        group.row[lane] = read_row(p, row);
        group.label[lane] = -INFINITE;
        read = is_read(group.row[lane]);
    }
    const uint32_t readers = ballot(read, FULL_WARP);
    if (read) group.walked[popcount(readers & ((1u << lane) - 1u))] = lane;
    if (lane == 0) group.count = popcount(readers), group.number = number;
}

// Warp 0, one lane per row: the outputs, and the block's first fault. `other(row, k)` is the logit of id k > 0.
template <class Mode, class Other>
MOERL_DEVICE void close_group(const MoerlLogprobForward& p, typename GroupOf<Mode>::Type& group, uint64_t number, Other other) {
    const int lane = static_cast<int>(lane_index());
    const uint64_t row = row_of(p, number, lane);
    uint64_t fault = MOERL_NO_FAULT;
    if (row < p.rows) {
        const Finished f = finish(group.row[lane], temperature_of(p, group.row[lane]), group.record[lane], group.label[lane]);
        store_finished(p, row, f);
        uint32_t code = f.fault;
        if constexpr (Mode::IS_GENERAL) {
            if (store_ids(p, row, group.row[lane], f, [&](uint32_t k) { return other(row, k); }, group.best[lane])) code = MOERL_FAULT_TARGET;
        } else {
            store_optional(p.logprobs, row, f.logprob);
        }
        if (code != 0) fault = fault_at(p.first_row + row, p.tag, code);
    }
    fault = warp_min(fault);
    if (lane == 0) keep_first(group.fault, fault);
}

MOERL_DEVICE void publish_fault(const MoerlLogprobForward& p, const Group& group) {
    sync_block();  // thread 0 alone needs its fault, but the compiler may let every thread load it
    publish_fault(p.errors, thread_index() == 0 ? group.fault : MOERL_NO_FAULT);
}

// The other ids' logits where the walk left them.
MOERL_DEVICE auto walked_labels(const MoerlLogprobForward& p) {
    return [&p](uint64_t row, uint32_t k) {
        float* const from = other_label(p, row, k);
        return from != nullptr ? load(from) : 0.0f;
    };
}

MOERL_DEVICE int panels_of(const MoerlLogprobForward& p) { return static_cast<int>((p.vocabulary - 1) / PANEL + 1); }

// Panels of super-panel n.
MOERL_DEVICE int span_of(int panels, int n) {
    const int left = panels - n * SUPER_PANEL;
    return left < SUPER_PANEL ? left : SUPER_PANEL;
}
MOERL_DEVICE int span_of(const MoerlLogprobForward& p, int n) { return span_of(panels_of(p), n); }

// The panels of super-panel n of a group's rows, dealt to the block's warps in turn. What can be had from shared memory or from the
// parameters is not kept here: registers are what the panels need.
template <class Mode> struct GroupCursor {
    typename GroupOf<Mode>::Type* group;
    MoerlPartial* records;  // [walked rows, span]
    const MoerlLogprobForward* p;
    int n, turn, at;        // which super-panel, which walked row, which panel of the super-panel

    MOERL_DEVICE bool is_valid() const { return turn < group->count; }
    MOERL_DEVICE void settle() {
        for (; at >= span_of(*p, n); turn++) at -= span_of(*p, n);
    }
    MOERL_DEVICE void advance() { at += static_cast<int>(block_size() / WARP), settle(); }
    MOERL_DEVICE int index() const { return group->walked[turn]; }
    MOERL_DEVICE uint64_t row() const { return row_of(*p, group->number, index()); }
    MOERL_DEVICE uint32_t panel() const { return static_cast<uint32_t>(n * SUPER_PANEL + at); }
    MOERL_DEVICE float scale() const { return group->row[index()].scale; }
    MOERL_DEVICE int32_t label() const { return group->row[index()].label; }
    MOERL_DEVICE void put_record(MoerlPartial record) const {
        if (lane_index() == 0) records[turn * span_of(*p, n) + at] = record;
    }
    MOERL_DEVICE void put_label(float logit) const {
        if (lane_index() == 0) group->label[index()] = logit;
    }
    template <class T> MOERL_DEVICE float raw_label(uint32_t k, int64_t token) const {
        return k == 0 ? group->raw[index()] : raw_logit<T>(*p, row(), token);
    }
    MOERL_DEVICE uint64_t best() const {
        const uint64_t found = lane_index() == 0 ? shared_atomic_min(group->best + index(), NO_STANDING) : 0;
        return shuffle(found, 0);
    }
    MOERL_DEVICE void put_best(uint64_t candidate) const {
        if (lane_index() == 0) shared_atomic_min(group->best + index(), candidate);
    }
};

// The records of super-panel n of the group's rows, of `panels` in all, into the rows' own: `source(turn, i)` is record i of a walked row.
// A warp per row; where a row has several super-panels its group is this row alone, so that `upper` serves one row.
template <class Source>
MOERL_DEVICE void merge_group(Group& group, Upper* upper, Source source, int n, int panels) {
    const int span = span_of(panels, n);
    const bool is_last = (n + 1) * SUPER_PANEL >= panels;
    for (int turn = static_cast<int>(warp_index()); turn < group.count; turn += static_cast<int>(block_size() / WARP)) {
        const int index = group.walked[turn];
        const float scale = group.row[index].scale;
        MoerlPartial record = merge([&](int i) { return source(turn, i); }, span, scale);
        if (panels > SUPER_PANEL) record = climb(upper, n, is_last, record, scale);
        if (is_last && lane_index() == 0) group.record[index] = record;
    }
}

// Blocks take groups of rows; records stay in shared memory.
template <class T, class Mode> MOERL_DEVICE void forward_by_rows(const MoerlLogprobForward& p) {
    MOERL_DYNAMIC_SHARED(MoerlPartial, records);
    MOERL_SHARED(typename GroupOf<Mode>::Type, group, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    if (thread_index() == 0) group[0].fault = MOERL_NO_FAULT;
    for (uint64_t number = block_index(); number < p.groups; number += grid_size()) {
        if (warp_index() == 0) {
            open_group(p, group[0], number);
            if constexpr (Mode::IS_GENERAL) open_general<T>(p, group[0], number);
        }
        sync_block();
        for (int n = 0; n * SUPER_PANEL < panels_of(p); n++) {
            GroupCursor<Mode> cursor = {group, records, &p, n, 0, static_cast<int>(warp_index())};
            cursor.settle();
            walk<T, Mode>(p, cursor);
            sync_block();
            const int span = span_of(p, n);
            merge_group(group[0], upper, [&](int turn, int i) { return records[turn * span + i]; }, n, panels_of(p));
            sync_block();
        }
        if (warp_index() == 0) close_group<Mode>(p, group[0], number, walked_labels(p));
    }
    publish_fault(p, group[0]);
}
