// The Python module: arguments in, kernels without the interpreter's lock, results into arrays that Python made.
//
// Compiled once for each level of a CPU's instructions, as a module of its own name (SHOAL_MODULE); shoal_index/vector/native.py loads
// the one for the highest level that the CPU has. Only the stable interface of CPython 3.11 is used.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>

#include "clusters.hpp"
#include "coded_graph.hpp"
#include "codes.hpp"
#include "graph.hpp"
#include "scan.hpp"

using namespace shoal;

namespace {

// A contiguous array of Python's, held until the end of its life.
class Held {
  public:
    Held() = default;
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() {
        if (view_.obj) PyBuffer_Release(&view_);
    }

    // Raises ValueError where it has not so many bytes; -1 takes any number of them.
    bool take(PyObject* object, int64_t size_bytes, bool writable = false) {
        if (PyObject_GetBuffer(object, &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return false;
        if (size_bytes < 0 || view_.len == size_bytes) return true;
        PyErr_Format(PyExc_ValueError, "expected an array of %lld bytes, got %lld", static_cast<long long>(size_bytes),
                     static_cast<long long>(view_.len));
        return false;
    }

    template <typename T>
    T* as() const {
        return static_cast<T*>(view_.buf);
    }

    int64_t size_bytes() const { return view_.len; }

  private:
    Py_buffer view_ = {};
};

struct HeldVectors {
    Vectors vectors;
    std::unique_ptr<Held[]> chunks;
    std::vector<const float*> pointers;
    Held starts, squares, inverses, ties;
    double largest_square;
};

struct HeldCodes {
    Codes codes;
    std::unique_ptr<Held[]> chunks, bounds;
    std::vector<const int8_t*> chunk_pointers;
    std::vector<const float*> bound_pointers;
};

struct HeldGraph {
    Graph graph;
    int64_t rows;
    Held links, upper_rows, upper_starts, upper_links;
};

struct HeldClusters {
    Clusters clusters;
    int dimension;
    int64_t rows;
    std::vector<float> packed;
    Held origin, squares, codebook, starts, members, codes, biases;
};

struct HeldCodedGraph {
    CodedGraph codes;
    std::unique_ptr<Rotation> rotation;
    int64_t rows;
    int dimension;
    std::unique_ptr<Held[]> chunks;
    std::vector<uint8_t*> pointers;
    std::vector<const uint8_t*> readable;
    Held origin;

    // Raises ValueError where it does not have a record of each row, for a graph with so many links.
    bool take(int64_t count, int links, int dimensions, PyObject* origin_array, PyObject* records, int shift, bool writable) {
        rows = count;
        dimension = dimensions;
        if (dimension < 1 || links < 1 || shift < 0 || shift > 31) return refuse_shape();
        rotation = std::make_unique<Rotation>(dimension);
        codes = {nullptr, nullptr, rotation.get(), shift, blocks_of(links)};
        if (codes.pieces() > kMostPieces || PyTuple_Size(records) != (rows + (int64_t{1} << shift) - 1) >> shift) return refuse_shape();
        if (!origin.take(origin_array, int64_t{4} * dimension)) return false;
        chunks = std::make_unique<Held[]>(PyTuple_Size(records));
        for (int64_t i = 0; i < PyTuple_Size(records); i++) {
            int64_t held = std::min(rows - (i << shift), int64_t{1} << shift);
            if (!chunks[i].take(PyTuple_GetItem(records, i), held * codes.record_bytes(), writable)) return false;
            pointers.push_back(chunks[i].as<uint8_t>());
        }
        readable.assign(pointers.begin(), pointers.end());
        codes.chunks = readable.data();
        codes.origin = origin.as<const float>();
        return true;
    }

  private:
    static bool refuse_shape() {
        PyErr_SetString(PyExc_ValueError, "the codes of links do not fit the kernel");
        return false;
    }
};

constexpr const char* kClusters = "shoal.clusters";
constexpr const char* kCodedGraph = "shoal.coded_graph";
constexpr const char* kVectors = "shoal.vectors";
constexpr const char* kGraph = "shoal.graph";

template <typename T>
void destroy(PyObject* capsule) {
    delete static_cast<T*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
}

PyObject* refuse(const char* problem) {
    PyErr_SetString(PyExc_ValueError, problem);
    return nullptr;
}

// vectors(chunks, starts, squares | None, inverses | None, ties, shift, dimension, space, largest_square)
PyObject* make_vectors(PyObject*, PyObject* args) {
    PyObject *chunks, *starts, *squares, *inverses, *ties;
    int shift, dimension, space;
    auto held = std::make_unique<HeldVectors>();
    if (!PyArg_ParseTuple(args, "O!OOOOiiid", &PyTuple_Type, &chunks, &starts, &squares, &inverses, &ties, &shift, &dimension, &space,
                          &held->largest_square))
        return nullptr;
    int64_t count = PyTuple_Size(chunks);
    if (!held->starts.take(starts, (count + 1) * 8)) return nullptr;
    const int64_t* first = held->starts.as<const int64_t>();
    int64_t rows = first[count];
    held->chunks = std::make_unique<Held[]>(count);
    for (int64_t i = 0; i < count; i++) {
        if (!held->chunks[i].take(PyTuple_GetItem(chunks, i), (first[i + 1] - first[i]) * dimension * 4)) return nullptr;
        if (shift >= 0 && first[i] != i << shift) return refuse("chunks are not of the size that is said");
        held->pointers.push_back(held->chunks[i].as<const float>());
    }
    if (!held->ties.take(ties, rows * 8)) return nullptr;
    if (squares != Py_None && !held->squares.take(squares, rows * 4)) return nullptr;
    if (inverses != Py_None && !held->inverses.take(inverses, rows * 4)) return nullptr;
    if ((space == kL2 && squares == Py_None) || (space == kCosine && inverses == Py_None)) return refuse("lengths are missing");
    held->vectors = {held->pointers.data(),
                     first,
                     held->squares.as<const float>(),
                     held->inverses.as<const float>(),
                     held->ties.as<const uint64_t>(),
                     count,
                     rows,
                     shift,
                     dimension,
                     space};
    PyObject* capsule = PyCapsule_New(held.get(), kVectors, destroy<HeldVectors>);
    if (capsule) held.release();
    return capsule;
}

// graph(rows, links, upper_rows, upper_starts, upper_links, width, upper_width, levels, entry): what leads nowhere is not looked for.
PyObject* make_graph(PyObject*, PyObject* args) {
    PyObject *links, *upper_rows, *upper_starts, *upper_links;
    long long rows;
    int width, upper_width, levels;
    unsigned int entry;
    auto held = std::make_unique<HeldGraph>();
    if (!PyArg_ParseTuple(args, "LOOOOiiiI", &rows, &links, &upper_rows, &upper_starts, &upper_links, &width, &upper_width, &levels, &entry))
        return nullptr;
    if (width > kMostLinks) return refuse("the graph is wider than the kernel's limit");
    if (!held->links.take(links, rows * width * 4) || !held->upper_rows.take(upper_rows, -1) || !held->upper_links.take(upper_links, -1) ||
        !held->upper_starts.take(upper_starts, held->upper_rows.size_bytes()))
        return nullptr;
    held->rows = rows;
    held->graph = {held->links.as<const uint32_t>(),
                   held->upper_rows.as<const uint32_t>(),
                   held->upper_starts.as<const uint32_t>(),
                   held->upper_links.as<const uint32_t>(),
                   width,
                   upper_width,
                   levels,
                   entry};
    PyObject* capsule = PyCapsule_New(held.get(), kGraph, destroy<HeldGraph>);
    if (capsule) held.release();
    return capsule;
}

void pack_centroids(const float* centroids, int64_t lists, int dimension, std::vector<float>& packed) {
    packed.resize((lists + kBlock - 1) / kBlock * kBlock * dimension);
    for (int64_t list = 0; list < lists; list += kBlock) {
        const float* rows[kBlock];
        int count = static_cast<int>(std::min<int64_t>(kBlock, lists - list));
        for (int i = 0; i < count; i++) rows[i] = centroids + (list + i) * dimension;
        pack(rows, count, dimension, &packed[list * dimension]);
    }
}

// clusters(rows, dimension, lists, pieces, width, origin | None, centroids, squares | None, codebook, starts, members, codes, biases | None): members are
// not looked at.
PyObject* make_clusters(PyObject*, PyObject* args) {
    PyObject *origin, *centroids, *squares, *codebook, *starts, *members, *codes, *biases;
    long long rows, lists;
    int dimension, pieces, width;
    auto held = std::make_unique<HeldClusters>();
    if (!PyArg_ParseTuple(args, "LiLiiOOOOOOOO", &rows, &dimension, &lists, &pieces, &width, &origin, &centroids, &squares, &codebook,
                          &starts, &members, &codes, &biases))
        return nullptr;
    if (pieces % kPieceStep || pieces > kMostPieces || int64_t{pieces} * width < dimension) return refuse("the pieces do not fit the kernel");
    Held means;
    if (!means.take(centroids, lists * dimension * 4) || !held->codebook.take(codebook, int64_t{64} * pieces * width) ||
        !held->starts.take(starts, (lists + 1) * 8))
        return nullptr;
    const int64_t* first = held->starts.as<const int64_t>();
    for (int64_t list = 0; list < lists; list++)
        if (first[list] < 0 || first[list] > first[list + 1]) return refuse("lists are not in order");
    if (!held->members.take(members, first[lists] * kCoded * 4) || !held->codes.take(codes, first[lists] * pieces * 16)) return nullptr;
    if (origin != Py_None && !held->origin.take(origin, int64_t{dimension} * 4)) return nullptr;
    if (squares != Py_None && !held->squares.take(squares, lists * 4)) return nullptr;
    if (biases != Py_None && !held->biases.take(biases, first[lists] * kCoded * 4)) return nullptr;
    try {
        pack_centroids(means.as<const float>(), lists, dimension, held->packed);
    } catch (...) {
        return PyErr_NoMemory();
    }
    held->dimension = dimension;
    held->rows = rows;
    held->clusters = {held->origin.as<const float>(),
                      held->packed.data(),
                      held->squares.as<const float>(),
                      held->codebook.as<const float>(),
                      first,
                      held->members.as<const uint32_t>(),
                      held->codes.as<const uint8_t>(),
                      held->biases.as<const float>(),
                      lists,
                      pieces,
                      width};
    PyObject* capsule = PyCapsule_New(held.get(), kClusters, destroy<HeldClusters>);
    if (capsule) held.release();
    return capsule;
}

// Runs it without the interpreter's lock, and answers what it says.
template <typename Work>
PyObject* done(Work work) {
    int64_t answer = 0;
    bool failed = false;
    PyThreadState* state = PyEval_SaveThread();
    try {
        answer = work();
    } catch (...) {
        failed = true;
    }
    PyEval_RestoreThread(state);
    return failed ? PyErr_NoMemory() : PyLong_FromLongLong(answer);
}

// The arrays that a search of q queries fills.
struct Output {
    Held rows, distances, counts;

    int64_t total() const {
        int64_t all = 0;
        for (int64_t q = 0; q < counts.size_bytes() / 8; q++) all += counts.as<const int64_t>()[q];
        return all;
    }

    bool take(PyObject* r, PyObject* d, PyObject* c, int64_t q, int64_t k) {
        if (q < 1 || k < 1) return refuse("nothing is asked for") != nullptr;
        return rows.take(r, q * k * 8, true) && distances.take(d, q * k * 4, true) && counts.take(c, q * 8, true);
    }
};

// The first `most` rows that a mask of a byte per row allows, in order. Of eight that have any, it is done without branches.
std::unique_ptr<int64_t[]> rows_of(const uint8_t* allowed, int64_t count, int64_t most, int64_t* found) {
    constexpr int kStep = 64;
    std::unique_ptr<int64_t[]> rows(new int64_t[most + kStep]);
    int64_t filled = 0, first = 0;
    for (; first + kStep <= count && filled < most; first += kStep) {
        uint64_t words[kStep / 8], any = 0;
        std::memcpy(words, allowed + first, kStep);
        for (uint64_t word : words) any |= word;
        if (!any) continue;
        for (int start = 0; start < kStep; start += 8) {
            if (!words[start / 8]) continue;
            for (int i = start; i < start + 8; i++) {
                rows[filled] = first + i;
                filled += allowed[first + i] != 0;
            }
        }
    }
    for (; first < count && filled < most; first++) {
        rows[filled] = first;
        filled += allowed[first] != 0;
    }
    *found = std::min(filled, most);
    return rows;
}

// scan(vectors, queries, q, allowed | None, allowed_count, k, threads, out_rows, out_distances, out_counts)
PyObject* scan_rows(PyObject*, PyObject* args) {
    PyObject *capsule, *queries, *allowed, *out_rows, *out_distances, *out_counts;
    long long q, k, allowed_count;
    int threads;
    if (!PyArg_ParseTuple(args, "OOLOLLiOOO", &capsule, &queries, &q, &allowed, &allowed_count, &k, &threads, &out_rows, &out_distances,
                          &out_counts))
        return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    Held asked, mask;
    Output out;
    if (!held || !asked.take(queries, q * held->vectors.dimension * 4) || !out.take(out_rows, out_distances, out_counts, q, k)) return nullptr;
    if (allowed != Py_None && !mask.take(allowed, held->vectors.rows)) return nullptr;
    return done([&] {
        std::unique_ptr<int64_t[]> rows;
        Scan search = {&held->vectors, asked.as<const float>(), nullptr, q, held->vectors.rows, k, held->largest_square, threads};
        if (allowed != Py_None) {
            rows = rows_of(mask.as<const uint8_t>(), held->vectors.rows, std::max(allowed_count, 0LL), &search.row_count);
            search.rows = rows.get();
        }
        scan(search, out.rows.as<int64_t>(), out.distances.as<float>(), out.counts.as<int64_t>());
        return out.total();
    });
}

// code_rows(space, vectors, dimension, out_codes, out_bounds): codes of vectors (n, dimension), into (n, width) zeros and (3, n).
PyObject* code_by_row(PyObject*, PyObject* args) {
    int space, dimension;
    PyObject *vectors, *out_codes, *out_bounds;
    if (!PyArg_ParseTuple(args, "iOiOO", &space, &vectors, &dimension, &out_codes, &out_bounds)) return nullptr;
    if (dimension < 1) return refuse("vectors have a dimension");
    Held given, codes, bounds;
    if (!given.take(vectors, -1)) return nullptr;
    int64_t rows = given.size_bytes() / (4 * dimension), width = code_width(dimension);
    if (!codes.take(out_codes, rows * width, true) || !bounds.take(out_bounds, rows * 12, true)) return nullptr;
    return done([&] {
        std::vector<float> whole(dimension);
        for (int64_t i = 0; i < rows; i++)
            code_row(Space(space), given.as<const float>() + i * dimension, dimension, codes.as<int8_t>() + i * width,
                     bounds.as<float>() + i, rows, whole.data());
        return rows;
    });
}

// Of each chunk of the vectors its codes and bounds; see `code_rows`. Raises ValueError where they are not of so many rows.
bool take_codes(HeldCodes& held, const Vectors& vectors, PyObject* chunks, PyObject* bounds) {
    if (PyTuple_Size(chunks) != vectors.chunk_count || PyTuple_Size(bounds) != vectors.chunk_count)
        return refuse("the codes are of other vectors") != nullptr;
    int64_t width = code_width(vectors.dimension);
    held.chunks = std::make_unique<Held[]>(vectors.chunk_count);
    held.bounds = std::make_unique<Held[]>(vectors.chunk_count);
    for (int64_t i = 0; i < vectors.chunk_count; i++) {
        int64_t rows = vectors.starts[i + 1] - vectors.starts[i];
        if (!held.chunks[i].take(PyTuple_GetItem(chunks, i), rows * width)) return false;
        if (!held.bounds[i].take(PyTuple_GetItem(bounds, i), rows * 12)) return false;
        held.chunk_pointers.push_back(held.chunks[i].as<const int8_t>());
        held.bound_pointers.push_back(held.bounds[i].as<const float>());
    }
    held.codes = {held.chunk_pointers.data(), held.bound_pointers.data(), static_cast<int32_t>(width)};
    return true;
}

// scan_codes(vectors, codes, bounds, queries, q, allowed | None, allowed_count, k, threads, out_rows, out_distances, out_counts, out_rescored)
PyObject* scan_by_codes(PyObject*, PyObject* args) {
    PyObject *capsule, *chunks, *bounds, *queries, *allowed, *out_rows, *out_distances, *out_counts, *out_rescored;
    long long q, k, allowed_count;
    int threads;
    if (!PyArg_ParseTuple(args, "OO!O!OLOLLiOOOO", &capsule, &PyTuple_Type, &chunks, &PyTuple_Type, &bounds, &queries, &q, &allowed,
                          &allowed_count, &k, &threads, &out_rows, &out_distances, &out_counts, &out_rescored))
        return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    Held asked, mask, rescored;
    HeldCodes coded;
    Output out;
    if (!held || !asked.take(queries, q * held->vectors.dimension * 4) || !out.take(out_rows, out_distances, out_counts, q, k)) return nullptr;
    if (!rescored.take(out_rescored, q * 8, true) || !take_codes(coded, held->vectors, chunks, bounds)) return nullptr;
    if (allowed != Py_None && !mask.take(allowed, held->vectors.rows)) return nullptr;
    return done([&] {
        std::unique_ptr<int64_t[]> rows;
        CodeScan search = {{&held->vectors, asked.as<const float>(), nullptr, q, held->vectors.rows, k, held->largest_square, threads},
                           &coded.codes, rescored.as<int64_t>()};
        if (allowed != Py_None) {
            rows = rows_of(mask.as<const uint8_t>(), held->vectors.rows, std::max(allowed_count, 0LL), &search.row_count);
            search.rows = rows.get();
        }
        scan<CodePart>(search, out.rows.as<int64_t>(), out.distances.as<float>(), out.counts.as<int64_t>());
        return out.total();
    });
}

// search_graph(vectors, graph, queries, q, k, ef, allowed | None, threads, out_rows, out_distances, out_counts, out_compared)
PyObject* walk_graph(PyObject*, PyObject* args) {
    PyObject *capsule, *links, *queries, *allowed, *out_rows, *out_distances, *out_counts, *out_compared;
    long long q, k, ef;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOLLLOiOOOO", &capsule, &links, &queries, &q, &k, &ef, &allowed, &threads, &out_rows, &out_distances,
                          &out_counts, &out_compared))
        return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    auto* graph = held ? static_cast<HeldGraph*>(PyCapsule_GetPointer(links, kGraph)) : nullptr;
    Held asked, mask, compared;
    Output out;
    if (!graph || !asked.take(queries, q * held->vectors.dimension * 4) || !out.take(out_rows, out_distances, out_counts, q, k)) return nullptr;
    if (!compared.take(out_compared, q * 8, true)) return nullptr;
    if (graph->rows != held->vectors.rows) return refuse("the graph is of other vectors");
    if (allowed != Py_None && !mask.take(allowed, held->vectors.rows)) return nullptr;
    GraphSearch search = {&held->vectors, &graph->graph, asked.as<const float>(), mask.as<const uint8_t>(), q, k, std::max(ef, k),
                          compared.as<int64_t>(), threads};
    return done([&] {
        search_graph(search, out.rows.as<int64_t>(), out.distances.as<float>(), out.counts.as<int64_t>());
        return out.total();
    });
}

// coded_graph(rows, links, dimension, origin, chunks, shift): codes of a graph that is so many links wide, (rows, record) in chunks.
PyObject* make_coded_graph(PyObject*, PyObject* args) {
    PyObject *origin, *chunks;
    long long rows;
    int links, dimension, shift;
    if (!PyArg_ParseTuple(args, "LiiOO!i", &rows, &links, &dimension, &origin, &PyTuple_Type, &chunks, &shift)) return nullptr;
    auto held = std::make_unique<HeldCodedGraph>();
    if (!held->take(rows, links, dimension, origin, chunks, shift, false)) return nullptr;
    PyObject* capsule = PyCapsule_New(held.get(), kCodedGraph, destroy<HeldCodedGraph>);
    if (capsule) held.release();
    return capsule;
}

// code_graph(vectors, graph, origin, chunks, shift, threads): fills chunks of zeros with the codes of all links.
PyObject* code_links(PyObject*, PyObject* args) {
    PyObject *capsule, *links, *origin, *chunks;
    int shift, threads;
    if (!PyArg_ParseTuple(args, "OOOO!ii", &capsule, &links, &origin, &PyTuple_Type, &chunks, &shift, &threads)) return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    auto* graph = held ? static_cast<HeldGraph*>(PyCapsule_GetPointer(links, kGraph)) : nullptr;
    if (!graph) return nullptr;
    if (graph->rows != held->vectors.rows) return refuse("the graph is of other vectors");
    HeldCodedGraph codes;
    if (!codes.take(graph->rows, graph->graph.width, held->vectors.dimension, origin, chunks, shift, true)) return nullptr;
    return done([&] {
        code_graph(held->vectors, graph->graph, codes.codes, codes.pointers.data(), threads);
        return graph->rows;
    });
}

// search_coded_graph(vectors, graph, codes, queries, q, k, ef, allowed | None, threads, out_rows, out_distances, out_counts, out_compared)
PyObject* walk_coded_graph(PyObject*, PyObject* args) {
    PyObject *capsule, *links, *coded, *queries, *allowed, *out_rows, *out_distances, *out_counts, *out_compared;
    long long q, k, ef;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOLLLOiOOOO", &capsule, &links, &coded, &queries, &q, &k, &ef, &allowed, &threads, &out_rows,
                          &out_distances, &out_counts, &out_compared))
        return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    auto* graph = held ? static_cast<HeldGraph*>(PyCapsule_GetPointer(links, kGraph)) : nullptr;
    auto* codes = graph ? static_cast<HeldCodedGraph*>(PyCapsule_GetPointer(coded, kCodedGraph)) : nullptr;
    Held asked, mask, compared;
    Output out;
    if (!codes || !asked.take(queries, q * held->vectors.dimension * 4) || !out.take(out_rows, out_distances, out_counts, q, k)) return nullptr;
    if (!compared.take(out_compared, q * 8, true)) return nullptr;
    if (graph->rows != held->vectors.rows) return refuse("the graph is of other vectors");
    if (codes->rows != graph->rows || codes->dimension != held->vectors.dimension || codes->codes.blocks != blocks_of(graph->graph.width))
        return refuse("the codes are of another graph");
    if (allowed != Py_None && !mask.take(allowed, held->vectors.rows)) return nullptr;
    CodedGraphSearch search = {&held->vectors, &graph->graph, &codes->codes, asked.as<const float>(), mask.as<const uint8_t>(), q, k,
                               std::max(ef, k), compared.as<int64_t>(), held->largest_square, threads};
    return done([&] {
        search_coded_graph(search, out.rows.as<int64_t>(), out.distances.as<float>(), out.counts.as<int64_t>());
        return out.total();
    });
}

// search_clusters(vectors, clusters, queries, q, k, probes, refined, allowed | None, allowed_counts, allowed_bits, threads, out_rows, out_distances,
// out_counts, out_compared)
PyObject* scan_clusters(PyObject*, PyObject* args) {
    PyObject *capsule, *lists, *queries, *allowed, *counts, *bits, *out_rows, *out_distances, *out_counts, *out_compared;
    long long q, k, probes, refined;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOLLLLOOOiOOOO", &capsule, &lists, &queries, &q, &k, &probes, &refined, &allowed, &counts, &bits, &threads,
                          &out_rows, &out_distances, &out_counts, &out_compared))
        return nullptr;
    auto* held = static_cast<HeldVectors*>(PyCapsule_GetPointer(capsule, kVectors));
    auto* clusters = held ? static_cast<HeldClusters*>(PyCapsule_GetPointer(lists, kClusters)) : nullptr;
    Held asked, mask, compared;
    Output out;
    if (!clusters || !asked.take(queries, q * held->vectors.dimension * 4) || !out.take(out_rows, out_distances, out_counts, q, k))
        return nullptr;
    if (!compared.take(out_compared, q * 8, true)) return nullptr;
    if (clusters->rows != held->vectors.rows || clusters->dimension != held->vectors.dimension)
        return refuse("the clusters are of other vectors");
    if (allowed != Py_None && !mask.take(allowed, held->vectors.rows)) return nullptr;
    const Clusters& c = clusters->clusters;
    Held known_counts, known_bits;
    if (!known_counts.take(counts, c.lists * 4, true) || !known_bits.take(bits, c.starts[c.lists] * 4, true)) return nullptr;
    AllowedLists of_lists(c.starts, c.rows, mask.as<const uint8_t>(), known_counts.as<int32_t>(), known_bits.as<uint32_t>());
    ClusterSearch search = {&held->vectors, &c, asked.as<const float>(), &of_lists, q, k, probes, refined,
                            compared.as<int64_t>(), held->largest_square, threads};
    return done([&] {
        search_clusters(search, out.rows.as<int64_t>(), out.distances.as<float>(), out.counts.as<int64_t>());
        return out.total();
    });
}

// code_vectors(vectors, lists, centroids, codebook, n, dimension, centroid_count, pieces, width, threads, out_codes, out_squares)
PyObject* code(PyObject*, PyObject* args) {
    PyObject *vectors, *lists, *centroids, *codebook, *out_codes, *out_squares;
    long long n, centroid_count;
    int dimension, pieces, width, threads;
    if (!PyArg_ParseTuple(args, "OOOOLiLiiiOO", &vectors, &lists, &centroids, &codebook, &n, &dimension, &centroid_count, &pieces, &width,
                          &threads, &out_codes, &out_squares))
        return nullptr;
    Held given, owners, means, book, codes, squares;
    if (!given.take(vectors, n * dimension * 4) || !owners.take(lists, n * 8) || !means.take(centroids, centroid_count * dimension * 4) ||
        !book.take(codebook, int64_t{64} * pieces * width) || !codes.take(out_codes, n * pieces, true) ||
        !squares.take(out_squares, n * 4, true))
        return nullptr;
    if (int64_t{pieces} * width < dimension) return refuse("the pieces do not cover the dimension");
    for (int64_t i = 0; i < n; i++)
        if (owners.as<int64_t>()[i] < 0 || owners.as<int64_t>()[i] >= centroid_count) return refuse("a vector is of no list");
    Coding coding = {given.as<const float>(), owners.as<const int64_t>(), means.as<const float>(), book.as<const float>(), n, dimension,
                     pieces, width, threads};
    return done([&] {
        code_vectors(coding, codes.as<uint8_t>(), squares.as<float>());
        return n;
    });
}

// distances(space, query, vectors, dimension, out): of vectors (n, dimension) from a query.
PyObject* measure_distances(PyObject*, PyObject* args) {
    int space, dimension;
    PyObject *query, *vectors, *out;
    if (!PyArg_ParseTuple(args, "iOOiO", &space, &query, &vectors, &dimension, &out)) return nullptr;
    if (dimension < 1) return refuse("vectors have a dimension");
    Held asked, given, filled;
    if (!asked.take(query, int64_t{4} * dimension) || !given.take(vectors, -1)) return nullptr;
    int64_t rows = given.size_bytes() / (4 * dimension);
    if (!filled.take(out, rows * 4, true)) return nullptr;
    return done([&] {
        const float *from = asked.as<const float>(), *to = given.as<const float>();
        double length = exact_length(from, dimension);
        for (int64_t i = 0; i < rows; i++) filled.as<float>()[i] = exact_distance(Space(space), from, length, to + i * dimension, dimension);
        return rows;
    });
}

// lengths(vectors, dimension, out_squares, out_inverses): squared lengths, and 1 / length, which is not a number where float32 products lose it.
PyObject* measure_lengths(PyObject*, PyObject* args) {
    int dimension;
    PyObject *vectors, *squares, *inverses;
    if (!PyArg_ParseTuple(args, "OiOO", &vectors, &dimension, &squares, &inverses)) return nullptr;
    if (dimension < 1) return refuse("vectors have a dimension");
    Held given, squared, inverted;
    if (!given.take(vectors, -1)) return nullptr;
    int64_t rows = given.size_bytes() / (4 * dimension);
    if (!squared.take(squares, rows * 4, true) || !inverted.take(inverses, rows * 4, true)) return nullptr;
    return done([&] {
        for (int64_t i = 0; i < rows; i++) {
            double length = exact_length(given.as<const float>() + i * dimension, dimension);
            squared.as<float>()[i] = static_cast<float>(length * length);
            inverted.as<float>()[i] = length < kShortest ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(1 / length);
        }
        return rows;
    });
}

PyMethodDef kMethods[] = {{"vectors", make_vectors, METH_VARARGS, nullptr},        {"graph", make_graph, METH_VARARGS, nullptr},
                          {"scan", scan_rows, METH_VARARGS, nullptr},              {"search_graph", walk_graph, METH_VARARGS, nullptr},
                          {"distances", measure_distances, METH_VARARGS, nullptr}, {"lengths", measure_lengths, METH_VARARGS, nullptr},
                          {"clusters", make_clusters, METH_VARARGS, nullptr},      {"search_clusters", scan_clusters, METH_VARARGS, nullptr},
                          {"code_vectors", code, METH_VARARGS, nullptr},           {"code_rows", code_by_row, METH_VARARGS, nullptr},
                          {"scan_codes", scan_by_codes, METH_VARARGS, nullptr},    {"coded_graph", make_coded_graph, METH_VARARGS, nullptr},
                          {"code_graph", code_links, METH_VARARGS, nullptr},       {"search_coded_graph", walk_coded_graph, METH_VARARGS, nullptr},
                          {nullptr, nullptr, 0, nullptr}};

#define SHOAL_TEXT(name) #name
#define SHOAL_NAME(name) SHOAL_TEXT(name)

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, SHOAL_NAME(SHOAL_MODULE), nullptr, -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

#define SHOAL_JOIN(a, b) a##b
#define SHOAL_INIT(name) SHOAL_JOIN(PyInit_, name)

PyMODINIT_FUNC SHOAL_INIT(SHOAL_MODULE)() {
    return PyModule_Create(&kModule);
}
