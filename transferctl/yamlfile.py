"""YAML text -> spec, with every problem at once, each at its file and line.

YAML 1.2's rules for plain scalars apply, not PyYAML's 1.1 ones: `1e-3` is a number; `no` and `on` are
text. Tags are refused, aliases are counted, nothing is ever constructed but text, numbers, booleans,
nulls, lists and mappings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from transferctl.errors import Problem, SpecError
from transferctl.spec import Spec

MAX_BYTES = 256 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_DIGITS = 300  # of a whole number; Python refuses to parse more than 4,300, floats end at 308

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class SpecFile:
    """A spec and where each of its keys was written (`file:line`, or the `--set` that gave it)."""

    spec: Spec
    path: Path
    positions: Mapping[Key, str]

    def locate(self, error: SpecError) -> SpecError:
        """The same error, each problem with its file and line: for faults found after parsing."""
        placed = [
            problem if problem.where else replace(problem, where=_where(self.positions, _split(problem.key)))
            for problem in error.problems
        ]
        return SpecError(placed)


def load(path: Path | str, overrides: Sequence[str] = ()) -> SpecFile:
    """Read, override (`--set a.b=value`) and validate a spec. Raises SpecError with all problems."""
    path = Path(path)
    document = _Document(str(path))
    tree = document.parse(_read_text(path))
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {_kind(tree)}"
        raise SpecError([Problem("", f"a spec is a mapping of settings; this file is {found}", f"{path}:1")])
    for override in overrides:
        try:
            document.override(tree, override)
        except SpecError as error:
            document.problems += error.problems
    tree.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-._") or "run")
    told = {problem.key for problem in document.problems if problem.key}
    more = [problem for problem in _problems(tree, document.positions, path) if problem.key not in told]
    if problems := [*document.problems, *more]:
        raise SpecError(problems)
    return SpecFile(_validate(tree, path), path, document.positions)


def dump(spec: Spec) -> str:
    """The resolved spec as YAML that `load` reads back to an equal spec."""
    values = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.dump(values, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True)


# -- text -> tree -------------------------------------------------------------------------------------


class WrittenInt(int):
    """An int that remembers how it was written, in case the field is a name (05)."""

    text: str


class WrittenFloat(float):
    text: str


class _CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's class-level registry)


class _CoreDumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _class in (_CoreLoader, _CoreDumper):
    for _name, _pattern in _SCALARS.items():
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise SpecError([Problem("", "is a folder; name a YAML file in it", str(path))]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        message = f"cannot read the spec: {getattr(error, 'strerror', None) or error}{_similar_files(path)}"
        raise SpecError([Problem("", message, str(path))]) from None
    if len(data) > MAX_BYTES:
        raise SpecError([Problem("", f"is larger than {MAX_BYTES // 1024} KiB; that is no spec", str(path))])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        raise SpecError([Problem("", message, f"{path}:{line}")]) from None


def _similar_files(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    return _did_you_mean(path.name, names)


class _Document:
    """Builds the tree from YAML nodes, noting where each key stands and what is wrong."""

    def __init__(self, label: str):
        self.label = label
        self.positions: dict[Key, str] = {(): f"{label}:1"}
        self.problems: list[Problem] = []
        self._nodes = 0

    def parse(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=_CoreLoader)
            return None if node is None else self._build(node, (), ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.label}:{mark.line + 1}" if mark else self.label
            raise SpecError([Problem("", _syntax_message(error), where)]) from None
        except yaml.YAMLError as error:
            raise SpecError([Problem("", f"is not YAML: {_one_line(error)}", self.label)]) from None
        except RecursionError:
            raise SpecError([Problem("", "is nested too deeply", self.label)]) from None

    def _build(self, node: yaml.Node, key: Key, ancestors: tuple[int, ...]) -> Any:
        where = f"{self.label}:{node.start_mark.line + 1}"
        self.positions.setdefault(key, where)
        self._nodes += 1
        if self._nodes > MAX_NODES or id(node) in ancestors:
            raise SpecError([Problem("", "aliases expand to too much; write the values out", where)])
        if len(key) > MAX_DEPTH:
            raise SpecError([Problem("", "is nested too deeply", where)])
        if not _has_plain_tag(node):
            message = f"tags ({_shown_tag(node.tag)}) are not accepted; write a plain value"
            self.problems.append(Problem(dotted(key), message, where))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, (*ancestors, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*key, i), (*ancestors, id(node))) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        if node.tag == f"{_TAG}int" and len(node.value) > MAX_DIGITS:
            self.problems.append(Problem(dotted(key), "has too many digits", where))
            return None
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key, ancestors: tuple[int, ...]) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name_node, value_node in node.value:
            where = f"{self.label}:{name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode):
                self.problems.append(Problem(dotted(key), "a key must be plain text", where))
                continue
            name = str(name_node.value)
            if name in tree:
                first = self.positions[(*key, name)]
                message = f"is written twice (first at {first}); keep one"
                self.problems.append(Problem(dotted((*key, name)), message, where))
                continue
            self.positions[(*key, name)] = where
            tree[name] = self._build(value_node, (*key, name), ancestors)
        return tree

    def override(self, tree: dict[str, Any], assignment: str) -> None:
        """Apply one `--set a.b=value`; the value is YAML and may contain `=`."""
        flag = f"--set {assignment}"
        path, separator, text = assignment.partition("=")
        key = _split(path.strip())
        if not separator or not key or not all(key):
            raise SpecError([Problem("", "write it as key=value, such as optimizer.lr=0.003", flag)])
        if len(key) > MAX_DEPTH:
            raise SpecError([Problem("", "is nested too deeply", flag)])
        inner = _Document(flag)
        value = inner.parse(text)
        self.problems += inner.problems
        for depth, name in enumerate(key[:-1], 1):
            if not isinstance(tree.setdefault(str(name), {}), dict):
                parent, shown = dotted(key[:depth]), _shown(tree[str(name)])
                message = f"{parent} is {shown} here, not a mapping; set {parent} whole: '{parent}={{…}}'"
                raise SpecError([Problem(dotted(key), message, flag)])
            tree = tree[str(name)]
        tree[str(key[-1])] = value
        self.positions = {old: where for old, where in self.positions.items() if old[: len(key)] != key}
        self.positions |= {key[:depth]: flag for depth in range(1, len(key)) if key[:depth] not in self.positions}
        self.positions |= {(*key, *inside): flag for inside in inner.positions}


def _has_plain_tag(node: yaml.Node) -> bool:
    """Whether the tag is the one that the value has anyway; `!!str 05` is but a way to quote."""
    if isinstance(node, yaml.ScalarNode):
        pattern = _SCALARS.get(node.tag.removeprefix(_TAG))
        return node.tag == f"{_TAG}str" or bool(pattern and re.fullmatch(pattern, node.value))
    return bool(node.tag == _TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq"))


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        whole = WrittenInt(int(text, base))
        whole.text = text
        return whole
    if kind == "float":
        real = WrittenFloat(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        real.text = text
        return real
    return text


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    text = _one_line(error.problem or error.context or error)
    if r"'\t'" in text:
        return "a tab stands where YAML wants spaces; indent with spaces"
    if "found another document" in text:
        return "holds more than one document; a spec is one (remove the second '---')"
    if "undefined alias" in text:
        return f"{text}; define it with & first"
    return f"is not YAML: {text}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def _shown_tag(tag: str) -> str:
    return tag.replace(_TAG, "!!")


# -- tree -> spec -------------------------------------------------------------------------------------


def _validate(tree: Any, path: Path) -> Spec:
    folders = (path.absolute().parent, Path.cwd())
    return Spec.model_validate(tree, context={"folders": folders})


def _problems(tree: dict[str, Any], positions: Mapping[Key, str], path: Path) -> list[Problem]:
    """What pydantic finds; then, with those keys taken out, what the checks across keys find."""
    try:
        _validate(tree, path)
    except ValidationError as error:
        details = error.errors(include_url=False)
        first = list(_explain_all(details, tree, positions))
        seen = {problem.key for problem in first}
        rest = _without(tree, [_raw_key(detail, tree) for detail in details])
        try:
            _validate(rest, path)
        except ValidationError as again:
            more = [d for d in again.errors(include_url=False) if d["type"] == "value_error"]
            first += [p for p in _explain_all(more, rest, positions) if p.key not in seen or not p.key]
        return list(dict.fromkeys(first))
    return []


def _without(tree: Any, keys: Iterable[Key], here: Key = ()) -> Any:
    keys = set(keys) - {()}
    if not isinstance(tree, dict):
        return tree
    return {name: _without(value, keys, (*here, name)) for name, value in tree.items() if (*here, name) not in keys}


def _explain_all(details: Sequence[ErrorDetails], tree: Any, positions: Mapping[Key, str]) -> Iterator[Problem]:
    """One problem a key: the branches of a union (`a whole number or auto`) become one sentence."""
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in details:
        by_key.setdefault(_raw_key(detail, tree), []).append(detail)
    for key, group in by_key.items():
        deeper = any(other != key and other[: len(key)] == key for other in by_key)
        if deeper and all(detail["type"] in {*_TYPE_WORDS, "literal_error"} for detail in group):
            continue  # the union's other branch already says what is wrong inside
        yield Problem(dotted(key), _sentence(key, group, tree), _where(positions, key))


def _raw_key(detail: ErrorDetails, tree: Any) -> Key:
    """The key as written: pydantic's location less the names of union branches."""
    key: list[str | int] = []
    here = tree
    for i, part in enumerate(detail["loc"]):
        last = i == len(detail["loc"]) - 1
        if isinstance(here, dict) and part in here:
            key.append(part)
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            key.append(part)
            here = here[part]
        elif last and detail["type"] == "missing":
            key.append(part)
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
    "union_tag_not_found": "a path or a mapping with `dataset`",
}


def _sentence(key: Key, group: Sequence[ErrorDetails], tree: Any) -> str:
    kinds = {detail["type"] for detail in group}
    first = group[0]
    context: dict[str, Any] = dict(first.get("ctx", {}))
    shown = _shown(first["input"])
    if "extra_forbidden" in kinds:
        return f"is not a setting{_suggest_key(key)}"
    if "missing" in kinds:
        return f"is missing: {_description(key)}"
    if "union_tag_invalid" in kinds:
        choices = [choice.strip().strip("'") for choice in context["expected_tags"].split(",")]
        return f"must be {_either(choices)}, not {context['tag']!r}{_did_you_mean(context['tag'], choices)}"
    others = [d for d in group if d["type"] not in _TYPE_WORDS and d["type"] != "literal_error"]
    if others:
        return _value_sentence(others[0], key)
    expected = [word for d in group for word in _expected(d)]
    literals = [word for d in group if d["type"] == "literal_error" for word in _expected(d)]
    hint = _did_you_mean(first["input"], literals) if isinstance(first["input"], str) else ""
    if expected == ["text"] and not isinstance(first["input"], dict | list | None):
        hint = "; put it in quotes to use it as text"
    return f"must be {_either(list(dict.fromkeys(expected)))}, not {shown}{hint}"


def _expected(detail: ErrorDetails) -> list[str]:
    if detail["type"] == "literal_error":
        return re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
    return [_TYPE_WORDS[detail["type"]]]


def _value_sentence(detail: ErrorDetails, key: Key) -> str:
    context: dict[str, Any] = dict(detail.get("ctx", {}))
    shown = _shown(detail["input"])
    bounds = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if detail["type"] in bounds:
        name, words = bounds[detail["type"]]
        return f"must be {words} {context[name]:g}, not {shown}"
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "string_pattern_mismatch":
        if key == ("device",):
            return f"must be auto, cpu, cuda, cuda:N or mps, not {shown}"
        return f"must be letters, digits, '.', '_' or '-' (at most 100, starting with a letter or digit), not {shown}"
    if detail["type"] in ("too_short", "too_long", "missing_argument"):
        return f"has the wrong number of items: {detail['msg']}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown}"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = getattr(value, "text", None) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _kind(tree: Any) -> str:
    return "list" if isinstance(tree, list) else "single value"


# -- suggestions --------------------------------------------------------------------------------------


def _suggest_key(key: Key) -> str:
    """The nearest sibling, else the nearest key anywhere whose last part is close."""
    written, parent = str(key[-1]), key[:-1]
    settings = _all_settings()
    siblings = [name[-1] for name in settings if name[:-1] == tuple(p for p in parent if isinstance(p, str))]
    if written in siblings:
        return " of the kind chosen here"
    if near := difflib.get_close_matches(written, siblings, 1, 0.6):
        return f"; did you mean {dotted((*parent, near[0]))}?"
    lasts = {name[-1]: dotted(name) for name in sorted(settings, key=len, reverse=True)}
    if near := difflib.get_close_matches(written, lasts, 1, 0.75):
        return f"; did you mean {lasts[near[0]]}?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


def _did_you_mean(written: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(written, choices, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _all_settings() -> dict[tuple[str, ...], str]:
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


def _description(key: Key) -> str:
    names = tuple(part for part in key if isinstance(part, str))
    return _all_settings().get(names, "") or "it has no default"


def dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _split(key: str) -> Key:
    return tuple(key.split(".")) if key else ()


def _where(positions: Mapping[Key, str], key: Key) -> str:
    """Where a key stands, or the nearest parent that was written."""
    while key not in positions:
        key = key[:-1]
    return positions[key]
