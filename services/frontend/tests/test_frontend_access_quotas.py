"""Quotas of a write see its columns before anything has checked them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shoal_core.contracts import CollectionRef, NewCollection
from shoal_core.errors import InvalidArgument, QuotaExceeded
from shoal_core.records import DOCUMENT, EMBEDDING, ID, OP, Operation, embedding_type
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate, GateSettings, TenantLimits
from shoal_frontend.access.quotas import Quotas
from shoal_testing.direct import DirectSystem

_OP, _IDS = pa.array([int(Operation.UPSERT)], pa.uint8()), pa.array(["a"])
_VECTORS = pa.array([[1.0, 2.0]], embedding_type(2))
_QUOTAS = Quotas(dimension=2, document_size_bytes=3)


def batch(*columns: tuple[str, pa.Array]) -> pa.RecordBatch:
    names, arrays = zip((OP, _OP), (ID, _IDS), *columns, strict=True)
    return pa.RecordBatch.from_arrays(list(arrays), names=list(names))


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ([(EMBEDDING, _VECTORS), (DOCUMENT, pa.array(["four"]))], QuotaExceeded),
        ([(EMBEDDING, pa.array([[1.0, 2.0, 3.0]], embedding_type(3)))], QuotaExceeded),
        ([(EMBEDDING, _VECTORS), (DOCUMENT, pa.array([1]))], InvalidArgument),
        ([(EMBEDDING, _VECTORS), (DOCUMENT, pa.array(["a"]).dictionary_encode())], InvalidArgument),
        ([(EMBEDDING, _VECTORS), (DOCUMENT, pa.array(["a"])), (DOCUMENT, pa.array(["b"]))], InvalidArgument),
        ([(EMBEDDING, _VECTORS), (EMBEDDING, _VECTORS)], InvalidArgument),
    ],
    ids=["long", "wide", "numbers", "dictionary", "two documents", "two embeddings"],
)
async def test_columns_of_any_form(columns: list[tuple[str, pa.Array]], error: type[Exception]) -> None:
    system = DirectSystem()
    gate = Gate(system.clock, GateSettings(tenant=TenantLimits(quotas=_QUOTAS)))
    api = (await Entrance(system.database, gate).admit(lambda name: None)).api
    new = NewCollection("default_tenant", "default_database", "quota")
    await api.create_collection(new)
    ref = CollectionRef(new.tenant, new.database, new.name)
    await api.write(ref, batch((EMBEDDING, _VECTORS), (DOCUMENT, pa.array(["abc"]))))
    with pytest.raises(error):
        await api.write(ref, batch(*columns))
