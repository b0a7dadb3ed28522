"""The services that embedding functions ask: what is sent, and how the answer is read. No I/O.

Fields are members of the stored configuration, with the names that Chroma's clients use, and the defaults of those clients where
they have one. What only Shoal has is stored under a name of its own, so that nobody reads the one and embeds the other.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import numpy as np

from shoal.embedding.config import check_no_secrets, check_text, check_url, check_variable
from shoal.embedding.limits import GatewayLimits
from shoal.embedding.protocol import Request, Side
from shoal_core.errors import InvalidArgument

_NO_HEADERS: Final[Mapping[str, str]] = {}
_WITH_DIMENSIONS: Final = "text-embedding-3"  # models for which Chroma's client sends ``dimensions``


@dataclass(frozen=True, slots=True, kw_only=True)
class Ollama:
    """A model that an Ollama server has.

    Attributes:
        model_name: as Ollama calls it; the default is that of Chroma's client.
        url: of the server.
        timeout: of a call, seconds.
    """

    NAME: ClassVar[str] = "ollama"
    RELEVANT: ClassVar[tuple[str, ...]] = ("model_name",)
    LIMITS: ClassVar[GatewayLimits] = GatewayLimits(texts_per_call=64, concurrency=2)

    url: str = "http://localhost:11434"
    model_name: str = "chroma/all-minilm-l6-v2-f32"
    timeout: int | float = 60

    def __post_init__(self) -> None:
        check_url(self.url)
        check_text(self.model_name, "model_name")
        if not 0 < self.timeout < 1e6:
            raise InvalidArgument("a positive number of seconds", field="timeout")

    @property
    def name(self) -> str:
        """``ollama``."""
        return self.NAME

    @property
    def dimension(self) -> None:
        """Known once it answers."""
        return

    @property
    def api_key_env_var(self) -> None:
        """None."""
        return

    @property
    def limits(self) -> GatewayLimits:
        """With the configured time-out."""
        return replace(self.LIMITS, call_timeout_ms=max(1, round(self.timeout * 1_000)))

    def request(self, texts: Sequence[str], side: Side) -> Request:
        """See `RemoteFunction.request`."""
        base = check_url(self.url).removesuffix("/api/embeddings").removesuffix("/api/embed")
        return Request(f"{base}/api/embed", {"model": self.model_name, "input": list(texts)}, _NO_HEADERS)

    def rows(self, answer: object, count: int) -> object:
        """See `RemoteFunction.rows`."""
        return _member(answer, "embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAI:
    """A model of OpenAI, or of any service that speaks its protocol.

    Attributes:
        model_name: as the service calls it.
        api_key_env_var: the environment variable that holds the key; None for a service without keys.
        api_base: of another service, up to the version: ``http://localhost:8000/v1``; None for OpenAI.
        organization_id: sent as a header.
        default_headers: sent with each call; nothing secret.
        dimensions: that vectors are to have, where the model can shorten them.
        api_type, api_version, deployment_id: of Chroma's configurations; only null: Azure serves the same protocol under an
            ``api_base`` that ends with ``/openai/v1``.
        document_input_type, query_input_type: sent as ``input_type``, for services whose models treat the sides differently.
        encoding_format: ``base64`` for shorter answers, where the service offers it.
    """

    NAME: ClassVar[str] = "openai"
    WIDER_NAME: ClassVar[str] = "openai_compatible"
    RELEVANT: ClassVar[tuple[str, ...]] = ("model_name", "dimensions", "document_input_type", "query_input_type")
    LIMITS: ClassVar[GatewayLimits] = GatewayLimits(texts_per_call=256)
    DEFAULT_URL: ClassVar[str] = "https://api.openai.com/v1"
    VARIABLES: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY", "CHROMA_OPENAI_API_KEY")

    model_name: str = "text-embedding-ada-002"
    api_key_env_var: str | None = "OPENAI_API_KEY"
    organization_id: str | None = None
    api_base: str | None = None
    api_type: str | None = None
    api_version: str | None = None
    deployment_id: str | None = None
    default_headers: Mapping[str, str] | None = field(default=None, hash=False)
    dimensions: int | None = None
    document_input_type: str | None = None
    query_input_type: str | None = None
    encoding_format: str = "float"

    def __post_init__(self) -> None:
        check_text(self.model_name, "model_name")
        check_variable(self.api_key_env_var)
        check_url(self.url, "api_base")
        for name in ("api_type", "api_version", "deployment_id"):
            if getattr(self, name) is not None:
                raise InvalidArgument(
                    "not built in; give Azure's address that ends with /openai/v1 as api_base", field=name
                )
        if self.encoding_format not in ("float", "base64"):
            raise InvalidArgument("one of float, base64", field="encoding_format")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidArgument("a whole number from 1", field="dimensions")
        headers = self.default_headers or {}
        check_no_secrets(headers, "default_headers")
        for header, value in headers.items():
            if not isinstance(value, str) or not (header + value).isascii() or not (header + value).isprintable():
                raise InvalidArgument("expected printable texts", field="default_headers")

    @property
    def name(self) -> str:
        """``openai`` if Chroma's client would send the same, else ``openai_compatible``."""
        shortened = self.dimensions is not None and _WITH_DIMENSIONS not in self.model_name
        sides = self.document_input_type is not None or self.query_input_type is not None
        return self.WIDER_NAME if shortened or sides or self.api_key_env_var is None else self.NAME

    @property
    def dimension(self) -> int | None:
        """``dimensions``."""
        return self.dimensions

    @property
    def url(self) -> str:
        """Of the service."""
        return self.api_base or self.DEFAULT_URL

    def request(self, texts: Sequence[str], side: Side) -> Request:
        """See `RemoteFunction.request`."""
        body: dict[str, Any] = {"model": self.model_name, "input": list(texts), "encoding_format": self.encoding_format}
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions
        input_type = self.document_input_type if side is Side.DOCUMENTS else self.query_input_type
        if input_type is not None:
            body["input_type"] = input_type
        headers = dict(self.default_headers or {})
        if self.organization_id is not None:
            headers["openai-organization"] = self.organization_id
        return Request(f"{check_url(self.url)}/embeddings", body, headers)

    def rows(self, answer: object, count: int) -> object:
        """See `RemoteFunction.rows`. Each vector says whose it is: ``index``."""
        items = _member(answer, "data")
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            raise InvalidArgument("with data that is no list of objects")
        if len(items) != count:
            raise InvalidArgument(f"with {len(items)} vectors for {count} texts")
        indices = [item.get("index") for item in items]
        if set(map(type, indices)) != {int} or sorted(indices) != list(range(count)):
            raise InvalidArgument("with vectors whose index is not that of one text each")
        placed: list[object] = [None] * count
        for index, item in zip(indices, items, strict=True):
            placed[index] = _numbers(item.get("embedding"))
        return placed


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceServer:
    """A Text Embeddings Inference server, which has one model.

    Attributes:
        url: with the path, as in Chroma's configurations: ``http://localhost:8080/embed``.
        api_key_env_var: the environment variable that holds the key, if the server wants one.
        truncate: whether longer texts are cut; None for the server's default.
        document_prompt_name, query_prompt_name: of the model's prompts for each side.
    """

    NAME: ClassVar[str] = "huggingface_server"
    WIDER_NAME: ClassVar[str] = "text_embeddings_inference"
    RELEVANT: ClassVar[tuple[str, ...]] = ("url", "document_prompt_name", "query_prompt_name")
    LIMITS: ClassVar[GatewayLimits] = GatewayLimits(texts_per_call=32)  # the server's own default
    VARIABLES: ClassVar[tuple[str, ...]] = ("HUGGINGFACE_API_KEY", "CHROMA_HUGGINGFACE_API_KEY", "HF_TOKEN")

    url: str
    api_key_env_var: str | None = None
    truncate: bool | None = None
    document_prompt_name: str | None = None
    query_prompt_name: str | None = None

    def __post_init__(self) -> None:
        check_url(self.url)
        check_variable(self.api_key_env_var)

    @property
    def name(self) -> str:
        """``huggingface_server`` if Chroma's client would send the same, else ``text_embeddings_inference``."""
        own = (self.truncate, self.document_prompt_name, self.query_prompt_name)
        return self.NAME if own == (None, None, None) else self.WIDER_NAME

    @property
    def dimension(self) -> None:
        """Known once it answers."""
        return

    def request(self, texts: Sequence[str], side: Side) -> Request:
        """See `RemoteFunction.request`."""
        body: dict[str, Any] = {"inputs": list(texts)}
        if self.truncate is not None:
            body["truncate"] = self.truncate
        prompt = self.document_prompt_name if side is Side.DOCUMENTS else self.query_prompt_name
        if prompt is not None:
            body["prompt_name"] = prompt
        return Request(check_url(self.url), body, _NO_HEADERS)

    def rows(self, answer: object, count: int) -> object:
        """See `RemoteFunction.rows`."""
        if not isinstance(answer, list):
            raise InvalidArgument("with JSON that is no list")
        return answer


def _member(answer: object, name: str) -> object:
    if not isinstance(answer, Mapping) or name not in answer:
        raise InvalidArgument(f"with JSON that has no {name}")
    return answer[name]


def _numbers(value: object) -> object:
    """A vector: numbers, or base64 of little-endian float32."""
    if not isinstance(value, str):
        return value
    try:
        return np.frombuffer(binascii.a2b_base64(value, strict_mode=True), "<f4")
    except ValueError as error:
        raise InvalidArgument("with a vector that is no base64 of float32") from error
