// Batch normalisation of images: the twin of kernels/src/layers/batch_norm.rs. Values are examples x pixels x channels.
//
// A channel's sums are those of a bias's gradient: sixteen interleaved ones, example e in sum e mod 16, each over pixels ascending, then
// examples; then added pairwise. A block of threads has 32 channels, so that neighbours read neighbours, and sixteen threads for each.

#define NORM_CHANNELS 32
#define NORM_SUMS 16
#define BATCH_EPSILON 1e-5f

enum Term { PLAIN, SQUARES, PRODUCTS };

template <Term term>
static __device__ inline void channel_sum(
    const float *a, const float *x, const float *mean, float *out, u32 channels, u64 pixels, u64 examples)
{
    __shared__ float sums[NORM_SUMS][NORM_CHANNELS];
    const u32 column = threadIdx.x % NORM_CHANNELS, lane = threadIdx.x / NORM_CHANNELS;
    for (u64 start = blockIdx.x * (u64)NORM_CHANNELS; start < channels; start += gridDim.x * (u64)NORM_CHANNELS) {
        const u64 channel = start + column;
        float sum = 0.0f;
        if (channel < channels) {
            const float middle = term == PLAIN ? 0.0f : mean[channel];
            for (u64 pixel = 0; pixel < pixels; pixel++) {
                for (u64 example = lane; example < examples; example += NORM_SUMS) {
                    const u64 at = (example * pixels + pixel) * channels + channel;
                    if (term == PLAIN) {
                        sum = sum + a[at];
                    } else if (term == SQUARES) {
                        const float from_mean = x[at] - middle;
                        sum = fmaf(from_mean, from_mean, sum);
                    } else {
                        sum = fmaf(a[at], x[at] - middle, sum);
                    }
                }
            }
        }
        sums[lane][column] = sum;
        __syncthreads();
        for (u32 distance = NORM_SUMS / 2; distance > 0; distance /= 2) {
            if (lane < distance) {
                sums[lane][column] = sums[lane][column] + sums[lane + distance][column];
            }
            __syncthreads();
        }
        if (lane == 0 && channel < channels) {
            out[channel] = sums[0][column];
        }
    }
}

extern "C" __global__ void channel_sums(const float *a, float *out, u32 channels, u64 pixels, u64 examples)
{
    channel_sum<PLAIN>(a, a, a, out, channels, pixels, examples);
}

// Of squared distances from the mean.
extern "C" __global__ void channel_squares(
    const float *x, const float *mean, float *out, u32 channels, u64 pixels, u64 examples)
{
    channel_sum<SQUARES>(x, x, mean, out, channels, pixels, examples);
}

// Of `a` times the distance of x from the mean.
extern "C" __global__ void channel_products(
    const float *a, const float *x, const float *mean, float *out, u32 channels, u64 pixels, u64 examples)
{
    channel_sum<PRODUCTS>(a, x, mean, out, channels, pixels, examples);
}

// Sums become statistics: the variance divided by the number of values, and one over its root.
extern "C" __global__ void invert(const float *variance, float *inverse, u64 channels)
{
    EACH(c, channels) {
        inverse[c] = 1.0f / sqrtf(variance[c] + BATCH_EPSILON);
    }
}

// out = values, times one number, and then another.
extern "C" __global__ void scaled(const float *values, float *out, float by, float then_by, u64 channels)
{
    EACH(c, channels) {
        out[c] = values[c] * by * then_by;
    }
}

extern "C" __global__ void multiply_by(float *values, const float *by, u64 channels)
{
    EACH(c, channels) {
        values[c] = values[c] * by[c];
    }
}

extern "C" __global__ void normalise(const float *x, const float *weight, const float *bias, const float *mean,
                                     const float *inverse, float *y, u32 channels, u64 elements)
{
    EACH(i, elements) {
        const u32 c = (u32)(i % channels);
        y[i] = fmaf(x[i] - mean[c], weight[c] * inverse[c], bias[c]);
    }
}

// The gradient of x in the place of dy. `dot` and `sum` are channel_products and channel_sums of dy.
extern "C" __global__ void normalise_gradient(const float *x, const float *weight, const float *mean, const float *inverse,
                                              const float *dot, const float *sum, float *dy, float number, u32 channels,
                                              u64 elements)
{
    EACH(i, elements) {
        const u32 c = (u32)(i % channels);
        const float scale = weight[c] * inverse[c];
        const float slope = dot[c] / number * inverse[c] * inverse[c], shift = sum[c] / number;
        dy[i] = fmaf(mean[c] - x[i], slope, dy[i] - shift) * scale;
    }
}
