from __future__ import annotations

import ctypes
from typing import Any

import pytest
from iptc import XTablesError
from iptc.xtables import NFPROTO_IPV4, NFPROTO_IPV6, xt_option_entry, xtables

from redirect import extensions


class Entry(ctypes.Structure):
    _fields_ = xt_option_entry._fields_


class GrownEntry(ctypes.Structure):
    """As iptables 1.8.11 has it."""

    _fields_ = [*xt_option_entry._fields_, ("base", ctypes.c_uint)]


def table(kind: type[ctypes.Structure], *names: bytes) -> Any:
    made = (kind * (len(names) + 1))()
    for number, name in enumerate(names):
        made[number].name, made[number].id = name, number
    return ctypes.cast(made, ctypes.POINTER(xt_option_entry))


@pytest.mark.parametrize("kind", [Entry, GrownEntry])
def test_every_option_is_found_whatever_the_entrys_size(kind: type[ctypes.Structure]) -> None:
    made = table(kind, b"ctstate", b"ctproto", b"ctdir")
    size = extensions.entry_size(made)
    assert size == ctypes.sizeof(kind)
    assert [(entry.name, entry.id) for entry in extensions.entries(made, size)] == [
        (b"ctstate", 0),
        (b"ctproto", 1),
        (b"ctdir", 2),
    ]


def test_a_layout_that_cannot_be_made_out_is_an_error() -> None:
    padded = type(
        "Padded", (ctypes.Structure,), {"_fields_": [*xt_option_entry._fields_, ("more", ctypes.c_char * 200)]}
    )
    with pytest.raises(XTablesError, match="not known"):
        extensions.entry_size(table(padded, b"ctstate", b"ctproto"))


@pytest.mark.parametrize("family", [NFPROTO_IPV4, NFPROTO_IPV6])
def test_this_machines_conntrack_has_all_its_options(family: int) -> None:
    extensions.adapt()
    library = xtables(family)
    options = library.find_match("conntrack")[0].x6_options
    assert library._option_lookup(options, b"ctdir").name == b"ctdir"
    assert library._option_lookup(options, b"ctstate").name == b"ctstate"
    assert library._option_lookup(options, b"nothing") is None


def test_an_option_that_must_be_given_is_asked_for() -> None:
    extensions.adapt()
    library = xtables(NFPROTO_IPV4)
    mark = library.find_match("mark")[0]
    with pytest.raises(XTablesError, match="mark: --mark must be specified"):
        library._options_fcheck(b"mark", 0, mark.x6_options)
    library._options_fcheck(b"mark", 1, mark.x6_options)
