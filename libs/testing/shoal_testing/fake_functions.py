"""Attached functions in memory, over a `MemoryCatalog`; held to the same contract cases as sysdb."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal_core.contracts import AttachedFunction, DueFunction, Lease, NewCollection, NewFunction
from shoal_core.contracts.functions import FUNCTIONS
from shoal_core.errors import AlreadyExists, FailedPrecondition, Fenced, InvalidArgument, NotFound
from shoal_testing.fake_catalog import MemoryCatalog
from shoal_testing.fake_state import Hook, as_json

_LONGEST_ERROR = 500


@dataclass(slots=True)
class _State:
    function: AttachedFunction
    ran: tuple[float, int]  # when, and in what order
    retry_ms: float = 0.0


class MemoryFunctions:
    """A `Functions` of the collections of ``catalog``.

    Attributes:
        before, after: called with the method's name around `complete_function` and `fail_function`, to raise what a service
            far away might.
    """

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.before: Hook = lambda name: None
        self.after: Hook = lambda name: None
        self._catalog = catalog
        self._states: dict[str, _State] = {}
        self._turns = 0

    async def attach_function(
        self, collection_id: str, new: NewFunction, *, limit: int
    ) -> tuple[AttachedFunction, bool]:
        """See `Functions.attach_function`."""
        if new.function not in FUNCTIONS:
            raise NotFound(f"function not found: {new.function!r}", field="function")
        source = self._catalog.state(collection_id).collection
        if any(function.output_collection_id == collection_id for function in self._live()):
            raise InvalidArgument("cannot attach function to an output collection", field="collection")
        known = [function for function in self._live() if function.input_collection_id == collection_id]
        found = next((function for function in known if function.name == new.name), None)
        if found is not None:
            _check_same(found, new)
            return found, False
        if len(known) >= limit:
            raise FailedPrecondition(f"a collection has at most {limit} functions; detach one first")
        params = as_json(new.params, "params") or {}
        output = NewCollection(source.tenant, source.database, new.output_collection, dimension=1)
        try:
            made, _ = await self._catalog.create_collection(output, get_or_create=False)
        except AlreadyExists as error:
            message = f"Output collection [{new.output_collection}] already exists"
            raise AlreadyExists(message, field="output_collection") from error
        database = await self._catalog.get_database(source.tenant, source.database)
        function_id = self._catalog.new_id()
        self._states[function_id] = _State(
            AttachedFunction(
                id=function_id,
                name=new.name,
                function=new.function,
                tenant=source.tenant,
                database=source.database,
                database_id=database.id,
                input_collection_id=collection_id,
                output_collection_id=made.id,
                output_collection=made.name,
                params=params,
            ),
            self._turn(),
        )
        return self._states[function_id].function, True

    async def get_function(self, collection_id: str, name: str) -> AttachedFunction:
        """See `Functions.get_function`."""
        for function in self._live():
            if (function.input_collection_id, function.name) == (collection_id, name):
                return function
        raise _no_function(name)

    async def detach_function(self, collection_id: str, name: str) -> None:
        """See `Functions.detach_function`."""
        del self._states[(await self.get_function(collection_id, name)).id]

    async def due_functions(self, *, limit: int, skip: int = 0) -> list[DueFunction]:
        """See `Functions.due_functions`."""
        now_ms = self._catalog.now_ms()
        found: list[tuple[tuple[float, int], DueFunction]] = []
        for function in self._live():
            state, source = self._states[function.id], self._catalog.state(function.input_collection_id)
            beyond = [
                at_ms
                for info, at_ms in zip(source.versions, source.published_ms, strict=True)
                if info.compacted_offset > function.completion_offset
            ]
            if beyond and state.retry_ms <= now_ms:
                due = DueFunction(function, source.current.compacted_offset, int(now_ms - beyond[0]))
                found.append((state.ran, due))
        return [due for _, due in sorted(found, key=lambda pair: pair[0])[skip : skip + limit]]

    async def complete_function(self, lease: Lease, function_id: str, offset: int) -> None:
        """See `Functions.complete_function`."""
        self.before("complete_function")
        state = self._leased(lease, function_id)
        covered = max(offset, state.function.completion_offset)
        state.function = replace(state.function, completion_offset=covered, failures=0, last_error="")
        state.ran, state.retry_ms = self._turn(), 0.0
        self.after("complete_function")

    async def fail_function(
        self, lease: Lease, function_id: str, error: str, *, retry_ms: int, longest_retry_ms: int
    ) -> None:
        """See `Functions.fail_function`."""
        self.before("fail_function")
        state = self._leased(lease, function_id)
        failures = state.function.failures
        pause_ms = min(retry_ms * 2 ** min(failures, 30), longest_retry_ms)
        text = error[:_LONGEST_ERROR].replace("\0", "")
        state.function = replace(state.function, failures=failures + 1, last_error=text)
        state.ran, state.retry_ms = self._turn(), self._catalog.now_ms() + pause_ms
        self.after("fail_function")

    def _live(self) -> list[AttachedFunction]:
        """Functions of which both collections live, with the name that the output has now."""
        found = []
        for state in self._states.values():
            try:
                self._catalog.state(state.function.input_collection_id)
                output = self._catalog.state(state.function.output_collection_id).collection
            except NotFound:
                continue
            found.append(replace(state.function, output_collection=output.name))
        return found

    def _leased(self, lease: Lease, function_id: str) -> _State:
        if self._catalog.lease_epoch(lease.collection_id, lease.kind) != lease.epoch:
            raise Fenced(f"lease epoch {lease.epoch} of {lease.kind} on {lease.collection_id} is over; stop this job")
        alive = any(function.id == function_id for function in self._live())
        state = self._states.get(function_id)
        if not alive or state is None or state.function.input_collection_id != lease.collection_id:
            raise _no_function(function_id)
        return state

    def _turn(self) -> tuple[float, int]:
        self._turns += 1
        return self._catalog.now_ms(), self._turns


def _check_same(found: AttachedFunction, new: NewFunction) -> None:
    if (found.function, found.output_collection, found.params) != (new.function, new.output_collection, new.params):
        raise AlreadyExists(
            f"collection already has an attached function: name={found.name}, function={found.function}, "
            f"output_collection={found.output_collection}",
            field="name",
        )


def _no_function(name: str) -> NotFound:
    return NotFound(f"Attached Function [{name}] does not exist", field="function")
