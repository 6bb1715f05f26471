// activation(gate) * up for gate and up [rows, columns] of T. A thread takes PER_THREAD columns of one row.
const uint columns = gate_shape[1];
const size_t row = size_t(thread_position_in_grid.y) * columns;
const uint first = thread_position_in_grid.x * PER_THREAD;
for (uint column = first; column < min(first + PER_THREAD, columns); ++column) {
    out[row + column] = T(coterie::gated<ACTIVATION>(float(gate[row + column]), float(up[row + column])));
}
