"""Durations and shares as people write them: `10s`, `1h30m`, `250ms`; `20` or `20%`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from controller.schema.strict import wrong

_DURATION = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}\Z")
_PART = re.compile(r"([0-9]+)(h|ms|m|s)")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_SHARE = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%\Z")
WHOLE = 10_000
"""Parts in all of something."""


def seconds(text: str | None, default: float = 0.0) -> float:
    """A checked duration; `default` where there is none."""
    if text is None:
        return default
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in _PART.findall(text)) / 1000


def share(value: int | str | None, default: int = WHOLE) -> int:
    """A checked share in parts of 10,000; `default` where there is none."""
    if value is None:
        return default
    if isinstance(value, int):
        return value * 100
    whole, fraction = _SHARE.match(value).groups()  # type: ignore[union-attr]  # checked when it was read
    return int(whole) * 100 + int((fraction or "").ljust(2, "0"))


def _duration(text: Any) -> Any:
    if text is not None and not (isinstance(text, str) and _DURATION.match(text)):
        raise wrong(f"{text!r} is not a duration", "write it as 10s, 250ms or 1h30m: whole numbers with h, m, s or ms")
    return text


def _some(text: Any) -> Any:
    if _duration(text) is not None and not seconds(text):
        raise wrong(f"{text!r} is no time at all", "leave the field out to have none")
    return text


def _share(value: Any) -> Any:
    if value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong(f"{value!r} is not a percentage", 'write 20 or "20%"')
    if isinstance(value, str) and not _SHARE.match(value):
        raise wrong(f"{value!r} is not a percentage", 'write 20, "20%" or "0.5%"')
    if not 0 <= share(value) <= WHOLE:
        raise wrong(f"{value!r} is not a percentage", "it must be between 0 and 100")
    return value


Duration = Annotated[str, BeforeValidator(_duration)]
"""As Gateway API has them (GEP-2257); 0s is one."""
Time = Annotated[str, BeforeValidator(_some)]
"""A duration that is longer than nothing."""
Percentage = Annotated[Any, BeforeValidator(_share), WithJsonSchema({"x-kubernetes-int-or-string": True})]
