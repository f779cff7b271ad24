// Kernels broken on purpose, each in one way; the line at fault says BROKEN. tests/emulation/broken.rs names the check that has to catch
// each. `variant` 0 is the kernel as it should be where that helps to show that nothing else is wrong with it.

#include "block.cuh"
#include "call.h"

// ---- missing barriers -----------------------------------------------------------------------------------------------------

// The sum over the block of one word a thread.
MOERL_KERNEL(reduction_without_barrier, TestCall, 1024) {
    MOERL_SHARED(uint32_t, of_warp, 32);
    const uint32_t sum = reduce_add_u32(load(p.input + block_index() * block_size() + thread_index()));
    if (lane_index() == 0) of_warp[warp_index()] = sum;
    if (p.variant == 0) sync_block();  // BROKEN without: other warps may not have stored yet
    if (thread_index() != 0) return;
    uint32_t total = 0;
    for (uint32_t w = 0; w < block_size() / WARP; w++) total += of_warp[w];
    store(p.output + block_index(), total);
}

// A histogram of 256 bins in shared memory: every warp counts the largest of its words, `count` times over.
MOERL_KERNEL(histogram_without_barrier, TestCall, 256) {
    MOERL_SHARED(uint32_t, bins, 256);
    bins[thread_index()] = 0;
    if (p.variant == 0) sync_block();  // BROKEN without: a bin may be zeroed after it has counted
    for (uint64_t i = 0; i < p.count; i++) {
        const uint32_t largest = reduce_max_u32(load(p.input + i * block_size() + thread_index()));
        // A warp is kept together by its collectives: a choice among all threads that can run never lets one get far ahead.
        if (lane_index() == 0) shared_atomic_add(bins + largest % 256, 1u);
    }
    sync_block();
    store(p.output + thread_index(), bins[thread_index()]);
}

// Every lane gets its neighbour's word through shared memory.
MOERL_KERNEL(exchange_without_warp_barrier, TestCall, 32) {
    MOERL_SHARED(uint32_t, words, 32);
    words[lane_index()] = load(p.input + lane_index());
    if (p.variant == 0) sync_warp();  // BROKEN without
    store(p.output + lane_index(), words[(lane_index() + 1) % WARP]);
}

MOERL_KERNEL(blocks_store_to_one_place, TestCall, 32) {
    if (p.variant == 0) {
        atomic_add(p.output, 1u);
    } else {
        store(p.output, load(p.output) + 1);  // BROKEN: blocks run at the same time
    }
}

// ---- divergence -----------------------------------------------------------------------------------------------------------

MOERL_KERNEL(divergent_shuffle, TestCall, 32) {
    uint32_t v = load(p.input + lane_index());
    if (lane_index() < 16) v = shuffle_xor(v, 1);  // BROKEN: the mask names all 32 lanes
    store(p.output + lane_index(), v);
}
MOERL_KERNEL(divergent_shuffle_that_meets_a_barrier, TestCall, 64) {
    if (lane_index() < 16) store(p.output + lane_index(), shuffle(1u, 0));  // BROKEN
    sync_block();
}
MOERL_KERNEL(divergent_operations, TestCall, 32) {
    if (lane_index() < 16)
        store(p.output, ballot(true, FULL_WARP));
    else
        store(p.output + 1, match_any(3u));  // BROKEN: half of the warp votes, the other half matches
}
MOERL_KERNEL(shuffle_from_outside_its_mask, TestCall, 32) {
    if (lane_index() >= 8) return;
    store(p.output + lane_index(), shuffle(lane_index(), 9, 0xffu));  // BROKEN: lane 9 takes no part
}
MOERL_KERNEL(shuffle_by_a_lane_outside_the_mask, TestCall, 32) {
    store(p.output + lane_index(), shuffle(lane_index(), 0, 0xffu));  // BROKEN for lanes 8 and up
}
MOERL_KERNEL(barrier_after_some_returned, TestCall, 1024) {
    if (thread_index() >= p.number) return;  // BROKEN
    sync_block();
}
MOERL_KERNEL(barrier_in_a_branch, TestCall, 1024) {
    if (warp_index() == 0) {
        sync_block();  // BROKEN: not the barrier at which the other warps wait
        store(p.output, 1u);
    } else {
        sync_block();
    }
}
MOERL_KERNEL(barrier_that_one_warp_never_reaches, TestCall, 1024) {
    if (warp_index() == 0 && lane_index() < 31) sync_warp();  // BROKEN: lane 31 goes on to the barrier
    sync_block();
}

// ---- global memory --------------------------------------------------------------------------------------------------------

// One access of each kind at word `number` of the buffer that `variant` names, and as many words as the kind has.
MOERL_KERNEL(stray_load, TestCall, 32) { store(p.output, load(p.input + static_cast<int32_t>(p.number))); }
MOERL_KERNEL(stray_load16, TestCall, 32) { store(p.output, load16(p.input + static_cast<int32_t>(p.number)).w[0]); }
MOERL_KERNEL(stray_store, TestCall, 32) { store(p.output + static_cast<int32_t>(p.number), 1u); }
MOERL_KERNEL(stray_store16, TestCall, 32) { store16(p.output + static_cast<int32_t>(p.number), Words4{}); }
MOERL_KERNEL(stray_atomic, TestCall, 32) { atomic_add(p.output + static_cast<int32_t>(p.number), 1u); }
MOERL_KERNEL(stray_copy, TestCall, 32) {
    MOERL_SHARED(Words4, stage, 32);
    copy_async<16>(stage + thread_index(), p.input + static_cast<int32_t>(p.number));
    copy_async_commit();
    copy_async_wait<0>();
}
MOERL_KERNEL(store_to_input, TestCall, 32) { store(const_cast<uint32_t*>(p.input), 1u); }
MOERL_KERNEL(atomic_on_input, TestCall, 32) { atomic_add(const_cast<uint32_t*>(p.input), 1u); }
MOERL_KERNEL(misaligned_load, TestCall, 32) {
    store(p.output, load(reinterpret_cast<const uint32_t*>(reinterpret_cast<const unsigned char*>(p.input) + 2)));
}
MOERL_KERNEL(null_load, TestCall, 32) { store(p.output, load(static_cast<const uint32_t*>(nullptr) + p.number)); }
MOERL_KERNEL(load_from_shared, TestCall, 32) {
    MOERL_SHARED(uint32_t, word, 1);
    store(p.output, load(word));
}
MOERL_KERNEL(raw_dereference, TestCall, 32) { store(p.output, p.input[thread_index()]); }
MOERL_KERNEL(too_large_a_frame, TestCall, 32) {
    volatile uint32_t words[1 << 18];  // BROKEN: 1 MB of local memory a thread
    for (uint32_t i = 0; i < p.count; i++) words[i * 64] = i;
    store(p.output, words[p.number]);
}

// ---- shared memory --------------------------------------------------------------------------------------------------------

MOERL_KERNEL(shared_store_past_the_end, TestCall, 64) {
    MOERL_SHARED(uint32_t, words, 64);
    uint32_t* w = words;
    w[static_cast<int>(thread_index()) + static_cast<int>(p.number)] = 1;  // BROKEN unless number is 0
    sync_block();
    store(p.output + thread_index(), words[thread_index()]);
}
MOERL_KERNEL(dynamic_shared_store_past_the_end, TestCall, 64) {
    MOERL_DYNAMIC_SHARED(uint32_t, words);
    words[thread_index() + p.number] = 1;
    sync_block();
    store(p.output + thread_index(), words[thread_index()]);
}
MOERL_KERNEL(shared_load_past_the_end, TestCall, 64) {
    MOERL_SHARED(uint32_t, words, 64);
    words[thread_index()] = 1;
    sync_block();
    const uint32_t* w = words;
    store(p.output + thread_index(), w[thread_index() + p.number]);
}
MOERL_KERNEL(shared_array_index_past_the_end, TestCall, 64) {
    MOERL_SHARED(uint32_t, words, 64);
    words[thread_index()] = 1;
    sync_block();
    store(p.output + thread_index(), words[thread_index() + p.number]);
}
MOERL_KERNEL(misaligned_shared_access, TestCall, 64) {
    MOERL_SHARED(float, numbers, 256);
    numbers[thread_index()] = 1.0f;
    sync_block();
    const Words4 v = reinterpret_cast<const Words4*>(numbers)[thread_index() % 16];  // BROKEN: floats are aligned to 4 bytes
    store(p.output + thread_index(), v.w[p.number]);
}
MOERL_KERNEL(uninitialised_shared_memory, TestCall, 64) {
    MOERL_SHARED(float, numbers, 64);
    if (thread_index() != p.number) numbers[thread_index()] = 1.0f;
    sync_block();
    float sum = 0.0f;
    for (uint32_t i = 0; i < block_size(); i++) sum += numbers[i];  // BROKEN: nobody wrote number `number`
    if (thread_index() == 0) store(p.output + block_index(), bits_of(sum));
}
MOERL_KERNEL(too_much_static_shared_memory, TestCall, 32) {
    MOERL_SHARED(uint32_t, first, 8 * 1024);
    MOERL_SHARED(uint32_t, second, 4 * 1024 + 1);
    first[thread_index()] = second[thread_index()] = 0;
}
MOERL_KERNEL(some_static_shared_memory, TestCall, 32) {
    MOERL_SHARED(uint32_t, words, 1024);
    words[thread_index()] = 0;
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------------

// Copies a word a thread; `variant` says what is wrong: 0 nothing, 1 the wait comes after the use, 2 it waits for too old a group,
// 3 the group is committed too late, 4 it never waits.
MOERL_KERNEL(copy_without_wait, TestCall, 1024) {
    MOERL_SHARED(uint32_t, words, 1024);
    copy_async<4>(words + thread_index(), p.input + thread_index());
    if (p.variant != 3) copy_async_commit();
    if (p.variant == 2) copy_async_wait<1>();
    if (p.variant == 0 || p.variant == 3) copy_async_wait<0>();
    const uint32_t word = words[thread_index()];
    if (p.variant == 3) copy_async_commit();
    if (p.variant != 4) copy_async_wait<0>();
    store(p.output + thread_index(), word);
}

// Rounds of a word a thread through one stage; each thread reads what its neighbour copied.
MOERL_KERNEL(stage_reused_too_soon, TestCall, 1024) {
    MOERL_SHARED(uint32_t, stage, 1024);
    for (uint32_t round = 0; round < p.number; round++) {
        copy_async<4>(stage + thread_index(), p.input + round * block_size() + thread_index());
        copy_async_commit();
        copy_async_wait<0>();
        sync_block();
        store(p.output + round * block_size() + thread_index(), stage[(thread_index() + 1) % block_size()]);
        if (p.variant == 0) sync_block();  // BROKEN without: the next copy may land while the neighbour still reads
    }
}
MOERL_KERNEL(copy_to_nowhere, TestCall, 32) {
    MOERL_SHARED(uint32_t, words, 32);
    copy_async<4>(words + 32 + thread_index(), p.input);
}
MOERL_KERNEL(misaligned_copy, TestCall, 32) {
    MOERL_SHARED(float, words, 64);
    copy_async<16>(words, p.input);
}
