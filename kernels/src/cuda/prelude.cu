// What every kernel here may use. It is put before each source: NVRTC comes without headers, so nothing is included.
//
// A kernel's arithmetic is the CPU's, operation by operation: `+ - * /`, `sqrtf` and `fmaf` round once, to nearest, ties to
// even, subnormal numbers included (compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true), so that the same
// inputs give the same bits on either. `exp`, `ln` and `tanh` are those of kernels/src/math.rs, written out again.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;

// Shared memory whose size the launch says. The emulator has a definition of its own.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

// A loop over all elements, shared among all threads of the grid: neighbours in a warp have neighbouring elements, so
// that their loads are one. The grid may be of any size.
#define EACH(i, elements)                                                                                              \
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (elements); i += gridDim.x * (u64)blockDim.x)

// Whether a number is neither infinite nor NaN: its exponent is not all ones.
static __device__ inline bool is_finite(float value)
{
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// 2^n for n from -126 to 127.
static __device__ inline float power_of_two(i32 n)
{
    return __uint_as_float(((u32)n + 127u) << 23);
}

// As exp in math.rs, which says why.
static __device__ inline float t_exp(float x)
{
    const float round = 12582912.0f;
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float shifted = fmaf(x, 1.44269504088896340736f, round);
    const float n = shifted - round;
    const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.3814317e-3f;
    p = fmaf(r, p, 8.368851e-3f);
    p = fmaf(r, p, 4.16684e-2f);
    p = fmaf(r, p, 0.1666652f);
    p = fmaf(r, p, 0.49999994f);
    const float y = fmaf(r * r, p, r) + 1.0f;
    const i32 whole = (i32)(__float_as_uint(shifted) - __float_as_uint(round));
    const i32 half = whole >> 1;
    return y * power_of_two(half) * power_of_two((i32)((u32)whole - (u32)half));
}

// As ln in math.rs.
static __device__ inline float t_ln(float x)
{
    const bool subnormal = x < __uint_as_float(0x00800000u);
    const u32 bits = __float_as_uint(subnormal ? x * 8388608.0f : x);
    const i32 exponent = (i32)(bits - 0x3f3504f3u) >> 23;
    const float f = __uint_as_float(bits - ((u32)exponent << 23)) - 1.0f;
    const float n = (float)exponent - (subnormal ? 23.0f : 0.0f);
    float p = 6.746556e-2f;
    p = fmaf(f, p, -0.11679616f);
    p = fmaf(f, p, 0.11890322f);
    p = fmaf(f, p, -0.12405142f);
    p = fmaf(f, p, 0.14219226f);
    p = fmaf(f, p, -0.16668007f);
    p = fmaf(f, p, 0.20002134f);
    p = fmaf(f, p, -0.2500001f);
    p = fmaf(f, p, 0.33333313f);
    const float square = f * f;
    const float low = fmaf(n, -2.1219444e-4f, (square * f) * p);
    float y = fmaf(n, 0.6933594f, fmaf(square, -0.5f, low) + f);
    const float infinity = __uint_as_float(0x7f800000u);
    y = x == infinity ? x : y;
    y = x == 0.0f ? -infinity : y;
    return x >= 0.0f ? y : __uint_as_float(0x7fc00000u);
}

// As tanh in math.rs.
static __device__ inline float t_tanh(float x)
{
    const float a = fabsf(x);
    const float square = a * a;
    float p = -5.6483173e-3f;
    p = fmaf(square, p, 2.0589827e-2f);
    p = fmaf(square, p, -5.3725127e-2f);
    p = fmaf(square, p, 0.13331275f);
    p = fmaf(square, p, -0.33333275f);
    const float near_zero = fmaf(square * a, p, a);
    const float far_off = 1.0f - 2.0f / (t_exp(a + a) + 1.0f);
    return copysignf(a < 0.625f ? near_zero : far_off, x);
}

#define REDUCTION_LANES 16

// The sum of sixteen lanes, for the first of them. All threads of the warp must come here.
static __device__ inline double lanes_to_sum(double sum)
{
    for (u32 distance = REDUCTION_LANES / 2; distance > 0; distance /= 2) {
        sum = sum + __shfl_down_sync(0xffffffffu, sum, distance, REDUCTION_LANES);
    }
    return sum;
}

struct Words {
    u32 word[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), as kernels/src/random.rs has it.
static __device__ inline Words philox(Words counter, u32 key_0, u32 key_1)
{
    for (u32 round = 0; round < 10; round++) {
        const u64 a = (u64)counter.word[0] * 0xd2511f53u, b = (u64)counter.word[2] * 0xcd9e8d57u;
        const Words next = {{(u32)(b >> 32) ^ counter.word[1] ^ key_0, (u32)b, (u32)(a >> 32) ^ counter.word[3] ^ key_1, (u32)a}};
        counter = next;
        key_0 += 0x9e3779b9u;
        key_1 += 0xbb67ae85u;
    }
    return counter;
}

// What a stream's key is drawn with.
#define STREAM_KEY 0x73747265u

// A number uniform in [0, 1) of a draw's word.
static __device__ inline float t_uniform(u32 word)
{
    return (float)(word >> 8) * 5.9604644775390625e-8f; // 2^-24
}
