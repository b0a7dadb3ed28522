// Search of posting lists whose vectors are product-quantised to 4 bits a piece (André, Kermarrec and Le Scouarnec 2015): the lists of
// the nearest centroids are scanned by table look-ups in registers, and the best of them are measured on the full vectors.
//
// A vector is coded as its centroid plus, for each piece of its dimensions, one of 16 residuals. Its score is the inner product with that,
// or for l2 the squared distance less the query's squared length.

#pragma once

#include "allowed_lists.hpp"
#include "list_order.hpp"
#include "look_up.hpp"
#include "nearest.hpp"
#include "parallel.hpp"
#include "scan.hpp"

namespace shoal {

constexpr int kAhead = 2;        // blocks

// As Python lays it out (clusters.py). Lists are padded to whole blocks, with kNone for rows.
struct Clusters {
    const float* origin;       // (dimension) what all else is less, for l2; else null
    const float* packed;       // the centroids, kBlock by kBlock side by side (scan.hpp)
    const float* squares;      // (lists) of the centroids, for l2; else null
    const float* codebook;     // (pieces, width, 16)
    const int64_t* starts;     // (lists + 1) first block of each list
    const uint32_t* rows;      // (blocks, 32)
    const uint8_t* codes;      // (blocks, pieces, 16): byte j of a piece has vector j below and vector j + 16 above
    const float* biases;       // (blocks, 32) squared lengths of what the codes stand for, for l2; else null
    int64_t lists;
    int32_t pieces;            // a multiple of kPieceStep; those beyond the dimension have a codebook of zeros
    int32_t width;             // dimensions of a piece
};

struct ClusterSearch {
    const Vectors* vectors;
    const Clusters* clusters;
    const float* queries;    // (queries, dimension)
    const AllowedLists* allowed;
    int64_t query_count;
    int64_t k;
    int64_t probes;          // lists to scan: so many of usual size, only allowed vectors counted; more while they have fewer than k
    int64_t refined;         // of what they have, so many are measured
    int64_t* compared;       // (queries) out: codes compared
    double largest_square;   // of the vectors
    int32_t threads;
};

// One query of a group.
struct ClusterQuery {
    const float* vector;          // for cosine of length 1, for l2 less the origin
    double length;                // as given
    const uint8_t* table;         // (pieces, 16) what each piece adds to a score, in steps above the base
    float base, step;
    float threshold;              // a score above it is of no use
    std::vector<uint64_t> found;  // keys of the best so far, and some that were not sorted out yet
};

// What a thread keeps from one search to the next.
struct ClusterScratch {
    std::vector<float> units;
    std::vector<const float*> pointers;
    std::vector<float> products;       // (queries, lists) with the lists' centroids
    std::vector<float> scores;         // (lists) of a query
    std::vector<uint64_t> order;       // (queries, lists) keys, as many as are ordered
    std::vector<ListOrder> ordered;    // (queries)
    std::vector<float> exact_table;
    std::vector<uint8_t> tables;       // (queries, pieces, 16)
    std::vector<int64_t> selected;     // (queries) lists to scan
    std::vector<int64_t> ends;         // (lists + 1) of a pass
    std::vector<uint32_t> visitors;    // queries by list, of a pass
    std::vector<ClusterQuery> queries;
    Nearest nearest;
};

// Some queries. Those that scan the same list do so one after another, while its codes are near at hand. One at a time for a scratch.
class ClusterGroup {
  public:
    ClusterGroup(const ClusterSearch& search, ClusterScratch& scratch, int64_t first, int64_t last)
        : s_(search),
          v_(*search.vectors),
          c_(*search.clusters),
          allowed_(*search.allowed),
          t_(scratch),
          first_(first),
          count_(last - first),
          most_(std::max(search.refined, search.k)),
          probes_(std::clamp<int64_t>(search.probes, 1, c_.lists)) {}

    // A function of its own: it would else look up its thread's scratch again and again.
    __attribute__((noinline)) void run(int64_t* rows, float* distances, int64_t* counts) {
        begin();
        rank();
        for (int64_t q = 0; q < count_; q++) make_table(q);
        if (count_ == 1) {
            pass_alone();
        } else {  // the nearest lists first, so that thresholds are low for the others
            pass(0, kNearestLists);
            pass(kNearestLists, c_.lists);
        }
        for (int64_t q = 0; q < count_; q++) {
            int64_t at = first_ + q;
            complete(q);
            keep(t_.queries[q]);
            counts[at] = refine(t_.queries[q], s_.queries + at * v_.dimension, rows + at * s_.k, distances + at * s_.k);
        }
    }

  private:
    static constexpr int64_t kNearestLists = 4;
    static constexpr int64_t kFewLists = 16;
    static constexpr int kMostPrefetched = 32;  // lines

    template <typename Value>
    static void grow(std::vector<Value>& values, int64_t size) {
        if (values.size() < static_cast<size_t>(size)) values.resize(size);
    }

    float factor() const { return v_.space == kL2 ? -2.0f : -1.0f; }

    void begin() {
        t_.pointers.resize(count_);
        if (v_.space == kCosine || c_.origin) grow(t_.units, count_ * v_.dimension);
        grow(t_.products, count_ * c_.lists);
        t_.scores.resize((c_.lists + kLanes - 1) / kLanes * kLanes);
        grow(t_.order, count_ * c_.lists);
        t_.ordered.assign(count_, ListOrder());
        t_.exact_table.resize(16 * c_.pieces);
        grow(t_.tables, count_ * c_.pieces * 16);
        t_.ends.resize(c_.lists + 1);
        t_.selected.resize(count_);
        grow(t_.queries, count_);
        for (int64_t q = 0; q < count_; q++) {
            const float* given = s_.queries + (first_ + q) * v_.dimension;
            ClusterQuery& query = t_.queries[q];
            query.vector = given;
            query.length = exact_length(given, v_.dimension);
            query.table = &t_.tables[q * c_.pieces * 16];
            query.threshold = std::numeric_limits<float>::infinity();
            query.found.clear();
            if (v_.space == kCosine) {
                unit_copy(given, query.length, v_.dimension, &t_.units[q * v_.dimension]);
                query.vector = &t_.units[q * v_.dimension];
            } else if (c_.origin) {
                float* moved = &t_.units[q * v_.dimension];
                for (int i = 0; i < v_.dimension; i++) moved[i] = given[i] - c_.origin[i];
                query.vector = moved;
            }
            t_.pointers[q] = query.vector;
            s_.compared[first_ + q] = 0;
        }
    }

    // Of a few queries at a time, whose products with the centroids stay near at hand.
    void rank() {
        int64_t q = 0;
        for (; q + kPackedTile <= count_; q += kPackedTile) rank_some<kPackedTile>(q);
        for (; q + kTile <= count_; q += kTile) rank_some<kTile>(q);
        for (; q < count_; q++) rank_some<1>(q);
    }

    template <int kQueries>
    void rank_some(int64_t first) {
        multiply<kQueries>(first);
        for (int64_t q = first; q < first + kQueries; q++) {
            score(q);
            t_.selected[q] = select(q);
        }
    }

    template <int kQueries>
    void multiply(int64_t first) {
        for (int64_t list = 0; list < c_.lists; list += kBlock) {
            Floats products[kQueries][kSides];
            packed_products<kQueries>(&t_.pointers[first], c_.packed + list * v_.dimension, v_.dimension, products);
            for (int q = 0; q < kQueries; q++)
                std::memcpy(&t_.products[(first + q) * c_.lists + list], products[q], sizeof(float) * std::min<int64_t>(kBlock, c_.lists - list));
        }
    }

    // Scores of a query's lists, the same whenever it is asked.
    void score(int64_t q) {
        const float* products = &t_.products[q * c_.lists];
        for (int64_t list = 0; list < c_.lists; list++) {
            float score = c_.squares ? factor() * products[list] + c_.squares[list] : factor() * products[list];
            t_.scores[list] = score == score ? score : std::numeric_limits<float>::infinity();
        }
        fill_register(t_.scores.data(), c_.lists);
    }

    void order_more(int64_t q, int64_t more) {
        shoal::order_more(t_.scores.data(), c_.lists, more, t_.ordered[q], &t_.order[q * c_.lists]);
    }

    uint32_t list_at(int64_t q, int64_t rank) const { return static_cast<uint32_t>(t_.order[q * c_.lists + rank]); }

    // The nearest lists that have as many allowed vectors together as `probes` lists have on average. A query may lie where nothing is
    // allowed: all that is lies far from it, and so in many directions, and it takes as many lists more as there was nothing in.
    int64_t select(int64_t q) {
        double wanted = double(probes_) * v_.rows / c_.lists, seen = 0;
        int64_t rank = 0;
        while (rank < c_.lists && seen < wanted) {
            if (rank == t_.ordered[q].count) {
                // As many as it takes if the others are as the ones before, of which some may be as good as empty.
                double likely = rank == 0 ? double(probes_) : std::min(rank * (wanted - seen) / std::max(seen, 1.0), 8.0 * rank);
                order_more(q, std::max(static_cast<int64_t>(1.1 * likely), kFewLists));
            }
            int32_t members = allowed_.count(list_at(q, rank++));
            if (seen == 0 && members == 0) wanted += double(v_.rows) / c_.lists;
            seen += members;
        }
        return rank;
    }

    void make_table(int64_t q) {
        ClusterQuery& query = t_.queries[q];
        float range = 0;
        query.base = 0;
        for (int m = 0; m < c_.pieces; m++) {
            const float* book = c_.codebook + int64_t{16} * m * c_.width;
            int used = std::clamp(v_.dimension - m * c_.width, 0, c_.width);
            Floats products = {};
            for (int i = 0; i < used; i++) products += query.vector[m * c_.width + i] * load(book + 16 * i);
            products *= factor();
            float least = smallest(products), most = -smallest(-products);
            *reinterpret_cast<Floats*>(&t_.exact_table[16 * m]) = products - least;
            range = std::max(range, most - least);
            query.base += least;
        }
        query.step = range > 0 ? range / kLargestEntry : 1;
        float scale = 1 / query.step;
        for (int m = 0; m < c_.pieces; m++) {
            Ints entries = __builtin_convertvector(load(&t_.exact_table[16 * m]) * scale + 0.5f, Ints);
            *reinterpret_cast<Bytes16*>(&t_.tables[(q * c_.pieces + m) * 16]) = __builtin_convertvector(entries, Bytes16);
        }
    }

    static float smallest(Floats v) {
        Eight low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
        Eight less = low < high ? low : high;
        float four[4];
        for (int i = 0; i < 4; i++) four[i] = std::min(less[i], less[i + 4]);
        return std::min(std::min(four[0], four[1]), std::min(four[2], four[3]));
    }

    // Scans of each query's lists those from one rank to another, list by list, but for lists without allowed vectors.
    void pass(int64_t from, int64_t to) {
        std::fill(t_.ends.begin(), t_.ends.end(), 0);
        auto each = [&](auto visit) {
            for (int64_t q = 0; q < count_; q++)
                for (int64_t rank = from; rank < std::min(to, t_.selected[q]); rank++)
                    if (allowed_.count(list_at(q, rank))) visit(q, list_at(q, rank));
        };
        each([&](int64_t, uint32_t list) { t_.ends[list + 1]++; });
        for (int64_t list = 0; list < c_.lists; list++) t_.ends[list + 1] += t_.ends[list];
        t_.visitors.resize(t_.ends[c_.lists]);
        each([&](int64_t q, uint32_t list) { t_.visitors[t_.ends[list]++] = static_cast<uint32_t>(q); });
        for (int64_t list = 0, at = 0; list < c_.lists; list++) {
            if (list + 1 < c_.lists && t_.ends[list + 1] > t_.ends[list]) prefetch_list(static_cast<uint32_t>(list + 1));
            for (; at + 2 <= t_.ends[list]; at += 2) scan_list<2>(&t_.visitors[at], static_cast<uint32_t>(list));
            if (at < t_.ends[list]) scan_list<1>(&t_.visitors[at++], static_cast<uint32_t>(list));
        }
    }

    // The same of the lists of a single query, each fetched while the one before is scanned.
    void pass_alone() {
        constexpr uint32_t kNoList = 0xFFFFFFFFu;
        uint32_t last = kNoList;
        for (int64_t rank = 0; rank < t_.selected[0]; rank++) {
            uint32_t list = list_at(0, rank);
            if (!allowed_.count(list)) continue;
            prefetch_list(list);
            if (last != kNoList) scan_list(0, last);
            last = list;
        }
        if (last != kNoList) scan_list(0, last);
    }

    // More lists, while those that were to be scanned have fewer than k.
    void complete(int64_t q) {
        const ClusterQuery& query = t_.queries[q];
        int64_t rank = t_.selected[q];
        if (static_cast<int64_t>(query.found.size()) >= s_.k || rank == c_.lists) return;
        score(q);
        for (; rank < c_.lists && static_cast<int64_t>(query.found.size()) < s_.k; rank++) {
            if (rank == t_.ordered[q].count) order_more(q, std::max(rank, kFewLists));
            if (allowed_.count(list_at(q, rank))) scan_list(q, list_at(q, rank));
        }
    }

    // Its first blocks, which nothing before them leads to.
    void prefetch_list(uint32_t list) const {
        const uint8_t* codes = c_.codes + c_.starts[list] * c_.pieces * 16;
        for (int line = 0; line < kAhead * c_.pieces * 16; line += 64) __builtin_prefetch(codes + line);
    }

    void scan_list(uint32_t q, uint32_t list) { scan_list<1>(&q, list); }

    template <int kQueries>
    void scan_list(const uint32_t* visitors, uint32_t list) {
        const uint8_t* tables[kQueries];
        float offsets[kQueries];
        for (int i = 0; i < kQueries; i++) {
            tables[i] = t_.queries[visitors[i]].table;
            offsets[i] = factor() * t_.products[visitors[i] * c_.lists + list] + t_.queries[visitors[i]].base;
        }
        int64_t blocks = 0;
        for (int64_t block = c_.starts[list]; block < c_.starts[list + 1]; block++) {
            uint32_t allowed = allowed_.of_block(block);
            if (!allowed) continue;
            Shorts sums[kQueries][2];
            sum_codes<kQueries, kAhead>(c_.codes + block * c_.pieces * 16, tables, c_.pieces, sums);
            for (int i = 0; i < kQueries; i++) take(t_.queries[visitors[i]], block, allowed, sums[i], offsets[i]);
            blocks++;
        }
        for (int i = 0; i < kQueries; i++) s_.compared[first_ + visitors[i]] += blocks * kCoded;
    }

    void take(ClusterQuery& query, int64_t block, uint32_t allowed, const Shorts* sums, float offset) {
        const uint32_t* rows = c_.rows + block * kCoded;
        for (int half = 0; half < 2; half++) {
            Floats scores = __builtin_convertvector(sums[half], Floats) * query.step + offset;
            if (c_.biases) scores += load(c_.biases + block * kCoded + 16 * half);
            for (uint32_t near = not_above(scores, Floats{} + query.threshold) & allowed >> 16 * half; near; near &= near - 1) {
                int j = __builtin_ctz(near);
                query.found.push_back(key_of(scores[j], rows[16 * half + j]));
            }
        }
        if (static_cast<int64_t>(query.found.size()) >= 2 * most_) keep(query);
    }

    // The best so many of what was found.
    void keep(ClusterQuery& query) const {
        if (static_cast<int64_t>(query.found.size()) <= most_) return;
        auto end = query.found.begin() + most_;
        std::nth_element(query.found.begin(), end - 1, query.found.end());
        query.found.erase(end, query.found.end());
        query.threshold = score_of(query.found.back());
    }

    int64_t refine(const ClusterQuery& query, const float* given, int64_t* rows, float* distances) {
        double error = v_.space == kL2 ? 0 : product_error(Space(v_.space), query.length, s_.largest_square);
        t_.nearest.begin(v_, given, query.length, s_.k, static_cast<float>(kEpsilon * error), v_.space == kL2 ? 2 * kEpsilon : 0);
        for (size_t i = 0; i < query.found.size(); i++) {
            if (i + 2 < query.found.size()) prefetch(static_cast<uint32_t>(query.found[i + 2]));
            int64_t row = static_cast<uint32_t>(query.found[i]);
            t_.nearest.offer(v_.score(v_.space == kCosine ? query.vector : given, row, v_.at(row)), row);
        }
        return t_.nearest.finish(rows, distances);
    }

    void prefetch(uint32_t row) const {
        const char* vector = reinterpret_cast<const char*>(v_.at(row));
        int lines = (v_.dimension * 4 + 63) / 64;
        for (int line = 0; line < lines && line < kMostPrefetched; line++) __builtin_prefetch(vector + 64 * line);
    }

    const ClusterSearch& s_;
    const Vectors& v_;
    const Clusters& c_;
    const AllowedLists& allowed_;
    ClusterScratch& t_;
    int64_t first_, count_, most_, probes_;
};

inline void search_clusters(const ClusterSearch& search, int64_t* rows, float* distances, int64_t* counts) {
    constexpr int64_t kTogether = 128;
    int64_t each = (search.query_count + search.threads - 1) / std::max(search.threads, 1);
    int64_t step = std::clamp<int64_t>((each + kTile - 1) / kTile * kTile, 1, kTogether);
    in_parallel((search.query_count + step - 1) / step, search.threads, [&](int64_t group) {
        thread_local ClusterScratch scratch;
        int64_t first = group * step;
        ClusterGroup(search, scratch, first, std::min(search.query_count, first + step)).run(rows, distances, counts);
    });
}

// What codes vectors: each one's residual from its list's centroid, piece by piece.
struct Coding {
    const float* vectors;    // (count, dimension)
    const int64_t* lists;    // (count)
    const float* centroids;  // (lists, dimension)
    const float* codebook;   // (pieces, width, 16)
    int64_t count;
    int32_t dimension;
    int32_t pieces;
    int32_t width;
    int32_t threads;
};

// Writes (count, pieces) codes, and (count) squared lengths of what they stand for.
inline void code_vectors(const Coding& c, uint8_t* codes, float* squares) {
    std::vector<float> own(16 * c.pieces);  // half the squared length of every entry
    for (int m = 0; m < c.pieces; m++) {
        Floats sum = {};
        for (int i = 0; i < c.width; i++) sum += load(c.codebook + 16 * (m * c.width + i)) * load(c.codebook + 16 * (m * c.width + i));
        *reinterpret_cast<Floats*>(&own[16 * m]) = sum * 0.5f;
    }
    constexpr int64_t kTogether = 1024;
    in_parallel((c.count + kTogether - 1) / kTogether, c.threads, [&](int64_t group) {
        for (int64_t n = group * kTogether; n < std::min(c.count, (group + 1) * kTogether); n++) {
            const float* vector = c.vectors + n * c.dimension;
            const float* centroid = c.centroids + c.lists[n] * c.dimension;
            double length = 0;
            for (int m = 0; m < c.pieces; m++) {
                const float* book = c.codebook + int64_t{16} * m * c.width;
                int used = std::clamp(c.dimension - m * c.width, 0, c.width);
                Floats far = load(&own[16 * m]);
                for (int i = 0; i < used; i++) far -= (vector[m * c.width + i] - centroid[m * c.width + i]) * load(book + 16 * i);
                int best = 0;
                for (int j = 1; j < 16; j++) best = far[j] < far[best] ? j : best;
                codes[n * c.pieces + m] = static_cast<uint8_t>(best);
                for (int i = 0; i < used; i++) {
                    float value = centroid[m * c.width + i] + book[16 * i + best];
                    length += double{value} * value;
                }
            }
            squares[n] = static_cast<float>(length);
        }
    });
}

}  // namespace shoal
