// The coordinate-wise rules: median and trimmed mean. The twin of kernels/src/robust/network.rs, whose keys and network these
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
