"""The values of the chart: every one is documented and in the schema, and the schema refuses what cannot work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from shoal_runtime.config import ROLES
from tests.deploy.chart import CHART, VALUES, Helm

TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
KEY = re.compile(r"^( *)([A-Za-z][\w.]*):(?: (\{)?|$)")
OPEN = ("podSecurityContext", "settings", "resources")  # what stands below is Kubernetes', or the configuration's


def documented() -> dict[tuple[str, ...], bool]:
    """Path of each line's key → whether a comment stands above it or beside it. A table on one line has "*" for its keys."""
    found: dict[tuple[str, ...], bool] = {}
    path: list[str] = []
    lines = TEXT.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        match = KEY.match(line)
        if match:
            path = [*path[: len(match[1]) // 2], match[2]]
            found[tuple(path)] = above.strip().startswith("#") or " # " in line
            if match[3]:
                found[*path, "*"] = found[tuple(path)]
    return found


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value and not (path and path[-1] in OPEN):
        for name, below in value.items():
            yield from leaves(below, (*path, name))
    else:
        yield path


def is_documented(path: tuple[str, ...], comments: dict[tuple[str, ...], bool]) -> bool:
    """Whether the value has a comment, or the table on one line that it is in, or the same value of the first role that has it."""
    for role in ROLES if path[0] in ROLES else (path[0],):
        same = (role, *path[1:])
        if comments.get(same) or comments.get((*same[:-1], "*")):
            return True
    return False


def test_every_value_is_documented() -> None:
    comments = documented()
    values = yaml.safe_load(TEXT)
    assert {path for path in leaves(values) if not is_documented(path, comments)} == set()
    assert len(list(leaves(values))) > 150


def test_a_value_without_comment_is_noticed() -> None:
    comments = documented()
    assert ("image", "tag") in comments
    assert not is_documented(("image", "tag"), comments | {("image", "tag"): False})
    assert not is_documented(("sysdb", "unknown"), comments)


def test_every_value_is_in_the_schema_and_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        return schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    def compare(value: Any, node: dict[str, Any], path: str) -> None:
        node = resolved(node)
        properties = node.get("properties")
        if not isinstance(value, dict) or properties is None:
            return
        assert node.get("additionalProperties") is False, path
        assert value.keys() <= properties.keys(), path
        for name, below in value.items():
            compare(below, properties[name], f"{path}.{name}")

    values = yaml.safe_load(TEXT)
    compare(values, schema, "")
    optional = {"global"}
    assert schema["properties"].keys() - optional == values.keys()
    for role in ROLES:
        assert schema["properties"][role]["properties"].keys() == values[role].keys()


@pytest.mark.parametrize("values", VALUES)
def test_notes_say_what_to_do_next(helm: Helm, values: str) -> None:
    done = helm.run("install", "release", str(CHART), "--dry-run=client", "--namespace", "here", *VALUES[values])
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl --namespace here rollout status deployment/release-shoal-frontend" in notes
    assert "release-shoal-frontend.here.svc:8800" in notes
    assert ("FOR EVALUATION" in notes) == (values in ("evaluation", "everything"))
    assert ("with the root token of the Secret shoal-access" in notes) == (values in ("production", "everything"))
    assert "\n\n\n" not in notes.strip()


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
        ('settings={"tls.cert_file": "/tls.crt"}', "/settings/tls.cert_file"),
        ('settings={"tls.metrics": "mutual"}', "/settings/tls.metrics"),
        ('tls={"metrics": "mutual"}', "/tls/metrics"),
        ('tls={"enabled": true, "source": "certManager"}', "/tls/certManager/issuerRef/name"),
        ('tls.secretName="one-for-all"', "/tls/secretName"),
        ('frontend.tls.clientCertificates="sometimes"', "clientCertificates"),
        ("querynode.autoscaling.backlogRecords=1", "backlogRecords"),
        ('compactor.autoscaling={"enabled": true, "cpuUtilization": 0, "backlogRecords": 0}', "nothing to scale by"),
        ('frontend.tls.existingSecret="public"', "frontend.tls needs tls.enabled"),
        ('frontend.tls.clientCertificates="required"', "frontend.tls needs tls.enabled"),
        ('frontend.secretEnv={"KEY": {"secret": "keys"}}', "/frontend/secretEnv/KEY"),
        ("sysdb.autoscaling.enabled=true", "autoscaling"),
        ("ingress.enabled=true", "/ingress"),
        ('networkPolicy.callers=[{"namespace": "x"}]', "/networkPolicy/callers/0"),
        ('networkPolicy.nodeCidrs=["10.0.0.1"]', "/networkPolicy/nodeCidrs/0"),
        ('stores.postgres.image="postgres:latest"', "/stores/postgres/image"),
        ('stores.postgres.image="postgres"', "/stores/postgres/image"),
        ('stores.s3.secretKey="short"', "/stores/s3/secretKey"),
    ],
)
def test_values_that_cannot_work_are_refused(helm: Helm, values: str, named: str) -> None:
    assert named in helm.refusal(values)
