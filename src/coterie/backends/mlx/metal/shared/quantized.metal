// Products with eight codes of a quantised row. Codes fill 32-bit words from the lowest bits; eight of them fill
// BITS / 4 words and lie within one group, whose length is a multiple of eight.

namespace coterie {

// E2M1 through integers, twice the value: bits that are a float's own would pass through subnormal numbers, which a GPU
// may take for zero.
METAL_FUNC float e2m1(uint code) {
    const uint exponent = (code >> 1) & 3;
    const uint fraction = code & 1;
    const float magnitude = 0.5f * float(exponent == 0 ? fraction : (2 + fraction) << (exponent - 1));
    return code & 8 ? -magnitude : magnitude;
}

METAL_FUNC float e8m0(uint exponent) {
    return as_type<float>(exponent == 0 ? 0x00400000u : exponent << 23);
}

template <int BITS, bool MICROSCALED, typename Codes>
METAL_FUNC float product_of_codes(Codes codes, size_t word, const thread float* values) {
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) {
        const uint code = (codes[word + i * BITS / 32] >> (i * BITS % 32)) & ((1u << BITS) - 1);
        sum = fma(MICROSCALED ? e2m1(code) : float(code), values[i], sum);
    }
    return sum;
}

// Eight weights of one row times eight values: scale * (codes . values) + bias * (sum of values), or, microscaled,
// 2^(scale - 127) * (codes . values), where no bias is read.
template <int BITS, int GROUP, bool MICROSCALED, typename Codes, typename Scales, typename Biases>
METAL_FUNC float product_of_eight(
    Codes codes, Scales scales, Biases biases, size_t row, uint columns, uint eight, const thread float* values,
    float total) {
    const size_t group = row * (columns / GROUP) + eight * 8 / GROUP;
    const size_t word = (row * (columns / 8) + eight) * (BITS / 4);
    const float product = product_of_codes<BITS, MICROSCALED>(codes, word, values);
    if (MICROSCALED) {
        return e8m0(uint(scales[group])) * product;
    }
    return fma(float(scales[group]), product, float(biases[group]) * total);
}

}  // namespace coterie
