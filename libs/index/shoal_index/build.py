"""Building a segment's blocks from a row table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.records import CREATED_OFFSET, EMBEDDING, ID, embedding_matrix
from shoal_core.schema import Schema
from shoal_index.build_vectors import Old, built_ways
from shoal_index.ids import IdIndex
from shoal_index.indexes import Input, make_indexes
from shoal_index.segment import CALIBRATION, LENGTH_COLUMNS, LENGTHS
from shoal_index.vector import native
from shoal_storage.blocks import (
    TARGET_BLOCK_BYTES,
    BlockRef,
    EncodedBlock,
    encode_blob,
    encode_block,
    pack_table_into_blocks,
)
from shoal_storage.manifest import SegmentRef

GRAPH_ROWS = 10_000

_DIMENSION = 384


@dataclass(frozen=True, slots=True)
class BuiltSegment:
    """A segment ready for upload: its reference and the bytes of each block by key."""

    ref: SegmentRef
    objects: tuple[tuple[BlockRef, EncodedBlock], ...]

    def placed(self, prefix: str, segment_id: str) -> BuiltSegment:
        """The same with another id and its objects under ``prefix``, when it was built with an empty one."""
        blocks = {kind: tuple(_under(prefix, ref) for ref in refs) for kind, refs in self.ref.blocks.items()}
        objects = tuple((_under(prefix, ref), block) for ref, block in self.objects)
        return BuiltSegment(replace(self.ref, id=segment_id, blocks=blocks), objects)


def _under(prefix: str, ref: BlockRef) -> BlockRef:
    return replace(ref, key=f"{prefix}{ref.key}")


def sort_rows(table: pa.Table) -> pa.Table:
    """A row table in the order that segments keep: by ``created_offset``. One chunk per column."""
    created = table.column(CREATED_OFFSET).to_numpy()
    if bool(np.all(created[:-1] <= created[1:])):
        return table.combine_chunks()
    return table.take(pa.array(np.argsort(created, kind="stable"))).combine_chunks()


def build_segment(
    table: pa.Table,
    space: str,
    *,
    segment_id: str,
    tier: int,
    prefix: str,
    threads: int,
    graph_rows: int = GRAPH_ROWS,
    coded_graphs: bool = False,
    schema: Schema = Schema(),
    inputs: Sequence[Input] = (),
) -> BuiltSegment:
    """The blocks of a segment over ``table``, a row table with embeddings, sorted by `sort_rows`.

    Args:
        prefix: key prefix of its objects.
        graph_rows: above this many rows of up to 384 dimensions, or fewer larger ones, the segment gets indexes; a smaller one is
            scanned.
        coded_graphs: see `built_ways`.
        schema: which indexes to build, and how.
        inputs: of a merge, the segments whose rows these are; see `make_indexes`.
    """
    columns = table.select([name for name in table.column_names if name != EMBEDDING])
    vectors = table.select([EMBEDDING])
    matrix: npt.NDArray[np.float32] = embedding_matrix(vectors.column(EMBEDDING))
    blocks: dict[str, list[EncodedBlock]] = {
        "ids": [encode_block(IdIndex.of_ids(table.column(ID)).to_table())],
        "rows": [encode_block(part) for part in pack_table_into_blocks(columns)],
        "vectors": [encode_block(part) for part in _vector_blocks(vectors, matrix.shape[1])],
        LENGTHS: [encode_block(pa.table(dict(zip(LENGTH_COLUMNS, native.lengths(matrix), strict=True))))],
    }
    if table.num_rows * max(1.0, matrix.shape[1] / _DIMENSION) > graph_rows:
        created = table.column(CREATED_OFFSET).to_numpy()
        old = [Old(input_.ways, new_row) for input_, new_row in inputs]
        ways = built_ways(matrix, created, space, schema.vector, threads=threads, coded_graphs=coded_graphs, old=old)
        for way in {way.strategy: way for way in ways}.values():
            for kind, tables in way.index.to_tables().items():
                blocks[kind] = [encode_block(part) for part in tables]
        measured = [way.calibration for way in ways if way.calibration is not None]
        if measured:
            blocks[CALIBRATION] = [encode_blob(calibration.to_json()) for calibration in measured]
    for kind, tables in make_indexes(table, schema, inputs).to_tables().items():
        blocks[kind] = [encode_block(part) for part in tables]
    refs: dict[str, tuple[BlockRef, ...]] = {}
    objects = []
    for kind, parts in blocks.items():
        named = [(part.ref(f"{prefix}/{segment_id}/{kind}-{n:04d}"), part) for n, part in enumerate(parts)]
        refs[kind] = tuple(ref for ref, _ in named)
        objects.extend(named)
    size = sum(ref.size_bytes for ref, _ in objects)
    return BuiltSegment(SegmentRef(segment_id, tier, table.num_rows, 0, size, refs), tuple(objects))


def _vector_blocks(vectors: pa.Table, dimension: int) -> list[pa.Table]:
    """Blocks of as many rows each, a power of two, so that a row is found by shifting its number; the last has the rest."""
    step = 1 << max(TARGET_BLOCK_BYTES // (4 * dimension), 1).bit_length() - 1
    return [vectors.slice(start, step) for start in range(0, vectors.num_rows, step)]


def encode_tombstones(rows: npt.NDArray[np.int64], key: str) -> tuple[BlockRef, EncodedBlock]:
    """Dead row numbers, sorted and distinct, as a block of uint32."""
    distinct = np.unique(rows).astype("<u4")
    block = encode_blob(pa.py_buffer(distinct), rows=len(distinct))
    return block.ref(key), block


def decode_tombstones(data: pa.Buffer) -> npt.NDArray[np.int64]:
    """The inverse of `encode_tombstones`."""
    return np.frombuffer(data, dtype="<u4").astype(np.int64)
