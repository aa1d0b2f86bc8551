"""What a search keeps: LangGraph's filters as predicates over values (SPEC.md, section 17.5).

A filter is data.  Its keys are keys of the value as they are written, whatever characters they hold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from stepwell.errors import UsageError

Predicate = Callable[[Any], bool]

_ABSENT: Final = None  # a key that is not there is as good as null, as in JSON


def compile_filter(filter_: Mapping[str, Any]) -> Predicate:
    """Whether a value has everything that a filter asks for.

    Raises:
        UsageError: There is no such operator.
    """
    if not isinstance(filter_, Mapping):
        raise UsageError(f"a filter is a dict, not {type(filter_).__name__}: {filter_!r}")
    tests = [(key, _condition(wanted)) for key, wanted in filter_.items()]
    if len(tests) == 1:
        key, test = tests[0]
        return lambda value: test(value.get(key, _ABSENT))
    return lambda value: all(test(value.get(key, _ABSENT)) for key, test in tests)


def _condition(wanted: Any) -> Predicate:
    """What one field must be: equal, inside an operator's bounds, or a map or list of such."""
    if isinstance(wanted, Mapping):
        if any(isinstance(key, str) and key.startswith("$") for key in wanted):
            tests = [_operator(name, operand) for name, operand in wanted.items()]
            return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)
        fields = compile_filter(wanted)
        return lambda value: isinstance(value, dict) and fields(value)
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
