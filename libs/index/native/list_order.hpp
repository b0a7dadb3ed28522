// The lists of posting lists (clusters.hpp) by the distance of their centroids from a query: in order as far as a search wants them, which
// is a few of thousands.

#pragma once

#include "counting.hpp"

namespace shoal {

// A score and a row or list as one number that sorts like the score, which is a number.
inline uint64_t key_of(float score, uint32_t row) {
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
    return uint64_t{bits} << 32 | row;
}

inline float score_of(uint64_t key) {
    uint32_t bits = static_cast<uint32_t>(key >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xFFFFFFFFu;
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
}

struct ListOrder {
    int64_t count = 0;                                       // of lists in order
    float bound = -std::numeric_limits<float>::infinity();   // their scores are below it; infinite for all lists
};

// Puts at least `more` of the nearest lists that follow in order, or all that are left. `order`, of keys, has room for all lists; of `scores`
// the last register is filled (counting.hpp).
inline void order_more(const float* scores, int64_t lists, int64_t more, ListOrder& done, uint64_t* order) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr int64_t kSpare = 16;
    int64_t least = done.count + more;
    float bound = least < lists ? bound_of_smallest(scores, lists, least, least + std::max(more / 4, kSpare)) : kInfinity;
    uint64_t* end = order + done.count;
    for (int64_t i = 0; i < lists; i += kLanes) {
        uint32_t which = ~below(scores + i, done.bound);
        which &= bound < kInfinity ? below(scores + i, bound) : lists - i < kLanes ? (1u << (lists - i)) - 1 : 0xFFFFu;
        for (; which; which &= which - 1) {
            int64_t list = i + __builtin_ctz(which);
            *end++ = key_of(scores[list], static_cast<uint32_t>(list));
        }
    }
    std::sort(order + done.count, end);
    done = {end - order, bound};
}

}  // namespace shoal
