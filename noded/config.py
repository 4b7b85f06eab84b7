"""The daemon's configuration file: YAML, checked key by key, every error with its line and a remedy."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from mesh.names import is_subdomain
from noded.logs import LEVELS


@dataclass(frozen=True, slots=True)
class Config:
    """What the configuration file says; durations in seconds, addresses as (host, port)."""

    node: str
    controller_address: tuple[str, int]
    controller_token_file: Path | None = None
    """Where the join token is; without it only a node that has joined before can start."""
    controller_root_file: Path | None = None
    """On Kubernetes: the roots to verify the controller against. The token is a service account's then."""
    kubernetes: bool = False
    """Whether the file has `kubernetes`: workloads are pods, and the controller says which."""
    kubernetes_cni_bin_dir: Path = Path("/opt/cni/bin")
    kubernetes_cni_conf_dir: Path = Path("/etc/cni/net.d")
    kubernetes_cni_state_dir: Path = Path("/var/lib/cni/nodemesh")
    """What the CNI plug-in must know also after a reboot."""
    run_dir: Path = Path("/run/nodemesh")
    """Admin socket and enrolments; emptied by a reboot, as the namespaces that they name are."""
    key_dir: Path = Path("/run/nodemesh/keys")
    """Private keys; must be on tmpfs."""
    state_dir: Path = Path("/var/lib/nodemesh/noded")
    """The last snapshot."""
    workers: int = 0
    """Worker processes; 0: one a core."""
    access_log: bool = True
    access_log_format: str = "json"
    """Or `text`, Envoy's default."""
    request_ids: bool = False
    """Give requests that have none an `x-request-id`, also without tracing."""
    tracing_endpoint: str | None = None
    """URL of a collector's OTLP over HTTP; without it there are no spans."""
    tracing_sampling: float = 1.0
    """Of traces that begin here, so many in a hundred."""
    log_level: str = "info"
    hold_seconds: float = 5.0
    connect_seconds: float = 10.0
    drain_seconds: float = 30.0
    undo_on_stop: bool = False
    """Remove capture on SIGTERM (to uninstall). Else captured workloads are cut off until `noded` is back."""
    metrics_address: tuple[str, int] | None = ("0.0.0.0", 15020)
    ready_address: tuple[str, int] | None = ("0.0.0.0", 15021)

    def as_json(self) -> dict[str, Any]:
        """For `GET /config`: the keys as in the file. It holds no secret: the token is in a file of its own."""
        shown: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, tuple):
                value = f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}"
            shown[_camel(entry.name)] = str(value) if isinstance(value, Path) else value
        groups: dict[str, dict[str, Any]] = {}
        for group, keys in _GROUPS.items():
            groups[group] = {key: shown.pop(_joined(group, key)) for key in keys}
        if not shown.pop("kubernetes"):
            del groups["kubernetes"]
        return {"node": shown.pop("node"), **groups, **shown}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the file: where (1-based), what the line says, what is wrong, what to do."""

    file: str
    line: int
    text: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """Three lines for a terminal."""
        shown = f"\n    {self.text}" if self.text else ""
        return f"{self.file}:{self.line}: {self.message}{shown}\n  remedy: {self.remedy}"


class ConfigError(ValueError):
    """The file can't be used; `problems` are all that were found in one pass."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Wrong(ValueError):
    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy


def _node(value: object) -> str:
    if not isinstance(value, str) or not is_subdomain(value):
        raise _Wrong("must be a node name", "use lower-case letters, digits, '-' and '.', for example node-a")
    return value


def _address(value: object) -> tuple[str, int]:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _Wrong("must be an address with a port", 'write it as "host:port", for example "172.30.0.254:15012"')
    return host.strip("[]"), int(port)


def _bind(value: object) -> tuple[str, int] | None:
    if value is None or value == "":
        return None
    host, port = _address(value)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise _Wrong("must be an IP address with a port", 'for example "0.0.0.0:15020", or "" to turn it off') from None
    return host, port


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise _Wrong("must be an absolute path", "start it with /")
    return Path(value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be true or false", "write true or false, without quotes")
    return value


def _level(value: object) -> str:
    if value not in LEVELS:
        raise _Wrong("must be a log level", f"use one of {', '.join(LEVELS)}")
    return str(value)


def _url(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
        raise _Wrong("must be an http or https URL", "for example http://collector:4318/v1/traces")
    return value


def _percent(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _Wrong("must be a percentage", "use a number from 0 to 100")
    return float(value)


def _choice(*known: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in known:
            raise _Wrong(f"must be {' or '.join(known)}", "write one of them")
        return str(value)

    return read


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _Wrong("must be a whole number", f"use a number from {least} to {most}")
        return value

    return read


def _seconds(least: float, most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _Wrong("must be a number of seconds", f"use a number from {least:g} to {most:g}")
        return float(value)

    return read


_KEYS: dict[str, Callable[[object], Any]] = {
    "node": _node,
    "runDir": _path,
    "keyDir": _path,
    "stateDir": _path,
    "workers": _whole(0, 256),
    "accessLog": _bool,
    "accessLogFormat": _choice("json", "text"),
    "requestIds": _bool,
    "logLevel": _level,
    "holdSeconds": _seconds(0, 300),
    "connectSeconds": _seconds(0.1, 300),
    "drainSeconds": _seconds(0, 3600),
    "undoOnStop": _bool,
    "metricsAddress": _bind,
    "readyAddress": _bind,
}
_GROUPS: dict[str, dict[str, Callable[[object], Any]]] = {
    "controller": {"address": _address, "tokenFile": _path, "rootFile": _path},
    "kubernetes": {"cniBinDir": _path, "cniConfDir": _path, "cniStateDir": _path},
    "tracing": {"endpoint": _url, "sampling": _percent},
}
"""Keys that hold keys of their own."""


def load(path: Path, *, node: str | None = None, controller: str | None = None) -> Config:
    """Read and check `path`; raise `ConfigError` with everything that is wrong.

    `node` and `controller` (an address), if given, take the place of what the file says: one file serves all nodes.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        remedy = "check the path given with --config and that it can be read"
        raise ConfigError([Problem(str(path), 1, "", f"cannot be read: {reason}", remedy)]) from error
    return parse(str(path), text, node=node, controller=controller)


def parse(file: str, text: str, *, node: str | None = None, controller: str | None = None) -> Config:
    """Check `text`, which errors will say is `file`. See `load`."""
    given: dict[str, Any] = {}
    for option, key, value, read in (
        ("--node", "node", node, _node),
        ("--controller", "controllerAddress", controller, _address),
    ):
        if value is not None:
            try:
                given[key] = read(value)
            except _Wrong as error:
                raise ConfigError([Problem(option, 1, value[:200], error.message, error.remedy)]) from error
    return _Reading(file, text).config(given)


class _Reading:
    """One pass over one file, gathering problems."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._text = file, text
        self._lines = text.splitlines()
        self._problems: list[Problem] = []

    def _wrong(self, line: int, message: str, remedy: str) -> None:
        shown = self._lines[line].rstrip() if line < len(self._lines) else ""
        self._problems.append(Problem(self._file, line + 1, shown[:200], message, remedy))

    def config(self, given: dict[str, Any]) -> Config:
        values: dict[str, Any] = {}
        try:
            root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line if error.problem_mark else 0
            self._wrong(line, f"is not YAML: {error.problem}", "check indentation, colons and quotes on this line")
        except yaml.YAMLError as error:
            self._wrong(0, f"is not YAML: {error}", "save it as UTF-8 text without control characters")
        else:
            self._mapping(root, _KEYS, "", values)
            values.update(given)
            for key, example in (
                ("node", "node: <this host's name>"),
                ("controllerAddress", "controller: {address: …}"),
            ):
                if key not in values and not self._problems:
                    self._wrong(0, f"{key.removesuffix('Address')!r} is missing", f"add the line `{example}`")
        if self._problems:
            raise ConfigError(self._problems)
        return Config(**{_snake(key): value for key, value in values.items()})

    def _mapping(self, node: yaml.Node | None, keys: dict[str, Any], parent: str, into: dict[str, Any]) -> None:
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line if node else 0
            what = f"{parent or 'the file'} must hold `key: value` pairs"
            self._wrong(line, what, "see the commented example in deploy/ or the documentation")
            return
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line
            name = f"{parent}.{key}" if parent else key
            if key in seen:
                self._wrong(line, f"{name} is given twice", "keep one of the two lines")
            seen.add(key)
            if not parent and key in _GROUPS:
                self._mapping(value_node, _GROUPS[key], key, into)
                if key == "kubernetes":
                    into[key] = True
            elif key not in keys:
                known = sorted(keys) if parent else sorted([*keys, *_GROUPS])
                near = [one for one in known if one.lower() == key.lower()] or difflib.get_close_matches(key, known, 1)
                remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
                self._wrong(line, f"unknown key {name!r}", remedy)
            else:
                self._value(name, value_node, keys[key], into)

    def _value(self, name: str, node: yaml.Node, read: Callable[[object], Any], into: dict[str, Any]) -> None:
        loader = yaml.SafeLoader("")
        try:
            value = loader.construct_object(node, deep=True)
            into[_joined(*name.split("."))] = read(value)
        except _Wrong as error:
            self._wrong(node.start_mark.line, f"{name}: {error.message}, not {value!r:.80}", error.remedy)
        except yaml.YAMLError:
            self._wrong(node.start_mark.line, f"{name}: tag not allowed here", "write a plain value")
        finally:
            loader.dispose()


def _joined(head: str, *rest: str) -> str:
    return head + "".join(part[0].upper() + part[1:] for part in rest)


def _snake(key: str) -> str:
    return re.sub(r"([A-Z])", lambda match: "_" + match[1].lower(), key)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
