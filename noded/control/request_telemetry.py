"""What the workers counted of requests: running sums for Prometheus, and deltas that the controller is still to get."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from mesh.request_counts import RequestCounts, RequestKey, RequestReport

MAX_SERIES = 1024
"""Sums kept, each of which is three histograms; the one that was quiet the longest goes first."""
MAX_UNSENT = 4096
REPORT_SERIES = 1024
"""In one `Report`."""


class RequestTelemetry:
    """Fed by `Telemetry`. Bounded as that is."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._max = max_series
        self._sums: OrderedDict[RequestKey, RequestCounts] = OrderedDict()
        self._unsent: OrderedDict[RequestKey, RequestCounts] = OrderedDict()
        self.evicted = 0
        """Sums that were dropped to stay within the bound."""
        self.unreported = 0
        """Deltas that were dropped before the controller could get them."""

    def add(self, reports: Iterable[RequestReport]) -> None:
        """Take in what a worker counted. Prometheus is not told of routes."""
        for report in reports:
            _accumulate(self._sums, replace(report.key, route=""), report.counts)
            _accumulate(self._unsent, report.key, report.counts.without_sizes())
        self._bound()

    def sums(self) -> list[tuple[RequestKey, RequestCounts]]:
        """Since this process started, a copy."""
        return list(self._sums.items())

    @property
    def waiting(self) -> bool:
        """Whether there is anything to `take`."""
        return bool(self._unsent)

    def take(self) -> tuple[RequestReport, ...]:
        """The next deltas for the controller; `give_back` those that could not be sent."""
        taken: list[RequestReport] = []
        while self._unsent and len(taken) < REPORT_SERIES:
            taken.append(RequestReport(*self._unsent.popitem(last=False)))
        return tuple(taken)

    def give_back(self, reports: Iterable[RequestReport]) -> None:
        """Keep these for the next `take`."""
        for report in reports:
            _accumulate(self._unsent, report.key, report.counts)
        self._bound()

    def _bound(self) -> None:
        while len(self._sums) > self._max:
            self._sums.popitem(last=False)
            self.evicted += 1
        while len(self._unsent) > MAX_UNSENT:
            self._unsent.popitem(last=False)
            self.unreported += 1


def _accumulate(into: OrderedDict[RequestKey, RequestCounts], key: RequestKey, counts: RequestCounts) -> None:
    known = into.get(key)
    into[key] = counts if known is None else known + counts
    into.move_to_end(key)
