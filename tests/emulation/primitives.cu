// One kernel per family of helpers: each returns what the helpers gave, and the Rust side says what that should have been.

#include "block.cuh"
#include "call.h"
#include "pack.cuh"
#include "philox.cuh"

MOERL_DEVICE uint32_t global_index() { return block_index() * block_size() + thread_index(); }

// ---- indices, memory ------------------------------------------------------------------------------------------------------

MOERL_KERNEL(indices, TestCall, 1024) {
    uint32_t* row = p.output + 6 * global_index();
    const uint32_t found[6] = {thread_index(), block_index(), block_size(), grid_size(), lane_index(), warp_index()};
    for (int i = 0; i < 6; i++) store(row + i, found[i]);
}

// Copies `count` words with the accesses that `variant` names.
template <class T>
MOERL_DEVICE void copy_elements(const TestCall& p, bool stream) {
    const T* from = reinterpret_cast<const T*>(p.input);
    T* to = reinterpret_cast<T*>(p.output);
    for (uint64_t i = global_index(); i < p.count * 4 / sizeof(T); i += grid_size() * block_size()) {
        if (stream)
            store_stream(to + i, load_stream(from + i));
        else
            store(to + i, load(from + i));
    }
}
MOERL_KERNEL(copy, TestCall, 1024) {
    if (p.variant < 2)
        copy_elements<uint8_t>(p, p.variant == 1);
    else if (p.variant < 4)
        copy_elements<uint16_t>(p, p.variant == 3);
    else if (p.variant < 6)
        copy_elements<uint32_t>(p, p.variant == 5);
    else if (p.variant < 8)
        copy_elements<uint64_t>(p, p.variant == 7);
    else
        for (uint64_t i = 4 * global_index(); i < p.count; i += 4 * grid_size() * block_size()) {
            const Words4 words = p.variant == 8   ? load16(p.input + i)
                                 : p.variant == 9 ? load16_stream(p.input + i)
                                                  : load16_once(p.input + i);
            if (p.variant == 9)
                store16_stream(p.output + i, words);
            else
                store16(p.output + i, words);
        }
}

// Tickets in output; counters: 0 add, 1 min, 2 max, 4 (64 bits) add, 6 (64 bits) min.
MOERL_KERNEL(atomics, TestCall, 1024) {
    const uint32_t value = load(p.input + global_index());
    store(p.output + global_index(), atomic_add(p.counters, 1u));
    atomic_min(p.counters + 1, value);
    atomic_max(p.counters + 2, value);
    uint64_t* wide = reinterpret_cast<uint64_t*>(p.counters + 4);
    const uint64_t large = static_cast<uint64_t>(value) << 32 | value;
    atomic_add(wide, large);
    atomic_min(wide + 1, large);
}

// Per block: tickets in output; counters as above, 6 words a block: add, min, max, or, min of 64 bits.
MOERL_KERNEL(shared_atomics, TestCall, 1024) {
    MOERL_SHARED(uint32_t, narrow, 4);
    MOERL_SHARED(uint64_t, wide, 1);
    if (thread_index() == 0) {
        narrow[0] = 0;
        narrow[1] = 0xffffffffu;
        narrow[2] = narrow[3] = 0;
        wide[0] = ~0ull;
    }
    sync_block();
    const uint32_t value = load(p.input + global_index());
    store(p.output + global_index(), shared_atomic_add(narrow, 1u));
    shared_atomic_min(narrow + 1, value);
    shared_atomic_max(narrow + 2, value);
    shared_atomic_or(narrow + 3, value & value >> 1 & value >> 2 & value >> 3);
    shared_atomic_min(wide, static_cast<uint64_t>(value) << 32 | value);
    sync_block();
    if (thread_index() != 0) return;
    uint32_t* counters = p.counters + 6 * block_index();
    for (int i = 0; i < 4; i++) store(counters + i, narrow[i]);
    store(reinterpret_cast<uint64_t*>(counters + 4), wide[0]);
}

// ---- warp and block -----------------------------------------------------------------------------------------------------------

// Lanes of the mask `variant` call; lane i of the output: shuffle, xor, up, down of u32 (by `number`), then of f32 and of 64 bits.
MOERL_KERNEL(shuffles, TestCall, 32) {
    const uint32_t mask = p.variant;
    if ((mask >> lane_index() & 1) == 0) return;
    const int n = static_cast<int>(p.number);
    const uint32_t v = load(p.input + lane_index());
    uint32_t* row = p.output + 8 * lane_index();
    store(row, shuffle(v, n, mask));
    if (mask == FULL_WARP) {
        store(row + 1, shuffle_xor(v, n));
        store(row + 2, shuffle_up(v, n));
        store(row + 3, shuffle_down(v, n));
        store(row + 4, bits_of(shuffle_xor(f32_of(v), n)));
        store(reinterpret_cast<uint64_t*>(row + 6), shuffle_xor(static_cast<uint64_t>(v) << 32 | lane_index(), n));
        store(row + 5, static_cast<uint32_t>(static_cast<int>(shuffle(static_cast<double>(static_cast<int>(v)), n))));
    }
}

// Lanes of the mask `variant` call.
MOERL_KERNEL(votes, TestCall, 32) {
    const uint32_t mask = p.variant;
    if ((mask >> lane_index() & 1) == 0) return;
    const uint32_t v = load(p.input + lane_index());
    uint32_t* row = p.output + 8 * lane_index();
    store(row, ballot(v & 1, mask));
    store(row + 1, static_cast<uint32_t>(any(v & 1, mask)));
    store(row + 2, static_cast<uint32_t>(all(v & 1, mask)));
    store(row + 3, match_any(v, mask));
    store(row + 4, reduce_add_u32(v, mask));
    store(row + 5, reduce_min_u32(v, mask));
    store(row + 6, reduce_max_u32(v, mask));
    sync_warp(mask);
}

MOERL_KERNEL(block_votes, TestCall, 1024) {
    const bool bit = load(p.input + global_index()) != 0;
    uint32_t* row = p.output + 3 * global_index();
    store(row, static_cast<uint32_t>(sync_block_or(bit)));
    store(row + 1, static_cast<uint32_t>(sync_block_and(bit)));
    store(row + 2, sync_block_count(bit));
}

MOERL_KERNEL(warp_collectives, TestCall, 32) {
    const float x = f32_of(load(p.input + lane_index()));
    uint32_t* row = p.output + 4 * lane_index();
    store(row, bits_of(warp_sum(x)));
    store(row + 1, bits_of(warp_max_nan(x)));
    store(reinterpret_cast<uint64_t*>(row + 2), warp_min(static_cast<uint64_t>(load(p.input + lane_index())) << 20));
}

// Thread i reports a fault at row input[i] (none where it is all ones).
MOERL_KERNEL(publish, TestCall, 1024) {
    const uint32_t row = load(p.input + global_index());
    publish_fault(reinterpret_cast<uint64_t*>(p.counters), row == 0xffffffffu ? MOERL_NO_FAULT : fault_at(row, 7, MOERL_FAULT_TARGET));
}

// A whole softmax of rows of `count` floats: packs, block reductions through shared memory, several passes.
MOERL_DEVICE float block_reduce(float x, bool is_sum) {
    MOERL_SHARED(float, of_warp, 32);
    x = is_sum ? warp_sum(x) : warp_max_nan(x);
    if (lane_index() == 0) of_warp[warp_index()] = x;
    sync_block();
    x = lane_index() < block_size() / WARP ? of_warp[lane_index()] : is_sum ? 0.0f : -INFINITY;
    sync_block();  // the next call writes of_warp again
    return is_sum ? warp_sum(x) : warp_max_nan(x);
}
MOERL_KERNEL(softmax, TestCall, 1024) {
    const float* row = reinterpret_cast<const float*>(p.input) + block_index() * p.stride;
    float* out = reinterpret_cast<float*>(p.output) + block_index() * p.count;
    float largest = -INFINITY;
    for (uint64_t i = 4 * thread_index(); i < p.count; i += 4 * block_size()) {
        float x[4];
        unpack<float>(load16_stream(row + i), x);
        for (float value : x) largest = max_nan(largest, value);
    }
    largest = block_reduce(largest, false);
    float sum = 0.0f;
    for (uint64_t i = thread_index(); i < p.count; i += block_size()) sum += exp2_approx((load(row + i) - largest) * 1.44269504f);
    sum = block_reduce(sum, true);
    for (uint64_t i = thread_index(); i < p.count; i += block_size())
        store(out + i, exp2_approx((load(row + i) - largest) * 1.44269504f) / sum);
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------------

// Adds 1 to `count` words of every block's row through a ring of two stages in dynamic shared memory. `variant` bytes a copy.
template <int BYTES>
MOERL_DEVICE void pipeline(const TestCall& p) {
    MOERL_DYNAMIC_SHARED(uint32_t, ring);
    constexpr uint32_t WORDS = BYTES / 4;
    const uint32_t stage = block_size() * WORDS, stages = static_cast<uint32_t>(p.count) / stage;
    const uint32_t* row = p.input + block_index() * p.count;
    const auto fetch = [&](uint32_t s) {
        if (s < stages) copy_async<BYTES>(ring + s % 2 * stage + thread_index() * WORDS, row + s * stage + thread_index() * WORDS);
        copy_async_commit();  // an empty group past the end keeps the count of groups the same
    };
    fetch(0);
    for (uint32_t s = 0; s < stages; s++) {
        fetch(s + 1);
        copy_async_wait<1>();
        sync_block();  // what other threads copied is there
        for (uint32_t i = thread_index(); i < stage; i += block_size())
            store(p.output + block_index() * p.count + s * stage + i, ring[s % 2 * stage + (i + 1) % stage] + 1);
        sync_block();  // nobody reads the stage any more
    }
}
MOERL_KERNEL(pipeline_4, TestCall, 1024) { pipeline<4>(p); }
MOERL_KERNEL(pipeline_8, TestCall, 1024) { pipeline<8>(p); }
MOERL_KERNEL(pipeline_16, TestCall, 1024) { pipeline<16>(p); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------------

// Of each input word x (as f32, f16, bf16 or an integer): one number.
MOERL_KERNEL(unary, TestCall, 1024) {
    for (uint64_t i = global_index(); i < p.count; i += grid_size() * block_size()) {
        const uint32_t x = load(p.input + i);
        uint32_t y = 0;
        switch (p.variant) {
            case 0:
                y = bits_of(to_f32(f16{static_cast<uint16_t>(x)}));
                break;
            case 1:
                y = bits_of(to_f32(bf16{static_cast<uint16_t>(x)}));
                break;
            case 2:
                y = from_f32<f16>(f32_of(x)).bits;
                break;
            case 3:
                y = from_f32<bf16>(f32_of(x)).bits;
                break;
            case 4:
                y = bits_of(exp2_approx(f32_of(x)));
                break;
            case 5:
                y = static_cast<uint32_t>(popcount(x));
                break;
            case 6:
                y = static_cast<uint32_t>(leading_zeros(x));
                break;
            case 7:
                y = static_cast<uint32_t>(lowest_set(x));
                break;
        }
        store(p.output + i, y);
    }
}

// Of each pair of input words.
MOERL_KERNEL(binary, TestCall, 1024) {
    for (uint64_t i = global_index(); i < p.count; i += grid_size() * block_size()) {
        const uint32_t a = load(p.input + 2 * i), b = load(p.input + 2 * i + 1);
        uint32_t y = 0;
        switch (p.variant) {
            case 0:
                y = bits_of(max_nan(f32_of(a), f32_of(b)));
                break;
            case 1:
                y = max_nan_x2<f16>(a, b);
                break;
            case 2:
                y = max_nan_x2<bf16>(a, b);
                break;
            case 3:
                y = from_f32_x2<f16>(f32_of(a), f32_of(b));
                break;
            case 4:
                y = from_f32_x2<bf16>(f32_of(a), f32_of(b));
                break;
            case 5:
                y = bits_of(min_nan(f32_of(a), f32_of(b)));
                break;
            case 6:
                y = min_nan_x2<f16>(a, b);
                break;
            case 7:
                y = min_nan_x2<bf16>(a, b);
                break;
            case 8:
                y = at_least_x2<f16>(a, b);
                break;
            case 9:
                y = at_least_x2<bf16>(a, b);
                break;
            case 10:  // counters of 7 and 250
                y = count_above_x2<f16>(from_f32_x2<f16>(7.0f, 250.0f), a, b);
                break;
            case 11:
                y = count_above_x2<bf16>(from_f32_x2<bf16>(7.0f, 250.0f), a, b);
                break;
        }
        store(p.output + i, y);
    }
}

// Of each six input words, key and counter.
MOERL_KERNEL(philox, TestCall, 1024) {
    for (uint64_t i = global_index(); i < p.count; i += grid_size() * block_size()) {
        const uint32_t* const words = p.input + 6 * i;
        const uint64_t key = static_cast<uint64_t>(load(words + 1)) << 32 | load(words);
        const Words4 block = philox4x32_10(key, {{load(words + 2), load(words + 3), load(words + 4), load(words + 5)}});
        for (uint32_t w = 0; w < 4; w++) store(p.output + 4 * i + w, block.w[w]);
    }
}

// ---- the schedule ----------------------------------------------------------------------------------------------------------

// The how manieth each thread is to come by.
MOERL_KERNEL(order, TestCall, 1024) { store(p.output + global_index(), atomic_add(p.counters, 1u)); }

// Every block waits until `number` blocks have begun: comes to an end only if as many are in flight.
MOERL_KERNEL(rendezvous, TestCall, 1024) {
    if (thread_index() == 0) {
        atomic_add(p.counters, 1u);
        while (atomic_add(p.counters, 0u) < p.number) {
        }
    }
    sync_block();
    store(p.output + global_index(), block_index());
}

// The last block to finish adds up what all have left behind, in the order of the blocks.
MOERL_KERNEL(last_block, TestCall, 1024) {
    MOERL_SHARED(uint32_t, ticket, 1);
    if (thread_index() == 0) {
        store(p.output + 1 + block_index(), load(p.input + block_index()));
        if (p.variant == 0) fence_device();
        ticket[0] = atomic_add(p.counters, 1u);
        if (p.variant == 0) fence_device();
    }
    sync_block();
    if (ticket[0] + 1 != grid_size() || thread_index() != 0) return;
    float sum = 0.0f;
    for (uint32_t i = 0; i < grid_size(); i++) sum += f32_of(load(p.output + 1 + i));
    store(p.output, bits_of(sum));
}
