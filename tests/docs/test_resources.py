"""docs/reference/resources.md against the models that resources are checked with; examples against the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from controller.cli.kinds import singular
from controller.schema.manifests import KINDS, load
from controller.schema.meta import Envelope
from tests.docs.pages import DOCS, ROOT, pages, spans, table

PAGE = DOCS / "reference/resources.md"
MODELS: dict[str, type[BaseModel]] = {"All kinds": Envelope, **{kind.name: kind.spec for kind in KINDS.values()}}


def parts(annotation: Any) -> Iterator[Any]:
    """The annotation with unions and `Annotated` taken apart; None left out."""
    if hasattr(annotation, "__metadata__"):
        yield from parts(annotation.__origin__)
    elif get_origin(annotation) in (list, dict) or isinstance(annotation, type):
        if annotation is not type(None):
            yield annotation
    else:
        for part in get_args(annotation):
            yield from parts(part)


def paths(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, bool]]:
    """Each field's path as the page writes it, and whether it is a leaf."""
    for name, field in model.model_fields.items():
        path = before + (field.alias or name)
        inner: type[BaseModel] | None = None
        for part in parts(field.annotation):
            arguments = get_args(part)
            items = list(parts(arguments[-1])) if arguments else [part]
            if get_origin(part) is list:
                path += "[]"
            inner = next((item for item in items if isinstance(item, type) and issubclass(item, BaseModel)), None)
            if get_origin(part) is dict and inner:
                path += "{}"
        yield path, inner is None
        if inner is not None:
            yield from paths(inner, path + ".")


@pytest.mark.parametrize("section", MODELS)
def test_every_field_that_is_accepted_is_described_and_no_other(section: str) -> None:
    described = [span for row in table(PAGE, f"## {section}") for span in spans(row[0])]
    assert len(set(described)) == len(described)
    known = dict(paths(MODELS[section]))
    assert set(described) - set(known) == set()
    assert {path for path, leaf in known.items() if leaf} - set(described) == set()


def test_the_kinds_with_their_versions_and_short_names_are_described() -> None:
    rows = table(PAGE, "# Resources")[: len(KINDS)]
    assert {spans(kind)[0]: tuple(spans(versions)) for kind, versions, _ in rows} == {
        kind.name: kind.api_versions for kind in KINDS.values()
    }
    for kind, _, short in rows:
        assert {singular(word) for word in spans(short)} == {spans(kind)[0].lower()}


def examples() -> Iterator[tuple[str, str]]:
    """Every document in the pages that is a resource: where, and the text."""
    for page in pages():
        text = page.read_text()
        blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        heredocs = re.findall(r"<<'EOF'\n(.*?)    EOF\n", text, re.DOTALL)
        blocks += [re.sub("^    ", "", heredoc, flags=re.MULTILINE) for heredoc in heredocs]
        for block in blocks:
            if "apiVersion:" in block and not re.search(r"kind: (Kustomization|Namespace|Deployment)\b", block):
                yield str(page.relative_to(ROOT)), block


@pytest.mark.parametrize(("page", "text"), list(examples()))
def test_every_resource_in_the_pages_is_accepted(page: str, text: str) -> None:
    manifests, problems = load([(page, text)])
    assert problems == []
    assert manifests


def test_there_are_examples() -> None:
    assert len({page for page, _ in examples()}) >= 4


def test_the_tutorials_testbed_file_is_accepted() -> None:
    from testbed.spec import parse

    text = (DOCS / "tutorial/first-mesh.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spec = parse(block, Path("/tmp/first/mesh.yaml"))
    assert [pod.uid for pod in spec.pods] == ["shop/client", "shop/web", "shop/web-v2", "other/outsider"]
