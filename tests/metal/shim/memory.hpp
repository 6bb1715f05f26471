// Metal's address spaces as types of their own, so that a pointer into one is not taken for one into another, and every
// access is checked: its bounds, that an output's element is written once and not read, and that threadgroup memory is
// written before it is read, with a barrier between lanes that share an element.
#pragma once

#include <map>
#include <type_traits>
#include <vector>

#include "lanes.hpp"

namespace shim {

struct device_space;
struct constant_space;

struct Buffer {
    const char* name;
    void* data;
    size_t count;
    uint8_t* written;  // writes to each element, of outputs only
};

template <typename T>
struct Element {
    const Buffer* buffer;
    T* data;
    size_t index;
    Element& operator=(T value) {
        if (++buffer->written[index] > 1) {
            throw Fault(std::string(buffer->name) + "[" + number(index) + "] is written twice");
        }
        data[index] = value;
        return *this;
    }
};

template <typename Space, typename T>
struct Pointer {
    const Buffer* buffer;
    ptrdiff_t start = 0;

    auto operator[](ptrdiff_t offset) const {
        const ptrdiff_t index = start + offset;
        if (index < 0 || size_t(index) >= buffer->count) {
            throw Fault(std::string(buffer->name) + "[" + number(index) + "] is outside of " + number(buffer->count));
        }
        if constexpr (std::is_const_v<T>) {
            return std::remove_const_t<T>(static_cast<T*>(buffer->data)[index]);
        } else {
            return Element<T>{buffer, static_cast<T*>(buffer->data), size_t(index)};
        }
    }
    Pointer operator+(ptrdiff_t offset) const { return {buffer, start + offset}; }
};

// One thread's look at an element of threadgroup memory.
struct Visit {
    bool valid = false;
    uint thread = 0, group_epoch = 0, simd_epoch = 0;
    static Visit now() { return {true, group.current, group.group_epoch, self().simd_epoch}; }
    // Whether nothing orders this visit and one made now.
    bool races() const {
        const Visit other = now();
        if (!valid || thread == other.thread || group_epoch != other.group_epoch) {
            return false;
        }
        return thread / LANES != other.thread / LANES || simd_epoch == other.simd_epoch;
    }
};

template <typename T>
struct Cell {
    T value{};
    Visit write, read, other_read;
};

template <typename T>
struct Shared_element {
    Cell<T>& cell;
    size_t index;
    operator T() const {
        if (!cell.write.valid) {
            throw Fault("threadgroup memory [" + number(index) + "] is read before it is written");
        }
        if (cell.write.races()) {
            throw Fault("threadgroup memory [" + number(index) + "] is read without a barrier after another lane's write");
        }
        if (cell.read.valid && cell.read.thread != group.current) {
            cell.other_read = cell.read;
        }
        cell.read = Visit::now();
        return cell.value;
    }
    const Shared_element& operator=(T value) const {
        if (cell.write.races() || cell.read.races() || cell.other_read.races()) {
            throw Fault("threadgroup memory [" + number(index) + "] is written without a barrier after another lane");
        }
        cell.write = Visit::now();
        cell.value = value;
        return *this;
    }
};

// Reset for each threadgroup: the memory of one holds nothing of another's.
inline std::map<std::pair<uint, uint>, std::function<void()>> shared_resets;

template <typename T, size_t COUNT, uint LINE, uint COLUMN>
struct Shared {
    static std::vector<Cell<T>>& cells() {
        static std::vector<Cell<T>> memory(COUNT);
        return memory;
    }
    Shared() {
        shared_resets.try_emplace({LINE, COLUMN}, [] { cells().assign(COUNT, Cell<T>{}); });
    }
    Shared_element<T> operator[](ptrdiff_t index) const {
        if (index < 0 || size_t(index) >= COUNT) {
            throw Fault("threadgroup memory [" + number(index) + "] is outside of " + number(COUNT));
        }
        return {cells()[index], size_t(index)};
    }
};

}  // namespace shim
