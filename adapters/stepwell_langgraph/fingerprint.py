"""Is an object still what it was when it was encoded?  Answered without encoding it again.

A fingerprint is exact: as long as it matches, JsonPlusSerializer would give the same bytes.  It holds the values of
the object's fields by reference (comparing them compares pointers) and those that can change in place also in the
encoding that the serializer itself would use, so that `True` differs from `1`.
What cannot be judged in this way has no fingerprint and is encoded to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Final, Self

import msgspec
import ormsgpack
from pydantic import BaseModel

from stepwell.patch import array_header

IMMUTABLE: Final = "immutable"
"""The fingerprint of an object that cannot change."""

IMMUTABLE_TYPES: Final = frozenset({str, int, float, bool, type(None), bytes})

# What JsonPlusSerializer passes to ormsgpack; with a `default` that refuses, everything that it would hand
# to its own hook has no fingerprint.
OPTIONS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)

# How JsonPlusSerializer encodes a pydantic model: an extension around its module, name, fields and this.
_METHOD: Final = "model_validate_json"
_PYDANTIC_MODEL: Final = 5
_EXTENSION_HEADERS: Final = {0xC7: 3, 0xC8: 4, 0xC9: 6}  # bytes before the content, by first byte

_plain_models: dict[type, bool] = {}


class Fingerprint(msgspec.Struct, frozen=True, gc=False, eq=False):
    """What a pydantic model was like.  There is one for each message that is remembered: nothing for the collector.

    Attributes:
        kind: Its class.
        names: Of its fields.
        values: Of its fields.
        changeable: Names of the fields whose values can change in place.
        packed: Their encoding, and that of extra fields.
    """

    kind: type
    names: tuple[str, ...]
    values: tuple[Any, ...]
    changeable: tuple[str, ...]
    packed: bytes

    @classmethod
    def of(cls, model: BaseModel) -> Self:
        """The fingerprint of a model; raises MsgpackEncodeError or TypeError if it has none."""
        fields = model.__dict__
        changeable = tuple(name for name, value in fields.items() if type(value) not in IMMUTABLE_TYPES)
        return cls(type(model), tuple(fields), tuple(fields.values()), changeable, _pack(model, changeable))

    def matches(self, value: object) -> bool:
        """Whether the object is what it was.  False of one that was changed back, or that only equals it."""
        if type(value) is not self.kind:
            return False
        assert isinstance(value, BaseModel)
        fields = value.__dict__
        if tuple(fields) != self.names or not all(map(is_, fields.values(), self.values)):
            return False
        try:
            return _pack(value, self.changeable) == self.packed
        except (ormsgpack.MsgpackEncodeError, TypeError):
            return False


def _pack(model: BaseModel, changeable: tuple[str, ...]) -> bytes:
    fields = model.__dict__
    values = [fields[name] for name in changeable]
    return ormsgpack.packb((values, model.__pydantic_extra__), default=refuse, option=OPTIONS)


class Fingerprints:
    """What several pydantic models were like: the fingerprint of each, compared all at once.

    That costs a fraction of comparing one after the other, and is as exact.
    """

    __slots__ = ("_changeable", "_extras", "_fields", "_kinds", "_models", "_names", "_packed", "_sizes", "_values")

    def __init__(self, models: Sequence[object], fingerprints: Sequence[Fingerprint]) -> None:
        self._models = models
        self._kinds = [one.kind for one in fingerprints]
        # Where a model's fields and extra fields are kept now; what they must be like, the fingerprints say.
        self._fields = list(map(_fields_of, models))
        self._extras = list(map(_extra_of, models))
        self._sizes = [len(one.names) for one in fingerprints]
        self._names = [name for one in fingerprints for name in one.names]
        self._values = [value for one in fingerprints for value in one.values]
        self._changeable = [
            ([value for value in one.values if type(value) not in IMMUTABLE_TYPES], extra)
            for one, extra in zip(fingerprints, self._extras, strict=True)
        ]
        self._packed = array_header(len(models)) + b"".join(one.packed for one in fingerprints)

    def match(self) -> bool:
        """Whether all of them are what they were.  If not, they have to be looked at one by one."""
        fields = self._fields
        try:
            return (
                all(map(is_, map(type, self._models), self._kinds))
                and all(map(is_, map(_fields_of, self._models), fields))
                and all(map(is_, map(_extra_of, self._models), self._extras))
                and list(map(len, fields)) == self._sizes
                and list(chain.from_iterable(fields)) == self._names
                and all(map(is_, chain.from_iterable(map(_values_of, fields)), self._values))
                and ormsgpack.packb(self._changeable, default=refuse, option=OPTIONS) == self._packed
            )
        except (ormsgpack.MsgpackEncodeError, TypeError, AttributeError, RuntimeError):
            return False  # or another thread is changing one of them


_fields_of: Final[attrgetter[dict[str, Any]]] = attrgetter("__dict__")
_extra_of: Final[attrgetter[dict[str, Any] | None]] = attrgetter("__pydantic_extra__")
_values_of: Final = dict.values


def fingerprint(value: object) -> Fingerprint | str | None:
    """The fingerprint of an object, or IMMUTABLE; None if it has to be encoded to be compared."""
    kind = type(value)
    if kind in IMMUTABLE_TYPES:
        return IMMUTABLE
    if not _is_plain(kind):
        return None
    assert isinstance(value, BaseModel)
    try:
        return Fingerprint.of(value)
    except (ormsgpack.MsgpackEncodeError, TypeError):
        return None


def encodes_to(value: object, data: bytes | memoryview) -> bool:
    """Whether JsonPlusSerializer would certainly encode a pydantic model to these bytes; False if that is not clear."""
    kind = type(value)
    if not _is_plain(kind):
        return False
    assert isinstance(value, BaseModel)
    fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    try:
        content = ormsgpack.packb((kind.__module__, kind.__name__, fields, _METHOD), default=refuse, option=OPTIONS)
    except (ormsgpack.MsgpackEncodeError, TypeError):
        return False
    stored = model_content(data)
    return stored is not None and bytes(stored) == content  # two memoryviews would be compared number by number


def model_content(data: bytes | memoryview) -> bytes | memoryview | None:
    """What stands in the encoding of a pydantic model: its module, name, fields and method; None if it is none."""
    header = _EXTENSION_HEADERS.get(data[0]) if len(data) else None
    if header is None or len(data) < header or data[header - 1] != _PYDANTIC_MODEL:
        return None
    return data[header:] if int.from_bytes(data[1 : header - 1]) == len(data) - header else None


def refuse(value: object) -> object:
    """For ormsgpack: an object that is no plain data."""
    raise TypeError


def _is_plain(kind: type) -> bool:
    plain = _plain_models.get(kind)
    if plain is None:
        plain = _plain_models[kind] = _is_plain_model(kind)
    return plain


def _is_plain_model(kind: type) -> bool:
    """Whether a pydantic model is dumped field by field as it stands, with no code of its class's own."""
    if not issubclass(kind, BaseModel) or kind.model_dump is not BaseModel.model_dump:
        return False
    decorators = kind.__pydantic_decorators__
    return not (
        decorators.field_serializers
        or decorators.model_serializers
        or decorators.computed_fields
        or kind.__private_attributes__
        or _has_serialization(kind.__pydantic_core_schema__)
    )


def _has_serialization(schema: object) -> bool:
    """Whether a core schema has a serializer anywhere, as annotated types may bring one."""
    if isinstance(schema, dict):
        return "serialization" in schema or any(map(_has_serialization, schema.values()))
    if isinstance(schema, list | tuple):
        return any(map(_has_serialization, schema))
    return False
