// Exact search by way of codes of 8 bits: a scan reads a fourth of the bytes, and measures only rows that it cannot rule out.
//
// A row x is coded as x' = scale · (integers of 8 bits), with the length of what that leaves out; a query y as y' = scale · (integers of 16
// bits). Their product is an exact integer. By the triangle inequality |y − x| is at least |y' − x'| − |y − y'| − |x − x'|, by that of
// Cauchy and Schwarz y·x differs from y'·x' by at most |y'| |x − x'| + |y − y'| |x|. A row is ruled out where such a bound is beyond the
// threshold of `Nearest`, with a margin for the rounding of the bound itself. All other rows go the way of any scan. For cosine, all
// of this is of vectors of length 1, whose squared distance is 2 − 2 cos.

#pragma once

#include "scan.hpp"

namespace shoal {

constexpr int kCodeStep = 32;     // codes of a row are filled up with zeros to a multiple of it
constexpr int kLine = 64;         // bytes that memory gives at a time
constexpr int kCodeLevels = 127;
constexpr int kQueryLevels = 32767;
constexpr double kLargestSum = 2147483647.0 / kCodeLevels;  // of a query's absolute integers, so that no product overflows
constexpr float kMargin = 4e-6f;  // 64 roundings of float32; a bound has about 16
constexpr float kShortestCoded = 1e-30f;  // below, products with a scale would lose digits

// Codes of `Vectors`, chunk by chunk. Of a chunk of n rows `bounds` has three times n values: scales, lengths of what codes leave out
// (at least; infinite where a row cannot be ruled out), and lengths of what they stand for.
struct Codes {
    const int8_t* const* chunks;  // (n, width)
    const float* const* bounds;   // (3, n)
    int32_t width;
};

struct CodeScan : Scan {
    const Codes* codes;
    int64_t* rescored;  // (queries) rows that codes did not rule out; zeros before
};

inline int64_t code_width(int64_t dimension) {
    return (dimension + kCodeStep - 1) / kCodeStep * kCodeStep;
}

inline float rounded_up(double value) {
    return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

inline float largest_part(const float* vector, int dimension) {
    Floats most = {};
    int i = 0;
    auto take = [&](Floats x) {
        Floats size = x < 0 ? -x : x;
        most = size > most ? size : most;
    };
    for (; i + kLanes <= dimension; i += kLanes) take(load(vector + i));
    if (i < dimension) take(load_few(vector + i, dimension - i));
    float largest = 0;
    for (int lane = 0; lane < kLanes; lane++) largest = std::max(largest, most[lane]);
    return largest;
}

// Codes one row into `width` zeros. `bounds`: scale, length left out, length stood for, `stride` apart. `whole`: room for a vector.
inline void code_row(Space space, const float* vector, int dimension, int8_t* codes, float* bounds, int64_t stride, float* whole) {
    constexpr float kRounding = 12582912.0f;  // added and taken away again: the nearest integer
    double length = exact_length(vector, dimension);
    float largest = largest_part(vector, dimension);
    bool lost = space == kCosine && length < kShortest;
    if (lost || largest < kShortestCoded) {
        bounds[0] = bounds[2 * stride] = 0;
        bounds[stride] = lost ? std::numeric_limits<float>::infinity() : rounded_up(length * (1 + 1e-6));
        return;
    }
    double unit = space == kCosine ? 1 / length : 1;
    float factor = kCodeLevels / largest;
    for (int i = 0; i < dimension; i++) {
        whole[i] = (vector[i] * factor + kRounding) - kRounding;
        codes[i] = static_cast<int8_t>(static_cast<int32_t>(whole[i]));
    }
    bounds[0] = static_cast<float>(largest * unit / kCodeLevels);
    double scale = bounds[0], left = exact_sum(vector, whole, dimension, [=](auto x, auto code) {
        auto rest = x * unit - code * scale;
        return rest * rest;
    });
    bounds[stride] = rounded_up(std::sqrt(left) * (1 + 1e-6) + (space == kCosine ? 1e-9 : 0));
    bounds[2 * stride] = static_cast<float>(scale * exact_length(whole, dimension));
}

// --- products of integers, of kCodeStep codes at a time -----------------------------------------------------------------------------

#if defined(__AVX512BW__)
typedef __m512i Products;
typedef __m512i Factors;
constexpr int kFactors = 32;
inline Factors widened(const int8_t* at) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))); }
inline Factors load_factors(const int16_t* at) { return _mm512_loadu_si512(at); }
inline Products added(Products sum, Factors a, Factors b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
inline __m256i halved(Products v) { return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }
#elif defined(__AVX2__)
typedef __m256i Products;
typedef __m256i Factors;
constexpr int kFactors = 16;
inline Factors widened(const int8_t* at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }
inline Factors load_factors(const int16_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline Products added(Products sum, Factors a, Factors b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline __m256i halved(Products v) { return v; }
#elif defined(__SSE4_1__)
typedef __m128i Products;
typedef __m128i Factors;
constexpr int kFactors = 8;
inline Factors widened(const int8_t* at) { return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))); }
inline Factors load_factors(const int16_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
inline Products added(Products sum, Factors a, Factors b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
#else
typedef int32_t Products;
typedef int32_t Factors;
constexpr int kFactors = 1;
inline Factors widened(const int8_t* at) { return *at; }
inline Factors load_factors(const int16_t* at) { return *at; }
inline Products added(Products sum, Factors a, Factors b) { return sum + a * b; }
#endif

// The sums over the lanes of four.
inline void sum_each(const Products* four, int32_t* out) {
#if defined(__AVX2__)
    __m256i low = _mm256_hadd_epi32(halved(four[0]), halved(four[1])), high = _mm256_hadd_epi32(halved(four[2]), halved(four[3]));
    __m256i both = _mm256_hadd_epi32(low, high);
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
#elif defined(__SSE4_1__)
    __m128i sums = _mm_hadd_epi32(_mm_hadd_epi32(four[0], four[1]), _mm_hadd_epi32(four[2], four[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
#else
    for (int i = 0; i < kTile; i++) out[i] = four[i];
#endif
}

#if defined(__AVX512BW__)
constexpr int kTogether = 4;  // queries that share a row's codes: their sums fit the registers
#else
constexpr int kTogether = 2;
#endif

// Products of some queries' integers with the codes of kTile rows; those of the next query are kLanes further on.
template <int kQueries>
inline void code_products(const int16_t* queries, const int8_t* const* rows, int width, int32_t* products) {
    Products sums[kQueries][kTile] = {};
    for (int i = 0; i < width; i += kFactors) {
        Factors row[kTile];
        for (int r = 0; r < kTile; r++) row[r] = widened(rows[r] + i);
        for (int q = 0; q < kQueries; q++) {
            Factors query = load_factors(queries + q * int64_t{width} + i);
            for (int r = 0; r < kTile; r++) sums[q][r] = added(sums[q][r], query, row[r]);
        }
    }
    for (int q = 0; q < kQueries; q++) sum_each(sums[q], products + q * kLanes);
}

// --- the scan -------------------------------------------------------------------------------------------------------------------------

// A query in integers, and what its bounds are made of.
struct CodedQuery {
    const float* vector;  // of length 1 for cosine
    float scale, length, left;  // of what the integers stand for, and at least the length of what they leave out
    float reach;          // what a row's bound is compared with; infinite until there are k rows
    bool all;             // a query without direction: nothing can be ruled out
};

struct CodeScratch {
    std::vector<Nearest> nearest;
    std::vector<float> units;
    std::vector<int16_t> codes;
    std::vector<CodedQuery> queries;
};

// Some queries, compared with rows, sixteen at a time. One at a time for a scratch.
class CodePart {
  public:
    typedef CodeScratch Scratch;

    CodePart(const CodeScan& scan, int64_t first, int64_t last, CodeScratch& scratch)
        : scan_(scan), v_(*scan.vectors), width_(scan.codes->width), first_(first), count_(last - first), scratch_(scratch) {
        if (scratch.nearest.size() < static_cast<size_t>(count_)) scratch.nearest.resize(count_);
        if (v_.space == kCosine) scratch.units.resize(count_ * v_.dimension);
        scratch.codes.assign(count_ * width_, 0);
        scratch.queries.resize(count_);
        rescored_.assign(count_, 0);
        for (int64_t q = 0; q < count_; q++) begin(q, scan.queries + (first + q) * v_.dimension);
    }

    // Compares with these rows, which ascend: positions in the list, or row numbers.
    void run(int64_t first, int64_t last) {
        for (int64_t at = first; at < last; at += kLanes) {
            int filled = static_cast<int>(std::min<int64_t>(kLanes, last - at));
            take(at, filled);
            int64_t q = 0;
            for (; q + kTogether <= count_; q += kTogether) compare<kTogether>(q, filled);
            for (; q < count_; q++) compare<1>(q, filled);
        }
    }

    int64_t finish(int64_t query, int64_t* rows, float* distances) {
        __atomic_fetch_add(&scan_.rescored[first_ + query], rescored_[query], __ATOMIC_RELAXED);
        return scratch_.nearest[query].finish(rows, distances);
    }

  private:
    void begin(int64_t q, const float* given) {
        double length = exact_length(given, v_.dimension), unit = 1;
        CodedQuery& query = scratch_.queries[q];
        query = {given, 0, 0, 0, std::numeric_limits<float>::infinity(), v_.space == kCosine && !(length > 0)};
        if (v_.space == kCosine) {
            float* copy = &scratch_.units[q * v_.dimension];
            unit_copy(given, length, v_.dimension, copy);
            query.vector = copy;
            unit = length > 0 ? 1 / length : 0;
        }
        double error = v_.space == kL2 ? 0 : product_error(Space(v_.space), length, scan_.largest_square);
        scratch_.nearest[q].begin(v_, given, length, scan_.k, static_cast<float>(kEpsilon * error), v_.space == kL2 ? 2 * kEpsilon : 0);
        code_query(given, unit, &scratch_.codes[q * width_], query);
    }

    void code_query(const float* given, double unit, int16_t* codes, CodedQuery& query) const {
        double largest = 0, total = 0, kept = 0, left = 0;
        for (int i = 0; i < v_.dimension; i++) {
            double size = std::fabs(given[i] * unit);
            largest = std::max(largest, size);
            total += size;
        }
        double scale = std::max(largest / kQueryLevels, total / (kLargestSum - v_.dimension));
        if (!(scale > kShortestCoded)) scale = 0;
        for (int i = 0; i < v_.dimension; i++) {
            double value = given[i] * unit, whole = scale > 0 ? std::nearbyint(value / scale) : 0, stands = whole * scale;
            codes[i] = static_cast<int16_t>(whole);
            kept += stands * stands;
            left += (value - stands) * (value - stands);
        }
        query.scale = static_cast<float>(scale);
        query.length = static_cast<float>(std::sqrt(kept));
        query.left = rounded_up(std::sqrt(left) * (1 + 1e-6) + (v_.space == kCosine ? 1e-9 : 0));
    }

    // Where the codes and bounds of the next rows are. Rows side by side in a chunk are not copied.
    void take(int64_t at, int filled) {
        int64_t row = 0;
        for (int i = 0; i < filled; i++) {
            row = rows_[i] = scan_.rows ? scan_.rows[at + i] : at + i;
            if (row < v_.starts[chunk_] || row >= v_.starts[chunk_ + 1])
                chunk_ = std::upper_bound(v_.starts, v_.starts + v_.chunk_count, row) - v_.starts - 1;
            int64_t within = row - v_.starts[chunk_];
            codes_[i] = scan_.codes->chunks[chunk_] + within * width_;
            for (int64_t line = 0; line < width_; line += kLine) __builtin_prefetch(codes_[i] + kLanes * width_ + line);
            if (i == 0) side_by_side(within, v_.starts[chunk_ + 1] - v_.starts[chunk_]);
        }
        bool together = filled == kLanes && row == rows_[0] + kLanes - 1 && row < v_.starts[chunk_ + 1] && rows_[0] >= v_.starts[chunk_];
        if (!together) scattered(filled);
    }

    void side_by_side(int64_t within, int64_t count) {
        for (int which = 0; which < 3; which++) bounds_[which] = scan_.codes->bounds[chunk_] + which * count + within;
    }

    void scattered(int filled) {
        std::memset(copied_, 0, sizeof copied_);
        for (int i = 0; i < filled; i++) {
            int64_t chunk = chunk_;
            if (rows_[i] < v_.starts[chunk]) chunk = std::upper_bound(v_.starts, v_.starts + v_.chunk_count, rows_[i]) - v_.starts - 1;
            int64_t start = v_.starts[chunk], count = v_.starts[chunk + 1] - start;
            for (int which = 0; which < 3; which++) copied_[which][i] = scan_.codes->bounds[chunk][which * count + rows_[i] - start];
        }
        for (int i = filled; i < kLanes; i++) codes_[i] = codes_[0];
        for (int which = 0; which < 3; which++) bounds_[which] = copied_[which];
    }

    template <int kQueries>
    void compare(int64_t first, int filled) {
        int32_t products[kQueries][kLanes];
        for (int r = 0; r < kLanes; r += kTile)
            code_products<kQueries>(&scratch_.codes[first * width_], codes_ + r, static_cast<int>(width_), &products[0][r]);
        for (int i = 0; i < kQueries; i++) {
            uint32_t near = possible(scratch_.queries[first + i], products[i]);
            if (filled < kLanes) near &= (1u << filled) - 1;
            for (; near; near &= near - 1) rescore(first + i, rows_[__builtin_ctz(near)]);
        }
    }

    // Bit i is set unless row i is ruled out.
    uint32_t possible(const CodedQuery& query, const int32_t* products) const {
        Ints whole;
        std::memcpy(&whole, products, sizeof whole);
        Floats scales = load(bounds_[0]), left = load(bounds_[1]), lengths = load(bounds_[2]);
        Floats similar = __builtin_convertvector(whole, Floats) * scales * query.scale;
        if (v_.space == kIp) {
            Floats away = query.length * left + query.left * (lengths + left), inexact = kMargin * query.length * lengths;
            return not_above(-similar, query.reach + (away * (1 + kMargin) + inexact + std::numeric_limits<float>::min()));
        }
        Floats both = query.length + lengths, reach = query.reach + left;
        Floats bound = reach * reach * (1 + kMargin) + (kMargin * both * both - query.length * query.length);
        return not_above(lengths * lengths - 2 * similar, bound + std::numeric_limits<float>::min());
    }

    void rescore(int64_t q, int64_t row) {
        Nearest& nearest = scratch_.nearest[q];
        CodedQuery& query = scratch_.queries[q];
        rescored_[q]++;
        float score = v_.score(query.vector, row, v_.at(row)), before = nearest.threshold();
        if (score > before) return;
        nearest.offer(score, row);
        if (nearest.threshold() != before && !query.all) query.reach = reach(query, nearest.threshold());
    }

    // What rows must be within, from the threshold of scores.
    float reach(const CodedQuery& query, double threshold) const {
        if (v_.space == kIp) return rounded_up(threshold + kMargin * std::fabs(threshold));
        double square = v_.space == kCosine ? 2 + 2 * threshold : threshold;
        return rounded_up(std::sqrt(std::max(square, 0.0)) + query.left);
    }

    const CodeScan& scan_;
    const Vectors& v_;
    int64_t width_, first_, count_;
    CodeScratch& scratch_;
    std::vector<int64_t> rescored_;
    int64_t chunk_ = 0;
    int64_t rows_[kLanes];
    const int8_t* codes_[kLanes];
    const float* bounds_[3];
    float copied_[3][kLanes];
};

}  // namespace shoal
