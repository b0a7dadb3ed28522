"""Answers on their way: small ones at once and with their length, large ones in pieces as the client takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fastapi import Response
from fastapi.responses import StreamingResponse

from shoal_core.contracts import Answer
from shoal_frontend.apart import apart
from shoal_frontend.http_api.bodies import JSON_TYPE, LARGE_BYTES, json_response
from shoal_frontend.http_api.pieces import PIECE_BYTES, SMALL_BYTES, Pieces
from shoal_wire.codec.answers import answer_size_bytes

RECALL_HEADER = "shoal-recall"
WHOLE_BYTES = 1 << 20  # JSON that is sent at once


async def sent(answers: Sequence[Answer], to_json: Callable[[int], Pieces]) -> Response:
    """The response: what ``to_json`` makes of ``answers``, given how many bytes their rows have.

    A header has the recall that the one with the least is estimated to have, if it is known of all: bodies have no place for it.
    """
    size_bytes = sum(answer_size_bytes(answer, SMALL_BYTES) for answer in answers)
    response = await in_pieces(to_json(size_bytes), large=size_bytes > LARGE_BYTES)
    recalls = [answer.recall for answer in answers if answer.recall is not None]
    if recalls and len(recalls) == len(answers):
        response.headers[RECALL_HEADER] = f"{min(recalls):.4f}"
    return response


async def in_pieces(pieces: Pieces, *, large: bool) -> Response:
    """The response that these make; ``large``: in a thread.

    More than ``WHOLE_BYTES`` of it is made in threads, piece by piece, as the connection takes it; nobody makes more once the client
    is gone. Its beginning is made here, so that what fails at once is an error answer.
    """
    head, ended = await apart(large, _head, pieces)
    return json_response(head) if ended else StreamingResponse(_rest(head, pieces), media_type=JSON_TYPE)


def _head(pieces: Pieces) -> tuple[bytes, bool]:
    """The first ``WHOLE_BYTES``, and whether that is all."""
    taken, size = [], 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size > WHOLE_BYTES:
            return b"".join(taken), False
    return b"".join(taken), True


def _rest(head: bytes, pieces: Pieces) -> Iterator[bytes]:
    """Without tiny pieces: each of these is a message to the connection."""
    yield head
    taken, size = [], 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES // 2:
            yield b"".join(taken)
            taken, size = [], 0
    yield b"".join(taken)
