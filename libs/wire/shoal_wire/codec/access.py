"""Credentials ↔ protobuf."""

from __future__ import annotations

from collections.abc import Iterable

from shoal_core.contracts import Credential, CredentialKind, Grant, NewCredential, Role, ValidCredential
from shoal_core.errors import InvalidArgument
from shoal_wire.v1 import access_pb2 as pb


def encode_grants(grants: Iterable[Grant]) -> list[pb.Grant]:
    """Grants as messages."""
    return [
        pb.Grant(role=grant.role, tenant=grant.tenant, database=grant.database, collection=grant.collection)
        for grant in grants
    ]


def decode_grants(messages: Iterable[pb.Grant]) -> tuple[Grant, ...]:
    """The grants. Raises `InvalidArgument` for an unknown role."""
    return tuple(
        Grant(_role_of(message.role, f"grants[{at}].role"), message.tenant, message.database, message.collection)
        for at, message in enumerate(messages)
    )


def decode_kind(kind: str) -> CredentialKind:
    """The kind. Raises `InvalidArgument` for an unknown one."""
    try:
        return CredentialKind(kind)
    except ValueError as error:
        raise InvalidArgument(f"{kind!r} is none of {', '.join(CredentialKind)}", field="kind") from error


def encode_new_credential(new: NewCredential) -> pb.NewCredential:
    """What a credential is made of, as a message."""
    return pb.NewCredential(
        kind=new.kind,
        id=new.id,
        label=new.label,
        grants=encode_grants(new.grants),
        verifier=new.verifier,
        ttl_ms=new.ttl_ms,
    )


def decode_new_credential(message: pb.NewCredential) -> NewCredential:
    """What a credential is made of. Raises `InvalidArgument`."""
    return NewCredential(
        kind=decode_kind(message.kind),
        id=message.id,
        label=message.label,
        grants=decode_grants(message.grants),
        verifier=message.verifier,
        ttl_ms=message.ttl_ms if message.HasField("ttl_ms") else None,
    )


def encode_credential(credential: Credential) -> pb.Credential:
    """A credential as a message."""
    return pb.Credential(
        kind=credential.kind,
        id=credential.id,
        label=credential.label,
        grants=encode_grants(credential.grants),
        created_at_ms=credential.created_at_ms,
        expires_at_ms=credential.expires_at_ms,
        revoked_at_ms=credential.revoked_at_ms,
    )


def decode_credential(message: pb.Credential) -> Credential:
    """The credential. Raises `InvalidArgument`."""
    return Credential(
        kind=decode_kind(message.kind),
        id=message.id,
        label=message.label,
        grants=decode_grants(message.grants),
        created_at_ms=message.created_at_ms,
        expires_at_ms=message.expires_at_ms if message.HasField("expires_at_ms") else None,
        revoked_at_ms=message.revoked_at_ms if message.HasField("revoked_at_ms") else None,
    )


def encode_valid_credential(found: ValidCredential) -> pb.ValidCredential:
    """A credential to check a secret against, as a message."""
    return pb.ValidCredential(
        kind=found.kind,
        id=found.id,
        grants=encode_grants(found.grants),
        verifier=found.verifier,
        expires_in_ms=found.expires_in_ms,
    )


def decode_valid_credential(message: pb.ValidCredential) -> ValidCredential:
    """The credential to check a secret against. Raises `InvalidArgument`."""
    return ValidCredential(
        kind=decode_kind(message.kind),
        id=message.id,
        grants=decode_grants(message.grants),
        verifier=message.verifier,
        expires_in_ms=message.expires_in_ms if message.HasField("expires_in_ms") else None,
    )


def _role_of(role: str, field: str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        raise InvalidArgument(f"{role!r} is none of {', '.join(Role)}", field=field) from error
