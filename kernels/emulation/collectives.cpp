// Barriers and warp collectives: where threads wait for one another.
#include "machine.h"

namespace emulation {

namespace {

const char* name_of(Collective kind) {
    switch (kind) {
        case Collective::Sync:
            return "sync_warp";
        case Collective::Shuffle:
            return "shuffle";
        case Collective::ShuffleXor:
            return "shuffle_xor";
        case Collective::ShuffleUp:
            return "shuffle_up";
        case Collective::ShuffleDown:
            return "shuffle_down";
        case Collective::Ballot:
            return "ballot";
        case Collective::Any:
            return "any";
        case Collective::All:
            return "all";
        case Collective::MatchAny:
            return "match_any";
        case Collective::Add:
            return "reduce_add_u32";
        case Collective::Min:
            return "reduce_min_u32";
        case Collective::Max:
            return "reduce_max_u32";
    }
    return "?";
}

const char* name_of(Barrier kind) {
    switch (kind) {
        case Barrier::Plain:
            return "sync_block";
        case Barrier::Or:
            return "sync_block_or";
        case Barrier::And:
            return "sync_block_and";
        case Barrier::Count:
            return "sync_block_count";
    }
    return "?";
}

bool is_same(Site a, Site b) { return a.line == b.line && a.file == b.file; }

uint32_t lowest_lane(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

// Calls `act` with every lane of the mask.
template <class Act>
void for_lanes(uint32_t mask, Act act) {
    for (; mask != 0; mask &= mask - 1) act(lowest_lane(mask));
}

void open_barrier(Block& block) {
    const uint32_t threads = block.threads;
    for (uint32_t i = 0; i < threads; i++) {
        Fiber& fiber = *block.fibers[i];
        fiber.result = block.gathered;
        make_ready(fiber);
    }
    block.arrived = 0;
    block.turn ^= 1;
}

// What each lane gets, once all lanes of the mask have brought their values.
void distribute(const Gathering& g, Block& block, uint32_t warp) {
    uint64_t common = 0;
    switch (g.kind) {
        case Collective::Ballot:
        case Collective::Any:
        case Collective::All:
            for_lanes(g.mask, [&](uint32_t lane) { common |= (g.value[lane] & 1) << lane; });
            if (g.kind == Collective::All) common = common == g.mask;
            break;
        case Collective::Add:
            for_lanes(g.mask, [&](uint32_t lane) { common += g.value[lane]; });
            break;
        case Collective::Min:
            common = UINT32_MAX;
            for_lanes(g.mask, [&](uint32_t lane) { common = g.value[lane] < common ? g.value[lane] : common; });
            break;
        case Collective::Max:
            for_lanes(g.mask, [&](uint32_t lane) { common = g.value[lane] > common ? g.value[lane] : common; });
            break;
        default:
            break;
    }
    const auto result = [&](uint32_t lane) -> uint64_t {
        switch (g.kind) {
            case Collective::Shuffle:
            case Collective::ShuffleXor:
            case Collective::ShuffleUp:
            case Collective::ShuffleDown:
                return g.value[g.source[lane]];
            case Collective::MatchAny: {
                uint64_t same = 0;
                for_lanes(g.mask, [&](uint32_t other) { same |= static_cast<uint64_t>(g.value[other] == g.value[lane]) << other; });
                return same;
            }
            default:
                return common;
        }
    };
    for_lanes(g.mask, [&](uint32_t lane) {
        Fiber& fiber = *block.fibers[warp * LANES + lane];
        fiber.result = result(lane);
        make_ready(fiber);
    });
}

// The gathering that the running lane joins, opened if it is the first to come.
Gathering& join(Warp& warp, Collective kind, uint32_t mask, Site site) {
    for (Gathering& g : warp.open) {
        if (g.mask != mask) continue;
        if (g.kind != kind || !is_same(g.site, site))
            fail(site, "divergent warp collective: this lane calls %s, others of its mask %08x (arrived: %08x) wait in %s at %s",
                 name_of(kind), mask, g.arrived, name_of(g.kind), place(g.site).c_str());
        return g;
    }
    Gathering& g = warp.open.emplace_back();
    g.kind = kind;
    g.mask = mask;
    g.arrived = 0;
    g.site = site;
    return g;
}

void check_mask(const Fiber& fiber, Collective kind, uint32_t source, uint32_t mask, Site site) {
    const uint32_t lane = fiber.thread % LANES, first = fiber.thread - lane;
    const uint32_t lanes = fiber.threads - first < LANES ? (1u << (fiber.threads - first)) - 1 : UINT32_MAX;
    if ((mask >> lane & 1) == 0) fail(site, "%s: lane %u is not in its own mask %08x", name_of(kind), lane, mask);
    if ((mask & ~lanes) != 0) fail(site, "%s: mask %08x names lanes that the warp lacks (it has %08x)", name_of(kind), mask, lanes);
    const bool is_shuffle = kind >= Collective::Shuffle && kind <= Collective::ShuffleDown;
    if (is_shuffle && (mask >> source & 1) == 0) fail(site, "%s: reads lane %u, which is not in mask %08x", name_of(kind), source, mask);
}

// Where a thread is that others wait for.
std::string whereabouts(const Fiber& fiber) {
    const Block& block = *fiber.home;
    switch (fiber.state) {
        case State::Returned:
            return "has returned from the kernel";
        case State::AtBarrier:
            return format("waits in %s at %s", name_of(block.barrier), place(fiber.waits_at).c_str());
        case State::InWarp:
            return format("waits in a warp collective at %s", place(fiber.waits_at).c_str());
        case State::Ready:
            return "can run";
    }
    return "?";
}

}  // namespace

namespace {

void wait_at_barrier(Barrier kind, bool predicate, Site site) {
    const Quiet quiet;
    Fiber& fiber = running();
    Block& block = *fiber.home;
    if (block.returned > 0) {
        uint32_t gone = 0;
        while (block.fibers[gone]->state != State::Returned) gone++;
        fail(site, "divergent barrier: %s, but %u threads of the block have returned from the kernel (thread %u is the first)",
             name_of(kind), block.returned, gone);
    }
    if (block.arrived == 0) {
        block.barrier = kind;
        block.barrier_site = site;
        block.gathered = kind == Barrier::And;
    } else if (block.barrier != kind || !is_same(block.barrier_site, site)) {
        fail(site, "divergent barrier: this thread calls %s, %u others wait in %s at %s", name_of(kind), block.arrived,
             name_of(block.barrier), place(block.barrier_site).c_str());
    }
    switch (kind) {
        case Barrier::Plain:
            break;
        case Barrier::Or:
            block.gathered |= predicate;
            break;
        case Barrier::And:
            block.gathered &= predicate;
            break;
        case Barrier::Count:
            block.gathered += predicate;
            break;
    }
    begin_to_wait(State::AtBarrier, site);
    block.arrived++;
    if (block.arrived == block.threads) open_barrier(block);
    let_others_run();
}

void wait_in_warp(Collective kind, uint64_t value, uint32_t source, uint32_t mask, Site site) {
    const Quiet quiet;
    Fiber& fiber = running();
    Block& block = *fiber.home;
    check_mask(fiber, kind, source, mask, site);
    const uint32_t lane = fiber.thread % LANES, number = fiber.thread / LANES;
    Warp& warp = block.warps[number];
    Gathering& g = join(warp, kind, mask, site);
    g.value[lane] = value;
    g.source[lane] = static_cast<uint8_t>(source);
    g.arrived |= 1u << lane;
    begin_to_wait(State::InWarp, site);
    if (g.arrived == mask) {
        distribute(g, block, number);
        if (kind == Collective::Sync) warp.turn[lowest_lane(mask)] ^= 1;
        if (&g != &warp.open.back()) g = warp.open.back();
        warp.open.pop_back();
    }
    let_others_run();
}

}  // namespace

uint32_t sync_block(Barrier kind, bool predicate, Site site) {
    Block& block = *running().home;
    char* token = &block.tokens->block[block.turn];
    release(token);
    wait_at_barrier(kind, predicate, site);
    acquire(token);
    return static_cast<uint32_t>(running().result);
}

uint64_t collect(Collective kind, uint64_t value, uint32_t source, uint32_t mask, Site site) {
    // Only sync_warp orders memory; a kernel that relies on a shuffle for that has a race.
    if (kind != Collective::Sync || mask == 0) {
        wait_in_warp(kind, value, source, mask, site);
        return running().result;
    }
    Block& block = *running().home;
    const uint32_t number = running().thread / LANES, first = lowest_lane(mask);
    char* token = &block.tokens->warp[number][first][block.warps[number].turn[first]];
    release(token);
    wait_in_warp(kind, value, source, mask, site);
    acquire(token);
    return running().result;
}

void fence() {
    // One token for all fences: what came before any fence is ordered before what follows any later one. CUDA asks for an atomic
    // between the two as well; that a kernel forgets it goes unseen here, that it forgets a fence does not.
    release(&machine().fence_token);
    acquire(&machine().fence_token);
    may_switch();
}

std::string describe_deadlock(const Machine& m) {
    for (const auto& owner : m.blocks) {
        const Block& block = *owner;
        for (uint32_t w = 0; block.threads > 0 && w < block.warps.size(); w++) {
            for (const Gathering& g : block.warps[w].open) {
                const uint32_t missing = w * LANES + lowest_lane(g.mask & ~g.arrived);
                return format("block %u, warp %u, %s: deadlock in %s: mask %08x, arrived %08x; thread %u %s", block.index, w,
                              place(g.site).c_str(), name_of(g.kind), g.mask, g.arrived, missing,
                              whereabouts(*block.fibers[missing]).c_str());
            }
        }
        if (block.threads > 0 && block.arrived > 0) {
            uint32_t missing = 0;
            while (block.fibers[missing]->state == State::AtBarrier) missing++;
            return format("block %u, %s: deadlock in %s: %u of %u threads have arrived; thread %u %s", block.index,
                          place(block.barrier_site).c_str(), name_of(block.barrier), block.arrived, block.threads, missing,
                          whereabouts(*block.fibers[missing]).c_str());
        }
    }
    return "deadlock";
}

}  // namespace emulation
