"""A spec file that is wrong in any way is told so, whole, with file and line; nothing else is raised."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transferctl import specfaults, yamlfile
from transferctl.errors import SpecError
from transferctl.spec import Spec, WeightsFile
from transferctl.trainsettings import AdamSettings

BASE = "backbone: resnet18\ntarget: {train: {dataset: digits}}\n"  # two lines: what a test adds is on line 3


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def to_file(text: str | bytes) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file


def faults(path: Path, *overrides: str) -> list[tuple[str, str, str]]:
    """(where less the folder, key, message) of each problem."""
    with pytest.raises(SpecError) as caught:
        yamlfile.load(path, overrides)
    return [(p.where.replace(f"{path.parent}/", ""), p.key, p.message) for p in caught.value.problems]


def spec_of(path: Path, *overrides: str) -> Spec:
    return yamlfile.load(path, overrides).spec


# -- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "value"), [("1e-3", 1e-3), ("1E-3", 1e-3), ("3", 3.0), (".5", 0.5), ("+1.", 1.0)])
def test_numbers_are_read_as_people_write_them(write, written, value):
    assert spec_of(write(f"{BASE}optimizer: {{lr: {written}}}\n")).optimizer.lr == value


def test_words_and_numbers_stay_class_names(write):
    path = write("backbone: resnet18\ntarget: {train: {dataset: digits, classes: [no, on, 05, 1e3, 1.50, 0x1]}}\n")
    assert spec_of(path).target.train.classes == ("no", "on", "05", "1e3", "1.50", "0x1")


def test_no_is_a_backbone_name(write):
    assert spec_of(write("backbone: no\ntarget: {train: {dataset: digits}}\n")).backbone.name == "no"


@pytest.mark.parametrize(("written", "value"), [("0o17", 15), ("0x1F", 31), ("010", 10)])
def test_whole_numbers_follow_yaml_1_2(write, written, value):
    assert spec_of(write(f"{BASE}epochs: {written}\n")).epochs == value


@pytest.mark.parametrize("written", [".inf", "-.Inf", "+.INF", ".nan", ".NaN", "1e999"])
def test_numbers_must_be_finite(write, written):
    assert faults(write(f"{BASE}lambda: {written}\n")) == [
        ("spec.yaml:3", "lambda", f"must be a finite number, not {written}")
    ]


@pytest.mark.parametrize("written", ["9" * 500, "-" + "9" * 5000])
def test_endless_numbers_are_refused_not_changed(write, written):
    assert faults(write(f"{BASE}seed: {written}\n")) == [("spec.yaml:3", "seed", "has too many digits")]


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("epochs: ten", "epochs", "must be a whole number, not 'ten'"),
        ("epochs: 1.5", "epochs", "must be a whole number, not 1.5"),
        ("epochs: true", "epochs", "must be a whole number, not true"),
        ("epochs: null", "epochs", "must be a whole number, not null"),
        ("epochs: 0", "epochs", "must be greater than 0, not 0"),
        ("head: 3", "head", "must be a mapping, not 3"),
        ("head: {size: -1}", "head.size", "must be greater than 0, not -1"),
        ("workers: -3", "workers", "must be at least 0, not -3"),
        ("augment: {flip: 1}", "augment.flip", "must be true or false, not 1"),
        ("augment: off", "augment", "must be a mapping or none, not 'off'"),
        ("name: true", "name", "must be text, not true; put it in quotes to use it as text"),
        ("head: {hidden: [8, x]}", "head.hidden[1]", "must be a whole number, not 'x'"),
        ("optimizer: {name: adan}", "optimizer.name", "must be sgd, adam or adamw, not 'adan'; did you mean adam?"),
        (
            "schedule: cosin",
            "schedule",
            "must be cosine, constant, linear, step or one_cycle, not 'cosin'; did you mean cosine?",
        ),
        ("device: gpu", "device", "must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ("device: null", "device", "must be auto, cpu, cuda, cuda:N or mps, not null"),
        ("workers: 1000", "workers", "must be at most 256, not 1000"),
        ("optimizer: adamm", "optimizer", "must be sgd, adam or adamw, not 'adamm'; did you mean adam?"),
        ("optimizer: {name: null}", "optimizer.name", "must be sgd, adam or adamw, not null"),
        ("optimizer: 3", "optimizer", "must be a name (sgd, adam, adamw) or a mapping with `name`, not 3"),
        ("optimizer: SGD", "optimizer", "must be sgd, adam or adamw, not 'SGD'; did you mean sgd?"),
        ("source: {train: {}}", "source.train", "must be a path or a mapping with `dataset`, not {}"),
        ("source: {train: {path: [a]}}", "source.train.path", "must be a path, not ['a']"),
        (
            "source: {train: a, val: {dataset: digit}}",
            "source.val.dataset",
            "must be digits, folder, manifest or torchvision, not 'digit'; did you mean digits?",
        ),
        (
            "source: {train: a, val: [1]}",
            "source.val",
            "must be a number, none, a path or a mapping with `dataset`, not [1]",
        ),
        ("augment: on", "augment", "must be a mapping or none, not 'on'"),
        ("augment: {crop_scale: [1]}", "augment.crop_scale", "must have 2 items, not 1"),
        ("augment: {crop_scale: [1, 1, 1]}", "augment.crop_scale", "must have 2 items, not 3"),
        ("penalties: {l2sp: x}", "penalties.l2sp", "must be a number or a mapping with `weight`, not 'x'"),
        ("epochs: '3'", "epochs", "must be a whole number, not '3'; remove the quotes"),
        ("from: 2024", "from", "must be a path, not 2024; put it in quotes to use it as text"),
        ("from: ''", "from", "must be a path, not ''"),
        ("frozen: ''", "frozen", "must not be empty"),
        ("source: {train: {dataset: digits, classes: []}}", "source.train.classes", "must not be empty"),
        ("source: {train: {dataset: digits, classes: [null]}}", "source.train.classes[0]", "must be text, not null"),
        ("head: {hidden: [10000000]}", "head.hidden[0]", "must be at most 1,000,000, not 10000000"),
        ("preprocess: {crop: 99999999999}", "preprocess.crop", "must be at most 10,000, not 99999999999"),
        ("optimizer: {lr: 1e300}", "optimizer.lr", "must be at most 1,000,000, not 1e300"),
        ("augment: {randaugment: x}", "augment.randaugment", "must be a whole number or a mapping, not 'x'"),
        ("augment: {randaugment: 9.5}", "augment.randaugment", "must be a whole number or a mapping, not 9.5"),
        ("augment: {randaugment: true}", "augment.randaugment", "must be a whole number or a mapping, not true"),
        ("augment: {randaugment: 31}", "augment.randaugment", "must be at most 30, not 31"),
        ("augment: {randaugment: -1}", "augment.randaugment", "must be at least 0, not -1"),
        (
            "augment: {randaugment: {operations: 0}}",
            "augment.randaugment.operations",
            "must be greater than 0, not 0",
        ),
        ("augment: {mixup: 0}", "augment.mixup", "must be greater than 0, not 0"),
        ("augment: {mixup: true}", "augment.mixup", "must be a number, not true"),
        ("augment: {cutmix: 101}", "augment.cutmix", "must be at most 100, not 101"),
        ("pretrain: {augment: {cutmix: x}}", "pretrain.augment.cutmix", "must be a number, not 'x'"),
        (
            "source: {train: a, balance: sample}",
            "source.balance",
            "must be none, weights or sampling, not 'sample'; did you mean sampling?",
        ),
        ("source: {train: a, balance: null}", "source.balance", "must be none, weights or sampling, not null"),
        ("source: {train: a, label_smoothing: 1}", "source.label_smoothing", "must be less than 1, not 1"),
        ("label_smoothing: 1.0", "label_smoothing", "must be less than 1, not 1.0"),
        ("label_smoothing: -0.1", "label_smoothing", "must be at least 0, not -0.1"),
        ("pretrain: {label_smoothing: true}", "pretrain.label_smoothing", "must be a number, not true"),
        ("ema: 1", "ema", "must be less than 1, not 1"),
        ("ema: 0", "ema", "must be greater than 0, not 0"),
        ("pretrain: {ema: on}", "pretrain.ema", "must be a number, not 'on'"),
        ("early_stopping: 0", "early_stopping", "must be greater than 0, not 0"),
        ("early_stopping: true", "early_stopping", "must be a whole number, not true"),
        ("head_first: {early_stopping: 1.5}", "head_first.early_stopping", "must be a whole number, not 1.5"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_wanted(write, line, key, message):
    assert faults(write(f"{BASE}{line}\n")) == [("spec.yaml:3", key, message)]


# -- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "key", "hint"),
    [
        ("epochz: 3", "epochz", "did you mean epochs?"),
        ("head: {siez: 3}", "head.siez", "did you mean head.size?"),
        ("lr: 0.1", "lr", "did you mean optimizer.lr?"),
        ("val: x", "val", "did you mean target.val?"),
        ("val: x\nsource: {train: y}", "val", "did you mean target.val?"),
        ("penalties: {l2spx: 1}", "penalties.l2spx", "did you mean penalties.l2sp?"),
    ],
)
def test_unknown_key_suggests_the_nearest(write, line, key, hint):
    assert faults(write(f"{BASE}{line}\n")) == [("spec.yaml:3", key, f"is not a setting; {hint}")]


def test_key_of_another_optimizer_is_not_suggested_to_itself(write):
    [(where, key, message)] = faults(write(f"{BASE}optimizer: {{name: sgd, betas: [0.9, 0.99]}}\n"))
    assert (where, key) == ("spec.yaml:3", "optimizer.betas")
    assert "did you mean" not in message


def test_lambda_has_no_second_name(write):
    [(where, key, message)] = faults(write(f"{BASE}target_weight: 2\n"))
    assert (where, key) == ("spec.yaml:3", "target_weight")
    assert message.startswith("is not a setting")


def test_duplicate_key_names_both_lines(write):
    path = write(f"{BASE}seed: 1\nseed: 2\n")
    assert faults(path) == [("spec.yaml:4", "seed", f"is written twice (first at {path}:3); keep one")]


def test_a_key_that_is_a_list_is_refused(write):
    assert ("spec.yaml:3", "", "a key must be plain text") in faults(write(f"{BASE}? [a]\n: 1\n"))


def test_all_problems_come_at_once_in_the_order_of_their_lines(write):
    path = write(f"{BASE}seed: 1\nhead:\n  siez: 3\nname: !x a\nseed: 2\noptimizer: {{lr: fast}}\nepochs: ten\n")
    assert [(where, key) for where, key, _ in faults(path, "workers=x", "batch_size", "schedule=x")] == [
        ("spec.yaml:5", "head.siez"), ("spec.yaml:6", "name"), ("spec.yaml:7", "seed"), ("spec.yaml:8", "optimizer.lr"),
        ("spec.yaml:9", "epochs"), ("--set workers=x", "workers"), ("--set batch_size", ""), ("--set schedule=x", "schedule")
    ]  # fmt: skip


def test_lines_are_ordered_as_numbers(write):
    path = write(BASE + "\n" * 6 + "seed: x\nepochs: ten\n")
    assert [where for where, _, _ in faults(path)] == ["spec.yaml:9", "spec.yaml:10"]


@pytest.mark.parametrize(
    "value",
    ["null", "''", "[]", "{}", "[[1]]", "[null]", "{a: b}", "true", "1.5", "'3'", "1e400", "9" * 99, "-1", "on"],
)
def test_any_value_of_any_key_is_told_once_with_key_and_place_in_our_words(write, value):
    path = write(BASE)
    for name in specfaults.all_settings():
        flag = f"{'.'.join(name)}={value}"
        try:
            yamlfile.load(path, [flag])
        except SpecError as error:
            keys = [problem.key for problem in error.problems]
            assert all(keys) and len(set(keys)) == len(keys), error
            assert {problem.where for problem in error.problems} == {f"--set {flag}"}
            assert not re.search(r"None|Tuple|Input|should|True|False", str(error)), error


def test_faults_across_keys_come_with_the_others(write):
    found = faults(write(f"{BASE}lambda: 1\nepochs: ten\npreprocess: {{resize: 8, crop: 9}}\n"))
    assert [(where, key) for where, key, _ in found] == [
        ("spec.yaml:3", "lambda"), ("spec.yaml:4", "epochs"), ("spec.yaml:5", "preprocess.crop")
    ]  # fmt: skip
    assert found[2][2] == "is 9, larger than preprocess.resize, which is 8"


def test_lambda_without_source_is_told_beside_a_wrong_type(write):
    found = faults(write(f"{BASE}lambda: 1\nepochs: ten\n"))
    assert [key for _, key, _ in found] == ["lambda", "epochs"]
    assert "there is no `source`" in found[0][2]


def test_faults_across_keys_stand_where_the_key_was_written(write):
    path = write("target: {train: {dataset: digits}}\nbackbone:\n  name: resnet18\n  weights: source\nlambda: 1\n")
    assert [fault[:2] for fault in faults(path)] == [("spec.yaml:4", "backbone.weights"), ("spec.yaml:5", "lambda")]
    found = faults(write(f"{BASE}preprocess:\n  crop: 9\n"), "lambda=1", "preprocess.resize=8")
    assert [fault[:2] for fault in found] == [("spec.yaml:4", "preprocess.crop"), ("--set lambda=1", "lambda")]
    found = faults(write(f"{BASE}preprocess: {{resize: 8}}\n"), "preprocess.crop=9")
    assert [fault[:2] for fault in found] == [("--set preprocess.crop=9", "preprocess.crop")]


def test_faults_across_keys_come_beside_a_wrong_item(write):
    assert [key for _, key, _ in faults(write(f"{BASE}lambda: 1\nhead: {{hidden: [x]}}\n"))] == [
        "lambda",
        "head.hidden[0]",
    ]


@pytest.mark.parametrize("source", ["5", "{train: 3}", "!x {train: a}"])
def test_a_wrong_source_is_not_told_to_be_absent(write, source):
    [(_, key, _)] = faults(write(f"{BASE}lambda: 1\nsource: {source}\n"))
    assert key in ("source", "source.train")


def test_merge_keys_are_refused_once(write):
    path = write("backbone: resnet18\ntarget:\n  train:\n    <<: {path: a}\n    classes: [b]\n")
    message = "merge keys are not supported; write the values out"
    assert faults(path) == [("spec.yaml:4", "target.train.<<", message)]
    assert faults(write(f"{BASE}<<: {{epochs: 3}}\n")) == [("spec.yaml:3", "<<", message)]


def test_missing_keys_say_what_they_are_for(write):
    found = faults(write("seed: 1\n"))
    assert [(key, message.split(":")[0]) for _, key, message in found] == [
        ("backbone", "is missing"),
        ("target", "is missing"),
    ]


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "spec.yaml:1", "this file is empty"),
        ("# nothing\n", "spec.yaml:1", "this file is empty"),
        ("- a\n", "spec.yaml:1", "this file is a list"),
        ("a word\n", "spec.yaml:1", "this file is a single value"),
        (b"a: 1\nb: \xff\n", "spec.yaml:2", "is not UTF-8 (byte 0xff)"),
        (f"{BASE}head:\n\tsize: 3\n", "spec.yaml:4", "a tab stands where YAML wants spaces"),
        ("a: 1\n---\nb: 2\n", "spec.yaml:2", "holds more than one document"),
        ("a: [1\n", "spec.yaml:2", "is not YAML"),
        ("a: *x\n", "spec.yaml:1", "found undefined alias 'x'"),
        ("a: &a [*a]\n", "spec.yaml:1", "aliases expand to too much"),
        ("a: &a {b: *a}\n", "spec.yaml:1", "aliases expand to too much"),
        ("a: " + "[" * 100 + "]" * 100, "spec.yaml:1", "is nested too deeply"),
        ("[" * 3000, "spec.yaml", "is nested too deeply"),
        ("x" * (yamlfile.MAX_BYTES + 1), "spec.yaml", "is larger than 256 KiB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_no_spec_says_why(write, text, where, message):
    [(place, key, told)] = faults(write(text))
    assert (place, key) == (where, "")
    assert message in told


def test_alias_bomb_is_refused_before_it_grows(write):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    [(_, _, message)] = faults(write("\n".join(rows)))
    assert "aliases expand to too much" in message


def test_an_honest_alias_is_read(write):
    path = write("backbone: resnet18\ntarget: {train: &d {dataset: digits}, val: *d}\n")
    assert spec_of(path).target.val == spec_of(path).target.train


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object:os.system x",
        "!mine x",
        "!!int abc",
        "!!float abc",
        "!!bool maybe",
        "!!null x",
        "!!seq {}",
        "!!map x",
    ],
)
def test_tags_are_refused_once(write, value):
    [(where, key, message)] = faults(write(f"{BASE}name: {value}\n"))
    assert (where, key) == ("spec.yaml:3", "name")
    assert message == f"tags ({value.split()[0]}) are not accepted; write a plain value"


def test_missing_file_suggests_a_neighbour(write):
    path = write(BASE)
    with pytest.raises(SpecError, match=r"No such file.*did you mean spec.yaml"):
        yamlfile.load(path.with_name("spce.yaml"))


def test_folder_as_spec_is_told(tmp_path):
    with pytest.raises(SpecError, match="is a folder"):
        yamlfile.load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + "/spec.yaml", "a\0b.yaml"])
def test_impossible_file_name_is_told(tmp_path, name):
    with pytest.raises(SpecError, match="cannot read the spec"):
        yamlfile.load(tmp_path / name)


def test_byte_order_mark_is_no_part_of_the_first_key(write):
    assert spec_of(write(b"\xef\xbb\xbf" + BASE.encode())).backbone.name == "resnet18"


def test_name_comes_from_the_file_unless_written(write):
    assert spec_of(write(BASE)).name == "spec"
    assert spec_of(write(f"{BASE}name: 05\n")).name == "05"


# -- --set --------------------------------------------------------------------------------------------


def test_set_replaces_and_adds(write):
    spec = spec_of(
        write(f"{BASE}seed: 1\n"), "seed=3", "optimizer={name: adam}", "head.hidden=[8, 4]", "pretrain.epochs=2"
    )
    assert (spec.seed, spec.head.hidden, spec.pretrain.epochs) == (3, (8, 4), 2)
    assert isinstance(spec.optimizer, AdamSettings)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_bare_optimizer_takes_its_defaults(write, name):
    assert spec_of(write(f"{BASE}optimizer: {name}\n")) == spec_of(write(f"{BASE}optimizer: {{name: {name}}}\n"))


def test_a_bare_randaugment_is_its_magnitude_and_null_is_none(write):
    bare, whole, off = (spec_of(write(f"{BASE}augment: {{randaugment: {value}}}\n")).augment
                        for value in ("12", "{magnitude: 12, operations: 2}", "null"))  # fmt: skip
    assert bare == whole
    assert off.randaugment is None


def test_set_keeps_equals_signs_in_the_value(write):
    assert spec_of(write(BASE), "target.train.classes=[a=b, '=']").target.train.classes == ("a=b", "=")


def test_set_null_takes_a_block_out(write):
    assert spec_of(write(f"{BASE}source: {{train: {{dataset: digits}}}}\n"), "source=null").source is None


def test_set_mends_a_fault_of_the_file(write):
    assert spec_of(write(f"{BASE}epochs: ten\n"), "epochs=4").epochs == 4


@pytest.mark.parametrize(
    ("flag", "key", "message"),
    [
        ("seed", "", "write it as key=value"),
        ("=3", "", "write it as key=value"),
        ("a..b=3", "", "write it as key=value"),
        ("seed=x", "seed", "must be a whole number, not 'x'"),
        ("epochz=3", "epochz", "did you mean epochs?"),
        ("backbone.weights=none", "backbone.weights", "set backbone whole"),
        ("epochs=[", "epochs", "is not YAML"),
        ("head={size: 3, size: 4}", "head.size", "is written twice; keep one"),
        ("target.train=", "target.train", "must be a path or a mapping with `dataset`, not null"),
        ("target=!!python/object:x y", "target", "tags (!!python/object:x) are not accepted"),
        ("head=!x {size: 3}", "head", "tags (!x)"),
        ("head.hidden=[8, !x 3]", "head.hidden[1]", "tags (!x)"),
        ("target={train: {dataset: !x a}}", "target.train.dataset", "tags (!x)"),
        ("target.train={dataset: digits, classes: [!x a]}", "target.train.classes[0]", "tags (!x)"),
        ("optimizer={name: !x adam, lr: 3}", "optimizer.name", "tags (!x)"),
        ("head={<<: {size: 3}}", "head.<<", "merge keys are not supported"),
        (".".join("a" * 2000) + "=1", "", "is nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_set_faults_name_the_flag(write, flag, key, message):
    [(where, place, told)] = faults(write(BASE), flag)
    assert (where, place) == (f"--set {flag}", key)
    assert message in told


def test_set_faults_come_with_those_of_the_file(write):
    found = faults(write(f"{BASE}epochs: ten\n"), "seed", "optimizer.lr=[")
    assert [where for where, _, _ in found] == ["spec.yaml:3", "--set seed", "--set optimizer.lr=["]


# -- paths --------------------------------------------------------------------------------------------


def test_relative_paths_look_beside_the_file_then_in_the_working_folder(write, tmp_path, monkeypatch):
    work = tmp_path / "work"
    for folder in (tmp_path / "both", work / "both", work / "here"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    spec = spec_of(
        write("backbone: {name: resnet18, weights: w.pt}\ntarget: {train: both, val: here, test: neither}\n")
    )
    assert spec.target.train.path == tmp_path / "both"
    assert spec.target.val.path == work / "here"
    assert spec.target.test.path == tmp_path / "neither"
    assert spec.backbone.weights == WeightsFile(path=tmp_path / "w.pt")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a" * 5000, "''", "' '", "{path: ''}"])
def test_impossible_data_path_is_a_fault_at_its_line(write, path):
    [(where, key, _)] = faults(write(f"backbone: resnet18\ntarget: {{train: {path}}}\n"))
    assert where == "spec.yaml:2"
    assert key.startswith("target.train")


def test_bare_path_is_a_manifest_if_it_ends_in_csv(write):
    spec = spec_of(write("backbone: resnet18\ntarget: {train: a.csv, val: b}\n"))
    assert (spec.target.train.dataset, spec.target.val.dataset) == ("manifest", "folder")


# -- dump, locate, fuzz -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "name: 1e3\nfrozen: ['05', 'no', 'true', 'null', layer1.*]\n",
        "source: {train: {dataset: digits, classes: [0, 01, 'yes']}}\nlambda: 1e-3\npenalties: {l2sp: 0.1}\n",
        "optimizer: {name: adamw, betas: [0.9, 0.99], lr: 1e-30}\naugment: none\nbaseline: {repeats: 2}\n",
        "preprocess: {resize: 32, crop: 32, mean: [0, 0.5, 1], std: [1, 1, 1]}\n",
    ],
)
def test_dump_reads_back_equal(write, extra):
    spec = spec_of(write(BASE + extra))
    assert spec_of(write(yamlfile.dump(spec))) == spec


def test_faults_found_later_get_their_line(write):
    file = yamlfile.load(write(f"{BASE}head:\n  size: 3\n"))
    [problem] = file.locate(SpecError.at("head.size", "is 3")).problems
    assert problem.where == f"{file.path}:4"


_WORDS = st.sampled_from([
    "backbone", "target", "train", "val", "lambda", "optimizer", "lr", "source", "dataset", "digits", "path", "head",
    "size", "hidden", "penalties", "l2sp", "frozen", "augment", "none", "~", ":", ": ", "- ", "\n", "\n  ", "{", "}", "[",
    "]", ", ", "&a ", "*a", "!!int ", "!x ", "? ", "|", ">", '"', "'", "\t", "#", "---\n", "1e-3", ".inf", "-.inf", "0x", "9",
])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60), st.lists(_WORDS, max_size=25).map("".join)),
    with_base=st.booleans(),
    flags=st.lists(st.lists(_WORDS, max_size=6).map(".".join) | st.text(max_size=10), max_size=2),
)
def test_anything_gives_a_spec_or_a_spec_error(tmp_path, content, with_base, flags):
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(BASE.encode() + data if with_base else data)
    try:
        assert isinstance(yamlfile.load(path, flags).spec, Spec)
    except SpecError as error:
        assert error.problems
        assert all(problem.message and problem.where for problem in error.problems)


def test_what_torch_would_refuse_of_an_optimizer_is_told_at_its_line(tmp_path: Path) -> None:
    text = "backbone: a\ntarget: {train: t}\noptimizer: {name: sgd, momentum: 0, nesterov: true}\n"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"s\.yaml:3: optimizer\.nesterov: needs a momentum greater than 0"):
        yamlfile.load(tmp_path / "s.yaml")
    with pytest.raises(SpecError, match=r"optimizer\.betas\[0\]: must be less than 1, not 2"):
        yamlfile.load(tmp_path / "s.yaml", ["optimizer={name: adam, betas: [2, 0.9]}"])


@pytest.mark.parametrize(
    "written", ["never", "1 hour", "1.5 epochs", "-3 steps", "steps", "{every: never}", "{every: 2.5 minutes}"]
)
def test_an_interval_of_saving_that_is_none_says_what_is_wanted(written: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"backbone: resnet18\ntarget: {{train: x}}\ncheckpoint: {written}\n")
    with pytest.raises(
        SpecError, match=r"a.yaml:3: checkpoint.*must be auto, or a whole number of steps, epochs or minutes"
    ):
        yamlfile.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("written", "due"),
    [
        ("auto", {"step 7": False, "epoch 1": True, "600 s": True}),
        ("7 steps", {"step 7": True, "epoch 1": False, "600 s": False}),
        ("2 epochs", {"step 7": False, "epoch 1": False, "600 s": False}),
        ("10 minutes", {"step 7": False, "epoch 1": False, "600 s": True}),
    ],
)
def test_when_a_save_is_due(written: str, due: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"backbone: resnet18\ntarget: {{train: x}}\ncheckpoint: {written}\n")
    every = yamlfile.load(tmp_path / "a.yaml").spec.checkpoint.of_epochs()
    assert due == {"step 7": every.due(7, 1.0), "epoch 1": every.due(9, 1.0, 1), "600 s": every.due(9, 600.0)}
