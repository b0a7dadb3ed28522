// The k nearest rows of one query of a scan, whose scores come by the register. As in `Nearest`, what is within the error of the k-th best
// score is measured; but where that score is, is looked for only when some have come together, by counting and without a branch for each.

#pragma once

#include "nearest.hpp"

namespace shoal {

class Shortlist {
  public:
    // See `Nearest`. `rows`: of a list, whose positions are offered; null where these are the rows themselves.
    void begin(const Vectors& vectors, const float* query, double length, int64_t k, float error, float relative_error,
               const int64_t* rows) {
        k_ = k;
        most_ = (2 * k + kSpare) / kLanes * kLanes;
        reach_ = Reach(error, relative_error);
        threshold_ = std::numeric_limits<float>::infinity();
        rows_ = rows;
        count_ = 0;
        if (scores_.size() < static_cast<size_t>(most_)) grow(most_);
        measuring_.begin(vectors, query, length, static_cast<size_t>(k));
    }

    // A score above it cannot be among the nearest. One that is not a number is.
    float threshold() const { return threshold_; }

    void offer(float score, uint32_t position) {
        if (score > threshold_) return;
        if (count_ + kLanes > most_) shrink();
        scores_[count_] = score;
        positions_[count_++] = position;
    }

    // Of a register of scores those whose bit is set. None of them is above the threshold. Positions count from `first`.
    void offer(Floats scores, uint32_t which, uint32_t first) {
        if (count_ + kLanes > most_) shrink();
        const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        put(scores, lanes + static_cast<int32_t>(first), which);
    }

    // Writes up to k rows and their distances, nearest first; how many.
    int64_t finish(int64_t* rows, float* distances) {
        lower();
        measure();
        return measuring_.finish(rows, distances);
    }

  private:
    static constexpr int64_t kSpare = 64;     // scores that come together before they are looked through, beside twice k
    static constexpr int64_t kPending = 1024; // so many within the error of the k-th, beside twice k, are measured in between
    static constexpr int kByValue = 16, kSteps = 48;

    void grow(int64_t size) {
        scores_.resize(size);
        positions_.resize(size);
    }

    // Adds a register's. There is room for all of it.
    void put(Floats scores, Ints positions, uint32_t which) {
        float* out = &scores_[count_];
        uint32_t* places = &positions_[count_];
#if defined(__AVX512F__)
        _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(which), (__m512)scores));
        _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(static_cast<__mmask16>(which), (__m512i)positions));
        count_ += __builtin_popcount(which);
#else
        int filled = 0;
        for (; which; which &= which - 1, filled++) {
            int at = __builtin_ctz(which);
            out[filled] = scores[at];
            places[filled] = static_cast<uint32_t>(positions[at]);
        }
        count_ += filled;
#endif
    }

    // Drops what is not within the error of the k-th best; where that is not enough, makes room.
    void shrink() {
        lower();
        int64_t end = count_;
        count_ = 0;
        for (int64_t i = 0; i < end; i += kLanes) {
            Ints positions;
            std::memcpy(&positions, &positions_[i], sizeof positions);
            put(load(&scores_[i]), positions, not_above(load(&scores_[i]), Floats{} + threshold_) & there(end - i));
        }
        if (2 * count_ <= most_ + k_) return;
        if (most_ < kPending + 2 * k_) {
            most_ *= 2;
            if (scores_.size() < static_cast<size_t>(most_)) grow(most_);
        } else {
            measure();
        }
    }

    static uint32_t there(int64_t left) { return left < kLanes ? (1u << left) - 1 : 0xFFFFu; }

    void measure() {
        for (int64_t i = 0; i < count_; i++)
            if (!(scores_[i] > threshold_)) measuring_.take(rows_ ? rows_[positions_[i]] : positions_[i]);
        count_ = 0;
        measuring_.keep();
    }

    void lower() {
        int64_t end = (count_ + kLanes - 1) / kLanes * kLanes;
        std::fill(&scores_[count_], &scores_[end], std::numeric_limits<float>::quiet_NaN());
        threshold_ = std::min(threshold_, reach_.of(kth_score()));
    }

    // Numbers below the bound.
    int64_t count_below(float bound) const {
        int64_t others = 0, end = 0;
        for (; end < count_; end += kLanes) others += __builtin_popcount(not_above(Floats{} + bound, load(&scores_[end])));
        return end - others;
    }

    // The k-th smallest of the scores, infinity where there are fewer numbers: by halves, first of the values between, then, where they
    // are of all sizes, of the numbers that a float can be.
    float kth_score() const {
        Floats least = Floats{} + std::numeric_limits<float>::infinity(), most = -least;
        for (int64_t i = 0; i < count_; i += kLanes) {
            Floats scores = load(&scores_[i]);
            least = scores < least ? scores : least;
            most = scores > most ? scores : most;
        }
        float low = least[0], high = most[0];
        for (int lane = 1; lane < kLanes; lane++) {
            low = std::min(low, least[lane]);
            high = std::max(high, most[lane]);
        }
        if (count_ < k_ || count_below(std::numeric_limits<float>::infinity()) < k_) return std::numeric_limits<float>::infinity();
        if (count_below(high) < k_) return high;
        for (int step = 0; step < kSteps; step++) {  // fewer than k are below `low`, at least k below `high`
            float middle = step < kByValue ? low + (high - low) * 0.5f : number((ordinal(low) + ordinal(high)) >> 1);
            if (!(middle > low && middle < high)) continue;
            int64_t below = count_below(middle);
            (below < k_ ? low : high) = middle;
            if (below == k_) break;
        }
        return largest_below(high);
    }

    float largest_below(float bound) const {
        Floats most = Floats{} - std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < count_; i += kLanes) {
            Floats scores = load(&scores_[i]), below = scores < bound ? scores : most;
            most = below > most ? below : most;
        }
        float largest = most[0];
        for (int lane = 1; lane < kLanes; lane++) largest = std::max(largest, most[lane]);
        return largest;
    }

    // Integers in the order of floats.
    static int64_t ordinal(float value) {
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        return bits ^ (bits >> 31 & 0x7FFFFFFF);
    }

    static float number(int64_t ordinal) {
        int32_t bits = static_cast<int32_t>(ordinal);
        bits ^= bits >> 31 & 0x7FFFFFFF;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    int64_t k_ = 0, count_ = 0, most_ = 0;
    Reach reach_;
    float threshold_ = 0;
    const int64_t* rows_ = nullptr;
    std::vector<float> scores_;        // whole registers, of which `count_` are filled
    std::vector<uint32_t> positions_;
    Measuring measuring_;
};

}  // namespace shoal
