"""Is an object still what it was when it was encoded?  Answered without encoding it again.

A fingerprint is exact: as long as it compares equal, JsonPlusSerializer would give the same bytes.  It holds
the object's strings by reference (comparing them is a pointer comparison while nothing has changed) and
everything else in the encoding that the serializer itself would use, so that `True` differs from `1`.
What cannot be judged in this way has no fingerprint and is encoded to be compared.
"""

from __future__ import annotations

from typing import Final

import ormsgpack
from pydantic import BaseModel

IMMUTABLE: Final = "immutable"
"""The fingerprint of an object that cannot change."""

_IMMUTABLE_TYPES: Final = frozenset({str, int, float, bool, type(None), bytes})

# What JsonPlusSerializer passes to ormsgpack; with a `default` that refuses, everything that it would hand
# to its own hook has no fingerprint.
_OPTIONS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)

_plain_models: dict[type, bool] = {}


def fingerprint(value: object) -> object | None:
    """The fingerprint of an object; None if it has to be encoded to be compared."""
    kind = type(value)
    if kind in _IMMUTABLE_TYPES:
        return IMMUTABLE
    plain = _plain_models.get(kind)
    if plain is None:
        plain = _plain_models[kind] = _is_plain_model(kind)
    if not plain:
        return None
    assert isinstance(value, BaseModel)
    texts: list[str] = []
    others: dict[str, object] = {}
    for name, item in value.__dict__.items():
        if type(item) is str:
            texts.append(name)
            texts.append(item)
        else:
            others[name] = item
    try:
        packed = ormsgpack.packb((others, value.__pydantic_extra__), default=_refuse, option=_OPTIONS)
    except (ormsgpack.MsgpackEncodeError, TypeError):
        return None
    return kind, tuple(value.__dict__), texts, packed


def _refuse(value: object) -> object:
    raise TypeError


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
