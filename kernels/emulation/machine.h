// The state of a launch: fibers, blocks, the schedule, and the machine that holds them all. For the runtime's own files.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "meter.h"
#include "runtime.h"
#include "schedule.h"

namespace emulation {

constexpr uint32_t MAX_THREADS = 1024;
constexpr uint32_t LANES = 32;
// Shared memory of a block: what sm_90 and sm_100 have to give, and the part of it that may be declared statically.
constexpr uint32_t SHARED_LIMIT = 227 << 10;
constexpr uint32_t STATIC_SHARED_LIMIT = 48 << 10;

struct Block;

// An asynchronous copy that its thread has not waited for.
struct Copy {
    char* to;
    const char* from;
    uint32_t bytes;
    uint32_t group;
    bool landed;
    Site site;
};

enum class State : uint8_t { Ready, AtBarrier, InWarp, Returned };

// One CUDA thread.
struct Fiber : Thread {
    Context context;
    Block* home = nullptr;
    State state = State::Ready;
    Site waits_at{};
    uint64_t result = 0;  // of the collective that it waits in
    std::vector<Copy> copies;
    uint32_t copy_group = 0;  // the group that is open
    bool is_quiet = false;
    Occurrences occurrences;
};

// A warp collective that some lanes have not reached yet.
struct Gathering {
    Collective kind;
    uint32_t mask;
    uint32_t arrived;
    Site site;
    uint64_t value[LANES];
    uint8_t source[LANES];
};

struct Warp {
    std::vector<Gathering> open;
    uint8_t turn[LANES] = {};  // into Tokens::warp
};

// What ThreadSanitizer is told to order by, made anew for every block: a token that served two blocks would order one after the other.
// Two of each, used in turn: a thread that runs ahead to the next barrier must not lend its order to one that has yet to leave this one.
struct Tokens {
    char block[2];
    char warp[MAX_THREADS / LANES][LANES][2];  // of a mask's lowest lane
};

struct SharedArray {
    const void* key;
    const char* name;
    char* start;
    size_t bytes;
};

// The shared memory of one block: every array between two red zones.
class Arena {
   public:
    Arena();
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void begin_block(size_t dynamic_bytes);
    // The array of a declaration; null where shared memory is exhausted, with the reason in `why`.
    void* array(const void* key, const char* name, size_t bytes, size_t alignment, std::string& why);
    void* dynamic() const { return arrays_[0].start; }
    bool contains(const void* p, size_t bytes) const;
    // The first byte that was written between the arrays, in words; empty if there is none.
    std::string damage() const;

   private:
    char* put(const void* key, const char* name, size_t bytes, size_t alignment);

    char* memory_;
    size_t used_ = 0;  // of memory_, with red zones
    size_t static_bytes_ = 0;
    std::vector<SharedArray> arrays_;  // the dynamic one first
};

// One CUDA block, in a slot of the machine.
struct Block {
    uint32_t slot = 0;
    uint32_t index = 0;
    uint32_t ordinal = 0;        // the how manieth of the launch
    std::vector<Fiber*> fibers;  // by thread
    uint32_t threads = 0;
    uint32_t returned = 0;
    uint32_t arrived = 0;  // at the barrier
    Barrier barrier = Barrier::Plain;
    Site barrier_site{};
    uint32_t gathered = 0;  // the predicates so far
    uint8_t turn = 0;       // into Tokens::block
    std::unique_ptr<Tokens> tokens;
    std::vector<Warp> warps;
    Arena arena;
};

// Everything that one launch needs. Kept for the next launch, because stacks and TSan's fibers are dear to make.
struct Machine {
    const MoerlEmulationLaunch* launch = nullptr;
    const MoerlEmulationKernel* kernel = nullptr;
    Random random{0};
    Schedule schedule;
    std::vector<std::unique_ptr<Block>> blocks;  // by slot
    std::vector<Fiber*> fibers;                  // by slot, set (see fiber_for) and place
    Meter meter;
    Context host;
    std::string fault;
    char begin_token = 0, end_token = 0, fence_token = 0;

    Machine() = default;
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    // After a fault: readies the fibers that it stopped for the next launch.
    void clear_abandoned();
};

// moerl_emulation_launch, by this copy of the runtime.
int launch(const MoerlEmulationLaunch& launch, char* message, size_t message_bytes);

// The machine and the fiber that run on this host thread.
Machine& machine();
inline Fiber& running() { return *static_cast<Fiber*>(self); }

// Lives in every entry of the runtime from a kernel. The runtime is not instrumented, but the memcpy, new and delete that it calls are
// intercepted by ThreadSanitizer, and fibers share its state with no order that ThreadSanitizer could know of. A switch to another
// fiber leaves that one's own quiet as it is.
class Quiet {
   public:
    Quiet() {
        running().is_quiet = true;
        begin_quiet();
    }
    ~Quiet() {
        end_quiet();
        running().is_quiet = false;
    }
    Quiet(const Quiet&) = delete;
    Quiet& operator=(const Quiet&) = delete;
};

// Ends the launch. The fiber's stack is abandoned as it is: kernels own nothing that would have to be destroyed. Inside a Quiet.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));
// To wait: begin_to_wait, then make_ready if that very arrival completes what all wait for, then let_others_run, which returns once
// someone has made the fiber ready and its turn has come.
void begin_to_wait(State state, Site site);
void make_ready(Fiber& fiber);
void let_others_run();

std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));
// `file.cu:17`
std::string place(Site site);
// In words, for when nobody can run: who waits where, and for whom.
std::string describe_deadlock(const Machine& machine);
// Reports a copy that the returning fiber has not waited for.
void check_copies(const Fiber& fiber);

}  // namespace emulation
