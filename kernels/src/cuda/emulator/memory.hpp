// A buffer with a page that nobody may touch at either end, so that a kernel which runs over is stopped where it does.
//
// The buffer's end is the end of its last page: one element past it is a fault. What lies between the first page's start and the
// buffer's is filled with a pattern that is looked at after the launch: a write there is noticed, a read is not.
// A buffer is aligned as its length is, to 16 bytes at most. What a kernel takes as `const` it cannot write to.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace emulator {

// Ends the launch, and with it the process: says why to who asked.
[[noreturn]] void fail(const std::string &why);

class Buffer {
public:
    static constexpr unsigned char pattern = 0xa5;

    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    explicit Buffer(size_t bytes) : bytes_(bytes)
    {
        page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        usable_ = (bytes + page_ - 1) / page_ * page_;
        void *all = mmap(nullptr, usable_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) {
            fail("no memory for a buffer of " + std::to_string(bytes) + " bytes");
        }
        all_ = static_cast<unsigned char *>(all);
        if (usable_ > 0) {
            protect(false);
            memset(all_ + page_, pattern, usable_ - bytes);
        }
    }

    Buffer(Buffer &&other) noexcept { swap(other); }
    Buffer &operator=(Buffer &&other) noexcept
    {
        swap(other);
        return *this;
    }
    ~Buffer()
    {
        if (all_ != nullptr) {
            munmap(all_, usable_ + 2 * page_);
        }
    }

    size_t bytes() const { return bytes_; }
    unsigned char *data() const { return all_ + page_ + usable_ - bytes_; }

    void protect(bool read_only) const
    {
        mprotect(all_ + page_, usable_, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
    }

    // Whether what lies before the buffer is as it was.
    bool is_intact() const
    {
        for (const unsigned char *at = all_ + page_; at < data(); at++) {
            if (*at != pattern) {
                return false;
            }
        }
        return true;
    }

    // Whether an address lies in the buffer's pages or the forbidden ones.
    bool has(const unsigned char *address) const
    {
        return all_ != nullptr && all_ <= address && address < all_ + usable_ + 2 * page_;
    }

private:
    void swap(Buffer &other)
    {
        std::swap(all_, other.all_);
        std::swap(bytes_, other.bytes_);
        std::swap(usable_, other.usable_);
        std::swap(page_, other.page_);
    }

    unsigned char *all_ = nullptr;
    size_t bytes_ = 0, usable_ = 0, page_ = 0;
};

} // namespace emulator
