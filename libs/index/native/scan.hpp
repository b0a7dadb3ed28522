// Exact search: every allowed row is compared with every query. Of a few queries four by four rows; of many, rows are laid out side by
// side first, so that a register holds the same dimension of sixteen of them and no sums over its lanes are needed.

#pragma once

#include "nearest.hpp"
#include "parallel.hpp"
#include "shortlist.hpp"

namespace shoal {

struct Scan {
    const Vectors* vectors;
    const float* queries;   // (queries, dimension)
    const int64_t* rows;    // the rows to compare; null for all
    int64_t query_count;
    int64_t row_count;      // of `rows`, or all
    int64_t k;
    double largest_square;
    int32_t threads;
};

constexpr int kTile = 4;
#if defined(__AVX512F__)
constexpr int kSides = 2;         // registers of rows side by side
constexpr int kPackedTile = 12;   // queries that are compared with them at once: their sums fit the registers
#else
constexpr int kSides = 1;
constexpr int kPackedTile = kTile;
#endif
constexpr int kBlock = kSides * kLanes;  // rows that all queries of a group see before the next ones: they fit the nearest caches
constexpr int kSums = kBlock / kRegisterLanes;
constexpr int kWorthPacking = 16; // queries
constexpr int kSummed = 256;      // dimensions added up one after another: rounding errors grow with their number
constexpr int64_t kGroup = 256;   // queries of one work item: they fit the second level cache
constexpr int kPrefetched = 4;    // cache lines of a row
constexpr int64_t kGroupRows = 1 << 16;  // results of one work item: where many are wanted, fewer queries go together
constexpr int64_t kPart = 4096;   // rows are not split finer over threads
constexpr double kWork = 1 << 22; // products that are worth a thread

// Adds up sixteen registers: element i of the result is the sum of the i-th.
inline Floats sums(Floats* v) {
    for (int i = 0; i < 8; i++)
        v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// (4 × 4) dot products, those of a query next to each other.
inline Floats tile_products(const float* const* queries, const float* const* rows, int dimension) {
    Floats v[kTile * kTile] = {};
    int i = 0;
    for (; i + kLanes <= dimension; i += kLanes) {
        Floats r[kTile];
        for (int j = 0; j < kTile; j++) r[j] = load(rows[j] + i);
        for (int q = 0; q < kTile; q++) {
            Floats one = load(queries[q] + i);
            for (int j = 0; j < kTile; j++) v[q * kTile + j] += one * r[j];
        }
    }
    if (i < dimension) {
        for (int q = 0; q < kTile; q++) {
            Floats one = rest_only(load_rest(queries[q], dimension), dimension);
            for (int j = 0; j < kTile; j++) v[q * kTile + j] += one * load_rest(rows[j], dimension);
        }
    }
    return sums(v);
}

// Lays rows side by side: the value of row r in dimension i is at kBlock · i + r. Up to kBlock rows, beyond which there are zeros.
inline void pack(const float* const* rows, int count, int dimension, float* packed) {
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    if (count < kBlock) std::memset(packed, 0, sizeof(float) * kBlock * dimension);
    int quads = count / 4 * 4;
    for (int r = 0; r < quads; r += 4) {
        int i = 0;
        for (; i + 4 <= dimension; i += 4) {
            Four v[4];
            for (int j = 0; j < 4; j++) v[j] = *reinterpret_cast<const Four*>(rows[r + j] + i);
            Four a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
            Four c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
            float* out = packed + kBlock * i + r;
            *reinterpret_cast<Four*>(out) = __builtin_shufflevector(a, b, 0, 1, 4, 5);
            *reinterpret_cast<Four*>(out + kBlock) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
            *reinterpret_cast<Four*>(out + 2 * kBlock) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
            *reinterpret_cast<Four*>(out + 3 * kBlock) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
        }
        for (; i < dimension; i++)
            for (int j = 0; j < 4; j++) packed[kBlock * i + r + j] = rows[r + j][i];
    }
    for (int r = quads; r < count; r++)
        for (int i = 0; i < dimension; i++) packed[kBlock * i + r] = rows[r][i];
}

// Dot products of some queries with packed rows. Of few queries, dimensions go to several sums in turn: one that was just added to is not
// ready yet. So the last bit of a product may depend on how many queries there are.
template <int kQueries>
inline void packed_products(const float* const* queries, const float* packed, int dimension, Floats (*products)[kSides]) {
    constexpr int kApart = std::max(1, 8 / (kQueries * kSums));
    Register total[kQueries][kSums] = {};
    for (int start = 0; start < dimension; start += kSummed) {
        Register part[kApart][kQueries][kSums] = {};
        int end = std::min(dimension, start + kSummed), i = start;
        auto add = [&](int to, int at) {
            Register r[kSums];
            for (int j = 0; j < kSums; j++) r[j] = load_register(packed + kBlock * at + kRegisterLanes * j);
            for (int q = 0; q < kQueries; q++)
                for (int j = 0; j < kSums; j++) part[to][q][j] += queries[q][at] * r[j];
        };
        for (; i + kApart <= end; i += kApart)
            for (int to = 0; to < kApart; to++) add(to, i + to);
        for (; i < end; i++) add(0, i);
        for (int to = 0; to < kApart; to++)
            for (int q = 0; q < kQueries; q++)
                for (int j = 0; j < kSums; j++) total[q][j] += part[to][q][j];
    }
    std::memcpy(products, total, sizeof total);
}

inline Floats each_four_times(const float* four) {  // a a a a b b b b c c c c d d d d
    Floats v = load_few(four, kTile);
    return __builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
}

inline Floats four_times(const float* four) {  // a b c d a b c d a b c d a b c d
    Floats v = load_few(four, kTile);
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
}

// What a thread keeps from one part to the next.
struct ScanScratch {
    std::vector<Shortlist> nearest;
    std::vector<float> units;
    std::vector<const float*> pointers;
    std::vector<float> thresholds;
    std::vector<float> packed;
};

// Some queries, compared with rows block by block. One at a time for a scratch.
class ScanPart {
  public:
    typedef ScanScratch Scratch;

    ScanPart(const Scan& scan, int64_t first, int64_t last, ScanScratch& scratch)
        : scan_(scan),
          v_(*scan.vectors),
          count_(last - first),
          tiled_(count_ / kTile * kTile),
          apart_(scan.rows && scan.row_count * kLanes < v_.rows),
          nearest_(scratch.nearest),
          units_(scratch.units),
          pointers_(scratch.pointers),
          thresholds_(scratch.thresholds),
          packed_(scratch.packed) {
        if (tiled_ >= kWorthPacking) packed_.resize(kBlock * v_.dimension);
        const float* given = scan.queries + first * v_.dimension;
        if (nearest_.size() < static_cast<size_t>(count_)) nearest_.resize(count_);
        if (v_.space == kCosine) units_.resize(count_ * v_.dimension);
        thresholds_.assign(count_, std::numeric_limits<float>::infinity());
        pointers_.resize(count_);
        for (int64_t q = 0; q < count_; q++) begin(q, given + q * v_.dimension);
    }

    // Compares with these rows: positions in the list, or row numbers.
    void run(int64_t first, int64_t last) {
        for (int64_t at = first; at < last;) {
            int filled = 0;
            first_ = static_cast<uint32_t>(at);
            for (; at < last && filled < kBlock; at++, filled++) {
                int64_t row = scan_.rows ? scan_.rows[at] : at;
                rows_[filled] = row;
                vectors_[filled] = v_.at(row);
                factors_[filled] = v_.space == kL2 ? -2.0f : v_.space == kCosine ? -v_.inverses[row] : -1.0f;
                offsets_[filled] = v_.space == kL2 ? v_.squares[row] : 0.0f;
                if (at + kBlock < last) prefetch(at + kBlock);
            }
            if (tiled_ >= kWorthPacking) {
                pack(vectors_, filled, v_.dimension, packed_.data());
                compare_packed(filled);
            } else {
                compare_tiles(filled);
            }
            compare_rest(filled);
        }
    }

    int64_t finish(int64_t query, int64_t* rows, float* distances) { return nearest_[query].finish(rows, distances); }

  private:
    void begin(int64_t q, const float* given) {
        double length = exact_length(given, v_.dimension);
        pointers_[q] = given;
        if (v_.space == kCosine) {
            float* unit = &units_[q * v_.dimension];
            unit_copy(given, length, v_.dimension, unit);
            pointers_[q] = unit;
        }
        // A squared difference is a sum of squares, whose error is in proportion to it; by way of a product it is not.
        bool tiled = q < tiled_;
        double error = v_.space == kL2 && !tiled ? 0 : product_error(Space(v_.space), length, scan_.largest_square);
        float relative = v_.space == kL2 && !tiled ? 2 * kEpsilon : 0;
        nearest_[q].begin(v_, given, length, scan_.k, static_cast<float>(kEpsilon * error), relative, scan_.rows);
    }

    void prefetch(int64_t at) const {
        int64_t row = scan_.rows ? scan_.rows[at] : at;
        const float* vector = v_.at(row);
        for (int line = 0; line < kPrefetched; line++) __builtin_prefetch(vector + line * kLanes);
        if (!apart_) return;
        if (v_.space == kL2) __builtin_prefetch(v_.squares + row);
        if (v_.space == kCosine) __builtin_prefetch(v_.inverses + row);
    }

    void compare_packed(int filled) {
        int64_t q = 0;
        for (; q + kPackedTile <= tiled_; q += kPackedTile) compare_packed<kPackedTile>(q, filled);
        for (; q < tiled_; q += kTile) compare_packed<kTile>(q, filled);
    }

    template <int kQueries>
    void compare_packed(int64_t q, int filled) {
        uint32_t there = filled == 32 ? ~0u : (1u << filled) - 1;
        Floats products[kQueries][kSides];
        packed_products<kQueries>(&pointers_[q], packed_.data(), v_.dimension, products);
        for (int i = 0; i < kQueries; i++) {
            for (int j = 0; j < kSides; j++) {
                Floats scores = products[i][j] * load(&factors_[kLanes * j]) + load(&offsets_[kLanes * j]);
                uint32_t near = not_above(scores, Floats{} + thresholds_[q + i]) & there >> (kLanes * j);
                if (!near) continue;
                nearest_[q + i].offer(scores, near, first_ + kLanes * j);
                thresholds_[q + i] = nearest_[q + i].threshold();
            }
        }
    }

    void compare_tiles(int filled) {
        int whole = filled / kTile * kTile;
        for (int64_t q = 0; q < tiled_; q += kTile) {
            for (int r = 0; r < whole; r += kTile) {
                Floats products = tile_products(&pointers_[q], &vectors_[r], v_.dimension);
                Floats scores = products * four_times(&factors_[r]) + four_times(&offsets_[r]);
                for (uint32_t near = not_above(scores, each_four_times(&thresholds_[q])); near; near &= near - 1) {
                    int at = __builtin_ctz(near);
                    offer(q + at / kTile, scores[at], r + at % kTile);
                }
            }
            for (int r = whole; r < filled; r++)
                for (int i = 0; i < kTile; i++)
                    offer(q + i, dot(pointers_[q + i], vectors_[r], v_.dimension) * factors_[r] + offsets_[r], r);
        }
    }

    void compare_rest(int filled) {
        for (int64_t q = tiled_; q < count_; q++)
            for (int r = 0; r < filled; r++) offer(q, v_.score(pointers_[q], rows_[r], vectors_[r]), r);
    }

    void offer(int64_t q, float score, int r) {
        if (!(score > thresholds_[q])) take(q, score, r);
    }

    // A function of its own: few scores come to it, and registers are needed where they are made.
    __attribute__((noinline)) void take(int64_t q, float score, int r) {
        nearest_[q].offer(score, first_ + r);
        thresholds_[q] = nearest_[q].threshold();
    }

    const Scan& scan_;
    const Vectors& v_;
    int64_t count_, tiled_;
    bool apart_;  // the lengths of rows lie in cache lines of their own
    std::vector<Shortlist>& nearest_;
    std::vector<float>& units_;
    std::vector<const float*>& pointers_;
    std::vector<float>& thresholds_;
    std::vector<float>& packed_;
    uint32_t first_ = 0;  // position of the block
    int64_t rows_[kBlock];
    const float* vectors_[kBlock];
    float factors_[kBlock], offsets_[kBlock];  // a score is product · factor + offset
};

// Of `Part`s, each with some of the rows.
template <typename Part, typename Search>
class RowParts {
  public:
    RowParts(const Search& scan, int64_t first, int64_t last, int64_t parts)
        : scan_(scan), first_(first), last_(last), parts_(parts), found_(parts * (last - first)) {}

    void run(int64_t number) {
        thread_local typename Part::Scratch scratch;
        Part part(scan_, first_, last_, scratch);
        part.run(scan_.row_count * number / parts_, scan_.row_count * (number + 1) / parts_);
        std::vector<int64_t> rows(scan_.k);
        std::vector<float> distances(scan_.k);
        for (int64_t q = first_; q < last_; q++) {
            int64_t count = part.finish(q - first_, rows.data(), distances.data());
            auto& found = found_[number * (last_ - first_) + q - first_];
            for (int64_t i = 0; i < count; i++) found.push_back({distances[i], scan_.vectors->ties[rows[i]], rows[i]});
        }
    }

    void merge(int64_t* rows, float* distances, int64_t* counts) const {
        for (int64_t q = first_; q < last_; q++) {
            std::vector<Measured> all;
            for (int64_t number = 0; number < parts_; number++) {
                const auto& some = found_[number * (last_ - first_) + q - first_];
                all.insert(all.end(), some.begin(), some.end());
            }
            std::sort(all.begin(), all.end());
            counts[q] = std::min<int64_t>(scan_.k, static_cast<int64_t>(all.size()));
            for (int64_t i = 0; i < counts[q]; i++) {
                rows[q * scan_.k + i] = all[i].row;
                distances[q * scan_.k + i] = all[i].distance;
            }
        }
    }

  private:
    const Search& scan_;
    int64_t first_, last_, parts_;
    std::vector<std::vector<Measured>> found_;
};

// Many queries are shared out over the threads; of few, the rows are.
template <typename Part = ScanPart, typename Search = Scan>
void scan(const Search& scan, int64_t* rows, float* distances, int64_t* counts) {
    double work = double(scan.query_count) * scan.row_count * scan.vectors->dimension;
    int threads = static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(work / kWork), 1, scan.threads));
    bool many = scan.query_count >= 2 * kTile * threads;
    int64_t together = std::clamp<int64_t>(kGroupRows / std::max<int64_t>(scan.k, 1), kTile, kGroup);
    int64_t groups = std::max<int64_t>((scan.query_count + together - 1) / together, many ? threads : 1);
    int64_t parts = many ? 1 : std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, scan.row_count / kPart));
    int64_t step = (scan.query_count + groups - 1) / groups;
    auto whole = [&](int64_t group) {
        int64_t first = group * step, last = std::min(first + step, scan.query_count);
        if (first >= last) return;
        thread_local typename Part::Scratch scratch;
        Part part(scan, first, last, scratch);
        part.run(0, scan.row_count);
        for (int64_t q = first; q < last; q++) counts[q] = part.finish(q - first, rows + q * scan.k, distances + q * scan.k);
    };
    if (parts == 1) {
        in_parallel(groups, threads, whole);
        return;
    }
    for (int64_t first = 0; first < scan.query_count; first += step) {
        RowParts<Part, Search> shared(scan, first, std::min(first + step, scan.query_count), parts);
        in_parallel(parts, threads, [&](int64_t number) { shared.run(number); });
        shared.merge(rows, distances, counts);
    }
}

}  // namespace shoal
