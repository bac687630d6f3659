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
from itertools import takewhile
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
    overrides: Sequence[str] = ()

    def locate(self, error: SpecError) -> SpecError:
        """The same error, each problem with its file and line: for faults found after parsing."""
        placed = [
            problem if problem.where else replace(problem, where=_where(self.positions, _split(problem.key)))
            for problem in error.problems
        ]
        return SpecError(_in_order(placed, self.overrides))


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
    if problems := _problems(tree, document, path):
        raise SpecError(_in_order(problems, overrides))
    return SpecFile(_validate(tree, path), path, document.positions, overrides)


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
    """Builds the tree from YAML nodes, noting where each key stands and what is wrong.

    `root`: the key that a `--set` assigns to; such a document is one line, which needs no number.
    """

    def __init__(self, label: str, root: Key = ()):
        self.label, self.root = label, root
        self.positions: dict[Key, str] = {root: self._place(0)}
        self.problems: list[Problem] = []
        self._nodes = 0

    def parse(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=_CoreLoader)
            return None if node is None else self._build(node, self.root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._fatal(_syntax_message(error), self._place(mark.line) if mark else self.label) from None
        except yaml.YAMLError as error:
            raise self._fatal(f"is not YAML: {_one_line(error)}", self.label) from None
        except RecursionError:
            raise self._fatal("is nested too deeply", self.label) from None

    def _place(self, line: int) -> str:
        return self.label if self.root else f"{self.label}:{line + 1}"

    def _fatal(self, message: str, where: str) -> SpecError:
        return SpecError([Problem(dotted(self.root), message, where)])

    def _build(self, node: yaml.Node, key: Key, ancestors: tuple[int, ...]) -> Any:
        where = self._place(node.start_mark.line)
        self.positions.setdefault(key, where)
        self._nodes += 1
        if self._nodes > MAX_NODES or id(node) in ancestors:
            raise self._fatal("aliases expand to too much; write the values out", where)
        if len(key) > MAX_DEPTH:
            raise self._fatal("is nested too deeply", where)
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
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key, ancestors: tuple[int, ...]) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name_node, value_node in node.value:
            where = self._place(name_node.start_mark.line)
            if not isinstance(name_node, yaml.ScalarNode):
                self.problems.append(Problem(dotted(key), "a key must be plain text", where))
                continue
            name = str(name_node.value)
            if name == "<<":
                message = "merge keys are not supported; write the values out"
                self.problems.append(Problem(dotted((*key, name)), message, where))
                continue
            if name in tree:
                first = self.positions[(*key, name)]
                elsewhere = f" (first at {first})" if first != where else ""
                self.problems.append(Problem(dotted((*key, name)), f"is written twice{elsewhere}; keep one", where))
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
        inner = _Document(flag, key)
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
        self.positions |= inner.positions


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


def _errors(tree: Any, path: Path) -> list[ErrorDetails]:
    try:
        _validate(tree, path)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _problems(tree: dict[str, Any], document: _Document, path: Path) -> list[Problem]:
    """The document's; what pydantic finds; then, with those keys taken out, what the checks across keys find."""
    found = list(document.problems)
    details = _errors(tree, path)
    while details:
        told = {problem.key for problem in found if problem.key}
        found += _explain_all(details, tree, document.positions, told)
        rest = _without(tree, [tuple(takewhile(_is_name, _raw_key(detail, tree))) for detail in details])
        more = _errors(rest, path) if rest != tree else []
        details, tree = [detail for detail in more if detail["type"] == "across_keys"], rest
    return found


def _in_order(problems: Iterable[Problem], overrides: Sequence[str]) -> list[Problem]:
    """By their line in the file, then by their flag."""
    flags = [f"--set {override}" for override in overrides]

    def place(problem: Problem) -> tuple[int, int]:
        if problem.where in flags:
            return 1 + flags.index(problem.where), 0
        line = problem.where.rpartition(":")[2]
        return 0, int(line) if line.isdecimal() else 0

    return sorted(problems, key=place)


def _is_name(part: str | int) -> bool:
    return isinstance(part, str)


def _without(tree: Any, keys: Iterable[Key], here: Key = ()) -> Any:
    keys = set(keys) - {()}
    if not isinstance(tree, dict):
        return tree
    return {name: _without(value, keys, (*here, name)) for name, value in tree.items() if (*here, name) not in keys}


def _explain_all(
    details: Sequence[ErrorDetails], tree: Any, positions: Mapping[Key, str], told: set[str]
) -> Iterator[Problem]:
    """One problem a key: the branches of a union (`a whole number or auto`) become one sentence."""
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in details:
        by_key.setdefault(_raw_key(detail, tree), []).append(detail)
    for key, group in by_key.items():
        deeper = any(other != key and other[: len(key)] == key for other in by_key)
        if deeper and all(detail["type"] in {*_SAY_WHAT_IS_WANTED, "too_short"} for detail in group):
            continue  # the union's other branch, or the list's item, already says what is wrong inside
        if not any(_follows(detail, key, told) for detail in group):
            yield Problem(dotted(key), _sentence(key, group), _where(positions, key))


def _follows(detail: ErrorDetails, key: Key, told: set[str]) -> bool:
    """Whether it is but a consequence of what is told already."""
    causes = {dotted(key), dotted((*key, "<<"))}
    if detail["type"] == "missing":
        causes.add(dotted((*key[:-1], "<<")))
    if detail["type"] == "across_keys":
        other = dotted((*detail["loc"], detail["ctx"]["other"]))
        return any(f"{cause}.".startswith(f"{other}.") for cause in told)
    return bool(causes & told)


def _raw_key(detail: ErrorDetails, tree: Any) -> Key:
    """The key as written: pydantic's location, and the key that our own faults name, less union branches."""
    key: list[str | int] = []
    here = tree
    within = _split(detail.get("ctx", {}).get("key", ""))
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
_PATTERNS = {
    "device": "auto, cpu, cuda, cuda:N or mps",
    "name": "letters, digits, '.', '_' or '-' (at most 100, starting with a letter or digit)",
}
_PLAIN = {"a whole number": "int", "a number": "float", "true or false": "bool"}


def _sentence(key: Key, group: Sequence[ErrorDetails]) -> str:
    kinds = {detail["type"]: detail for detail in reversed(group)}
    value = group[0]["input"]
    if "extra_forbidden" in kinds:
        return f"is not a setting{_suggest_key(key)}"
    if "missing" in kinds:
        last = group[-1]["loc"][-1]
        return f"must have {last + 1} items, not {len(value)}" if isinstance(last, int) else _missing(key)
    if key == ("device",):
        return f"must be {_PATTERNS['device']}, not {_shown(value)}"
    if kind := kinds.get("unknown_kind"):
        choices, value = kind["ctx"]["kinds"], kind["ctx"]["written"]
        return f"must be {_either(choices)}, not {_shown(value)}{_did_you_mean(value, choices)}"
    others = [detail for name, detail in kinds.items() if name not in _SAY_WHAT_IS_WANTED]
    if others:
        return _value_sentence(others[0], key)
    expected = list(dict.fromkeys(word for detail in group for word in _expected(detail)))
    literals = [word for detail in group if detail["type"] == "literal_error" for word in _expected(detail)]
    hint = _quotes(value, expected) or _did_you_mean(value, literals)
    return f"must be {_either(expected)}, not {_shown(value)}{hint}"


def _expected(detail: ErrorDetails) -> list[str]:
    if detail["type"] == "literal_error":
        return re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
    if detail["type"] == "wrong_form":
        return str(detail["ctx"]["wanted"]).split(" or ")
    return [_TYPE_WORDS[detail["type"]]]


def _quotes(value: Any, expected: Sequence[str]) -> str:
    """The hint where quotes alone make the value wrong, or would mend it."""
    if isinstance(value, str):
        plain = [_SCALARS[_PLAIN[word]] for word in expected if word in _PLAIN]
        return "; remove the quotes" if any(re.fullmatch(pattern, value) for pattern in plain) else ""
    is_text = expected[0] in ("text", "a path") and isinstance(value, bool | int | float)
    return "; put it in quotes to use it as text" if is_text else ""


def _value_sentence(detail: ErrorDetails, key: Key) -> str:  # noqa: PLR0911 (a table)
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
        return f"must be {words} {context[name]:,.15g}, not {shown}"
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "string_pattern_mismatch":
        return f"must be {_PATTERNS[str(key[-1])]}, not {shown}"
    if detail["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    if detail["type"] == "too_long":
        return f"must have {context['max_length']} items, not {context['actual_length']}"
    if detail["type"] == "across_keys":
        return detail["msg"]
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown}"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{name}: {_shown(inner)}' for name, inner in value.items())}}}"
    else:
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


def _did_you_mean(written: Any, choices: Sequence[str]) -> str:
    """Near enough that it cannot be the opposite: `on` is 0.67 to `none`."""
    near = difflib.get_close_matches(written.lower(), choices, 1, 0.7) if isinstance(written, str) else []
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


def _missing(key: Key) -> str:
    names = tuple(part for part in key if isinstance(part, str))
    return f"is missing: {_all_settings().get(names) or 'it has no default'}"


def dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _split(key: str) -> Key:
    return tuple(key.split(".")) if key else ()


def _where(positions: Mapping[Key, str], key: Key) -> str:
    """Where a key stands, or the nearest parent that was written."""
    while key not in positions:
        key = key[:-1]
    return positions[key]
