// Panels dealt to all warps of the grid, where rows are few or their panels' records are the result; and what is made of the records.
#pragma once

#include "forward.cuh"

// A panel that a warp is to reduce, in shared memory.
struct Turn {
    uint64_t row;
    uint32_t panel;
    int32_t label;
    float scale;
};

// Panels of all rows, dealt to all warps in turn; records go to the workspace, or are the result. A lane looks at the row of one of the
// next 32 turns, so that its warp waits once in 32 panels for what is to be known of rows. While a walk fetches from one batch of turns it
// may still reduce the last panel of the batch before, so that there is room for two.
template <class Mode> struct PanelCursor {
    const MoerlLogprobForward* p;
    Turn* turns;                  // [2, WARP]
    uint64_t units, step, next;   // `next` is the first unit of the next batch
    uint32_t todo, half;          // turns of the batch that are left, and where it lies

    MOERL_DEVICE bool is_valid() const { return todo != 0; }
    MOERL_DEVICE void settle() {
        for (; todo == 0 && next < units; next += step * WARP) prepare();
    }
    MOERL_DEVICE void prepare() {
        sync_warp();  // every lane has read what lies in the other half
        const uint64_t unit = next + step * lane_index();
        bool read = false;
        if (unit < units) {
            const uint32_t panels = static_cast<uint32_t>(panels_of(*p)), at_panel = static_cast<uint32_t>(unit % panels);
            const uint64_t at_row = unit / panels;
            const Row r = read_row(*p, at_row);
            read = is_read(r);
            if (read) turns[(half ^ 1u) * WARP + lane_index()] = {at_row, at_panel, r.label, r.scale};
            if constexpr (Mode::IS_GENERAL) {
                const float value = r.absent ? 0.0f : not_a_number();
                if (!read && is_result()) put_result(at_row * p->record_stride + at_panel, {value, value, value, value}, value);
            }
        }
        todo = ballot(read, FULL_WARP);
        if (todo != 0) half ^= 1u;
        sync_warp();
    }
    MOERL_DEVICE const Turn& turn() const { return turns[half * WARP + static_cast<uint32_t>(lowest_set(todo))]; }
    MOERL_DEVICE bool is_result() const { return Mode::IS_GENERAL && p->result == MOERL_RESULT_PANELS; }
    MOERL_DEVICE uint64_t place() const { return row() * p->record_stride + panel(); }
    MOERL_DEVICE void put_result(uint64_t at, MoerlPartial record, float sum_sq) const {
        store_partial(p->records, at, record);
        store_optional(p->sum_sq, at, sum_sq);
    }
    MOERL_DEVICE void advance() { todo &= todo - 1, settle(); }
    MOERL_DEVICE uint64_t row() const { return turn().row; }
    MOERL_DEVICE uint32_t panel() const { return turn().panel; }
    MOERL_DEVICE float scale() const { return turn().scale; }
    MOERL_DEVICE int32_t label() const { return turn().label; }
    MOERL_DEVICE void put_record(MoerlPartial record) const {
        if (lane_index() != 0) return;
        const float label = this->label() == LABEL_OUTSIDE ? not_a_number() : -INFINITE;
        if (is_result()) return put_result(place(), {record.max_logit, record.sum, record.weighted, label}, record.label);
        store16(p->records + place(), {{bits_of(record.max_logit), bits_of(record.sum), bits_of(record.weighted), bits_of(record.label)}});
    }
    MOERL_DEVICE void put_label(float logit) const {
        float* const to = is_result() ? &p->records[place()].label : p->labels + row();
        if (lane_index() == 0) store(to, logit);
    }
    template <class T> MOERL_DEVICE float raw_label(uint32_t, int64_t token) const { return raw_logit<T>(*p, row(), token); }
    MOERL_DEVICE uint64_t best() const {
        const uint64_t found = lane_index() == 0 ? load_relaxed(p->best + row()) : 0;
        return shuffle(found, 0);
    }
    MOERL_DEVICE void put_best(uint64_t candidate) const {
        if (lane_index() == 0) atomic_min(p->best + row(), candidate);
    }
};

template <class T, class Mode> MOERL_DEVICE void forward_by_panels(const MoerlLogprobForward& p) {
    MOERL_SHARED(Turn, turns, 8 * 2 * WARP);
    const uint64_t warps = block_size() / WARP, units = p.rows * static_cast<uint64_t>(panels_of(p));
    PanelCursor<Mode> cursor = {&p, turns + warp_index() * 2 * WARP, units, grid_size() * warps, block_index() * warps + warp_index(), 0, 0};
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
