"""Which member of a sweep may start now: what frozen stages compute, and stage 0, is computed by one member and found
by the others, so none starts that would compute what another is computing."""

from __future__ import annotations

import json
from collections.abc import Callable

from transferctl.spec import Spec
from transferctl.sweeps.space import Member


class Schedule:
    """Members wait here until they start. spec_of: as a member runs; leaders: numbers of those whose work others found
    done."""

    def __init__(self, spec_of: Callable[[Member], Spec], verb: str):
        self._spec_of, self._verb = spec_of, verb
        self._waiting: list[tuple[Member, str, str]] = []
        self._computing: dict[int, tuple[str, str]] = {}
        self._computed: dict[str, int] = {}  # by whom
        self.leaders: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def add(self, member: Member) -> None:
        spec = self._spec_of(member)
        self._waiting.append((member, network_of(spec), work_of(spec, self._verb)))

    def remember(self, member: Member) -> None:
        """It has ended well, in an earlier process."""
        self._computed.setdefault(work_of(self._spec_of(member), self._verb), member.number)

    def next(self) -> Member | None:
        """The first that has nothing to compute, finds it done, or computes what nobody is computing now."""
        busy = {network for network, _ in self._computing.values()}
        for i, (member, network, work) in enumerate(self._waiting):
            if work and work not in self._computed and network in busy:
                continue
            del self._waiting[i]
            if work in self._computed:
                self.leaders.add(self._computed[work])
            elif work:
                self._computing[member.number] = network, work
            return member
        return None

    def has_computed(self, number: int) -> None:
        """It has come to its training: what is frozen is in the cache."""
        if number in self._computing:
            self._computed[self._computing.pop(number)[1]] = number

    def has_ended(self, number: int, *, well: bool) -> None:
        if well:
            self.has_computed(number)
        self._computing.pop(number, None)


def network_of(spec: Spec) -> str:
    """Equal where two members may compute the same activations, or the same stage 0."""
    keys = {"backbone", "from_run", "preprocess", "precision", "device"}
    if spec.backbone.weights in ("source", "none"):
        keys |= {"seed"}
    if spec.backbone.weights == "source":
        keys |= {"source", "pretrain"}
    return _text(spec, keys)


def work_of(spec: Spec, verb: str) -> str:
    """Equal only where two members need the same of what is frozen: of the same images, by the same stages. Empty where
    nothing is, or nothing of it is kept for the others."""
    if spec.cache.path == "none":
        return network_of(spec) if spec.backbone.weights == "source" else ""
    is_thawed = any(what == "none" for what in spec.frozen_by_epoch().values())
    if verb == "finetune" and is_thawed and not spec.head_first and spec.backbone.weights != "source":
        return ""
    keys = {"target", "source", "on_bad_sample"}
    if verb == "finetune":
        keys |= {"frozen", "batchnorm", "augment"}
    if _draws(spec):
        keys |= {"seed"}
    return f"{network_of(spec)} {_text(spec, keys)} {verb == 'finetune' and spec.head_first is not None}"


def _draws(spec: Spec) -> bool:
    """Whether the seed says which images there are, or what they look like; a hold-out is a part of the same ones."""
    text = _text(spec, {"target", "source", "augment"})
    return any(f'"{key}": {digit}' in text for key in ("per_class", "views") for digit in "123456789")


def _text(spec: Spec, keys: set[str]) -> str:
    return json.dumps(spec.model_dump(mode="json", include=keys), sort_keys=True)
