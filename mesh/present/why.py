"""Explanations of verdicts and routes, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mesh.present.table import Row, clean
from mesh.present.units import stamp

_MOST = 5
"""Rules or matches that are listed; `-o json` has all."""


def verdict_lines(why: Row) -> Iterator[str]:
    """How a verdict came about, and what would turn it round."""
    allowed = bool(why.get("allowed"))
    yield clean(f"{'allowed' if allowed else 'denied'}: {why.get('reason', '')}{_by(why)}")
    yield from _token(why.get("token"))
    asks: Sequence[Row] = why.get("asks", ())
    for ask in asks:
        yield clean(f"  asked first: {ask['provider']}, by CUSTOM {ask['policy']} rule {ask['rule']}: it may say no")
    every: Sequence[Row] = [step for step in why.get("steps", ()) if not step.get("dry_run")]
    steps = [step for step in every if step.get("action") in ("DENY", "ALLOW") or step.get("decided")]
    decided = next((step for step in steps if step.get("decided")), None)
    if decided is not None:
        rule = decided["rules"][decided["matched"]]
        yield clean(f"  decided by {decided['action']} {decided['policy']} rule {rule['rule']}")
        yield from (f"    {_clause(clause)}" for clause in rule["clauses"])
    yield from _missed([step for step in steps if step["matched"] < 0], why.get("nearest"))
    for text in why.get("dry_run", ()):
        yield clean(f"  rehearsed: {text}")
    if not any(ask["policy"] == why.get("policy") for ask in asks):
        yield from _flips(why.get("flips", ()), allowed)


def _token(token: Row | None) -> Iterator[str]:
    if not token or not token["tried"]:
        return
    if not token["problem"]:
        parts = [f"issuer {token['issuer']!r}", f"subject {token['subject']!r}"]
        parts += [f"audiences {', '.join(token['audiences'])}"] if token["audiences"] else []
        parts += [f"expires {stamp(token['expires'])}"] if token["expires"] else []
        parts += [f"signed {token['algorithm']}" + (f" by key {token['key_id']!r}" if token["key_id"] else "")]
        yield clean(f"  token: {', '.join(parts)}")
    for one in token["tried"]:
        audiences = f", audiences {', '.join(one['audiences'])}" if one["audiences"] else ""
        said = ": ".join(part for part in (one["problem"] or "valid", one["detail"]) if part)
        yield clean(f"    {one['policy']} rule {one['rule']} (issuer {one['issuer']}{audiences}): {said}")


def _by(why: Row) -> str:
    if not why.get("policy"):
        return ""
    return f": {why['policy']}" + (f" rule {why['rule']}" if why.get("rule", -1) >= 0 else "")


def _missed(steps: Sequence[Row], nearest: Row | None) -> Iterator[str]:
    """The rules that did not match, those that came closest first."""
    every = [(step, rule) for step in steps for rule in step["rules"]]
    every.sort(key=lambda one: len(one[1]["missed"]))
    if nearest:
        every.sort(key=lambda one: (one[0]["policy"], one[1]["rule"]) != (nearest["policy"], nearest["rule"]))
    for step, rule in every[:_MOST]:
        yield clean(f"  no match: {step['action']} {step['policy']} rule {rule['rule']}")
        yield from (f"    {_clause(clause)}" for clause in rule["missed"])
    for step in steps:
        if not step["rules"]:
            yield clean(f"  no match: {step['action']} {step['policy']} has no rules")
    if len(every) > _MOST:
        yield f"  and {len(every) - _MOST} more rules that do not match (-o json has all)"


def _clause(clause: Row) -> str:
    name = " ".join(part for part in (clause["place"], clause["name"]) if part)
    if clause["problem"]:
        return clean(f"{name} {clause['problem']}")
    among = bool(clause["met"]) is not bool(clause["negated"])
    value = repr(clause["value"]) if clause["value"] else "absent"
    return clean(f"{name}: {value} is {_among(clause['wanted'], among)}")


def _among(wanted: Sequence[str], among: bool) -> str:
    values = ", ".join(wanted)
    if len(wanted) == 1:
        like = f"like {values}" if "*" in values else values
        return like if among else f"not {like}"
    return f"one of {values}" if among else f"none of {values}"


def _flips(flips: Sequence[Row], allowed: bool) -> Iterator[str]:
    other = "denied" if allowed else "allowed"
    if not flips:
        yield f"  nothing about the request or its client would make it {other}: only another policy"
    for flip in flips:
        by = _by(flip).replace(": ", " by ", 1)
        yield clean(f"  would be {other}{by} if {' and '.join(_change(one) for one in flip['changes'])}")


def _change(change: Row) -> str:
    what, to, wanted = change["what"], change["to"], change["wanted"]
    if change["clause"] == "mutual TLS":
        return f"it came by mutual TLS, e.g. as {to}" if change["among"] else "it came in plaintext"
    if not to:
        return f"there were no {what}"
    if what == "token" and change["clause"]:
        what = f"the token's {change['clause']}"
    example = "" if [to] == list(wanted) else f", e.g. {to}"
    return f"{what} were {_among(wanted, bool(change['among']))}{example}"


def route_lines(why: Row) -> Iterator[str]:
    """Which way a request goes, and what stood against the more specific ones."""
    steps: Sequence[Row] = why.get("steps", ())
    if not steps:
        yield "no route holds for this client: the request goes to the service itself"
    elif why.get("route"):
        name = f" ({why['rule_name']})" if why.get("rule_name") else ""
        yield clean(f"routed by {why['route']} rule {why['rule']}{name}")
        taken = next(index for index, step in enumerate(steps) if step["taken"])
        yield from (f"    {_match(clause)}" for clause in steps[taken]["clauses"])
        steps = steps[:taken]
    else:
        yield "no route matches: the answer is 404 (flag NR)"
    for backend in why.get("backends", ()):
        problem = f": {backend['invalid']}, answered with 500" if backend["invalid"] else ""
        yield clean(f"  to {backend['service']} ({backend['share']:.0%}){problem}")
    for text in why.get("does", ()):
        yield clean(f"  {text}")
    yield from _not_taken(steps, "more specific, but no match" if why.get("route") else "no match")
    for one in why.get("aside", ()):
        yield clean(f"  not considered: {one['route']}: {one['reason']}")


def version_lines(versions: Sequence[Row]) -> Iterator[str]:
    """How what comes to services is split among versions."""
    service = None
    for one in versions:
        if one["service"] != service:
            service = one["service"]
            yield clean(f"{service} is split by TrafficPolicy {one['policy']}")
        count = one["endpoints"]
        there = f"{count} endpoint{'s' if count != 1 else ''}" if count else "no endpoint"
        yield clean(f"  version {one['version']}: {one['share'] * 100:.3g}%, {there}")


def _not_taken(steps: Sequence[Row], how: str) -> Iterator[str]:
    """Matches that were missed, those that came closest first, in their order else."""
    closest = sorted(steps, key=lambda step: sum(not clause["met"] for clause in step["clauses"]))
    for step in closest[:_MOST]:
        missed = "; ".join(_match(clause) for clause in step["clauses"] if not clause["met"])
        yield clean(f"  {how}: {step['route']} rule {step['rule']}: {missed}")
    if len(closest) > _MOST:
        yield f"  and {len(closest) - _MOST} more that do not match (-o json has all)"


def _match(clause: Row) -> str:
    value: Any = repr(clause["value"]) if clause["value"] else "absent"
    if clause["problem"]:
        return clean(f"{clause['name']}: the pattern {clause['wanted']} cannot be read: {clause['problem']}")
    like = {"Exact": "", "PathPrefix": "below ", "RegularExpression": "like "}[clause["compare"]]
    return clean(f"{clause['name']}: {value} is {'' if clause['met'] else 'not '}{like}{clause['wanted']}")
