"""Functions as data: what is stored, what is read back, what is refused; and the default function beside its golden vectors."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libs.client.tests.client_support import FakeApi, client_of
from shoal import errors
from shoal._embedder import Functions
from shoal.embedding import (
    CallableEmbedding,
    ChromaDefault,
    Function,
    Gateway,
    HuggingFaceServer,
    MiniLM,
    Ollama,
    OpenAI,
    Prefixed,
    SentenceTransformer,
)
from shoal.embedding.registry import (
    KINDS,
    Stored,
    described,
    identity_of,
    read_stored,
    rebuild,
    same_function,
    stored_form,
    stored_function,
)
from shoal_core.errors import FailedPrecondition, InvalidArgument

GOLDEN = Path(__file__).parent / "minilm_golden.json"
SECRET = "sk-abcdef0123456789"

# As Chroma's Python client 1.5.9 stores its functions.
BY_CHROMA: list[tuple[dict[str, Any], Function]] = [
    ({"name": "default", "config": {}}, MiniLM()),
    ({"name": "onnx_mini_lm_l6_v2", "config": {"preferred_providers": ["CPUExecutionProvider"]}}, MiniLM()),
    (
        {"name": "ollama", "config": {"url": "http://localhost:11434", "model_name": "m", "timeout": 60}},
        Ollama(model_name="m"),
    ),
    (
        {
            "name": "openai",
            "config": {
                "api_key_env_var": "CHROMA_OPENAI_API_KEY",
                "model_name": "text-embedding-3-small",
                "organization_id": None,
                "api_base": None,
                "api_type": None,
                "api_version": None,
                "deployment_id": None,
                "default_headers": None,
                "dimensions": 512,
            },
        },
        OpenAI(model_name="text-embedding-3-small", api_key_env_var="CHROMA_OPENAI_API_KEY", dimensions=512),
    ),
    (
        {"name": "huggingface_server", "config": {"url": "http://localhost:8080/embed", "api_key_env_var": None}},
        HuggingFaceServer(url="http://localhost:8080/embed"),
    ),
    (
        {
            "name": "sentence_transformer",
            "config": {"model_name": "all-MiniLM-L6-v2", "device": "cpu", "normalize_embeddings": False, "kwargs": {}},
        },
        SentenceTransformer(),
    ),
]
# What only Shoal has is stored under names that Chroma's client does not know: it says so instead of making other vectors.
ONLY_HERE: list[tuple[str, Function]] = [
    ("all-MiniLM-L6-v2", MiniLM(max_tokens=64)),
    ("openai_compatible", OpenAI(model_name="m", dimensions=3)),
    ("openai_compatible", OpenAI(model_name="m", query_input_type="query")),
    ("openai_compatible", OpenAI(model_name="m", api_base="http://localhost:1/v1", api_key_env_var=None)),
    ("text_embeddings_inference", HuggingFaceServer(url="http://localhost:1/embed", query_prompt_name="query")),
    ("prefixed", Prefixed(Ollama(model_name="e5"), document_prefix="passage: ", query_prefix="query: ")),
    ("prefixed", Prefixed(MiniLM(), query_prefix="q: ")),
]


def stored(name: str, **config: Any) -> Stored:
    found = stored_function({"embedding_function": {"type": "known", "name": name, "version": 1, "config": config}})
    assert found is not None
    return found


@contextmanager
def refused(kind: type[errors.ShoalError], field: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.field == field
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("form", "function"), BY_CHROMA)
def test_what_chromas_client_stored_is_read_and_written_alike(form: dict[str, Any], function: Function) -> None:
    found = stored_function({"embedding_function": {"type": "known", **form}})
    assert found is not None
    assert read_stored(found) == function
    written = json.loads(json.dumps(stored_form(function)))
    if form["name"] != "onnx_mini_lm_l6_v2":
        assert written == {"type": "known", "version": 1, **form}
    assert same_function(found, stored(written["name"], **written["config"]))


@pytest.mark.parametrize(("name", "function"), ONLY_HERE)
def test_what_only_shoal_has_has_names_of_its_own(name: str, function: Function) -> None:
    written = json.loads(json.dumps(stored_form(function)))
    assert (written["name"], written["version"]) == (name, 1)
    assert read_stored(stored(name, **written["config"])) == function


def test_a_function_that_nobody_can_make_again_is_stored_by_name() -> None:
    own = CallableEmbedding("mine", 2, lambda texts: [[1.0, 2.0]] * len(texts))
    assert stored_form(own) == {"name": "mine"}
    named = CallableEmbedding("openai", 2, lambda texts: [[1.0, 2.0]] * len(texts))
    assert stored_form(named) == {"name": "openai"}, "it is not the one that is known by this name"
    assert identity_of(named) != identity_of(OpenAI())


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"embedding_function": None},
        {"embedding_function": "openai"},
        {"embedding_function": {"type": "legacy"}},
        {"embedding_function": {"type": "unknown"}},
        {"embedding_function": {"type": "known", "name": ""}},
        {"embedding_function": {"type": "known", "name": 7}},
    ],
)
def test_what_names_no_function(configuration: dict[str, Any]) -> None:
    assert stored_function(configuration) is None


def test_the_old_form_is_read() -> None:
    found = stored_function({"embedding_function": {"name": "all-MiniLM-L6-v2"}})
    assert found == Stored("all-MiniLM-L6-v2", None)
    assert read_stored(found) == MiniLM()
    assert same_function(found, stored("default"))


@pytest.mark.parametrize(
    ("name", "config", "member"),
    [
        ("ollama", {"model": "m"}, "model"),
        ("ollama", {"model_name": 7}, "model_name"),
        ("ollama", {"model_name": ""}, "model_name"),
        ("ollama", {"model_name": "m" * 5000}, "model_name"),
        ("ollama", {"timeout": True}, "timeout"),
        ("ollama", {"timeout": -1}, "timeout"),
        ("ollama", {"url": "file:///etc/passwd"}, "url"),
        ("ollama", {"url": f"http://user:{SECRET}@localhost"}, "url"),
        ("ollama", {"url": "http://localhost:port"}, "url"),
        ("openai", {"api_key": SECRET}, "api_key"),
        ("openai", {"token": SECRET}, "token"),
        ("openai", {"client_secret": SECRET}, "client_secret"),
        ("openai", {"api_key_env_var": SECRET}, "api_key_env_var"),
        ("openai", {"api_key_env_var": "lower"}, "api_key_env_var"),
        ("openai", {"default_headers": {"Authorization": SECRET}}, "default_headers.Authorization"),
        ("openai", {"default_headers": {"x-api-key": SECRET}}, "default_headers.x-api-key"),
        ("openai", {"default_headers": {"a": "b\r\nc: d"}}, "default_headers"),
        ("openai", {"default_headers": {"a": 1}}, "default_headers"),
        ("openai", {"default_headers": ["a"]}, "default_headers"),
        ("openai", {"api_type": "azure"}, "api_type"),
        ("openai", {"model_name": "text-embedding-3-small", "dimensions": 1.5}, "dimensions"),
        ("openai", {"encoding_format": "base64"}, "encoding_format"),
        ("openai_compatible", {"encoding_format": "hex"}, "encoding_format"),
        ("openai", {"trust_remote_code": True}, "trust_remote_code"),
        ("huggingface_server", {}, "url"),
        ("huggingface_server", {"url": "http://h/embed", "truncate": True}, "truncate"),
        ("sentence_transformer", {"trust_remote_code": True}, "trust_remote_code"),
        ("sentence_transformer", {"kwargs": {"trust_remote_code": True}}, "kwargs.trust_remote_code"),
        ("sentence_transformer", {"kwargs": {"revision": "x"}}, "kwargs"),
        ("sentence_transformer", {"model_name": "../../model"}, "model_name"),
        ("sentence_transformer", {"model_name": "/model"}, "model_name"),
        ("default", {"model": "other"}, "model"),
        ("all-MiniLM-L6-v2", {"max_tokens": 7000}, "max_tokens"),
        ("prefixed", {}, "function"),
        ("prefixed", {"function": {"name": "prefixed"}}, "function"),
        ("prefixed", {"function": {"name": "ollama"}, "query_prefix": 7}, "query_prefix"),
        ("prefixed", {"function": {"name": "ollama", "config": {"api_key": SECRET}}}, "function.config.api_key"),
    ],
)
def test_a_wrong_configuration_names_the_member_and_no_secret(name: str, config: dict[str, Any], member: str) -> None:
    with refused(InvalidArgument, f"configuration.embedding_function.config.{member}"):
        read_stored(stored(name, **config))


def test_other_names_and_newer_versions_are_said() -> None:
    with pytest.raises(FailedPrecondition, match="'cohere' is not built in"):
        read_stored(stored("cohere"))
    for version in (2, 0, "1"):
        found = stored_function({"embedding_function": {"name": "ollama", "version": version}})
        assert found is not None
        with pytest.raises(FailedPrecondition, match="version"):
            read_stored(found)


# --- what others have written


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ollama", {"url": "http://evil.example"}),
        ("openai", {"api_base": "https://evil.example/v1"}),
        ("openai", {"api_base": "https://api.openai.com.evil.example/v1"}),
        ("openai", {"api_base": "http://api.openai.com/v1"}),
        ("huggingface_server", {"url": "http://127.0.0.1:9/embed"}),
        ("prefixed", {"function": {"name": "ollama", "config": {"url": "http://evil.example"}}}),
        ("openai", {"api_key_env_var": "AWS_SECRET_ACCESS_KEY"}),
    ],
)
def test_texts_and_keys_go_to_no_host_that_a_collection_names(name: str, config: dict[str, Any]) -> None:
    """Who may write a collection's configuration could otherwise have what its readers look for, and their keys."""
    read_stored(stored(name, **config))
    with pytest.raises(FailedPrecondition, match="pass the function itself"):
        rebuild(stored(name, **config))


def test_hosts_that_the_user_names_are_asked() -> None:
    function = stored("ollama", url="http://models.internal:11434")
    for hosts in (["models.internal"], ["models.internal:11434"]):
        assert rebuild(function, hosts) == Ollama(url="http://models.internal:11434")
    with pytest.raises(FailedPrecondition, match=r"embedding_hosts=\['models.internal:11434'\]"):
        rebuild(function, ["models.internal:1"])
    for usual in ("ollama", "openai", "default"):
        rebuild(stored(usual))


# --- one function is not the other


def test_the_same_function_by_another_name_or_place_fits() -> None:
    assert same_function(stored("default"), stored("onnx_mini_lm_l6_v2", preferred_providers=["x"]))
    assert same_function(
        stored("ollama", model_name="m"), stored("ollama", model_name="m", url="http://other", timeout=1)
    )
    assert same_function(
        stored("openai", model_name="m"), stored("openai_compatible", model_name="m", api_key_env_var=None)
    )
    assert same_function(stored("openai", model_name="m", dimensions=3), stored("openai", model_name="m"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (stored("default"), stored("ollama")),
        (stored("default"), stored("all-MiniLM-L6-v2", max_tokens=64)),
        (stored("ollama", model_name="a"), stored("ollama", model_name="b")),
        (stored("openai"), stored("openai", model_name="text-embedding-3-small")),
        (
            stored("openai", model_name="text-embedding-3-small"),
            stored("openai", model_name="text-embedding-3-small", dimensions=3),
        ),
        (stored("huggingface_server", url="http://a"), stored("huggingface_server", url="http://b")),
        (
            stored("prefixed", function={"name": "default"}, query_prefix="a"),
            stored("prefixed", function={"name": "default"}, query_prefix="b"),
        ),
        (stored("prefixed", function={"name": "default"}), stored("default")),
    ],
)
def test_another_function_does_not_fit(one: Stored, other: Stored) -> None:
    assert not same_function(one, other)
    assert not same_function(other, one)
    assert described(one) != described(other)


async def test_a_function_other_than_the_stored_one_is_an_error_that_says_both() -> None:
    async with client_of(FakeApi()) as client:
        await client.create_collection("c", embedding_function=Ollama(model_name="one"))
        with pytest.raises(InvalidArgument, match=r"'ollama' \(model_name 'one'\), but 'ollama' \(model_name 'two'\)"):
            await client.get_collection("c", embedding_function=Ollama(model_name="two"))
        await client.get_collection("c", embedding_function=Gateway(Ollama(model_name="one", url="http://other")))
        with pytest.raises(InvalidArgument, match=r"'ollama' \(model_name 'one'\), but 'mine'"):
            await client.get_collection("c", embedding_function=CallableEmbedding("mine", None, len))


async def test_a_stored_function_that_cannot_be_made_is_an_error_only_when_it_is_needed() -> None:
    api = FakeApi()
    async with client_of(api) as client:
        function = HuggingFaceServer(url="http://evil.example/embed")
        created = await client.create_collection("c", embedding_function=function)
        assert created.configuration["embedding_function"]["name"] == "huggingface_server"
        found = await client.get_collection("c")
        await found.add(ids=["a"], embeddings=[[1.0, 2.0]], documents=["a"])
        assert (await found.query(query_embeddings=[1.0, 2.0])).ids == [["a"]]
        with refused(FailedPrecondition, "embedding_function"):
            await found.query(query_texts="a")
        with pytest.raises(FailedPrecondition, match=r"evil\.example, which this client was not told to trust"):
            await found.add(ids=["b"], documents=["b"])


def test_collections_of_one_function_share_its_gateway() -> None:
    functions = Functions(None)
    one, other, third = (
        functions.embedder({"embedding_function": stored_form(Ollama(model_name=name))}, None).function
        for name in ("a", "a", "b")
    )
    assert one is other
    assert one is not third
    assert (
        functions.embedder({}, None).function
        is functions.embedder({"embedding_function": {"name": "default"}}, None).function
    )


@pytest.mark.parametrize("name", KINDS)
def test_names_are_those_under_which_functions_store_themselves(name: str) -> None:
    kind = KINDS[name]
    assert kind.name == name
    assert kind.canonical in KINDS


# --- sentence-transformers


def test_a_model_that_is_here_is_loaded_without_code_and_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Model:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append((arguments, options))
            if arguments[0] == "not/here":
                raise OSError("no such model")

        def encode(self, texts: list[str], **options: Any) -> Any:
            assert options["normalize_embeddings"]
            return np.array([[len(text), 1.0] for text in texts])

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    function = SentenceTransformer(model_name="owner/name", normalize_embeddings=True)
    sided = Prefixed(function, query_prefix="query: ")
    assert Gateway(sided).embed_documents(["ab", "c"]).tolist() == [[2, 1], [1, 1]]
    assert Gateway(sided).embed_queries(["ab"]).tolist() == [[9, 1]]
    ((arguments, options),) = asked
    assert (arguments, options["trust_remote_code"], options["local_files_only"]) == (("owner/name",), False, True)
    assert options["model_kwargs"] == {"use_safetensors": True}
    with pytest.raises(FailedPrecondition, match="is not on this machine"):
        SentenceTransformer(model_name="not/here").embed_documents(["a"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(FailedPrecondition, match="'sentence-transformers', which is not installed"):
        SentenceTransformer(model_name="another").embed_documents(["a"])


# --- the default function


def golden() -> tuple[list[str], Any]:
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))
    vectors = np.stack([np.frombuffer(base64.b64decode(packed), "<f4") for packed in found["vectors"]])
    return found["texts"], vectors


def test_the_default_functions_vectors_are_those_of_the_float32_model() -> None:
    """The packaged model has weights of 8 bits. Sentences keep their direction to 0.999; a word alone, or no word at all, nearly."""
    texts, wanted = golden()
    vectors = Gateway(MiniLM()).embed_documents(texts)
    cosines = (vectors * wanted).sum(axis=1)
    short = np.array([text in ("No.", "🐟🐠🦈") for text in texts])
    assert short.sum() == 2
    assert cosines[~short].min() >= 0.999
    assert cosines[short].min() >= 0.996
    assert wanted[0] @ wanted[1] == pytest.approx(0.943, abs=5e-4), "the pair that the model's card gives"


def test_the_default_function_needs_no_network() -> None:
    code = """
import socket, sys
def refuse(event, arguments):
    assert not event.startswith("socket.") or event in ("socket.__new__", "socket.gethostname"), event
sys.addaudithook(refuse)
from shoal.embedding import ChromaDefault, Gateway, MiniLM
assert Gateway(MiniLM()).embed_documents(["a text"]).shape == (1, 384)
assert len(ChromaDefault()(["a text"])[0]) == 384
assert "httpx2" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_chromas_client_finds_the_methods_that_it_calls() -> None:
    function = ChromaDefault()
    vectors = function(input=["a text", "b"])
    assert [vector.shape for vector in vectors] == [(384,)] * 2
    assert np.allclose(function.embed_query(input=["a text"])[0], vectors[0], atol=1e-5)
    assert (ChromaDefault.name(), function.get_config()) == ("default", {})
    assert isinstance(ChromaDefault.build_from_config({}), ChromaDefault)
    assert function.default_space() in function.supported_spaces()
    with pytest.raises(InvalidArgument, match="not the default function"):
        ChromaDefault(MiniLM(max_tokens=9))
