// Layers: ReLU, GELU, a bias's gradient, softmax with cross-entropy. The twins of relu.rs, gelu.rs, bias.rs and softmax.rs in
// kernels/src/layers/. Values lie row by row here: an example's features side by side.

// Zero for what is negative; NaN stays, so that it is noticed.
extern "C" __global__ void relu(float *values, u64 elements)
{
    EACH(i, elements) {
        const float value = values[i];
        values[i] = value < 0.0f ? 0.0f : value;
    }
}

// The gradient through `relu` whose results are `outputs`: zero where they are not positive.
extern "C" __global__ void relu_gradient(float *gradient, const float *outputs, u64 elements)
{
    EACH(i, elements) {
        gradient[i] = outputs[i] > 0.0f ? gradient[i] : 0.0f;
    }
}

// GELU at u, and its slope there: gelu.rs has the formula.
static __device__ inline float gelu_unit(float u, float *slope)
{
    const float k1 = 0.7978846f, k3 = 0.035677407f;
    const float square = u * u;
    const float t = t_tanh(u * fmaf(square, k3, k1));
    const float half = 0.5f * u;
    *slope = fmaf(half * fmaf(t, -t, 1.0f), fmaf(square, 3.0f * k3, k1), 0.5f * (1.0f + t));
    return fmaf(half, t, half);
}

extern "C" __global__ void gelu(const float *values, float *out, u64 elements)
{
    EACH(i, elements) {
        float slope;
        out[i] = gelu_unit(values[i], &slope);
    }
}

// `gradient`, of the results of `gelu`, becomes the gradient of `values`.
extern "C" __global__ void gelu_gradient(const float *values, float *gradient, u64 elements)
{
    EACH(i, elements) {
        float slope;
        gelu_unit(values[i], &slope);
        gradient[i] = gradient[i] * slope;
    }
}

#define BIAS_FEATURES 32
#define BIAS_SUMS 16

// A bias's gradient: each feature's sum over the examples, example e in sum e mod 16, in ascending order; then the sums
// pairwise. `gradient` is examples x features. A block of threads has 32 features, so that neighbours read neighbours, and for each
// of them sixteen threads.
extern "C" __global__ void sum_examples(const float *gradient, float *out, u32 features, u64 examples)
{
    __shared__ float sums[BIAS_SUMS][BIAS_FEATURES];
    const u32 column = threadIdx.x % BIAS_FEATURES, lane = threadIdx.x / BIAS_FEATURES;
    for (u64 start = blockIdx.x * (u64)BIAS_FEATURES; start < features; start += gridDim.x * (u64)BIAS_FEATURES) {
        const u64 feature = start + column;
        float sum = 0.0f;
        if (feature < features) {
            for (u64 example = lane; example < examples; example += BIAS_SUMS) {
                sum = sum + gradient[example * features + feature];
            }
        }
        sums[lane][column] = sum;
        __syncthreads();
        for (u32 distance = BIAS_SUMS / 2; distance > 0; distance /= 2) {
            if (lane < distance) {
                sums[lane][column] = sums[lane][column] + sums[lane + distance][column];
            }
            __syncthreads();
        }
        if (lane == 0 && feature < features) {
            out[feature] = sums[0][column];
        }
    }
}

#define SOFTMAX_THREADS 128

// Turns each example's logits into their gradient in place, and says its loss, and whether it is right: 1 or 0. One block of
// threads for each example in turn. `logits` is examples x classes; every label is below `classes`.
//
// The sum over classes is in ascending order, as on the CPU, so one thread adds what all of them computed: a class's exponential
// costs some thirty operations, its addition one. So is the logits' mean, which `smoothing`, from 0 to below 1, takes as softmax.rs says.
extern "C" __global__ void cross_entropy(
    float *logits, const u32 *labels, float *losses, u32 *correct, float smoothing, u32 classes, u64 examples)
{
    __shared__ float greatest_of[SOFTMAX_THREADS];
    __shared__ u32 class_of[SOFTMAX_THREADS];
    __shared__ float sum;
    const u32 thread = threadIdx.x;
    for (u64 example = blockIdx.x; example < examples; example += gridDim.x) {
        float *row = logits + example * classes;
        const u32 label = labels[example];
        const float of_label = row[label];
        const float of_first = row[0];
        // The greatest, and the first class that has it. NaN is greater than nothing.
        float greatest = -__uint_as_float(0x7f800000u);
        u32 best = classes;
        for (u32 c = thread; c < classes; c += SOFTMAX_THREADS) {
            if (row[c] > greatest) {
                greatest = row[c];
                best = c;
            }
        }
        greatest_of[thread] = greatest;
        class_of[thread] = best;
        __syncthreads();
        for (u32 distance = SOFTMAX_THREADS / 2; distance > 0; distance /= 2) {
            if (thread < distance) {
                const float other = greatest_of[thread + distance];
                const u32 other_class = class_of[thread + distance];
                const bool tie = other == greatest_of[thread] && other_class < class_of[thread];
                if (other > greatest_of[thread] || tie) {
                    greatest_of[thread] = other;
                    class_of[thread] = other_class;
                }
            }
            __syncthreads();
        }
        greatest = greatest_of[0];
        best = class_of[0];
        float stands_for_label = of_label;
        if (smoothing > 0.0f && thread == 0) {
            float all = 0.0f;
            for (u32 c = 0; c < classes; c++) {
                all = all + row[c];
            }
            stands_for_label = fmaf(1.0f - smoothing, of_label, smoothing * (all / (float)classes));
        }
        // The mean is of logits, which the next loop writes over.
        __syncthreads();
        for (u32 c = thread; c < classes; c += SOFTMAX_THREADS) {
            row[c] = t_exp(row[c] - greatest);
        }
        __syncthreads();
        if (thread == 0) {
            float all = 0.0f;
            for (u32 c = 0; c < classes; c++) {
                all = all + row[c];
            }
            sum = all;
            losses[example] = t_ln(all) - (stands_for_label - greatest);
            // No class compares as greater than a NaN in the first place, or than minus infinity alone.
            const u32 chosen = of_first != of_first || best == classes ? 0 : best;
            correct[example] = chosen == label && of_label == of_label ? 1 : 0;
        }
        __syncthreads();
        for (u32 c = thread; c < classes; c += SOFTMAX_THREADS) {
            float gradient = row[c] / sum;
            if (smoothing > 0.0f) {
                gradient = gradient - smoothing / (float)classes;
            }
            row[c] = gradient - (c == label ? 1.0f - smoothing : 0.0f);
        }
    }
}
