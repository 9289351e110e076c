// Aggregation: one node of the reduction tree, and the check that contributions are finite. The twin of
// kernels/src/aggregate.rs and of `divide` in kernels/src/robust.rs.
//
// 1. Elementwise IEEE addition and division: the bits are the CPU's.
// 2. `first` becomes the lowest index of a value that is NaN or infinite; it is left alone if there is none. A minimum does not
//    depend on the order in which threads come to it.

// Adds `other` into `into`.
extern "C" __global__ void add(float *into, const float *other, u64 elements)
{
    EACH(i, elements) {
        into[i] = into[i] + other[i];
    }
}

// Adds, and looks at the sum: finite numbers may overflow.
extern "C" __global__ void add_checked(float *into, const float *other, u64 elements, u64 *first)
{
    EACH(i, elements) {
        const float sum = into[i] + other[i];
        into[i] = sum;
        if (!is_finite(sum)) {
            atomicMin(first, i);
        }
    }
}

extern "C" __global__ void first_non_finite(const float *values, u64 elements, u64 *first)
{
    EACH(i, elements) {
        if (!is_finite(values[i])) {
            atomicMin(first, i);
        }
    }
}

// Makes a vote of a sum over `examples` examples: their mean.
extern "C" __global__ void divide(float *sum, float examples, u64 elements)
{
    EACH(i, elements) {
        sum[i] = sum[i] / examples;
    }
}
