"""What the chart makes once and keeps: it asks an API server, of which just enough is played here."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.deploy.chart import EVALUATION, PREFIX, Helm, Manifest, of_kind

Secrets = dict[str, dict[str, str]]  # name → key → value, as they are stored: in base64


KINDS = {
    "v1": ("Secret", "ServiceAccount", "ConfigMap", "Service"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "policy/v1": ("PodDisruptionBudget",),
    "batch/v1": ("Job",),
}
OWNED = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {"meta.helm.sh/release-name": "release", "meta.helm.sh/release-namespace": "somewhere"},
}


def resources(version: str) -> dict[str, Any]:
    found = [
        {"name": f"{kind.lower()}s", "namespaced": True, "kind": kind, "verbs": ["get"]} for kind in KINDS[version]
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": found}


def answer(path: str, secrets: Secrets) -> dict[str, Any] | None:
    """What an API server says to a GET, as far as Helm asks when it renders for it."""
    folder, _, name = path.rpartition("/")
    if folder == "/api/v1/namespaces/somewhere/secrets" and name in secrets:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, **OWNED}, "data": secrets[name]}
    groups = []
    for version in KINDS:
        group = {"groupVersion": version, "version": "v1"}
        groups.append({"name": version.partition("/")[0], "versions": [group], "preferredVersion": group})
    known: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups[1:]},
        "/api/v1": resources("v1"),
        **{f"/apis/{version}": resources(version) for version in KINDS if "/" in version},
    }
    return known.get(path)


@contextmanager
def api_server(secrets: Secrets, folder: Path) -> Iterator[Path]:
    """The configuration with which it is reached."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answer(self.path.partition("?")[0], secrets)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
            cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
            config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
            path = folder / "kubeconfig"
            path.write_text(json.dumps(config | {"clusters": [cluster], "users": [{"name": "u", "user": {}}]}))
            yield path
        finally:
            server.shutdown()
            thread.join()


def stored(manifest: Manifest) -> dict[str, str]:
    """A Secret's values as the API server would give them."""
    texts = manifest.get("stringData", {})
    return manifest.get("data", {}) | {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}


def rendered_for(helm: Helm, config: Path, *options: str) -> dict[str, Manifest]:
    """The Secrets, for the server of ``config``."""
    reach = ("--dry-run=server", "--disable-openapi-validation", "--kubeconfig", str(config))
    return of_kind(helm.template(*options, *reach), "Secret")


def test_passwords_stay_when_a_release_is_upgraded(helm: Helm, tmp_path: Path) -> None:
    first = of_kind(helm.template(*EVALUATION), "Secret")["stores"]
    with api_server({f"{PREFIX}-stores": stored(first)}, tmp_path) as config:
        again = rendered_for(helm, config, *EVALUATION)["stores"]
        assert again["stringData"] == first["stringData"]
    with api_server({}, tmp_path) as config:
        fresh = rendered_for(helm, config, *EVALUATION)["stores"]
        assert fresh["stringData"]["password"] != first["stringData"]["password"]


def test_certificates_stay_and_a_missing_one_is_made_of_the_same_authority(helm: Helm, tmp_path: Path) -> None:
    generated = ("--set", "tls.enabled=true,tls.source=generated")
    first = of_kind(helm.template(*generated), "Secret")
    secrets = {each["metadata"]["name"]: stored(each) for each in first.values()}
    del secrets[f"{PREFIX}-sysdb-tls"]
    with api_server(secrets, tmp_path) as config:
        again = rendered_for(helm, config, *generated)
    assert [name for name in first if again[name]["data"] != first[name]["data"]] == ["sysdb"]
    assert again["sysdb"]["data"]["ca.crt"] == first["ca"]["data"]["ca.crt"]
