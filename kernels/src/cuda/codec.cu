// Wire codecs: the twins of kernels/src/codec/, whose files say what is on the wire and why. Bytes and residuals are the CPU's.
//
// A codec with feedback encodes from the residual, to which the values have been added (`add_checked`), and leaves in it what is lost.
//
// Checks look for what no encoder writes and say the lowest of `first`, a number by which the host knows fault and place. They run
// before anything is decoded: what is refused has changed nothing.

#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

// f32: each number as it is.
extern "C" __global__ void f32_copy(const u32 *from, u32 *to, u64 elements)
{
    EACH(i, elements) {
        to[i] = from[i];
    }
}

// The nearest binary16, saturating.
static __device__ inline u16 f16_narrow(float value)
{
    const u32 bits = __float_as_uint(value);
    const u32 magnitude = bits & MAGNITUDE;
    const u32 rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const u32 normal = rounded - (112u << 10);
    const u32 subnormal = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
    u32 finite = magnitude < 0x38800000u ? subnormal : normal;
    finite = finite < 0x7bffu ? finite : 0x7bffu;
    const u32 other = magnitude > INFINITE ? 0x7e00u : 0x7c00u;
    return (u16)((bits >> 16 & 0x8000u) | (magnitude < INFINITE ? finite : other));
}

static __device__ inline float f16_widen(u16 half)
{
    const u32 magnitude = half & 0x7fffu;
    const u32 normal = (magnitude << 13) + (112u << 23);
    const u32 subnormal = __float_as_uint((float)(i32)magnitude * 5.9604644775390625e-8f); // 2^-24
    const u32 finite = magnitude < 0x400u ? subnormal : normal;
    const u32 wide = magnitude < 0x7c00u ? finite : (magnitude << 13 | INFINITE);
    return __uint_as_float((u32)(half & 0x8000u) << 16 | wide);
}

extern "C" __global__ void f16_encode(const float *values, u16 *halves, u64 elements)
{
    EACH(i, elements) {
        halves[i] = f16_narrow(values[i]);
    }
}

extern "C" __global__ void f16_decode(const u16 *halves, float *values, u64 elements)
{
    EACH(i, elements) {
        values[i] = f16_widen(halves[i]);
    }
}

// The nearest bfloat16, saturating.
static __device__ inline u16 bf16_narrow(float value)
{
    const u32 bits = __float_as_uint(value);
    const u32 magnitude = bits & MAGNITUDE;
    u32 rounded = (magnitude + 0x7fffu + (magnitude >> 16 & 1u)) >> 16;
    rounded = rounded < 0x7f7fu ? rounded : 0x7f7fu;
    const u32 other = magnitude >> 16 | (magnitude > INFINITE ? 0x40u : 0u);
    return (u16)((bits >> 16 & 0x8000u) | (magnitude < INFINITE ? rounded : other));
}

extern "C" __global__ void bf16_encode(const float *values, u16 *halves, u64 elements)
{
    EACH(i, elements) {
        halves[i] = bf16_narrow(values[i]);
    }
}

extern "C" __global__ void bf16_decode(const u16 *halves, float *values, u64 elements)
{
    EACH(i, elements) {
        values[i] = __uint_as_float((u32)halves[i] << 16);
    }
}

// int8: a block of threads has a block of elements, the scales of all come before the codes of all.
#define INT8_BLOCK 256
#define INT8_WARPS (INT8_BLOCK / 32)
#define INT8_ROUNDER 12582912.0f

// The scale of the block, known to all of its threads. A maximum of integers has no order to keep.
static __device__ inline float int8_scale(u32 magnitude)
{
    __shared__ u32 largest_of[INT8_WARPS];
    for (u32 distance = 16; distance > 0; distance /= 2) {
        const u32 other = __shfl_xor_sync(0xffffffffu, magnitude, distance);
        magnitude = other > magnitude ? other : magnitude;
    }
    if (threadIdx.x % 32 == 0) {
        largest_of[threadIdx.x / 32] = magnitude;
    }
    __syncthreads();
    u32 largest = 0;
    for (u32 warp = 0; warp < INT8_WARPS; warp++) {
        largest = largest_of[warp] > largest ? largest_of[warp] : largest;
    }
    // Before the next block's are written.
    __syncthreads();
    const float scale = __uint_as_float(largest) / 127.0f;
    if (scale < __uint_as_float(0x00800000u)) {
        return 0.0f;
    }
    return is_finite(scale * 127.0f) ? scale : __uint_as_float(__float_as_uint(scale) - 1u);
}

// The code, plus INT8_ROUNDER: its lowest byte is the code in two's complement.
static __device__ inline float int8_code(float value, float inverse)
{
    float units = value * inverse;
    units = units > 127.0f ? 127.0f : units;
    units = units < -127.0f ? -127.0f : units;
    return units + INT8_ROUNDER;
}

extern "C" __global__ void int8_encode(const float *values, u8 *bytes, u64 elements)
{
    const u64 blocks = (elements + INT8_BLOCK - 1) / INT8_BLOCK;
    for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
        const u64 i = block * INT8_BLOCK + threadIdx.x;
        const float value = i < elements ? values[i] : 0.0f;
        const float scale = int8_scale(__float_as_uint(value) & MAGNITUDE);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        if (threadIdx.x == 0) {
            ((float *)bytes)[block] = scale;
        }
        if (i < elements) {
            bytes[4 * blocks + i] = (u8)__float_as_uint(int8_code(value, inverse));
        }
    }
}

extern "C" __global__ void int8_encode_feedback(float *residual, u8 *bytes, u64 elements)
{
    const u64 blocks = (elements + INT8_BLOCK - 1) / INT8_BLOCK;
    for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
        const u64 i = block * INT8_BLOCK + threadIdx.x;
        const float value = i < elements ? residual[i] : 0.0f;
        const float scale = int8_scale(__float_as_uint(value) & MAGNITUDE);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        if (threadIdx.x == 0) {
            ((float *)bytes)[block] = scale;
        }
        if (i < elements) {
            const float code = int8_code(value, inverse);
            bytes[4 * blocks + i] = (u8)__float_as_uint(code);
            residual[i] = value - (code - INT8_ROUNDER) * scale;
        }
    }
}

// A fault of a scale is its block, one of a code its byte, which lies behind all blocks' numbers.
extern "C" __global__ void int8_check(const u8 *bytes, u64 elements, u64 *first)
{
    const u64 blocks = (elements + INT8_BLOCK - 1) / INT8_BLOCK;
    EACH(i, elements) {
        if (i < blocks) {
            const float scale = ((const float *)bytes)[i];
            if ((__float_as_uint(scale) & ~MAGNITUDE) != 0 || !is_finite(scale * 127.0f)) {
                atomicMin(first, i);
            }
        }
        if (bytes[4 * blocks + i] == 0x80) {
            atomicMin(first, 4 * blocks + i);
        }
    }
}

extern "C" __global__ void int8_decode(const u8 *bytes, float *values, u64 elements)
{
    const u64 blocks = (elements + INT8_BLOCK - 1) / INT8_BLOCK;
    EACH(i, elements) {
        const float scale = ((const float *)bytes)[i / INT8_BLOCK];
        values[i] = (float)(signed char)bytes[4 * blocks + i] * scale;
    }
}

// Whether a byte has bits behind the last element, with `in_byte` elements in a byte.
static __device__ inline bool is_padded(u8 byte, u64 at, u64 elements, u32 in_byte)
{
    const u64 whole = elements / in_byte;
    const u32 over = (u32)(elements % in_byte);
    const u32 rest = at > whole || over == 0 ? 0xffu : 0xffu >> (over * 8 / in_byte);
    return at < whole || (byte & rest) == 0;
}

// 2bit: a thread has a byte, four elements.
extern "C" __global__ void two_bit_encode(float *residual, u8 *bytes, float threshold, u64 elements, u64 count)
{
    EACH(at, count) {
        u32 byte = 0;
        for (u32 j = 0; j < 4; j++) {
            const u64 i = 4 * at + j;
            if (i < elements) {
                const float value = residual[i];
                const bool above = value >= threshold, below = value <= -threshold;
                residual[i] = value - (above ? threshold : below ? -threshold : 0.0f);
                byte |= ((above || below ? 2u : 0u) | (above ? 1u : 0u)) << (6 - 2 * j);
            }
        }
        bytes[at] = (u8)byte;
    }
}

// A fault of a code is its byte; one of the padding, which counts only if no code has one, is its byte behind all of them.
extern "C" __global__ void two_bit_check(const u8 *bytes, u64 elements, u64 count, u64 *first)
{
    EACH(at, count) {
        const u32 byte = bytes[at];
        if ((byte & ~(byte >> 1) & 0x55u) != 0) {
            atomicMin(first, at);
        }
        if (!is_padded((u8)byte, at, elements, 4)) {
            atomicMin(first, count + at);
        }
    }
}

extern "C" __global__ void two_bit_decode(const u8 *bytes, float *values, float threshold, u64 elements)
{
    EACH(i, elements) {
        const u32 code = bytes[i / 4] >> (6 - 2 * (i % 4)) & 3u;
        const float magnitude = (code & 2u) != 0 ? threshold : 0.0f;
        values[i] = code == 2u ? -magnitude : magnitude;
    }
}

// 1bit: a warp has a word, each of its threads an element, and the vote of the warp is the word: the first element in its
// lowest bit, which the wire has in the highest of the first byte.
extern "C" __global__ void one_bit_encode(float *residual, u32 *words, float threshold, u64 elements)
{
    for (u64 start = blockIdx.x * (u64)blockDim.x; start < elements; start += gridDim.x * (u64)blockDim.x) {
        const u64 i = start + threadIdx.x;
        bool above = false;
        if (i < elements) {
            const float value = residual[i];
            above = value > threshold;
            residual[i] = value - (above ? 1.0f : -1.0f);
        }
        const u32 vote = __brev(__ballot_sync(0xffffffffu, above));
        if (threadIdx.x % 32 == 0 && i < elements) {
            words[i / 32] = vote >> 24 | (vote >> 8 & 0xff00u) | (vote << 8 & 0xff0000u) | vote << 24;
        }
    }
}

extern "C" __global__ void one_bit_check(const u8 *bytes, u64 elements, u64 count, u64 *first)
{
    EACH(at, count) {
        if (!is_padded(bytes[at], at, elements, 8)) {
            atomicMin(first, at);
        }
    }
}

extern "C" __global__ void one_bit_decode(const u8 *bytes, float *values, u64 elements)
{
    EACH(i, elements) {
        values[i] = (bytes[i / 8] >> (7 - i % 8) & 1) == 1 ? 1.0f : -1.0f;
    }
}

// topk. The least magnitude that is sent is found digit by digit: how many of those that share the digits known so far have each
// value of the next one. The host reads the counts and settles the digit. Few values are common, so that all threads of the grid would meet
// at a few counters: each block counts for itself first.
#define TOP_K_DIGIT 2048

extern "C" __global__ void top_k_digits(
    const float *residual, u64 *counts, u32 settled, u32 found, u32 shift, u32 mask, u64 elements)
{
    __shared__ u64 mine[TOP_K_DIGIT];
    for (u32 digit = threadIdx.x; digit < TOP_K_DIGIT; digit += blockDim.x) {
        mine[digit] = 0;
    }
    __syncthreads();
    EACH(i, elements) {
        const u32 magnitude = __float_as_uint(residual[i]) & MAGNITUDE;
        if ((magnitude & settled) == found) {
            atomicAdd(&mine[magnitude >> shift & mask], (u64)1);
        }
    }
    __syncthreads();
    for (u32 digit = threadIdx.x; digit < TOP_K_DIGIT; digit += blockDim.x) {
        if (mine[digit] > 0) {
            atomicAdd(&counts[digit], mine[digit]);
        }
    }
}

// Then where each goes: its place is the number of those before it that are sent. Sixteen rounds of a block of threads make a chunk.
#define TOP_K_THREADS 256
#define TOP_K_CHUNK 4096

// How many of each chunk are above the threshold, and how many equal it: two rows of numbers.
extern "C" __global__ void top_k_count(const float *residual, u64 *counts, u32 threshold, u64 elements)
{
    const u64 chunks = (elements + TOP_K_CHUNK - 1) / TOP_K_CHUNK;
    EACH(i, elements) {
        const u32 magnitude = __float_as_uint(residual[i]) & MAGNITUDE;
        if (magnitude > threshold) {
            atomicAdd(&counts[i / TOP_K_CHUNK], (u64)1);
        }
        if (magnitude == threshold) {
            atomicAdd(&counts[chunks + i / TOP_K_CHUNK], (u64)1);
        }
    }
}

// Turns each row's counts into the numbers of those in the chunks before. One block of threads for each row, of which one adds.
extern "C" __global__ void top_k_before(u64 *counts, u64 chunks)
{
    __shared__ u64 fetched[TOP_K_THREADS];
    u64 *row = counts + blockIdx.x * chunks;
    u64 before = 0;
    for (u64 start = 0; start < chunks; start += TOP_K_THREADS) {
        const u64 mine = start + threadIdx.x;
        fetched[threadIdx.x] = mine < chunks ? row[mine] : 0;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < TOP_K_THREADS; i++) {
                const u64 count = fetched[i];
                fetched[i] = before;
                before += count;
            }
        }
        __syncthreads();
        if (mine < chunks) {
            row[mine] = fetched[threadIdx.x];
        }
    }
}

// Emits all above the threshold, and of those that equal it the first `equals`: k in all. `places` has k indices, then k numbers.
extern "C" __global__ void top_k_emit(
    float *residual, u32 *places, const u64 *before, u32 threshold, u64 equals, u64 k, u64 elements)
{
    __shared__ u32 above_of[TOP_K_THREADS / 32];
    __shared__ u32 equal_of[TOP_K_THREADS / 32];
    const u64 chunks = (elements + TOP_K_CHUNK - 1) / TOP_K_CHUNK;
    const u32 warp = threadIdx.x / 32;
    const u32 lower = (1u << threadIdx.x % 32) - 1;
    for (u64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        u64 above_before = before[chunk], equal_before = before[chunks + chunk];
        for (u32 round = 0; round < TOP_K_CHUNK / TOP_K_THREADS; round++) {
            const u64 i = chunk * TOP_K_CHUNK + round * TOP_K_THREADS + threadIdx.x;
            const float value = i < elements ? residual[i] : 0.0f;
            const u32 magnitude = __float_as_uint(value) & MAGNITUDE;
            const bool is_above = i < elements && magnitude > threshold;
            const bool is_equal = i < elements && magnitude == threshold;
            const u32 aboves = __ballot_sync(0xffffffffu, is_above);
            const u32 all_equal = __ballot_sync(0xffffffffu, is_equal);
            if (threadIdx.x % 32 == 0) {
                above_of[warp] = __popc(aboves);
                equal_of[warp] = __popc(all_equal);
            }
            __syncthreads();
            u64 above = above_before + __popc(aboves & lower), equal = equal_before + __popc(all_equal & lower);
            for (u32 other = 0; other < TOP_K_THREADS / 32; other++) {
                above += other < warp ? above_of[other] : 0;
                equal += other < warp ? equal_of[other] : 0;
                above_before += above_of[other];
                equal_before += equal_of[other];
            }
            if (is_above || (is_equal && equal < equals)) {
                const u64 place = above + (equal < equals ? equal : equals);
                places[place] = (u32)i;
                places[k + place] = __float_as_uint(value);
                residual[i] = 0.0f;
            }
            // Before the next round's numbers are put where this one's are read.
            __syncthreads();
        }
    }
}

// Indices must ascend, within the slice.
extern "C" __global__ void top_k_check(const u32 *places, u64 k, u64 elements, u64 *first)
{
    EACH(at, k) {
        if (places[at] >= elements || (at > 0 && places[at] <= places[at - 1])) {
            atomicMin(first, at);
        }
    }
}

extern "C" __global__ void top_k_zero(float *values, u64 elements)
{
    EACH(i, elements) {
        values[i] = 0.0f;
    }
}

extern "C" __global__ void top_k_scatter(const u32 *places, float *values, u64 k)
{
    EACH(at, k) {
        values[places[at]] = __uint_as_float(places[k + at]);
    }
}
