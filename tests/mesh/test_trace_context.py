from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.trace_context import OURS, Context, read, write

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
SHORT = TRACE[:16].rjust(32, b"0")


@pytest.mark.parametrize(
    ("headers", "context"),
    [
        ({b"traceparent": b"00-%b-%b-01" % (TRACE, SPAN)}, Context(TRACE, SPAN, True)),
        ({b"traceparent": b"00-%b-%b-00" % (TRACE, SPAN)}, Context(TRACE, SPAN, False)),
        ({b"traceparent": b"cc-%b-%b-01-what.the.future" % (TRACE, SPAN)}, Context(TRACE, SPAN, True)),
        ({b"b3": b"%b-%b-1" % (TRACE, SPAN)}, Context(TRACE, SPAN, True, "b3")),
        ({b"b3": b"%b-%b-d-%b" % (TRACE, SPAN, SPAN)}, Context(TRACE, SPAN, True, "b3")),
        ({b"b3": b"%b-%b" % (TRACE[:16], SPAN)}, Context(SHORT, SPAN, None, "b3", True)),
        ({b"b3": b"0"}, Context(b"", b"", False, "b3")),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN}, Context(TRACE, SPAN, None, "b3multi")),
        (
            {b"x-b3-traceid": TRACE[:16], b"x-b3-spanid": SPAN, b"x-b3-sampled": b"1"},
            Context(SHORT, SPAN, True, "b3multi", True),
        ),
        ({b"x-b3-traceid": TRACE, b"x-b3-spanid": SPAN, b"x-b3-flags": b"1"}, Context(TRACE, SPAN, True, "b3multi")),
        ({b"x-b3-sampled": b"0"}, Context(b"", b"", False, "b3multi")),
    ],
)
def test_each_format_is_understood(headers: dict[bytes, bytes], context: Context) -> None:
    assert read(headers) == context


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"traceparent": b"00-%b-%b-01-more" % (TRACE, SPAN)},
        {b"traceparent": b"ff-%b-%b-01" % (TRACE, SPAN)},
        {b"traceparent": b"00-%b-%b-01" % (b"0" * 32, SPAN)},
        {b"traceparent": b"00-%b-%b-01" % (TRACE, b"0" * 16)},
        {b"traceparent": b"00-%b-%b-01" % (TRACE.upper(), SPAN)},
        {b"traceparent": b"00-%b-%b-01\n" % (TRACE, SPAN)},
        {b"b3": b"nonsense"},
        {b"b3": b"%b-%b-1" % (b"0" * 32, SPAN)},
        {b"x-b3-traceid": b"xyz", b"x-b3-spanid": SPAN},
        {b"x-b3-traceid": TRACE},
    ],
)
def test_what_is_malformed_counts_as_absent(headers: dict[bytes, bytes]) -> None:
    assert read(headers) is None


@given(st.sampled_from(["w3c", "b3", "b3multi"]), st.booleans(), st.booleans(), st.sampled_from([b"", SPAN[::-1]]))
def test_what_is_written_is_read_as_the_same(kind: str, sampled: bool, short: bool, parent: bytes) -> None:
    context = Context(SHORT if short else TRACE, SPAN, sampled, kind, short and kind != "w3c")
    written = write([(b"accept", b"*/*"), (b"traceparent", b"old"), (b"b3", b"old")], context, parent)
    assert read(dict(written)) == context
    assert written[0] == (b"accept", b"*/*")
    names = [name for name, _ in written]
    assert len(names) == len(set(names))


@given(st.dictionaries(st.sampled_from(sorted(OURS)), st.binary(max_size=80)))
def test_nothing_that_a_client_sends_raises(headers: dict[bytes, bytes]) -> None:
    read(headers)
