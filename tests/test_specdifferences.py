"""What differs between specs, in words."""

from __future__ import annotations

from pathlib import Path

from transferctl import yamlfile
from transferctl.specdifferences import differing


def test_only_settings_that_differ_are_told_with_each_specs_value() -> None:
    specs = [
        {"seed": 0, "optimizer": {"lr": 0.1, "name": "sgd"}},
        {"seed": 0, "optimizer": {"lr": 0.01, "name": "sgd"}},
    ]
    assert differing(specs) == {"optimizer.lr": ["0.1", "0.01"]}


def test_a_setting_that_one_spec_lacks_is_a_dash_and_null_or_an_empty_group_is_lacking() -> None:
    specs = [{"ema": 0.9}, {"ema": None}, {"penalties": {"l2sp": {"weight": 1}}, "ema": {}}]
    assert differing(specs) == {"ema": ["0.9", "-", "-"], "penalties.l2sp.weight": ["-", "-", "1"]}


def test_a_runs_name_is_no_difference_but_an_optimizers_is() -> None:
    specs = [{"name": "one", "optimizer": {"name": "sgd"}}, {"name": "two", "optimizer": {"name": "adam"}}]
    assert differing(specs) == {"optimizer.name": ["sgd", "adam"]}


def test_lists_and_control_characters_are_one_short_printable_line() -> None:
    told = differing([{"frozen": ["a*", "b"], "x": "\x1b[31m"}, {"frozen": "none", "x": "y" * 500}])
    assert told["frozen"] == ['["a*", "b"]', "none"]
    assert told["x"][0] == "\\x1b[31m" and len(told["x"][1]) == 80


def test_long_values_that_differ_late_differ_and_show_where() -> None:
    far = "/data/" + "x" * 100
    told = differing([{"path": f"{far}/ants/{'y' * 90}"}, {"path": f"{far}/bees"}, {"path": "here"}, {}])
    assert ["/ants/" in told["path"][0], told["path"][1].endswith("x/bees")] == [True, True]
    assert told["path"][2:] == ["here", "-"] and max(map(len, told["path"])) == 80
    assert differing([{"path": far}, {"path": far}]) == {}


def test_what_is_nested_deep_is_no_crash() -> None:
    deep: dict[str, object] = {"b": 1}
    for _ in range(5000):
        deep = {"a": deep}
    assert len(differing([deep, {}])) == 1


def test_one_spec_or_none_differ_in_nothing(spec: Path) -> None:
    dumped = yamlfile.load(spec).spec.model_dump(mode="json", by_alias=True)
    assert differing([dumped, dumped]) == differing([dumped]) == differing([]) == {}
