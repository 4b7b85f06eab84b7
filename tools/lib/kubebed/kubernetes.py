"""Kubernetes' binaries, compiled from Debian's source package of it.

1.20.2 is the version that bookworm has in full; later ones are not in Debian.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from kubebed import debian
from kubebed.errors import KubebedError
from kubebed.steps import run, step

VERSION = "1.20.2"
_UPSTREAM = "1.20.5+really1.20.2-"
_COMMIT = "faecb196815e248d3ecfb03c680a4507229c2a56"
_GO = Path("/usr/bin/go")
_REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
_PROGRAMS = (
    ("kube-apiserver",),
    ("kube-controller-manager", "kube-scheduler"),
    ("kubelet", "kube-proxy", "kubectl"),
)
_PATCHES = (
    # 1.20's kubelet removes a finished pod's API object only on slow ticks (10 s status sync, 60 s container GC), so a
    # deletion takes 6 to 30 s. Later kubelets do it at once, and what is tested here is meant for those.
    ("pkg/kubelet/status/status_manager.go", r"syncPeriod = 10 \* time\.Second", "syncPeriod = 1 * time.Second"),
    ("pkg/kubelet/kubelet.go", r"ContainerGCPeriod = time\.Minute", "ContainerGCPeriod = 2 * time.Second"),
    ("pkg/kubelet/kubelet.go", r"housekeepingPeriod = time\.Second \* 2", "housekeepingPeriod = time.Second"),
)
_SCRATCH_BYTES = 4 << 30
_RECIPE = 1
"""To be counted up with a change to how they are built that `KEY` doesn't show."""
KEY = f"{VERSION}-{hashlib.sha256(repr((_PROGRAMS, _PATCHES, _RECIPE)).encode()).hexdigest()[:10]}"


def build(target: Path, work: Path) -> None:
    """Compile everything into `target/bin`. `work`, some GB, is kept when this fails: a retry is short."""
    log = work / "log"
    if shutil.disk_usage(work).free < _SCRATCH_BYTES:
        raise KubebedError(f"compiling Kubernetes needs {_SCRATCH_BYTES >> 30} GB at {work}, and there is less")
    go = work / "gopath"
    tree = go / "src/k8s.io/kubernetes"
    environment = {
        "GOPATH": str(go),
        "GOCACHE": str(work / "gocache"),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
        # Fewer collections: the compiler has short lives and this machine has memory.
        "GOGC": "400",
    }
    with step("fetching the source of Kubernetes"):
        if not (work / "unpacked").exists():
            description = debian.download_source("kubernetes", _UPSTREAM, work / "source", log)
            shutil.rmtree(tree, ignore_errors=True)
            tree.parent.mkdir(parents=True, exist_ok=True)
            # apt has compared its checksums with the signed index.
            run(["dpkg-source", "--no-check", "-x", description, tree], log)
            _patch(tree)
            (work / "unpacked").touch()
    with step("generating its API description"):
        _generate(tree, work, environment, log)
    (target / "bin").mkdir(parents=True, exist_ok=True)
    for programs in _PROGRAMS:
        with step(f"compiling {', '.join(programs)}"):
            command: list[str | Path] = [_GO, "build", "-tags", "providerless dockerless", "-ldflags", _link_flags()]
            command += ["-o", f"{target / 'bin'}/"]
            run([*command, *(f"./cmd/{program}" for program in programs)], log, cwd=tree, environment=environment)


def _patch(tree: Path) -> None:
    # The vendored reflect2 1.0.1 crashes on Go 1.18 and later (the API server at the first custom resource).
    vendored = tree / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(_REFLECT2, vendored, ignore=shutil.ignore_patterns("*_test.go"))
    for name, pattern, replacement in _PATCHES:
        file = tree / name
        text, count = re.subn(pattern, replacement, file.read_text())
        if count != 1:
            raise KubebedError(f"{file}: expected one '{pattern}', found {count}: is it another version?")
        file.write_text(text)


def _generate(tree: Path, work: Path, environment: dict[str, str], log: Path) -> None:
    """pkg/generated/openapi, the one file that the source lacks, as build/root/Makefile.generated_files makes it."""
    generator = work / "openapi-gen"
    run(
        [_GO, "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"],
        log,
        cwd=tree,
        environment=environment,
    )
    marked = subprocess.run(
        ["grep", "-Rl", "--include=*.go", "+k8s:openapi-gen=", "vendor/k8s.io/", "pkg", "cmd", "plugin"],
        cwd=tree,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    other = re.compile(
        r"_test\.go$|zz_generated|/testdata/|^vendor/k8s\.io/(code-generator|sample-apiserver|kube-openapi|gengo)"
    )
    packages = sorted({f"k8s.io/kubernetes/{Path(file).parent}" for file in marked if not other.search(file)})
    violations = work / "violations"
    command: list[str | Path] = [generator, "--logtostderr", "-i", ",".join(packages)]
    command += ["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi", "-r", violations]
    command += ["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]
    run(command, log, cwd=tree, environment=environment)
    if violations.read_bytes() != (tree / "api/api-rules/violation_exceptions.list").read_bytes():
        raise KubebedError(
            "the generated API description is not the release's: another set of packages than it was made from"
        )


def _link_flags() -> str:
    stamp = {
        "gitMajor": VERSION.split(".")[0],
        "gitMinor": VERSION.split(".")[1],
        "gitVersion": f"v{VERSION}",
        "gitCommit": _COMMIT,
        "gitTreeState": "clean",
        "buildDate": "2021-01-13T13:20:00Z",
    }
    packages = (
        "k8s.io/kubernetes/vendor/k8s.io/component-base/version",
        "k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version",
    )
    return " ".join(
        ["-s", "-w", *(f"-X {package}.{key}={value}" for package in packages for key, value in stamp.items())]
    )
