#include "schedule.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace emulation {

namespace {

constexpr uint32_t LANES = 32;

void set_bit(std::vector<uint64_t>& bits, uint32_t i) { bits[i / 64] |= 1ull << (i % 64); }
void clear_bit(std::vector<uint64_t>& bits, uint32_t i) { bits[i / 64] &= ~(1ull << (i % 64)); }

}  // namespace

void Schedule::begin(MoerlEmulationSchedule kind, uint32_t slots, uint32_t threads, Random& random) {
    kind_ = kind;
    threads_ = threads;
    chances_ = 0;
    random_ = &random;
    queues_.resize(slots);
    for (Queue& queue : queues_) queue.ready = 0;
}

void Schedule::begin_block(uint32_t slot) {
    Queue& queue = queues_[slot];
    queue.ready = threads_;
    switch (kind_) {
        case MOERL_SCHEDULE_IN_ORDER:
            queue.rank = queues_.size() - slot;
            break;
        case MOERL_SCHEDULE_REVERSE:
            queue.rank = slot;
            break;
        default:
            queue.rank = random_->next();
    }
    if (kind_ == MOERL_SCHEDULE_RANDOM) {
        queue.waiting.resize(threads_);
        std::iota(queue.waiting.begin(), queue.waiting.end(), 0u);
        return;
    }
    draw_order(queue);
    queue.position.resize(threads_);
    // Room for as many yields as there are threads before the positions are counted anew.
    queue.ready_at.assign((2 * threads_ + 63) / 64, 0);
    for (uint32_t i = 0; i < threads_; i++) {
        queue.position[queue.order[i]] = i;
        set_bit(queue.ready_at, i);
    }
}

void Schedule::draw_order(Queue& queue) {
    queue.order.resize(threads_);
    std::iota(queue.order.begin(), queue.order.end(), 0u);
    if (kind_ == MOERL_SCHEDULE_REVERSE) std::reverse(queue.order.begin(), queue.order.end());
    if (kind_ != MOERL_SCHEDULE_PRIORITIES) return;
    std::vector<uint64_t> warp_priority((threads_ + LANES - 1) / LANES), priority(threads_);
    for (uint64_t& p : warp_priority) p = random_->next() >> 32 << 32;
    for (uint32_t t = 0; t < threads_; t++) priority[t] = warp_priority[t / LANES] | random_->next() >> 32;
    std::sort(queue.order.begin(), queue.order.end(), [&](uint32_t a, uint32_t b) { return priority[a] > priority[b]; });
}

void Schedule::ready(uint32_t slot, uint32_t thread) {
    Queue& queue = queues_[slot];
    queue.ready++;
    if (kind_ == MOERL_SCHEDULE_RANDOM)
        queue.waiting.push_back(thread);
    else
        set_bit(queue.ready_at, queue.position[thread]);
}

void Schedule::yield(uint32_t slot, uint32_t thread) {
    Queue& queue = queues_[slot];
    if (kind_ != MOERL_SCHEDULE_RANDOM) {
        if (queue.order.size() == queue.ready_at.size() * 64) close_gaps(queue);
        queue.order[queue.position[thread]] = NOBODY;
        queue.position[thread] = static_cast<uint32_t>(queue.order.size());
        queue.order.push_back(thread);
    }
    if (kind_ == MOERL_SCHEDULE_PRIORITIES) {
        queue.rank = random_->next();
    } else {
        // Behind every other block: whoever waits for another block's atomic must let that block run.
        uint64_t lowest = queue.rank;
        for (const Queue& other : queues_) lowest = std::min(lowest, other.rank);
        if (lowest == 0)
            for (Queue& other : queues_) other.rank += queues_.size();
        queue.rank = (lowest == 0 ? queues_.size() : lowest) - 1;
    }
    ready(slot, thread);
}

void Schedule::close_gaps(Queue& queue) {
    std::vector<uint32_t> order;
    std::vector<uint64_t> ready_at(queue.ready_at.size(), 0);
    for (uint32_t i = 0; i < queue.order.size(); i++) {
        const uint32_t thread = queue.order[i];
        if (thread == NOBODY) continue;
        if (queue.ready_at[i / 64] >> (i % 64) & 1) set_bit(ready_at, static_cast<uint32_t>(order.size()));
        queue.position[thread] = static_cast<uint32_t>(order.size());
        order.push_back(thread);
    }
    queue.order.swap(order);
    queue.ready_at.swap(ready_at);
}

bool Schedule::interrupts() {
    switch (kind_) {
        case MOERL_SCHEDULE_RANDOM:
        case MOERL_SCHEDULE_PRIORITIES:
            return random_->below(8) == 0;
        // Seldom, but not never: a loop that waits for another thread's atomic must come to an end.
        default:
            return ++chances_ % 1024 == 0;
    }
}

bool Schedule::pick(uint32_t& slot, uint32_t& thread) {
    Queue* best = nullptr;
    uint32_t candidates = 0;
    for (Queue& queue : queues_) {
        if (queue.ready == 0) continue;
        candidates++;
        const bool better = kind_ == MOERL_SCHEDULE_RANDOM ? candidates == 1 || random_->below(candidates) == 0
                                                           : best == nullptr || queue.rank > best->rank;
        if (better) best = &queue;
    }
    if (best == nullptr) return false;
    slot = static_cast<uint32_t>(best - queues_.data());
    best->ready--;
    if (kind_ == MOERL_SCHEDULE_RANDOM) {
        uint32_t& chosen = best->waiting[random_->below(static_cast<uint32_t>(best->waiting.size()))];
        thread = chosen;
        chosen = best->waiting.back();
        best->waiting.pop_back();
        return true;
    }
    uint32_t word = 0;
    while (best->ready_at[word] == 0) word++;
    const uint32_t first = word * 64 + static_cast<uint32_t>(__builtin_ctzll(best->ready_at[word]));
    clear_bit(best->ready_at, first);
    thread = best->order[first];
    return true;
}

}  // namespace emulation
