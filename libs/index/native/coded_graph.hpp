// A faster walk of a graph, by codes of links (SymphonyQG: Gou, Gao, Xu and Long 2025): beside each node of the lowest level lie codes of
// one bit a dimension of what its neighbours are less the node (RaBitQ: Gao and Long 2024). All neighbours are estimated at once, by table
// look-ups in registers over one piece of memory; measured is what the walk visits.
//
// With r = neighbour − node and x the signs of r, both turned at random, |r|² / <x, r> · <x, v> is an unbiased estimate of <r, v> for any v.
// Here v is the query less the node, of which the node's part is known when links are coded. So one table serves all nodes, and a score is
// estimated as that of the node, and a bias, less a slope times <x, query>. A row that several visited nodes link to has several estimates, of
// which the lowest decides when it is visited.

#pragma once

#include <memory>

#include "graph.hpp"
#include "look_up.hpp"
#include "rotation.hpp"

namespace shoal {

constexpr int kPieceBits = 4;  // dimensions of a piece, whose signs are its code
constexpr int kLinkFactors = 2;    // of each link: bias and slope

// As Python lays it out (coded_graph.py). A record is of a row: so many blocks of 32 links, in their order. A block has the codes (pieces, 16)
// as those of clusters, then 32 biases and 32 slopes.
struct CodedGraph {
    const uint8_t* const* chunks;  // records
    const float* origin;           // (dimension) what all vectors are less before they are turned, for cosine those of length 1
    const Rotation* rotation;
    int32_t shift;                 // chunks but the last have 1 << shift rows
    int32_t blocks;

    int32_t pieces() const { return rotation->width() / kPieceBits; }
    int64_t block_bytes() const { return int64_t{16} * pieces() + int64_t{sizeof(float)} * kLinkFactors * kCoded; }
    int64_t record_bytes() const { return block_bytes() * blocks; }
    const uint8_t* at(uint32_t row) const { return chunks[row >> shift] + (row & ((uint32_t{1} << shift) - 1)) * record_bytes(); }
};

inline int32_t blocks_of(int32_t links) { return (links + kCoded - 1) / kCoded; }

// --- coding

// Codes one link. `node`, `other` and `origin` are turned, the first two less the origin.
inline void code_link(const float* node, const float* other, const float* origin, int width, bool l2, uint8_t* block, int at) {
    const Ints sign = Ints{} + std::numeric_limits<int32_t>::min();
    Floats squares = {}, sizes = {}, crossed = {}, along = {};
    int lane = at % 16, half = at < 16 ? 0 : kPieceBits;
    for (int i = 0; i < width; i += kLanes) {
        Floats c = load(node + i), r = load(other + i) - c;
        uint32_t up = ~not_above(r, Floats{});
        squares += r * r;
        sizes += (Floats)((Ints)r & ~sign);
        crossed += (Floats)((Ints)c ^ (~(r > 0) & sign));
        along += r * (c + load(origin + i));
        for (int p = 0; p < kLanes / kPieceBits; p++)
            block[(i / kPieceBits + p) * 16 + lane] |= static_cast<uint8_t>((up >> (kPieceBits * p) & 15) << half);
    }
    float square = sum(squares), size = sum(sizes), factor = size > 0 ? square / size : 0;
    float* bias = reinterpret_cast<float*>(block + 16 * (width / kPieceBits)) + at;
    bias[0] = l2 ? square + 2 * factor * sum(crossed) : factor * sum(crossed) - sum(along);
    bias[kCoded] = l2 ? 2 * factor : factor;
}

// Fills the records of all rows, which are zero. Turns all vectors first, in memory of its own.
inline void code_graph(const Vectors& v, const Graph& g, const CodedGraph& c, uint8_t* const* chunks, int threads) {
    constexpr int64_t kTogether = 256;
    int width = c.rotation->width();
    std::unique_ptr<float[]> turned(new float[v.rows * width]);
    std::vector<float> origin(width);
    std::copy(c.origin, c.origin + v.dimension, origin.begin());
    c.rotation->turn(origin.data());
    auto each = [&](auto work) {
        in_parallel((v.rows + kTogether - 1) / kTogether, threads, [&](int64_t group) {
            for (int64_t row = group * kTogether; row < std::min(v.rows, (group + 1) * kTogether); row++) work(row);
        });
    };
    each([&](int64_t row) {
        const float* vector = v.at(row);
        float* out = &turned[row * width];
        float scale = v.space == kCosine ? v.inverses[row] : 1;
        if (scale == scale) {
            for (int i = 0; i < v.dimension; i++) out[i] = vector[i] * scale;
        } else {
            unit_copy(vector, exact_length(vector, v.dimension), v.dimension, out);
        }
        for (int i = 0; i < v.dimension; i++) out[i] -= c.origin[i];
        std::fill(out + v.dimension, out + width, 0.0f);
        c.rotation->turn(out);
    });
    each([&](int64_t row) {
        uint8_t* record = chunks[row >> c.shift] + (row & ((int64_t{1} << c.shift) - 1)) * c.record_bytes();
        const uint32_t* list = g.links + row * g.width;
        for (int i = 0; i < g.width && list[i] != kNone; i++)
            code_link(&turned[row * width], &turned[int64_t{list[i]} * width], origin.data(), width, v.space == kL2,
                      record + i / kCoded * c.block_bytes(), i % kCoded);
    });
}

// --- searching

struct CodedGraphSearch {
    const Vectors* vectors;
    const Graph* graph;
    const CodedGraph* codes;
    const float* queries;    // (queries, dimension)
    const uint8_t* allowed;  // (rows); null for all
    int64_t query_count;
    int64_t k;
    int64_t ef;
    int64_t* compared;       // (queries) out: rows visited on the lowest level
    double largest_square;   // of the vectors
    int32_t threads;
};

// What a thread keeps from one search to the next.
struct CodedScratch {
    Scratch walk;                  // estimates, of which a row may have several; seen are rows that have one
    std::vector<uint64_t> visited_bits;  // as `seen`
    std::vector<float> turned;     // the query
    std::vector<uint8_t> table;    // (pieces, 16) what each piece adds to <x, query>, in steps above the base
    std::vector<float> best;       // estimates of rows that may be answered, the lowest ef among them
    std::vector<Scored> visited;   // allowed rows by their scores
};

class CodedWalk {
  public:
    CodedWalk(const CodedGraphSearch& search, CodedScratch& scratch)
        : s_(search), v_(*search.vectors), g_(*search.graph), c_(*search.codes), t_(scratch), w_(scratch.walk), ef_(search.ef), k_(search.k) {
        forget();  // what a search that threw has left
        size_t words = (v_.rows + 63) / 64;
        if (w_.seen.size() < words) w_.seen.resize(words, 0);
        if (t_.visited_bits.size() < words) t_.visited_bits.resize(words, 0);
        w_.unit.resize(v_.dimension);
        t_.table.resize(16 * c_.pieces());
    }

    // A function of its own: it would else look up its thread's scratch again and again.
    __attribute__((noinline)) int64_t run(const float* query, int64_t* rows, float* distances, int64_t* compared) {
        double length = v_.space == kL2 ? 0 : exact_length(query, v_.dimension);
        query_ = query;
        if (v_.space == kCosine) {
            unit_copy(query, length, v_.dimension, w_.unit.data());
            query_ = w_.unit.data();
        }
        make_table();
        *compared = walk(descend(v_, g_, query_));
        forget();
        double error = v_.space == kL2 ? 0 : kEpsilon * product_error(Space(v_.space), length, s_.largest_square);
        w_.nearest.begin(v_, query, length, s_.k, static_cast<float>(error), v_.space == kL2 ? 2 * kEpsilon : 0);
        for (const Scored& one : t_.visited) w_.nearest.offer(one.first, one.second);
        return w_.nearest.finish(rows, distances);
    }

  private:
    void forget() {
        for (uint32_t row : w_.touched) {
            w_.seen[row >> 6] = 0;
            if (!t_.visited_bits.empty()) t_.visited_bits[row >> 6] = 0;
        }
        w_.touched.clear();
    }

    void make_table() {
        t_.turned.assign(c_.rotation->width(), 0);
        for (int i = 0; i < v_.dimension; i++) t_.turned[i] = query_[i] - c_.origin[i];
        c_.rotation->turn(t_.turned.data());
        float range = 0;
        base_ = 0;
        for (int m = 0; m < c_.pieces(); m++) {
            float most = 0;
            for (int i = 0; i < kPieceBits; i++) most += std::fabs(t_.turned[kPieceBits * m + i]);
            range = std::max(range, 2 * most);
            base_ -= most;
        }
        step_ = range > 0 ? range / kLargestEntry : 1;
        const Ints code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        float scale = 1 / step_;
        for (int m = 0; m < c_.pieces(); m++) {
            Floats entries = {};
            for (int i = 0; i < kPieceBits; i++) {
                float value = t_.turned[kPieceBits * m + i], size = std::fabs(value);
                entries += (code >> i & 1) != 0 ? Floats{} + (size + value) : Floats{} + (size - value);
            }
            entries = entries * scale + 0.5f;
            entries = entries < kLargestEntry + 0.5f ? entries : Floats{} + kLargestEntry;  // what is not a number, too
            *reinterpret_cast<Bytes16*>(&t_.table[16 * m]) = __builtin_convertvector(__builtin_convertvector(entries, Ints), Bytes16);
        }
    }

    // How many rows it visits.
    int64_t walk(uint32_t start) {
        w_.candidates.clear();
        t_.best.clear();
        t_.visited.clear();
        reached_ = 0;
        limit_ = kFar;
        consider(walk_score(v_, query_, start), start);
        int64_t count = 0;
        while (!w_.candidates.empty() && (w_.candidates.front().first <= bound() || t_.visited.size() < k_)) {
            uint32_t row = w_.candidates.front().second;
            std::pop_heap(w_.candidates.begin(), w_.candidates.end(), std::greater<Scored>());
            w_.candidates.pop_back();
            uint64_t bit = uint64_t{1} << (row & 63);
            if (t_.visited_bits[row >> 6] & bit) continue;
            t_.visited_bits[row >> 6] |= bit;
            if (!w_.candidates.empty()) prefetch(w_.candidates.front().second);  // likely the next
            visit(row);
            count++;
        }
        return count;
    }

    // An estimate that is not below it is of no use: that of the ef-th best row that may be answered, or a little above.
    float bound() const { return reached_ >= k_ ? limit_ : kFar; }

    // Measures a row, and estimates those that it links to.
    void visit(uint32_t row) {
        float own = walk_score(v_, query_, row);
        if (!s_.allowed || s_.allowed[row]) t_.visited.emplace_back(own, row);
        const uint32_t* list = g_.links + int64_t{row} * g_.width;
        const uint8_t* table = t_.table.data();
        for (int first = 0; first < g_.width && list[first] != kNone; first += kCoded) {
            const uint8_t* block = c_.at(row) + first / kCoded * c_.block_bytes();
            const float* factors = reinterpret_cast<const float*>(block + 16 * c_.pieces());
            Shorts sums[1][2];
            sum_codes<1, 0>(block, &table, c_.pieces(), sums);
            for (int half = 0; half < 2; half++) {
                Floats products = __builtin_convertvector(sums[0][half], Floats) * step_ + base_;
                Floats estimates = own + load(factors + 16 * half) - load(factors + kCoded + 16 * half) * products;
                take(estimates, list + first + 16 * half, std::min(g_.width - first - 16 * half, 16));
            }
        }
    }

    void take(Floats estimates, const uint32_t* list, int count) {
        for (uint32_t near = not_above(estimates, Floats{} + bound()); near; near &= near - 1) {
            int i = __builtin_ctz(near);
            if (i >= count || list[i] == kNone) break;
            if (t_.visited_bits[list[i] >> 6] >> (list[i] & 63) & 1) continue;
            consider(estimates[i], list[i]);
        }
    }

    void consider(float score, uint32_t row) {
        if (!(score == score)) score = kFar;  // so that scores have an order
        bool first = mark(row);
        w_.candidates.emplace_back(score, row);
        std::push_heap(w_.candidates.begin(), w_.candidates.end(), std::greater<Scored>());
        if (s_.allowed && !s_.allowed[row]) return;
        reached_ += first;
        t_.best.push_back(score);
        if (t_.best.size() < ef_ + ef_ / 2) return;
        std::nth_element(t_.best.begin(), t_.best.begin() + ef_ - 1, t_.best.end());
        t_.best.resize(ef_);
        limit_ = t_.best.back();
    }

    bool mark(uint32_t row) {
        uint64_t bit = uint64_t{1} << (row & 63);
        uint64_t& word = w_.seen[row >> 6];
        if (word & bit) return false;
        w_.touched.push_back(row);  // first: it may throw
        word |= bit;
        return true;
    }

    void prefetch(uint32_t row) const {
        fetch(c_.at(row), c_.record_bytes());
        fetch(g_.links + int64_t{row} * g_.width, 4 * g_.width);
        fetch(v_.at(row), 4 * v_.dimension);
    }

    static void fetch(const void* start, int64_t size_bytes) {
        const char* at = static_cast<const char*>(start);
        for (int64_t line = 0; line < std::min(size_bytes, kMostFetched); line += 64) __builtin_prefetch(at + line);
    }

    static constexpr int64_t kMostFetched = 2048;
    static constexpr float kFar = std::numeric_limits<float>::infinity();

    const CodedGraphSearch& s_;
    const Vectors& v_;
    const Graph& g_;
    const CodedGraph& c_;
    CodedScratch& t_;
    Scratch& w_;
    size_t ef_, k_;
    float limit_ = 0;
    size_t reached_ = 0;  // allowed rows that have an estimate
    const float* query_ = nullptr;
    float base_ = 0, step_ = 1;
};

inline void search_coded_graph(const CodedGraphSearch& search, int64_t* rows, float* distances, int64_t* counts) {
    constexpr int64_t kTogether = 16;
    in_parallel((search.query_count + kTogether - 1) / kTogether, search.threads, [&](int64_t group) {
        thread_local CodedScratch scratch;
        CodedWalk walk(search, scratch);
        for (int64_t q = group * kTogether; q < std::min(search.query_count, (group + 1) * kTogether); q++)
            counts[q] = walk.run(search.queries + q * search.vectors->dimension, rows + q * search.k, distances + q * search.k,
                                 search.compared + q);
    });
}

}  // namespace shoal
