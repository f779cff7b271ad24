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
    bool is_searched;  // and search_set has looked for the row's id
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
    kept.is_walked = kept.is_searched = kept.is_every = false;
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

MOERL_DEVICE bool is_disordered(const MoerlLogprobKeep& p, int32_t token, int32_t before) { return token <= before || token >= p.vocab_total; }

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
    kept.is_searched = true;
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
template <class T> MOERL_DEVICE MoerlPartial reduce_kept(const MoerlLogprobKeep& p, KeptRow& kept, uint64_t row, int64_t first) {
    const int lane = static_cast<int>(lane_index());
    const T* const logits = static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.logits_stride;
    // Tokens and positions from `first` on, which 32 bits hold as they hold the vocabulary.
    const int32_t start = static_cast<int32_t>(p.vocab_start), here = static_cast<int32_t>(kept.count - first);
    const int32_t label = kept.row.label >= 0 ? start + kept.row.label : -1;
    const int32_t* const ids = p.kept_ids + kept.begin + first;
    const int32_t every = start + static_cast<int32_t>(first);
    const bool is_every = kept.is_every;
    const auto token_at = [&](int32_t at) { return at >= here ? -1 : is_every ? every + at : load(ids + at); };
    float x[OCTETS][8];
    float own = -INFINITE;
    bool disordered = false, found = false;
    int32_t before = first > 0 ? token_at(-1) : -1;  // in lane 0: the token before the lane's next octet
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) x[turn][i] = -INFINITE;
        if (turn * 8 * WARP >= here) continue;
        const int32_t from = (turn * WARP + lane) * 8;
        int32_t token[8];
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) token[i] = token_at(from + i);
        const int32_t left = shuffle_up(token[7], 1), last = shuffle(token[7], WARP - 1);
        if (lane > 0) before = left;
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) {
            const bool there = from + i < here;
            disordered = disordered || (there && is_disordered(p, token[i], before));
            const bool is_column = there && token[i] >= start && static_cast<uint32_t>(token[i] - start) < p.vocabulary;
            if (is_column) x[turn][i] = to_f32(load(logits + (token[i] - start)));
            if (there && token[i] == label) found = true, own = x[turn][i];
            before = token[i];
        }
        before = last;
    }
    if (any(disordered, FULL_WARP) && lane == 0) shared_atomic_or(&kept.bad, 1u);
    bool added = kept.added != 0;
    if (!kept.is_searched) {
        const bool missed = label >= 0 && !is_every && !any(found, FULL_WARP);
        added = missed && p.strict_keep == 0;
        sync_warp();
        if (lane == 0 && missed) kept.missed = 1;  // of a short set alone, which one warp has
    }

    // Where it is not in the set, the row's id comes behind the last one; the places from here on are counted from this lane's first.
    const int32_t behind = here - lane * 8;
    const bool is_here = added && behind >= 0 && behind < PANEL && behind % (8 * WARP) < 8;
    if (is_here) own = to_f32(load(logits + kept.row.label));
    const Cap cap = cap_of(p);
    float largest = -INFINITE;
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        MOERL_UNROLL
        for (int i = 0; i < 8; i++) {
            if (is_here && behind == turn * 8 * WARP + i) x[turn][i] = own;
            largest = max_nan(largest, x[turn][i]);
        }
    }
    const float max = cap.of(warp_max_nan(largest) + 0.0f);
    own = cap.of(warp_max_nan(own));
    Chains<false> chains;
    MOERL_UNROLL
    for (int i = 0; i < 8; i++) chains.e[i] = chains.et[i] = 0.0f;
    MOERL_UNROLL
    for (int turn = 0; turn < OCTETS; turn++) {
        if (turn * 8 * WARP > here) continue;
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

// Positions of a row's set.
MOERL_DEVICE int64_t positions_of(const KeptRow& kept) { return static_cast<int64_t>(kept.count) + kept.added; }

// The records of a group's rows. The whole block calls. First each warp takes rows whose sets fit into a panel, then all of them share the
// panels of the others, row by row: one walk, so that the code of a panel is there once.
template <class T> MOERL_DEVICE void reduce_group(const MoerlLogprobKeep& p, KeptGroup& group, Upper* upper, uint64_t number, int count) {
    const int lane = static_cast<int>(lane_index()), warp = static_cast<int>(warp_index()), warps = static_cast<int>(block_size() / WARP);
    constexpr int SHORT = -1;
    MOERL_ROLLED
    for (int shared = SHORT; shared < count; shared++) {
        const bool is_short = shared == SHORT;
        if (!is_short && !(group.row[shared].is_walked && positions_of(group.row[shared]) > PANEL)) continue;
        const int panels = is_short ? count : static_cast<int>((positions_of(group.row[shared]) + PANEL - 1) / PANEL);
        MOERL_ROLLED
        for (int n = 0; n * SUPER_PANEL < panels; n++) {
            const int left = panels - n * SUPER_PANEL, span = left < SUPER_PANEL ? left : SUPER_PANEL;
            MOERL_ROLLED
            for (int at = warp; at < span; at += warps) {
                const int index = is_short ? at : shared;
                KeptRow& kept = group.row[index];
                if (is_short && !(kept.is_walked && positions_of(kept) <= PANEL)) continue;
                const int64_t first = is_short ? 0 : (static_cast<int64_t>(n) * SUPER_PANEL + at) * PANEL;
                MoerlPartial record = reduce_kept<T>(p, kept, row_of(p, number, index), first);
                if (lane == 0 && record.label != -INFINITE) kept.label = record.label;
                record.label = 0.0f;
                if (lane == 0) (is_short ? kept.record : group.record[at]) = record;
            }
            sync_block();
            if (is_short) continue;
            KeptRow& kept = group.row[shared];
            if (warp == 0) {
                MoerlPartial record = merge([&](int i) { return group.record[i]; }, span, kept.row.scale);
                if (panels > SUPER_PANEL) record = climb(upper, n, n * SUPER_PANEL + span == panels, record, kept.row.scale);
                if (lane == 0) kept.record = record;
            }
            sync_block();
        }
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
            if (!kept.is_walked || kept.is_every || (p.is_shard == 0 && kept.count < PANEL)) continue;
            search_set(p, kept, row_of(p, number, index));
        }
        sync_block();
        reduce_group<T>(p, group, upper, number, count);
        if (warp == 0 && lane < count) close_kept(p, group.row[lane], row_of(p, number, lane), fault, added);
        sync_block();
    }
    publish_fault(p.errors, fault);
    added = reduce_add_u32(added);
    if (thread_index() == 0 && added > 0 && p.label_added != nullptr) atomic_add(p.label_added, static_cast<uint64_t>(added));
}
