"""The Helm chart: rendered by a real Helm, checked against the schemas of Kubernetes and our configuration.

What cannot be checked here, as there is no API server: that a cluster admits the objects.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from shoal_cluster.etcd.client import channel_target
from shoal_runtime.config import ROLES, load
from shoal_runtime.server import split_address
from tests.deploy.chart import (
    CHART,
    POD_IP,
    PREFIX,
    VALUES,
    Helm,
    Manifest,
    component,
    environment,
    known_variables,
    mounted_secrets,
    of_kind,
    pod_of,
    pods,
    secrets,
    store_workloads,
    workloads,
)
from tests.deploy.custom_resources import CUSTOM_RESOURCES

KUBERNETES = ("1.30.0", "1.37.0")  # the oldest that the chart admits, the newest there are schemas of
ROLES_OF_SECRETS = {
    "SHOAL_POSTGRES__DSN": {"sysdb", "logservice"},
    "SHOAL_OBJECTS__S3__ACCESS_KEY": {"logservice", "querynode", "compactor"},
    "SHOAL_OBJECTS__S3__SECRET_KEY": {"logservice", "querynode", "compactor"},
    "SHOAL_FRONTEND__ACCESS__ROOT_TOKEN": {"frontend"},
}
RIGHTS = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
SUFFIXES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


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
        custom = CUSTOM_RESOURCES.get((manifest["apiVersion"], manifest["kind"]))
        if custom:
            jsonschema.validate(manifest, custom)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_notices_a_misspelt_field(manifests: list[Manifest]) -> None:
    workload = workloads(manifests)["sysdb"]
    wrong = workload | {"spec": workload["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_every_object_is_there_once(rendered: dict[str, list[Manifest]]) -> None:
    def names(values: str) -> set[str]:
        found = [f"{each['kind']}/{each['metadata']['name']}" for each in rendered[values]]
        assert len(set(found)) == len(found)
        assert {each["metadata"]["namespace"] for each in rendered[values]} == {"somewhere"}
        return set(found)

    def each(kind: str, *of: str) -> set[str]:
        return {f"{kind}/{PREFIX}-{name}" for name in of}

    scaled = ("frontend", "logservice", "querynode", "compactor")
    budgets = ("frontend", "logservice", "querynode", "sysdb")
    common = (
        each("ServiceAccount", *ROLES)
        | each("Service", "frontend", "querynode")
        | each("PodDisruptionBudget", *budgets)
        | each("Deployment", *(role for role in ROLES if role != "querynode"))
        | each("StatefulSet", "querynode")
    )
    stores = ("postgres", "etcd", "s3")
    own = each("Secret", "stores") | each("ConfigMap", "s3")
    production = (
        common
        | each("Job", "migrate")
        | each("PodDisruptionBudget", *ROLES)
        | each("HorizontalPodAutoscaler", *scaled)
        | each("NetworkPolicy", *ROLES, "migrate")
        | each("Certificate", *ROLES)
    )
    assert names("default") == common | each("Job", "migrate")
    assert names("evaluation") == common | own | each("StatefulSet", *stores) | each("Service", *stores)
    assert names("production") == production
    assert names("everything") == production | own | {f"PrometheusRule/{PREFIX}"} | each("PodMonitor", *ROLES) | each(
        "Ingress", "frontend-http", "frontend-grpc"
    ) | {name for kind in ("StatefulSet", "Service", "NetworkPolicy") for name in each(kind, "etcd", "s3")}


def test_every_role_is_served(manifests: list[Manifest]) -> None:
    assert {role: container["args"] for role, _, container in pods(manifests)} == {r: ["serve", r] for r in ROLES}


def test_every_variable_is_a_setting(manifests: list[Manifest]) -> None:
    for _, _, container in pods(manifests):
        names = [each["name"] for each in container["env"]]
        assert set(names) <= known_variables()
        assert len(names) == len(set(names))
        assert names[0] == "POD_IP"  # only what stands above may be referred to


def test_every_process_could_load_its_configuration(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SHOAL_")]:
        monkeypatch.delenv(name)
    for role, _, container in pods(manifests):
        with monkeypatch.context() as patch:
            for name, value in environment(container).items():
                patch.setenv(name, value)
            config = load()
        section = config.service(role)
        port = split_address(section.listen, "listen")[1]
        assert section.advertise == f"{POD_IP}:{port}"
        assert section.listen.startswith("0.0.0.0:")
        assert all(endpoint.endswith(":2379") for endpoint in config.etcd.endpoints)
        assert channel_target(config.etcd.endpoints).startswith("dns:///")
        assert config.etcd.endpoints
        assert config.etcd.cluster == "somewhere.release-shoal"
        assert bool(config.postgres.dsn.get_secret_value()) == (role in ROLES_OF_SECRETS["SHOAL_POSTGRES__DSN"])
        assert bool(config.objects.s3.bucket) == (role in ROLES_OF_SECRETS["SHOAL_OBJECTS__S3__SECRET_KEY"])
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


def test_services_budgets_and_policies_select_the_pods_of_one_role(manifests: list[Manifest]) -> None:
    everybody = workloads(manifests) | store_workloads(manifests) | of_kind(manifests, "Job")
    labels = {role: each["spec"]["template"]["metadata"]["labels"] for role, each in everybody.items()}
    for manifest in manifests:
        if manifest["kind"] not in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            continue
        selector = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
        wanted = selector.get("matchLabels", selector).items()
        assert [role for role, found in labels.items() if wanted <= found.items()] == [component(manifest)]
    for role, workload in everybody.items():
        if workload["kind"] != "Job":
            assert workload["spec"]["selector"]["matchLabels"].items() <= labels[role].items()
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    assert services["release-shoal-querynode"]["clusterIP"] == "None"
    assert all(each["spec"]["serviceName"] in services for each in everybody.values() if each["kind"] == "StatefulSet")
    frontend = services["release-shoal-frontend"]
    assert [(port["port"], port["targetPort"]) for port in frontend["ports"]] == [(8800, "grpc"), (8000, "http")]


def test_roles_see_only_the_secrets_they_need(manifests: list[Manifest]) -> None:
    for role, spec, container in pods(manifests):
        found = secrets(container)
        assert all(role in ROLES_OF_SECRETS[name] for name in found)
        mounted = set(mounted_secrets(spec).values())
        assert not mounted & {f"{PREFIX}-{other}-tls" for other in ROLES if other != role}
        assert "shoal-postgres-ca" not in mounted or role in ROLES_OF_SECRETS["SHOAL_POSTGRES__DSN"]
    for job in of_kind(manifests, "Job").values():
        assert set(secrets(pod_of(job)[1])) == {"SHOAL_POSTGRES__DSN"}


def test_service_accounts_of_roles_that_use_the_bucket_have_the_clouds_credentials(
    rendered: dict[str, list[Manifest]],
) -> None:
    accounts = of_kind(rendered["everything"], "ServiceAccount")
    annotations = {role: set(account["metadata"]["annotations"]) for role, account in accounts.items()}
    with_role = {role for role, names in annotations.items() if "eks.amazonaws.com/role-arn" in names}
    assert with_role == ROLES_OF_SECRETS["SHOAL_OBJECTS__S3__SECRET_KEY"]
    assert all("example.com/owner" in names for names in annotations.values())
    for role, spec, _ in pods(rendered["everything"]):
        assert spec["serviceAccountName"] == accounts[role]["metadata"]["name"]


def test_service_accounts_that_exist(helm: Helm) -> None:
    for options, name in (((), "default"), (("--set", "serviceAccount.name=mine"), "mine")):
        manifests = helm.template("--set", "serviceAccount.create=false", *options)
        assert not of_kind(manifests, "ServiceAccount")
        assert {spec["serviceAccountName"] for _, spec, _ in pods(manifests)} == {name}


def test_pods_run_with_few_rights(manifests: list[Manifest]) -> None:
    others = [*store_workloads(manifests).values(), *of_kind(manifests, "Job").values()]
    for spec, container in map(pod_of, [*workloads(manifests).values(), *others]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert container["securityContext"] == RIGHTS
        assert ":latest" not in container["image"]
        assert ":" in container["image"].rpartition("/")[2]


def test_everything_written_to_is_a_volume(manifests: list[Manifest]) -> None:
    for workload in (*workloads(manifests).values(), *store_workloads(manifests).values()):
        spec, container = pod_of(workload)
        volumes = {each["name"] for each in spec["volumes"]}
        volumes |= {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())}
        assert {each["name"] for each in container["volumeMounts"]} == volumes
        writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
        directory = environment(container).get("SHOAL_CACHE__DIRECTORY", "/tmp/none")
        assert any(Path(mount) in Path(directory).parents for mount in writable)


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


def test_a_drain_fits_into_the_grace_period(manifests: list[Manifest]) -> None:
    """After the pause before it: half a second to be noticed, 10 s for calls, 5 s for requests over HTTP, some for the rest."""
    for _, spec, container in pods(manifests):
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pause_s + 0.5 + 10 + 5 + 5 <= spec["terminationGracePeriodSeconds"]
