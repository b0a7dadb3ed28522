"""Every limit of the data model and of requests, with its default. Configuration may change them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that validation enforces before anything is written.

    All sizes are UTF-8 bytes. The defaults allow what the reference system's clients send.
    """

    name_size_bytes: int = 512
    tenant_name_min_size_bytes: int = 3
    id_size_bytes: int = 512
    document_size_bytes: int = 1 << 20
    uri_size_bytes: int = 8192
    metadata_key_size_bytes: int = 256
    metadata_value_size_bytes: int = 65536
    metadata_keys: int = 256
    metadata_list_length: int = 4096
    dimension: int = 8192
    batch_records: int = 10_000
    batch_size_bytes: int = 40 << 20
    query_vectors: int = 1000
    query_results: int = 10_000
    get_results: int = 100_000
    filter_depth: int = 16
    filter_nodes: int = 1024
    filter_values: int = 10_000
    pattern_size_bytes: int = 4096
    query_text_size_bytes: int = 32768
    rank_depth: int = 16
    rank_nodes: int = 256
    rank_leaves: int = 32
    searches: int = 16
    group_by_keys: int = 16
    select_keys: int = 64
    shards: int = 64
    collection_metadata_size_bytes: int = 65536
    idempotency_key_size_bytes: int = 64
    page_size: int = 1000
    functions: int = 8
    function_name_size_bytes: int = 1024
    list_length: int = 10_000
    message_size_bytes: int = 64 << 20
