"""Whether this host can capture at all: asked by `noded` when it starts, so that the answer is one clear error.

Reading /proc and guessing at modules says little (they load on demand, and their names differ between kernels), so this
does the real thing in a namespace of its own, which vanishes with its descriptor: the whole plan, listeners, read back.
"""

from __future__ import annotations

import contextlib
import os

from redirect.netns import NamespaceError, inside, listener, new_netns
from redirect.plan import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, Family, Plan, Rule

_OPTIONS = {
    "TPROXY": "CONFIG_NETFILTER_XT_TARGET_TPROXY (`modprobe xt_TPROXY`)",
    "CONNMARK": "CONFIG_NETFILTER_XT_CONNMARK (`modprobe xt_connmark`)",
    "connmark": "CONFIG_NETFILTER_XT_CONNMARK (`modprobe xt_connmark`)",
    "MARK": "CONFIG_NETFILTER_XT_MARK (`modprobe xt_mark`)",
    "mark": "CONFIG_NETFILTER_XT_MARK (`modprobe xt_mark`)",
    "conntrack": "CONFIG_NETFILTER_XT_MATCH_CONNTRACK (`modprobe xt_conntrack`)",
}
_MODULES = {Family.IPV4: "iptable_mangle", Family.IPV6: "ip6table_mangle"}


class UnfitHostError(Exception):
    """The host lacks something that capture needs. The message says what, and how to get it."""


def check() -> None:
    """Return if capture works here. Blocks for some 50 ms: call it with `redirect.thread.run`.

    Raises `UnfitHostError`.
    """
    try:
        from redirect import capture, routes, tables
    except Exception as error:  # python-iptables finds its C libraries on import, and fails in ways of its own
        raise UnfitHostError(
            f"python-iptables doesn't load: {error}; install iptables (Debian: `apt install iptables`), "
            "or set XTABLES_LIBDIR to the folder that holds libxt_TPROXY.so"
        ) from error
    try:
        scratch = new_netns()
    except NamespaceError as error:
        raise UnfitHostError(f"{error}; run noded as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN") from error
    try:
        trial = capture.Capture(f"/proc/self/fd/{scratch}", capture.new_mark())
        with inside(scratch):
            routes.raise_loopback()
        try:
            trial.apply()
        except capture.CaptureError as error:
            with inside(scratch):
                raise UnfitHostError(_diagnosis(trial.plan(), error)) from error
        if drift := trial.verify():
            raise UnfitHostError(f"the kernel took the rules, but shows others: {drift[0]}; please report this")
        _check_listeners(scratch)
        trial.undo()
    except (capture.CaptureError, routes.RouteError, tables.TableError, NamespaceError) as error:
        raise UnfitHostError(f"capture doesn't work on this host: {error}") from error
    finally:
        os.close(scratch)


def _check_listeners(netns: int) -> None:
    for port in (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT):
        try:
            listener(netns, port).close()
        except OSError as error:
            raise UnfitHostError(
                f"no transparent listener on port {port}: {error}; noded needs CAP_NET_ADMIN"
            ) from error


def _diagnosis(wanted: Plan, failure: Exception) -> str:
    """Find what the kernel refuses by offering it one rule at a time. Called inside the namespace of the trial."""
    from redirect import tables

    for family in wanted.families:
        try:
            tables.read(family)
        except tables.TableError as error:
            return (
                f"no {family.value} mangle table: {error}; `modprobe {_MODULES[family]}`, or a kernel with "
                "CONFIG_NETFILTER_XTABLES_LEGACY"
                + (" (or boot with ipv6.disable=1 if nothing here uses IPv6)" if family is Family.IPV6 else "")
            )
        for rule in wanted.rules:
            try:
                tables.write(family, Plan((family,), (rule,), (), ()))
            except tables.TableError as error:
                return f"the kernel refuses a rule for {family.value}: {error}; it needs {_needs(rule)}"
            finally:
                with contextlib.suppress(tables.TableError):
                    tables.write(family, Plan((family,), (), (), ()))
    return f"{failure}; policy routing needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"


def _needs(rule: Rule) -> str:
    extensions = (rule.target, *(match.name for match in rule.matches))
    return " and ".join(dict.fromkeys(_OPTIONS[name] for name in extensions if name in _OPTIONS))
