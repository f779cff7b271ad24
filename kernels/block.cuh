// Block collectives.
#pragma once

#include "warp.cuh"

// One fault as the word holds it. The smallest row wins, then the smallest tag, then the smallest code.
MOERL_DEVICE uint64_t fault_at(uint64_t row, uint32_t tag, uint32_t code) {
    return row << MOERL_FAULT_ROW_SHIFT | static_cast<uint64_t>(tag) << MOERL_FAULT_TAG_SHIFT | code;
}

MOERL_DEVICE void keep_first(uint64_t& fault, uint64_t other) { fault = other < fault ? other : fault; }

// Every thread of the block brings its own first fault (or MOERL_NO_FAULT); the block's smallest reaches the word by at most one
// atomic, after a plain read: millions of faulty rows must not queue up at one address. All threads of the block must call.
MOERL_DEVICE void publish_fault(uint64_t* word, uint64_t fault) {
    MOERL_SHARED(uint64_t, smallest, 1);
    if (!sync_block_or(fault != MOERL_NO_FAULT) || word == nullptr) return;  // the usual case costs one barrier
    if (thread_index() == 0) smallest[0] = MOERL_NO_FAULT;
    sync_block();
    if (fault != MOERL_NO_FAULT) shared_atomic_min(smallest, fault);
    sync_block();
    if (thread_index() == 0 && smallest[0] < load_relaxed(word)) atomic_min(word, smallest[0]);
}
