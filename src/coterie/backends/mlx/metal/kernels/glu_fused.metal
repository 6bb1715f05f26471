// activation(gate) * up for gate_up [rows, 2 columns] of T, the gate half first. A thread takes PER_THREAD columns of
// one row of the result.
const uint columns = gate_up_shape[1] / 2;
const size_t row = size_t(thread_position_in_grid.y) * columns;
const uint first = thread_position_in_grid.x * PER_THREAD;
for (uint column = first; column < min(first + PER_THREAD, columns); ++column) {
    const size_t gate = 2 * row + column;
    out[row + column] = T(coterie::gated<ACTIVATION>(float(gate_up[gate]), float(gate_up[gate + columns])));
}
