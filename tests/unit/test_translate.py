"""Channels: the patch to a new value, applied to the old one, gives the bytes that the serializer would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from property.mutation import change_dict, change_list, elements, mutate, names, scalars
from stepwell.patch import Array, Blob, Keep, Map, Merge, New, Patch, Ref, Splice, Value, apply, payload_of
from stepwell_langgraph import translate
from stepwell_langgraph.translate import (
    ALWAYS_CHECKED,
    ROTATION_PUTS,
    Channel,
    Checks,
    DictChannel,
    ListChannel,
    PlainChannel,
    by_element,
    update,
)

SERDE = JsonPlusSerializer()

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def _no_reference(ref: Ref) -> bytes:
    raise AssertionError(f"a channel made a reference: {ref}")


def _after(patch: Patch | None, before: Value | None) -> Value | None:
    return before if patch is None else apply(patch, before)


def _encoded(value: Value) -> tuple[str, bytes]:
    return value.type, payload_of(value, _no_reference)


class Chain:
    """A channel and what is stored of it, put after put.

    Attributes:
        stored: The value that all patches so far add up to.
        patch: The latest patch.
    """

    def __init__(self, channel: Channel | None = None, stored: Value | None = None) -> None:
        self.stored = stored
        self.patch: Patch | None = None
        self._channel = channel
        self._turn = 0

    @property
    def channel(self) -> Channel:
        assert self._channel is not None
        return self._channel

    def put(
        self,
        value: Any,
        *,
        everything: bool = False,
        announced: frozenset[int] = frozenset(),
        moved: bool = True,
        serde: SerializerProtocol = SERDE,
    ) -> Patch | None:
        checks = Checks(self._turn, everything=everything, announced=announced)
        self._turn += 1
        self._channel, self.patch = update(self._channel, value, serde, checks, moved=moved)
        self.stored = _after(self.patch, self.stored)
        return self.patch

    def recheck(self) -> None:
        channel = self.channel
        self.patch = channel.recheck(SERDE) if isinstance(channel, PlainChannel) else channel.recheck()
        self.stored = _after(self.patch, self.stored)

    def holds(self, value: Any) -> bool:
        """Whether what is stored is what the serializer makes of the value, to the byte."""
        return self.stored is not None and _encoded(self.stored) == SERDE.dumps_typed(value)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The elements that were encoded so far, one by one."""
    seen: list[Any] = []
    encode = translate.encode_element

    def recording(element: Any) -> bytes:
        seen.append(element)
        return encode(element)

    monkeypatch.setattr(translate, "encode_element", recording)
    return seen


def _messages(count: int, start: int = 0) -> list[HumanMessage]:
    return [HumanMessage(f"message {n}", id=f"{n}", additional_kwargs={"n": n}) for n in range(start, start + count)]


values = st.one_of(
    st.lists(elements, max_size=5),
    st.dictionaries(names, elements, max_size=4),
    st.dictionaries(st.sampled_from(["a", "line\nbreak", "1"]) | st.integers(0, 2), scalars, max_size=3),
    elements,
    st.lists(st.integers(0, 3), max_size=30),
)


@given(value=values, data=st.data())
@settings(max_examples=settings().max_examples * 2)
def test_patches_add_up_to_what_the_serializer_makes(value: Any, data: st.DataObject) -> None:
    """After any changes in place and between containers, checking everything stores the value to the byte."""
    chain = Chain()
    for _ in range(data.draw(st.integers(1, 6))):
        chain.put(value, everything=True)
        assert chain.holds(value)
        change = data.draw(st.sampled_from(["inside", "container", "fresh container", "other"]))
        if change == "inside":
            mutate(data.draw, value)
        elif change == "other":
            value = data.draw(values)
        else:
            value = type(value)(value) if change.startswith("fresh") and type(value) in (list, dict) else value
            if type(value) is list:
                change_list(data.draw, value, elements)
            elif type(value) is dict:
                change_dict(data.draw, value, elements)
    mutate(data.draw, value)
    chain.put(value, everything=True)
    assert chain.holds(value)


@given(value=values, data=st.data())
def test_recheck_leaves_what_was_checked(value: Any, data: st.DataObject) -> None:
    """What changed since a put that looked at it is not in the patch that `recheck` gives."""
    chain = Chain()
    chain.put(value, everything=True)
    stored = chain.stored
    mutate(data.draw, value)
    chain.recheck()
    assert chain.stored == stored


@pytest.mark.parametrize("of", ["list", "dict"])
def test_recheck_stores_what_was_not_checked(of: str) -> None:
    """What changed before a put that did not look at it is in the patch that `recheck` gives, and nothing else."""
    chain, messages = Chain(), _messages(400)
    value: Any = messages if of == "list" else {f"{n}": item for n, item in enumerate(messages)}
    chain.put(value)
    for message in messages:
        message.additional_kwargs["n"] = "changed"
    chain.put(value)
    assert not chain.holds(value)
    expected = SERDE.dumps_typed(value)
    messages[-1].additional_kwargs["n"] = "too late"
    chain.recheck()
    assert chain.stored is not None
    assert _encoded(chain.stored) == expected
    chain.recheck()
    assert chain.patch is None


def test_recheck_stores_a_plain_value_that_was_not_checked() -> None:
    """A large value whose version stood still, and whose turn it was not, is in the patch of `recheck`."""
    chain, value = Chain(), tuple([n] for n in range(3_000))
    chain.put(value)
    chain.put(value, moved=False)
    value[7].append("changed")
    chain.put(value, moved=False)
    assert not chain.holds(value)
    chain.recheck()
    assert chain.holds(value)
    value[8].append("changed")
    chain.put(value, moved=True)
    value[9].append("too late")
    chain.recheck()
    assert chain.patch is None


def test_an_append_encodes_what_is_new(encoded: list[Any]) -> None:
    """However long a list of messages is, an append encodes the new elements and no other."""
    chain, messages = Chain(), _messages(500)
    chain.put(messages)
    assert encoded == messages
    for start in range(500, 540, 2):
        encoded.clear()
        new = _messages(2, start)
        messages = [*messages, *new]
        patch = chain.put(messages)
        assert list(map(id, encoded)) == list(map(id, new))
        assert isinstance(patch, Splice)
        assert [type(piece) for piece in patch.pieces] == [Keep, New]
        assert chain.holds(messages)


def test_a_list_put_again_is_no_change(encoded: list[Any]) -> None:
    """A list of the same objects, even in a new container, gives no patch and encodes nothing."""
    chain, messages = Chain(), _messages(300)
    chain.put(messages)
    encoded.clear()
    for _ in range(2 * ROTATION_PUTS):
        assert chain.put(list(messages)) is None
    assert encoded == []


def test_a_dict_encodes_what_is_new(encoded: list[Any]) -> None:
    """An entry more in a dict encodes that entry and the mutable ones that are checked, but no text."""
    chain, files = Chain(), {f"{n}.txt": "text" * n for n in range(300)}
    chain.put(files)
    encoded.clear()
    files = {**files, "new.txt": "new"}
    assert isinstance(chain.put(files), Merge)
    assert encoded == ["new"]
    assert chain.holds(files)


def test_the_check_of_a_long_dict_is_bounded(encoded: list[Any]) -> None:
    """Of many entries that can change, one put encodes the last 128 and a 32nd of the others."""
    chain, files = Chain(), {f"{n}.txt": {"content": [f"line {n}"]} for n in range(1000)}
    chain.put(files)
    encoded.clear()
    chain.put(dict(files))
    assert len(encoded) <= ALWAYS_CHECKED + 1000 // ROTATION_PUTS + 1


def test_the_check_of_a_long_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many messages, one put compares the last 128 and a 32nd of the others, and takes the new one's fingerprint."""
    chain, messages = Chain(), _messages(1000)
    chain.put(messages)
    taken: list[Any] = []
    compared: list[Any] = []
    take, compare, compare_group = translate.fingerprint, translate.Fingerprint.matches, translate.Fingerprints.match
    monkeypatch.setattr(translate, "fingerprint", lambda item: taken.append(item) or take(item))
    monkeypatch.setattr(
        translate.Fingerprint, "matches", lambda mark, item: compared.append(item) or compare(mark, item)
    )
    monkeypatch.setattr(
        translate.Fingerprints, "match", lambda group: compared.extend(group._models) or compare_group(group)
    )
    chain.put([*messages, *_messages(1, 1000)])
    assert len(taken) == 1
    assert ALWAYS_CHECKED <= len(compared) <= ALWAYS_CHECKED + 1000 // ROTATION_PUTS + 1


@pytest.mark.parametrize("distance", [1, ALWAYS_CHECKED])
def test_the_last_elements_are_checked_at_every_put(distance: int) -> None:
    """A change to one of the last 128 elements is stored at once."""
    chain, messages = Chain(), _messages(400)
    chain.put(messages)
    messages[-distance].additional_kwargs["n"] = True
    chain.put(list(messages))
    assert chain.holds(messages)


def test_an_announced_element_is_checked_at_once() -> None:
    """A change to an element that a write returned is stored at once, wherever it stands."""
    chain, messages = Chain(), _messages(400)
    chain.put(messages)
    messages[3].id = "given"
    chain.put(list(messages), announced=frozenset([id(messages[3])]))
    assert chain.holds(messages)


def test_an_announced_entry_is_checked_at_once_under_each_of_its_keys() -> None:
    """A change to an object that a write returned is stored at once, under every key that it stands under."""
    shared = {"content": ["line"]}
    chain, files = Chain(), {"first": shared, **{f"{n}": {"n": n} for n in range(300)}, "again": shared}
    files |= {f"later {n}": {"n": n} for n in range(ALWAYS_CHECKED)}
    chain.put(files)
    shared["content"].append("more")
    chain.put(dict(files), announced=frozenset([id(shared)]))
    assert chain.holds(files)


def test_an_announced_element_is_checked_at_once_in_each_of_its_places() -> None:
    """A change to an object that a write returned is stored at once, in every place that it stands in."""
    chain, messages = Chain(), _messages(200)
    messages = [messages[0], *messages, *_messages(200, 200)]
    chain.put(messages)
    messages[0].id = "given"
    chain.put(list(messages), announced=frozenset([id(messages[0])]))
    assert chain.holds(messages)


def test_an_object_that_comes_again_is_stored_as_it_is_in_each_of_its_places() -> None:
    """An old element that was changed and then appended once more is stored at once in both places."""
    chain, messages = Chain(), _messages(400)
    chain.put(messages)
    messages[0].id = "given"
    messages = [*messages, messages[0]]
    chain.put(messages)
    assert chain.holds(messages)


@pytest.mark.parametrize("of", ["list", "dict", "plain"])
def test_every_element_has_its_turn_within_32_puts(of: str) -> None:
    """A change that nothing announces is stored by the 32nd put after it."""
    wrap: Callable[[list[Any]], Any] = {
        "list": list,
        "dict": lambda items: {f"{n}": item for n, item in enumerate(items)},
        "plain": tuple,
    }[of]
    chain, messages = Chain(), _messages(300)
    value = wrap(messages)
    for _ in range(7):
        chain.put(value)
    for index in (0, 1, 100, 171):
        messages[index].additional_kwargs["n"] = "changed"
        for _ in range(ROTATION_PUTS):
            chain.put(value if of == "plain" else wrap(messages), moved=False)
        assert chain.holds(wrap(messages))


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_across_the_boundaries_of_headers(count: int) -> None:
    """A list that grows past a size at which msgpack's header changes is stored to the byte."""
    chain, items = Chain(), ["text"] * count
    chain.put(items)
    assert chain.holds(items)
    items = [*items, "one more"]
    chain.put(items)
    assert chain.holds(items)


EDITS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "first removed": lambda items: items[1:],
    "last removed": lambda items: items[:-1],
    "middle removed": lambda items: items[:20] + items[21:],
    "middle replaced": lambda items: [*items[:20], HumanMessage("new"), *items[21:]],
    "inserted": lambda items: [*items[:20], HumanMessage("new"), *items[20:]],
    "reversed": lambda items: items[::-1],
    "rotated": lambda items: items[7:] + items[:7],
    "one left": lambda items: items[20:21],
    "doubled": lambda items: items + items,
    "first again": lambda items: [*items, items[0]],
    "summary and tail": lambda items: [HumanMessage("summary"), *items[-5:]],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_keep_what_stays(edit: Callable[[list[Any]], list[Any]], encoded: list[Any]) -> None:
    """Removing, replacing, moving and repeating elements encodes at most the element that is new."""
    chain, messages = Chain(), _messages(40)
    chain.put(messages)
    encoded.clear()
    edited = edit(messages)
    chain.put(edited)
    assert encoded == [item for item in edited if not any(item is known for known in messages)]
    assert isinstance(chain.patch, Splice)
    assert chain.holds(edited)
    chain.put([*edited, *_messages(1, 40)])
    assert chain.holds([*edited, *_messages(1, 40)])


def test_equal_elements_that_are_new_objects_are_not_stored_again() -> None:
    """A list of equal copies is no change; a copy with a new element after it stores that element only."""
    chain, messages = Chain(), _messages(40)
    chain.put(messages)
    assert chain.put([item.model_copy(deep=True) for item in messages]) is None
    patch = chain.put([*_messages(40), HumanMessage("new")])
    assert isinstance(patch, Splice)
    assert sum(len(piece.lengths) for piece in patch.pieces if isinstance(piece, New)) == 1


def _stored_list(items: list[Any]) -> tuple[Chain, list[bytes]]:
    chain = Chain()
    chain.put(items)
    return chain, [translate.encode_element(item) for item in items]


def test_adopted_objects_are_compared_with_what_is_stored(encoded: list[Any]) -> None:
    """Of objects that were decoded from the log, the changed ones are encoded, the others are not."""
    written, stored = _stored_list(_messages(300))
    handed_out = SERDE.loads_typed(_encoded(written.stored))
    channel = ListChannel(lambda: stored, list(map(len, stored)))
    channel.adopt(handed_out)
    chain = Chain(channel, written.stored)
    encoded.clear()
    assert chain.put(list(handed_out), everything=True) is None
    assert encoded == []
    handed_out[5].id = "given"
    handed_out[7].additional_kwargs["n"] = 7.0
    chain.put([*handed_out, HumanMessage("new")], everything=True)
    assert len(encoded) == 3
    assert chain.holds([*handed_out, HumanMessage("new")])


def test_objects_that_were_not_adopted_are_compared_with_what_is_stored() -> None:
    """A list that is put over a stored one, without knowing its objects, becomes the difference of the two."""
    written, stored = _stored_list(_messages(40))
    chain = Chain(ListChannel(lambda: stored, list(map(len, stored))), written.stored)
    assert chain.put(_messages(40)) is None
    chain = Chain(ListChannel(lambda: stored, list(map(len, stored))), written.stored)
    patch = chain.put([*_messages(40)[1:], HumanMessage("new")])
    assert isinstance(patch, Splice)
    assert [type(piece) for piece in patch.pieces] == [Keep, New]
    assert chain.holds([*_messages(40)[1:], HumanMessage("new")])


def test_entries_that_were_stored_before_are_compared() -> None:
    """A dict that is put over a stored one becomes a merge of what differs."""
    files = {f"{n}.txt": {"content": [f"line {n}" * 9]} for n in range(40)}
    written = Chain()
    written.put(files)
    assert isinstance(written.stored, Map)
    chain = Chain(DictChannel(written.stored.entries), written.stored)
    assert chain.put({key: dict(entry) for key, entry in files.items()}) is None
    chain = Chain(DictChannel(written.stored.entries), written.stored)
    changed = {**files, "3.txt": {"content": []}, "new.txt": {}}
    del changed["5.txt"]
    patch = chain.put(changed)
    assert isinstance(patch, Merge)
    assert patch.drop == ("5.txt",)
    assert list(patch.changes) == ["3.txt", "new.txt"]
    assert chain.holds(changed)


def test_a_plain_value_that_is_the_same_object_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large value whose object and version stand is not serialized again; a new version has it serialized."""
    calls: list[Any] = []
    dumps = JsonPlusSerializer.dumps_typed

    class Counting(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            calls.append(obj)
            return dumps(self, obj)

    serde = Counting()
    chain, value = Chain(), tuple(range(10_000))
    for _ in range(4):
        chain.put(value, moved=False, serde=serde)
    assert len(calls) == 1
    chain.put(value, moved=True, serde=serde)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (_messages(1), ListChannel),
        (["text"], ListChannel),
        ([1, "text"], ListChannel),
        ([{"k": 1}], ListChannel),
        ({"a": 1}, DictChannel),
        ([], PlainChannel),
        ({}, PlainChannel),
        ([1, 2, 3], PlainChannel),
        ((HumanMessage("hi"),), PlainChannel),
        ({1: "a"}, PlainChannel),
        ({"a\n": 1}, PlainChannel),
        ("text", PlainChannel),
        (None, PlainChannel),
    ],
    ids=repr,
)
def test_which_values_are_taken_apart(value: Any, kind: type) -> None:
    """Lists, but not of numbers, and dicts with printable text keys are stored element by element."""
    chain = Chain()
    chain.put(value)
    assert type(chain.channel) is kind
    assert chain.holds(value)


def test_which_serializers_are_taken_apart() -> None:
    """Only JsonPlusSerializer's own encoding is known element by element."""

    class Own(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            return super().dumps_typed(obj)

    class Derived(JsonPlusSerializer):
        pass

    assert by_element(SERDE)
    assert by_element(Derived(allowed_msgpack_modules=None))
    assert not by_element(Own())
    assert not by_element(EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16))


def test_another_serializer_stores_the_value_as_a_whole() -> None:
    """When the serializer changes, the value is stored anew, and again when it changes back."""
    encrypted = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16)
    chain, messages = Chain(), _messages(40)
    chain.put(messages)
    assert isinstance(chain.put(list(messages), serde=encrypted), Blob)
    assert chain.stored is not None
    assert len(encrypted.loads_typed(_encoded(chain.stored))) == 40
    assert isinstance(chain.put(list(messages)), Array)
    assert chain.holds(messages)


def test_sizes_follow_the_value() -> None:
    """What a channel says it holds stays near the size of the value, however often parts of it are replaced."""
    lists, dicts = Chain(), Chain()
    for number in range(50):
        lists.put([HumanMessage(f"{number}" * 500)])
        dicts.put({"todo": {"text": f"{number}" * 500}})
    assert lists.channel.size <= 2 * len(SERDE.dumps_typed([HumanMessage("49" * 500)])[1])
    assert dicts.channel.size <= 2 * len(SERDE.dumps_typed({"todo": {"text": "49" * 500}})[1])
