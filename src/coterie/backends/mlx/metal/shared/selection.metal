// The highest of many floats, the lowest position first among equal ones, found by the 32 lanes of a simdgroup.

namespace coterie {

// Rises with the value, equal for -0 and +0, and above 0 for everything but NaN. 0 means: not in the choice.
METAL_FUNC uint rank_of(float value) {
    const uint bits = as_type<uint>(value);
    if ((bits << 1) == 0) {
        return 0x80000000u;
    }
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

METAL_FUNC float value_of(uint rank) {
    return as_type<float>(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}

// The position of the highest of n ranks, below n for n of 1 or more. A lane looks at positions lane, lane + 32, ...
// and at no others: a lane that changes only these needs no barrier.
template <typename Ranks>
METAL_FUNC uint highest(Ranks ranks, uint n, uint lane) {
    uint rank = 0;
    uint position = 0xffffffffu;
    for (uint i = lane; i < n; i += 32) {
        const uint candidate = ranks[i];
        if (position == 0xffffffffu || candidate > rank) {
            rank = candidate;
            position = i;
        }
    }
    const uint best = simd_max(rank);
    return simd_min(rank == best ? position : 0xffffffffu);
}

}  // namespace coterie
