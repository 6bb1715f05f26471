// Metal's scalar and vector types and functions as far as the kernels use them. `float` is C++'s own; half and bfloat
// are stored in 16 bits and convert as Metal lets them: to float by themselves, from float only where it is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

using uint = uint32_t;
using ushort = uint16_t;
using std::size_t;

struct uint3 {
    uint x, y, z;
};

template <typename To, typename From>
To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    std::memcpy(static_cast<void*>(&to), &from, sizeof(To));
    return to;
}

struct bfloat {
    uint16_t bits = 0;
    bfloat() = default;
    explicit bfloat(float value) {
        const uint32_t wide = as_type<uint32_t>(value);
        const bool nan = (wide & 0x7fffffff) > 0x7f800000;
        bits = nan ? (wide >> 16) | 0x40 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    }
    operator float() const { return as_type<float>(uint32_t(bits) << 16); }
};

struct half {
    uint16_t bits = 0;
    half() = default;
    explicit half(float value) {
        const uint32_t wide = as_type<uint32_t>(value), sign = wide >> 16 & 0x8000;
        const uint32_t magnitude = wide & 0x7fffffff;
        if (magnitude > 0x7f800000) {
            bits = sign | 0x7e00;
        } else if (magnitude >= 0x477ff000) {
            bits = sign | 0x7c00;
        } else if (magnitude >= 0x38800000) {
            bits = sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
        } else {
            bits = sign | subnormal(magnitude);
        }
    }
    operator float() const {
        const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
        if (magnitude < 0x400) {
            const float value = float(magnitude) * 0x1p-24f;
            return sign ? -value : value;
        }
        const uint32_t infinity = magnitude >= 0x7c00 ? 0x38000000 : 0;
        return as_type<float>(sign | ((magnitude << 13) + 0x38000000 + infinity));
    }

  private:
    // Halves below the smallest normal one are multiples of 2^-24; integers round as the hardware does, to even.
    static uint32_t subnormal(uint32_t magnitude) {
        const uint32_t exponent = magnitude >> 23, shift = 126 - exponent;
        if (exponent < 101) {
            return 0;
        }
        const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000;
        const uint32_t whole = fraction >> shift, rest = fraction & ((1u << shift) - 1), middle = 1u << (shift - 1);
        return whole + (rest > middle || (rest == middle && (whole & 1)));
    }
};

using bfloat16_t = bfloat;
using float16_t = half;

inline float exp(float x) { return std::exp(x); }
inline float abs(float x) { return std::fabs(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline uint max(uint a, uint b) { return std::max(a, b); }
inline uint min(uint a, uint b) { return std::min(a, b); }
inline float clamp(float x, float low, float high) { return std::fmin(std::fmax(x, low), high); }
