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

class Nearest {
  public:
    // `query` stays the caller's, `length` is its Euclidean one. `error`: of any score; `relative_error`: of one, in parts of it,
    // beside that.
    void begin(const Vectors& vectors, const float* query, double length, int64_t k, float error, float relative_error) {
        vectors_ = &vectors;
        query_ = query;
        k_ = static_cast<size_t>(k);
        slack_ = 2 * error + 2 * std::numeric_limits<float>::min();  // subnormal scores have few digits
        factor_ = 1 + 2 * relative_error;
        threshold_ = std::numeric_limits<float>::infinity();
        length_ = length;
        best_.clear();
        pending_.clear();
        measured_.clear();
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
                if (best_.size() == k_) threshold_ = factor_ * best_.front() + slack_;
            }
        } else if (score < best_.front()) {
            std::pop_heap(best_.begin(), best_.end());
            best_.back() = score;
            std::push_heap(best_.begin(), best_.end());
            threshold_ = factor_ * best_.front() + slack_;
        }
        if (pending_.size() >= kPending + 2 * k_) measure();
    }

    // Writes up to k rows and their distances, nearest first; how many.
    int64_t finish(int64_t* rows, float* distances) {
        measure();
        std::sort(measured_.begin(), measured_.end());
        for (size_t i = 0; i < measured_.size(); i++) {
            rows[i] = measured_[i].row;
            distances[i] = measured_[i].distance;
        }
        return static_cast<int64_t>(measured_.size());
    }

  private:
    static constexpr size_t kPending = 1024;

    struct Pending {
        float score;
        int64_t row;
    };

    void measure() {
        for (const Pending& one : pending_) {
            if (one.score > threshold_) continue;
            const float* vector = vectors_->at(one.row);
            float distance = exact_distance(Space(vectors_->space), query_, length_, vector, vectors_->dimension);
            measured_.push_back({distance, vectors_->ties[one.row], one.row});
        }
        pending_.clear();
        if (measured_.size() > k_) {
            std::nth_element(measured_.begin(), measured_.begin() + k_, measured_.end());
            measured_.resize(k_);
        }
    }

    const Vectors* vectors_ = nullptr;
    const float* query_ = nullptr;
    size_t k_ = 0;
    float slack_ = 0, factor_ = 1, threshold_ = 0;
    double length_ = 0;
    std::vector<float> best_;        // a heap of the k smallest scores, the largest in front
    std::vector<Pending> pending_;   // not measured yet
    std::vector<Measured> measured_; // the k nearest of those that were
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
