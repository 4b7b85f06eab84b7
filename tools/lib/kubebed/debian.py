"""Debian packages, binary and source, from wherever this machine's apt gets them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kubebed.errors import KubebedError
from kubebed.steps import run

SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LEFT_OUT = (
    *(f"/usr/share/{name}/*" for name in ("bug", "doc", "info", "lintian", "locale", "man", "zoneinfo/right")),
    "/usr/lib/*-linux-gnu/gconv/*",
)
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
"""Without it, the package that merges /bin into /usr comes along, with all of Perl: 50 MB."""
_LAST = (
    'rm -rf "$1"/var/cache/* "$1"/var/lib/apt/lists/* "$1"/var/log/*.log',
    # mmdebstrap copies this machine's.
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf" && printf "127.0.0.1 localhost\\n" >"$1/etc/hosts"',
)
RECIPE = (SUITE, _LEFT_OUT, _MERGED_USR, _LAST)
"""What besides its arguments decides what `root` makes."""


def sources(kind: str) -> list[str]:
    """Lines of a sources.list (`kind` is `deb` or `deb-src`) for the Debian archives that apt is configured with."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"]
    targets = subprocess.run([*command, "Created-By: Packages"], capture_output=True, text=True).stdout
    lines = []
    for target in targets.splitlines():
        uri, release, component, origin = (target.split() + [""] * 4)[:4]
        if origin == "Debian" and release.startswith(SUITE):
            lines.append(f"{kind} [signed-by={KEYRING}] {uri} {release} {component}")
    if not lines:
        raise KubebedError(
            f"apt knows no package list of Debian's {SUITE}: name an archive in /etc/apt and run apt-get update"
        )
    return sorted(set(lines))


def _acquire_options() -> list[str]:
    """How apt reaches its archives here (proxies, certificates), for an apt that doesn't read /etc/apt."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True).stdout
    wanted = ("Acquire::http::", "Acquire::https::")
    return [f"--aptopt={line.rstrip(';')}" for line in dump.splitlines() if line.startswith(wanted)]


def root(target: Path, packages: list[str], log: Path, *, hooks: list[str] | None = None) -> None:
    """Make a minimal Debian with these packages, as a folder, or as an archive if `target` ends in `.tar`.

    `hooks` are shell commands run at the end; `$1` is the root. Documentation and caches are left out.
    """
    # Not "--mode=auto": as root, that is what it means, unless the mount that it tries first is forbidden.
    command = ["mmdebstrap", "--verbose", "--variant=essential", "--mode=root", f"--include={','.join(packages)}"]
    command += [f"--hook-dir={_MERGED_USR}", *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT)]
    command += _acquire_options()
    command += [f"--customize-hook={hook}" for hook in (*(hooks or []), *_LAST)]
    run([*command, SUITE, target, *sources("deb")], log)


def download_source(package: str, upstream: str, folder: Path, log: Path) -> Path:
    """Fetch the newest source package whose version begins with `upstream` into `folder`; its .dsc. apt verifies it.

    With lists and settings of its own: the machine's sources stay as they are.
    """
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text("\n".join(sources("deb-src")) + "\n")
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache::PkgCache": "",
        "Dir::Cache::SrcPkgCache": "",
        "APT::Sandbox::User": "root",
    }
    apt: list[str | Path] = ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]
    run([*apt, "-oAPT::Update::Error-Mode=any", "update"], log)
    listing = subprocess.run(["apt-cache", *map(str, apt[1:]), "showsrc", package], capture_output=True, text=True)
    versions = [line.split()[1] for line in listing.stdout.splitlines() if line.startswith("Version: ")]
    fitting = [version for version in versions if version.startswith(upstream)]
    if not fitting:
        raise KubebedError(
            f"the archives have no source of {package} {upstream}…, only {', '.join(sorted(set(versions))) or 'none'}"
        )
    newest = fitting[0]
    for version in fitting[1:]:
        if subprocess.run(["dpkg", "--compare-versions", version, "gt", newest]).returncode == 0:
            newest = version
    run([*apt, "source", "--download-only", f"{package}={newest}"], log, cwd=folder)
    return next(folder.glob(f"{package}_*.dsc"))
