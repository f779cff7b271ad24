// Counts what a launch loads and stores: per byte of each buffer, and in 32-byte sectors.
//
// Not seen: what L2 holds, how DRAM rounds a fetch up, bank conflicts. A sector that two blocks read is counted for each.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulation {

// How often a thread has come by each access of the source. The n-th time that the lanes of a warp come by an access stands for one
// instruction of the warp: exact where they take the same branches, an estimate elsewhere.
using Occurrences = std::vector<std::pair<Site, uint32_t>>;

class Meter {
   public:
    void begin(const MoerlEmulationLaunch& launch, uint32_t slots);
    bool is_on() const { return traffic_ != nullptr; }
    // `offset` bytes into range number `range`. `block` counts up from 1 over the launch.
    void record(size_t range, uintptr_t offset, size_t bytes, Access access, Site site, uint32_t slot, uint32_t block, uint32_t warp,
                Occurrences& occurrences);
    void end_block(uint32_t slot);
    void end();

   private:
    struct Direction {
        std::vector<uint16_t> touches;               // of each byte
        std::vector<std::vector<uint32_t>> touched;  // by slot, of each sector: the last block that did
        uint64_t accesses = 0, bytes = 0, sectors = 0, warp_sectors = 0;
    };
    struct Buffer {
        MoerlEmulationRange range;
        Direction loads, stores;
        uint64_t atomics = 0;
    };
    using Instruction = std::tuple<const char*, int, uint32_t, uint32_t, size_t, bool>;  // file, line, warp, occurrence, range, is a load

    std::vector<Buffer> buffers_;
    std::vector<std::map<Instruction, std::vector<uint64_t>>> instructions_;  // by slot: the sectors of each
    MoerlEmulationTraffic* traffic_ = nullptr;
};

}  // namespace emulation
