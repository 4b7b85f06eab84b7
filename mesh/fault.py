"""Which requests and connections are made to suffer, and how."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.message import Request
from mesh.route import compile_headers
from mesh.traffic import Fault

_WHOLE = 10_000


@dataclass(frozen=True, slots=True)
class Injection:
    """First wait, then answer without asking the backend."""

    delay: float = 0.0
    """Seconds; 0 for none."""
    abort: int = 0
    """The HTTP status of the answer; 0: the request goes on."""
    grpc_status: int = -1
    """gRPC's; -1: what the HTTP status stands for."""


@dataclass(frozen=True, slots=True)
class ConnectionFault:
    """What a connection that is not HTTP suffers: first it waits."""

    delay: float = 0.0
    reset: bool = False
    bandwidth: int = 0
    """Bytes a second each way; 0: no bound."""


def of_connection(fault: Fault, delay_roll: float, reset_roll: float, slow_roll: float) -> ConnectionFault | None:
    """What to do to a connection that is not HTTP. The rolls, uniform in [0, 1), decide independently."""
    if fault.headers:
        return None
    delayed = fault.delay > 0 and delay_roll * _WHOLE < fault.delay_share
    reset = reset_roll * _WHOLE < fault.reset_share
    slow = fault.bandwidth > 0 and slow_roll * _WHOLE < fault.bandwidth_share
    if not (delayed or reset or slow):
        return None
    return ConnectionFault(fault.delay if delayed else 0.0, reset, fault.bandwidth if slow else 0)


class FaultInjector:
    """A service's `Fault`, ready to be asked."""

    __slots__ = ("_both", "_fault", "_matches")

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._matches = compile_headers(fault.headers) if fault.headers else None
        self._both = Injection(fault.delay, fault.abort, fault.grpc_status)

    def choose(self, request: Request, delay_roll: float, abort_roll: float) -> Injection | None:
        """What to do to a request. The two rolls, uniform in [0, 1), decide on delay and abort independently."""
        fault = self._fault
        delayed = fault.delay > 0 and delay_roll * _WHOLE < fault.delay_share
        aborted = fault.abort > 0 and abort_roll * _WHOLE < fault.abort_share
        if not (delayed or aborted) or (self._matches and not self._matches(request)):
            return None
        if delayed and aborted:
            return self._both
        return Injection(fault.delay) if delayed else Injection(abort=fault.abort, grpc_status=fault.grpc_status)
