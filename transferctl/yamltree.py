"""YAML text -> tree of plain values, noting where each key stands and what is wrong with the text.

YAML 1.2's rules for plain scalars apply, not PyYAML's 1.1 ones: `1e-3` is a number; `no` and `on` are
text. Tags are refused, aliases are counted, nothing is ever constructed but text, numbers, booleans,
nulls, lists and mappings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from transferctl.errors import Problem, SpecError
from transferctl.wording import one_line

MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_DIGITS = 300  # of a whole number; Python refuses to parse more than 4,300, floats end at 308

Key = tuple[str | int, ...]


class WrittenInt(int):
    """An int that remembers how it was written, in case the field is a name (05)."""

    text: str


class WrittenFloat(float):
    text: str


class _CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's class-level registry)


class CoreDumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _class in (_CoreLoader, CoreDumper):
    for _name, _pattern in SCALARS.items():
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)


class Document:
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
            raise self._fatal(f"is not YAML: {one_line(error)}", self.label) from None
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
        key = split(path.strip())
        if not separator or not key or not all(key):
            raise SpecError([Problem("", "write it as key=value, such as optimizer.lr=0.003", flag)])
        if len(key) > MAX_DEPTH:
            raise SpecError([Problem("", "is nested too deeply", flag)])
        inner = Document(flag, key)
        value = inner.parse(text)
        self.problems += inner.problems
        for depth, name in enumerate(key[:-1], 1):
            if not isinstance(tree.setdefault(str(name), {}), dict):
                parent, found = dotted(key[:depth]), shown(tree[str(name)])
                message = f"{parent} is {found} here, not a mapping; set {parent} whole: '{parent}={{…}}'"
                raise SpecError([Problem(dotted(key), message, flag)])
            tree = tree[str(name)]
        tree[str(key[-1])] = value
        self.positions = {old: where for old, where in self.positions.items() if old[: len(key)] != key}
        self.positions |= {key[:depth]: flag for depth in range(1, len(key)) if key[:depth] not in self.positions}
        self.positions |= inner.positions


def _has_plain_tag(node: yaml.Node) -> bool:
    """Whether the tag is the one that the value has anyway; `!!str 05` is but a way to quote."""
    if isinstance(node, yaml.ScalarNode):
        pattern = SCALARS.get(node.tag.removeprefix(_TAG))
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
    text = one_line(error.problem or error.context or error)
    if r"'\t'" in text:
        return "a tab stands where YAML wants spaces; indent with spaces"
    if "found another document" in text:
        return "holds more than one document; a spec is one (remove the second '---')"
    if "undefined alias" in text:
        return f"{text}; define it with & first"
    return f"is not YAML: {text}"


def _shown_tag(tag: str) -> str:
    return tag.replace(_TAG, "!!")


# -- keys and values in words ----------------------------------------------------------------------------


def dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def split(key: str) -> Key:
    return tuple(key.split(".")) if key else ()


def where_of(positions: Mapping[Key, str], key: Key) -> str:
    """Where a key stands, or the nearest parent that was written."""
    while key not in positions:
        key = key[:-1]
    return positions[key]


def shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{name}: {shown(inner)}' for name, inner in value.items())}}}"
    else:
        text = getattr(value, "text", None) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def did_you_mean(written: Any, choices: Sequence[str]) -> str:
    """Near enough that it cannot be the opposite: `on` is 0.67 to `none`."""
    near = difflib.get_close_matches(written.lower(), choices, 1, 0.7) if isinstance(written, str) else []
    return f"; did you mean {near[0]}?" if near else ""
