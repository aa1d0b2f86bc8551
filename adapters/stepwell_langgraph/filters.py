"""What a search keeps: LangGraph's filters as predicates over values (SPEC.md, section 17.7).

A filter is data.  Its keys are keys of the value as they are written, whatever characters they hold.  Many values are
looked at together, and of each only the fields that the filter names are decoded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter, methodcaller
from typing import Any, Final, TypeAlias

import msgspec

from stepwell.errors import UsageError
from stepwell.patch import array_header
from stepwell.storage import Item
from stepwell_langgraph.values import value_of

Predicate: TypeAlias = Callable[[Any], bool]

_DECODERS_HELD: Final = 256


class Filter:
    """Which items have everything that a filter asks for.

    Args:
        filter_: Conditions by key.  A key that is not there is as good as null.

    Raises:
        UsageError: There is no such operator.
    """

    def __init__(self, filter_: Mapping[str, Any]) -> None:
        tests = _tests(filter_)
        self._decode, fields = _decoder(tuple(key for key, _ in tests))
        self._tests = [(field, test) for field, (_, test) in zip(fields, tests, strict=True)]

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those of some items that have it, in their order."""
        payloads = b"".join([item.value[1] for item in items])
        try:
            pairs = list(zip(items, self._decode(array_header(len(items)) + payloads), strict=True))
        except (ValueError, RecursionError):
            for item in items:
                value_of(item)  # raises and says which one it is
            raise
        for field, test in self._tests:
            pairs = [pair for pair in pairs if test(field(pair[1]))]
        return [item for item, _ in pairs]


@lru_cache(maxsize=_DECODERS_HELD)
def _decoder(keys: tuple[str, ...]) -> tuple[Callable[[bytes], list[Any]], list[Callable[[Any], Any]]]:
    """What decodes an array of values, of each the fields with these keys; and what takes each field out of one."""
    names = {f"field{place}": key for place, key in enumerate(keys)}
    try:
        row = msgspec.defstruct("Row", [(name, Any, None) for name in names], rename=names)
    except ValueError:  # quotes, backslashes, control characters and halves of surrogate pairs name no field of it
        return msgspec.msgpack.Decoder(list[dict[str, Any]]).decode, [methodcaller("get", key) for key in keys]
    return msgspec.msgpack.Decoder(list[row]).decode, [attrgetter(name) for name in names]  # type: ignore[valid-type]


def _tests(filter_: Mapping[str, Any]) -> list[tuple[str, Predicate]]:
    if not isinstance(filter_, Mapping) or not all(isinstance(key, str) for key in filter_):
        raise UsageError(f"a filter is a dict with keys of the values, not {filter_!r}")
    return [(key, _condition(wanted)) for key, wanted in filter_.items()]


def _condition(wanted: Any) -> Predicate:
    """What one field must be: equal, inside an operator's bounds, or a map or list of such."""
    if isinstance(wanted, Mapping):
        if any(isinstance(key, str) and key.startswith("$") for key in wanted):
            tests = [_operator(name, operand) for name, operand in wanted.items()]
            return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)
        fields = _tests(wanted)
        return lambda value: isinstance(value, dict) and all(test(value.get(key)) for key, test in fields)
    if isinstance(wanted, list | tuple):
        elements = [_condition(element) for element in wanted]
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(elements)
            and all(test(element) for test, element in zip(elements, value, strict=True))
        )
    return lambda value: bool(value == wanted)


def _operator(name: str, operand: Any) -> Predicate:
    if isinstance(operand, tuple):
        operand = list(operand)
    if name == "$eq":
        return lambda value: bool(value == operand)
    if name == "$ne":
        return lambda value: value is not None and bool(value != operand)
    compare = _ORDERS.get(name)
    if compare is None:
        raise UsageError(f"Unsupported operator: {name!r}; there are $eq, $ne, {', '.join(_ORDERS)}")
    return lambda value: _in_order(compare, value, operand)


_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def _in_order(compare: Callable[[Any, Any], bool], value: Any, operand: Any) -> bool:
    """Texts are compared as texts, everything else as numbers; what is none is in no order."""
    if isinstance(value, str) and isinstance(operand, str):
        return compare(value, operand)
    left, right = _number(value), _number(operand)
    return left is not None and right is not None and compare(left, right)


def _number(value: Any) -> int | float | None:
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
