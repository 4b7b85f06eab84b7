"""A filter on the host's end of a pod's veth: a packet from a probe's source gets in only if the host itself sent it.

Rules in iptables can't promise that. Frames between two pods on one bridge needn't pass them at all (br_netfilter), and
where they do, a frame tagged with VLAN 0 passes unseen and is delivered as if it had no tag. So each packet that is
about to enter the pod is looked at, by a classifier on the veth's egress (clsact, `man 8 tc-bpf`): with a probe's
source it must have `PROBE_MARK`, which only the host's own namespace can put on a packet (marks don't survive the way
from one namespace into another). Tagged frames are dropped: nothing on a veth has a use for them.

The filter is classic BPF, so that it needs neither CAP_BPF nor a compiler. It dies with the veth.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import Any

from pyroute2 import IPRoute

from redirect.netns import inside
from redirect.plan import PROBE_SOURCES, Family

PROBE_MARK, PROBE_MASK = 0x117, 0xFFF
"""Mark of packet and connection in the host's namespace; kube-proxy's and most CNI plug-ins' bits are others."""

_PRIORITY, _HANDLE = 7, 0x4E4D
_CLSACT, _CLSACT_PARENT, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF3
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER, _RTM_GETNSID = 36, 37, 44, 45, 46, 90
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_OPS_LEN, _TCA_BPF_OPS, _TCA_BPF_FLAGS, _ACT_DIRECT = 4, 5, 8, 1
_NETNSA_NSID, _NETNSA_FD = 1, 3
_HEADER, _TCMSG = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII")
_INFO = _PRIORITY << 16 | socket.htons(0x0003)

# linux/filter.h; offsets below 0 are relative to the network header, or ancillary
_NET, _ANCILLARY = 0xFFF00000, 0xFFFFF000
_PROTOCOL, _MARK, _TAGGED = _ANCILLARY, _ANCILLARY + 20, _ANCILLARY + 48
_LOAD, _AND, _IF, _RETURN = 0x20, 0x54, 0x15, 0x06
_ETH_IPV4, _ETH_IPV6, _ETH_TAGS = 0x0800, 0x86DD, (0x8100, 0x88A8)
_PASS, _DROP = 0xFFFFFFFF, 2
"""TC_ACT_UNSPEC (other filters may have a say) and TC_ACT_SHOT."""


def host_ends(netns: int) -> dict[str, int]:
    """For each veth in a pod's namespace, whose other end is in the caller's: name in the pod, index out here."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(netns), IPRoute() as netlink:
            known = _namespace_id(here)
            found = {}
            for link in netlink.get_links():
                if _is_veth(link) and known >= 0 and link.get_attr("IFLA_LINK_NETNSID") == known:
                    found[str(link.get_attr("IFLA_IFNAME"))] = int(link.get_attr("IFLA_LINK"))
            return found
    finally:
        os.close(here)


def veths() -> tuple[int, ...]:
    """Every veth of the thread's namespace."""
    with IPRoute() as netlink:
        return tuple(link["index"] for link in netlink.get_links() if _is_veth(link))


def _is_veth(link: Any) -> bool:
    about = link.get_attr("IFLA_LINKINFO")
    return about is not None and about.get_attr("IFLA_INFO_KIND") == "veth"


def put(index: int) -> None:
    """Have the filter on the interface's egress. Raises `OSError`."""
    try:
        _ask(_RTM_NEWQDISC, _NLM_F_CREATE | _NLM_F_EXCL, _tc(index, _CLSACT, _CLSACT_PARENT, 0, "clsact"))
    except FileExistsError:
        pass  # other software's filters are welcome beside ours
    program = b"".join(struct.pack("=HBBI", *step) for step in _program())
    options = (
        _attribute(_TCA_BPF_OPS_LEN, struct.pack("=H", len(program) // 8))
        + _attribute(_TCA_BPF_OPS, program)
        + _attribute(_TCA_BPF_FLAGS, struct.pack("=I", _ACT_DIRECT))
    )
    _ask(_RTM_NEWTFILTER, _NLM_F_CREATE, _tc(index, _HANDLE, _EGRESS, _INFO, "bpf", options))


def there(index: int) -> bool:
    """Whether the filter is where `put` puts it."""
    return any(handle == _HANDLE for handle in _filters(index, _EGRESS))


def remove(index: int) -> None:
    """Take the filter away, and what held it if nobody else has a filter there. Nothing happens if it isn't there."""
    try:
        _ask(_RTM_DELTFILTER, 0, _tc(index, _HANDLE, _EGRESS, _INFO, "bpf"))
        if not _filters(index, _EGRESS) and not _filters(index, _EGRESS - 1):
            _ask(_RTM_DELQDISC, 0, _tc(index, _CLSACT, _CLSACT_PARENT, 0, "clsact"))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def _program() -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, operand)."""
    v4 = int(ipaddress.ip_address(PROBE_SOURCES[Family.IPV4]))
    v6 = int(ipaddress.ip_address(PROBE_SOURCES[Family.IPV6]))
    words = [v6 >> shift & 0xFFFFFFFF for shift in (96, 64, 32, 0)]
    steps: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _TAGGED),
        (_IF, 0, "drop", 0),
        (_LOAD, 0, 0, _PROTOCOL),
        (_IF, "drop", 0, _ETH_TAGS[0]),
        (_IF, "drop", 0, _ETH_TAGS[1]),
        (_IF, "v6", 0, _ETH_IPV6),
        (_IF, 0, "pass", _ETH_IPV4),
        (_LOAD, 0, 0, _NET + 12),
        (_IF, "mark", "pass", v4),
    ]
    labels = {"v6": len(steps)}
    for number, word in enumerate(words):
        steps += [(_LOAD, 0, 0, _NET + 8 + 4 * number), (_IF, 0, "pass", word)]
    labels["mark"] = len(steps)
    steps += [(_LOAD, 0, 0, _MARK), (_AND, 0, 0, PROBE_MASK), (_IF, "pass", "drop", PROBE_MARK)]
    labels |= {"pass": len(steps), "drop": len(steps) + 1}
    steps += [(_RETURN, 0, 0, _PASS), (_RETURN, 0, 0, _DROP)]

    def distance(at: int, to: int | str) -> int:
        return labels[to] - at - 1 if isinstance(to, str) else to

    return [(code, distance(at, yes), distance(at, no), k) for at, (code, yes, no, k) in enumerate(steps)]


def _filters(index: int, parent: int) -> list[int]:
    """Handles of the filters on one side of an interface."""
    answers = _ask(_RTM_GETTFILTER, _NLM_F_DUMP, _TCMSG.pack(0, index, 0, parent, 0))
    return [handle for _, _, handle, _, _ in map(_TCMSG.unpack_from, answers) if handle]


def _namespace_id(fd: int) -> int:
    """By which id the caller's namespace knows the one behind `fd`; below 0 if by none."""
    for answer in _ask(_RTM_GETNSID, 0, b"\0\0\0\0" + _attribute(_NETNSA_FD, struct.pack("=I", fd))):
        at = 4
        while at + 4 <= len(answer):
            length, kind = struct.unpack_from("=HH", answer, at)
            if kind == _NETNSA_NSID:
                return int(struct.unpack_from("=i", answer, at + 4)[0])
            at += max(4, length + 3 & ~3)
    return -1


def _tc(index: int, handle: int, parent: int, info: int, kind: str, options: bytes = b"") -> bytes:
    body = _TCMSG.pack(0, index, handle, parent, info) + _attribute(_TCA_KIND, kind.encode() + b"\0")
    return body + (_attribute(_TCA_OPTIONS, options) if options else b"")


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _ask(kind: int, flags: int, body: bytes) -> list[bytes]:
    """One request over rtnetlink in the thread's namespace; the bodies of what comes back. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(5)
        head = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
        sock.send(head + body)
        found: list[bytes] = []
        while True:
            data, at = sock.recv(65536), 0
            while at < len(data):
                length, answer, *_ = _HEADER.unpack_from(data, at)
                content = data[at + _HEADER.size : at + length]
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return found
                found.append(content)
                at += length + 3 & ~3
