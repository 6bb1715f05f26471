// The threads of a threadgroup as fibres that change over at every collective operation. A simdgroup's operation happens
// once all of its 32 lanes have come to the same one in the source; coming to different ones, leaving early or waiting
// forever is a fault.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <vector>

#include "numbers.hpp"

namespace shim {

constexpr uint LANES = 32;
constexpr size_t STACK = 64 * 1024;

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::string number(long long value) { return std::to_string(value); }

// What Metal tells a thread about its place.
struct Place {
    uint3 thread_position_in_grid, threadgroup_position_in_grid;
    uint thread_index_in_threadgroup, simdgroup_index_in_threadgroup, thread_index_in_simdgroup;
};

enum class State { ready, at_simd, at_group, done };

struct Lane {
    Place place{};
    State state = State::ready;
    bool started = false;
    std::source_location at{};
    uint step = 0;             // collective operations so far; the slots of two steps are kept
    uint64_t slots[2] = {};
    uint simd_epoch = 0;       // simdgroup barriers so far
    jmp_buf here;
    ucontext_t first;
    std::vector<char> stack;
};

struct Group {
    std::vector<Lane> lanes;
    uint size = 0, current = 0, group_epoch = 0;
    bool backwards = false;    // the order in which lanes get their turn
    jmp_buf home;
    std::string fault;
    const std::function<void(const Place&)>* body = nullptr;
};

inline Group group;

inline Lane& self() { return group.lanes[group.current]; }

inline void give_way(State state, const std::source_location& at) {
    Lane& lane = self();
    lane.state = state;
    lane.at = at;
    if (_setjmp(lane.here) == 0) {
        _longjmp(group.home, 1);
    }
}

inline void enter() {
    try {
        (*group.body)(self().place);
    } catch (const Fault& fault) {
        group.fault = fault.what();
    }
    self().state = State::done;
    _longjmp(group.home, 1);
}

inline void turn(uint index) {
    group.current = index;
    Lane& lane = self();
    if (_setjmp(group.home) != 0) {
        return;
    }
    if (lane.started) {
        _longjmp(lane.here, 1);
    }
    lane.started = true;
    lane.stack.resize(STACK);
    getcontext(&lane.first);
    lane.first.uc_stack.ss_sp = lane.stack.data();
    lane.first.uc_stack.ss_size = STACK;
    lane.first.uc_link = nullptr;
    makecontext(&lane.first, enter, 0);
    setcontext(&lane.first);
}

inline std::string where(const std::source_location& at) {
    return std::string(at.file_name()) + ":" + number(at.line());
}

// Let a simdgroup go on whose lanes have all come to one operation; say whether it did.
inline bool release_simdgroup(uint first) {
    uint waiting = 0, done = 0;
    for (uint i = first; i < first + LANES && i < group.size; ++i) {
        waiting += group.lanes[i].state == State::at_simd;
        done += group.lanes[i].state == State::done;
    }
    if (waiting == 0) {
        return false;
    }
    const Lane& leader = group.lanes[first];
    if (waiting + done == LANES && done > 0) {
        throw Fault(number(done) + " lanes left before the others came to a simdgroup operation");
    }
    if (first + LANES > group.size) {
        throw Fault("a simdgroup of fewer than 32 threads at a simdgroup operation");
    }
    for (uint i = first; i < first + LANES; ++i) {
        const Lane& lane = group.lanes[i];
        if (lane.state != State::at_simd || lane.at.line() != leader.at.line() || lane.at.column() != leader.at.column()) {
            throw Fault("lanes of a simdgroup are apart: lane 0 at " + where(leader.at) + ", lane " + number(i - first) +
                        " at " + where(lane.at));
        }
    }
    for (uint i = first; i < first + LANES; ++i) {
        group.lanes[i].state = State::ready;
    }
    return true;
}

inline bool release_group() {
    for (uint i = 0; i < group.size; ++i) {
        if (group.lanes[i].state != State::at_group) {
            return false;
        }
    }
    for (uint i = 0; i < group.size; ++i) {
        group.lanes[i].state = State::ready;
    }
    ++group.group_epoch;
    return true;
}

inline void run_group() {
    bool moved = true;
    while (moved) {
        moved = false;
        for (uint i = 0; i < group.size; ++i) {
            const uint index = group.backwards ? group.size - 1 - i : i;
            if (group.lanes[index].state == State::ready) {
                turn(index);
                moved = true;
                if (!group.fault.empty()) {
                    throw Fault(group.fault);
                }
            }
        }
        for (uint first = 0; first < group.size; first += LANES) {
            moved |= release_simdgroup(first);
        }
        moved |= release_group();
    }
    for (uint i = 0; i < group.size; ++i) {
        if (group.lanes[i].state != State::done) {
            throw Fault("thread " + number(i) + " waits forever at " + where(group.lanes[i].at));
        }
    }
}

// Every lane's value of type T at this operation, by lane, once all of them are here.
template <typename T>
struct Exchange {
    T values[LANES];
    Exchange(T value, const std::source_location& at) {
        Lane& lane = self();
        const uint slot = lane.step++ % 2;
        std::memcpy(&lane.slots[slot], &value, sizeof(T));
        give_way(State::at_simd, at);
        const uint first = group.current / LANES * LANES;
        for (uint i = 0; i < LANES; ++i) {
            std::memcpy(&values[i], &group.lanes[first + i].slots[slot], sizeof(T));
        }
    }
    // In pairs, then pairs of pairs, as a machine does it; the order of a sum is up to the machine.
    template <typename Combine>
    T reduce(Combine combine) {
        for (uint width = LANES / 2; width > 0; width /= 2) {
            for (uint i = 0; i < width; ++i) {
                values[i] = combine(values[i], values[i + width]);
            }
        }
        return values[0];
    }
};

}  // namespace shim

using shim_at = std::source_location;

template <typename T>
T simd_sum(T value, shim_at at = shim_at::current()) {
    return shim::Exchange<T>(value, at).reduce([](T a, T b) { return a + b; });
}
template <typename T>
T simd_max(T value, shim_at at = shim_at::current()) {
    return shim::Exchange<T>(value, at).reduce([](T a, T b) { return max(a, b); });
}
template <typename T>
T simd_min(T value, shim_at at = shim_at::current()) {
    return shim::Exchange<T>(value, at).reduce([](T a, T b) { return min(a, b); });
}
inline bool simd_all(bool value, shim_at at = shim_at::current()) {
    return shim::Exchange<bool>(value, at).reduce([](bool a, bool b) { return a && b; });
}

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

inline void simdgroup_barrier(mem_flags, shim_at at = shim_at::current()) {
    shim::give_way(shim::State::at_simd, at);
    ++shim::self().simd_epoch;
}
inline void threadgroup_barrier(mem_flags, shim_at at = shim_at::current()) {
    shim::give_way(shim::State::at_group, at);
}
