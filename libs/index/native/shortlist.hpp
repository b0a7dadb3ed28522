// The k nearest rows of one query of a scan, whose scores come by the register. As in `Nearest`, what is within the error of the k-th best
// score is measured; but where that score is, is looked for only when some have come together, by counting and without a branch for each.

#pragma once

#include "counting.hpp"
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
        fill_register(scores_.data(), count_);
        threshold_ = std::min(threshold_, reach_.of(kth_smallest(scores_.data(), count_, k_)));
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
