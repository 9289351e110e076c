// Robust rules. First the coordinate-wise ones: median and trimmed mean. The twin of kernels/src/robust/network.rs, whose keys and network these
// are: which comparisons are made depends on the number of votes alone.
//
// One thread has one coordinate: a column of `count` keys in shared memory, where neighbouring threads' keys lie side by side, so
// that no two threads of a warp meet in one bank. No thread reads another's column, and so there is no barrier.

// Between a number's bits and its key, an integer in the order of IEEE 754's totalOrder. It is its own inverse.
static __device__ inline i32 flip(i32 bits)
{
    return bits ^ (i32)((u32)(bits >> 31) >> 1);
}

// `votes` holds `count` rows of `elements` numbers; `network` holds `pairs` pairs of rows. What is left when `trim` keys are
// dropped at either end is summed in ascending order in double, divided by its number, and rounded once.
extern "C" __global__ void trimmed_mean(
    const float *votes, float *out, const u32 *network, u32 pairs, u32 count, u32 trim, u64 elements)
{
    DYNAMIC_SHARED(i32, keys);
    i32 *column = keys + threadIdx.x;
    const u32 next = blockDim.x;
    EACH(i, elements) {
        for (u32 vote = 0; vote < count; vote++) {
            column[vote * next] = flip((i32)__float_as_uint(votes[vote * elements + i]));
        }
        for (u32 pair = 0; pair < pairs; pair++) {
            i32 *low = column + network[2 * pair] * next;
            i32 *high = column + network[2 * pair + 1] * next;
            const i32 a = *low, b = *high;
            *low = a < b ? a : b;
            *high = a < b ? b : a;
        }
        double sum = (double)__uint_as_float((u32)flip(column[trim * next]));
        for (u32 kept = trim + 1; kept < count - trim; kept++) {
            sum = sum + (double)__uint_as_float((u32)flip(column[kept * next]));
        }
        out[i] = (float)(sum / (double)(count - 2 * trim));
    }
}

// What follows is for rules that weigh whole gradients: the twins of kernels/src/robust/products.rs and weigh.rs.

#define PRODUCTS_BLOCK 1024

// Inner products, block by block: `sums` has a row of blocks for each of `count` pairs of rows. Blocks are counted from where the tensor
// begins, `first` elements before these. Sixteen threads, half a warp, have one block of one pair: element i of what there is of it in
// lane i mod 16, ascending, then the lanes pairwise. A product of two floats is exact in double. The host adds the blocks' sums, exactly.
extern "C" __global__ void inner_products(
    const float *vectors, const u32 *pairs, double *sums, u32 count, u32 first, u64 elements)
{
    const u64 blocks = (first + elements + PRODUCTS_BLOCK - 1) / PRODUCTS_BLOCK;
    const u64 units = count * blocks, at_once = blockDim.x / REDUCTION_LANES;
    const u32 lane = threadIdx.x % REDUCTION_LANES;
    // All threads go round as often: a warp's lanes meet below.
    for (u64 start = blockIdx.x * at_once; start < units; start += gridDim.x * at_once) {
        const u64 unit = start + threadIdx.x / REDUCTION_LANES;
        double sum = 0.0;
        if (unit < units) {
            const u64 block = unit % blocks, pair = unit / blocks;
            const u64 begin = block == 0 ? 0 : block * PRODUCTS_BLOCK - first;
            const u64 whole = (block + 1) * PRODUCTS_BLOCK - first;
            const u64 end = whole < elements ? whole : elements;
            const float *a = vectors + pairs[2 * pair] * elements;
            const float *b = vectors + pairs[2 * pair + 1] * elements;
            for (u64 i = begin + lane; i < end; i += REDUCTION_LANES) {
                sum = sum + (double)a[i] * (double)b[i];
            }
        }
        sum = lanes_to_sum(sum);
        if (lane == 0 && unit < units) {
            sums[unit] = sum;
        }
    }
}

// Weight times value, in double, in the order of vectors, those of weight 0 left out; rounded once.
extern "C" __global__ void combine(const float *vectors, const double *weights, float *out, u32 count, u64 elements)
{
    EACH(i, elements) {
        double sum = 0.0;
        for (u32 vector = 0; vector < count; vector++) {
            const double weight = weights[vector];
            if (weight != 0.0) {
                sum = sum + weight * (double)vectors[vector * elements + i];
            }
        }
        out[i] = (float)sum;
    }
}

// Multiplies by the one number of `factor`, in double, and rounds once.
extern "C" __global__ void clip(float *values, const double *factor, u64 elements)
{
    EACH(i, elements) {
        values[i] = (float)((double)values[i] * factor[0]);
    }
}
