"""The forms that names, labels and addresses must have, as annotated types for the models."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

from controller.schema.strict import wrong
from mesh.names import is_label, is_subdomain

_LABEL_KEY = re.compile(
    r"((?=.{1,253}/)[a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?\Z")


def canonical(text: str) -> str:
    """An address as `mesh.model` writes it. Raises `ValueError` for what cannot be a workload's or service's."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise ValueError(f"{text} has a scope")
        address = address.ipv4_mapped or address
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise ValueError(f"{text} is not an address that others can reach")
    return str(address)


def _label(text: str) -> str:
    if not is_label(text):
        raise wrong(f"{text!r} is not a valid name", "use at most 63 lower-case letters, digits and '-'")
    return text


def _subdomain(text: str) -> str:
    if not is_subdomain(text):
        raise wrong(f"{text!r} is not a valid name", "use lower-case letters, digits, '-' and '.'")
    return text


def _label_key(text: str) -> str:
    if not _LABEL_KEY.match(text):
        raise wrong(
            f"{text!r} is not a valid label key", "use letters, digits, '-', '_' and '.', after an optional prefix/"
        )
    return text


def _label_value(text: str) -> str:
    if not _LABEL_VALUE.match(text):
        remedy = "a selector matches whole values only" if "*" in text else "use letters, digits, '-', '_' and '.'"
        raise wrong(f"{text!r} is not a valid label value", remedy)
    return text


def _address(text: str) -> str:
    try:
        canonical(text)
    except ValueError as error:
        remedy = "write one address, not a range" if "/" in text else "write it as 10.77.1.2 or fd00::2"
        raise wrong(f"not a usable IP address: {error}", remedy) from error
    return text


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise wrong(f"{number} is not a port", "use a number from 1 to 65535")
    return number


Label = Annotated[str, AfterValidator(_label)]
Subdomain = Annotated[str, AfterValidator(_subdomain)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Labels = dict[Annotated[str, AfterValidator(_label_key)], LabelValue]
Address = Annotated[str, AfterValidator(_address)]
Port = Annotated[int, AfterValidator(_port)]
