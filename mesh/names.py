"""The forms of Kubernetes names (RFC 1123, in lower case)."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\Z")


def is_label(text: str) -> bool:
    """Whether it is a DNS label, as namespaces are."""
    return bool(_LABEL.match(text))


def is_subdomain(text: str) -> bool:
    """Whether it is a DNS subdomain, as nodes, service accounts and most objects are named."""
    return bool(_SUBDOMAIN.match(text))
