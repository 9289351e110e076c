// Takes launches from standard input and answers on standard output, until the input ends.
//
// A launch: the kernel's name, grid and block (three numbers each), bytes of dynamic shared memory, a seed for the order of threads, the
// number of arguments, and for each a byte (0: a value, 1: a buffer), its length in 8 bytes, and that many bytes. A name is its
// length and its bytes; other numbers have 4 bytes, all in the machine's own order.
// An answer: a byte 0 and the bytes of each buffer; or a byte 1, a length in 4 bytes, and why not. The process then ends.
#pragma once

#include <csignal>
#include <cstdio>
#include <map>
#include <tuple>
#include <type_traits>

#include "cuda.hpp"

namespace emulator {

struct Argument {
    bool is_buffer = false;
    std::vector<unsigned char> value;
    Buffer buffer;
};

struct Launch {
    std::string kernel;
    Index grid, block;
    uint32_t shared_bytes = 0, seed = 0;
    std::vector<Argument> arguments;
};

inline Launch *running = nullptr;

inline void write_all(const void *bytes, size_t count)
{
    const char *at = static_cast<const char *>(bytes);
    while (count > 0) {
        const ssize_t written = write(STDOUT_FILENO, at, count);
        if (written <= 0) {
            _exit(2);
        }
        at += written;
        count -= static_cast<size_t>(written);
    }
}

[[noreturn]] inline void fail(const std::string &why)
{
    const std::string text = (running != nullptr ? running->kernel + ": " : "") + why;
    const unsigned char failed = 1;
    const uint32_t length = static_cast<uint32_t>(text.size());
    write_all(&failed, 1);
    write_all(&length, sizeof length);
    write_all(text.data(), text.size());
    _exit(1);
}

inline void where(std::string &text, const std::string &name, const Buffer &buffer, const unsigned char *address)
{
    const unsigned char *end = buffer.data() + buffer.bytes();
    const bool before = address < buffer.data(), past = address >= end;
    const std::string at = before ? std::to_string(buffer.data() - address) + " bytes before the start of "
        : past                    ? std::to_string(address - end) + " bytes past the end of "
                                  : "to write to byte " + std::to_string(address - buffer.data()) + " of the constant ";
    text += at + name + ", which has " + std::to_string(buffer.bytes()) + " bytes";
}

// On a stack of its own: the fault may be a fibre's own stack running over.
inline void on_fault(int, siginfo_t *info, void *)
{
    const unsigned char *address = static_cast<unsigned char *>(info->si_addr);
    std::string text = thread_name(machine.current) + " of block " + std::to_string(blockIdx.x) + " reached ";
    const size_t nowhere = text.size();
    for (size_t i = 0; running != nullptr && i < running->arguments.size(); i++) {
        const Argument &argument = running->arguments[i];
        if (argument.is_buffer && argument.buffer.has(address)) {
            where(text, "argument " + std::to_string(i), argument.buffer, address);
        }
    }
    if (machine.dynamic_shared.has(address)) {
        where(text, "dynamic shared memory", machine.dynamic_shared, address);
    }
    fail(text.size() > nowhere ? text : text + "an address that is in no argument");
}

template <class T> T unpack(Launch &launch, size_t index)
{
    Argument &argument = launch.arguments[index];
    if constexpr (std::is_pointer_v<T>) {
        if (!argument.is_buffer) {
            fail("argument " + std::to_string(index) + " must be a buffer");
        }
        argument.buffer.protect(std::is_const_v<std::remove_pointer_t<T>>);
        return reinterpret_cast<T>(argument.buffer.data());
    } else {
        if (argument.is_buffer || argument.value.size() != sizeof(T)) {
            fail("argument " + std::to_string(index) + " must be a value of " + std::to_string(sizeof(T)) + " bytes");
        }
        T value;
        memcpy(&value, argument.value.data(), sizeof(T));
        return value;
    }
}

template <class... A, size_t... I> void launch(Launch &launch, void (*kernel)(A...), std::index_sequence<I...>)
{
    if (launch.arguments.size() != sizeof...(A)) {
        fail("it takes " + std::to_string(sizeof...(A)) + " arguments");
    }
    const std::tuple<A...> arguments(unpack<A>(launch, I)...);
    run_grid(launch.grid, launch.block, launch.shared_bytes, launch.seed, [&] { std::apply(kernel, arguments); });
}

using Run = std::function<void(Launch &)>;

template <class... A> Run runner(void (*kernel)(A...))
{
    return [kernel](Launch &request) { launch(request, kernel, std::index_sequence_for<A...>()); };
}

#define EMULATOR_KERNEL(name) {#name, emulator::runner(name)}

inline bool read_all(void *into, size_t count) { return fread(into, 1, count, stdin) == count; }

template <class T> T read_number()
{
    T number{};
    if (!read_all(&number, sizeof number)) {
        _exit(2);
    }
    return number;
}

inline bool read_launch(Launch &launch)
{
    uint32_t length = 0;
    if (!read_all(&length, sizeof length)) {
        return false;
    }
    launch.kernel.resize(length);
    read_all(launch.kernel.data(), length);
    launch.grid = {read_number<uint32_t>(), read_number<uint32_t>(), read_number<uint32_t>()};
    launch.block = {read_number<uint32_t>(), read_number<uint32_t>(), read_number<uint32_t>()};
    launch.shared_bytes = read_number<uint32_t>();
    launch.seed = read_number<uint32_t>();
    launch.arguments.resize(read_number<uint32_t>());
    for (Argument &argument : launch.arguments) {
        argument.is_buffer = read_number<unsigned char>() == 1;
        const size_t bytes = read_number<uint64_t>();
        if (argument.is_buffer) {
            argument.buffer = Buffer(bytes);
            read_all(argument.buffer.data(), bytes);
        } else {
            argument.value.resize(bytes);
            read_all(argument.value.data(), bytes);
        }
    }
    return true;
}

inline int serve(const std::map<std::string, Run> &kernels)
{
    stack_t own{};
    std::vector<unsigned char> room(64 * 1024);
    own.ss_sp = room.data();
    own.ss_size = room.size();
    sigaltstack(&own, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    for (;;) {
        Launch launch;
        if (!read_launch(launch)) {
            return 0;
        }
        running = &launch;
        const auto kernel = kernels.find(launch.kernel);
        if (kernel == kernels.end()) {
            fail("there is no such kernel");
        }
        if (launch.block.count() > 1024 || launch.block.count() == 0 || launch.grid.count() == 0) {
            fail("a block has 1 to 1,024 threads, a grid one block or more");
        }
        if (launch.shared_bytes > 48 * 1024) {
            fail("a block has 48 KiB of dynamic shared memory at most");
        }
        kernel->second(launch);
        for (size_t i = 0; i < launch.arguments.size(); i++) {
            if (launch.arguments[i].is_buffer && !launch.arguments[i].buffer.is_intact()) {
                fail("a thread wrote before the start of argument " + std::to_string(i));
            }
        }
        const unsigned char ok = 0;
        write_all(&ok, 1);
        for (const Argument &argument : launch.arguments) {
            if (argument.is_buffer) {
                write_all(argument.buffer.data(), argument.buffer.bytes());
            }
        }
        running = nullptr;
    }
}

} // namespace emulator
