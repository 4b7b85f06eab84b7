"""How a workload's traffic reaches `noded`: facts in, rules out (`plan`), then `apply`, `verify` and `undo` them.

`Capture` is loaded when it is first asked for: the workers import `redirect.netns`, and must not pay for
python-iptables and pyroute2 (36 MB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redirect.capture import Capture

__all__ = ["Capture"]


def __getattr__(name: str) -> object:
    if name == "Capture":
        from redirect.capture import Capture

        return Capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
