// Who runs next.
#pragma once

#include <stdint.h>

#include <vector>

#include "emulation.h"

namespace emulation {

// splitmix64 (Steele, Lea, Flood 2014): any seed is a good one, also 0.
class Random {
   public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return z ^ z >> 31;
    }
    // Of 0 .. n-1.
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
    template <class T>
    void shuffle(std::vector<T>& items) {
        for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[below(static_cast<uint32_t>(i))]);
    }

   private:
    uint64_t state_;
};

// The threads that can run, by block slot, and the choice among them.
//
// All kinds but the uniform one are strict: every block has an order of its threads, and the first that can run does, until it
// waits. A random strict order finds far more races than a uniform choice: there, no thread gets ahead of the others by more than a
// few steps, and a missing barrier between two quick phases goes unseen; here the first warp has left the second phase before the
// last one has entered the first. (Burckhardt et al., "A randomized scheduler with probabilistic guarantees of finding bugs", 2010.)
// A warp's threads are neighbours in the order, as they are on a GPU, where a warp may be far ahead of another one.
class Schedule {
   public:
    void begin(MoerlEmulationSchedule kind, uint32_t slots, uint32_t threads, Random& random);
    // All threads of the slot's new block can run; a new order is drawn.
    void begin_block(uint32_t slot);
    void ready(uint32_t slot, uint32_t thread);
    // As ready, but behind all others, and its block changes places with another one.
    void yield(uint32_t slot, uint32_t thread);
    // True now and then: a thread that could be interrupted here should be.
    bool interrupts();
    // Takes the next thread out. False if none can run.
    bool pick(uint32_t& slot, uint32_t& thread);

   private:
    struct Queue {
        uint32_t ready = 0;
        uint64_t rank = 0;               // of the block among the blocks in flight
        std::vector<uint32_t> waiting;   // uniform: the threads that can run
        std::vector<uint32_t> order;     // strict: thread at a position (NOBODY where a thread has yielded its position)
        std::vector<uint32_t> position;  // of a thread
        std::vector<uint64_t> ready_at;  // one bit per position
    };
    static constexpr uint32_t NOBODY = 0xffffffffu;

    void draw_order(Queue& queue);
    void close_gaps(Queue& queue);

    MoerlEmulationSchedule kind_ = MOERL_SCHEDULE_PRIORITIES;
    uint32_t threads_ = 0;
    uint32_t chances_ = 0;
    Random* random_ = nullptr;
    std::vector<Queue> queues_;
};

}  // namespace emulation
