// The k nearest rows of one query, from scores that carry float32's rounding: what is within the error of the k-th best score is
// measured exactly, and exact distances decide, equal ones by `ties`.

#pragma once

#include <limits>
#include <vector>

#include "vectors.hpp"

namespace shoal {

struct Measured {
    float distance;
    uint64_t tie;
    int64_t row;

    bool operator<(const Measured& other) const {
        return distance != other.distance ? distance < other.distance : tie < other.tie;
    }
};

#if defined(__AVX512F__)
constexpr int kMeasuredTogether = 4;  // vectors, whose sums fit the registers
#elif defined(__AVX__)
constexpr int kMeasuredTogether = 2;
#else
constexpr int kMeasuredTogether = 1;
#endif

// Measures rows for one query, some at once, and keeps the k nearest.
class Measuring {
  public:
    // `query` stays the caller's, `length` is its Euclidean one.
    void begin(const Vectors& vectors, const float* query, double length, size_t k) {
        vectors_ = &vectors;
        query_ = query;
        length_ = length;
        k_ = k;
        waiting_ = 0;
        measured_.clear();
    }

    void take(int64_t row) {
        rows_[waiting_] = row;
        pointers_[waiting_++] = vectors_->at(row);
        if (waiting_ == kMeasuredTogether) measure();
    }

    // Drops all but the k nearest.
    void keep() {
        if (waiting_) measure();
        if (measured_.size() <= k_) return;
        std::nth_element(measured_.begin(), measured_.begin() + k_, measured_.end());
        measured_.resize(k_);
    }

    // Writes up to k rows and their distances, nearest first; how many.
    int64_t finish(int64_t* rows, float* distances) {
        keep();
        std::sort(measured_.begin(), measured_.end());
        for (size_t i = 0; i < measured_.size(); i++) {
            rows[i] = measured_[i].row;
            distances[i] = measured_[i].distance;
        }
        return static_cast<int64_t>(measured_.size());
    }

  private:
    void measure() {
        float distances[kMeasuredTogether];
        for (int n = waiting_; n < kMeasuredTogether; n++) pointers_[n] = pointers_[0];
        exact_distances<kMeasuredTogether>(Space(vectors_->space), query_, length_, pointers_, vectors_->dimension, distances);
        for (int n = 0; n < waiting_; n++) measured_.push_back({distances[n], vectors_->ties[rows_[n]], rows_[n]});
        waiting_ = 0;
    }

    const Vectors* vectors_ = nullptr;
    const float* query_ = nullptr;
    double length_ = 0;
    size_t k_ = 0;
    int waiting_ = 0;
    int64_t rows_[kMeasuredTogether];
    const float* pointers_[kMeasuredTogether];
    std::vector<Measured> measured_;
};

// Up to which score there may be one of the nearest, if the k-th best score is known.
struct Reach {
    float factor = 1, slack = 0;

    Reach() = default;
    // `error`: of any score; `relative_error`: of one, in parts of it, beside that.
    Reach(float error, float relative_error)
        : factor(1 + 2 * relative_error), slack(2 * error + 2 * std::numeric_limits<float>::min()) {}  // subnormal scores have few digits

    float of(float score) const { return factor * score + slack; }
};

// Scores one by one, the threshold as low as it can be after each.
class Nearest {
  public:
    // See `Measuring` and `Reach`.
    void begin(const Vectors& vectors, const float* query, double length, int64_t k, float error, float relative_error) {
        k_ = static_cast<size_t>(k);
        reach_ = Reach(error, relative_error);
        threshold_ = std::numeric_limits<float>::infinity();
        best_.clear();
        pending_.clear();
        measuring_.begin(vectors, query, length, k_);
    }

    // A score above it cannot be among the nearest. One that is not a number is.
    float threshold() const { return threshold_; }

    void offer(float score, int64_t row) {
        if (score > threshold_) return;
        pending_.push_back({score, row});
        if (best_.size() < k_) {
            if (score == score) {
                best_.push_back(score);
                std::push_heap(best_.begin(), best_.end());
                if (best_.size() == k_) threshold_ = reach_.of(best_.front());
            }
        } else if (score < best_.front()) {
            std::pop_heap(best_.begin(), best_.end());
            best_.back() = score;
            std::push_heap(best_.begin(), best_.end());
            threshold_ = reach_.of(best_.front());
        }
        if (pending_.size() >= kPending + 2 * k_) measure();
    }

    // Writes up to k rows and their distances, nearest first; how many.
    int64_t finish(int64_t* rows, float* distances) {
        measure();
        return measuring_.finish(rows, distances);
    }

  private:
    static constexpr size_t kPending = 1024;

    struct Pending {
        float score;
        int64_t row;
    };

    void measure() {
        for (const Pending& one : pending_)
            if (!(one.score > threshold_)) measuring_.take(one.row);
        pending_.clear();
        measuring_.keep();
    }

    size_t k_ = 0;
    Reach reach_;
    float threshold_ = 0;
    std::vector<float> best_;        // a heap of the k smallest scores, the largest in front
    std::vector<Pending> pending_;   // not measured yet
    Measuring measuring_;
};

constexpr float kEpsilon = 1e-5f;  // relative error of a float32 dot product, generous for any dimension allowed
constexpr double kTied = 0.02;     // of it: distances so near to each other may be equal once they are rounded to float32

// The error of scores that are made from products, in parts of kEpsilon, for `Nearest`. A distance holds what its score leaves out (the
// square of the query's length, or 1): what differs by less than float32 keeps of that is equal, and goes by its ties.
inline double product_error(Space space, double length, double largest_square) {
    double size = length * std::sqrt(largest_square);
    return space == kCosine ? 1 : space == kIp ? size + kTied : 2 * size + largest_square + kTied * length * length;
}

}  // namespace shoal
