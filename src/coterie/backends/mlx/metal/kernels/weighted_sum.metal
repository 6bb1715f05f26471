// The sum over k of weights [T, k] times expert_out [T, k, width], in f32. A thread takes PER_THREAD columns of a token.
const uint k = expert_out_shape[1];
const uint width = expert_out_shape[2];
const size_t token = thread_position_in_grid.y;
const uint first = thread_position_in_grid.x * PER_THREAD;
const uint n_columns = min(width - first, uint(PER_THREAD));
float sums[PER_THREAD] = {};
for (uint slot = 0; slot < k; ++slot) {
    const float weight = weights[token * k + slot];
    if (coterie::skipped(weight)) {
        continue;
    }
    const size_t row = (token * k + slot) * width + first;
    for (uint column = 0; column < n_columns; ++column) {
        sums[column] = fma(weight, float(expert_out[row + column]), sums[column]);
    }
}
for (uint column = 0; column < n_columns; ++column) {
    out[token * width + first + column] = sums[column];
}
