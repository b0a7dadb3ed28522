"""Answers of reads ↔ protobuf."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from shoal_core.contracts import Answer, CountAnswer
from shoal_core.errors import Corrupt, InvalidArgument
from shoal_wire.codec.common import decode_json, decode_served_at, encode_json, encode_served_at
from shoal_wire.codec.records import decode_rows, encode_records
from shoal_wire.v1 import types_pb2 as pb
from shoal_wire.v1.shoal_pb2 import SearchResponse


def encode_answer(answer: Answer) -> pb.ReadAnswer:
    """An answer as a message; ``updated_offset`` stays behind."""
    message = pb.ReadAnswer()
    _fill(message, answer)
    return message


def _fill(message: pb.ReadAnswer, answer: Answer) -> None:
    message.row_counts.extend(answer.row_counts.tolist())
    message.served_at.CopyFrom(encode_served_at(answer.served_at))
    message.incomplete = not answer.complete
    message.reason = answer.reason
    message.explain_json = encode_json(answer.explain, "explain")
    message.cursor = answer.cursor
    if answer.recall is not None:
        message.recall = answer.recall
    encode_records(answer.rows, message.rows)


def encode_answer_bytes(answer: Answer) -> bytes:
    """An answer as the bytes of its message."""
    return encode_answer(answer).SerializeToString()


def decode_answer(message: pb.ReadAnswer | bytes) -> Answer:
    """The answer, sharing the message's memory. Raises `Corrupt` if it does not hold together."""
    try:
        parsed = pb.ReadAnswer.FromString(message) if isinstance(message, bytes) else message
        rows = decode_rows(parsed.rows)
        explain = decode_json(parsed.explain_json, "explain_json")
    except (DecodeError, InvalidArgument) as error:
        raise Corrupt(f"an answer cannot be read: {error}") from error
    counts = np.array(parsed.row_counts[:], dtype=np.uint32)
    if int(counts.sum(dtype=np.uint64)) != rows.num_rows:
        raise Corrupt(
            f"an answer cannot be read: {rows.num_rows} rows, but the queries have {counts.sum(dtype=np.uint64)}"
        )
    return Answer(
        rows,
        counts,
        decode_served_at(parsed.served_at),
        not parsed.incomplete,
        parsed.reason,
        explain,
        parsed.cursor,
        parsed.recall if parsed.HasField("recall") else None,
    )


def encode_answers_bytes(answers: Sequence[Answer]) -> bytes:
    """The answers of a batch of searches as the bytes of their message."""
    response = SearchResponse()
    for answer in answers:
        _fill(response.answers.add(), answer)
    return response.SerializeToString()


def decode_answers(data: bytes) -> list[Answer]:
    """The answers of a batch of searches. Raises `Corrupt` if they do not hold together."""
    try:
        response = SearchResponse.FromString(data)
    except DecodeError as error:
        raise Corrupt(f"the answers cannot be read: {error}") from error
    return [decode_answer(answer) for answer in response.answers]


def answer_size_bytes(answer: Answer, large: int) -> int:
    """The size of the rows, or of all the buffers under them if that, cheaper to know, is not above ``large``."""
    roughly = int(answer.rows.get_total_buffer_size())
    return roughly if roughly <= large else int(answer.rows.nbytes)


def encode_count(answer: CountAnswer) -> pb.CountAnswer:
    """A count as a message."""
    explain = encode_json(answer.explain, "explain")
    return pb.CountAnswer(count=answer.count, served_at=encode_served_at(answer.served_at), explain_json=explain)


def decode_count(message: pb.CountAnswer) -> CountAnswer:
    """The count. Raises `InvalidArgument` for malformed JSON."""
    explain = decode_json(message.explain_json, "explain_json")
    return CountAnswer(message.count, decode_served_at(message.served_at), explain)
