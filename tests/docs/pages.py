"""The documentation as data: pages, their headings, links, code and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every Markdown file of the repository that is ours."""
    found = [
        *ROOT.glob("*.md"),
        *(p for room in ("docs", "deploy", "tools", "tests") for p in ROOT.glob(f"{room}/**/*.md")),
    ]
    return sorted(found)


def links(page: Path) -> list[str]:
    """Where the page's relative links lead."""
    text = _FENCE.sub("", page.read_text())
    return [link for link in _LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """What may stand after `#` in a link to the page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ +(.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and spans of code."""
    text = page.read_text()
    for fenced in _FENCE.findall(text):
        yield from fenced.splitlines()[1:-1]
    text = _FENCE.sub("", text)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", text)


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of all tables between a heading and the next one of its level or above, titles left out."""
    level = heading.partition(" ")[0]
    body = f"\n{page.read_text()}".partition(f"\n{heading}\n")[2]
    assert body, f"{page.name} has no heading {heading!r}"
    body = re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    titles = {index - 1 for index, row in enumerate(rows) if set(row) <= set("|-")}
    kept = [row for index, row in enumerate(rows) if index not in titles and index - 1 not in titles]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in kept]


def spans(cell: str) -> list[str]:
    """The code spans of a table's cell."""
    return re.findall(r"`([^`]+)`", cell)
