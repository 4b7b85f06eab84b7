"""docs/reference/configuration.md against what the daemons read."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from controller.config import Config as ControllerConfig
from noded.config import Config, ConfigError, parse
from tests.docs.pages import DOCS, spans, table

PAGE = DOCS / "reference/configuration.md"


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """By key: type and default."""
    rows = table(PAGE, heading)
    assert all(len(row) == 4 for row in rows)
    return {spans(row[0])[0]: (row[1], row[2].strip("`")) for row in rows}


def shown(value: Any) -> str:
    """A default as the page writes it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case None | []:
            return "none"
        case list():
            return ", ".join(map(str, value))
        case (str() as host, int() as port):
            return f"{host}:{port}"
    return str(value)


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def test_every_key_of_noded_yaml_is_described_with_its_default() -> None:
    keys = {}
    for field in fields(Config):
        if field.name == "kubernetes":
            continue  # whether any of its keys, or it alone, is there
        name = re.sub("^(controller|kubernetes|tracing)_(.)", lambda match: f"{match[1]}.{match[2]}", field.name)
        section, dot, rest = name.rpartition(".")
        keys[section + dot + camel(rest)] = "required" if field.default is MISSING else shown(field.default)
    assert {key: default for key, (_, default) in documented("## noded.yaml").items()} == keys


def test_every_key_of_controller_yaml_is_described_with_its_default() -> None:
    keys = {}
    for name, field in ControllerConfig.model_fields.items():
        default = "required" if field.default is PydanticUndefined else shown(field.default)
        keys[field.alias or name] = default
    assert {key: default for key, (_, default) in documented("## controller.yaml").items()} == keys


RANGES = [(key, kind) for key, (kind, _) in documented("## noded.yaml").items() if " to " in kind]


@pytest.mark.parametrize(("key", "kind"), RANGES)
def test_numbers_of_noded_yaml_have_the_range_that_is_described(key: str, kind: str) -> None:
    least, most = kind.split(" to ")

    section, _, name = key.rpartition(".")

    def text(value: object) -> str:
        return f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"

    def accepted(value: object) -> bool:
        try:
            parse("noded.yaml", f"node: a\ncontroller: {{address: 'c:1'}}\n{text(value)}\n")
        except ConfigError:
            return False
        return True

    assert [accepted(v) for v in (least, most, float(least) - 0.1, int(most) + 1)] == [True, True, False, False]


def test_certificate_life_has_the_range_that_is_described() -> None:
    kind, _ = documented("## controller.yaml")["workloadCertificateHours"]
    least, most = map(int, kind.split(" to "))
    for hours in (least, most):
        ControllerConfig.model_validate({"workloadCertificateHours": hours})
    for hours in (least - 1, most + 1):
        with pytest.raises(ValueError, match="workloadCertificateHours"):
            ControllerConfig.model_validate({"workloadCertificateHours": hours})


@pytest.mark.parametrize("page", ["how-to/plain-hosts.md"])
def test_example_files_are_accepted(page: str, tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    noded = [text for text in examples if text.startswith("node:")]
    controller = [text for text in examples if text.startswith("advertise:")]
    assert noded
    assert controller
    for text in noded:
        parse("example", text)
    from controller.config import load

    for text in controller:
        (tmp_path / "controller.yaml").write_text(text)
        load(tmp_path / "controller.yaml")
