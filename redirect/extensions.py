"""The option tables of libxtables' extensions, walked by the entry size that the library has.

iptables 1.8.11 (Debian 13) gave `struct xt_option_entry` one more field and kept the library's soname. python-iptables
declares the size of before, so it finds the first option of each extension and takes what follows for the table's end:
"conntrack: no such parameter ctdir" (https://github.com/ldx/python-iptables/issues/353). The fields that it reads are
where they were; only the step from entry to entry is put right here, measured in a table that is always there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from iptc import XTablesError
from iptc.xtables import NFPROTO_IPV4, XTOPT_MAND, xt_option_entry, xtables

_KNOWN = "conntrack"
"""A match with many options; its first has zeros in whatever fields follow those that we know."""
_LARGEST = 128
_WORD = ctypes.sizeof(ctypes.c_void_p)


def adapt() -> None:
    """Make python-iptables walk option tables correctly. Call it once, before any rule is built or read.

    Raises `XTablesError` if the library's layout can't be made out.
    """
    known = xtables(NFPROTO_IPV4).find_match(_KNOWN)
    if not known:
        raise XTablesError(f"iptables' extension libxt_{_KNOWN}.so is missing")
    step = entry_size(known[0].x6_options)

    def lookup(_: object, table: Any, name: bytes) -> Any:
        return next((entry for entry in entries(table, step) if entry.name == name), None)

    def check(_: object, extension: bytes, given: int, table: Any) -> None:
        for entry in entries(table, step):
            if entry.flags & XTOPT_MAND and not given & 1 << entry.id:
                raise XTablesError(f"{extension.decode()}: --{entry.name.decode()} must be specified")

    xtables._option_lookup = lookup
    xtables._options_fcheck = check


def entry_size(table: Any) -> int:
    """The size in bytes of an entry of this table: where, after the first entry's known fields, the next name begins.

    The table needs two entries or more. Raises `XTablesError`.
    """
    first = ctypes.addressof(table.contents)
    for size in range(ctypes.sizeof(xt_option_entry), _LARGEST, _WORD):
        if ctypes.c_void_p.from_address(first + size).value:
            return size
    raise XTablesError("this version of libxtables lays out its options in a way that is not known")


def entries(table: Any, size: int) -> Iterator[Any]:
    """The entries of a table, in place, up to the one without a name that ends it."""
    address = ctypes.addressof(table.contents)
    while (entry := xt_option_entry.from_address(address)).name:
        yield entry
        address += size
