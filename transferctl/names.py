"""Names that look wrong: a file that is called after another class than its own, and a class that is there twice.

Words are what stands between characters that are no letters, in any case, one or many: `bee_012.jpg` is called after
the class Bees, `elephant_3.jpg` not after ant. Names of classes with fewer than three letters say nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from pathlib import PurePath

import numpy as np

from transferctl import scratch
from transferctl.data import Split

LETTERS = 3  # of a class's name, at least
USUAL, SHARE = 10, 0.1  # a word in the names of more files of other classes than this, and than this part, says nothing
TYPO_LETTERS = 6  # of a word, at least: `cat` and `car`, `tern` and `fern` are no typos


class Foreign:
    """The files of a split that are called after another class: (name, its class, the other class), in order."""

    def __init__(self, split: Split, classes: Sequence[str]):
        self._split, self._classes = split, classes
        called, found = _Called(classes), scratch.Growing(np.uint64)
        times = np.zeros(len(classes), np.int64)
        for position, (name, label) in enumerate(zip(split.names(), _each(split.labels), strict=True)):
            for other in called.after(PurePath(name).stem, label):
                times[other] += 1
                found.add(position << 32 | other)
        self._found, self._usual = found.array(), times > max(USUAL, SHARE * len(split))

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        for packed in _each(self._found):
            position, other = packed >> 32, packed & 0xFFFFFFFF
            if not self._usual[other]:
                own = self._classes[self._split.labels[position]]
                yield self._split.sample_name(position), own, self._classes[other]


class _Called:
    """Which classes a file is called after."""

    def __init__(self, classes: Sequence[str]):
        self._words = [_words(name) if _letters(name) >= LETTERS else [] for name in classes]
        self._by_first: dict[str, list[int]] = defaultdict(list)
        for label, words in enumerate(self._words):
            for form in _forms(words[0]) if words else ():
                self._by_first[form].append(label)

    def after(self, file: str, label: int) -> list[int]:
        """The labels of the classes that a file of class `label` (−1: of none) is called after, if it is not called
        after its own; a part of its own class's name is its own."""
        words, own = _words(file), self._words[label] if label >= 0 else []
        found = {other for word in words for form in _forms(word) for other in self._by_first.get(form, ())}
        if not found or label < 0 or _holds(words, own):
            return []
        others = (other for other in sorted(found) if other != label and _holds(words, self._words[other]))
        return [other for other in others if not _holds(own, self._words[other])]


def alike(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of classes that look like the same one twice: their names differ in case, in characters that are neither
    letters nor digits, in one or many, or by one typing error inside a long word."""
    groups: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(classes):
        if _letters(name) >= LETTERS:
            for form in {*_forms(_squeezed(name)), *_with_an_error(name)}:
                groups[form].append(label)
    pairs = sorted(set(chain.from_iterable(combinations(group, 2) for group in groups.values())))
    return [(classes[one], classes[other]) for one, other in pairs if _same(classes[one], classes[other])]


def _same(one: str, other: str) -> bool:
    if _forms(_squeezed(one)) & _forms(_squeezed(other)):
        return True
    differing = [(a, b) for a, b in zip(_parts(one), _parts(other), strict=False) if a != b]
    return len(_parts(one)) == len(_parts(other)) and len(differing) == 1 and _one_error(*differing[0])


def _one_error(one: str, other: str) -> bool:
    """One letter more, less or other, or two that changed places; not the first letter, as `typical` and `atypical`."""
    if min(len(one), len(other)) < TYPO_LETTERS or one[0] != other[0] or not (one + other).isalpha():
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def _with_an_error(name: str) -> Iterator[str]:
    """The name with a letter less in one of its long words: names one typing error apart share such a form."""
    parts = _parts(name)
    for i, part in enumerate(parts):
        for k in range(len(part)) if len(part) >= TYPO_LETTERS else ():
            yield "\0".join([*parts[:i], part[:k] + part[k + 1 :], *parts[i + 1 :]])
        if len(part) >= TYPO_LETTERS:
            yield "\0".join(parts)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.casefold())


def _parts(name: str) -> list[str]:
    """Words, and numbers too: `boeing 737` and `boeing 747` are two."""
    return re.findall(r"[^\W_]+", name.casefold())


def _squeezed(name: str) -> str:
    return "".join(_parts(name))


def _letters(name: str) -> int:
    return sum(map(len, _words(name)))


def _holds(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stand in `words`, one after the other."""
    n = len(wanted)
    starts = range(len(words) - n + 1) if n else ()
    return any(all(_forms(a) & _forms(b) for a, b in zip(words[i : i + n], wanted, strict=True)) for i in starts)


def _forms(word: str) -> set[str]:
    """The word, and what it would be the plural of."""
    found = {word}
    if len(word) > LETTERS and word.endswith("s") and not word.endswith("ss"):
        found.add(word[:-1])
        if word.endswith("ies"):
            found.add(word[:-3] + "y")
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.add(word[:-2])
    return found


def _each(values: np.ndarray) -> Iterator[int]:
    return (value for part in scratch.pieces(len(values)) for value in values[part].tolist())
