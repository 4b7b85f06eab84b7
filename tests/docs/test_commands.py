"""Commands and options that the documentation mentions exist, and the reference mentions every command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from controller.cli import cli as meshctl
from noded.control.cli import cli as nodectl
from testbed import cli as testbed
from tests.docs.pages import DOCS, ROOT, code, pages

_END = re.compile(r"[;&`#>)]|\|(?!\S)| -- |(?<=\S): ")
_NOISE = re.compile(r"[][(),…\\]")


def mentions(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of ours in the page's code: which, and its words up to where something else begins."""
    for line in code(page):
        for start in re.finditer(r"(?<![\w/.-])(nodectl|meshctl|tools/testbed)(?= |$)", line):
            rest = _END.split(line[start.end() :].replace("\\|", " "), maxsplit=1)[0]
            yield start[1], _NOISE.sub(" ", rest).split()


def judge(group: click.Group, words: list[str]) -> str:
    """What is wrong with the words after a command of click's; empty if nothing."""
    command: click.Command = group
    context = click.Context(command)
    for word in words:
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        option = word.partition("=")[0]
        if option.startswith("-") and option not in ("-", "-h"):
            if option not in known:
                return f"no option {option} of {command.name}"
        elif isinstance(command, click.Group) and not word.isupper():
            found = command.commands.get(word)
            if found is None:
                return f"no command {word!r} of {command.name}"
            command, context = found, click.Context(found)
    return ""


def judge_testbed(words: list[str]) -> str:
    """The same for tools/testbed."""
    actions = testbed._parser()._actions
    commands = next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices
    names = [word for index, word in enumerate(words) if not word.startswith("-") and words[index - 1] != "-n"]
    return f"no command {names[0]!r} of tools/testbed" if names and names[0] not in (*commands, "COMMAND") else ""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_that_a_page_mentions_exists(page: Path) -> None:
    wrong = []
    for program, words in mentions(page):
        if program == "tools/testbed":
            problem = judge_testbed(words)
        else:
            problem = judge(nodectl if program == "nodectl" else meshctl, words)
        if problem:
            wrong.append(f"{program} {' '.join(words)}: {problem}")
    assert wrong == []


@pytest.mark.parametrize(("name", "group"), [("nodectl", nodectl), ("meshctl", meshctl)])
def test_the_reference_has_every_command(name: str, group: click.Group) -> None:
    reference = [words for program, words in mentions(DOCS / "reference/cli.md") if program == name]

    def check(path: list[str], command: click.Command) -> Iterator[str]:
        if isinstance(command, click.Group):
            for sub in command.commands.values():
                yield from check([*path, str(sub.name)], sub)
        elif not any(words[: len(path)] == path for words in reference):
            yield " ".join(path)

    assert list(check([], group)) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("policy check --from a/b --to c/d:80", ""),
        ("policy chek", "no command 'chek'"),
        ("apply --file x", "no option --file"),
    ],
)
def test_a_wrong_command_would_be_noticed(words: str, problem: str) -> None:
    assert judge(meshctl, words.split()).startswith(problem)
    assert bool(problem) == bool(judge(meshctl, words.split()))
