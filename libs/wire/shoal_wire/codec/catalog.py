"""What the catalog holds ↔ protobuf."""

from __future__ import annotations

from shoal_core.contracts import (
    Backlog,
    BorrowedObjects,
    Collection,
    Database,
    ExpiredUpload,
    GarbageCollection,
    GarbageRoots,
    Lease,
    NewCollection,
    PublishRequest,
    Tenant,
    VersionInfo,
)
from shoal_core.schema import Schema, parse_schema
from shoal_wire.codec.common import decode_json, encode_json
from shoal_wire.v1 import catalog_pb2 as pb
from shoal_wire.v1 import types_pb2


def encode_schema(schema: Schema) -> str:
    """A schema as JSON text, empty for the default. Raises `InvalidArgument` for what is not JSON."""
    return encode_json(schema.to_json() or None, "schema")


def decode_schema(text: str, field: str) -> Schema:
    """The schema. Raises `InvalidArgument` for malformed JSON or a member at fault."""
    return parse_schema(decode_json(text, field))


def encode_tenant(tenant: Tenant) -> pb.Tenant:
    """A tenant as a message."""
    return pb.Tenant(name=tenant.name, resource_name=tenant.resource_name)


def decode_tenant(message: pb.Tenant) -> Tenant:
    """The tenant."""
    return Tenant(message.name, message.resource_name if message.HasField("resource_name") else None)


def encode_database(database: Database) -> types_pb2.Database:
    """A database as a message."""
    return types_pb2.Database(id=database.id, tenant=database.tenant, name=database.name)


def decode_database(message: types_pb2.Database) -> Database:
    """The database."""
    return Database(message.id, message.tenant, message.name)


def encode_new_collection(new: NewCollection) -> types_pb2.NewCollection:
    """What a collection is created with, as a message. Raises `InvalidArgument` for what is not JSON."""
    return types_pb2.NewCollection(
        tenant=new.tenant,
        database=new.database,
        name=new.name,
        space=new.space,
        shards=new.shards,
        metadata_json=encode_json(new.metadata, "metadata"),
        configuration_json=encode_json(new.configuration, "configuration"),
        dimension=new.dimension,
        schema_json=encode_schema(new.schema),
    )


def decode_new_collection(message: types_pb2.NewCollection) -> NewCollection:
    """What a collection is created with; fields not set have defaults. Raises `InvalidArgument` for malformed JSON."""
    return NewCollection(
        tenant=message.tenant,
        database=message.database,
        name=message.name,
        space=message.space or "l2",
        shards=message.shards or 1,
        metadata=decode_json(message.metadata_json, "collection.metadata_json"),
        configuration=decode_json(message.configuration_json, "collection.configuration_json") or {},
        dimension=message.dimension if message.HasField("dimension") else None,
        schema=decode_schema(message.schema_json, "collection.schema_json"),
    )


def encode_collection(collection: Collection) -> types_pb2.Collection:
    """A collection as a message."""
    return types_pb2.Collection(
        id=collection.id,
        tenant=collection.tenant,
        database=collection.database,
        name=collection.name,
        epoch=collection.epoch,
        incarnation=collection.incarnation,
        space=collection.space,
        shards=collection.shards,
        dimension=collection.dimension,
        metadata_json=encode_json(collection.metadata, "metadata"),
        configuration_json=encode_json(collection.configuration, "configuration"),
        schema_json=encode_schema(collection.schema),
        version=collection.version,
        compacted_offset=collection.compacted_offset,
    )


def decode_collection(message: types_pb2.Collection) -> Collection:
    """The collection. Raises `InvalidArgument` for malformed JSON."""
    return Collection(
        id=message.id,
        tenant=message.tenant,
        database=message.database,
        name=message.name,
        epoch=message.epoch,
        incarnation=message.incarnation,
        space=message.space,
        shards=message.shards,
        dimension=message.dimension if message.HasField("dimension") else None,
        metadata=decode_json(message.metadata_json, "metadata_json"),
        configuration=decode_json(message.configuration_json, "configuration_json") or {},
        schema=decode_schema(message.schema_json, "schema_json"),
        version=message.version,
        compacted_offset=message.compacted_offset,
    )


def encode_backlog(backlog: Backlog) -> pb.Backlog:
    """A backlog as a message."""
    return pb.Backlog(
        collection=encode_collection(backlog.collection),
        head_offset=backlog.head_offset,
        compacted_offset=backlog.compacted_offset,
        uncompacted_bytes=backlog.uncompacted_bytes,
        age_ms=backlog.age_ms,
        version=backlog.version,
    )


def decode_backlog(message: pb.Backlog) -> Backlog:
    """The backlog."""
    return Backlog(
        collection=decode_collection(message.collection),
        head_offset=message.head_offset,
        compacted_offset=message.compacted_offset,
        uncompacted_bytes=message.uncompacted_bytes,
        age_ms=message.age_ms,
        version=message.version,
    )


def encode_lease(lease: Lease) -> pb.Lease:
    """A lease as a message."""
    return pb.Lease(collection_id=lease.collection_id, kind=lease.kind, holder=lease.holder, epoch=lease.epoch)


def decode_lease(message: pb.Lease) -> Lease:
    """The lease."""
    return Lease(message.collection_id, message.kind, message.holder, message.epoch)


def encode_publish(request: PublishRequest) -> pb.PublishRequest:
    """A publication as a message."""
    return pb.PublishRequest(
        lease=encode_lease(request.lease),
        expected_version=request.expected_version,
        manifest_key=request.manifest_key,
        compacted_offset=request.compacted_offset,
        upload_id=request.upload_id,
    )


def decode_publish(message: pb.PublishRequest) -> PublishRequest:
    """The publication."""
    return PublishRequest(
        lease=decode_lease(message.lease),
        expected_version=message.expected_version,
        manifest_key=message.manifest_key,
        compacted_offset=message.compacted_offset,
        upload_id=message.upload_id,
    )


def encode_version(version: VersionInfo) -> pb.Version:
    """A version as a message."""
    return pb.Version(
        collection_id=version.collection_id,
        version=version.version,
        manifest_key=version.manifest_key,
        compacted_offset=version.compacted_offset,
    )


def decode_version(message: pb.Version) -> VersionInfo:
    """The version."""
    return VersionInfo(message.collection_id, message.version, message.manifest_key, message.compacted_offset)


def encode_expired_upload(upload: ExpiredUpload) -> pb.ExpiredUpload:
    """An expired upload as a message."""
    return pb.ExpiredUpload(id=upload.id, collection_id=upload.collection_id, overdue_ms=upload.overdue_ms)


def decode_expired_upload(message: pb.ExpiredUpload) -> ExpiredUpload:
    """The expired upload."""
    return ExpiredUpload(message.id, message.collection_id, message.overdue_ms)


def encode_garbage_collection(item: GarbageCollection) -> pb.GarbageCollection:
    """A collection to sweep as a message."""
    return pb.GarbageCollection(collection_id=item.collection_id, deleted=item.deleted, overdue_ms=item.overdue_ms)


def decode_garbage_collection(message: pb.GarbageCollection) -> GarbageCollection:
    """The collection to sweep."""
    return GarbageCollection(message.collection_id, message.deleted, message.overdue_ms)


def encode_garbage_roots(roots: GarbageRoots) -> pb.GarbageRoots:
    """Garbage roots as a message."""
    return pb.GarbageRoots(
        versions=[encode_version(version) for version in roots.versions], upload_ids=sorted(roots.uploads)
    )


def decode_garbage_roots(message: pb.GarbageRoots) -> GarbageRoots:
    """The garbage roots."""
    return GarbageRoots(tuple(decode_version(version) for version in message.versions), frozenset(message.upload_ids))


def encode_borrowed_objects(borrowed: BorrowedObjects) -> pb.BorrowedObjects:
    """What forks need, as a message."""
    return pb.BorrowedObjects(
        versions=[encode_version(version) for version in borrowed.versions], payload_keys=sorted(borrowed.payload_keys)
    )


def decode_borrowed_objects(message: pb.BorrowedObjects) -> BorrowedObjects:
    """What forks need."""
    return BorrowedObjects(
        tuple(decode_version(version) for version in message.versions), frozenset(message.payload_keys)
    )
