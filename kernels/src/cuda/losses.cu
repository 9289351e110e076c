// Losses of numbers: the squared error and binary cross-entropy. The twin of kernels/src/losses.rs: each element is computed from its own
// numbers; what is summed, the host sums, in double, in order.

// What is squared.
extern "C" __global__ void differences(const float *outputs, const float *targets, float *out, u64 elements)
{
    EACH(i, elements) {
        out[i] = outputs[i] - targets[i];
    }
}

// The squared error's gradient, of the differences that stand in its place.
extern "C" __global__ void doubled(float *values, u64 elements)
{
    EACH(i, elements) {
        values[i] = values[i] + values[i];
    }
}

// ln(1 + x) for x from 0 to 1: losses.rs says why.
static __device__ inline float ln_1p(float x)
{
    const float above = 1.0f + x;
    return above == 1.0f ? x : t_ln(above) * x / (above - 1.0f);
}

extern "C" __global__ void binary_losses(const float *logits, const float *targets, float *out, u64 elements)
{
    EACH(i, elements) {
        const float logit = logits[i];
        const float part = t_exp(-fabsf(logit));
        const float positive = logit < 0.0f ? 0.0f : logit;
        out[i] = fmaf(-logit, targets[i], positive) + ln_1p(part);
    }
}

extern "C" __global__ void binary_slopes(const float *logits, const float *targets, float *out, u64 elements)
{
    EACH(i, elements) {
        const float logit = logits[i];
        const float part = t_exp(-fabsf(logit));
        const float upper = logit < 0.0f ? part : 1.0f;
        out[i] = upper / (1.0f + part) - targets[i];
    }
}
