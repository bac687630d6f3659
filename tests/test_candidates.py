"""Which backbones are ranked: texts, patterns, duplicates, labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from transferctl import backbonetext, candidates, yamlfile
from transferctl.backbonetext import Written
from transferctl.errors import SpecError
from transferctl.spec import BackboneSettings, Spec, WeightsFile

Ranked = Callable[..., candidates.Candidates]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ranked(here: Path) -> Ranked:
    """ranked("resnet18", …, listed=[…]): of a resnet34 and what the spec lists, or of --backbone texts."""

    def of(*texts: str, listed: object = None) -> candidates.Candidates:
        values = {"backbone": "resnet34", "target": {"train": "train"}}
        (here / "s.yaml").write_text(json.dumps(values | ({} if listed is None else {"candidates": listed})))
        return candidates.of(yamlfile.load(here / "s.yaml").spec, texts)

    return of


def made(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


def run_of(folder: Path, name: str, architecture: str = "vgg11", library: str = "torchvision") -> Path:
    best = folder / name / "checkpoints" / "best"
    best.mkdir(parents=True)
    (folder / name / "summary.json").write_text("{}")
    (best / "manifest.json").write_text(json.dumps({"library": library, "architecture": architecture}))
    return folder / name


def labels(found: candidates.Candidates) -> list[str]:
    return [one.label for one in found.chosen]


def named(found: candidates.Candidates) -> list[tuple[str, str]]:
    """Architecture and weights of each."""
    return [
        (one.settings.name, str(getattr(one.settings.weights, "path", one.settings.weights))) for one in found.chosen
    ]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("resnet18", Written(None, "resnet18")),
        ("resnet18:IMAGENET1K_V1", Written(None, "resnet18", "IMAGENET1K_V1")),
        ("resnet18:none", Written(None, "resnet18", "none")),
        ("torchvision/resnet18:source", Written("torchvision", "resnet18", "source")),
        ("torchvision/resnet18.a1_in1k", Written("torchvision", "resnet18.a1_in1k")),
        ("resnet18:w.pth", Written(None, "resnet18", path="/here/w.pth")),
        ("resnet18:/there/w-*.pth", Written(None, "resnet18", path="/there/w-*.pth")),
        ("w.safetensors", Written(None, None, path="/here/w.safetensors")),
        ("runs/a:b", Written(None, None, path="/here/runs/a:b")),
        ("foo/resnet18", Written(None, "foo/resnet18")),
        ("foo/resnet18:none", Written(None, "foo/resnet18", "none")),
        ("foo/w.pth", Written(None, None, path="/here/foo/w.pth")),
        ("./torchvision/w", Written(None, None, path="/here/torchvision/w")),
    ],
)
def test_a_text_means_and_is_written_again_as_the_same(text: str, meant: Written) -> None:
    assert backbonetext.read(text, [Path("/here")]) == meant
    assert backbonetext.read(str(meant), [Path("/elsewhere")]) == meant


@pytest.mark.parametrize("text", ["", "  ", ":", ":none", "timm/:none", "resnet18:", "torchvision/", "a\0b"])
def test_a_text_that_means_nothing_is_refused(text: str, ranked: Ranked) -> None:
    with pytest.raises(SpecError, match="--backbone"):
        ranked(text)


def test_the_specs_own_backbone_comes_before_its_candidates(ranked: Ranked) -> None:
    found = ranked(listed=["resnet18:none", {"name": "vgg11", "weights": "none"}])
    assert labels(found) == ["resnet34", "resnet18:none", "vgg11:none"]


def test_backbones_of_the_command_line_are_ranked_and_no_others(ranked: Ranked) -> None:
    assert labels(ranked("vgg11", "vgg11:none", listed=["resnet18"])) == ["vgg11", "vgg11:none"]


def test_each_is_ranked_once_and_that_is_said(ranked: Ranked) -> None:
    found = ranked(listed=["resnet34", "resnet18", "resnet18:DEFAULT", {"name": "resnet18"}])
    assert labels(found) == ["resnet34", "resnet18"]
    assert any("3 candidates named again" in note for note in found.notes)


def test_a_weights_file_alone_has_the_specs_architecture_which_is_said(ranked: Ranked, here: Path) -> None:
    (file,) = made(here, "w.pth")
    found = ranked("w.pth")
    assert named(found) == [("resnet34", str(file))] and labels(found) == ["w.pth"]
    assert any("resnet34" in note and "w.pth" in note for note in found.notes)


def test_files_alone_are_told_in_one_line(ranked: Ranked, here: Path) -> None:
    made(here / "w", *(f"{i}.pth" for i in range(8)))
    (note,) = ranked("w/*.pth", "vgg11").notes
    assert "0.pth" in note and "and 5 more: taken for weights of resnet34" in note


def test_punctuation_is_quoted_where_it_is_refused(ranked: Ranked) -> None:
    with pytest.raises(SpecError, match=r"^--backbone ':': names no architecture; write NAME, "):
        ranked(":")


def test_a_library_that_is_not_there_is_no_file_and_keeps_its_name(ranked: Ranked, here: Path) -> None:
    found = ranked("foo/resnet18")
    assert (labels(found), found.notes) == (["foo/resnet18"], ())
    assert labels(ranked(listed=["foo/resnet18:none"])) == ["resnet34", "foo/resnet18:none"]
    (there,) = made(here, "foo/resnet18")
    assert named(ranked("foo/resnet18")) == [("resnet34", str(there))]


def test_a_run_has_the_architecture_of_its_manifest(ranked: Ranked, here: Path) -> None:
    run = run_of(here / "runs", "20260101-000000-pretrain-cats")
    found = ranked(str(run))
    assert named(found) == [("vgg11", str(run))] and labels(found) == ["pretrain-cats"]


def test_a_run_is_named_from_within_the_folder_that_holds_it(ranked: Ranked, here: Path) -> None:
    run = run_of(here, "20260101-000000-pretrain-cats")
    assert named(ranked(run.name)) == [("vgg11", str(run))]


def test_a_run_of_a_library_that_is_not_there_is_left_to_loading(ranked: Ranked, here: Path) -> None:
    assert named(ranked(str(run_of(here, "runs/a", library="../evil"))))[0][0] == "resnet34"


def test_a_pattern_is_its_matches_sorted_and_what_is_left_out_is_said(ranked: Ranked, here: Path) -> None:
    files = made(here / "w", "b.pth", "a.pth", "c.safetensors", "notes.txt")
    found = ranked("resnet18:w/*")
    assert named(found) == [("resnet18", str(file)) for file in sorted(files[:3])]
    assert any("notes.txt" in note for note in found.notes)


def test_a_pattern_of_runs_is_each_of_them(ranked: Ranked, here: Path) -> None:
    runs = [run_of(here / "runs", f"2026010{i}-000000-pretrain-cats") for i in (1, 2)]
    found = ranked("runs/*-pretrain-*")
    assert named(found) == [("vgg11", str(run)) for run in runs]
    assert labels(found) == [run.name for run in runs]  # pretrain-cats would be both


def test_a_file_whose_name_has_a_star_is_that_file(ranked: Ranked, here: Path) -> None:
    files = made(here, "a*.pth", "ab.pth")
    assert named(ranked("a*.pth")) == [("resnet34", str(files[0]))]


def test_patterns_that_match_nothing_are_all_told(ranked: Ranked, here: Path) -> None:
    made(here, "notes.txt")
    with pytest.raises(SpecError) as error:
        ranked("runs/*-nothing", "resnet18:*.txt", "resnet18")
    assert [problem.where for problem in error.value.problems] == [
        "--backbone runs/*-nothing",
        "--backbone resnet18:*.txt",
    ]
    assert "matches nothing" in str(error.value) and "only notes.txt" in str(error.value)


def test_a_pattern_of_the_spec_that_matches_nothing_is_told_at_its_place(ranked: Ranked) -> None:
    with pytest.raises(SpecError) as error:
        ranked(listed=["resnet18", "runs/*-nothing"])
    assert error.value.problems[0].key == "candidates[1]"


def test_labels_are_as_short_as_tells_them_apart(ranked: Ranked, here: Path) -> None:
    made(here, "x/w.pth", "y/w.pth", "y/v.pth")
    found = ranked("resnet18:x/w.pth", "resnet18:y/w.pth", "vgg11:y/w.pth", "resnet18:y/v.pth")
    assert labels(found) == ["resnet18:x/w.pth", "resnet18:y/w.pth", "vgg11:w.pth", "v.pth"]


def test_paths_of_a_spec_are_looked_for_beside_it_first(here: Path) -> None:
    made(here, "w.pth", "specs/w.pth", "v.pth")
    (here / "specs" / "s.yaml").write_text("backbone: resnet18\ntarget: {train: t}\ncandidates: [w.pth, v.pth, 'w*']\n")
    found = candidates.of(yamlfile.load(here / "specs" / "s.yaml").spec, [])
    assert named(found)[1:] == [("resnet18", str(here / "specs" / "w.pth")), ("resnet18", str(here / "v.pth"))]


def test_the_resolved_spec_ranks_the_same_again(
    ranked: Ranked, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made(here / "w", "a.pth", "b.pth")
    found = ranked("resnet18:w/*", "vgg11")
    written = tmp_path_factory.mktemp("run") / "spec.yaml"
    spec = yamlfile.load(here / "s.yaml").spec
    written.write_text(yamlfile.dump(found.as_spec(spec)))
    made(here / "w", "c.pth")
    assert candidates.of(yamlfile.load(written).spec, []).chosen == found.chosen


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[]", "candidates: must not be empty"),
        ("resnet18", "candidates: must be a list"),
        ("[[resnet18]]", "candidates[0]: must be"),
        ("[{weights: none}]", "name: is missing"),
        ("['resnet18:']", "names no weights"),
        ("[{name: resnet18, weihgts: none}]", "did you mean"),
    ],
)
def test_a_list_that_is_none_is_told_with_its_line(listed: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"backbone: resnet18\ntarget: {{train: t}}\ncandidates: {listed}\n")
    with pytest.raises(SpecError) as error:
        yamlfile.load(tmp_path / "s.yaml")
    assert "s.yaml:3" in str(error.value) and message in str(error.value)


def test_one_file_with_and_without_its_classes_is_one_backbone(here: Path) -> None:
    (file,) = made(here, "w.pth")
    spec = Spec.model_validate({"backbone": {"name": "resnet18", "weights": {"path": str(file), "classes": str(file)}},
                                "target": {"train": "t"}, "candidates": ["w.pth"]})  # fmt: skip
    (only,) = candidates.of(spec, []).chosen
    assert isinstance(only.settings, BackboneSettings) and isinstance(only.settings.weights, WeightsFile)
    assert only.settings.weights.classes == file
