// Launches: checks one, runs its blocks fiber by fiber, and reports the first fault.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "machine.h"

namespace emulation {

__thread Thread* self = nullptr;

namespace {

__thread Machine* current __attribute__((tls_model("initial-exec"))) = nullptr;

// Machines that no launch uses at the moment. Tests launch from many short-lived host threads, so that a machine belongs to nobody.
std::mutex idle_lock;
std::vector<std::unique_ptr<Machine>>& idle_machines() {
    static auto& machines = *new std::vector<std::unique_ptr<Machine>>;  // never destroyed: another thread may still launch at exit
    return machines;
}

std::unique_ptr<Machine> take_machine() {
    const std::lock_guard<std::mutex> guard(idle_lock);
    auto& idle = idle_machines();
    if (idle.empty()) return std::make_unique<Machine>();
    std::unique_ptr<Machine> machine = std::move(idle.back());
    idle.pop_back();
    return machine;
}

void give_back(std::unique_ptr<Machine> machine) {
    const std::lock_guard<std::mutex> guard(idle_lock);
    idle_machines().push_back(std::move(machine));
}

std::string vformat(const char* format, va_list arguments) {
    char text[640];
    vsnprintf(text, sizeof text, format, arguments);
    return text;
}

// Goes on with whoever can run, or with the host thread if nobody can or a block has come to its end.
void pass_on(Fiber& from, bool forever, bool to_host) {
    Machine& m = machine();
    uint32_t slot, thread;
    if (to_host || !m.schedule.pick(slot, thread)) {
        self = nullptr;
        switch_context(from.context, m.host, forever);
        return;
    }
    Fiber& next = *m.blocks[slot]->fibers[thread];
    if (&next == &from) return;
    self = &next;
    switch_context(from.context, next.context, forever);
}

// The kernel has come to its end for this thread.
void leave(Fiber& fiber) {
    const Quiet quiet;
    Block& block = *fiber.home;
    check_copies(fiber);
    if (block.arrived > 0)
        fail(block.barrier_site, "divergent barrier: thread %u returns from the kernel while %u threads wait at the barrier", fiber.thread,
             block.arrived);
    fiber.state = State::Returned;
    block.returned++;
}

// Where every fiber begins, for every block anew.
void run_thread() {
    arrived_by_switch();
    Machine& m = machine();
    acquire(&m.begin_token);
    m.kernel->body(m.launch->params);
    Fiber& fiber = running();
    leave(fiber);
    release(&m.end_token);
    pass_on(fiber, true, fiber.home->returned == fiber.home->threads);
    __builtin_trap();
}

Fiber* make_fiber() {
    char* stack = map_stack();
    if (stack == nullptr) return nullptr;
    Fiber* fiber = new Fiber;
    fiber->context.stack = stack;
    fiber->context.stack_bytes = STACK_BYTES;
#if defined(MOERL_EMULATION_TSAN)
    fiber->context.tsan = __tsan_create_fiber(0);
#endif
    return fiber;
}

// ThreadSanitizer takes whatever one fiber does for ordered, and a barrier spreads that to all fibers of a block. So that it sees races
// between blocks, every second block of a slot runs on a second set of fibers, and the threads of a block change places on their
// set from turn to turn (a set has at least a warp's fibers, for that to be of use in a block of one thread).
#if defined(MOERL_EMULATION_TSAN)
constexpr uint32_t SETS = 2;
#else
constexpr uint32_t SETS = 1;
#endif
uint32_t fibers_of_set(uint32_t threads) { return std::max(threads, LANES); }

Fiber* fiber_for(const Machine& m, const Block& block, uint32_t thread) {
    const uint32_t fibers = fibers_of_set(block.threads), set = block.slot * SETS + block.ordinal % SETS;
    return m.fibers[static_cast<size_t>(set) * fibers + (thread + block.ordinal / SETS) % fibers];
}

bool enlarge(Machine& m, uint32_t slots, uint32_t threads) {
    while (m.fibers.size() < static_cast<size_t>(slots) * SETS * fibers_of_set(threads)) {
        Fiber* fiber = make_fiber();
        if (fiber == nullptr) return false;
        m.fibers.push_back(fiber);
    }
    while (m.blocks.size() < slots) m.blocks.push_back(std::make_unique<Block>());
    return true;
}

void begin_block(Machine& m, uint32_t slot, uint32_t index, uint32_t ordinal) {
    const MoerlEmulationLaunch& launch = *m.launch;
    Block& block = *m.blocks[slot];
    block.slot = slot;
    block.index = index;
    block.ordinal = ordinal;
    block.threads = launch.threads;
    block.fibers.resize(launch.threads);
    block.returned = block.arrived = 0;
    block.warps.resize((launch.threads + LANES - 1) / LANES);
    for (Warp& warp : block.warps) warp.open.clear();
    block.tokens = std::make_unique<Tokens>();
    block.arena.begin_block(launch.shared_bytes);
    for (uint32_t i = 0; i < launch.threads; i++) {
        block.fibers[i] = fiber_for(m, block, i);
        Fiber& fiber = *block.fibers[i];
        static_cast<Thread&>(fiber) = {i, index, launch.threads, launch.blocks, {}, {}};
        fiber.home = &block;
        fiber.state = State::Ready;
        fiber.copies.clear();
        fiber.copy_group = 0;
        fiber.occurrences.clear();
        fiber.context.begin(run_thread, i);
    }
    release(&m.begin_token);
    m.schedule.begin_block(slot);
}

// Empty, or what is wrong with the block's shared memory.
std::string end_block(Machine& m, Block& block) {
    m.meter.end_block(block.slot);
    const std::string damage = block.arena.damage();
    return damage.empty() ? "" : format("block %u: %s", block.index, damage.c_str());
}

std::vector<uint32_t> block_order(Machine& m) {
    std::vector<uint32_t> order(m.launch->blocks);
    std::iota(order.begin(), order.end(), 0u);
    if (m.launch->schedule == MOERL_SCHEDULE_REVERSE)
        std::reverse(order.begin(), order.end());
    else if (m.launch->schedule != MOERL_SCHEDULE_IN_ORDER)
        m.random.shuffle(order);
    return order;
}

void run_blocks(Machine& m, uint32_t slots) {
    const std::vector<uint32_t> order = block_order(m);
    uint32_t begun = 0, live = 0;
    const auto begin_next = [&](uint32_t slot) {
        begin_block(m, slot, order[begun], begun);
        begun++;
        live++;
    };
    for (uint32_t slot = 0; slot < slots; slot++) begin_next(slot);
    while (live > 0) {
        uint32_t slot, thread;
        if (!m.schedule.pick(slot, thread)) {
            m.fault = describe_deadlock(m);
            return;
        }
        Fiber& fiber = *m.blocks[slot]->fibers[thread];
        self = &fiber;
        switch_context(m.host, fiber.context, false);
        if (!m.fault.empty()) return;
        for (slot = 0; slot < slots; slot++) {
            Block& block = *m.blocks[slot];
            if (block.threads == 0 || block.returned < block.threads) continue;
            m.fault = end_block(m, block);
            if (!m.fault.empty()) return;
            live--;
            block.threads = block.returned = 0;
            if (begun < order.size()) begin_next(slot);
        }
    }
}

const MoerlEmulationKernel* find(const MoerlEmulationTable& table, const char* name) {
    for (uint64_t i = 0; i < table.count; i++)
        if (strcmp(table.kernels[i]->name, name) == 0) return table.kernels[i];
    return nullptr;
}

// What CUDA would refuse to launch. Empty if nothing.
std::string refusal(const MoerlEmulationLaunch& launch, const MoerlEmulationKernel* kernel) {
    if (kernel == nullptr) return "there is no such kernel";
    if (launch.params_bytes != kernel->params_bytes)
        return format("takes %zu bytes of parameters, got %zu", static_cast<size_t>(kernel->params_bytes),
                      static_cast<size_t>(launch.params_bytes));
    if (launch.blocks == 0 || launch.blocks > 0x7fffffffu) return format("a grid of %u blocks; allowed are 1 to 2147483647", launch.blocks);
    if (launch.threads == 0 || launch.threads > std::min(kernel->max_threads, MAX_THREADS))
        return format("%u threads a block; it is declared for 1 to %u", launch.threads, kernel->max_threads);
    if (launch.shared_bytes > SHARED_LIMIT)
        return format("%u bytes of shared memory; a block has at most %u", launch.shared_bytes, SHARED_LIMIT);
    return "";
}

int run(const MoerlEmulationLaunch& launch, std::string& message) {
    const MoerlEmulationKernel* kernel = find(*launch.table, launch.kernel);
    message = refusal(launch, kernel);
    if (!message.empty()) return MOERL_EMULATION_REFUSED;
    const uint32_t slots = std::min(std::max(launch.blocks_in_flight, 1u), launch.blocks);

    std::unique_ptr<Machine> m = take_machine();
    if (!enlarge(*m, slots, launch.threads)) {
        message = format("no memory for %u stacks of %zu bytes", slots * launch.threads, STACK_BYTES);
        return MOERL_EMULATION_REFUSED;
    }
    m->launch = &launch;
    m->kernel = kernel;
    m->random = Random(launch.seed);
    m->schedule.begin(static_cast<MoerlEmulationSchedule>(launch.schedule), slots, launch.threads, m->random);
    m->meter.begin(launch, slots);
    m->host.adopt_caller();
    for (auto& block : m->blocks) block->threads = block->returned = 0;
    current = m.get();
    run_blocks(*m, slots);
    if (m->fault.empty())
        m->meter.end();
    else
        m->clear_abandoned();
    acquire(&m->end_token);
    current = nullptr;
    message.swap(m->fault);
    m->fault.clear();
    give_back(std::move(m));
    return message.empty() ? MOERL_EMULATION_DONE : MOERL_EMULATION_FAULT;
}

}  // namespace

Machine::~Machine() {
    for (Fiber* fiber : fibers) {
#if defined(MOERL_EMULATION_TSAN)
        __tsan_destroy_fiber(fiber->context.tsan);
#endif
        unmap_stack(fiber->context.stack);
        delete fiber;
    }
}

void Machine::clear_abandoned() {
    for (Fiber* fiber : fibers) {
        unpoison(fiber->context.stack, STACK_BYTES);  // frames that nobody will leave
#if defined(MOERL_EMULATION_TSAN)
        // What each fiber has done comes before what the host thread does next, freeing its buffers for one. ThreadSanitizer's own
        // record of the fiber's calls keeps the abandoned ones, as outer frames of later reports: its fibers cost half a
        // millisecond each, too much to make them anew.
        __tsan_switch_to_fiber(fiber->context.tsan, 1);
        if (fiber->is_quiet) end_quiet();
        fiber->is_quiet = false;
        release(&end_token);
        __tsan_switch_to_fiber(host.tsan, 1);
#endif
    }
}

Machine& machine() { return *current; }

void make_ready(Fiber& fiber) {
    fiber.state = State::Ready;
    machine().schedule.ready(fiber.home->slot, fiber.thread);
}

void begin_to_wait(State state, Site site) {
    Fiber& fiber = running();
    fiber.state = state;
    fiber.waits_at = site;
}

void let_others_run() { pass_on(running(), false, false); }

void may_switch() {
    const Quiet quiet;
    Schedule& schedule = machine().schedule;
    if (!schedule.interrupts()) return;
    Fiber& fiber = running();
    schedule.yield(fiber.home->slot, fiber.thread);
    let_others_run();
}

std::string format(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = vformat(format, arguments);
    va_end(arguments);
    return text;
}

std::string place(Site site) {
    const char* slash = strrchr(site.file, '/');
    return format("%s:%d", slash == nullptr ? site.file : slash + 1, site.line);
}

void fail(Site site, const char* format, ...) {
    Fiber& fiber = running();
    va_list arguments;
    va_start(arguments, format);
    machine().fault =
        emulation::format("block %u, thread %u, %s: ", fiber.block, fiber.thread, place(site).c_str()) + vformat(format, arguments);
    va_end(arguments);
    pass_on(fiber, true, true);
    __builtin_trap();
}

int launch(const MoerlEmulationLaunch& launch, char* message, size_t message_bytes) {
    std::string text;
    const int result = run(launch, text);
    snprintf(message, message_bytes, "%s%s%s", launch.kernel, text.empty() ? "" : ": ", text.c_str());
    return result;
}

}  // namespace emulation
