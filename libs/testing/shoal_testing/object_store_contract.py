"""The cases that every `ObjectStore` is held to.

A test module subclasses `ObjectStoreContract` under a name that starts with ``Test`` and defines a fixture ``store``, which
yields an empty store.
"""

from __future__ import annotations

import asyncio

import pytest

from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound
from shoal_core.ports import ObjectStore
from shoal_storage.object_rules import MAX_KEY_BYTES

BIG_BYTES = 20 << 20


async def listed(store: ObjectStore, prefix: str) -> list[str]:
    """The keys of a listing in the order in which they come."""
    return [info.key async for info in store.list(prefix)]


class ObjectStoreContract:
    """Contract cases; see the module."""

    async def test_get_returns_what_put_stored(self, store: ObjectStore) -> None:
        await store.put("a/b-1.bin", b"hello")
        assert bytes(await store.get("a/b-1.bin")) == b"hello"

    async def test_views_and_parts_are_stored_in_order(self, store: ObjectStore) -> None:
        await store.put("view", memoryview(b"xhellox")[1:6])
        await store.put("parts", [b"he", memoryview(b"l"), b"", b"lo"])
        assert bytes(await store.get("view")) == b"hello"
        assert bytes(await store.get("parts")) == b"hello"

    @pytest.mark.parametrize("empty", [b"", [], [b""]])
    async def test_an_empty_object_is_an_object(self, store: ObjectStore, empty: bytes | list[bytes]) -> None:
        await store.put("empty", empty)
        assert (await store.get("empty")).nbytes == 0
        assert [info.size_bytes async for info in store.list("empty")] == [0]

    async def test_a_big_object_comes_back_whole(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * (BIG_BYTES // 256)
        await store.put("big", data)
        assert await store.get("big") == data
        assert bytes(await store.get_range("big", BIG_BYTES - 3, 3)) == b"\xfd\xfe\xff"
        await store.put("big", [data[: BIG_BYTES // 2], data[BIG_BYTES // 2 :]])

    @pytest.mark.parametrize("size_bytes", [5, BIG_BYTES])
    async def test_views_are_read_only_bytes(self, store: ObjectStore, size_bytes: int) -> None:
        await store.put("a", b"x" * size_bytes)
        for view in (await store.get("a"), await store.get_range("a", 1, 2)):
            assert view.readonly
            assert view.format == "B"
            assert view.ndim == 1

    async def test_range(self, store: ObjectStore) -> None:
        await store.put("a", b"0123456789")
        assert bytes(await store.get_range("a", 0, 10)) == b"0123456789"
        assert bytes(await store.get_range("a", 3, 4)) == b"3456"

    @pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (0, -1), (8, 3), (10, 1), (500, 1)])
    async def test_a_range_outside_the_object_is_refused(self, store: ObjectStore, start: int, length: int) -> None:
        await store.put("a", b"0123456789")
        with pytest.raises(InvalidArgument):
            await store.get_range("a", start, length)

    async def test_missing(self, store: ObjectStore) -> None:
        await store.put("a/b", b"x")
        for key in ("missing", "a", "a/c", "c/d/e"):
            with pytest.raises(NotFound, match=key):
                await store.get(key)
            with pytest.raises(NotFound, match=key):
                await store.get_range(key, 0, 1)

    async def test_an_identical_put_is_success(self, store: ObjectStore) -> None:
        await store.put("a", b"hello")
        await store.put("a", b"hello")
        await store.put("a", [b"hel", b"lo"])
        assert bytes(await store.get("a")) == b"hello"

    @pytest.mark.parametrize("other", [b"jello", b"hello!", b"hell", b""])
    async def test_a_different_put_is_refused_and_changes_nothing(self, store: ObjectStore, other: bytes) -> None:
        await store.put("a", b"hello")
        with pytest.raises(AlreadyExists, match="'a'"):
            await store.put("a", other)
        assert bytes(await store.get("a")) == b"hello"

    async def test_of_racing_creates_one_wins(self, store: ObjectStore) -> None:
        contents = [f"content {i}".encode() * 100 for i in range(32)]
        puts = (store.put("race/key", content) for content in contents)
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        winners = [i for i, outcome in enumerate(outcomes) if outcome is None]
        assert len(winners) == 1
        assert all(isinstance(o, AlreadyExists) for i, o in enumerate(outcomes) if i != winners[0])
        assert bytes(await store.get("race/key")) == contents[winners[0]]

    async def test_racing_identical_creates_all_succeed(self, store: ObjectStore) -> None:
        await asyncio.gather(*(store.put("race/same", b"content") for _ in range(32)))
        assert bytes(await store.get("race/same")) == b"content"

    async def test_racing_creates_in_new_directories(self, store: ObjectStore) -> None:
        keys = [f"d{i % 4}/e{i % 2}/k{i:02}" for i in range(32)]
        await asyncio.gather(*(store.put(key, key.encode()) for key in keys))
        assert await listed(store, "d") == sorted(keys)

    async def test_delete(self, store: ObjectStore) -> None:
        for key in ("a/1", "a/2", "a/3"):
            await store.put(key, b"x")
        await store.delete(["a/1", "a/3", "missing", "a/missing", "a"])
        await store.delete([])
        assert await listed(store, "") == ["a/2"]
        await store.put("a/1", b"other")
        assert bytes(await store.get("a/1")) == b"other"

    async def test_a_view_outlives_its_object(self, store: ObjectStore) -> None:
        await store.put("a", b"z" * BIG_BYTES)
        view = await store.get("a")
        await store.delete(["a"])
        assert bytes(view[-3:]) == b"zzz"

    async def test_list_is_in_key_order(self, store: ObjectStore) -> None:
        keys = ["a/b/c", "a/b-c", "a/b.c/d", "a/b.c/e", "a/c", "a-b", "a.b", "a=b", "ab", "A", "a0/1", "_", "Z/z"]
        for key in keys:
            await store.put(key, key.encode())
        assert await listed(store, "") == sorted(keys)
        assert await listed(store, "a/") == ["a/b-c", "a/b.c/d", "a/b.c/e", "a/b/c", "a/c"]

    async def test_a_prefix_may_end_anywhere(self, store: ObjectStore) -> None:
        for key in ("a/b/c", "a/bc/d", "a/bcd", "ab"):
            await store.put(key, b"x")
        assert await listed(store, "a/b") == ["a/b/c", "a/bc/d", "a/bcd"]
        assert await listed(store, "a/bc") == ["a/bc/d", "a/bcd"]
        assert await listed(store, "a/b/") == ["a/b/c"]
        assert await listed(store, "a/bcd") == ["a/bcd"]
        assert await listed(store, "x") == []
        assert await listed(store, "a/x/y") == []

    async def test_listed_sizes(self, store: ObjectStore) -> None:
        await store.put("a", b"12345")
        await store.put("b", b"")
        assert [(info.key, info.size_bytes) async for info in store.list("")] == [("a", 5), ("b", 0)]

    async def test_more_objects_than_a_page(self, store: ObjectStore) -> None:
        keys = [f"many/{i:04}" for i in range(1100)]
        for first in range(0, len(keys), 50):
            await asyncio.gather(*(store.put(key, b"x") for key in keys[first : first + 50]))
        assert await listed(store, "many/") == keys
        await store.delete(keys)
        assert await listed(store, "") == []

    @pytest.mark.parametrize(
        "key",
        ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a b", "ä", "~tmp", "a\0", "a\n", "a" * 300, "a/" * 460],
    )
    async def test_a_bad_key_is_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(InvalidArgument, match="key"):
            await store.put(key, b"x")
        with pytest.raises(InvalidArgument, match="key"):
            await store.get(key)
        with pytest.raises(InvalidArgument, match="key"):
            await store.get_range(key, 0, 1)
        with pytest.raises(InvalidArgument, match="key"):
            await store.delete(["fine", key])

    async def test_the_longest_key(self, store: ObjectStore) -> None:
        key = "/".join(["k" * 224] * 4)
        assert len(key) <= MAX_KEY_BYTES
        await store.put(key, b"x")
        assert await listed(store, key[:-1]) == [key]

    @pytest.mark.parametrize("prefix", ["/a", "a//", "a b", "..", "a/../"])
    async def test_a_bad_prefix_is_refused(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(InvalidArgument):
            await listed(store, prefix)
