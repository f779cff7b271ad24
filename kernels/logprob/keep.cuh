// Keep-sets, forward: the record of a row's kept columns, of which alone the logits are read. The tree is that of panel.cuh and merge.cuh over the
// position in the set; an id outside the set comes last.
#pragma once

#include "keepset.cuh"
#include "merge.cuh"
#include "panel.cuh"

// A row of a group, in shared memory.
struct KeptRow {
    Row row;
    KeepSet set;
    int64_t begin;     // of those ids that are columns here
    int32_t count;     // how many these are
    uint32_t added;    // 1: the row's id comes behind them
    uint32_t missed;   // 1: the row's id is not in the set
    uint32_t bad;      // not 0: the ids do not ascend, or are outside the vocabulary
    bool is_walked;    // the record is to be summed
    bool is_every;     // the set is empty and stands for all columns
    float label;
    MoerlPartial record;
};

struct KeptGroup {
    KeptRow row[WARP];
    MoerlPartial record[SUPER_PANEL];  // of panels that several warps share
};

// Warp 0, one lane per row.
MOERL_DEVICE void open_kept(const MoerlLogprobKeep& p, KeptRow& kept, uint64_t row) {
    kept.row = read_row(p, row);
    kept.set = {0, 0, 0};
    kept.begin = 0;
    kept.count = 0;
    kept.added = kept.missed = kept.bad = 0;
    kept.label = -INFINITE;
    kept.record = empty_record();
    kept.is_walked = kept.is_every = false;
    if (!is_read(kept.row)) return;
    kept.set = read_keep_set(p, row, p.first_row, p.call_rows);
    if (kept.set.fault != 0) return;
    kept.is_every = kept.set.is_empty();
    if (kept.is_every && p.full != nullptr) {
        kept.record = load_partial(p.full, row);
        kept.label = kept.record.label;
        return;
    }
    kept.is_walked = true;
    kept.begin = kept.set.begin;
    const int64_t count = kept.is_every ? p.vocabulary : kept.set.end - kept.set.begin;
    // More ids than there are cannot all differ.
    if (count > p.vocab_total) kept.bad = 1, kept.is_walked = false;
    else kept.count = static_cast<int32_t>(count);
}

// The token of position `at` of a set, the row's own behind the last; -1 where there is none.
MOERL_DEVICE int64_t token_at(const MoerlLogprobKeep& p, const KeptRow& kept, int64_t at) {
    if (at >= kept.count) return -1;
    return kept.is_every ? p.vocab_start + at : load(p.kept_ids + kept.begin + at);
}

MOERL_DEVICE bool is_disordered(const MoerlLogprobKeep& p, int64_t token, int64_t before) { return token <= before || token >= p.vocab_total; }

// Looks a row's id up in its set, and in a shard cuts the set to the ids that are columns here. One warp.
MOERL_DEVICE void search_set(const MoerlLogprobKeep& p, KeptRow& kept, uint64_t row) {
    const KeepSet set = kept.set;
    int64_t begin = set.begin, end = set.end;
    bool disordered = false;
    if (p.is_shard != 0) {
        for (int64_t at = begin + static_cast<int64_t>(lane_index()); at < end; at += WARP) {
            disordered = disordered || is_disordered(p, load(p.kept_ids + at), at > begin ? load(p.kept_ids + at - 1) : -1);
        }
        begin = lower_bound(p.kept_ids, begin, end, p.vocab_start);
        end = lower_bound(p.kept_ids, begin, end, p.vocab_start + static_cast<int64_t>(p.vocabulary));
    }
    disordered = any(disordered, FULL_WARP);
    const int64_t token = load_token(p, row, 0), at = lower_bound(p.kept_ids, set.begin, set.end, token);
    const bool missed = at >= set.end || load(p.kept_ids + at) != token;
    sync_warp();  // every lane has read the row
    if (lane_index() != 0) return;
    kept.begin = begin;
    kept.count = static_cast<int32_t>(end - begin);
    if (disordered) shared_atomic_or(&kept.bad, 1u);
    if (!missed || kept.row.label < 0) return;
    kept.missed = 1;
    kept.added = p.strict_keep == 0 ? 1 : 0;
}

constexpr int OCTETS = PANEL / (8 * WARP);  // of a lane

// The record of positions [first, first + PANEL) of a set, in every lane. Where the set was not searched (it fits into one panel), its own id is
// looked for here.
template <class T> MOERL_DEVICE MoerlPartial reduce_kept(const MoerlLogprobKeep& p, KeptRow& kept, uint64_t row, int64_t first, bool is_searched) {
    const int lane = static_cast<int>(lane_index());
    const int64_t label = kept.row.label >= 0 ? p.vocab_start + kept.row.label : -1;
    const int64_t count = kept.count;
    int32_t column[OCTETS][8];
    bool disordered = false, found = false;
    int64_t before = first > 0 ? token_at(p, kept, first - 1) : -1;  // in lane 0: the token before the lane's next octet
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) column[turn][i] = -1;
        if (first + turn * 8 * WARP >= count) continue;
        const int64_t start = first + (turn * WARP + lane) * 8;
        int64_t token[8];
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) token[i] = token_at(p, kept, start + i);
        const int64_t left = shuffle_up(token[7], 1), last = shuffle(token[7], WARP - 1);
        if (lane > 0) before = left;
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) {
            const bool there = start + i < count;
            const int64_t at = token[i] - p.vocab_start;
            disordered = disordered || (there && is_disordered(p, token[i], before));
            found = found || (there && token[i] == label);
            if (there && at >= 0 && at < static_cast<int64_t>(p.vocabulary)) column[turn][i] = static_cast<int32_t>(at);
            before = token[i];
        }
        before = last;
    }
    if (any(disordered, FULL_WARP) && lane == 0) shared_atomic_or(&kept.bad, 1u);
    bool added = kept.added != 0;
    if (!is_searched) {
        const bool missed = label >= 0 && !kept.is_every && !any(found, FULL_WARP);
        added = missed && p.strict_keep == 0;
        sync_warp();
        if (lane == 0) kept.missed = missed ? 1 : 0;
    }

    const T* const logits = static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride;
    const Cap cap = cap_of(p);
    float x[OCTETS][8];
    float largest = -INFINITE, own = -INFINITE;
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) {
            const bool is_label = added && first + (turn * WARP + lane) * 8 + i == count;
            const int32_t at = is_label ? kept.row.label : column[turn][i];
            x[turn][i] = at >= 0 ? to_f32(load(logits + at)) : -INFINITE;
            largest = max_nan(largest, x[turn][i]);
            if (at >= 0 && at == kept.row.label) own = x[turn][i];
        }
    }
    const float max = cap.of(warp_max_nan(largest) + 0.0f);
    own = cap.of(warp_max_nan(own));
    Chains<false> chains;
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) chains.e[i] = chains.et[i] = 0.0f;
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        if (first + turn * 8 * WARP > count) continue;
        cap.apply(x[turn], max);
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) {
            const float t = exponent_of(x[turn][i], max, kept.row.scale), e = exp2_approx(t);
            chains.e[i] += e;
            chains.et[i] = fmaf(e, t, chains.et[i]);
        }
    }
    return {max, fold<bf16>(chains.e, 0), fold<bf16>(chains.et, 0), own};
}

// Where a set needs more than one panel all warps of the block share it. The whole block calls.
template <class T> MOERL_DEVICE void reduce_long(const MoerlLogprobKeep& p, KeptGroup& group, Upper* upper, KeptRow& kept, uint64_t row) {
    const int panels = static_cast<int>((static_cast<int64_t>(kept.count) + kept.added + PANEL - 1) / PANEL);
    for (int n = 0; n * SUPER_PANEL < panels; n++) {
        const int left = panels - n * SUPER_PANEL, span = left < SUPER_PANEL ? left : SUPER_PANEL;
        for (int at = static_cast<int>(warp_index()); at < span; at += static_cast<int>(block_size() / WARP)) {
            const int64_t first = (static_cast<int64_t>(n) * SUPER_PANEL + at) * PANEL;
            MoerlPartial record = reduce_kept<T>(p, kept, row, first, true);
            if (lane_index() == 0 && record.label != -INFINITE) kept.label = record.label;
            record.label = 0.0f;
            if (lane_index() == 0) group.record[at] = record;
        }
        sync_block();
        if (warp_index() == 0) {
            MoerlPartial record = merge([&](int i) { return group.record[i]; }, span, kept.row.scale);
            if (panels > SUPER_PANEL) record = climb(upper, n, n * SUPER_PANEL + span == panels, record, kept.row.scale);
            if (lane_index() == 0) kept.record = record;
        }
        sync_block();
    }
}

// Warp 0, one lane per row: the outputs; the block's first fault so far.
MOERL_DEVICE void close_kept(const MoerlLogprobKeep& p, const KeptRow& kept, uint64_t row, uint64_t& fault, uint32_t& added) {
    MoerlPartial record = kept.record;
    record.label = kept.label;
    const uint32_t code = kept.set.fault != 0 ? kept.set.fault : kept.bad != 0 ? MOERL_FAULT_KEEP : 0;
    MoerlPartial full = {};
    if (p.full != nullptr) full = load_partial(p.full, row);
    const FinishedKeep f = finish_keep(kept.row, temperature_of(p, kept.row), record, code, kept.is_every, p.full != nullptr, full);
    store_finished_keep(p, row, f);
    if (f.fault != 0) keep_first(fault, fault_at(p.first_row + row, p.tag, f.fault));
    if (code == 0) added += kept.missed;
}

template <class T> MOERL_DEVICE void keep_by_rows(const MoerlLogprobKeep& p) {
    MOERL_SHARED(KeptGroup, shared, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    KeptGroup& group = shared[0];
    const int warp = static_cast<int>(warp_index()), warps = static_cast<int>(block_size() / WARP);
    uint64_t fault = MOERL_NO_FAULT;
    uint32_t added = 0;
    for (uint64_t number = block_index(); number < p.groups; number += grid_size()) {
        const int count = static_cast<int>((p.rows - number + p.groups - 1) / p.groups);
        const int lane = static_cast<int>(lane_index());
        if (warp == 0 && lane < count) open_kept(p, group.row[lane], row_of(p, number, lane));
        sync_block();
        for (int index = warp; index < count; index += warps) {
            KeptRow& kept = group.row[index];
            if (!kept.is_walked) continue;
            const bool is_searched = !kept.is_every && (p.is_shard != 0 || kept.count >= PANEL);
            if (is_searched) search_set(p, kept, row_of(p, number, index));
            sync_warp();
            if (static_cast<int64_t>(kept.count) + kept.added > PANEL) continue;
            const MoerlPartial record = reduce_kept<T>(p, kept, row_of(p, number, index), 0, is_searched);
            if (lane == 0) kept.record = record, kept.label = record.label;
        }
        sync_block();
        for (int index = 0; index < count; index++) {
            KeptRow& kept = group.row[index];
            if (kept.is_walked && static_cast<int64_t>(kept.count) + kept.added > PANEL) reduce_long<T>(p, group, upper, kept, row_of(p, number, index));
        }
        sync_block();
        if (warp == 0 && lane < count) close_kept(p, group.row[lane], row_of(p, number, lane), fault, added);
        sync_block();
    }
    publish_fault(p.errors, fault);
    added = reduce_add_u32(added);
    if (thread_index() == 0 && added > 0 && p.label_added != nullptr) atomic_add(p.label_added, static_cast<uint64_t>(added));
}
