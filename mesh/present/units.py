"""Times, durations, sizes and counts as people read and type them."""

from __future__ import annotations

import datetime
import re
from itertools import pairwise

_AGES = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def age(seconds: float) -> str:
    """A duration in its two largest units: `42s`, `5m30s`, `3h20m`, `12d4h`; negative ones as 0s."""
    left = max(0, int(seconds))
    for (unit, name), (lower, lower_name) in pairwise(_AGES):
        if left >= unit:
            rest = left % unit // lower
            return f"{left // unit}{name}" + (f"{rest}{lower_name}" if rest else "")
    return f"{left}s"


def ago(then: float | str, now: float) -> str:
    """How long ago `then` (Unix seconds, or a Kubernetes timestamp) was; `""` for 0, never."""
    return age(now - _seconds(then)) if then else ""


def until(then: float | str, now: float) -> str:
    """How long until `then`, or `3m ago`; `""` for 0, never."""
    if not then:
        return ""
    left = _seconds(then) - now
    return age(left) if left >= 0 else f"{age(-left)} ago"


def stamp(then: float | str, now: float = 0) -> str:
    """`then` as RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(_seconds(then), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """A duration as people type it (`90`, `30s`, `5m`, `24h`, `7d`) in seconds; raise `ValueError` for another."""
    if not (match := re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)):
        raise ValueError(f"{text!r} is not a duration: write 30s, 5m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def _seconds(then: float | str) -> float:
    return datetime.datetime.fromisoformat(then).timestamp() if isinstance(then, str) else then


def size(octets: float, now: float = 0) -> str:
    """Bytes with a binary unit and three figures: `512B`, `1.50KiB`, `23.4MiB`."""
    if octets < 1024:
        return f"{octets:.0f}B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        octets /= 1024
        if octets < 1023.5 or unit == "PiB":
            break
    return f"{octets:.{2 if octets < 9.995 else 1 if octets < 99.95 else 0}f}{unit}"


def rate(octets: float, now: float = 0) -> str:
    """Bytes per second."""
    return size(octets) + "/s"


def per_second(number: float, now: float = 0) -> str:
    """A rate of events: three figures, `0.12`, `3.4`, `1200`."""
    return f"{number:.{2 if number < 1 else 1 if number < 100 else 0}f}"


def share(part: float, now: float = 0) -> str:
    """`99.95%`; 100% only if it is all of it."""
    return "100%" if part >= 1 else f"{min(part * 100, 99.99):.2f}%"


def milliseconds(duration: float, now: float = 0) -> str:
    """`0.4ms`, `12ms`, `1.20s`."""
    if duration < 999.5:
        return f"{duration:.{1 if duration < 9.95 else 0}f}ms"
    return f"{duration / 1000:.{2 if duration < 9995 else 0}f}s"


def count(number: int, noun: str) -> str:
    """`1 workload`, `2 workloads`, `3 policies`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
