"""Specs and command lines that are wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from entries import add, bad
from sound import DIGITS, SPEC, checking, scoring, sound_run

HERE = "spec.yaml:6"  # the line below DIGITS
BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)

# name, what it is, the spec's text or bytes, what the message holds
WHOLE: list[tuple[str, str, str | bytes, tuple[str, ...]]] = [
    ("empty", "an empty file", "", ("spec.yaml:1", "a spec is a mapping of settings; this file is empty")),
    ("list", "a list", "- a\n", ("spec.yaml:1", "this file is a list")),
    ("binary", "binary", bytes(range(256)), ("spec.yaml:2", "save the file as UTF-8")),
    ("utf16", "UTF-16", DIGITS.encode("utf-16"), ("spec.yaml:1", "save the file as UTF-8")),
    ("latin1", "Latin-1", DIGITS.encode() + b"name: caf\xe9\n", (HERE, "save the file as UTF-8")),
    ("too_large", "a file of more than 256 KiB", "#" * 300_000, ("spec.yaml", "is larger than 256 KiB")),
    ("two_documents", "two documents", f"{DIGITS}---\na: 1\n", (HERE, "remove the second '---'")),
    ("deep", "100,000 brackets", "[" * 100_000, ("spec.yaml", "is nested too deeply")),
    ("missing_key", "a spec without target", SPEC, ("spec.yaml:1", "target: is missing")),
]

# name, what it is, the lines below a sound spec, what the message holds
LINES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("tab", "a tab for indentation", "head:\n\tsize: 3\n", ("spec.yaml:7", "indent with spaces")),
    ("unclosed", "an unclosed bracket", "frozen: [a\n", ("spec.yaml:7", "is not YAML")),
    ("billion_laughs", "ten times ten aliases, ten levels deep", BILLION, ("spec.yaml", "write the values out")),
    ("alias_loop", "an alias of itself", "head: &a {size: *a}\n", (HERE, "write the values out")),
    ("alias_undefined", "an alias of nothing", "head: *nothing\n", (HERE, "define it with & first")),
    ("merge_key", "a merge key", "head: {<<: {size: 2}}\n", (HERE, "write the values out")),
    ("python_tag", "a tag that makes YAML loaders call Python", "name: !!python/object/apply:os.mkdir [canary]\n",
     (HERE, "tags (!!python/object/apply:os.mkdir) are not accepted; write a plain value")),
    ("own_tag", "a tag of its own", "name: !mine x\n", (HERE, "tags (!mine) are not accepted; write a plain value")),
    ("unknown_key", "a mistyped key", "epochz: 3\n", (HERE, "epochz: is not a setting; did you mean epochs?")),
    ("unknown_nested_key", "a mistyped key in a group", "head: {siez: 2}\n", (HERE, "did you mean head.size?")),
    ("nine_thousand_keys", "9,000 unknown keys", "".join(f"k{i}: 1\n" for i in range(9000)),
     ("spec.yaml", "has 9,000 faults; the first 200 are told", "k0: is not a setting")),
    ("escapes_in_key", "a key that would clear the terminal", '"\\e[2J\\u202ea": 1\n', (HERE, "is not a setting")),
    ("twice", "a key that is written twice", "seed: 1\nseed: 2\n", ("spec.yaml:7", "is written twice", "keep one")),
    ("key_is_list", "a key that is a list", "? [a]\n: 1\n", (HERE, "a key must be plain text")),
    ("wrong_type", "a word where a number belongs", "epochs: ten\n", (HERE, "must be a whole number, not 'ten'")),
    ("quoted_number", "a number in quotes", "epochs: '3'\n", (HERE, "remove the quotes")),
    ("null", "null where a number belongs", "epochs: null\n", (HERE, "must be a whole number, not null")),
    ("nan", "NaN", "ema: .nan\n", (HERE, "must be a finite number, not .nan")),
    ("infinite", "infinity", "label_smoothing: 1e999\n", (HERE, "must be a finite number, not 1e999")),
    ("huge_int", "a whole number of 5,000 digits", f"seed: {'9' * 5000}\n", (HERE, "has too many digits")),
    ("negative", "a negative count", "epochs: -1\n", (HERE, "must be greater than 0, not -1")),
    ("nul", "a NUL in a name", 'name: "a\\0b"\n', (HERE, "must be letters, digits", r"not 'a\x00b'")),
    ("name_traversal", "a name that leads out of the runs folder", "name: ../../evil\n", (HERE, "must be letters")),
    ("unknown_word", "a mistyped choice", "schedule: cosin\n", (HERE, "did you mean cosine?")),
    ("unknown_plugin", "a penalty that is a path", "penalties: {../../evil: 1}\n", (HERE, "is not a setting")),
    ("lambda_alone", "λ without source data", "lambda: 1.0\n", (HERE, "there is no `source`")),
    ("no_batch", "a batch of no samples", "source: {train: {dataset: digits}, batch_size: 0}\n",
     (HERE, "source.batch_size: must be greater than 0")),
    ("nesterov", "an optimizer that torch would refuse", "optimizer: {name: sgd, momentum: 0, nesterov: true}\n",
     (HERE, "needs a momentum greater than 0")),
    ("stages", "a stage that the network does not have", "frozen: layer9\n", (HERE, "has no stage 'layer9'")),
    ("head_size", "a head for other classes", "head: {size: 7}\n", (HERE, "target.train has 2 classes; write auto")),
    ("path_nul", "a path with a NUL", 'from: "a\\0b"\n', (HERE, "must be a path, not 'a\\x00b'")),
    ("path_home", "the home folder of nobody", "from: ~nobody-here/x\n", (HERE, "no such user's home folder")),
]  # fmt: skip

# name, what it is, the flag, what the message holds
SETS = [
    ("set_without_value", "--set without a value", "seed", ("--set seed", "write it as key=value")),
    ("set_unknown", "--set of an unknown key", "epochz=3", ("--set epochz=3", "did you mean epochs?")),
    (
        "set_into_word",
        "--set inside of a value",
        "seed.x=3",
        ("--set seed.x=3", "seed: must be a whole number, not {x: 3}"),
    ),
    ("set_tag", "--set with a tag", "name=!!python/name:os.system x", ("--set name=", "write a plain value")),
    (
        "set_no_text",
        "--set with bytes that are no text",
        "name=\udcff",
        ("--set name=", "special characters are not allowed"),
    ),
]

# name, what it is, the command line, what the message holds
COMMANDS = [
    ("unknown_verb", "a mistyped verb", ["extrakt"], ("Did you mean 'extract', 'export'?", "see transferctl --help")),
    ("no_argument", "a verb without its argument", ["extract"], ("name the SPEC, or a run to go on with by --resume RUN", "extract --help")),
    ("two_specs", "an argument too many", ["check", "a.yaml", "b.yaml"], ("b.yaml", "see transferctl check --help")),
    ("unknown_option", "an unknown option", ["check", "a.yaml", "--jsn"], ("--jsn", "see transferctl check --help")),
    ("option_without_value", "an option without its value", ["check", "a.yaml", "--json", "--set"], ("Option '--set' requires an argument", "--help")),
    ("missing_spec", "a spec that is not there", ["check", "spce.yaml"], ("spce.yaml", "did you mean spec.yaml?")),
    ("spec_is_folder", "a folder in place of a spec", ["check", "."], (".:", "name a YAML file in it")),
    ("endless_spec", "an endless file in place of a spec", ["check", "/dev/zero"], ("/dev/zero", "that is no spec")),
    ("escapes_in_path", "a path that would clear the terminal", ["check", "\x1b[2J.yaml"], ("cannot read the spec",)),
    ("empty_runs_dir", "an empty --runs-dir, of an unset variable", ["extract", "spec.yaml", "--runs-dir", ""],
     ("--runs-dir", "must be a folder, not ''")),
    ("nul_runs_dir", "a --runs-dir with a NUL", ["extract", "spec.yaml", "--runs-dir", "a\0b"],
     ("--runs-dir", "must be a folder, not 'a\\x00b'")),
    ("from_absent_run", "--from of a run that is not there", ["finetune", "spec.yaml", "--from", "absent"],
     ("absent: no such run folder", "`transferctl runs` shows them")),
    ("age", "an age that is none", ["cache", "clear", "--older-than", "soon"], ("--older-than soon", "such as 30d")),
    ("cache_is_file", "a file in place of the cache", ["cache", "list", "--path", "spec.yaml"],
     ("spec.yaml", "the cache needs a folder")),
]  # fmt: skip

for _name, _what, _content, _says in WHOLE:
    add("spec", _name, _what, 2, _says, partial(checking, text=_content))
for _name, _what, _lines, _says in LINES:
    add("spec", _name, _what, 2, _says, partial(checking, text=DIGITS + _lines))


def _with_set(folder: Path, flag: str) -> list[str]:
    return checking(folder, DIGITS, "--set", flag)


def _command(folder: Path, words: list[str]) -> list[str]:
    checking(folder, DIGITS)
    return words


for _name, _what, _flag, _says in SETS:
    add("usage", _name, _what, 2, _says, partial(_with_set, flag=_flag))
for _name, _what, _words, _says in COMMANDS:
    add("usage", _name, _what, 4 if _name == "from_absent_run" else 2, _says, partial(_command, words=_words))


@bad("spec", "a byte order mark before a fault", 2, HERE, "did you mean epochs?")
def byte_order_mark(folder: Path) -> list[str]:
    return checking(folder, b"\xef\xbb\xbf" + DIGITS.encode() + b"epochz: 3\n")


@bad("spec", "a crop that is larger than the image", 2, "spec.yaml:2", "preprocess.crop", "larger than")
def crop_over_resize(folder: Path) -> list[str]:
    return checking(folder, DIGITS.replace("crop: 32", "crop: 64"))


@bad("spec", "an architecture that does not exist", 2, "spec.yaml:1", "backbone.name", "did you mean")
def architecture(folder: Path) -> list[str]:
    return checking(folder, DIGITS.replace("squeezenet1_1", "squeezenet9"))


@bad("usage", "a gate that is none", 2, "--fail-if accuracy", "such as accuracy<0.9")
def gate(folder: Path) -> list[str]:
    return scoring(sound_run(folder), "--fail-if", "accuracy")


@bad("usage", "a gate in per cent", 2, "--fail-if accuracy<90", "write 0.9 for 90 %")
def gate_in_per_cent(folder: Path) -> list[str]:
    return scoring(sound_run(folder), "--fail-if", "accuracy<90")


@bad("usage", "a gate of an unknown metric", 2, "--fail-if acuracy<1", "did you mean accuracy?")
def gate_metric(folder: Path) -> list[str]:
    return scoring(sound_run(folder), "--fail-if", "acuracy<1")


@bad("usage", "a split that does not exist", 2, "--split nonsense", "must be one of train, val, test")
def split(folder: Path) -> list[str]:
    return ["eval", str(sound_run(folder)), "--split", "nonsense"]


@bad("usage", "an override of what the checkpoint carries", 2, "--set backbone.name=x", "eval takes this from")
def override(folder: Path) -> list[str]:
    return scoring(sound_run(folder), "--set", "backbone.name=x")


@bad("usage", "interpolation weights that are none", 2, "--interpolate 1:x", "write start:stop:step")
def interpolation(folder: Path) -> list[str]:
    return ["eval", str(sound_run(folder)), "--interpolate", "1:x"]


@bad("resources", "a file in place of --runs-dir", 5, "occupied", "choose another folder with --runs-dir")
def runs_dir_is_file(folder: Path) -> list[str]:
    (folder / "occupied").touch()
    return ["extract", checking(folder, DIGITS)[1], "--runs-dir", str(folder / "occupied")]


@bad("resources", "--runs-dir below a file", 5, "occupied/runs", "choose another folder with --runs-dir")
def runs_dir_below_file(folder: Path) -> list[str]:
    (folder / "occupied").touch()
    return ["extract", checking(folder, DIGITS)[1], "--runs-dir", str(folder / "occupied" / "runs")]


@bad("resources", "--runs-dir where not even root may write", 5, "/proc/runs", "with --runs-dir")
def runs_dir_read_only(folder: Path) -> list[str]:
    return ["extract", checking(folder, DIGITS)[1], "--runs-dir", "/proc/runs"]


@bad("resources", "a GPU that is not there", 5, "device: cuda")
def gpu(folder: Path) -> list[str]:
    return checking(folder, DIGITS.replace("device: cpu", "device: cuda:99"))
