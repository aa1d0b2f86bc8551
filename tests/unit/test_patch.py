"""Single cases of diff, apply and compose; the laws are in tests/property/test_patch.py."""

from __future__ import annotations

import msgspec
import pytest

from stepwell import apply, compose, diff, parse
from stepwell.patch import (
    Array,
    Blob,
    Content,
    Joined,
    Keep,
    Map,
    Merge,
    New,
    PatchError,
    Ref,
    Splice,
    Value,
    compose_merges,
    cut_content,
    diff_entries,
    length_of,
    map_pieces,
    map_references,
    merge_entries,
    payload_of,
    read_content,
    references,
    splice_pieces,
)

ELEMENTS = [f"element number {number} of the list" for number in range(8)]
FIRST, SECOND, THIRD = (msgspec.msgpack.encode(element) for element in ELEMENTS[:3])


def array(*elements: str) -> Value:
    """A list as a value."""
    return parse("t", msgspec.msgpack.encode(list(elements)))


def entries(**items: str) -> Value:
    """A map as a value."""
    return parse("t", msgspec.msgpack.encode(items))


def new(*elements: bytes) -> New:
    """New elements in a row."""
    return New(tuple(map(len, elements)), b"".join(elements))


@pytest.mark.parametrize(
    ("after", "pieces"),
    [
        ([*ELEMENTS, "one more"], (Keep(0, 8), new(b"\xa8one more"))),
        (["one more", *ELEMENTS], (new(b"\xa8one more"), Keep(0, 8))),
        (ELEMENTS[3:], (Keep(3, 5),)),
        (ELEMENTS[:5], (Keep(0, 5),)),
        (ELEMENTS[:2] + ELEMENTS[5:], (Keep(0, 2), Keep(5, 3))),
        ([*ELEMENTS[:2], "other", *ELEMENTS[3:]], (Keep(0, 2), new(b"\xa5other"), Keep(3, 5))),
        ([ELEMENTS[1], ELEMENTS[0], *ELEMENTS[2:]], (Keep(1, 1), Keep(0, 1), Keep(2, 6))),
        (ELEMENTS + ELEMENTS, (Keep(0, 8), Keep(0, 8))),
    ],
)
def test_splices(after: list[str], pieces: tuple[Keep | New, ...]) -> None:
    """An edit of a list is what was kept and what is new, from left to right."""
    assert diff(array(*ELEMENTS), array(*after)) == Splice(pieces)


def test_merges() -> None:
    """An edit of a map is what was dropped and what changed, entries of entries included."""
    text = "a text that is long enough"
    old, after = {"a": text, "b": text, "c": ELEMENTS}, {"a": text, "c": [*ELEMENTS, "x"], "d": text}
    patch = diff(*(parse("t", msgspec.msgpack.encode(value)) for value in (old, after)))
    change = Splice((Keep(0, 8), new(b"\xa1x")))
    assert patch == Merge(("b",), {"c": change, "d": Blob("", msgspec.msgpack.encode(text))})


def test_equal_values_have_no_patch() -> None:
    """Nothing changed means no patch, however the pieces of a value are cut."""
    whole = array(*ELEMENTS)
    assert diff(whole, array(*ELEMENTS)) is None
    assert diff(Blob("t", b"1"), Blob("t", b"1")) is None
    cut = apply(Splice((Keep(0, 3), Keep(3, 5))), whole)
    assert cut != whole
    assert diff(cut, whole) is None
    assert diff_entries({"a": cut}, {"a": whole}) is None


@pytest.mark.parametrize(
    ("old", "after"),
    [
        (None, array(*ELEMENTS)),
        (Blob("t", b"1"), Blob("t", b"2")),
        (Blob("t", b"1"), Blob("u", b"1")),
        (Blob("t", b"1"), array(*ELEMENTS)),
        (array(*ELEMENTS), Blob("t", b"1")),
        (array(*ELEMENTS), array(*(element.upper() for element in ELEMENTS))),
        (entries(a="x" * 40, b="y" * 40), entries(b="y" * 40, a="x" * 40)),
    ],
)
def test_replacements(old: Value | None, after: Value) -> None:
    """What has nothing in common with the old value, or only its order changed, is set as a whole."""
    assert diff(old, after) == after


def test_a_wrapped_array_is_another_value() -> None:
    """Wrapping an array, or giving it another type, replaces it."""
    plain = array(*ELEMENTS)
    assert isinstance(plain, Array)
    for other in (Array("t", True, 8, plain.pieces), Array("u", False, 8, plain.pieces)):
        assert diff(plain, other) == other


def test_diff_needs_bytes() -> None:
    """Values that hold references cannot be compared."""
    referring = Array("t", False, 1, (New((4,), Ref(1, 0, 4)),))
    with pytest.raises(TypeError, match="as bytes"):
        diff(referring, array(*ELEMENTS))


MISFITS = [
    (Splice((Keep(0, 1),)), None),
    (Splice((Keep(0, 1),)), Blob("t", b"1")),
    (Splice((Keep(0, 1),)), entries(a="x" * 80)),
    (Splice((Keep(0, 9),)), array(*ELEMENTS)),
    (Splice((Keep(8, 1),)), array(*ELEMENTS)),
    (Merge(), None),
    (Merge(), Blob("t", b"1")),
    (Merge(), array(*ELEMENTS)),
    (Merge((), {"a": Splice((Keep(0, 1),))}), entries(a="x" * 80)),
    (Merge((), {"b": Merge()}), entries(a="x" * 80)),
]


@pytest.mark.parametrize(("patch", "old"), MISFITS)
def test_misfits(patch: Splice | Merge, old: Value | None) -> None:
    """A patch that was made for another value is refused, applied or composed."""
    with pytest.raises(PatchError):
        apply(patch, old)
    if old is not None:
        with pytest.raises(PatchError):
            compose(old, patch)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Splice((Keep(0, 1),)), Merge()),
        (Merge(), Splice((Keep(0, 1),))),
        (Splice((Keep(0, 1),)), Splice((Keep(0, 2),))),
        (Splice((Keep(5, 2), new(FIRST))), Splice((Keep(1, 3),))),
    ],
)
def test_patches_that_cannot_follow(first: Splice | Merge, second: Splice | Merge) -> None:
    """Two patches whose shapes or sizes do not fit do not compose."""
    with pytest.raises(PatchError):
        compose(first, second)


def test_compose_splices() -> None:
    """Kept ranges of a splice are cut out of the splice before it."""
    first = Splice((Keep(2, 4), new(FIRST, SECOND), Keep(0, 1)))
    second = Splice((Keep(1, 2), new(THIRD), Keep(3, 2), Keep(5, 2)))
    assert compose(first, second) == Splice((Keep(3, 2), new(THIRD), Keep(5, 1), new(FIRST), new(SECOND), Keep(0, 1)))


def test_compose_with_references() -> None:
    """A reference to several elements is cut by arithmetic on the reference."""
    first = Splice((New((3, 4, 5), Ref(9, 100, 12)),))
    assert compose(first, Splice((Keep(1, 2),))) == Splice((New((4, 5), Ref(9, 103, 9)),))


def test_compose_merges() -> None:
    """What the second merge drops is dropped, and what it sets again goes to the end."""
    one, two = Blob("", b"1"), Blob("", b"2")
    composed = compose_merges(Merge(("x",), {"a": one, "b": one}), Merge(("a",), {"a": two, "c": two}))
    assert composed == Merge(("x", "a"), {"b": one, "a": two, "c": two})
    assert list(composed.changes) == ["b", "a", "c"]
    old = {"a": one, "x": one, "z": one}
    assert list(merge_entries(composed, old)) == ["z", "b", "a", "c"]


def test_a_value_swallows_what_was_before() -> None:
    """A value composes with anything before it to itself, and takes in what follows."""
    value = array(*ELEMENTS)
    for first in (Splice(()), Merge(), Blob("t", b"1")):
        assert compose(first, value) == value
    assert compose(value, Splice((Keep(7, 1),))) == Array("t", False, 1, (new(msgspec.msgpack.encode(ELEMENTS[7])),))
    assert compose(entries(a="x" * 80), Merge(("a",))) == Map("t", False, {})


def test_an_append_shares_the_old_pieces() -> None:
    """An append to a list copies neither the old elements nor the pieces they lie in."""
    old = array(*ELEMENTS)
    longer = apply(Splice((Keep(0, 8), new(FIRST))), old)
    assert isinstance(old, Array)
    assert isinstance(longer, Array)
    assert longer.pieces[0] is old.pieces[0]


def test_splice_pieces() -> None:
    """Neighbours become one piece, kept or new."""
    assert splice_pieces([]) == ()
    assert splice_pieces([0, 1, 3, 2, FIRST, SECOND, 3, 4]) == (
        Keep(0, 2),
        Keep(3, 1),
        Keep(2, 1),
        new(FIRST, SECOND),
        Keep(3, 2),
    )
    assert splice_pieces([FIRST, 5, SECOND]) == (new(FIRST), Keep(5, 1), new(SECOND))


def test_map_pieces_visits_everything() -> None:
    """Every content of a patch, however deep, is offered for replacement, and nothing else changes."""
    inner = Map("", False, {"list": Array("", False, 1, (new(SECOND),)), "text": Blob("", b"t")})
    patch = Merge(("x",), {"a": inner, "b": Splice((Keep(0, 1), new(FIRST))), "c": Merge((), {"d": Blob("", b"d")})})
    seen: list[object] = []

    def visit(content: Content) -> Content:
        seen.append(content)
        return content

    assert map_pieces(patch, visit, lambda piece: (New(piece.lengths, visit(piece.content)),)) == patch
    assert seen == [SECOND, b"t", FIRST, b"d"]


def test_map_pieces_asks_once_for_each() -> None:
    """Whoever replaces content may note that he did: he is not asked for the same twice."""
    asked: list[Content] = []

    def replaced(content: Content) -> Content:
        asked.append(content)
        return b"other"

    patch = Merge((), {"a": Blob("", b"1"), "b": Map("", False, {"c": Blob("", b"2"), "d": Blob("", b"3")})})
    inner = Map("", False, {"c": Blob("", b"other"), "d": Blob("", b"other")})
    assert map_pieces(patch, replaced, lambda piece: (piece,)) == Merge((), {"a": Blob("", b"other"), "b": inner})
    assert asked == [b"1", b"2", b"3"]


def test_map_references_visits_every_reference() -> None:
    """Every reference of a patch, however deep and in whatever it is joined with, is replaced, and nothing else."""
    both = Joined((b"before", Ref(3, 0, 2), Ref(4, 5, 1), b"after"))
    inner = Map("", False, {"list": Array("", False, 1, (New((4,), Ref(1, 0, 4)),)), "text": Blob("", Ref(2, 0, 1))})
    patch = Merge(
        ("x",), {"a": inner, "b": Splice((Keep(0, 1), New((14,), both))), "c": Merge((), {"d": Blob("", b"d")})}
    )
    places = [Ref(1, 0, 4), Ref(2, 0, 1), Ref(3, 0, 2), Ref(4, 5, 1)]
    assert list(references(patch)) == places
    moved = map_references(patch, lambda ref: Ref(ref.sequence + 10, ref.start, ref.length))
    assert list(references(moved)) == [Ref(ref.sequence + 10, ref.start, ref.length) for ref in places]
    assert map_references(moved, lambda ref: Ref(ref.sequence - 10, ref.start, ref.length)) == patch
    plain = map_references(patch, lambda ref: b"%d" % ref.sequence * ref.length)
    assert list(references(plain)) == []
    pieces = (Keep(0, 1), New((14,), b"before334after"))
    inner = Map("", False, {"list": Array("", False, 1, (new(b"1111"),)), "text": Blob("", b"2")})
    assert plain == Merge(("x",), {"a": inner, "b": Splice(pieces), "c": Merge((), {"d": Blob("", b"d")})})


def test_cut_content() -> None:
    """Any part of some content holds just the bytes that stand there, wherever they lie."""
    held = b"0123456789"
    joined = Joined((b"ab", Ref(1, 2, 3), b"c", Ref(1, 7, 2)))
    whole = b"ab234c78"

    def read(ref: Ref) -> bytes:
        return held[ref.start : ref.start + ref.length]

    for content, expected in ((joined, whole), (Ref(1, 2, 5), b"23456"), (b"plain", b"plain")):
        assert length_of(content) == len(expected)
        assert read_content(content, read) == expected
        for start in range(len(expected)):
            for end in range(start + 1, len(expected) + 1):
                part = cut_content(content, start, end)
                assert read_content(part, read) == expected[start:end]
                assert length_of(part) == end - start
    assert cut_content(joined, 2, 5) == Ref(1, 2, 3)


def test_payload_of_reads_references() -> None:
    """The bytes behind references are put where they belong."""
    referring = Array("t", True, 2, (new(FIRST), New((len(SECOND),), Ref(4, 0, len(SECOND)))))
    inside = b"\x92" + FIRST + SECOND
    assert payload_of(referring, {Ref(4, 0, len(SECOND)): SECOND}.__getitem__) == (
        b"\xc7" + bytes((len(inside), 7)) + inside
    )
