// Global memory: which accesses are allowed. Shared memory: the arena. Asynchronous copies from one to the other.
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "machine.h"

namespace emulation {

namespace {

// ---- global memory --------------------------------------------------------------------------------------------------------

const char* verb(Access access) {
    switch (access) {
        case Access::Load:
            return "load";
        case Access::Store:
            return "store";
        case Access::Atomic:
            return "atomic";
        case Access::AsyncCopy:
            return "asynchronous copy";
    }
    return "?";
}

bool writes(Access access) { return access == Access::Store || access == Access::Atomic; }

bool has_gaps(const MoerlEmulationRange& range) { return range.stride_bytes > range.row_bytes && range.bytes > range.row_bytes; }

// `offset` is wrapped: huge for an address before the range.
bool covers(const MoerlEmulationRange& range, uint64_t offset, size_t bytes) {
    if (offset >= range.bytes || bytes > range.bytes - offset) return false;
    return !has_gaps(range) || offset % range.stride_bytes + bytes <= range.row_bytes;
}

// The range whose nearest byte is the nearest: the one that a wrong address most likely was meant for.
const MoerlEmulationRange* nearest(const MoerlEmulationLaunch& launch, uint64_t address) {
    const MoerlEmulationRange* best = nullptr;
    uint64_t smallest = UINT64_MAX;
    for (uint64_t i = 0; i < launch.range_count; i++) {
        const MoerlEmulationRange& r = launch.ranges[i];
        const uint64_t distance = address < r.address             ? r.address - address
                                  : address - r.address < r.bytes ? 0
                                                                  : address - r.address - r.bytes + 1;
        if (distance >= smallest) continue;
        smallest = distance;
        best = &r;
    }
    return best;
}

std::string where(const MoerlEmulationRange& range, uint64_t address) {
    if (address < range.address)
        return format("%llu bytes before `%s`", static_cast<unsigned long long>(range.address - address), range.name);
    return format("byte %llu of `%s`, which has %llu", static_cast<unsigned long long>(address - range.address), range.name,
                  static_cast<unsigned long long>(range.bytes));
}

[[noreturn]] void refuse(uintptr_t address, size_t bytes, Access access, Site site) {
    const MoerlEmulationLaunch& launch = *machine().launch;
    const std::string what = format("%s of %zu bytes", verb(access), bytes);
    // Where a pointer did not come from a parameter, taking the alias off leaves nonsense.
    if (address + MOERL_EMULATION_ALIAS < 1 << 16) fail(site, "%s through a null pointer", what.c_str());
    if (address > UINT64_MAX - MOERL_EMULATION_ALIAS)
        fail(site, "%s through a pointer that is not a global one (shared or local memory is followed directly)", what.c_str());
    for (uint64_t i = 0; i < launch.range_count; i++) {
        const MoerlEmulationRange& range = launch.ranges[i];
        const uint64_t offset = address - range.address;
        if (covers(range, offset, bytes)) fail(site, "%s to a buffer that is for reading: %s", what.c_str(), where(range, address).c_str());
        if (offset < range.bytes && has_gaps(range) && (range.writable || !writes(access)))
            fail(site, "%s in the gap between two rows: %s, in rows of %llu every %llu", what.c_str(), where(range, address).c_str(),
                 static_cast<unsigned long long>(range.row_bytes), static_cast<unsigned long long>(range.stride_bytes));
    }
    const MoerlEmulationRange* range = nearest(launch, address);
    fail(site, "%s out of bounds: %s", what.c_str(), range == nullptr ? "the launch has no buffers" : where(*range, address).c_str());
}

// The number of the range that allows the access. A load takes the first that has the bytes for reading alone, else the first that has
// them; so a buffer updated in place counts as one that is read and one that is written.
bool find_range(const MoerlEmulationLaunch& launch, uintptr_t address, size_t bytes, Access access, size_t& found) {
    bool any = false;
    for (uint64_t i = 0; i < launch.range_count; i++) {
        const MoerlEmulationRange& range = launch.ranges[i];
        if (!covers(range, address - range.address, bytes)) continue;
        const bool wanted = writes(access) == (range.writable != 0);
        if (wanted || (!any && !writes(access))) {
            found = i;
            any = true;
        }
        if (wanted) return true;
    }
    return any;
}

Window window_of(const MoerlEmulationRange& range, uintptr_t address) {
    if (!has_gaps(range)) return {range.address, range.bytes};
    const uint64_t offset = address - range.address;
    return {range.address + offset - offset % range.stride_bytes, range.row_bytes};
}

}  // namespace

namespace {

void reach_quietly(uintptr_t address, size_t bytes, size_t alignment, Access access, Site site) {
    Machine& m = machine();
    Fiber& fiber = running();
    size_t number = 0;
    if (!find_range(*m.launch, address, bytes, access, number)) refuse(address, bytes, access, site);
    const MoerlEmulationRange& range = m.launch->ranges[number];
    if (address % alignment != 0)
        fail(site, "misaligned %s of %zu bytes: %s, at an address that is not a multiple of %zu", verb(access), bytes,
             where(range, address).c_str(), alignment);
    if (m.meter.is_on()) {
        m.meter.record(number, address - range.address, bytes, access, site, fiber.home->slot, fiber.home->ordinal + 1,
                       fiber.thread / LANES, fiber.occurrences);
        return;
    }
    (writes(access) ? fiber.stores : fiber.loads) = window_of(range, address);
}

}  // namespace

void reach(uintptr_t address, size_t bytes, size_t alignment, Access access, Site site) {
    const Quiet quiet;
    reach_quietly(address, bytes, alignment, access, site);
}

// ---- shared memory --------------------------------------------------------------------------------------------------------

namespace {

constexpr size_t RED_ZONE = 32;
constexpr unsigned char RED = 0xc3;
constexpr unsigned char POISON = 0xff;  // NaN in every float format, -1 in every integer: what nobody has written must not look right
constexpr size_t ARENA_BYTES = 512 << 10;
constexpr size_t DYNAMIC_ALIGNMENT = 128;

void* map_arena(void* at) {
    return mmap(at, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at == nullptr ? 0 : MAP_FIXED), -1,
                0);
}

}  // namespace

Arena::Arena() : memory_(static_cast<char*>(map_arena(nullptr))) {}

Arena::~Arena() {
    unpoison(memory_, ARENA_BYTES);
    munmap(memory_, ARENA_BYTES);
}

void Arena::begin_block(size_t dynamic_bytes) {
#if defined(MOERL_EMULATION_TSAN)
    // Fresh memory, in ThreadSanitizer's eyes too: two blocks that come to lie in the same place do not race.
    map_arena(memory_);
#endif
    poison(memory_, ARENA_BYTES);
    used_ = static_bytes_ = 0;
    arrays_.clear();
    put(nullptr, "dynamic shared memory", dynamic_bytes, DYNAMIC_ALIGNMENT);
}

void* Arena::array(const void* key, const char* name, size_t bytes, size_t alignment, std::string& why) {
    for (const SharedArray& array : arrays_)
        if (array.key == key) return array.start;
    static_bytes_ += bytes;
    const size_t total = static_bytes_ + arrays_[0].bytes;
    if (static_bytes_ > STATIC_SHARED_LIMIT || total > SHARED_LIMIT) {
        why = format("too much shared memory: with `%s`, %zu bytes are declared (at most %u) and %zu are used in all (at most %u)", name,
                     static_bytes_, STATIC_SHARED_LIMIT, total, SHARED_LIMIT);
        return nullptr;
    }
    return put(key, name, bytes, alignment);
}

// An array lies at a multiple of its element's alignment and of nothing larger (but never across one of ASan's 8-byte granules): CUDA
// promises no more, and a 16-byte access to an array of floats is to be found out.
char* Arena::put(const void* key, const char* name, size_t bytes, size_t alignment) {
    const size_t step = std::max<size_t>(alignment, 8);
    size_t offset = used_ + RED_ZONE;
    offset = (offset + step - 1) / step * step;
    if (offset % (2 * step) == 0) offset += step;
    char* start = memory_ + offset;
    fill(memory_ + used_, RED, offset - used_);
    fill(start, POISON, bytes);
    used_ = offset + bytes;
    fill(memory_ + used_, RED, RED_ZONE);
    unpoison(start, bytes);
    arrays_.push_back({key, name, start, bytes});
    return start;
}

bool Arena::contains(const void* p, size_t bytes) const {
    const char* first = static_cast<const char*>(p);
    return std::any_of(arrays_.begin(), arrays_.end(), [&](const SharedArray& array) {
        const size_t offset = static_cast<size_t>(first - array.start);
        return offset < array.bytes && bytes <= array.bytes - offset;
    });
}

std::string Arena::damage() const {
    const char* red = memory_;
    for (size_t i = 0; i <= arrays_.size(); i++) {
        const char* end = i < arrays_.size() ? arrays_[i].start : memory_ + used_ + RED_ZONE;
        for (; red < end; red++) {
            if (static_cast<unsigned char>(*red) == RED) continue;
            const bool after =
                i > 0 && (i == arrays_.size() || red - (arrays_[i - 1].start + arrays_[i - 1].bytes) < arrays_[i].start - red);
            const SharedArray& array = arrays_[after ? i - 1 : i];
            return format("a thread stored out of bounds of shared memory: byte %td of `%s`, which has %zu", red - array.start, array.name,
                          array.bytes);
        }
        if (i < arrays_.size()) red = arrays_[i].start + arrays_[i].bytes;
    }
    return "";
}

void* shared_array(const void* key, const char* name, size_t bytes, size_t alignment, Site site) {
    const Quiet quiet;
    std::string why;
    void* start = running().home->arena.array(key, name, bytes, alignment, why);
    if (start == nullptr) fail(site, "%s", why.c_str());
    return start;
}

void* dynamic_shared() { return running().home->arena.dynamic(); }

// ---- asynchronous copies --------------------------------------------------------------------------------------------------
//
// Hardware may land a copy at any moment from its issue to the wait that covers it. Each copy here takes one of the two ends, drawn at
// random: landing late, a missing wait reads what was there before; landing at once, a stage that is filled again while others still
// read it changes under their eyes. To ThreadSanitizer every copy writes at both ends.

namespace {

void land(Copy& copy) {
    memcpy(copy.to, copy.from, copy.bytes);
    copy.landed = true;
}

}  // namespace

void copy_async(void* shared, uintptr_t global, size_t bytes, Site site) {
    const Quiet quiet;
    Fiber& fiber = running();
    if (!fiber.home->arena.contains(shared, bytes))
        fail(site, "asynchronous copy of %zu bytes to a place that is not inside a shared array", bytes);
    if (reinterpret_cast<uintptr_t>(shared) % bytes != 0)
        fail(site, "misaligned asynchronous copy of %zu bytes: the place in shared memory is not a multiple of %zu", bytes, bytes);
    reach_quietly(global, bytes, bytes, Access::AsyncCopy, site);
    Copy copy{
        static_cast<char*>(shared), reinterpret_cast<const char*>(global), static_cast<uint32_t>(bytes), fiber.copy_group, false, site};
    about_to_read(copy.from, bytes, __builtin_return_address(0));
    about_to_write(copy.to, bytes, __builtin_return_address(0));
    if (machine().random.below(2) == 0) land(copy);
    fiber.copies.push_back(copy);
}

void copy_async_commit() { running().copy_group++; }

void copy_async_wait(uint32_t pending) {
    const Quiet quiet;
    Fiber& fiber = running();
    // The newest `pending` committed groups, and copies not committed yet, may still be under way.
    const auto covered = [&](const Copy& copy) { return copy.group + pending < fiber.copy_group; };
    for (Copy& copy : fiber.copies) {
        if (!covered(copy)) continue;
        about_to_write(copy.to, copy.bytes, __builtin_return_address(0));
        if (!copy.landed) land(copy);
    }
    fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), covered), fiber.copies.end());
}

void check_copies(const Fiber& fiber) {
    if (fiber.copies.empty()) return;
    fail(fiber.copies.front().site, "the thread returns without waiting for %zu asynchronous copies, this one first", fiber.copies.size());
}

}  // namespace emulation
