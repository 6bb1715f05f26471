// activation(gate x, up x) in f32 [T * k, I], for x [T, H] through the experts of ids [T, k]. Gate and up are quantised
// [E, I, H]; FUSED: both in one [E, 2I, H], the gate rows of an expert first. A simdgroup takes ROWS rows of one
// expert for one token; I, a multiple of the groups of down, is one of a threadgroup's rows too.
const uint width = x_shape[1];
const uint k = ids_shape[1];
const uint rows_of_expert = gate_codes_shape[1];
const uint n_rows = FUSED ? rows_of_expert / 2 : rows_of_expert;
const uint lane = thread_index_in_simdgroup;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
const size_t pair = threadgroup_position_in_grid.y;
const size_t token = pair / k;
const size_t expert = ids[pair];
float gate[ROWS] = {};
float up[ROWS] = {};
for (uint eight = lane; eight < width / 8; eight += 32) {
    float values[8];
    float total = 0.0f;
    for (uint i = 0; i < 8; ++i) {
        values[i] = float(x[token * width + eight * 8 + i]);
        total += values[i];
    }
    for (uint i = 0; i < ROWS; ++i) {
        const size_t row = expert * rows_of_expert + first + i;
        gate[i] += coterie::product_of_eight<BITS, GROUP, MICROSCALED>(
            gate_codes, gate_scales, gate_biases, row, width, eight, values, total);
        up[i] += coterie::product_of_eight<BITS, GROUP, MICROSCALED>(
            up_codes, up_scales, up_biases, FUSED ? row + n_rows : row, width, eight, values, total);
    }
}
for (uint i = 0; i < ROWS; ++i) {
    float gate_sum = simd_sum(gate[i]);
    float up_sum = simd_sum(up[i]);
    if (lane != 0) {
        continue;
    }
    const size_t row = expert * rows_of_expert + first + i;
    if (HAS_GATE_OFFSET) {
        gate_sum += gate_offset[row];
    }
    if (HAS_UP_OFFSET) {
        up_sum += FUSED ? gate_offset[row + n_rows] : up_offset[row];
    }
    out[pair * n_rows + first + i] = coterie::gated<ACTIVATION>(gate_sum, up_sum);
}
