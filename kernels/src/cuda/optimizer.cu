// What generated optimizers (generate.rs) are made of: their scalars, which the host computes in double and rounds, and sums
// over a tensor.
//
// Sums are in the order of kernels/src/optimizer/run/reduce.rs: element i goes, as double, to lane i mod 16 of its
// block of 4,096 elements, in ascending order; a block's lanes are added pairwise (8, 4, 2, 1 apart), blocks' sums one after another.
//
// A generated kernel feeds the lanes: sixteen threads, half a warp, have one block of the tensor. `lanes_to_sum` then adds
// their sums, and `total_of_blocks` those of all blocks.

struct Scalars {
    float value[256];
};

#define REDUCTION_BLOCK 4096

#define TOTAL_THREADS 256

// One block of threads for each total: all of them fetch, one adds, in order.
extern "C" __global__ void total_of_blocks(const double *sums, double *totals, u64 blocks)
{
    __shared__ double fetched[TOTAL_THREADS];
    double total = 0.0;
    for (u64 start = 0; start < blocks; start += TOTAL_THREADS) {
        const u64 mine = start + threadIdx.x;
        if (mine < blocks) {
            fetched[threadIdx.x] = sums[blockIdx.x * blocks + mine];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u64 i = 0; i < TOTAL_THREADS && start + i < blocks; i++) {
                total = total + fetched[i];
            }
        }
        // Before any thread fetches the next ones.
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = total;
    }
}
