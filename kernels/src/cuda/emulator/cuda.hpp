// CUDA's words as C++: as many as our kernels use.
#pragma once

#include <cmath>

#include "fibres.hpp"

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(emulator::machine.dynamic_shared.data())

#define threadIdx (emulator::machine.fibres[emulator::machine.current]->index)
#define blockIdx (emulator::machine.block_index)
#define blockDim (emulator::machine.block)
#define gridDim (emulator::machine.grid)
#define warpSize 32

#define EMULATOR_HERE (emulator::Place{__FILE__, __LINE__})
#define __syncthreads() (void)emulator::wait(emulator::State::at_block, EMULATOR_HERE)
#define __syncwarp(...) (void)emulator::meet(EMULATOR_HERE, emulator::Exchange::nothing, 0xffffffffu, 0, 0)
#define __ballot_sync(mask, predicate)                                                                                 \
    static_cast<unsigned>(emulator::meet(EMULATOR_HERE, emulator::Exchange::ballot, mask, (predicate) ? 1 : 0, 0))
#define __shfl_sync(mask, value, source, ...) emulator::shuffle(EMULATOR_HERE, mask, value, emulator::indexed(source, ##__VA_ARGS__))
#define __shfl_down_sync(mask, value, by, ...) emulator::shuffle(EMULATOR_HERE, mask, value, emulator::down(by, ##__VA_ARGS__))
#define __shfl_up_sync(mask, value, by, ...) emulator::shuffle(EMULATOR_HERE, mask, value, emulator::up(by, ##__VA_ARGS__))
#define __shfl_xor_sync(mask, value, by, ...) emulator::shuffle(EMULATOR_HERE, mask, value, emulator::lane() ^ (by))

namespace emulator {

// The lane that a shuffle within segments of `width` lanes reads: one's own if there is none.
inline unsigned indexed(unsigned source, unsigned width = warp_size) { return lane() / width * width + source % width; }
inline unsigned down(unsigned by, unsigned width = warp_size) { return lane() % width + by < width ? lane() + by : lane(); }
inline unsigned up(unsigned by, unsigned width = warp_size) { return lane() % width >= by ? lane() - by : lane(); }

template <class T> T shuffle(Place place, uint32_t mask, T value, unsigned from)
{
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t given = 0;
    memcpy(&given, &value, sizeof(T));
    const uint64_t received = meet(place, Exchange::value, mask, given, from);
    memcpy(&value, &received, sizeof(T));
    return value;
}

} // namespace emulator

// Only one fibre runs at a time, so that nothing comes between the two halves.
template <class T, class U> T atomicMin(T *at, U value)
{
    const T old = *at;
    *at = std::min(old, static_cast<T>(value));
    return old;
}
template <class T, class U> T atomicMax(T *at, U value)
{
    const T old = *at;
    *at = std::max(old, static_cast<T>(value));
    return old;
}
template <class T, class U> T atomicAdd(T *at, U value)
{
    const T old = *at;
    *at = old + static_cast<T>(value);
    return old;
}
template <class T, class U> T atomicOr(T *at, U value)
{
    const T old = *at;
    *at = old | static_cast<T>(value);
    return old;
}

inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __brev(unsigned bits)
{
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) {
        reversed |= (bits >> bit & 1) << (31 - bit);
    }
    return reversed;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
