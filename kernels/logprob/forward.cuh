// Walking rows panel by panel.
#pragma once

#include "finish.cuh"
#include "merge.cuh"
#include "panel.cuh"

// Columns of a row's panel.
MOERL_DEVICE int columns_of(const MoerlLogprobForward& p, uint32_t panel) {
    const uint32_t left = p.vocabulary - panel * PANEL;
    return static_cast<int>(left < PANEL ? left : PANEL);
}

template <class T> MOERL_DEVICE const T* panel_of(const MoerlLogprobForward& p, uint64_t row, uint32_t panel) {
    return static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride + static_cast<int64_t>(panel) * PANEL;
}

template <class T, class Cursor> MOERL_DEVICE void fetch_at(Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor) {
    if (cursor.is_valid()) fetch(panel, panel_of<T>(p, cursor.row(), cursor.panel()), columns_of(p, cursor.panel()));
}

template <class T, bool SQUARES, class Cursor>
MOERL_DEVICE void reduce_at(Panel<T>& panel, const MoerlLogprobForward& p, const Cursor& cursor) {
    complete(panel);
    const int columns = columns_of(p, cursor.panel());
    cursor.put_record(reduce<T, SQUARES>(panel, columns, cursor.scale()));
    // LABEL_OUTSIDE and NO_LABEL, being negative, lie in no panel.
    const int32_t label = cursor.label() - static_cast<int32_t>(cursor.panel() * PANEL);
    if (cursor.label() >= 0 && label >= 0 && label < columns) cursor.put_label(logit_at(panel, columns, label));
}

// One warp reduces the panels that `cursor` names, one after the other; while it works on one, the next one is on its way. Two panels
// to a round, so that none is moved from register to register.
template <class T, bool SQUARES, class Cursor> MOERL_DEVICE void walk(const MoerlLogprobForward& p, Cursor cursor) {
    Panel<T> even, odd;
    Cursor next = cursor;
    fetch_at(even, p, cursor);
    while (cursor.is_valid()) {
        next.advance();
        fetch_at(odd, p, next);
        reduce_at<T, SQUARES>(even, p, cursor);
        if (!next.is_valid()) return;
        cursor = next;
        cursor.advance();
        fetch_at(even, p, cursor);
        reduce_at<T, SQUARES>(odd, p, next);
        next = cursor;
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

// Warp 0, one lane per row: the outputs, and the block's first fault.
MOERL_DEVICE void close_group(const MoerlLogprobForward& p, Group& group, uint64_t number) {
    const int lane = static_cast<int>(lane_index());
    const uint64_t row = row_of(p, number, lane);
    uint64_t fault = MOERL_NO_FAULT;
    if (row < p.rows) {
        const Finished f = finish(group.row[lane], group.record[lane], group.label[lane]);
        store_finished(p, row, f);
        if (f.fault != 0) fault = fault_at(row, p.tag, f.fault);
    }
    fault = warp_min(fault);
    if (lane == 0) keep_first(group.fault, fault);
}

MOERL_DEVICE void publish_fault(const MoerlLogprobForward& p, const Group& group) {
    publish_fault(p.errors, thread_index() == 0 ? group.fault : MOERL_NO_FAULT);
}

MOERL_DEVICE int panels_of(const MoerlLogprobForward& p) { return static_cast<int>((p.vocabulary - 1) / PANEL + 1); }

// Panels of super-panel n.
MOERL_DEVICE int span_of(const MoerlLogprobForward& p, int n) {
    const int left = panels_of(p) - n * SUPER_PANEL;
    return left < SUPER_PANEL ? left : SUPER_PANEL;
}

// The panels of super-panel n of a group's rows, dealt to the block's warps in turn. What can be had from shared memory or from the
// parameters is not kept here: registers are what the panels need.
struct GroupCursor {
    Group* group;
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
};

// The records of super-panel n of the group's rows, `span` records apart at `source`, into the rows' own. A warp per row; where a row has
// several super-panels its group is this row alone, so that `upper` serves one row.
template <class Source>
MOERL_DEVICE void merge_group(const MoerlLogprobForward& p, Group& group, Upper* upper, Source source, int n, int span) {
    const bool is_last = (n + 1) * SUPER_PANEL >= panels_of(p);
    for (int turn = static_cast<int>(warp_index()); turn < group.count; turn += static_cast<int>(block_size() / WARP)) {
        const int index = group.walked[turn];
        const float scale = group.row[index].scale;
        MoerlPartial record = merge([&](int i) { return source(turn, i); }, span, scale);
        if (panels_of(p) > SUPER_PANEL) record = climb(upper, n, is_last, record, scale);
        if (is_last && lane_index() == 0) group.record[index] = record;
    }
}

// Blocks take groups of rows; records stay in shared memory.
template <class T, bool SQUARES> MOERL_DEVICE void forward_by_rows(const MoerlLogprobForward& p) {
    MOERL_DYNAMIC_SHARED(MoerlPartial, records);
    MOERL_SHARED(Group, group, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    if (thread_index() == 0) group[0].fault = MOERL_NO_FAULT;
    for (uint64_t number = block_index(); number < p.groups; number += grid_size()) {
        if (warp_index() == 0) open_group(p, group[0], number);
        sync_block();
        for (int n = 0; n * SUPER_PANEL < panels_of(p); n++) {
            GroupCursor cursor = {group, records, &p, n, 0, static_cast<int>(warp_index())};
            cursor.settle();
            walk<T, SQUARES>(p, cursor);
            sync_block();
            const int span = span_of(p, n);
            merge_group(p, group[0], upper, [&](int turn, int i) { return records[turn * span + i]; }, n, span);
            sync_block();
        }
        if (warp_index() == 0) close_group(p, group[0], number);
    }
    publish_fault(p, group[0]);
}

// ---- many blocks share a row ------------------------------------------------------------------------------------------------

// Panels of all rows, dealt to all warps in turn; records go to the workspace.
struct PanelCursor {
    const MoerlLogprobForward* p;
    uint64_t unit, units, step;
    uint64_t at_row;
    uint32_t at_panel;
    Row r;

    MOERL_DEVICE bool is_valid() const { return unit < units; }
    // On to the first panel from `unit` on whose row is read.
    MOERL_DEVICE void settle() {
        for (; unit < units; unit += step) {
            const uint32_t panels = static_cast<uint32_t>(panels_of(*p));
            at_row = unit / panels;
            at_panel = static_cast<uint32_t>(unit % panels);
            r = read_row(*p, at_row);
            if (is_read(r)) return;
        }
    }
    MOERL_DEVICE void advance() { unit += step, settle(); }
    MOERL_DEVICE uint64_t row() const { return at_row; }
    MOERL_DEVICE uint32_t panel() const { return at_panel; }
    MOERL_DEVICE float scale() const { return r.scale; }
    MOERL_DEVICE int32_t label() const { return r.label; }
    MOERL_DEVICE void put_record(MoerlPartial record) const {
        const Words4 words = {{bits_of(record.max_logit), bits_of(record.sum), bits_of(record.weighted), bits_of(record.label)}};
        if (lane_index() == 0) store16(p->records + unit, words);
    }
    MOERL_DEVICE void put_label(float logit) const {
        if (lane_index() == 0) store(p->labels + at_row, logit);
    }
};

template <class T> MOERL_DEVICE void forward_by_panels(const MoerlLogprobForward& p) {
    const uint64_t warps = block_size() / WARP;
    PanelCursor cursor = {&p, block_index() * warps + warp_index(), p.rows * static_cast<uint64_t>(panels_of(p)), grid_size() * warps, 0, 0, {}};
    cursor.settle();
    walk<T, true>(p, cursor);
}

MOERL_DEVICE MoerlPartial load_record(const MoerlPartial* at) {
    const Words4 words = load16(at);
    return {f32_of(words.w[0]), f32_of(words.w[1]), f32_of(words.w[2]), f32_of(words.w[3])};
}

// What forward_by_panels left, merged and finished.
MOERL_DEVICE void merge_rows(const MoerlLogprobForward& p) {
    MOERL_SHARED(Group, group, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    if (thread_index() == 0) group[0].fault = MOERL_NO_FAULT;
    for (uint64_t number = block_index(); number < p.groups; number += grid_size()) {
        if (warp_index() == 0) {
            open_group(p, group[0], number);
            const uint64_t row = row_of(p, number, static_cast<int>(lane_index()));
            if (row < p.rows && is_read(group[0].row[lane_index()]) && group[0].row[lane_index()].label >= 0) {
                group[0].label[lane_index()] = load(p.labels + row);
            }
        }
        sync_block();
        for (int n = 0; n * SUPER_PANEL < panels_of(p); n++) {
            const auto source = [&](int turn, int i) {
                const uint64_t row = row_of(p, number, group[0].walked[turn]);
                return load_record(p.records + row * static_cast<uint64_t>(panels_of(p)) + n * SUPER_PANEL + i);
            };
            merge_group(p, group[0], upper, source, n, span_of(p, n));
        }
        sync_block();
        if (warp_index() == 0) close_group(p, group[0], number);
        sync_block();
    }
    publish_fault(p, group[0]);
}
