// Convolution and pooling: the twins of convolution.rs and pool.rs in kernels/src/layers/, which say what is summed in which order.
// An image's pixels lie row by row, and of each pixel its channels side by side, so that neighbouring threads, which have
// neighbouring channels, read neighbours. An element is one thread's, from the first term to the last.

// y (examples, pixels, outputs) of x (examples, pixels, channels). `weights` is outputs x channels x kernel x kernel. Each chain starts at its
// bias, or at +0 if `has_bias` is 0; with `rectify`, what is negative becomes zero.
extern "C" __global__ void convolution_forward(
    const float *x, const float *weights, const float *bias, float *y, u32 has_bias, u32 rectify,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 features = (u64)height * width * channels, pixels = (u64)out_height * out_width;
    const u32 taps = kernel_height * kernel_width;
    EACH(i, examples * pixels * outputs) {
        const u32 o = (u32)(i % outputs), q = (u32)(i / outputs % pixels);
        const float *image = x + i / outputs / pixels * features;
        const u32 top = q / out_width * stride, left = q % out_width * stride;
        float sum = has_bias != 0 ? bias[o] : 0.0f;
        for (u32 tap = 0; tap < taps; tap++) {
            // Beside the image the difference is negative, which as unsigned is large.
            const u32 row = top + tap / kernel_width - padding, column = left + tap % kernel_width - padding;
            if (row < height && column < width) {
                const float *pixel = image + ((u64)row * width + column) * channels;
                const float *of_output = weights + (u64)o * channels * taps + tap;
                for (u32 c = 0; c < channels; c++) {
                    sum = fmaf(of_output[(u64)c * taps], pixel[c], sum);
                }
            }
        }
        y[i] = rectify != 0 && sum < 0.0f ? 0.0f : sum;
    }
}

// dx: from every pixel of the result that has a tap on a pixel, ascending, which are descending taps.
extern "C" __global__ void convolution_backward(
    const float *dy, const float *weights, float *dx,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    const u32 taps = kernel_height * kernel_width;
    EACH(i, examples * features) {
        const u32 c = (u32)(i % channels), t = (u32)(i / channels % ((u64)height * width));
        const float *image = dy + i / features * pixels * outputs;
        const u32 row = t / width + padding, column = t % width + padding;
        float sum = 0.0f;
        for (u32 at = taps; at-- > 0;) {
            const u32 from_top = row - at / kernel_width, from_left = column - at % kernel_width;
            const u32 qy = from_top / stride, qx = from_left / stride;
            const bool is_tap = from_top % stride == 0 && from_left % stride == 0;
            // Above or left of the result the difference is negative, which as unsigned is large.
            if (is_tap && qy < out_height && qx < out_width) {
                const float *pixel = image + ((u64)qy * out_width + qx) * outputs;
                for (u32 o = 0; o < outputs; o++) {
                    sum = fmaf(weights[((u64)o * channels + c) * taps + at], pixel[o], sum);
                }
            }
        }
        dx[i] = sum;
    }
}

// dw: over the pixels of the result ascending, of each over the examples.
extern "C" __global__ void convolution_weights(
    const float *dy, const float *x, float *dw,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    const u32 taps = kernel_height * kernel_width;
    EACH(i, (u64)outputs * channels * taps) {
        const u32 tap = (u32)(i % taps), c = (u32)(i / taps % channels), o = (u32)(i / taps / channels);
        float sum = 0.0f;
        for (u32 q = 0; q < pixels; q++) {
            const u32 row = q / out_width * stride + tap / kernel_width - padding;
            const u32 column = q % out_width * stride + tap % kernel_width - padding;
            if (row < height && column < width) {
                const u64 at = ((u64)row * width + column) * channels + c;
                for (u64 example = 0; example < examples; example++) {
                    sum = fmaf(x[example * features + at], dy[(example * pixels + q) * outputs + o], sum);
                }
            }
        }
        dw[i] = sum;
    }
}

// Whether a tap takes the place of the greatest so far: a NaN is greater than all before it.
static __device__ inline bool is_chosen(float x, float greatest)
{
    return x > greatest || x != x;
}

// The greatest of each window. Windows have no padding.
extern "C" __global__ void pool_greatest(
    const float *x, float *y,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    (void)outputs, (void)padding;
    EACH(i, examples * pixels * channels) {
        const u32 c = (u32)(i % channels), q = (u32)(i / channels % pixels);
        const float *image = x + i / channels / pixels * features;
        const u32 top = q / out_width * stride, left = q % out_width * stride;
        float greatest = 0.0f;
        for (u32 tap = 0; tap < kernel_height * kernel_width; tap++) {
            const float value =
                image[((u64)(top + tap / kernel_width) * width + left + tap % kernel_width) * channels + c];
            greatest = tap == 0 || is_chosen(value, greatest) ? value : greatest;
        }
        y[i] = greatest;
    }
}

// The gradient through it, of each pixel over the windows that cover it, ascending: dy of those that chose it, 0 of the others. With `rectified`,
// x came from relu, and the gradient is that of what went into it.
extern "C" __global__ void pool_greatest_gradient(
    const float *x, const float *dy, float *dx, u32 rectified,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    const u32 taps = kernel_height * kernel_width;
    (void)outputs, (void)padding;
    EACH(i, examples * features) {
        const u32 c = (u32)(i % channels), t = (u32)(i / channels % ((u64)height * width));
        const float *image = x + i / features * features;
        float sum = 0.0f;
        for (u32 at = taps; at-- > 0;) {
            const u32 from_top = t / width - at / kernel_width, from_left = t % width - at % kernel_width;
            const u32 qy = from_top / stride, qx = from_left / stride;
            const bool is_tap = from_top % stride == 0 && from_left % stride == 0;
            if (is_tap && qy < out_height && qx < out_width) {
                float greatest = 0.0f;
                u32 choice = 0;
                for (u32 tap = 0; tap < taps; tap++) {
                    const u64 row = qy * stride + tap / kernel_width, column = qx * stride + tap % kernel_width;
                    const float value = image[(row * width + column) * channels + c];
                    const bool take = tap == 0 || is_chosen(value, greatest);
                    greatest = take ? value : greatest;
                    choice = take ? tap : choice;
                }
                const float arriving = dy[(i / features * pixels + (u64)qy * out_width + qx) * channels + c];
                const float passed = rectified != 0 && !(greatest > 0.0f) ? 0.0f : arriving;
                sum = sum + (choice == at ? passed : 0.0f);
            }
        }
        dx[i] = sum;
    }
}

// The mean of each window.
extern "C" __global__ void pool_mean(
    const float *x, float *y,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    const u32 taps = kernel_height * kernel_width;
    (void)outputs, (void)padding;
    EACH(i, examples * pixels * channels) {
        const u32 c = (u32)(i % channels), q = (u32)(i / channels % pixels);
        const float *image = x + i / channels / pixels * features;
        const u32 top = q / out_width * stride, left = q % out_width * stride;
        float sum = 0.0f;
        for (u32 tap = 0; tap < taps; tap++) {
            sum = sum + image[((u64)(top + tap / kernel_width) * width + left + tap % kernel_width) * channels + c];
        }
        y[i] = sum / (float)taps;
    }
}

extern "C" __global__ void pool_mean_gradient(
    const float *dy, float *dx,
    u32 channels, u32 height, u32 width, u32 outputs, u32 out_height, u32 out_width, u32 kernel_height, u32 kernel_width,
    u32 stride, u32 padding, u64 examples)
{
    const u64 pixels = (u64)out_height * out_width, features = (u64)height * width * channels;
    const u32 taps = kernel_height * kernel_width;
    (void)outputs, (void)padding;
    EACH(i, examples * features) {
        const u32 c = (u32)(i % channels), t = (u32)(i / channels % ((u64)height * width));
        float sum = 0.0f;
        for (u32 at = taps; at-- > 0;) {
            const u32 from_top = t / width - at / kernel_width, from_left = t % width - at % kernel_width;
            const u32 qy = from_top / stride, qx = from_left / stride;
            const bool is_tap = from_top % stride == 0 && from_left % stride == 0;
            if (is_tap && qy < out_height && qx < out_width) {
                sum = sum + dy[(i / features * pixels + (u64)qy * out_width + qx) * channels + c] / (float)taps;
            }
        }
        dx[i] = sum;
    }
}
