"""The ranked index of a segment's documents: for each term the documents that have it and how often, for BM25."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts import Statistics
from shoal_core.schema import Analyzer
from shoal_index.postings import Int64s, Mask, MergePart, Postings, merge_postings
from shoal_text.analysis import analyze_column

TERMS, STARTS, ROWS, OCCURRENCES, LENGTHS = "terms", "starts", "rows", "occurrences", "lengths"

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TermIndex:
    """See the module.

    Attributes:
        terms: (d,) string, distinct, ascending by code point; a term's position is its code in ``postings``.
        occurrences: (n,) uint32: how often the term is in the document, for each posting.
        lengths: (rows,) int32 terms of each document, -1 where there is none.
    """

    terms: pa.Array
    postings: Postings
    occurrences: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def build(cls, documents: pa.Array | pa.ChunkedArray, analyzer: Analyzer) -> TermIndex:
        """The index of a document column, row numbers being positions in it. Raises `InvalidArgument` for an unknown language."""
        analyzed = analyze_column(documents, analyzer)
        stride = max(len(documents), 1)
        pairs, counts = np.unique(analyzed.codes * np.int64(stride) + analyzed.rows, return_counts=True)
        codes, rows = np.divmod(pairs, stride)
        starts = np.searchsorted(codes, np.arange(len(analyzed.terms) + 1)).astype(np.int64)
        lengths = np.bincount(analyzed.rows, minlength=len(documents)).astype(np.int32)
        lengths[np.asarray(documents.is_null())] = -1
        return cls(analyzed.terms, Postings(starts, rows.astype(np.uint32)), counts.astype(np.uint32), lengths)

    @classmethod
    def merge(cls, parts: Sequence[tuple[TermIndex, Int64s]], rows: int) -> TermIndex:
        """One index of several, without looking at the text: the same as one built of the documents that remain.

        Args:
            parts: at least one index, each with the (n,) int64 merged row of each of its rows, or -1 for one that is left behind.
            rows: rows of the merged index.
        """
        union = pc.unique(pa.chunked_array([index.terms for index, _ in parts], pa.string()))
        union = union.take(pc.sort_indices(union))
        merged, used, positions = merge_postings(
            [
                MergePart(
                    index.postings, pc.index_in(index.terms, value_set=union).to_numpy().astype(np.int64), new_row
                )
                for index, new_row in parts
            ]
        )
        lengths = np.full(rows, -1, dtype=np.int32)
        for index, new_row in parts:
            kept = new_row >= 0
            lengths[new_row[kept]] = index.lengths[kept]
        occurrences = np.concatenate([index.occurrences for index, _ in parts])[positions]
        return cls(union.take(pa.array(used)), merged, occurrences, lengths)

    @classmethod
    def of_table(cls, table: pa.Table) -> TermIndex:
        """The inverse of `to_table`, without copying."""
        parts = {name: table.column(name).chunk(0).flatten() for name in table.schema.names}
        starts, rows, occurrences, lengths = (
            parts[name].to_numpy(zero_copy_only=True) for name in (STARTS, ROWS, OCCURRENCES, LENGTHS)
        )
        return cls(parts[TERMS], Postings(starts, rows), occurrences, lengths)

    def to_table(self) -> pa.Table:
        """As stored in a block: one row with a list in each column."""
        columns = {
            TERMS: self.terms,
            STARTS: pa.array(self.postings.starts),
            ROWS: pa.array(self.postings.rows),
            OCCURRENCES: pa.array(self.occurrences),
            LENGTHS: pa.array(self.lengths),
        }
        return pa.table({name: pa.ListArray.from_arrays([0, len(part)], part) for name, part in columns.items()})

    @property
    def size_bytes(self) -> int:
        """In memory."""
        parts = (self.postings.starts, self.postings.rows, self.occurrences, self.lengths)
        return int(self.terms.nbytes) + sum(part.nbytes for part in parts)

    def statistics(self, terms: Sequence[str], live: Mask | None = None) -> Statistics:
        """What inverse document frequencies are made of.

        Args:
            terms: distinct terms, as the analyzer makes them.
            live: (rows,) the rows to count; None for all.
        """
        counted = self.lengths >= 0 if live is None else (self.lengths >= 0) & live
        found = (self._places(term) for term in terms)
        rows = (self.postings.rows[place] for place in found)
        frequencies = [len(part) if live is None else np.count_nonzero(live[part]) for part in rows]
        total = self.lengths.sum(where=counted, dtype=np.int64)
        return Statistics(int(np.count_nonzero(counted)), int(total), np.array(frequencies, dtype=np.int64))

    def score(
        self,
        terms: Sequence[str],
        weights: Float64s,
        *,
        average_length: float,
        k1: float,
        b: float,
        allowed: Mask | None = None,
    ) -> tuple[Int64s, Float64s]:
        """BM25 (Robertson and Zaragoza 2009) of the documents that have any of the terms.

        Summed in ascending order of term, so that a document has the same score, to the bit, in every segment.

        Args:
            terms: distinct terms, as the analyzer makes them.
            weights: (len(terms),) what each counts: inverse document frequency times occurrences in the query.
            average_length: terms per document over the collection.
            allowed: (rows,) the rows that may answer; None for all.

        Returns:
            Rows, ascending, and their scores, higher being better.
        """
        scores = np.zeros(len(self.lengths))
        found = np.zeros(len(self.lengths), dtype=bool)
        for term, weight in sorted(zip(terms, weights.tolist(), strict=True)):
            place = self._places(term)
            rows = self.postings.rows[place]
            occurrences = self.occurrences[place].astype(np.float64)
            norms = k1 * (1.0 - b + b * self.lengths[rows] / average_length)
            scores[rows] += weight * (occurrences * (k1 + 1.0) / (occurrences + norms))
            found[rows] = True
        answered = np.flatnonzero(found if allowed is None else found & allowed)
        return answered, scores[answered]

    def _places(self, term: str) -> slice:
        """Where the term's postings are; nowhere if it is not there."""
        code = bisect_left(self.terms, term, key=pa.StringScalar.as_py)
        if code == len(self.terms) or self.terms[code].as_py() != term:
            return slice(0, 0)
        return slice(int(self.postings.starts[code]), int(self.postings.starts[code + 1]))
