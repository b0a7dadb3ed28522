// Work items over threads. Threads live for one call: starting one costs some 20 µs, so that callers give small work one thread.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

// Calls work(0) … work(count − 1), on up to so many threads, the caller's among them. Throws what the first failing item throws.
template <typename Work>
void in_parallel(int64_t count, int threads, Work work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    auto run = [&] {
        try {
            for (int64_t item; (item = next.fetch_add(1)) < count;) work(item);
        } catch (...) {
            std::lock_guard<std::mutex> hold(failing);
            if (!failure) failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(std::max<int64_t>(threads, 1));
        for (int64_t i = 1; i < threads && i < count; i++) others.emplace_back(run);
    } catch (...) {
        // No more threads, or no memory for one: those that run do it all.
    }
    run();
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace shoal
