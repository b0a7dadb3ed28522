"""The examples of docs/embedding.md do what they say, with a stub in the place of the services."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal._loop import LoopThread
from shoal_testing.embedding_stub import EmbeddingStub

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    loop, stub = LoopThread("stub"), EmbeddingStub()
    loop.run(stub.__aenter__)
    names = {"path": tmp_path, "url": stub.url}
    try:
        exec(compile("\n".join(blocks), PAGE.name, "exec"), names)
    finally:
        if "client" in names:
            names["client"].close()  # type: ignore[attr-defined]
        loop.run(lambda: stub.__aexit__(None, None, None))
        loop.close()
    assert ["passage: on growth and form"] in stub.texts
