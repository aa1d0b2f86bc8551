"""Paths are read as they are written, and lead where they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell import UsageError
from stepwell.inspect import Typed
from stepwell.paths import ABSENT, Index, Match, Name, Path, find, replace

DATA = {
    "messages": [Typed("m.AI", {"id": "a]", "content": "x"}), {"id": 7, "content": ["y"]}],
    "set": Typed("builtins.set", {"value": [1, 2]}),
    "map": {1: "one", "two words": {"deep": None}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("messages[0].content", "x"),
        ("messages[-1].content[0]", "y"),
        ("messages[id=7].id", 7),
        ('messages[id="a]"].content', "x"),
        ("set[1]", 2),
        ("map[1]", "one"),
        ('map["two words"].deep', None),
        ("map['two words'].deep", None),
        ("[ 'map' ][ 1 ]", "one"),
        ("map.three", ABSENT),
        ("messages[2]", ABSENT),
        ("messages[id=b]", ABSENT),
        ("messages.content", ABSENT),
        ("set.value[0]", 1),
        ("map[two=words]", ABSENT),
        ("messages[id=\ud800]", ABSENT),
    ],
)
def test_a_path_leads_where_it_says(text: str, value: object) -> None:
    """Elements, fields, entries and matches are found, and what is not there is told from None."""
    path = Path.parse(text)
    assert find(DATA, tuple(path)) == value
    assert find(DATA, tuple(Path.parse(str(path)))) == value


PARTS = st.one_of(
    st.builds(Name, st.text(max_size=8)),
    st.builds(Index, st.integers(-99, 99)),
    st.builds(Match, st.sampled_from(["id", "tool-call_id"]), st.text(max_size=8)),
)


@given(st.builds(Name, st.text(max_size=8)), st.lists(PARTS, max_size=4))
def test_a_path_is_read_as_it_was_written(channel: Name, parts: list[Name | Index | Match]) -> None:
    """Every path has a text that means just it."""
    path = Path((channel, *parts))
    assert Path.parse(str(path)) == path


@pytest.mark.parametrize(
    "text", ["", "[0]", "a..b", "a[", "a b", "a[id=", ".a", "a.0", '["a]', "[x=y]", '["\\x"]', f"a[{10**18}]"]
)
def test_what_is_no_path_is_refused(text: str) -> None:
    """A text that is no path is an error that shows what one looks like."""
    with pytest.raises(UsageError, match=r"path|quotes"):
        Path.parse(text)


def test_data_are_replaced_along_a_path() -> None:
    """One thing is replaced, added or taken away; the rest, and what it was made from, stay."""
    changed = replace(DATA, tuple(Path.parse("messages[id=7].content[0]")), "z")
    assert find(changed, tuple(Path.parse("messages[1].content"))) == ["z"]
    assert find(DATA, tuple(Path.parse("messages[1].content"))) == ["y"]
    assert find(replace(DATA, tuple(Path.parse("set[0]")), 5), tuple(Path.parse("set"))).fields == {"value": [5, 2]}
    assert find(replace(DATA, tuple(Path.parse("map.new")), 5), tuple(Path.parse("map.new"))) == 5
    assert find(replace(DATA, tuple(Path.parse("messages[0]")), ABSENT), tuple(Path.parse("messages"))) == [
        DATA["messages"][1]  # type: ignore[index]
    ]
    assert "map" not in replace(DATA, tuple(Path.parse("map")), ABSENT)


@pytest.mark.parametrize("text", ["messages[9]", "messages[0].wrong", "map.none.deeper", "set[id=1]"])
def test_a_way_that_leads_nowhere_is_told(text: str) -> None:
    """Where a way ends, the error says what there is."""
    with pytest.raises(UsageError, match=r"there is no .* in it: it"):
        replace(DATA, tuple(Path.parse(text)), 1)
