// accumulator + weight * expert_out for [rows, columns] and one weight. A thread takes PER_THREAD columns of one row.
const uint columns = accumulator_shape[1];
const size_t row = size_t(thread_position_in_grid.y) * columns;
const uint first = thread_position_in_grid.x * PER_THREAD;
for (uint column = first; column < min(first + PER_THREAD, columns); ++column) {
    const float start = accumulator[row + column];
    out[row + column] =
        coterie::skipped(weight) ? start : start + weight * float(expert_out[row + column]);
}
