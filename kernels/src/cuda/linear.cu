// Matrix products with the CPU's bits: an element is one chain of fused multiply-adds, in ascending order of the depth, from what
// it starts with (kernels/src/model.rs). A block of threads has a tile of the result, 64 x 64; each thread has sixteen of its
// elements in registers from the first to the last of the depth, of which sixteen at a time lie in shared memory.
//
// What lies beyond the depth is left out, not padded with zeros: a product of zeros would make a sum of -0 one of +0.

#define TILE 64
#define TILE_DEPTH 16
#define TILE_THREADS 256
#define EACH_SIDE 4 // sixteen threads by sixteen, each with four rows and four columns

// Fetches a tile's sixteen steps of depth: element (m, k) lies at m * of_side + k * of_depth. Threads go along whichever is
// contiguous. What lies beyond the matrix is left as it was: its results are not stored.
static __device__ inline void fetch(float (*tile)[TILE + 1], const float *from, u64 first, u64 side, u64 of_side, u64 start,
                                    u64 depth, u64 of_depth)
{
    for (u32 at = threadIdx.x; at < TILE * TILE_DEPTH; at += TILE_THREADS) {
        const u32 m = of_depth == 1 ? at / TILE_DEPTH : at % TILE;
        const u32 k = of_depth == 1 ? at % TILE_DEPTH : at / TILE;
        if (first + m < side && start + k < depth) {
            tile[k][m] = from[(first + m) * of_side + (start + k) * of_depth];
        }
    }
}

// c (rows x columns) = begin + a b. `begin` is a row that every row begins with, or null for zeros.
static __device__ inline void multiply(const float *a, const float *b, const float *begin, float *c, u64 rows, u64 columns,
                                       u64 depth, u64 a_row, u64 a_depth, u64 b_depth, u64 b_column)
{
    __shared__ float a_tile[TILE_DEPTH][TILE + 1];
    __shared__ float b_tile[TILE_DEPTH][TILE + 1];
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    const u64 across = (columns + TILE - 1) / TILE, tiles = across * ((rows + TILE - 1) / TILE);
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u64 row = tile / across * TILE, column = tile % across * TILE;
        float sums[EACH_SIDE][EACH_SIDE];
        for (u32 j = 0; j < EACH_SIDE; j++) {
            const u64 n = column + x + 16 * j;
            const float from = begin != nullptr && n < columns ? begin[n] : 0.0f;
            for (u32 i = 0; i < EACH_SIDE; i++) {
                sums[i][j] = from;
            }
        }
        for (u64 start = 0; start < depth; start += TILE_DEPTH) {
            fetch(a_tile, a, row, rows, a_row, start, depth, a_depth);
            fetch(b_tile, b, column, columns, b_column, start, depth, b_depth);
            __syncthreads();
            const u32 steps = depth - start < TILE_DEPTH ? (u32)(depth - start) : TILE_DEPTH;
            for (u32 k = 0; k < steps; k++) {
                for (u32 i = 0; i < EACH_SIDE; i++) {
                    for (u32 j = 0; j < EACH_SIDE; j++) {
                        sums[i][j] = fmaf(a_tile[k][y + 16 * i], b_tile[k][x + 16 * j], sums[i][j]);
                    }
                }
            }
            // Before the next steps are put where these are read.
            __syncthreads();
        }
        for (u32 i = 0; i < EACH_SIDE; i++) {
            for (u32 j = 0; j < EACH_SIDE; j++) {
                const u64 m = row + y + 16 * i, n = column + x + 16 * j;
                if (m < rows && n < columns) {
                    c[m * columns + n] = sums[i][j];
                }
            }
        }
    }
}

// y = x W^T + b: x is examples x inputs, `weights` outputs x inputs.
extern "C" __global__ void linear_forward(
    const float *x, const float *weights, const float *bias, float *y, u64 examples, u64 inputs, u64 outputs)
{
    multiply(x, weights, bias, y, examples, outputs, inputs, inputs, 1, 1, inputs);
}

// dx = dy W.
extern "C" __global__ void linear_backward(
    const float *dy, const float *weights, float *dx, u64 examples, u64 inputs, u64 outputs)
{
    multiply(dy, weights, nullptr, dx, examples, inputs, outputs, outputs, 1, inputs, 1);
}

// dW = dy^T x.
extern "C" __global__ void linear_weights(const float *dy, const float *x, float *dw, u64 examples, u64 inputs, u64 outputs)
{
    multiply(dy, x, nullptr, dw, outputs, inputs, examples, 1, outputs, inputs, 1);
}
