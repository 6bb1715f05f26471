// A whole grid, threadgroup by threadgroup, the way `dispatchThreads` divides it: the last ones may be smaller.
#include <cstdio>

#include "memory.hpp"
#include "undefined.hpp"

namespace shim {

inline Place place_of(uint index, uint3 position, uint3 size, uint3 group_size) {
    const uint3 inside{index % size.x, index / size.x % size.y, index / size.x / size.y};
    Place place;
    place.thread_position_in_grid = {
        position.x * group_size.x + inside.x, position.y * group_size.y + inside.y, position.z * group_size.z + inside.z};
    place.threadgroup_position_in_grid = position;
    place.thread_index_in_threadgroup = index;
    place.simdgroup_index_in_threadgroup = index / LANES;
    place.thread_index_in_simdgroup = index % LANES;
    return place;
}

inline void run_threadgroup(uint3 position, uint3 size, uint3 group_size, bool collective) {
    const uint count = size.x * size.y * size.z;
    if (!collective) {
        for (uint i = 0; i < count; ++i) {
            (*group.body)(place_of(i, position, size, group_size));
        }
        if (!group.fault.empty()) {
            throw Fault(group.fault);
        }
        return;
    }
    for (auto& [line, reset] : shared_resets) {
        reset();
    }
    if (group.lanes.size() < count) {
        group.lanes = std::vector<Lane>(count);
    }
    group.size = count;
    group.group_epoch = 0;
    for (uint i = 0; i < count; ++i) {
        Lane& lane = group.lanes[i];
        lane.place = place_of(i, position, size, group_size);
        lane.state = State::ready;
        lane.started = false;
        lane.step = lane.simd_epoch = 0;
    }
    run_group();
}

// GPUs may take subnormal f32 for zero; so does the processor while this lives, where it can.
struct Flush {
#ifdef __SSE2__
    unsigned before = __builtin_ia32_stmxcsr();
    explicit Flush(bool wanted) { __builtin_ia32_ldmxcsr(wanted ? before | 0x8040 : before); }
    ~Flush() { __builtin_ia32_ldmxcsr(before); }
#else
    explicit Flush(bool) {}
#endif
};

// 0, or 1 with the fault in `message`.
template <typename Body>
int launch(uint3 grid, uint3 threads, bool collective, bool backwards, char* message, size_t room, Body body) {
    const std::function<void(const Place&)> function = body;
    const uint3 most{min(grid.x, threads.x), min(grid.y, threads.y), min(grid.z, threads.z)};
    group.body = &function;
    group.backwards = backwards;
    group.fault.clear();
    uint3 at{0, 0, 0};
    try {
        for (at.z = 0; at.z * most.z < grid.z; ++at.z) {
            for (at.y = 0; at.y * most.y < grid.y; ++at.y) {
                for (at.x = 0; at.x * most.x < grid.x; ++at.x) {
                    const uint3 size{min(most.x, grid.x - at.x * most.x), min(most.y, grid.y - at.y * most.y),
                                     min(most.z, grid.z - at.z * most.z)};
                    run_threadgroup(at, size, most, collective);
                }
            }
        }
    } catch (const Fault& fault) {
        const std::string text = std::string(fault.what()) + ", in threadgroup (" + number(at.x) + ", " + number(at.y) +
                                 ", " + number(at.z) + ")";
        std::snprintf(message, room, "%s", text.c_str());
        return 1;
    }
    return 0;
}

}  // namespace shim
