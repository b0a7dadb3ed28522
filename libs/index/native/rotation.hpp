// A random orthogonal map that is fast to apply: signs and Hadamard transforms in turns (Ailon and Chazelle 2009). It is the same for all
// time, as what is coded after it is stored.

#pragma once

#include <vector>

#include "vectors.hpp"

namespace shoal {

class Rotation {
  public:
    // Vectors are filled up with zeros to a multiple of 64.
    explicit Rotation(int dimension) : width_((dimension + kStep - 1) / kStep * kStep), power_(kStep), signs_(kRounds * width_) {
        while (2 * power_ <= width_) power_ *= 2;
        for (size_t i = 0; i < signs_.size(); i++) signs_[i] = mixed(i) >> 63 ? 1.0f : -1.0f;
    }

    int width() const { return width_; }

    // A vector (width), in place. A Hadamard transform is of a power of two: first values and last ones in turns, where those are not all.
    void turn(float* x) const {
        for (int round = 0; round < kRounds; round++) {
            const float* signs = &signs_[round * width_];
            for (int i = 0; i < width_; i += kLanes) store(x + i, load(x + i) * load(signs + i));
            hadamard(round % 2 ? x + width_ - power_ : x);
            if (power_ < width_) mix_halves(x);
        }
    }

  private:
    static constexpr int kStep = 64;
    static constexpr int kRounds = 4;

    static void store(float* at, Floats values) { *reinterpret_cast<Floats*>(at) = values; }

    // The i-th random number (splitmix64: Steele, Lea and Flood 2014).
    static uint64_t mixed(uint64_t i) {
        uint64_t x = (i + 1) * 0x9E3779B97F4A7C15u;
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
        x = (x ^ x >> 27) * 0x94D049BB133111EBu;
        return x ^ x >> 31;
    }

    // Sums and differences of values that are so far apart within a register.
    template <int kApart>
    static Floats within(Floats v) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        Floats other = swapped<kApart>(v);
        return (lane & kApart) != 0 ? other - v : other + v;
    }

    template <int kApart>
    static Floats swapped(Floats v) {
        constexpr int a = kApart;
        return __builtin_shufflevector(v, v, 0 ^ a, 1 ^ a, 2 ^ a, 3 ^ a, 4 ^ a, 5 ^ a, 6 ^ a, 7 ^ a, 8 ^ a, 9 ^ a, 10 ^ a, 11 ^ a, 12 ^ a,
                                       13 ^ a, 14 ^ a, 15 ^ a);
    }

    void hadamard(float* x) const {
        float scale = 1 / std::sqrt(static_cast<float>(power_));
        for (int i = 0; i < power_; i += kLanes) store(x + i, within<8>(within<4>(within<2>(within<1>(load(x + i) * scale)))));
        for (int apart = kLanes; apart < power_; apart *= 2)
            for (int first = 0; first < power_; first += 2 * apart)
                for (int i = first; i < first + apart; i += kLanes) mix(x + i, x + i + apart, 1);
    }

    void mix_halves(float* x) const {
        for (int i = 0; i < width_ / 2; i += kLanes) mix(x + i, x + i + width_ / 2, static_cast<float>(M_SQRT1_2));
    }

    static void mix(float* a, float* b, float scale) {
        Floats first = load(a), second = load(b);
        store(a, (first + second) * scale);
        store(b, (first - second) * scale);
    }

    int width_, power_;
    std::vector<float> signs_;
};

}  // namespace shoal
