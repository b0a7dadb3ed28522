"""Functions that run in this process: in threads of their gateway, so that no event loop waits for a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from shoal.embedding.protocol import EmbeddingFunction, Side


class LocalBackend:
    """Calls a function in one of ``threads`` threads. Who gives up does not end a call under way; its thread stays taken."""

    def __init__(self, function: EmbeddingFunction, threads: int) -> None:
        self._function = function
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shoal-embedding")

    async def call(self, texts: Sequence[str], side: Side) -> object:
        """See `Backend.call`; raises what the function raises."""
        embed = self._function.embed_documents if side is Side.DOCUMENTS else self._function.embed_queries
        return await asyncio.get_running_loop().run_in_executor(self._threads, embed, texts)
