"""What the chart can turn on: TLS, autoscaling, the migration, stores of its own, monitoring, Ingress."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest

from shoal_runtime.config import ROLES
from tests.deploy.chart import (
    EVALUATION,
    EVERYTHING,
    PREFIX,
    PRODUCTION,
    Helm,
    Manifest,
    environment,
    mounted_secrets,
    of_kind,
    pod_of,
    pods,
    secrets,
    store_workloads,
    workloads,
)

SCALED = {"frontend": (3, 12), "logservice": (3, 6), "querynode": (3, 12), "compactor": (2, 8)}
GENERATED = ("--set", "tls.enabled=true,tls.source=generated")


def test_with_autoscaling_replicas_are_left_to_it(helm: Helm) -> None:
    manifests = helm.template(*PRODUCTION)
    scalers = of_kind(manifests, "HorizontalPodAutoscaler")
    assert {
        role: (each["spec"]["minReplicas"], each["spec"]["maxReplicas"]) for role, each in scalers.items()
    } == SCALED
    for role, workload in workloads(manifests).items():
        assert ("replicas" in workload["spec"]) == (role not in SCALED)
        if role in SCALED:
            reference = scalers[role]["spec"]["scaleTargetRef"]
            assert (reference["kind"], reference["name"]) == (workload["kind"], workload["metadata"]["name"])
    assert all("replicas" in each["spec"] for each in workloads(helm.template()).values())


def test_what_is_scaled_by(helm: Helm) -> None:
    def metrics(*options: str) -> dict[str, dict[str, object]]:
        found = {}
        for role, each in of_kind(helm.template(*PRODUCTION, *options), "HorizontalPodAutoscaler").items():
            specs = [metric.get("resource") or metric["pods"] for metric in each["spec"]["metrics"]]
            found[role] = {
                spec.get("name") or spec["metric"]["name"]: spec["target"].get("averageUtilization")
                or spec["target"]["averageValue"]
                for spec in specs
            }
        return found

    assert metrics() == {
        "frontend": {"cpu": 70},
        "logservice": {"cpu": 70},
        "querynode": {"cpu": 70, "shoal_query_queue_time_ms": "20"},
        "compactor": {"shoal_compaction_backlog_records": "500000"},
    }
    assert metrics("--set", "querynode.autoscaling.queueTimeMs=0")["querynode"] == {"cpu": 70}


def test_every_scaled_role_requests_the_cpu_it_is_measured_by(helm: Helm) -> None:
    for role, _, container in pods(helm.template(*PRODUCTION)):
        assert container["resources"]["requests"]["cpu"], role


def test_probes_speak_what_the_port_speaks(helm: Helm) -> None:
    kinds = ("startup", "readiness", "liveness")

    def probes(*options: str) -> dict[str, list[Manifest]]:
        return {
            role: [container[f"{kind}Probe"] for kind in kinds] for role, _, container in pods(helm.template(*options))
        }

    for role, found in probes().items():
        assert {probe["grpc"]["port"] for probe in found} == {
            8800 + ["frontend", "sysdb", "logservice", "querynode", "compactor"].index(role)
        }
    for options, scheme in (((), "HTTPS"), (("--set", "tls.metrics=plain"), "HTTP")):
        for found in probes(*GENERATED, *options).values():
            assert [probe["httpGet"]["path"] for probe in found] == ["/ready", "/ready", "/live"]
            assert {(probe["httpGet"]["port"], probe["httpGet"]["scheme"]) for probe in found} == {("metrics", scheme)}


def test_certificates_are_files_of_the_roles_own_secret(helm: Helm) -> None:
    for role, spec, container in pods(helm.template(*PRODUCTION)):
        values, mounted = environment(container), mounted_secrets(spec)
        assert mounted["cert-tls"] == f"{PREFIX}-{role}-tls"
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        files = {
            name: value for name, value in values.items() if name.endswith(("__CERT_FILE", "__KEY_FILE", "__CA_FILE"))
        }
        assert {
            "SHOAL_TLS__CERT_FILE",
            "SHOAL_TLS__KEY_FILE",
            "SHOAL_TLS__CA_FILE",
            "SHOAL_ETCD__CA_FILE",
        } <= files.keys()
        for path in map(Path, files.values()):
            mount = mounts[str(path.parent)]
            assert mount["readOnly"]
            (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
            assert path.name in [item["path"] for item in volume["secret"]["items"]]
            assert volume["secret"]["defaultMode"] == 0o440  # of the pod's group, for nobody else
        assert values["SHOAL_TLS__DOMAIN"] == "shoal.internal"
        assert ("cert-postgres" in mounted) == (role in ("sysdb", "logservice"))


def test_what_callers_of_the_frontends_see(helm: Helm) -> None:
    frontend = {role: (spec, container) for role, spec, container in pods(helm.template(*EVERYTHING))}["frontend"]
    values, mounted = environment(frontend[1]), mounted_secrets(frontend[0])
    assert mounted["cert-public"] == "shoal-public-tls"
    assert mounted["cert-callers"] == "shoal-callers-ca"
    assert values["SHOAL_FRONTEND__TLS__CERT_FILE"] == "/etc/shoal/public/tls.crt"
    assert values["SHOAL_FRONTEND__TLS__CLIENT_CA_FILE"] == "/etc/shoal/callers/ca.crt"
    assert values["SHOAL_FRONTEND__TLS__CLIENT_CERTIFICATES"] == "required"
    plain = environment({role: each for role, _, each in pods(helm.template())}["frontend"])
    assert not [name for name in plain if "TLS" in name]


def test_certificates_from_cert_manager(helm: Helm) -> None:
    found = of_kind(helm.template(*EVERYTHING), "Certificate")
    for role in ROLES:
        spec = found[role]["spec"]
        names = [f"{role}.shoal.internal", f"{PREFIX}-{role}", f"{PREFIX}-{role}.somewhere.svc"]
        assert spec["dnsNames"] == names + (["shoal.example.com"] if role == "frontend" else [])
        assert spec["secretName"] == f"{PREFIX}-{role}-tls"
        assert spec["issuerRef"] == {"name": "shoal-ca", "kind": "ClusterIssuer", "group": "cert-manager.io"}


def context(folder: Path, purpose: ssl.Purpose, data: Mapping[str, str]) -> ssl.SSLContext:
    """One end of a mutual connection, with the files of a Secret."""
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Raises SSLError if an end does not accept the other, or the server is not ``name``."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in tuple(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not ends


def test_certificates_that_helm_makes(helm: Helm, tmp_path: Path) -> None:
    made = {role: each["data"] for role, each in of_kind(helm.template(*GENERATED), "Secret").items()}
    assert made.keys() == {*ROLES, "ca"}
    client = context(tmp_path, ssl.Purpose.SERVER_AUTH, made["frontend"])
    for role in ROLES:
        assert made[role].keys() == {"tls.crt", "tls.key", "ca.crt"}
        assert made[role]["ca.crt"] == made["ca"]["ca.crt"]
        server = context(tmp_path, ssl.Purpose.CLIENT_AUTH, made[role])
        shake_hands(server, client, f"{role}.shoal.internal")
        shake_hands(server, client, f"{PREFIX}-{role}.somewhere.svc")
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server, client, "another.shoal.internal")


def test_names_of_secrets_with_certificates(helm: Helm) -> None:
    manifests = helm.template("--set", "tls.enabled=true,tls.secretName=mine-ROLE")
    assert {mounted_secrets(spec)["cert-tls"] for _, spec, _ in pods(manifests)} == {f"mine-{role}" for role in ROLES}
    assert not of_kind(manifests, "Secret", "Certificate")


def test_the_migration_comes_before_and_sysdb_leaves_the_schema_alone(helm: Helm) -> None:
    for options in ((), PRODUCTION, EVERYTHING):
        manifests = helm.template(*options)
        job = of_kind(manifests, "Job")["migrate"]
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "before-hook-creation" in job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        spec, container = pod_of(job)
        assert container["args"] == ["migrate"]
        assert "serviceAccountName" not in spec  # it is made after this hook
        sysdb = pod_of(workloads(manifests)["sysdb"])[1]
        assert (container["image"], secrets(container)["SHOAL_POSTGRES__DSN"]) == (
            sysdb["image"],
            secrets(sysdb)["SHOAL_POSTGRES__DSN"],
        )
        assert environment(sysdb)["SHOAL_SYSDB__MIGRATE_AT_START"] == "false"


@pytest.mark.parametrize("options", [EVALUATION, ("--set", "migration.job=false")])
def test_without_it_sysdb_migrates(helm: Helm, options: tuple[str, ...]) -> None:
    manifests = helm.template(*options)
    assert not of_kind(manifests, "Job")
    assert environment(pod_of(workloads(manifests)["sysdb"])[1])["SHOAL_SYSDB__MIGRATE_AT_START"] == "true"


def test_stores_of_the_release_are_what_roles_are_given(helm: Helm) -> None:
    manifests = helm.template(*EVALUATION)
    assert store_workloads(manifests).keys() == {"postgres", "etcd", "s3"}
    data = of_kind(manifests, "Secret")["stores"]["stringData"]
    for _, _, container in pods(manifests):
        values = environment(container)
        assert values["SHOAL_ETCD__ENDPOINTS"] == f"{PREFIX}-etcd:2379"
        assert values.get("SHOAL_OBJECTS__S3__ENDPOINT", f"http://{PREFIX}-s3:8333") == f"http://{PREFIX}-s3:8333"
        assert {(name in data) for _, name in secrets(container).values()} <= {True}
        assert {secret for secret, _ in secrets(container).values()} <= {f"{PREFIX}-stores"}
    assert data["dsn"] == f"postgresql://shoal:{data['password']}@{PREFIX}-postgres:5432/shoal"
    (identity,) = json.loads(data["s3.json"])["identities"]
    assert identity["credentials"] == [{"accessKey": data["accessKey"], "secretKey": data["secretKey"]}]
    assert len({data["password"], data["secretKey"], data["accessKey"]}) == 3
    assert min(len(data[name]) for name in ("password", "secretKey", "accessKey")) == 32


def test_passwords_that_are_given(helm: Helm) -> None:
    given = ("--set", "stores.postgres.password=p@ss/word-of-mine!,stores.s3.secretKey=a-secret-of-mine")
    data = of_kind(helm.template(*EVALUATION, *given), "Secret")["stores"]["stringData"]
    assert data["password"] == "p@ss/word-of-mine!"
    assert ":p%40ss%2Fword-of-mine%21@" in data["dsn"]
    assert data["secretKey"] == "a-secret-of-mine"


def test_monitors_verify_the_role(helm: Helm) -> None:
    for role, monitor in of_kind(helm.template(*EVERYTHING), "PodMonitor").items():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["scheme"]) == ("metrics", "https")
        assert endpoint["tlsConfig"]["serverName"] == f"{role}.shoal.internal"
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
    for monitor in of_kind(helm.template("--set", "monitoring.podMonitor.enabled=true"), "PodMonitor").values():
        assert "scheme" not in monitor["spec"]["podMetricsEndpoints"][0]


def test_ingresses_lead_to_ports_of_the_frontends_service(helm: Helm) -> None:
    manifests = helm.template(*EVERYTHING)
    service = of_kind(manifests, "Service")["frontend"]
    ports = {port["name"]: port["appProtocol"] for port in service["spec"]["ports"]}
    assert ports == {"grpc": "https", "http": "https"}
    for manifest in of_kind(manifests, "Ingress").values():
        (rule,) = manifest["spec"]["rules"]
        backend = rule["http"]["paths"][0]["backend"]["service"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"]["name"] in ports


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
        assert "SHOAL_OBJECTS__S3__ACCESS_KEY" not in environment(container)
