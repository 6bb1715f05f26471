// Ids and weights [T, K] of logits [T, E], E at most CAPACITY. A simdgroup, alone in its threadgroup, takes one token.
// The contract is that of coterie/ops/routing.py.
const uint n_experts = logits_shape[1];
const uint lane = thread_index_in_simdgroup;
const size_t token = threadgroup_position_in_grid.x;
const size_t row = token * n_experts;
threadgroup uint ranks[CAPACITY];
threadgroup uint group_ranks[N_GROUPS];
threadgroup uint chosen[K];

bool usable = true;
float peak = -INFINITY;
for (uint i = lane; i < n_experts; i += 32) {
    const float logit = logits[row + i];
    usable = usable && logit < INFINITY;  // false for NaN too
    peak = max(peak, logit);
}
usable = simd_all(usable);
peak = simd_max(peak);
usable = usable && peak > -INFINITY;
float partial = 0.0f;
for (uint i = lane; i < n_experts; i += 32) {
    partial += exp(logits[row + i] - peak);
}
const float total = simd_sum(partial);

for (uint i = lane; i < n_experts; i += 32) {
    const float logit = logits[row + i];
    float choice = logit;
    if (!BY_LOGITS) {
        choice = SIGMOID ? 1.0f / (1.0f + exp(-logit)) : exp(logit - peak) / total;
    }
    if (HAS_BIAS) {
        choice += selection_bias[i];
    }
    ranks[i] = coterie::rank_of(choice);
}

if (N_GROUPS > 1) {
    const uint size = n_experts / N_GROUPS;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint group = lane; group < N_GROUPS; group += 32) {
        float first = -INFINITY;
        float second = -INFINITY;
        for (uint i = group * size; i < (group + 1) * size; ++i) {
            const float score = coterie::value_of(ranks[i]);
            second = max(second, min(first, score));
            first = max(first, score);
        }
        group_ranks[group] = coterie::rank_of(TOP2 ? first + second : first);
    }
    for (uint i = 0; i < TOP_GROUPS; ++i) {
        const uint group = coterie::highest(group_ranks, N_GROUPS, lane);
        if (lane == group % 32) {
            group_ranks[group] = 0;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = lane; i < n_experts; i += 32) {
        if (group_ranks[i / size] != 0) {
            ranks[i] = 0;
        }
    }
}

for (uint slot = 0; slot < K; ++slot) {
    const uint id = coterie::highest(ranks, n_experts, lane);
    if (lane == id % 32) {
        ranks[id] = 0;
    }
    if (lane == slot % 32) {
        chosen[slot] = id;
        ids[token * K + slot] = id;
    }
}

float chosen_peak = -INFINITY;
for (uint slot = lane; slot < K; slot += 32) {
    chosen_peak = max(chosen_peak, float(logits[row + chosen[slot]]));
}
chosen_peak = simd_max(chosen_peak);
float chosen_partial = 0.0f;
for (uint slot = lane; slot < K; slot += 32) {
    const float logit = logits[row + chosen[slot]];
    chosen_partial += SIGMOID ? 1.0f / (1.0f + exp(-logit)) : exp(logit - chosen_peak);
}
const float chosen_total = simd_sum(chosen_partial);

for (uint slot = lane; slot < K; slot += 32) {
    const uint id = chosen[slot];
    const float logit = logits[row + id];
    float weight;
    if (SIGMOID) {
        weight = 1.0f / (1.0f + exp(-logit));
        weight = RENORMALIZE ? weight / (chosen_total + 1e-20f) : weight;
    } else {
        weight = RENORMALIZE ? exp(logit - chosen_peak) / chosen_total : exp(logit - peak) / total;
    }
    if (HAS_SCALE) {
        weight *= scale[id];
    }
    weights[token * K + slot] = usable ? weight * scaling_factor : NAN;
}
