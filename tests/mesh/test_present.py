from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.present.failure import Exit, Failure, Rejected, refused, unreachable
from mesh.present.table import Column, Look, Output, clean, dig, fields, paint, table
from mesh.present.units import age, ago, count, rate, seconds, size, stamp, until
from mesh.present.watch import Watch

NAME = Column("NAME", "name")
STATE = Column("STATE", "state", state=True)
RECEIVED = Column("RECEIVED", "received", size, right=True)
WIDE = Column("LABELS", "labels", wide=True)


def test_columns_line_up_under_their_titles() -> None:
    rows = [{"name": "a-long-name", "received": 5}, {"name": "b", "received": 2048}]
    assert table(rows, [NAME, RECEIVED], now=0) == (
        "NAME          RECEIVED\n"
        "a-long-name         5B\n"
        "b              2.00KiB\n"
    )  # fmt: skip


def test_wide_columns_show_only_in_wide_and_headers_can_be_left_off() -> None:
    rows = [{"name": "web", "labels": {"app": "web", "version": "v1"}}]
    assert Look(Output.TABLE, headers=False).render({"items": rows}, [NAME, WIDE], 0) == "web\n"
    assert Look(Output.WIDE, headers=False).render({"items": rows}, [NAME, WIDE], 0) == "web   app=web,version=v1\n"


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_what_is_missing_or_empty_shows_as_a_dash(value: object) -> None:
    assert NAME.text({"name": value}, 0) == "-"
    assert NAME.text({}, 0) == "-"
    assert NAME.text({"name": 0}, 0) == "0"


def test_a_dotted_path_through_something_that_is_no_mapping_is_missing() -> None:
    assert dig({"a": {"b": 1}}, "a.b") == 1
    assert dig({"a": 7}, "a.b") is None


def test_json_and_yaml_give_the_answer_as_it_came() -> None:
    answer = {"items": [{"name": "web", "extra": [1, None, True]}]}
    assert json.loads(Look(Output.JSON).render(answer, [NAME], 0)) == answer
    assert yaml.safe_load(Look(Output.YAML).render(answer, [NAME], 0)) == answer


def test_states_are_coloured_only_when_colour_is_wanted_and_widths_do_not_count_it() -> None:
    rows = [{"state": "ready", "name": "a"}, {"state": "failed: no netns", "name": "b"}]
    plain = table(rows, [STATE, NAME], now=0)
    coloured = table(rows, [STATE, NAME], now=0, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[32mready\x1b[0m" in coloured
    assert "\x1b[31mfailed: no netns\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain


def test_a_word_without_meaning_is_not_coloured() -> None:
    assert paint("purple", colour=True) == "purple"


@given(st.text())
def test_no_cell_can_drive_the_terminal_or_break_the_table(text: str) -> None:
    out = table([{"name": text}], [NAME], now=0, headers=False)
    assert out.endswith("\n")
    assert out[:-1].isprintable()
    assert fields([("Name", text)]).count("\n") == 1
    structured = Look(Output.JSON).render({"name": text}, [], 0) + Look(Output.YAML).render({"name": text}, [], 0)
    assert structured.replace("\n", "").isprintable()


@given(st.lists(st.text(alphabet="abcxyz-", min_size=1, max_size=20), min_size=1, max_size=5))
def test_every_cell_starts_where_its_title_starts(names: list[str]) -> None:
    titles, *lines = table([{"name": name, "state": "ready"} for name in names], [NAME, STATE], now=0).splitlines()
    assert {line.rindex("ready") for line in lines} == {titles.index("STATE")}


@pytest.mark.parametrize(
    ("value", "text"),
    [(-5, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (330, "5m30s"), (12000, "3h20m"), (100800, "1d4h"),
     (86400 * 400, "1y35d")],
)  # fmt: skip
def test_ages_are_in_their_two_largest_units(value: float, text: str) -> None:
    assert age(value) == text


def test_moments_before_and_after_now() -> None:
    assert ago(100, 160) == "1m"
    assert ago("1970-01-01T00:01:40Z", 160) == "1m"
    assert until(160, 100) == "1m"
    assert until(100, 160) == "1m ago"
    assert ago(0, 160) == until(0, 160) == ""
    assert stamp(1700000000) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.00KiB"), (23.4 * 2**20, "23.4MiB"), (512 * 2**30, "512GiB"),
     (1023.9 * 1024, "1.00MiB"), (9.996 * 1024, "10.0KiB")],
)  # fmt: skip
def test_sizes_have_three_figures(value: float, text: str) -> None:
    assert size(value) == text
    assert rate(value) == text + "/s"


@given(st.integers(min_value=0, max_value=2**62))
def test_a_size_is_never_more_than_seven_characters_wide(value: int) -> None:
    assert len(size(value)) <= 7


@given(st.integers(min_value=0, max_value=10**9), st.sampled_from(["", "s"]))
def test_durations_in_seconds_read_back(value: int, unit: str) -> None:
    if value < 10**9:
        assert seconds(f"{value}{unit}") == value


def test_durations_in_other_units_and_nonsense() -> None:
    assert [seconds(text) for text in ("5m", "24h", "7d")] == [300, 86400, 604800]
    for text in ("", "5 m", "-5s", "1.5h", "24hours", "٣s5"):
        with pytest.raises(ValueError, match="write 30s, 5m, 24h or 7d"):
            seconds(text)


def test_counts_agree_with_their_noun() -> None:
    assert [count(1, "policy"), count(2, "policy"), count(0, "node")] == ["1 policy", "2 policies", "0 nodes"]


def test_clean_keeps_what_can_be_read() -> None:
    assert clean("Straße 東京") == "Straße 東京"
    assert clean("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\\n"


def _watch(output: Output = Output.TABLE) -> Watch:
    columns = (NAME, RECEIVED, Column("RATE", "received_rate", rate, right=True))
    return Watch(columns, lambda row: row["name"], output=output, rates=("received",))


def test_a_watch_on_a_pipe_prints_only_rows_that_changed() -> None:
    view = _watch()
    assert view.changes([{"name": "a", "received": 0}, {"name": "b", "received": 0}], now=1) == (
        "EVENT   NAME   RECEIVED   RATE\n"
        "ADDED   a            0B      -\n"
        "ADDED   b            0B      -\n"
    )  # fmt: skip
    assert view.changes([{"name": "a", "received": 0}, {"name": "b", "received": 0}], now=2) == ""
    assert view.changes([{"name": "b", "received": 20}], now=4) == (
        "MODIFIED   b           20B   10B/s\n"
        "DELETED    a            0B       -\n"
    )  # fmt: skip


def test_a_watch_in_json_prints_an_event_a_line() -> None:
    view = _watch(Output.JSON)
    lines = view.changes([{"name": "a", "received": 0}], now=1) + view.changes([], now=2)
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"type": "ADDED", "object": {"name": "a", "received": 0}},
        {"type": "DELETED", "object": {"name": "a", "received": 0}},
    ]


def test_a_watch_on_a_terminal_redraws_with_rates_and_never_more_lines_than_there_are() -> None:
    view = _watch()
    rows = [{"name": f"row{number}", "received": 0} for number in range(30)]
    view.frame(rows, title="t", now=1, height=10)
    frame = view.frame([{**row, "received": 2048} for row in rows], title="t", now=3, height=10)
    assert frame.startswith("\x1b[Ht\x1b[K\n")
    assert frame.endswith("\x1b[J")
    assert frame.count("\n") < 10
    assert "1.00KiB/s" in frame
    assert "25 more" in frame


def test_a_counter_that_went_back_has_no_negative_rate() -> None:
    view = _watch(Output.JSON)
    view.changes([{"name": "a", "received": 100}], now=1)
    assert json.loads(view.changes([{"name": "a", "received": 5}], now=2))["object"]["received_rate"] == 0


def test_a_rejected_resource_shows_the_line_at_fault_and_what_to_write() -> None:
    error = {
        "file": "policy.yaml",
        "line": 2,
        "column": 5,
        "path": "spec.rules[0]",
        "message": "a principal has no spiffe://",
        "remedy": "write cluster.local/ns/shop/sa/web",
    }
    assert Rejected([error], {"policy.yaml": "kind: X\n  - spiffe://a\n"}).text() == (
        "policy.yaml:2:5: spec.rules[0]: a principal has no spiffe://\n"
        "    2 |   - spiffe://a\n"
        "      |     ^\n"
        "hint: write cluster.local/ns/shop/sa/web\n"
        "\n"
        "1 error in 1 file; nothing was changed\n"
    )


def test_a_rejection_without_a_place_still_reads() -> None:
    text = Rejected([{"file": "a.yaml", "line": 99, "message": "bad"}, {"message": "worse"}], {"a.yaml": "x"}).text()
    assert text == "a.yaml:99: bad\n\nworse\n\n2 errors in 2 files; nothing was changed\n"


def test_an_error_answer_keeps_its_remedy_and_an_odd_one_says_so() -> None:
    failure = refused(404, {"error": {"message": "no workload shop/x", "remedy": "see nodectl workloads"}})
    assert failure.text() == "error: no workload shop/x\nhint: see nodectl workloads\n"
    assert failure.status is Exit.FAILED
    assert "500" in refused(500, None).text()
    assert "418" in refused(418, {"error": "teapot"}).text()


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (ConnectionRefusedError(111, "refused"), "connection refused"),
        (FileNotFoundError(2, "none"), "is noded running"),
        (PermissionError(13, "no"), "sudo"),
        (None, "no answer in time"),
        (OSError("AF_UNIX path too long"), "too long"),
    ],
)
def test_an_unreachable_daemon_says_where_it_was_looked_for_and_why(cause: OSError | None, says: str) -> None:
    failure = unreachable("noded", "/run/x.sock", "NODEMESH_SOCKET", cause)
    assert says in failure.text()
    assert "/run/x.sock" in failure.text()
    assert failure.status is Exit.UNREACHABLE


def test_a_hostile_error_message_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in Failure("bad \x1b[2Jname", "try \x07").text()
