"""Compiles native/ for each level of x86-64 instructions, or once on other processors. Needs a C++17 compiler and Python's headers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LEVELS = (2, 3, 4)
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-missing-field-initializers", "-DPy_LIMITED_API=0x030b0000"),
)


class Module(NamedTuple):
    """One extension module: its name, what it is made of, and how."""

    name: str
    source: str
    flags: tuple[str, ...]

    def path(self, folder: Path) -> Path:
        """Where Python finds it."""
        return folder / f"{self.name}.abi3.so"


class CompileKernels(BuildHookInterface):
    """Puts the extension modules beside shoal_index/vector/native.py, which loads them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is older than its sources."""
        root = Path(self.root)
        folder = root / "shoal_index" / "vector"
        newest = max(path.stat().st_mtime for path in [*(root / "native").iterdir(), Path(__file__)])
        stale = [module for module in _modules() if not _is_newer(module.path(folder), newest)]
        compiler = os.environ.get("CXX", "g++")
        if stale and shutil.which(compiler.split()[0]) is None:
            raise RuntimeError(f"Shoal's kernels need a C++17 compiler: {compiler} was not found; name one in CXX")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda module: _compile(compiler, root / "native" / module.source, module, folder), stale))
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].extend(f"/{module.path(folder).relative_to(root)}" for module in _modules())


def _modules() -> list[Module]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return [Module("_kernels_native", "module.cpp", ("-DSHOAL_MODULE=_kernels_native",))]
    levels = [
        Module(f"_kernels_v{level}", "module.cpp", (f"-march=x86-64-v{level}", f"-DSHOAL_MODULE=_kernels_v{level}"))
        for level in LEVELS
    ]
    return [Module("_kernels_cpu", "cpu.cpp", ()), *levels]


def _is_newer(path: Path, than: float) -> bool:
    return path.exists() and path.stat().st_mtime >= than


def _compile(compiler: str, source: Path, module: Module, folder: Path) -> None:
    """Into a file of another name first: whoever loads the module finds the old one or the new one."""
    output = module.path(folder)
    partial = output.with_name(f"{output.name}.partial")
    headers = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([*compiler.split(), *FLAGS, headers, *module.flags, str(source), "-o", str(partial)], check=True)
    os.replace(partial, output)
