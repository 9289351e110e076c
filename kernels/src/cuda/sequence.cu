// Layers of sequence models: norms, embedding, dropout. The twins of norm.rs, embedding.rs and dropout.rs in kernels/src/layers/, which
// say what is summed in which order. Values lie row by row: a token's features side by side.

#define NORM_ROWS 32
#define NORM_COLUMNS 32
#define NORM_THREADS 256
#define NORM_EPSILON 1e-5f

// Fetches a square of 32 rows and 32 features, so that threads read side by side what one thread then goes through row by row:
// a row's sums are chains in ascending order, as on the CPU.
static __device__ inline void norm_fetch(
    float (*tile)[NORM_COLUMNS + 1], const float *from, u64 row, u64 rows, u32 start, u32 features)
{
    for (u32 at = threadIdx.x; at < NORM_ROWS * NORM_COLUMNS; at += NORM_THREADS) {
        const u32 r = at / NORM_COLUMNS, c = at % NORM_COLUMNS;
        if (row + r < rows && start + c < features) {
            tile[r][c] = from[(row + r) * features + start + c];
        }
    }
}

// y of x. `kept` has a row's mean, and behind all of those one over its deviation. With `centred` of 0 it is RMS norm: there is no
// mean, and `bias` is not read.
extern "C" __global__ void norm_forward(const float *x, const float *weight, const float *bias, float *y, float *kept,
                                        u32 centred, u32 features, u64 rows)
{
    __shared__ float tile[NORM_ROWS][NORM_COLUMNS + 1];
    __shared__ float means[NORM_ROWS];
    __shared__ float scales[NORM_ROWS];
    const float share = 1.0f / (float)features;
    const u32 mine = threadIdx.x;
    for (u64 row = blockIdx.x * (u64)NORM_ROWS; row < rows; row += gridDim.x * (u64)NORM_ROWS) {
        const bool has_row = mine < NORM_ROWS && row + mine < rows;
        float mean = 0.0f, scale = 0.0f;
        for (u32 start = 0; centred != 0 && start < features; start += NORM_COLUMNS) {
            norm_fetch(tile, x, row, rows, start, features);
            __syncthreads();
            for (u32 c = 0; has_row && c < NORM_COLUMNS && start + c < features; c++) {
                mean = mean + tile[mine][c];
            }
            __syncthreads();
        }
        mean = centred != 0 ? mean * share : 0.0f;
        for (u32 start = 0; start < features; start += NORM_COLUMNS) {
            norm_fetch(tile, x, row, rows, start, features);
            __syncthreads();
            for (u32 c = 0; has_row && c < NORM_COLUMNS && start + c < features; c++) {
                const float from_mean = tile[mine][c] - mean;
                scale = fmaf(from_mean, from_mean, scale);
            }
            __syncthreads();
        }
        if (has_row) {
            scale = 1.0f / sqrtf(fmaf(scale, share, NORM_EPSILON));
            means[mine] = mean;
            scales[mine] = scale;
            kept[row + mine] = mean;
            kept[rows + row + mine] = scale;
        }
        __syncthreads();
        const u64 here = rows - row < NORM_ROWS ? rows - row : NORM_ROWS;
        for (u64 at = mine; at < here * features; at += NORM_THREADS) {
            const u32 r = (u32)(at / features), f = (u32)(at % features);
            const float normal = (x[row * features + at] - means[r]) * scales[r];
            y[row * features + at] = centred != 0 ? fmaf(normal, weight[f], bias[f]) : normal * weight[f];
        }
    }
}

// Adds the gradient of x to `dx`, and leaves dy n in `normal`: its sum over the rows is the weight's gradient.
extern "C" __global__ void norm_backward(const float *x, const float *kept, const float *weight, const float *dy, float *dx,
                                         float *normal, u32 centred, u32 features, u64 rows)
{
    __shared__ float x_tile[NORM_ROWS][NORM_COLUMNS + 1];
    __shared__ float dy_tile[NORM_ROWS][NORM_COLUMNS + 1];
    __shared__ float firsts[NORM_ROWS];
    __shared__ float seconds[NORM_ROWS];
    const float share = 1.0f / (float)features;
    const u32 mine = threadIdx.x;
    for (u64 row = blockIdx.x * (u64)NORM_ROWS; row < rows; row += gridDim.x * (u64)NORM_ROWS) {
        const bool has_row = mine < NORM_ROWS && row + mine < rows;
        const float mean = has_row ? kept[row + mine] : 0.0f, scale = has_row ? kept[rows + row + mine] : 0.0f;
        float first = 0.0f, second = 0.0f;
        for (u32 start = 0; start < features; start += NORM_COLUMNS) {
            norm_fetch(x_tile, x, row, rows, start, features);
            norm_fetch(dy_tile, dy, row, rows, start, features);
            __syncthreads();
            for (u32 c = 0; has_row && c < NORM_COLUMNS && start + c < features; c++) {
                const float gradient = dy_tile[mine][c] * weight[start + c];
                first = first + gradient;
                second = fmaf(gradient, (x_tile[mine][c] - mean) * scale, second);
            }
            __syncthreads();
        }
        if (has_row) {
            firsts[mine] = centred != 0 ? first * share : 0.0f;
            seconds[mine] = second * share;
        }
        __syncthreads();
        const u64 here = rows - row < NORM_ROWS ? rows - row : NORM_ROWS;
        for (u64 at = mine; at < here * features; at += NORM_THREADS) {
            const u64 i = row * features + at;
            const u32 r = (u32)(at / features), f = (u32)(at % features);
            const float deviation = kept[rows + row + r];
            const float n = (x[i] - kept[row + r]) * deviation;
            const float along = fmaf(-n, seconds[r], dy[i] * weight[f] - firsts[r]);
            dx[i] = fmaf(deviation, along, dx[i]);
            normal[i] = dy[i] * n;
        }
    }
}

// A token's row of the table, plus its position's. `tokens` are below the table's rows; an example has `positions` of them.
extern "C" __global__ void embed(const u32 *tokens, const float *table, const float *of_positions, float *rows, u32 width,
                                 u64 positions, u64 elements)
{
    EACH(i, elements) {
        const u64 token = i / width, f = i % width;
        rows[i] = table[(u64)tokens[token] * width + f] + of_positions[token % positions * width + f];
    }
}

// Adds the gradient of `rows` to the table's: for each token that occurs, its places in ascending order. Those of the k-th one are
// `places` from `starts[k]` up to `starts[k + 1]`, which the host has sorted.
extern "C" __global__ void add_to_table(const float *gradient, const u32 *tokens, const u32 *places, const u32 *starts,
                                        float *table, u32 width, u64 elements)
{
    EACH(i, elements) {
        const u64 k = i / width, f = i % width;
        const u64 row = (u64)tokens[places[starts[k]]] * width + f;
        float sum = table[row];
        for (u32 at = starts[k]; at < starts[k + 1]; at++) {
            sum = sum + gradient[(u64)places[at] * width + f];
        }
        table[row] = sum;
    }
}

// The positions' gradient: of each element, the sum over the examples.
extern "C" __global__ void positions_gradient(const float *gradient, float *positions, u64 examples, u64 elements)
{
    EACH(i, elements) {
        float sum = 0.0f;
        for (u64 example = 0; example < examples; example++) {
            sum = sum + gradient[example * elements + i];
        }
        positions[i] = sum;
    }
}

#define PURPOSE_DROPOUT 3u

// Drops elements of activations or of their gradient. Each thread has four features, which are what one draw decides on. A row is a
// position; `site` says which of the network's layers this is.
extern "C" __global__ void dropout(float *values, float rate, u64 seed, u64 step, u64 first_example, u64 site, u64 positions,
                                   u32 features, u64 rows)
{
    const u32 blocks = (features + 3) / 4;
    const float scale = 1.0f / (1.0f - rate);
    EACH(i, rows * blocks) {
        const u64 row = i / blocks, block = i % blocks;
        const u64 example = first_example + row / positions;
        const Words of_stream = {{(u32)example, (u32)(example >> 32), PURPOSE_DROPOUT, STREAM_KEY}};
        const Words key = philox(of_stream, (u32)seed, (u32)(seed >> 32));
        const u32 counter = (u32)((site * positions + row % positions) * blocks + block);
        const Words at = {{counter, (u32)step, (u32)(step >> 32), PURPOSE_DROPOUT}};
        const Words drawn = philox(at, key.word[0], key.word[1]);
        for (u32 j = 0; j < 4 && 4 * block + j < features; j++) {
            const u64 element = row * features + 4 * block + j;
            const float uniform = t_uniform(drawn.word[j]);
            values[element] = uniform < rate ? 0.0f : values[element] * scale;
        }
    }
}
