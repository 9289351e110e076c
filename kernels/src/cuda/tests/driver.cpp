// A driver without a GPU: the functions of libcuda that Gpu calls, with the host's memory. What it is for is time: streams are queues of
// which nothing is run before somebody waits for it, and then no more than that needs. So whatever a stream does not wait for comes as late as
// it may, and whoever does not wait for it sees that. Kernels do nothing but count. Memory that is given back is filled with 0xEE.
//
// MADE_UP_GPUS says how many GPUs there are; without any, cuInit says that there are none. MADE_UP_BYTES is the memory of each.

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>

using u32 = unsigned int;
using u64 = unsigned long long;

enum Result { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_READY = 600 };

struct Stream;

// A place in a stream's queue.
struct Mark {
    Stream *stream;
    bool reached = false;
};

struct Stream {
    std::deque<std::function<void()>> queue;
    void run_one()
    {
        auto work = queue.front();
        queue.pop_front();
        work();
    }
};

struct Event {
    std::shared_ptr<Mark> mark;
};

static void reach(const std::shared_ptr<Mark> &mark)
{
    while (mark && !mark->reached && !mark->stream->queue.empty()) {
        mark->stream->run_one();
    }
}

static void *current;
static u64 given, kernels_run;

static u64 number(const char *name, u64 otherwise)
{
    const char *text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

static u64 capacity() { return number("MADE_UP_BYTES", 1ull << 30); }

// A block's size stands before it.
static int allocate(u64 *memory, size_t bytes)
{
    if (bytes > capacity() - given) {
        return OUT_OF_MEMORY;
    }
    char *block = (char *)std::malloc(bytes + 16);
    std::memcpy(block, &bytes, sizeof bytes);
    given += bytes;
    *memory = (u64)(block + 16);
    return OK;
}

// Nothing goes back to the host, so that what comes too late is seen, not a crash.
static void give_back(u64 memory)
{
    size_t bytes;
    std::memcpy(&bytes, (char *)memory - 16, sizeof bytes);
    std::memset((void *)memory, 0xEE, bytes);
    given -= bytes;
}

extern "C" {

// For tests alone: how many kernels have run.
u64 made_up_kernels_run() { return kernels_run; }

int cuInit(u32) { return number("MADE_UP_GPUS", 1) ? OK : NO_DEVICE; }
int cuDeviceGetCount(int *count) { *count = (int)number("MADE_UP_GPUS", 1); return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
// Compute capability 9.0 with pools of memory; of anything else, one.
int cuDeviceGetAttribute(int *value, int attribute, int)
{
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1;
    return OK;
}
int cuDeviceGetName(char *name, int, int) { std::strcpy(name, "made up"); return OK; }
int cuDevicePrimaryCtxRetain(void **context, int) { *context = &current; return OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxGetCurrent(void **context) { *context = current; return OK; }
int cuCtxSetCurrent(void *context) { current = context; return OK; }
int cuCtxSynchronize() { return OK; }

int cuStreamCreate(Stream **stream, u32) { *stream = new Stream; return OK; }
int cuStreamDestroy_v2(Stream *) { return OK; }
int cuStreamSynchronize(Stream *stream)
{
    while (!stream->queue.empty()) {
        stream->run_one();
    }
    return OK;
}
int cuStreamWaitEvent(Stream *stream, Event *event, u32)
{
    auto mark = event->mark;
    stream->queue.push_back([mark] { reach(mark); });
    return OK;
}

int cuEventCreate(Event **event, u32) { *event = new Event; return OK; }
int cuEventDestroy_v2(Event *event) { delete event; return OK; }
int cuEventRecord(Event *event, Stream *stream)
{
    auto mark = event->mark = std::make_shared<Mark>(Mark{stream});
    stream->queue.push_back([mark] { mark->reached = true; });
    return OK;
}
int cuEventSynchronize(Event *event) { reach(event->mark); return OK; }
int cuEventQuery(Event *event) { return !event->mark || event->mark->reached ? OK : NOT_READY; }

int cuMemAlloc_v2(u64 *memory, size_t bytes) { return allocate(memory, bytes); }
int cuMemAllocAsync(u64 *memory, size_t bytes, Stream *) { return allocate(memory, bytes); }
int cuMemFree_v2(u64 memory) { give_back(memory); return OK; }
int cuMemFreeAsync(u64 memory, Stream *stream)
{
    stream->queue.push_back([memory] { give_back(memory); });
    return OK;
}
int cuMemHostAlloc(void **memory, size_t bytes, u32)
{
    *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    return *memory ? OK : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *memory) { std::free(memory); return OK; }
int cuMemGetInfo_v2(size_t *free, size_t *total)
{
    *free = capacity() - given;
    *total = capacity();
    return OK;
}

static int copy(void *to, const void *from, size_t bytes, Stream *stream)
{
    stream->queue.push_back([=] { std::memcpy(to, from, bytes); });
    return OK;
}
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, Stream *stream) { return copy((void *)to, from, bytes, stream); }
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, Stream *stream) { return copy(to, (void *)from, bytes, stream); }
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream *stream) { return copy((void *)to, (void *)from, bytes, stream); }
int cuMemsetD8Async(u64 memory, unsigned char value, size_t bytes, Stream *stream)
{
    stream->queue.push_back([=] { std::memset((void *)memory, value, bytes); });
    return OK;
}

int cuModuleLoadData(void **module, const void *) { *module = &kernels_run; return number("MADE_UP_REFUSES", 0) ? INVALID : OK; }
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(void **function, void *module, const char *) { *function = module; return OK; }
int cuLaunchKernel(void *, u32, u32, u32, u32, u32, u32, u32, Stream *stream, void **, void **)
{
    stream->queue.push_back([] { kernels_run++; });
    return OK;
}

int cuGetErrorName(int, const char **text) { *text = "MADE_UP_ERROR"; return OK; }
int cuGetErrorString(int, const char **text) { *text = "made up"; return OK; }

}
