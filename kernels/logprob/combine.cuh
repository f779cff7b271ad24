// The records of all shards, merged in the order of the shards and finished. Records of panels are numbered through, so that the tree is that of one
// shard.
#pragma once

#include "keepset.cuh"
#include "split.cuh"

struct CombinedGroup : GeneralGroup {
    MoerlPartial kept[WARP];
};

// Record `position` of a row; sum_sq in the label's place, or the label.
MOERL_DEVICE MoerlPartial shard_record(const MoerlLogprobCombine& p, uint64_t row, int position, bool with_label) {
    uint64_t shard = 0;
    for (; position >= static_cast<int>(p.counts[shard]); shard++) position -= static_cast<int>(p.counts[shard]);
    const uint64_t at = (shard * p.outputs.rows + row) * p.records_per_row + static_cast<uint64_t>(position);
    MoerlPartial record = load_partial(p.records, at);
    if (!with_label) record.label = p.sum_sq != nullptr ? load(p.sum_sq + at) : 0.0f;
    return record;
}

// A row's label, and its keep-set's record. One warp.
MOERL_DEVICE void combine_rest(const MoerlLogprobCombine& p, CombinedGroup& group, int index, uint64_t row) {
    float label = -INFINITE;
    for (int i = static_cast<int>(lane_index()); i < static_cast<int>(p.positions); i += WARP) label = max_nan(label, shard_record(p, row, i, true).label);
    label = warp_max_nan(label);
    if (lane_index() == 0) group.label[index] = label;
    if (p.kept_records == nullptr) return;
    const auto of_shard = [&](int shard) { return load_partial(p.kept_records, static_cast<uint64_t>(shard) * p.outputs.rows + row); };
    const auto without_label = [&](int shard) {
        MoerlPartial record = of_shard(shard);
        record.label = 0.0f;
        return record;
    };
    const int shards = static_cast<int>(p.shards);
    MoerlPartial kept = merge(without_label, shards, group.row[index].scale);
    label = -INFINITE;
    for (int shard = static_cast<int>(lane_index()); shard < shards; shard += WARP) label = max_nan(label, of_shard(shard).label);
    kept.label = warp_max_nan(label);
    if (lane_index() == 0) group.kept[index] = kept;
}

// Warp 0, one lane per row: the kept outputs. Returns the fault's code.
MOERL_DEVICE uint32_t close_combined_kept(const MoerlLogprobCombine& p, const CombinedGroup& group, int lane, uint64_t row) {
    const Row& r = group.row[lane];
    MoerlPartial full = group.record[lane], kept = full;
    kept.label = group.label[lane];
    uint32_t code = 0;
    bool is_every = true;
    if (is_read(r)) {
        const KeepSet set = read_keep_set(p, row, p.outputs.first_row, p.outputs.rows);
        is_every = set.is_empty();
        if (!is_every) kept = group.kept[lane];
        // A shard that finds the ids in disorder says so by a sum that is not a number.
        code = set.fault != 0 ? set.fault : kept.sum != kept.sum ? MOERL_FAULT_KEEP : 0;
    }
    const FinishedKeep f = finish_keep(r, temperature_of(p.outputs, r), kept, code, is_every, true, full);
    store_finished_keep(p, row, f);
    return f.fault;
}

MOERL_DEVICE void combine_rows(const MoerlLogprobCombine& p) {
    MOERL_SHARED(CombinedGroup, group, 1);
    MOERL_SHARED(Upper, upper, LEVELS);
    const MoerlLogprobForward& outputs = p.outputs;
    const int positions = static_cast<int>(p.positions), lane = static_cast<int>(lane_index());
    const int warp = static_cast<int>(warp_index()), warps = static_cast<int>(block_size() / WARP);
    if (thread_index() == 0) group[0].fault = MOERL_NO_FAULT;
    const auto other = [&](uint64_t row, uint32_t k) {
        float logit = -INFINITE;
        for (uint64_t shard = 0; shard < p.shards && p.other_labels != nullptr; shard++) {
            logit = max_nan(logit, load(p.other_labels + (shard * outputs.rows + row) * (outputs.ids - 1) + k - 1));
        }
        return logit;
    };
    for (uint64_t number = block_index(); number < outputs.groups; number += grid_size()) {
        const uint64_t row = row_of(outputs, number, lane);
        if (warp == 0) {
            open_group(outputs, group[0], number);
            group[0].best[lane] = NO_STANDING;
            for (uint64_t shard = 0; row < outputs.rows && shard < p.shards && p.best != nullptr; shard++) {
                keep_first(group[0].best[lane], load(p.best + shard * outputs.rows + row));
            }
        }
        sync_block();
        for (int n = 0; n * SUPER_PANEL < positions; n++) {
            const auto source = [&](int turn, int i) {
                return shard_record(p, row_of(outputs, number, group[0].walked[turn]), n * SUPER_PANEL + i, false);
            };
            merge_group(group[0], upper, source, n, positions);
        }
        for (int turn = warp; turn < group[0].count; turn += warps) {
            const int index = group[0].walked[turn];
            combine_rest(p, group[0], index, row_of(outputs, number, index));
        }
        sync_block();
        if (warp == 0) {
            close_group<General>(outputs, group[0], number, other);
            uint64_t fault = MOERL_NO_FAULT;
            if (row < outputs.rows && p.kept_records != nullptr) {
                const uint32_t code = close_combined_kept(p, group[0], lane, row);
                if (code != 0) fault = fault_at(outputs.first_row + row, outputs.tag, code);
            }
            fault = warp_min(fault);
            if (lane == 0) keep_first(group[0].fault, fault);
        }
        sync_block();
    }
    publish_fault(outputs, group[0]);
}
