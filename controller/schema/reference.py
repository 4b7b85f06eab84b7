"""The reference page of our kinds on Kubernetes, from their definitions.

`python -m controller.schema.reference docs/reference/custom-resources.md` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controller.schema.crds import GROUP, definitions

_HEAD = """# Custom resources

Generated: `python -m controller.schema.reference docs/reference/custom-resources.md`

The kinds that `meshctl install` adds to a cluster, as its API has them (`kubectl explain` says the same).
[Resources](resources.md) says what the controller checks beyond these types, and what it does with each field. `[]` is
a list and `{}` a map.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *(line for definition in definitions().values() for line in _kind(definition))])


def _kind(definition: dict[str, Any]) -> Iterator[str]:
    names, (version,) = definition["spec"]["names"], definition["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    short = ", ".join(f"`{name}`" for name in (names["plural"], *names["shortNames"]))
    yield f"## {names['kind']}\n"
    yield f"{schema['description']}\n"
    yield f"`apiVersion: {GROUP}/{version['name']}`. For kubectl {short}; all kinds are `nodemesh`.\n"
    yield from ("| field | type | what |", "|---|---|---|")
    for part in ("spec", "status"):
        for path, field in _fields(part, schema["properties"][part]):
            yield f"| `{path}` | {_type(field)} | {_cell(field.get('description', ''))} |"
    yield "\n| column | shows |\n|---|---|"
    for column in version["additionalPrinterColumns"]:
        wide = " (`-o wide`)" if column.get("priority") else ""
        yield f"| `{column['name'].upper()}`{wide} | {_cell(column.get('description', 'Since when it is there.'))} |"
    yield ""


def _fields(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is in an object, by path, outer ones first."""
    for name, field in schema.get("properties", {}).items():
        inner, suffix = field, ""
        while "items" in inner or "additionalProperties" in inner:
            suffix += "[]" if "items" in inner else "{}"
            inner = inner["items"] if "items" in inner else inner["additionalProperties"]
        required = {"needed": True} if name in schema.get("required", ()) else {}
        yield f"{path}.{name}{suffix}", {**inner, **field, "of": inner, **required}
        yield from _fields(f"{path}.{name}{suffix}", inner)


def _type(field: dict[str, Any]) -> str:
    inner = field["of"]
    kind = ", ".join(f"`{value}`" for value in inner["enum"]) if "enum" in inner else inner.get("type", "any")
    if "x-kubernetes-int-or-string" in inner:
        kind = "integer or string"
    if "minimum" in inner:
        least, most = inner["minimum"], inner.get("maximum")
        kind += f", at least {least}" if most is None else f", {least} to {most}"
    return kind + (", required" if field.get("needed") else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
