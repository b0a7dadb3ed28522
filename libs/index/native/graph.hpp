// Search of a hierarchical navigable small world graph (Malkov and Yashunin 2016, algorithms 2 and 5) that lies beside its vectors.
//
// Rows that are not allowed are walked through, but take no place among the results.

#pragma once

#include "nearest.hpp"
#include "parallel.hpp"
#include "scan.hpp"

namespace shoal {

constexpr int kMostLinks = 512;  // of a node: the widest graph that a schema allows has 2 × 256

// Nodes of the upper levels are called by their slots.
struct Graph {
    const uint32_t* links;         // (rows, width) neighbours on the lowest level, the unused ones kNone at the end
    const uint32_t* upper_rows;    // (slots) the row of each
    const uint32_t* upper_starts;  // (slots) number of its first list: that of level 1
    const uint32_t* upper_links;   // (lists, upper_width) neighbours on an upper level, as slots
    int32_t width;
    int32_t upper_width;
    int32_t levels;                // above the lowest
    uint32_t entry;                // a slot; a row where there are no levels
};

struct GraphSearch {
    const Vectors* vectors;
    const Graph* graph;
    const float* queries;   // (queries, dimension)
    const uint8_t* allowed; // (rows); null for all
    int64_t query_count;
    int64_t k;
    int64_t ef;
    int64_t* compared;      // (queries) out: rows whose distance was computed
    int32_t threads;
};

using Scored = std::pair<float, uint32_t>;

// A row's score, for cosine with a query of length 1.
inline float walk_score(const Vectors& vectors, const float* query, uint32_t row) {
    const float* vector = vectors.at(row);
    float known = vectors.score(query, row, vector);
    if (known == known) return known;
    return exact_distance(kCosine, query, 1.0, vector, vectors.dimension) - 1;  // too short for float32
}

// The row where a walk of the lowest level begins.
inline uint32_t descend(const Vectors& vectors, const Graph& graph, const float* query) {
    uint32_t slot = graph.entry;
    if (graph.levels == 0) return slot;
    float best = walk_score(vectors, query, graph.upper_rows[slot]);
    for (int32_t level = graph.levels; level > 0; level--) {
        for (bool nearer = true; nearer;) {
            nearer = false;
            const uint32_t* list = graph.upper_links + int64_t{graph.upper_starts[slot] + level - 1} * graph.upper_width;
            for (int32_t i = 0; i < graph.upper_width && list[i] != kNone; i++) {
                float other = walk_score(vectors, query, graph.upper_rows[list[i]]);
                if (other < best) {
                    best = other;
                    slot = list[i];
                    nearer = true;
                }
            }
        }
    }
    return graph.upper_rows[slot];
}

// What a thread keeps from one search to the next.
struct Scratch {
    std::vector<uint64_t> seen;       // a bit per row, all of them 0 between searches
    std::vector<uint32_t> touched;    // rows whose bit is set
    std::vector<float> unit;
    std::vector<Scored> results;      // a heap, the farthest in front
    std::vector<Scored> candidates;   // a heap, the nearest in front
    Nearest nearest;
};

class GraphWalk {
  public:
    GraphWalk(const GraphSearch& search, Scratch& scratch)
        : s_(search),
          v_(*search.vectors),
          g_(*search.graph),
          seen_(scratch.seen),
          touched_(scratch.touched),
          unit_(scratch.unit),
          results_(scratch.results),
          candidates_(scratch.candidates),
          nearest_(scratch.nearest) {
        forget();  // what a search that threw has left
        if (seen_.size() < static_cast<size_t>((v_.rows + 63) / 64)) seen_.resize((v_.rows + 63) / 64, 0);
        unit_.resize(v_.dimension);
    }

    int64_t run(const float* query, int64_t* rows, float* distances, int64_t* compared) {
        query_ = query;
        double length = v_.space == kL2 ? 0 : exact_length(query, v_.dimension);
        if (v_.space == kCosine) {
            unit_copy(query, length, v_.dimension, unit_.data());
            query_ = unit_.data();
        }
        beam(descend(v_, g_, query_));
        *compared = static_cast<int64_t>(touched_.size());
        forget();
        // What is within the error of the k-th best score is measured, as in a scan.
        double error = v_.space == kL2 ? 0 : product_error(Space(v_.space), length, largest_square());
        nearest_.begin(v_, query, length, s_.k, static_cast<float>(kEpsilon * error), v_.space == kL2 ? 2 * kEpsilon : 0);
        std::sort(results_.begin(), results_.end());
        for (const Scored& one : results_) {
            if (one.first > nearest_.threshold()) break;
            nearest_.offer(one.first, one.second);
        }
        return nearest_.finish(rows, distances);
    }

  private:
    // Of the results, where the error of a product depends on it.
    double largest_square() const {
        double most = 0;
        if (v_.space != kIp) return most;
        for (const Scored& one : results_) {
            const float* vector = v_.at(one.second);
            most = std::max(most, exact_dot(vector, vector, v_.dimension));
        }
        return most;
    }

    float score(uint32_t row) const { return walk_score(v_, query_, row); }

    void forget() {
        for (uint32_t row : touched_) seen_[row >> 6] = 0;
        touched_.clear();
    }

    void beam(uint32_t start) {
        results_.clear();
        candidates_.clear();
        size_t ef = static_cast<size_t>(s_.ef);
        visit(start);
        consider(score(start), start, ef);
        while (!candidates_.empty()) {
            Scored nearest = candidates_.front();
            if (results_.size() == ef && nearest.first > results_.front().first) break;
            std::pop_heap(candidates_.begin(), candidates_.end(), std::greater<Scored>());
            candidates_.pop_back();
            const uint32_t* list = g_.links + int64_t{nearest.second} * g_.width;
            uint32_t fresh[kMostLinks];
            int count = 0;
            for (int32_t i = 0; i < g_.width && list[i] != kNone; i++) {
                if (!visit(list[i])) continue;
                fresh[count++] = list[i];
                const char* vector = reinterpret_cast<const char*>(v_.at(list[i]));
                for (int line = 0; line < kPrefetched; line++) __builtin_prefetch(vector + 64 * line);
            }
            for (int i = 0; i < count; i++) {
                if (i + 1 < count) prefetch_rest(fresh[i + 1]);
                consider(score(fresh[i]), fresh[i], ef);
            }
        }
    }

    void consider(float score, uint32_t row, size_t ef) {
        if (results_.size() == ef && !(score < results_.front().first)) return;
        candidates_.emplace_back(score, row);
        std::push_heap(candidates_.begin(), candidates_.end(), std::greater<Scored>());
        if (s_.allowed && !s_.allowed[row]) return;
        if (results_.size() == ef) {
            std::pop_heap(results_.begin(), results_.end());
            results_.back() = {score, row};
        } else {
            results_.emplace_back(score, row);
        }
        std::push_heap(results_.begin(), results_.end());
        if (results_.size() == ef) __builtin_prefetch(g_.links + int64_t{candidates_.front().second} * g_.width);
    }

    bool visit(uint32_t row) {
        uint64_t bit = uint64_t{1} << (row & 63);
        uint64_t& word = seen_[row >> 6];
        if (word & bit) return false;
        touched_.push_back(row);  // first: it may throw
        word |= bit;
        return true;
    }

    void prefetch_rest(uint32_t row) const {
        const char* vector = reinterpret_cast<const char*>(v_.at(row));
        int lines = (v_.dimension * 4 + 63) / 64;
        for (int line = kPrefetched; line < lines && line < kMostPrefetched; line++) __builtin_prefetch(vector + 64 * line);
    }

    static constexpr int kMostPrefetched = 32;

    const GraphSearch& s_;
    const Vectors& v_;
    const Graph& g_;
    const float* query_ = nullptr;
    std::vector<uint64_t>& seen_;
    std::vector<uint32_t>& touched_;
    std::vector<float>& unit_;
    std::vector<Scored>& results_;
    std::vector<Scored>& candidates_;
    Nearest& nearest_;
};

inline void search_graph(const GraphSearch& search, int64_t* rows, float* distances, int64_t* counts) {
    constexpr int64_t kTogether = 16;
    int64_t groups = (search.query_count + kTogether - 1) / kTogether;
    in_parallel(groups, search.threads, [&](int64_t group) {
        thread_local Scratch scratch;
        GraphWalk walk(search, scratch);
        int64_t last = std::min(search.query_count, (group + 1) * kTogether);
        for (int64_t q = group * kTogether; q < last; q++)
            counts[q] = walk.run(search.queries + q * search.vectors->dimension, rows + q * search.k, distances + q * search.k,
                                 search.compared + q);
    });
}

}  // namespace shoal
