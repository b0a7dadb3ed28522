// The smallest of some scores, found by counting, without a branch for each: an array of whole registers is read a dozen times in less
// time than it takes to sort it into smaller and larger once.

#pragma once

#include <limits>

#include "vectors.hpp"

namespace shoal {

// Fills the last register with what counts as no number. There is room for it.
inline void fill_register(float* scores, int64_t count) {
    std::fill(scores + count, scores + (count + kLanes - 1) / kLanes * kLanes, std::numeric_limits<float>::quiet_NaN());
}

// Of sixteen scores, a bit for each that is below the bound. What is no number is not.
inline uint32_t below(const float* scores, float bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(bound), _CMP_LT_OQ);
#elif defined(__AVX__)
    __m256 all = _mm256_set1_ps(bound);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores), all, _CMP_LT_OQ))) |
           static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + 8), all, _CMP_LT_OQ))) << 8;
#elif defined(__SSE__)
    __m128 all = _mm_set1_ps(bound);
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; i += 4) bits |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(scores + i), all))) << i;
    return bits;
#else
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; i++) bits |= static_cast<uint32_t>(scores[i] < bound) << i;
    return bits;
#endif
}

inline int64_t count_below(const float* scores, int64_t count, float bound) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += kLanes) found += __builtin_popcount(below(scores + i, bound));
    return found;
}

inline float largest_below(const float* scores, int64_t count, float bound) {
    Register most = Register{} - std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < count; i += kRegisterLanes) {
        Register values = load_register(scores + i), under = values < bound ? values : most;
        most = under > most ? under : most;
    }
    float largest = most[0];
    for (int lane = 1; lane < kRegisterLanes; lane++) largest = std::max(largest, most[lane]);
    return largest;
}

// Integers in the order of floats.
inline int64_t ordinal(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

inline float number(int64_t ordinal) {
    int32_t bits = static_cast<int32_t>(ordinal);
    bits ^= bits >> 31 & 0x7FFFFFFF;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Below it there are at least so many of the numbers, and no more than `most` unless others are equal to them; infinity where there are
// not as many below infinity, or no float between. The array's last register is filled (above).
inline float bound_of_smallest(const float* scores, int64_t count, int64_t least, int64_t most) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr int kByValue = 16, kSteps = 48;
    if (count < least) return kInfinity;
    Register lows = Register{} + kInfinity, highs = -lows;
    for (int64_t i = 0; i < count; i += kRegisterLanes) {
        Register values = load_register(scores + i);
        lows = values < lows ? values : lows;
        highs = values > highs ? values : highs;
    }
    float low = lows[0], high = highs[0];
    for (int lane = 1; lane < kRegisterLanes; lane++) {
        low = std::min(low, lows[lane]);
        high = std::max(high, highs[lane]);
    }
    if (count_below(scores, count, high) < least) {
        float next = std::nextafter(high, kInfinity);
        return count_below(scores, count, next) >= least ? next : kInfinity;
    }
    // By halves, first of the values between, then, where they are of all sizes, of the numbers that a float can be.
    for (int step = 0; step < kSteps; step++) {  // fewer than `least` are below `low`, at least as many below `high`
        float middle = step < kByValue ? low + (high - low) * 0.5f : number((ordinal(low) + ordinal(high)) >> 1);
        if (!(middle > low && middle < high)) continue;
        int64_t below = count_below(scores, count, middle);
        (below < least ? low : high) = middle;
        if (below >= least && below <= most) break;
    }
    return high;
}

// The k-th smallest, infinity where there are fewer numbers.
inline float kth_smallest(const float* scores, int64_t count, int64_t k) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    float bound = bound_of_smallest(scores, count, k, k);
    if (bound == kInfinity && count_below(scores, count, bound) < k) return kInfinity;
    return largest_below(scores, count, bound);
}

}  // namespace shoal
