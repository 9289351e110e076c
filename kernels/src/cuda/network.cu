// What networks do between their layers: copies, sums of two branches, images in another order. Elementwise, and the CPU's bits.

// Copies `elements` numbers to where `to` has its number `first`.
extern "C" __global__ void copy_to(const float *from, float *to, u64 first, u64 elements)
{
    EACH(i, elements) {
        to[first + i] = from[i];
    }
}

extern "C" __global__ void fill(float *values, float value, u64 elements)
{
    EACH(i, elements) {
        values[i] = value;
    }
}

// Two branches: `out` becomes x + y.
extern "C" __global__ void sum_of(const float *x, const float *y, float *out, u64 elements)
{
    EACH(i, elements) {
        out[i] = x[i] + y[i];
    }
}

// Adds a shortcut to `values`, then ReLU; NaN stays.
extern "C" __global__ void add_rectified(const float *shortcut, float *values, u64 elements)
{
    EACH(i, elements) {
        const float sum = values[i] + shortcut[i];
        values[i] = sum < 0.0f ? 0.0f : sum;
    }
}

// Adds a row to every row of `values`.
extern "C" __global__ void add_bias(const float *bias, float *values, u32 features, u64 elements)
{
    EACH(i, elements) {
        values[i] = values[i] + bias[i % features];
    }
}

// Of each example `rows` rows of `columns` numbers become `columns` rows of `rows`: channels and pixels change places.
extern "C" __global__ void permute(const float *from, float *to, u32 rows, u32 columns, u64 elements)
{
    const u64 features = (u64)rows * columns;
    EACH(i, elements) {
        const u64 example = i / features, target = i % features;
        to[i] = from[example * features + target % rows * columns + target / rows];
    }
}
