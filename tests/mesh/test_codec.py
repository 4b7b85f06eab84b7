"""Codec: what was sent is what is read, and hostile bytes are a `DecodeError` and nothing else."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import DecodeError, decode, encode
from mesh.model import Enrolment, MtlsMode, PeerAuth, Workload
from mesh.sync import FromController, FromNode, Hello, Ping, Pong, Update

from .samples import peer_auths, workload


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Leaf:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise ValueError(f"{self.number} is not positive")


@dataclass(frozen=True, slots=True)
class Tree:
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    by_port: dict[int, Colour]
    data: bytes
    on: bool
    maybe: Leaf | None = None
    either: Leaf | Positive | None = None
    more: dict[str, str] = field(default_factory=dict)
    pairs: tuple[tuple[str, int], ...] = ()


names = st.text(max_size=8)
leaves = st.builds(Leaf, names, st.floats(allow_nan=False))
trees = st.builds(
    Tree,
    leaves,
    st.lists(leaves, max_size=3).map(tuple),
    st.dictionaries(names, leaves, max_size=3),
    st.dictionaries(st.integers(-(2**63), 2**64 - 1), st.sampled_from(Colour), max_size=3),
    st.binary(max_size=8),
    st.booleans(),
    st.none() | leaves,
    st.none(),
    st.dictionaries(names, names, max_size=3),
    st.lists(st.tuples(names, st.integers(0, 9)), max_size=2).map(tuple),
)


@given(trees)
def test_what_was_encoded_is_what_is_decoded(tree: Tree) -> None:
    assert decode(Tree, encode(tree)) == tree
    assert decode(Tree, memoryview(encode(tree))) == tree


@given(peer_auths)
def test_enums_and_maps_of_the_model_survive(peer_auth: PeerAuth) -> None:
    assert decode(PeerAuth, encode(peer_auth)) == peer_auth


def test_a_union_travels_with_the_name_of_its_class() -> None:
    union = Ping | Pong
    assert msgpack.unpackb(encode(Ping(), union)) == ["Ping", []]
    assert decode(union, encode(Ping(), union)) == Ping()
    assert decode(union, encode(Pong(), union)) == Pong()


def test_a_newer_peers_extra_fields_are_ignored_and_an_older_ones_missing_get_defaults() -> None:
    assert decode(Leaf, msgpack.packb(["a", 2.0, "from the future"])) == Leaf("a", 2.0)
    assert decode(Leaf, msgpack.packb(["a"])) == Leaf("a")
    old = ["web", "shop", "web", {}, []]
    assert decode(Enrolment, msgpack.packb(old)) == Enrolment("web", "shop", "web", {}, ())


def test_a_field_without_default_must_be_there() -> None:
    with pytest.raises(DecodeError, match="Leaf: 0 fields, Leaf has 1"):
        decode(Leaf, msgpack.packb([]))


def test_a_whole_number_is_a_float_but_nothing_else_is_taken_for_another() -> None:
    assert decode(Leaf, msgpack.packb(["a", 2])) == Leaf("a", 2.0)
    for wrong in (True, "2", b"2", None, [2]):
        with pytest.raises(DecodeError, match=r"\.weight: expected float, got"):
            decode(Leaf, msgpack.packb(["a", wrong]))
    with pytest.raises(DecodeError, match=r"\.number: expected int, got bool"):
        decode(Positive, msgpack.packb([True]))


GOOD: list[Any] = [["a"], [["b", 1.0]], {"c": ["d"]}, {80: 1}, b"", True, ["e"], ["Leaf", ["f"]]]


def test_the_sample_that_is_spoilt_below_is_good() -> None:
    assert decode(Tree, msgpack.packb(GOOD)) == Tree(
        Leaf("a"), (Leaf("b"),), {"c": Leaf("d")}, {80: Colour.RED}, b"", True, Leaf("e"), Leaf("f")
    )


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, "a", r"\.leaf: expected Leaf, got str"),
        (0, [1], r"\.leaf\.name: expected str, got int"),
        (1, {}, r"\.leaves: expected array, got dict"),
        (1, [["a"], [b"b"]], r"\.leaves\[1\]\.name: expected str, got bytes"),
        (2, [], r"\.by_name: expected map, got list"),
        (2, {1: ["a"]}, r"\.by_name key: expected str, got int"),
        (2, {"x": [1]}, r"\.by_name\['x'\]\.name: expected str, got int"),
        (3, {80: 7}, r"\.by_port\[80\]: 7 is not one of"),
        (3, {80: []}, r"\.by_port\[80\]: \[\] is not one of"),
        (4, "text", r"\.data: expected bytes, got str"),
        (5, 1, r"\.on: expected bool, got int"),
        (6, 1, r"\.maybe: expected Leaf, got int"),
        (7, ["Leaf"], r"\.either: expected \[type, fields\], got list"),
        (7, [1, []], r"\.either: expected \[type, fields\], got list"),
        (7, ["Workload", []], r"\.either: unknown type 'Workload'"),
        (7, ["Positive", [-1]], r"Positive: -1 is not positive"),
        (8, {"a": None}, r"\.more\['a'\]: expected str, got NoneType"),
        (9, [["a", 1], {}], r"\.pairs\[1\]: expected array, got dict"),
        (9, [["a"]], r"\.pairs\[0\]: expected 2 items, got 1"),
        (9, [["a", 1, 2]], r"\.pairs\[0\]: expected 2 items, got 3"),
        (9, [["a", "1"]], r"\.pairs\[0\]\[1\]: expected int, got str"),
    ],
)
def test_the_first_field_that_is_wrong_is_named(index: int, value: object, message: str) -> None:
    spoilt = [*GOOD, {}, []]
    spoilt[index] = value
    with pytest.raises(DecodeError, match=message):
        decode(Tree, msgpack.packb(spoilt))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xa1\xff",
        b"\x91" * 5000 + b"\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\x90\x90",
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\x92\xa4Ping\x81\x90\x01",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xd4\x05\x00",
    ],
    ids=[
        *("nothing", "reserved byte", "not UTF-8", "nested too deep", "short of its length", "two values"),
        *("array as a key", "map as a key", "array as a key inside", "bad timestamp", "extension"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(FromNode, data)


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_a_decode_error(data: bytes) -> None:
    for of in (FromNode, FromController, Tree, Update):
        try:
            decode(of, data)
        except DecodeError:
            pass


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
)


@given(st.sampled_from([kind.__name__ for kind in (Hello, Update, Workload)]), st.lists(plain, max_size=11))
def test_no_well_formed_nonsense_raises_anything_but_a_decode_error(name: str, fields: list[object]) -> None:
    for of, message in (
        (FromNode, [name, fields]),
        (FromController, [name, fields]),
        (Update, fields),
        (Workload, fields),
    ):
        try:
            decode(of, msgpack.packb(message))
        except DecodeError:
            pass


def test_a_hostile_key_does_not_blow_up_the_message() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(PeerAuth, msgpack.packb(["a", "b", "STRICT", {"x" * 1_000_000: 1}]))
    assert len(str(caught.value)) < 1000
    with pytest.raises(DecodeError) as caught:
        decode(PeerAuth, msgpack.packb(["a", "b", "S" * 1_000_000]))
    assert len(str(caught.value)) < 1000


def test_types_that_cannot_travel_are_a_mistake_of_ours() -> None:
    @dataclass(frozen=True)
    class Wrong:
        thing: complex

    with pytest.raises(TypeError, match="codec cannot carry"):
        decode(Wrong, msgpack.packb([1]))


def test_a_workload_is_compact() -> None:
    assert len(encode(workload("web", "10.77.0.1"))) < 60


def test_modes_travel_as_their_values() -> None:
    assert msgpack.unpackb(encode(PeerAuth("a", "b", MtlsMode.STRICT)))[2] == "STRICT"
