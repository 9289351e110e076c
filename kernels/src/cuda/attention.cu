// Causal self-attention, in the order of kernels/src/layers/attention.rs: blocks of 64 keys, ascending, and chains of fused
// multiply-adds that start at +0 in each. A block of threads has one query, or in the backward pass one key, of one head at a time:
// first each thread has a partner of it, then each has features. No matrix of positions by positions is kept.
//
// `qkv` and its gradient are tokens x 3 heads size (queries, keys, values), `out` and `dy` tokens x heads size; `kept` and `delta` are
// heads x tokens. Examples have `positions` tokens each, the last one perhaps fewer.

#define ATTENTION_BLOCK 64
#define PURPOSE_ATTENTION_DROPOUT 6u

// What is left of a query's share of a key, or of its gradient, where shares are dropped: drops.rs in kernels/src/layers/attention/ says
// what is drawn for which. `row` counts queries over all of an example's layers and heads.
static __device__ inline float left_of(
    float value, float rate, u64 seed, u64 step, u64 example, u64 row, u64 positions, u64 key)
{
    if (!(rate > 0.0f)) {
        return value;
    }
    const Words of_stream = {{(u32)example, (u32)(example >> 32), PURPOSE_ATTENTION_DROPOUT, STREAM_KEY}};
    const Words stream = philox(of_stream, (u32)seed, (u32)(seed >> 32));
    const u32 counter = (u32)(row * ((positions + 3) / 4) + key / 4);
    const Words at = {{counter, (u32)step, (u32)(step >> 32), PURPOSE_ATTENTION_DROPOUT}};
    const Words drawn = philox(at, stream.word[0], stream.word[1]);
    return t_uniform(drawn.word[key % 4]) < rate ? 0.0f : value * (1.0f / (1.0f - rate));
}

// The forward product of a query, scaled, and a key; of a value and a gradient, which are not.
static __device__ inline float chain(const float *a, const float *b, float scale, u32 size)
{
    float sum = 0.0f;
    for (u32 d = 0; d < size; d++) {
        sum = fmaf(a[d], b[d] * scale, sum);
    }
    return sum;
}

extern "C" __global__ void attention_forward(
    const float *qkv, float *out, float *kept, float scale, u32 heads, u32 size, u64 positions, u64 tokens,
    float rate, u64 seed, u64 step, u64 first_example, u64 site)
{
    __shared__ float shares[ATTENTION_BLOCK];
    __shared__ float left[ATTENTION_BLOCK];
    const u32 mine = threadIdx.x;
    const u64 width = (u64)heads * size;
    for (u64 unit = blockIdx.x; unit < tokens * heads; unit += gridDim.x) {
        const u64 token = unit % tokens, head = unit / tokens;
        const u64 first = token / positions * positions, at = token - first;
        const u64 here = tokens - first < positions ? tokens - first : positions;
        const float *query = qkv + token * 3 * width + head * size;
        float *result = out + token * width + head * size;
        float greatest = -__uint_as_float(0x7f800000u), sum = 0.0f;
        for (u64 start = 0; start <= at; start += ATTENTION_BLOCK) {
            const u32 count = here - start < ATTENTION_BLOCK ? (u32)(here - start) : ATTENTION_BLOCK;
            const float *keys = qkv + (first + start) * 3 * width + width + head * size;
            const float *values = keys + width;
            float score = -__uint_as_float(0x7f800000u);
            if (mine < count && start + mine <= at) {
                score = chain(keys + mine * 3 * width, query, scale, size);
            }
            shares[mine] = score;
            __syncthreads();
            const float before = greatest;
            for (u32 key = 0; key < count; key++) {
                greatest = shares[key] > greatest ? shares[key] : greatest;
            }
            __syncthreads();
            shares[mine] = t_exp(score - greatest);
            left[mine] = left_of(shares[mine], rate, seed, step, first_example + token / positions,
                                 (site * heads + head) * positions + at, positions, start + mine);
            __syncthreads();
            const float fade = t_exp(before - greatest);
            sum = sum * fade;
            for (u32 key = 0; key < count; key++) {
                sum = sum + shares[key];
            }
            for (u32 d = mine; d < size; d += ATTENTION_BLOCK) {
                float part = 0.0f;
                for (u32 key = 0; key < count; key++) {
                    part = fmaf(left[key], values[key * 3 * width + d], part);
                }
                result[d] = fmaf(start == 0 ? 0.0f : result[d], fade, part);
            }
            // Before the next keys' shares are put where these are read.
            __syncthreads();
        }
        for (u32 d = mine; d < size; d += ATTENTION_BLOCK) {
            result[d] = result[d] / sum;
        }
        if (mine == 0) {
            kept[head * tokens + token] = greatest + t_ln(sum);
        }
    }
}

extern "C" __global__ void attention_delta(const float *out, const float *dy, float *delta, u32 heads, u32 size, u64 tokens)
{
    EACH(unit, tokens * heads) {
        const u64 row = (unit % tokens * heads + unit / tokens) * size;
        delta[unit] = chain(out + row, dy + row, 1.0f, size);
    }
}

// The share that a query gives a key, or what is left of it, and the gradient of their score. `row` and `at` are the query's and the key's
// places, by which shares are dropped.
static __device__ inline void slope_of(const float *query, const float *key, const float *value, const float *dy, float scale,
                                       u32 size, bool is_seen, float kept, float delta, float rate, u64 seed, u64 step,
                                       u64 example, u64 row, u64 positions, u64 at, float *share, float *slope)
{
    const float score = is_seen ? chain(key, query, scale, size) : -__uint_as_float(0x7f800000u);
    const float whole = t_exp(score - kept);
    const float through = left_of(chain(value, dy, 1.0f, size), rate, seed, step, example, row, positions, at);
    *slope = whole * (through - delta);
    *share = left_of(whole, rate, seed, step, example, row, positions, at);
}

// The gradient of the queries.
extern "C" __global__ void attention_queries(const float *qkv, const float *kept, const float *delta, const float *dy,
                                             float *gradient, float scale, u32 heads, u32 size, u64 positions, u64 tokens,
    float rate, u64 seed, u64 step, u64 first_example, u64 site)
{
    __shared__ float slopes[ATTENTION_BLOCK];
    const u32 mine = threadIdx.x;
    const u64 width = (u64)heads * size;
    for (u64 unit = blockIdx.x; unit < tokens * heads; unit += gridDim.x) {
        const u64 token = unit % tokens, head = unit / tokens;
        const u64 first = token / positions * positions, at = token - first;
        const u64 here = tokens - first < positions ? tokens - first : positions;
        const float *query = qkv + token * 3 * width + head * size;
        const float *of_result = dy + token * width + head * size;
        float *of_query = gradient + token * 3 * width + head * size;
        for (u64 start = 0; start <= at; start += ATTENTION_BLOCK) {
            const u32 count = here - start < ATTENTION_BLOCK ? (u32)(here - start) : ATTENTION_BLOCK;
            const float *keys = qkv + (first + start) * 3 * width + width + head * size;
            if (mine < count) {
                const float *key = keys + mine * 3 * width;
                float share;
                slope_of(query, key, key + width, of_result, scale, size, start + mine <= at, kept[unit], delta[unit], rate,
                         seed, step, first_example + token / positions, (site * heads + head) * positions + at, positions,
                         start + mine, &share, &slopes[mine]);
            }
            __syncthreads();
            for (u32 d = mine; d < size; d += ATTENTION_BLOCK) {
                float part = 0.0f;
                for (u32 key = 0; key < count; key++) {
                    part = fmaf(slopes[key], keys[key * 3 * width + d], part);
                }
                of_query[d] = (start == 0 ? 0.0f : of_query[d]) + part;
            }
            // Before the next keys' slopes are put where these are read.
            __syncthreads();
        }
        for (u32 d = mine; d < size; d += ATTENTION_BLOCK) {
            of_query[d] = of_query[d] * scale;
        }
    }
}

// The gradients of keys and values.
extern "C" __global__ void attention_keys(const float *qkv, const float *kept, const float *delta, const float *dy,
                                          float *gradient, float scale, u32 heads, u32 size, u64 positions, u64 tokens,
    float rate, u64 seed, u64 step, u64 first_example, u64 site)
{
    __shared__ float shares[ATTENTION_BLOCK];
    __shared__ float slopes[ATTENTION_BLOCK];
    const u32 mine = threadIdx.x;
    const u64 width = (u64)heads * size;
    for (u64 unit = blockIdx.x; unit < tokens * heads; unit += gridDim.x) {
        const u64 token = unit % tokens, head = unit / tokens;
        const u64 first = token / positions * positions, at = token - first;
        const u64 here = tokens - first < positions ? tokens - first : positions;
        const u64 own = at / ATTENTION_BLOCK * ATTENTION_BLOCK;
        const float *key = qkv + token * 3 * width + width + head * size;
        float *of_key = gradient + token * 3 * width + width + head * size;
        float *of_value = of_key + width;
        for (u64 start = own; start < here; start += ATTENTION_BLOCK) {
            const u32 count = here - start < ATTENTION_BLOCK ? (u32)(here - start) : ATTENTION_BLOCK;
            const float *queries = qkv + (first + start) * 3 * width + head * size;
            const float *of_results = dy + (first + start) * width + head * size;
            if (mine < count) {
                const u64 row = head * tokens + first + start + mine;
                slope_of(queries + mine * 3 * width, key, key + width, of_results + mine * width, scale, size,
                         start + mine >= at, kept[row], delta[row], rate, seed, step, first_example + token / positions,
                         (site * heads + head) * positions + start + mine, positions, at, &shares[mine], &slopes[mine]);
            }
            __syncthreads();
            for (u32 d = mine; d < size; d += ATTENTION_BLOCK) {
                float to_value = 0.0f, to_key = 0.0f;
                for (u32 query = 0; query < count; query++) {
                    to_value = fmaf(shares[query], of_results[query * width + d], to_value);
                    to_key = fmaf(slopes[query], queries[query * 3 * width + d] * scale, to_key);
                }
                of_value[d] = (start == own ? 0.0f : of_value[d]) + to_value;
                of_key[d] = (start == own ? 0.0f : of_key[d]) + to_key;
            }
            // Before the next queries' are put where these are read.
            __syncthreads();
        }
    }
}
