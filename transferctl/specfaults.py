"""What pydantic finds wrong with a spec, in words: one sentence a key, with what is wanted and a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from transferctl.errors import Problem
from transferctl.spec import Spec
from transferctl.yamltree import SCALARS, Key, did_you_mean, dotted, shown, split, where_of


def explain(
    details: Sequence[ErrorDetails], tree: Any, positions: Mapping[Key, str], told: set[str]
) -> Iterator[Problem]:
    """One problem a key: the branches of a union (`a whole number or auto`) become one sentence."""
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in details:
        by_key.setdefault(raw_key(detail, tree), []).append(detail)
    parents = {key[:depth] for key in by_key for depth in range(len(key))}
    for key, group in by_key.items():
        if key in parents and all(detail["type"] in {*_SAY_WHAT_IS_WANTED, "too_short"} for detail in group):
            continue  # the union's other branch, or the list's item, already says what is wrong inside
        if not any(_follows(detail, key, told) for detail in group):
            yield Problem(dotted(key), _sentence(key, group, tree), where_of(positions, key))


def _follows(detail: ErrorDetails, key: Key, told: set[str]) -> bool:
    """Whether it is but a consequence of what is told already."""
    causes = {dotted(key), dotted((*key, "<<"))}
    if detail["type"] == "missing":
        causes.add(dotted((*key[:-1], "<<")))
    if detail["type"] == "across_keys":
        other = dotted((*detail["loc"], detail["ctx"]["other"]))
        return any(f"{cause}.".startswith(f"{other}.") for cause in told)
    return bool(causes & told)


def raw_key(detail: ErrorDetails, tree: Any) -> Key:
    """The key as written: pydantic's location, and the key that our own faults name, less union branches."""
    key: list[str | int] = []
    here = tree
    within = split(detail.get("ctx", {}).get("key", ""))
    for part in (*detail["loc"], *within):
        if isinstance(here, dict) and part in here:
            key.append(part)
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            key.append(part)
            here = here[part]
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):  # else an item of a short list
        key.append(detail["loc"][-1])
    return tuple(key)


_TYPE_WORDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "a path",
    "is_instance_of": "a path",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}
_SAY_WHAT_IS_WANTED = {*_TYPE_WORDS, "literal_error", "wrong_form"}
_EVERY = "auto, or a whole number of steps, epochs or minutes (200 steps)"
_PATTERNS = {
    "checkpoint": _EVERY,
    "every": _EVERY,
    "device": "auto, cpu, cuda, cuda:N or mps",
    "name": "letters, digits, '.', '_' or '-' (at most 100, starting with a letter or digit)",
}
_PLAIN = {"a whole number": "int", "a number": "float", "true or false": "bool"}


def _sentence(key: Key, group: Sequence[ErrorDetails], tree: Any) -> str:
    kinds = {detail["type"]: detail for detail in reversed(group)}
    value = group[0]["input"]
    if "extra_forbidden" in kinds:
        return f"is not a setting{_suggest_key(key, tree)}"
    if "missing" in kinds:
        last = group[-1]["loc"][-1]
        return f"must have {last + 1} items, not {len(value)}" if isinstance(last, int) else _missing(key)
    if key == ("device",):
        return f"must be {_PATTERNS['device']}, not {shown(value)}"
    if kind := kinds.get("unknown_kind"):
        choices, value = kind["ctx"]["kinds"], kind["ctx"]["written"]
        return f"must be {_either(choices)}, not {shown(value)}{did_you_mean(value, choices)}"
    others = [detail for name, detail in kinds.items() if name not in _SAY_WHAT_IS_WANTED]
    if others:
        return _value_sentence(others[0], key)
    expected = list(dict.fromkeys(word for detail in group for word in _expected(detail)))
    literals = [word for detail in group if detail["type"] == "literal_error" for word in _expected(detail)]
    hint = _quotes(value, expected) or did_you_mean(value, literals)
    return f"must be {_either(expected)}, not {shown(value)}{hint}"


def _expected(detail: ErrorDetails) -> list[str]:
    if detail["type"] == "literal_error":
        return re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
    if detail["type"] == "wrong_form":
        return str(detail["ctx"]["wanted"]).split(" or ")
    return [_TYPE_WORDS[detail["type"]]]


def _quotes(value: Any, expected: Sequence[str]) -> str:
    """The hint where quotes alone make the value wrong, or would mend it."""
    if isinstance(value, str):
        plain = [SCALARS[_PLAIN[word]] for word in expected if word in _PLAIN]
        return "; remove the quotes" if any(re.fullmatch(pattern, value) for pattern in plain) else ""
    is_text = expected[0] in ("text", "a path") and isinstance(value, bool | int | float)
    return "; put it in quotes to use it as text" if is_text else ""


def _value_sentence(detail: ErrorDetails, key: Key) -> str:  # noqa: PLR0911 (a table)
    context: dict[str, Any] = dict(detail.get("ctx", {}))
    found = shown(detail["input"])
    bounds = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if detail["type"] in bounds:
        name, words = bounds[detail["type"]]
        return f"must be {words} {context[name]:,.15g}, not {found}"
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "string_pattern_mismatch":
        return f"must be {_PATTERNS[str(key[-1])]}, not {found}"
    if detail["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    if detail["type"] == "too_long":
        return f"must have {context['max_length']} items, not {context['actual_length']}"
    if detail["type"] == "across_keys":
        return detail["msg"]
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {found}"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# -- suggestions --------------------------------------------------------------------------------------


def _suggest_key(key: Key, tree: Any) -> str:
    """The nearest sibling, else the nearest key anywhere whose last part is close: of a group that the spec has, before
    one that it lacks; of equals the one less deep, and the target's before the source's."""
    written, parent = str(key[-1]), key[:-1]
    settings = all_settings()
    siblings = [name[-1] for name in settings if name[:-1] == tuple(p for p in parent if isinstance(p, str))]
    if written in siblings:
        return " of the kind chosen here"
    if near := difflib.get_close_matches(written, siblings, 1, 0.6):
        return f"; did you mean {dotted((*parent, near[0]))}?"
    if near := difflib.get_close_matches(written, {name[-1] for name in settings}, 1, 0.75):
        called = [name for name in settings if name[-1] == near[0]]
        has = tree if isinstance(tree, dict) else {}
        best = min(called, key=lambda name: (name[0] not in has, len(name), name[0] == "source"))
        return f"; did you mean {dotted(best)}?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


@cache
def all_settings() -> dict[tuple[str, ...], str]:
    """Every dotted key of the spec and its description; the branches of unions are merged."""
    found: dict[tuple[str, ...], str] = {}

    def visit(model: type[BaseModel], parent: tuple[str, ...]) -> None:
        for name, field in model.model_fields.items():
            key = (*parent, field.alias or name)
            found.setdefault(key, field.description or "")
            for inner in _models_in(field.annotation, field.metadata):
                visit(inner, key)

    visit(Spec, ())
    return found


def _models_in(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _missing(key: Key) -> str:
    names = tuple(part for part in key if isinstance(part, str))
    return f"is missing: {all_settings().get(names) or 'it has no default'}"
