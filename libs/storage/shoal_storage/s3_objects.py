"""Objects in a bucket of an S3-compatible server, through obstore; bucket administration through boto3."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from shoal_core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal_core.ports import ObjectInfo
from shoal_storage.object_rules import (
    ObjectData,
    as_views,
    check_key,
    check_prefix,
    check_range,
    create_once,
    range_past_end,
    size_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from obstore import ListStream, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import S3Config as S3Settings

MAX_OBJECT_BYTES = 5 << 30
"""What S3 accepts in one conditional put."""

_FLOOR_BYTES_PER_SECOND = 4 << 20  # a transfer slower than this counts as hung
_DELETE_KEYS = 1000
_LIST_PAGE = 1000
_RETRIED_STATUSES = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class S3Config:
    """Where the bucket is, and how long to wait for it.

    Attributes:
        bucket: must exist; see `ensure_bucket`.
        endpoint: such as ``http://127.0.0.1:8333``; empty for AWS.
        access_key, secret_key: empty for the credentials of the environment.
        prefix: put before every key, without slash at its end.
        allow_http: whether an endpoint without TLS is acceptable.
        ca_file: who signs the endpoint's certificate (PEM), where it is nobody whom everybody trusts.
        connect_timeout_ms: for one connection.
        request_timeout_ms: for one request with its retries, besides one second for each 4 MiB moved.
        retries: of one request that was refused, dropped or answered by a 5xx.
        put_attempts: how often a put whose outcome was lost is sent, see `create_once`.
    """

    bucket: str
    endpoint: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    region: str = "us-east-1"
    prefix: str = ""
    allow_http: bool = False
    ca_file: Path | None = None
    connect_timeout_ms: int = 1_000
    request_timeout_ms: int = 10_000
    retries: int = 3
    put_attempts: int = 3


class S3ObjectStore:
    """An `ObjectStore` in a bucket. Creates with ``If-None-Match: *``; any number of tasks may share one instance.

    The server alone decides when a put is durable. AWS answers afterwards; SeaweedFS does not fsync its volumes unless it is
    told to for the bucket's path, which is the work of whoever starts that server.

    A dead server shows as `Unavailable` in about a second, a hung one after ``request_timeout_ms``; the instance works
    again as soon as the server does.

    Raises:
        InvalidArgument: by the constructor, if the configuration contradicts itself.
        FailedPrecondition: by any method, if the bucket does not exist or the server refuses the request as such.
        PermissionDenied, Unauthenticated: by any method, if the credentials do not suffice.
    """

    def __init__(self, config: S3Config) -> None:
        self._config = config
        self._store = _open_store(config)

    async def put(self, key: str, data: ObjectData) -> None:
        """See `ObjectStore.put`. Raises `InvalidArgument` above `MAX_OBJECT_BYTES`."""
        check_key(key)
        views = as_views(data)
        size_bytes = size_of(views)
        if size_bytes > MAX_OBJECT_BYTES:
            raise InvalidArgument(
                f"{size_bytes} bytes; the limit is {MAX_OBJECT_BYTES}, split the object", field="data"
            )
        body = views[0] if len(views) == 1 else views or b""

        async def create() -> None:
            async with self._request("put", key, size_bytes):
                await obstore.put_async(self._store, key, body, mode="create", use_multipart=False)

        await create_once(key, views, create=create, read=lambda: self.get(key), attempts=self._config.put_attempts)

    async def get(self, key: str) -> memoryview:
        """See `ObjectStore.get`. The view is over the memory that received the object."""
        check_key(key)
        async with self._request("get", key):
            result = await obstore.get_async(self._store, key)
        async with self._request("get", key, result.meta["size"]):
            return memoryview(await result.bytes_async())

    async def get_range(self, key: str, start: int, length: int) -> memoryview:
        """See `ObjectStore.get_range`. Raises `InvalidArgument` if the object is shorter."""
        check_key(key)
        check_range(start, length)
        async with self._request("get", key, length):
            view = memoryview(await obstore.get_range_async(self._store, key, start=start, length=length))
        if view.nbytes != length:
            raise range_past_end(key, start, length)
        return view

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`. One request for each thousand keys."""
        for key in keys:
            check_key(key)
        for first in range(0, len(keys), _DELETE_KEYS):
            async with self._request("delete", keys[first]):
                await obstore.delete_async(self._store, keys[first : first + _DELETE_KEYS])

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. Everything is fetched and sorted before the first one is yielded.

        Not every server lists in key order: SeaweedFS walks its directories, where ``a/b`` precedes ``a-b``, and applies
        start-after in that order too. About 300 bytes of memory for each object under the prefix's directory.
        """
        directory = check_prefix(prefix).rpartition("/")[0]
        pages = obstore.list(self._store, directory or None, chunk_size=_LIST_PAGE)
        found: dict[str, ObjectInfo] = {}
        while page := await self._next_page(pages, prefix):
            for meta in page:
                key = meta["path"]
                if key.startswith(prefix):
                    found[key] = ObjectInfo(key, meta["size"], int(meta["last_modified"].timestamp() * 1e9))
        for key in await asyncio.to_thread(sorted, found):
            yield found[key]

    async def _next_page(self, pages: ListStream[Sequence[ObjectMeta]], prefix: str) -> Sequence[ObjectMeta]:
        async with self._request("list", prefix):
            try:
                return await pages.__anext__()  # `anext` with a default breaks on the futures of this iterator
            except StopAsyncIteration:
                return ()

    @asynccontextmanager
    async def _request(self, operation: str, key: str, size_bytes: int = 0) -> AsyncIterator[None]:
        """Bound one request in time and turn its failure into an error of the tree."""
        timeout_s = self._config.request_timeout_ms / 1000 + size_bytes / _FLOOR_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise Unavailable(f"object store did not answer {operation} {key!r} within {timeout_s:.1f} s") from error
        except (BaseError, FileNotFoundError) as error:
            raise _translate(error, operation, key) from error


def _open_store(config: S3Config) -> S3Store:
    if config.endpoint.startswith("http://") and not config.allow_http:
        raise InvalidArgument("the endpoint has no TLS; set allow_http or use https", field="s3.endpoint")
    client: ClientConfig = {
        "allow_http": config.allow_http,
        "connect_timeout": timedelta(milliseconds=config.connect_timeout_ms),
        "timeout": timedelta(hours=1),  # `_request` bounds each call by its size instead
    }
    if config.ca_file is not None:
        try:
            client["root_certificate"] = config.ca_file.read_bytes()
        except OSError as error:
            raise InvalidArgument(
                f"{config.ca_file} cannot be read: {error.strerror}", field="objects.s3.ca_file"
            ) from error
    retry: RetryConfig = {
        "max_retries": config.retries,
        "retry_timeout": timedelta(seconds=1),
        "backoff": {
            "init_backoff": timedelta(milliseconds=50),
            "max_backoff": timedelta(milliseconds=300),
            "base": 2,
        },
    }
    settings: S3Settings = {"bucket": config.bucket, "region": config.region}
    if config.endpoint:
        settings["endpoint"] = config.endpoint
    if config.access_key:
        settings["access_key_id"] = config.access_key
        settings["secret_access_key"] = config.secret_key
    return S3Store(config=settings, prefix=config.prefix or None, client_options=client, retry_config=retry)


def _translate(error: Exception, operation: str, key: str) -> ShoalError:
    text = str(error).partition("\n\nDebug source")[0].strip()
    what = f"{operation} {key!r}: {text}"
    if "NoSuchBucket" in text:
        return FailedPrecondition(f"{what}; create the bucket first")
    match error:
        case FileNotFoundError():
            return NotFound(f"no object {key!r}")
        case AlreadyExistsError():
            return AlreadyExists(f"object {key!r} exists")
        case PermissionDeniedError():
            return PermissionDenied(f"{what}; check the credentials and the bucket's policy")
        case UnauthenticatedError():
            return Unauthenticated(f"{what}; check the credentials")
    status = _status(text)
    if status == 416:
        return InvalidArgument(f"the range lies past the end of {key!r}", field="start")
    if 400 <= status < 500 and status not in _RETRIED_STATUSES:
        return FailedPrecondition(f"{what}; check endpoint, bucket, region and credentials")
    return Unavailable(f"object store failed: {what}")


def _status(text: str) -> int:
    """The HTTP status that obstore's message names; 0 if the server did not answer."""
    found = re.search(r"status code: (\d{3})", text)
    return int(found[1]) if found else 0


def ensure_bucket(config: S3Config) -> None:
    """Create the bucket if it is absent. Blocking: call it in a thread.

    Raises `Unavailable` if the server cannot be reached or answers 5xx, `PermissionDenied` if the bucket belongs to someone
    else or the credentials do not allow to create it.
    """
    import boto3  # only bucket administration needs it, and its import takes long
    from botocore.client import Config
    from botocore.exceptions import BotoCoreError, ClientError

    timeouts = Config(
        connect_timeout=config.connect_timeout_ms / 1000,
        read_timeout=config.request_timeout_ms / 1000,
        retries={"total_max_attempts": 2},
    )
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=config.endpoint or None,
        aws_access_key_id=config.access_key or None,
        aws_secret_access_key=config.secret_key or None,
        region_name=config.region,
        config=timeouts,
        verify=str(config.ca_file) if config.ca_file is not None else None,
    )
    try:
        _create_if_absent(client, config)
    except ClientError as error:
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if status >= 500:
            raise Unavailable(f"cannot create bucket {config.bucket!r}: {error}") from error
        raise PermissionDenied(
            f"cannot create bucket {config.bucket!r}: {error}; check name and credentials"
        ) from error
    except BotoCoreError as error:
        raise Unavailable(f"cannot reach the object store at {config.endpoint or 'AWS'}: {error}") from error
    finally:
        client.close()


def _create_if_absent(client: S3Client, config: S3Config) -> None:
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=config.bucket)
        return
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    region = cast("BucketLocationConstraintType", config.region)
    try:
        if config.region == "us-east-1":  # the one region that must not be named
            client.create_bucket(Bucket=config.bucket)
        else:
            client.create_bucket(Bucket=config.bucket, CreateBucketConfiguration={"LocationConstraint": region})
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.head_bucket(Bucket=config.bucket)  # lost a race: fine if it is ours
