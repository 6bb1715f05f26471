// The sum over k of weights [T, k] times down(hidden), [T, H] in T, for hidden f32 [T * k, I] and down quantised
// [E, H, I]. A simdgroup takes ROWS rows for one token and all of its experts; H, a multiple of the groups of gate, is
// one of a threadgroup's rows too.
const uint width = hidden_shape[1];
const uint k = ids_shape[1];
const uint n_rows = codes_shape[1];
const uint lane = thread_index_in_simdgroup;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
const size_t token = threadgroup_position_in_grid.y;
float sums[ROWS] = {};
for (uint slot = 0; slot < k; ++slot) {
    const size_t pair = token * k + slot;
    const float weight = weights[pair];
    if (coterie::skipped(weight)) {
        continue;
    }
    const size_t expert = ids[pair];
    float products[ROWS] = {};
    for (uint eight = lane; eight < width / 8; eight += 32) {
        float values[8];
        float total = 0.0f;
        for (uint i = 0; i < 8; ++i) {
            values[i] = hidden[pair * width + eight * 8 + i];
            total += values[i];
        }
        for (uint i = 0; i < ROWS; ++i) {
            const size_t row = expert * n_rows + first + i;
            products[i] += coterie::product_of_eight<BITS, GROUP, MICROSCALED>(
                codes, scales, biases, row, width, eight, values, total);
        }
    }
    for (uint i = 0; i < ROWS; ++i) {
        if (HAS_OFFSET && lane == 0) {
            products[i] += offset[expert * n_rows + first + i];
        }
        sums[i] = fma(weight, products[i], sums[i]);
    }
}
for (uint i = 0; i < ROWS; ++i) {
    const float sum = simd_sum(sums[i]);
    if (lane == 0) {
        out[token * n_rows + first + i] = T(sum);
    }
}
