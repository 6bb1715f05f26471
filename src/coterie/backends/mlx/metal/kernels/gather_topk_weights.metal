// p / (sum of the token's k p) * scale for probs [T, E] at ids [T, k]; all zero where that sum is not positive. A
// simdgroup takes one token.
const uint n_experts = probs_shape[1];
const uint k = ids_shape[1];
const uint lane = thread_index_in_simdgroup;
const size_t token = threadgroup_position_in_grid.x;
float partial = 0.0f;
for (uint slot = lane; slot < k; slot += 32) {
    partial += probs[token * n_experts + ids[token * k + slot]];
}
const float total = simd_sum(partial);
for (uint slot = lane; slot < k; slot += 32) {
    const uint id = ids[token * k + slot];
    float weight = total > 0.0f ? probs[token * n_experts + id] / total : 0.0f;
    if (HAS_SCALE) {
        weight *= scale[id];
    }
    out[token * k + slot] = weight;
}
