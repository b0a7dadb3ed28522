// Vectors of a segment or a tail by row number, and their distances from a query.
//
// Portable vector code through the compiler's own vector types: 64 bytes are one register, two or four, as the level that a
// library is compiled for has them.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace shoal {

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

// Sixteen floats or eight doubles that are added to in a loop. Where they are two registers, of a vector of 64 bytes compilers keep the
// sum in memory.
#if defined(__AVX__) && !defined(__AVX512F__)
typedef double FourDoubles __attribute__((vector_size(32)));

template <typename Half, typename Lane>
struct Halves {
    Half low, high;

    Lane operator[](int lane) const {
        constexpr int kHalf = sizeof(Half) / sizeof(Lane);
        return lane < kHalf ? low[lane] : high[lane - kHalf];
    }
    Halves& operator+=(const Halves& b) { return low += b.low, high += b.high, *this; }
    friend Halves operator-(const Halves& a, const Halves& b) { return {a.low - b.low, a.high - b.high}; }
    friend Halves operator*(const Halves& a, const Halves& b) { return {a.low * b.low, a.high * b.high}; }
    friend Halves operator*(const Halves& a, Lane b) { return {a.low * b, a.high * b}; }
};

typedef Halves<Eight, float> Sixteen;
typedef Halves<FourDoubles, double> Doubles;
#else
typedef Floats Sixteen;
typedef double Doubles __attribute__((vector_size(64)));
#endif

#if defined(__AVX512F__)
typedef Floats Register;
#elif defined(__AVX__)
typedef Eight Register;
#else
typedef float Register __attribute__((vector_size(16), aligned(4), may_alias));
#endif

constexpr int kLanes = 16;
constexpr uint32_t kNone = 0xFFFFFFFFu;  // no row
constexpr int kRegisterLanes = sizeof(Register) / sizeof(float);
constexpr double kShortest = 1e-15;  // shorter vectors have products below what float32 keeps all digits of

enum Space : int32_t { kL2 = 0, kCosine = 1, kIp = 2 };

inline Floats load(const float* at) {
    return *reinterpret_cast<const Floats*>(at);
}

inline Register load_register(const float* at) {
    return *reinterpret_cast<const Register*>(at);
}

// Less than sixteen.
inline Floats load_few(const float* at, int count) {
    Floats few = {};
    std::memcpy(&few, at, sizeof(float) * count);
    return few;
}

// The last values of a vector whose length is no multiple of 16: its last 16, of which `rest_only` zeroes those that were taken before.
inline Floats load_rest(const float* vector, int dimension) {
    return dimension < kLanes ? load_few(vector, dimension) : load(vector + dimension - kLanes);
}

inline Floats rest_only(Floats values, int dimension) {
    if (dimension < kLanes) return values;
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (Floats)((Ints)values & (lanes >= kLanes - dimension % kLanes));
}

inline float sum(Floats v) {
    Eight half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    float quarter[4];
    for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Bit i is set unless the i-th value is above the i-th bound. Not a number is above nothing.
inline uint32_t not_above(Floats values, Floats bounds) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)values, (__m512)bounds, _CMP_NGT_UQ);
#elif defined(__AVX__)
    Eight low = __builtin_shufflevector(values, values, 0, 1, 2, 3, 4, 5, 6, 7);
    Eight high = __builtin_shufflevector(values, values, 8, 9, 10, 11, 12, 13, 14, 15);
    Eight low_bounds = __builtin_shufflevector(bounds, bounds, 0, 1, 2, 3, 4, 5, 6, 7);
    Eight high_bounds = __builtin_shufflevector(bounds, bounds, 8, 9, 10, 11, 12, 13, 14, 15);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)low, (__m256)low_bounds, _CMP_NGT_UQ))) |
           static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)high, (__m256)high_bounds, _CMP_NGT_UQ))) << 8;
#else
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; i++) bits |= static_cast<uint32_t>(!(values[i] > bounds[i])) << i;
    return bits;
#endif
}

inline double sum(Doubles v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

#if defined(__AVX__) && !defined(__AVX512F__)
inline Sixteen load_sixteen(const float* at) {
    return {*reinterpret_cast<const Eight*>(at), *reinterpret_cast<const Eight*>(at + 8)};
}

inline Floats floats(const Sixteen& v) {
    return __builtin_shufflevector(v.low, v.high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
inline Sixteen load_sixteen(const float* at) { return load(at); }
inline Floats floats(Sixteen v) { return v; }
#endif

inline float dot(const float* a, const float* b, int dimension) {
    Sixteen first = {}, second = {}, third = {}, fourth = {};
    int i = 0;
    for (; i + 4 * kLanes <= dimension; i += 4 * kLanes) {
        first += load_sixteen(a + i) * load_sixteen(b + i);
        second += load_sixteen(a + i + kLanes) * load_sixteen(b + i + kLanes);
        third += load_sixteen(a + i + 2 * kLanes) * load_sixteen(b + i + 2 * kLanes);
        fourth += load_sixteen(a + i + 3 * kLanes) * load_sixteen(b + i + 3 * kLanes);
    }
    for (; i + kLanes <= dimension; i += kLanes) first += load_sixteen(a + i) * load_sixteen(b + i);
    Floats with_rest = floats(second);
    if (i < dimension) with_rest += rest_only(load_rest(a, dimension), dimension) * load_rest(b, dimension);
    return sum((floats(first) + with_rest) + (floats(third) + floats(fourth)));
}

inline float squared_difference(const float* a, const float* b, int dimension) {
    Sixteen first = {}, second = {}, d;
    int i = 0;
    for (; i + 2 * kLanes <= dimension; i += 2 * kLanes) {
        d = load_sixteen(a + i) - load_sixteen(b + i);
        first += d * d;
        d = load_sixteen(a + i + kLanes) - load_sixteen(b + i + kLanes);
        second += d * d;
    }
    for (; i + kLanes <= dimension; i += kLanes) {
        d = load_sixteen(a + i) - load_sixteen(b + i);
        first += d * d;
    }
    Floats with_rest = floats(second);
    if (i < dimension) {
        Floats rest = rest_only(load_rest(a, dimension) - load_rest(b, dimension), dimension);
        with_rest += rest * rest;
    }
    return sum(floats(first) + with_rest);
}

inline Doubles wide(const float* eight) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(eight));
#elif defined(__AVX__)
    return {(FourDoubles)_mm256_cvtps_pd(_mm_loadu_ps(eight)), (FourDoubles)_mm256_cvtps_pd(_mm_loadu_ps(eight + 4))};
#else
    return __builtin_convertvector(*reinterpret_cast<const Eight*>(eight), Doubles);
#endif
}

// Sums over the dimensions in float64 of one vector with each of some others, every one in the same order wherever its vector lies and
// whatever others are summed beside it: sums wait for one another's additions less. `term` makes what is summed, of eight lanes or one.
template <int kCount, typename Term>
inline void exact_sums(const float* a, const float* const* others, int dimension, Term term, double* sums) {
    Doubles first[kCount] = {}, second[kCount] = {};
    int i = 0;
    for (; i + 16 <= dimension; i += 16) {
        Doubles low = wide(a + i), high = wide(a + i + 8);
        for (int n = 0; n < kCount; n++) {
            first[n] += term(low, wide(others[n] + i));
            second[n] += term(high, wide(others[n] + i + 8));
        }
    }
    for (; i + 8 <= dimension; i += 8)
        for (int n = 0; n < kCount; n++) first[n] += term(wide(a + i), wide(others[n] + i));
    for (int n = 0; n < kCount; n++) {
        first[n] += second[n];
        sums[n] = sum(first[n]);
        for (int j = i; j < dimension; j++) sums[n] += term(static_cast<double>(a[j]), static_cast<double>(others[n][j]));
    }
}

template <typename Term>
inline double exact_sum(const float* a, const float* b, int dimension, Term term) {
    double all;
    exact_sums<1>(a, &b, dimension, term, &all);
    return all;
}

inline double exact_dot(const float* a, const float* b, int dimension) {
    return exact_sum(a, b, dimension, [](auto x, auto y) { return x * y; });
}

inline double exact_length(const float* vector, int dimension) {
    return std::sqrt(exact_dot(vector, vector, dimension));
}

// Dot products, and the sums of the squares of the others; see `exact_sums`.
template <int kCount>
inline void exact_dots_and_squares(const float* a, const float* const* others, int dimension, double* products, double* squares) {
    Doubles dots[kCount] = {}, own[kCount] = {};
    int i = 0;
    for (; i + 8 <= dimension; i += 8) {
        Doubles x = wide(a + i);
        for (int n = 0; n < kCount; n++) {
            Doubles y = wide(others[n] + i);
            dots[n] += x * y;
            own[n] += y * y;
        }
    }
    for (int n = 0; n < kCount; n++) {
        products[n] = sum(dots[n]);
        squares[n] = sum(own[n]);
        for (int j = i; j < dimension; j++) {
            products[n] += double{a[j]} * double{others[n][j]};
            squares[n] += double{others[n][j]} * double{others[n][j]};
        }
    }
}

// A query of length 1, for cosine, so that its length does not eat float32's digits.
inline void unit_copy(const float* query, double length, int dimension, float* out) {
    double factor = length > 0 ? 1 / length : 0;
    for (int i = 0; i < dimension; i++) out[i] = static_cast<float>(query[i] * factor);
}

// What every engine answers with, of some vectors at once. `query_length`: its Euclidean length in float64, for cosine.
template <int kCount>
inline void exact_distances(Space space, const float* query, double query_length, const float* const* vectors, int dimension,
                            float* distances) {
    double sums[kCount], squares[kCount];
    if (space == kL2) {
        exact_sums<kCount>(query, vectors, dimension, [](auto x, auto y) { return (y - x) * (y - x); }, sums);
        for (int n = 0; n < kCount; n++) distances[n] = static_cast<float>(sums[n]);
    } else if (space == kIp) {
        exact_sums<kCount>(query, vectors, dimension, [](auto x, auto y) { return x * y; }, sums);
        for (int n = 0; n < kCount; n++) distances[n] = static_cast<float>(1.0 - sums[n]);
    } else {
        exact_dots_and_squares<kCount>(query, vectors, dimension, sums, squares);
        for (int n = 0; n < kCount; n++) {
            double norms = std::sqrt(squares[n]) * query_length;
            distances[n] = static_cast<float>(1.0 - (norms > 0 ? sums[n] / norms : 0.0));
        }
    }
}

inline float exact_distance(Space space, const float* query, double query_length, const float* vector, int dimension) {
    float distance;
    exact_distances<1>(space, query, query_length, &vector, dimension, &distance);
    return distance;
}

// Chunks are row-major. Whoever makes one keeps what it points to (module.cpp).
struct Vectors {
    const float* const* chunks;
    const int64_t* starts;   // (chunks + 1) first row of each chunk, and the number of rows
    const float* squares;    // (rows) squared lengths, for l2; else null
    const float* inverses;   // (rows) 1 / length, for cosine; else null; not a number where float32 cannot tell
    const uint64_t* ties;    // (rows) what orders rows of equal distance
    int64_t chunk_count;
    int64_t rows;
    int32_t shift;           // chunks but the last have 1 << shift rows; -1: they do not
    int32_t dimension;
    int32_t space;

    const float* at(int64_t row) const {
        if (shift >= 0) return chunks[row >> shift] + (row & ((int64_t{1} << shift) - 1)) * dimension;
        int64_t chunk = std::upper_bound(starts, starts + chunk_count, row) - starts - 1;
        return chunks[chunk] + (row - starts[chunk]) * dimension;
    }

    // Orders rows as their distances from the query do, but for float32's rounding.
    float score(const float* query, int64_t row, const float* vector) const {
        if (space == kL2) return squared_difference(query, vector, dimension);
        float product = dot(query, vector, dimension);
        return space == kCosine ? -product * inverses[row] : -product;
    }
};

}  // namespace shoal
