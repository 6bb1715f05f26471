// Gated activations in f32, finite for every finite gate. The order of the names is that of ACTIVATIONS in
// coterie/ops/activations.py, whose positions arrive here as template arguments.

namespace coterie {

enum Activation : int { SILU, GELU_TANH, GELU, RELU, SWIGLU_CLAMPED };

METAL_FUNC float sigmoid(float x) {
    return 1.0f / (1.0f + exp(-x));
}

// The complement of the error function for x of 0 or more: exp(-x^2) times a polynomial in t = 1 / (1 + x / 2) that was
// fitted to erfc(x) exp(x^2) at 200 Chebyshev nodes; relative error 4e-7 and that of the exponential. Metal has none.
METAL_FUNC float erfc_of_positive(float x) {
    const float t = 1.0f / (1.0f + 0.5f * x);
    float p = -0.0254224977f;
    p = fma(p, t, 0.0646440965f);
    p = fma(p, t, 0.0289319797f);
    p = fma(p, t, -0.194781651f);
    p = fma(p, t, 0.0757202947f);
    p = fma(p, t, 0.0603155532f);
    p = fma(p, t, 0.179788587f);
    p = fma(p, t, 0.246610794f);
    p = fma(p, t, 0.282097916f);
    p = fma(p, t, 0.282094784f);
    return p * t * exp(-x * x);
}

// The standard normal distribution function.
METAL_FUNC float normal_share(float x) {
    const float tail = 0.5f * erfc_of_positive(0.70710678118654752f * abs(x));
    return x < 0.0f ? tail : 1.0f - tail;
}

// 0.5 (1 + tanh(z)) is the sigmoid of 2 z, which neither cancels below nor overflows above.
METAL_FUNC float gelu_tanh_share(float x) {
    return sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
}

template <int ACTIVATION>
METAL_FUNC float gated(float gate, float up) {
    if (ACTIVATION == SILU) {
        return gate * sigmoid(gate) * up;
    }
    if (ACTIVATION == GELU_TANH) {
        return gate * gelu_tanh_share(gate) * up;
    }
    if (ACTIVATION == GELU) {
        return gate * normal_share(gate) * up;
    }
    if (ACTIVATION == RELU) {
        return max(gate, 0.0f) * up;
    }
    const float cut = min(gate, 7.0f);
    return cut * sigmoid(1.702f * cut) * (clamp(up, -7.0f, 7.0f) + 1.0f);
}

}  // namespace coterie
