"""The project's own image: Debian's Python, then what the project depends on, then the project."""

from __future__ import annotations

import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from kubebed import cache, image
from kubebed.images import architecture
from kubebed.steps import run, step

CHECKOUT = Path(__file__).parents[3]
_PYTHON = "/usr/bin/python3"
"""Debian's, which is the one in the image: it says where things go, and compiled modules fit it."""
_LIBRARIES = "usr/local/lib/python3.11/dist-packages"


def reference(checkout: Path = CHECKOUT) -> str:
    """`localhost/nodemesh:VERSION`."""
    return f"localhost/nodemesh:{_project(checkout)['version']}"


def build(target: Path, checkout: Path = CHECKOUT) -> None:
    """Make the image of a checkout as it is, committed or not, and write its archive. Raises `KubebedError`."""
    parts, project = cache.build(), _project(checkout)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dependencies = _dependencies(project["dependencies"], scratch)
        with step("installing the project for its image"):
            # A copy, since building leaves things beside the source, and takes up what an earlier one left.
            source = scratch / "source"
            shutil.copytree(checkout, source, ignore=_not_installed)
            tree = scratch / "project"
            _install(tree, cache.log(), "--no-deps", str(source))
            # The only thing in it that differs from one run to the next.
            for record in (tree / _LIBRARIES).glob("*.dist-info/direct_url.json"):
                record.unlink()
            image.layer(tree, scratch / "project.tar")
            layers = [parts.python, dependencies, scratch / "project.tar"]
            image.archive(target, reference(checkout), layers, ["noded", "--help"], architecture(), project["version"])


def _dependencies(requirements: list[str], scratch: Path) -> Path:
    layer = cache.dependencies(requirements)
    with cache.locked():
        if not layer.exists():
            with step("installing what the project depends on for its image"), cache.making(layer) as target:
                tree = scratch / "dependencies"
                _install(tree, cache.log(), *requirements)
                # The programs that some of them bring are not ours to offer.
                shutil.rmtree(tree / "usr/local/bin", ignore_errors=True)
                image.layer(tree, target)
    return layer


def _install(tree: Path, log: Path, *arguments: str) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        _PYTHON,
        "--disable-pip-version-check",
        "install",
        "--root",
        str(tree),
    ]
    pip += ["--ignore-installed", "--break-system-packages", "--root-user-action=ignore", "--no-warn-script-location"]
    run([*pip, "--no-compile", *arguments], log)
    # The image is read-only where it runs, so Python couldn't keep what it compiles. By hash and not by time: a layer
    # has no times.
    compile_all = [
        _PYTHON,
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(tree),
        "-p",
        "/",
    ]
    run([*compile_all, str(tree / _LIBRARIES)], log)


def _project(checkout: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return project


def _not_installed(folder: str, names: list[str]) -> set[str]:
    top = {"build", "docs", "tests", "tools"} if (Path(folder) / "pyproject.toml").exists() else set()
    return {
        name for name in names if name.startswith(".") or name.endswith(".egg-info") or name in {*top, "__pycache__"}
    }
