// A block of threads on one thread of the host: each is a fibre, with a stack and registers of its own, that runs until it
// waits for others or ends. The scheduler then goes on with the next.
//
// 1. A barrier lets nobody pass before all have come to it. Threads that wait for what can no longer happen, because another has
//    ended or waits elsewhere, are an error that names both places. (A GPU may hang then, or go on with garbage.)
// 2. What a warp exchanges is exchanged by the scheduler, when all lanes of the mask wait at the same place.
// 3. Threads, warps and blocks run in an order that the launch's seed chooses, a warp as far ahead of the others as it may: a
//    kernel whose result depends on the order lacks a barrier.
// 4. Shared memory is filled with ones before each block (NaN, as numbers): nothing is left over from the block before.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "memory.hpp"

namespace emulator {

struct Index {
    unsigned x = 0, y = 0, z = 0;
    unsigned count() const { return x * y * z; }
};

// Where in a source a thread waits.
struct Place {
    const char *file = "";
    int line = 0;
    bool operator==(const Place &other) const { return line == other.line && strcmp(file, other.file) == 0; }
    std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class State { ready, at_block, at_warp, done };
enum class Exchange { nothing, value, ballot };

constexpr unsigned warp_size = 32;
constexpr size_t stack_bytes = 256 * 1024;

struct Fibre {
    ucontext_t context;
    Buffer stack = Buffer(stack_bytes);
    Index index;
    State state = State::ready;
    Place place;
    // Of an exchange within the warp: who takes part, what is given, whose is wanted, what came.
    Exchange exchange = Exchange::nothing;
    uint32_t mask = 0;
    uint64_t given = 0, received = 0;
    unsigned wanted = 0;
};

struct Machine {
    Index block, grid, block_index;
    std::vector<std::unique_ptr<Fibre>> fibres;
    unsigned current = 0;
    ucontext_t scheduler;
    std::function<void()> kernel;
    Buffer dynamic_shared;
    std::mt19937 random;
    bool shuffled = false;
};

inline Machine machine;

inline std::string thread_name(unsigned thread) { return "thread " + std::to_string(thread); }

// Gives the processor back until the scheduler finds that all have come.
inline uint64_t wait(State state, Place place)
{
    Fibre &fibre = *machine.fibres[machine.current];
    fibre.state = state;
    fibre.place = place;
    swapcontext(&fibre.context, &machine.scheduler);
    return fibre.received;
}

inline unsigned lane() { return machine.current % warp_size; }

inline uint64_t meet(Place place, Exchange exchange, uint32_t mask, uint64_t given, unsigned wanted)
{
    Fibre &fibre = *machine.fibres[machine.current];
    if ((mask >> lane() & 1) == 0) {
        fail(place.text() + ": " + thread_name(machine.current) + " is not in its own mask");
    }
    fibre.exchange = exchange;
    fibre.mask = mask;
    fibre.given = given;
    fibre.wanted = wanted;
    return wait(State::at_warp, place);
}

inline void enter()
{
    machine.kernel();
    machine.fibres[machine.current]->state = State::done;
}

// Lets the lanes of one meeting go, once all are there.
inline bool release_meeting(unsigned first, unsigned thread)
{
    Fibre &one = *machine.fibres[thread];
    std::vector<Fibre *> lanes(warp_size, nullptr);
    uint64_t ballot = 0;
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if ((one.mask >> lane & 1) == 0) {
            continue;
        }
        if (first + lane >= machine.block.count()) {
            fail(one.place.text() + ": the mask has lane " + std::to_string(lane) + ", but the block ends before it");
        }
        Fibre &other = *machine.fibres[first + lane];
        if (other.state != State::at_warp || !(other.place == one.place) || other.mask != one.mask) {
            return false;
        }
        lanes[lane] = &other;
        ballot |= static_cast<uint64_t>(other.given != 0) << lane;
    }
    for (Fibre *fibre : lanes) {
        if (fibre == nullptr) {
            continue;
        }
        if (fibre->exchange == Exchange::value && lanes[fibre->wanted % warp_size] == nullptr) {
            fail(one.place.text() + ": lane " + std::to_string(fibre->wanted) + " is read, but is not in the mask");
        }
        fibre->received = fibre->exchange == Exchange::value ? lanes[fibre->wanted % warp_size]->given : ballot;
    }
    for (Fibre *fibre : lanes) {
        if (fibre != nullptr) {
            fibre->state = State::ready;
        }
    }
    return true;
}

// Lets those lanes of a warp go whose meeting is complete; false if there are none.
inline bool release_warp(unsigned first)
{
    bool released = false;
    for (unsigned thread = first; thread < std::min(first + warp_size, machine.block.count()); thread++) {
        released |= machine.fibres[thread]->state == State::at_warp && release_meeting(first, thread);
    }
    return released;
}

// Lets all threads go if all of them wait at the same barrier.
inline bool release_block()
{
    for (const auto &fibre : machine.fibres) {
        if (fibre->state != State::at_block || !(fibre->place == machine.fibres[0]->place)) {
            return false;
        }
    }
    for (auto &fibre : machine.fibres) {
        fibre->state = State::ready;
    }
    return true;
}

// Names the first thread that waits, and one that it waits for.
[[noreturn]] inline void deadlock()
{
    const unsigned threads = machine.block.count();
    unsigned waiting = 0;
    while (machine.fibres[waiting]->state == State::done) {
        waiting++;
    }
    const Fibre &one = *machine.fibres[waiting];
    const bool in_warp = one.state == State::at_warp;
    const unsigned first = in_warp ? waiting / warp_size * warp_size : 0;
    for (unsigned thread = first; thread < threads; thread++) {
        const Fibre &two = *machine.fibres[thread];
        const bool is_expected = !in_warp || (thread - first < warp_size && (one.mask >> (thread - first) & 1) != 0);
        if (is_expected && (two.state != one.state || !(two.place == one.place) || (in_warp && two.mask != one.mask))) {
            const std::string why = two.state == State::done ? ", which has ended" : ", which waits at " + two.place.text();
            fail("divergent barrier: " + thread_name(waiting) + " waits at " + one.place.text() + " for " +
                 thread_name(thread) + why);
        }
    }
    fail("divergent barrier: " + thread_name(waiting) + " waits at " + one.place.text());
}

// The shared variables of all kernels lie in one section, whose ends the linker knows; a source may have none.
extern "C" unsigned char __start_cuda_shared[] __attribute__((weak));
extern "C" unsigned char __stop_cuda_shared[] __attribute__((weak));

// Puts a thread at the kernel's start. Not inlined: what `getcontext` returns to must not be optimized across.
__attribute__((noinline)) inline void start(Fibre &fibre)
{
    fibre.state = State::ready;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = stack_bytes;
    fibre.context.uc_link = &machine.scheduler;
    makecontext(&fibre.context, enter, 0);
}

// Runs a warp for as long as any of its threads can: it may be far ahead of the others, as on a GPU.
inline void run_warp(unsigned first, std::vector<unsigned> &lanes)
{
    do {
        if (machine.shuffled) {
            std::shuffle(lanes.begin(), lanes.end(), machine.random);
        }
        for (unsigned lane : lanes) {
            if (first + lane < machine.block.count() && machine.fibres[first + lane]->state == State::ready) {
                machine.current = first + lane;
                swapcontext(&machine.scheduler, &machine.fibres[first + lane]->context);
            }
        }
    } while (release_warp(first));
}

inline void run_block()
{
    const unsigned threads = machine.block.count();
    if (__start_cuda_shared != nullptr) {
        memset(__start_cuda_shared, 0xff, static_cast<size_t>(__stop_cuda_shared - __start_cuda_shared));
    }
    if (machine.dynamic_shared.bytes() > 0) {
        memset(machine.dynamic_shared.data(), 0xff, machine.dynamic_shared.bytes());
    }
    for (unsigned thread = 0; thread < threads; thread++) {
        Fibre &fibre = *machine.fibres[thread];
        const unsigned row = thread / machine.block.x;
        fibre.index = {thread % machine.block.x, row % machine.block.y, row / machine.block.y};
        start(fibre);
    }
    std::vector<unsigned> warps((threads + warp_size - 1) / warp_size), lanes(warp_size);
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    do {
        if (machine.shuffled) {
            std::shuffle(warps.begin(), warps.end(), machine.random);
        }
        for (unsigned warp : warps) {
            run_warp(warp * warp_size, lanes);
        }
        const auto is_done = [](const auto &fibre) { return fibre->state == State::done; };
        if (std::all_of(machine.fibres.begin(), machine.fibres.end(), is_done)) {
            return;
        }
    } while (release_block());
    deadlock();
}

// Runs a kernel on every block of the grid. With a seed of 0 threads and blocks run in ascending order.
inline void run_grid(Index grid, Index block, unsigned shared_bytes, unsigned seed, std::function<void()> kernel)
{
    machine.grid = grid;
    machine.block = block;
    machine.kernel = std::move(kernel);
    machine.dynamic_shared = Buffer(shared_bytes);
    machine.random.seed(seed);
    machine.shuffled = seed != 0;
    while (machine.fibres.size() < block.count()) {
        machine.fibres.push_back(std::make_unique<Fibre>());
    }
    machine.fibres.resize(block.count());
    std::vector<unsigned> order(grid.count());
    std::iota(order.begin(), order.end(), 0);
    if (machine.shuffled) {
        std::shuffle(order.begin(), order.end(), machine.random);
    }
    for (unsigned number : order) {
        const unsigned row = number / grid.x;
        machine.block_index = {number % grid.x, row % grid.y, row / grid.y};
        run_block();
    }
    if (!machine.dynamic_shared.is_intact()) {
        fail("a thread wrote before the start of dynamic shared memory");
    }
}

} // namespace emulator
