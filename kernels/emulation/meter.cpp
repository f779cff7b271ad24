#include "meter.h"

#include <algorithm>

namespace emulation {

namespace {

constexpr uint64_t SECTOR = 32;
constexpr uint16_t MANY = 0xffff;

uint32_t next_occurrence(Occurrences& occurrences, Site site) {
    for (auto& [at, count] : occurrences)
        if (at.line == site.line && at.file == site.file) return count++;
    occurrences.push_back({site, 1});
    return 0;
}

bool is_in_a_row(const MoerlEmulationRange& range, uint64_t byte) {
    return range.stride_bytes == 0 || byte % range.stride_bytes < range.row_bytes;
}

// Of the bytes that belong to the buffer: touched once, more than once, and the most touches of any.
void sum_up(const MoerlEmulationRange& range, const std::vector<uint16_t>& touches, uint64_t& once, uint64_t& again, uint64_t& most) {
    once = again = most = 0;
    for (uint64_t byte = 0; byte < touches.size(); byte++) {
        if (!is_in_a_row(range, byte)) continue;
        once += touches[byte] == 1;
        again += touches[byte] > 1;
        most = std::max<uint64_t>(most, touches[byte]);
    }
}

}  // namespace

void Meter::begin(const MoerlEmulationLaunch& launch, uint32_t slots) {
    traffic_ = launch.traffic;
    buffers_.clear();
    instructions_.clear();
    if (!is_on()) return;
    instructions_.resize(slots);
    for (uint64_t i = 0; i < launch.range_count; i++) {
        Buffer& buffer = buffers_.emplace_back();
        buffer.range = launch.ranges[i];
        const uint64_t first = buffer.range.address / SECTOR, end = (buffer.range.address + buffer.range.bytes + SECTOR - 1) / SECTOR;
        for (Direction* direction : {&buffer.loads, &buffer.stores}) {
            direction->touches.resize(buffer.range.bytes);
            direction->touched.assign(slots, std::vector<uint32_t>(end - first));
        }
    }
}

void Meter::record(size_t range, uintptr_t offset, size_t bytes, Access access, Site site, uint32_t slot, uint32_t block, uint32_t warp,
                   Occurrences& occurrences) {
    Buffer& buffer = buffers_[range];
    if (access == Access::Atomic) {
        buffer.atomics++;
        return;
    }
    const bool is_load = access != Access::Store;
    Direction& direction = is_load ? buffer.loads : buffer.stores;
    direction.accesses++;
    direction.bytes += bytes;
    for (size_t i = 0; i < bytes; i++)
        if (direction.touches[offset + i] != MANY) direction.touches[offset + i]++;

    const Instruction instruction{site.file, site.line, warp, next_occurrence(occurrences, site), range, is_load};
    std::vector<uint64_t>& of_warp = instructions_[slot][instruction];
    const uint64_t address = buffer.range.address + offset, first = buffer.range.address / SECTOR;
    for (uint64_t sector = address / SECTOR; sector <= (address + bytes - 1) / SECTOR; sector++) {
        uint32_t& last = direction.touched[slot][sector - first];
        direction.sectors += last != block;
        last = block;
        if (std::find(of_warp.begin(), of_warp.end(), sector) == of_warp.end()) of_warp.push_back(sector);
    }
}

void Meter::end_block(uint32_t slot) {
    if (!is_on()) return;
    for (const auto& [instruction, sectors] : instructions_[slot]) {
        Buffer& buffer = buffers_[std::get<4>(instruction)];
        (std::get<5>(instruction) ? buffer.loads : buffer.stores).warp_sectors += sectors.size();
    }
    instructions_[slot].clear();
}

void Meter::end() {
    if (!is_on()) return;
    for (size_t i = 0; i < buffers_.size(); i++) {
        const Buffer& buffer = buffers_[i];
        MoerlEmulationTraffic& t = traffic_[i];
        t.loads = buffer.loads.accesses;
        t.stores = buffer.stores.accesses;
        t.atomics = buffer.atomics;
        t.load_bytes = buffer.loads.bytes;
        t.store_bytes = buffer.stores.bytes;
        sum_up(buffer.range, buffer.loads.touches, t.bytes_loaded_once, t.bytes_loaded_again, t.most_loads);
        sum_up(buffer.range, buffer.stores.touches, t.bytes_stored_once, t.bytes_stored_again, t.most_stores);
        t.load_sectors = buffer.loads.sectors;
        t.store_sectors = buffer.stores.sectors;
        t.warp_load_sectors = buffer.loads.warp_sectors;
        t.warp_store_sectors = buffer.stores.warp_sectors;
    }
    buffers_.clear();
    traffic_ = nullptr;
}

}  // namespace emulation
