"""Logging for the daemon's processes: the standard library's, one JSON object per line on standard error."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from noded.sink import SinkHandler

LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "pid", ...}`; whatever was passed as `extra` becomes further fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, no newline at its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start(level: str) -> None:
    """Send every record of at least `level` (one of `LEVELS`) to standard error. Call once, first thing."""
    handler = SinkHandler(2)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Change the level at run time."""
    logging.getLogger().setLevel(level.upper())
    for noisy in ("pyroute2", "hypercorn", "hpack"):  # hpack would write whole header blocks
        logging.getLogger(noisy).setLevel(logging.WARNING)
