// Panels dealt to all warps of the grid, where rows are few or their panels' records are the result; and what is made of the records.
#pragma once

#include "forward.cuh"

// Panels of all rows, dealt to all warps in turn; records go to the workspace, or are the result.
template <class Mode> struct PanelCursor {
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
            if constexpr (Mode::IS_GENERAL) {
                const float value = r.absent ? 0.0f : not_a_number();
                if (is_result()) put_result({value, value, value, value}, value);
            }
        }
    }
    MOERL_DEVICE bool is_result() const { return Mode::IS_GENERAL && p->result == MOERL_RESULT_PANELS; }
    MOERL_DEVICE uint64_t place() const { return at_row * p->record_stride + at_panel; }
    MOERL_DEVICE void put_result(MoerlPartial record, float sum_sq) const {
        if (lane_index() != 0) return;
        store_partial(p->records, place(), record);
        store_optional(p->sum_sq, place(), sum_sq);
    }
    MOERL_DEVICE void advance() { unit += step, settle(); }
    MOERL_DEVICE uint64_t row() const { return at_row; }
    MOERL_DEVICE uint32_t panel() const { return at_panel; }
    MOERL_DEVICE float scale() const { return r.scale; }
    MOERL_DEVICE int32_t label() const { return r.label; }
    MOERL_DEVICE void put_record(MoerlPartial record) const {
        const float label = r.label == LABEL_OUTSIDE ? not_a_number() : -INFINITE;
        if (is_result()) return put_result({record.max_logit, record.sum, record.weighted, label}, record.label);
        const Words4 words = {{bits_of(record.max_logit), bits_of(record.sum), bits_of(record.weighted), bits_of(record.label)}};
        if (lane_index() == 0) store16(p->records + place(), words);
    }
    MOERL_DEVICE void put_label(float logit) const {
        float* const to = is_result() ? &p->records[place()].label : p->labels + at_row;
        if (lane_index() == 0) store(to, logit);
    }
    template <class T> MOERL_DEVICE float raw_label(uint32_t, int64_t token) const { return raw_logit<T>(*p, at_row, token); }
    MOERL_DEVICE uint64_t best() const {
        const uint64_t found = lane_index() == 0 ? load_relaxed(p->best + at_row) : 0;
        return shuffle(found, 0);
    }
    MOERL_DEVICE void put_best(uint64_t candidate) const {
        if (lane_index() == 0) atomic_min(p->best + at_row, candidate);
    }
};

template <class T, class Mode> MOERL_DEVICE void forward_by_panels(const MoerlLogprobForward& p) {
    const uint64_t warps = block_size() / WARP;
    PanelCursor<Mode> cursor = {&p, block_index() * warps + warp_index(), p.rows * static_cast<uint64_t>(panels_of(p)), grid_size() * warps, 0, 0, {}};
    cursor.settle();
    walk<T, Mode>(p, cursor);
}

MOERL_DEVICE MoerlPartial load_record(const MoerlPartial* at) {
    const Words4 words = load16(at);
    return {f32_of(words.w[0]), f32_of(words.w[1]), f32_of(words.w[2]), f32_of(words.w[3])};
}

// Warp 0, one lane per row: what the panels left of a group besides records.
template <class Mode> MOERL_DEVICE void open_merged(const MoerlLogprobForward& p, typename GroupOf<Mode>::Type& group, uint64_t number) {
    const int lane = static_cast<int>(lane_index());
    const uint64_t row = row_of(p, number, lane);
    if (row >= p.rows) return;
    const Row& r = group.row[lane];
    if (p.labels != nullptr && is_read(r) && r.label >= 0) group.label[lane] = load(p.labels + row);
    if constexpr (Mode::IS_GENERAL) {
        group.best[lane] = p.best != nullptr ? load(p.best + row) : NO_STANDING;
        group.record[lane] = {0.0f, 1.0f, 0.0f, 0.0f};  // any valid one will do where records are not merged
    }
}

// What forward_by_panels left, merged and finished. Where the panels' records are the result only the rest is finished.
template <class Mode> MOERL_DEVICE void merge_rows(const MoerlLogprobForward& p) {
    MOERL_SHARED(typename GroupOf<Mode>::Type, group, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    if (thread_index() == 0) group[0].fault = MOERL_NO_FAULT;
    const int panels = p.result != MOERL_RESULT_PANELS ? panels_of(p) : 0;
    for (uint64_t number = block_index(); number < p.groups; number += grid_size()) {
        if (warp_index() == 0) {
            open_group(p, group[0], number);
            open_merged<Mode>(p, group[0], number);
        }
        sync_block();
        for (int n = 0; n * SUPER_PANEL < panels; n++) {
            const auto source = [&](int turn, int i) {
                const uint64_t row = row_of(p, number, group[0].walked[turn]);
                return load_record(p.records + row * p.record_stride + n * SUPER_PANEL + i);
            };
            merge_group(group[0], upper, source, n, panels);
        }
        sync_block();
        if (warp_index() == 0) close_group<Mode>(p, group[0], number, walked_labels(p));
        sync_block();
    }
    publish_fault(p, group[0]);
}
