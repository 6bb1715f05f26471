// The product of matrix [N, K] and x [K], summed in f32. A simdgroup takes ROWS rows; the last one repeats the last row.
const uint n_rows = matrix_shape[0];
const uint width = matrix_shape[1];
const uint lane = thread_index_in_simdgroup;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
if (first >= n_rows) {
    return;
}
float sums[ROWS] = {};
for (uint column = lane; column < width; column += 32) {
    const float value = float(x[column]);
    for (uint i = 0; i < ROWS; ++i) {
        const size_t row = min(first + i, n_rows - 1);
        sums[i] = fma(float(matrix[row * width + column]), value, sums[i]);
    }
}
for (uint i = 0; i < ROWS; ++i) {
    const float sum = simd_sum(sums[i]);
    if (lane == 0 && first + i < n_rows) {
        out[first + i] = T(sum);
    }
}
