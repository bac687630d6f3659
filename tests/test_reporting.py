"""The parts of the page: evidence maps, the features' map, mistakes, reliability, thumbnails, figures."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from transferctl import plugins
from transferctl.data import Split
from transferctl.errors import DataError
from transferctl.images import ImageFiles
from transferctl.model import TransferModel
from transferctl.preprocess import keyed_randomness, normalise
from transferctl.reporting import (
    attribution,
    embedding,
    figures,
    gather,
    html,
    metricsfile,
    predictions,
    quality,
    thumbnails,
)
from transferctl.reporting.figures import Line, Point
from transferctl.reporting.gather import Interval
from transferctl.reporting.headline import Bar
from transferctl.reporting.predictions import Prediction
from transferctl.reporting.recording import Table

# -- evidence -----------------------------------------------------------------------------------------


def model_of(name: str, crop: int, hidden: tuple[int, ...] = ()) -> TransferModel:
    plugin = plugins.load("backbones", "torchvision")
    preprocessing = plugin.default_preprocessing(name)
    preprocessing = type(preprocessing)(resize=crop, crop=crop)
    with keyed_randomness(0, "test"):
        backbone, _ = plugin.build(name, image_size=crop)
    model = TransferModel("torchvision", backbone, preprocessing, "classification")
    model.add_new_head("target", ["a", "b", "c"], hidden=hidden, dropout=0.0, seed=0)
    return model.eval()


def images_of(crop: int, n: int = 2) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (crop, crop, 3), dtype=np.uint8)) for _ in range(n)]


def test_grad_cam_of_a_linear_head_is_its_class_activation_map() -> None:
    """In closed form (Zhou et al., CVPR 2016): with average pooling the mean gradient of logit c in map k is w_ck/HW."""
    model, images = model_of("resnet18", 96), images_of(96)
    found = attribution.evidence(model, "target", images, np.array([[0, 2], [1, 1]]))
    assert found and found.maps.shape == (2, 2, 3, 3) and found.method == "Grad-CAM on the output of layer4, 3×3 places"
    inputs = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    with torch.no_grad():
        maps = model.backbone(normalise(inputs, model.preprocessing)).maps
        weight = model.heads["target"].layers[-1].weight
        expected = torch.einsum("ck,nkhw->nchw", weight, maps).clamp(min=0).numpy()
    for image, classes in enumerate([(0, 2), (1, 1)]):
        own = np.stack([expected[image, c] for c in classes])
        np.testing.assert_allclose(found.maps[image], own / own.max(), atol=1e-4)


def test_where_the_last_stage_has_one_place_an_earlier_one_is_looked_at() -> None:
    found = attribution.evidence(model_of("resnet18", 36, hidden=(8,)), "target", images_of(36), np.array([[0], [1]]))
    assert found and found.method.startswith("Grad-CAM on the output of layer3, 3×3")
    assert np.isfinite(found.maps).all() and found.maps.max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "crop", "method"),
    [
        ("swin_t", 128, "Grad-CAM on the output of features.7, 4×4"),  # [N, H, W, C]
        ("alexnet", 96, "Grad-CAM on the output of"),  # its stages write into what they are given
        ("vit_b_32", 96, "Gradient × activation of the tokens before encoder.layers.encoder_layer_11, 3×3"),
    ],
)
def test_every_kind_of_network_has_evidence_of_its_own(name: str, crop: int, method: str) -> None:
    model = model_of(name, crop)
    found = attribution.evidence(model, "target", images_of(crop), np.array([[0, 1], [2, 0]]))
    assert found and found.method.startswith(method)
    assert np.isfinite(found.maps).all() and found.maps.min() >= 0 and found.maps.max() == pytest.approx(1)
    assert not np.array_equal(found.maps[:, 0], found.maps[:, 1])


class Flat(nn.Module):
    """A backbone whose stages give no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def stages(self) -> list[Any]:
        return [SimpleNamespace(name=name, forward=lambda x: x.flatten(1)) for name in ("first", "second", "pool")]

    def forward(self, x: torch.Tensor, after: int = 0) -> Any:
        return SimpleNamespace(maps=None)


def test_a_network_without_maps_has_no_evidence() -> None:
    model = model_of("resnet18", 32)
    model.backbone = Flat()
    assert attribution.evidence(model, "target", images_of(32), np.array([[0], [1]])) is None


def test_evidence_brightens_its_place_alone() -> None:
    image = Image.new("RGB", (64, 64), (90, 90, 90))
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    pixels = np.asarray(attribution.overlaid(image, heat)).astype(int).sum(2)
    assert pixels[:8, :8].mean() > 2 * pixels[40:, 40:].mean()


# -- the map of the features --------------------------------------------------------------------------


def test_far_groups_stay_apart_and_the_map_is_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 32)).astype(np.float32)
    features[30:] += 40
    places = embedding.in_the_plane(features)
    np.testing.assert_array_equal(places, embedding.in_the_plane(features))
    assert places.min() == 0 and places.max() == 1
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(60)
    assert ((distances.argmin(1) < 30) == (np.arange(60) < 30)).all()


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (5, 3), (12, 1), (3, 500)])
def test_few_points_and_few_dimensions_have_a_map_too(shape: tuple[int, int]) -> None:
    for features in (np.random.default_rng(0).normal(size=shape), np.ones(shape)):
        places = embedding.in_the_plane(features.astype(np.float32))
        assert places.shape == (shape[0], 2) and np.isfinite(places).all()


def test_few_points_lie_along_their_principal_components() -> None:
    from sklearn.decomposition import PCA

    features = np.random.default_rng(1).normal(size=(9, 5)) * [1, 5, 2, 0.1, 9]
    found, expected = embedding.principal_components(features, 2), PCA(2).fit_transform(features)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)


# -- predictions --------------------------------------------------------------------------------------


def rows_of(n: int) -> list[Prediction]:
    random = np.random.default_rng(3)
    classes = ["a", "b"]
    return [
        Prediction(
            i, f"{i}.jpg", classes[random.integers(2)], classes[random.integers(2)], float(random.uniform(0.5, 1))
        )
        for i in range(n)
    ]


def test_the_worst_and_the_least_certain_are_those_of_a_plain_sort() -> None:
    rows = rows_of(500)
    found = predictions.summarised(iter(rows), 12)
    assert found
    assert list(found.worst) == sorted((row for row in rows if not row.is_right), key=lambda row: -row.probability)[:12]
    assert list(found.uncertain) == sorted(rows, key=lambda row: row.probability)[:12]
    assert (found.n, found.wrong) == (500, sum(not row.is_right for row in rows))


def test_the_calibration_error_is_that_of_the_definition() -> None:
    rows = rows_of(500)
    found = predictions.summarised(iter(rows), 1)
    confidence, right = np.array([row.probability for row in rows]), np.array([row.is_right for row in rows])
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found and quality.expected_error(found.bins) == pytest.approx(expected, abs=1e-12)


HEADER = "split,path,label,predicted,probability\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: no column split"),
        ("split,path\nval,x\n", "line 1: no column label"),
        (HEADER + "val,x,a,a,1\nval,x,a\n", "line 3: it has 3 cells, not 5"),
        (HEADER + "val,x,a,b,2\n", "line 2: a probability is none"),
        (HEADER + "val,x,a,b,nan\n", "line 2: a probability is none"),
        (HEADER + 'val,"x,a,b,1\n', "line 2: "),
        (HEADER + "".join(f"{i},x,a,a,1\n" for i in range(30)), "more than 20 splits"),
    ],
)
def test_what_is_no_predictions_says_in_which_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(
        DataError, match=re.escape(f"predictions.csv cannot be read: {words}".replace(": more", ": it has more"))
    ):
        predictions.outcomes(tmp_path)


def test_predictions_of_another_split_are_none_of_this(tmp_path: Path) -> None:
    assert predictions.read(tmp_path, "val", 3) is None
    (tmp_path / "predictions.csv").write_text(HEADER + "test,x,a,b,1\n")
    assert predictions.read(tmp_path, "val", 3) is None
    found = predictions.read(tmp_path, "test", 3)
    assert found and (found.n, found.of, found.wrong) == (1, 1, 1)


@pytest.mark.parametrize("head", [HEADER, HEADER + '"', ""])
def test_a_file_without_a_line_end_is_not_read_into_memory(tmp_path: Path, head: str) -> None:
    for name in ("predictions.csv", "metrics.jsonl"):
        (tmp_path / name).write_text(head)
        os.truncate(tmp_path / name, 1 << 30)
    tracemalloc.start()
    with pytest.raises(DataError, match="cannot be read"):
        predictions.read(tmp_path, "val", 3)
    assert "longer than 50,000 characters" in gather.gather(tmp_path).unshown
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


# -- metrics.jsonl ------------------------------------------------------------------------------------


def test_of_many_epochs_some_are_drawn_and_always_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metricsfile, "MOST_LINES", 10)
    rows = [{"split": split, "epoch": i} for i in range(1, 1001) for split in ("train", "val", "other")]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"split": "val", "ep')
    record = gather.gather(tmp_path)
    epochs = [row["epoch"] for row in record.lines("val")]
    assert (epochs[0], epochs[-1], set(np.diff(epochs[:-1]))) == (1, 1000, {128})
    assert [row["epoch"] for row in record.lines("train")] == epochs
    expected = "every 128th line of train is drawn; every 128th line of val is drawn"
    assert record.unshown == f"metrics.jsonl: {expected}"


def test_a_picture_of_many_points_keeps_the_ends() -> None:
    few = figures.few(range(1, 2002))
    assert len(few) <= figures.MOST_POINTS + 1 and (few[0], few[-1]) == (1, 2001)
    assert figures.few([]) == [] and figures.few([1, 2]) == [1, 2]


# -- thumbnails and figures ---------------------------------------------------------------------------


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_thumbnail_is_upright_small_and_none_of_a_broken_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (400, 200)).save(tmp_path / "wide.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    names = [str(tmp_path / name) for name in ("wide.jpg", "tiny.png", "broken.jpg")]
    files = ImageFiles(names, [0, 0, 0], ["a"])
    split = Split("val", files, np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.int32))
    wide, tiny, broken = (thumbnails.of(split, i) for i in range(3))
    assert wide and tiny and broken is None
    assert opened(wide).size == (64, 128) and opened(tiny).size == (128, 128)


def test_figures_take_the_pages_colours_and_escape_names() -> None:
    line = Line("<b>$\\frac{$ & co", [1, 2, 3], [0.1, 0.5, 0.3], 0, [0, 0.4, 0.2], [0.2, 0.6, 0.4])
    picture = figures.curves("x", "T", [line, Line("other", [1, 2], [0.2, 0.3], 1)], best=2)
    root = ElementTree.fromstring(str(picture))
    assert "var(--c1)" in picture and "var(--muted)" in picture and "#0606" not in picture
    assert "<b>" not in picture and "$\\frac{$ &amp; co" in picture
    assert root.get("role") == "img" and "from 0.1 to 0.3" in (root.get("aria-label") or "")
    assert picture == figures.curves("x", "T", [line, Line("other", [1, 2], [0.2, 0.3], 1)], best=2)


def test_each_point_of_the_map_is_named() -> None:
    points = [Point(i / 9, i % 3, i % 2, i != 4, f"image {i} <x>") for i in range(10)]
    picture = figures.features_map("m", points, {0: "_ants", 1: "bees"}, "words")
    titles = [
        element.text for element in ElementTree.fromstring(str(picture)).iter("{http://www.w3.org/2000/svg}title")
    ]
    assert sorted(filter(None, titles)) == sorted(point.title for point in points)
    entries = list(figures.legend(points, {0: "_ants", 1: "bees"}))
    assert [(one.label, one.colour) for one in entries] == [
        ("_ants", "var(--c1)"), ("bees", "var(--c2)"), ("wrong", ""),
    ]  # fmt: skip
    assert figures.MARKER_PATHS.keys() == set(figures.MARKERS)


def test_an_axis_holds_all_its_bars() -> None:
    bars = [Bar("", "", Interval(0.84, 0.77, 0.9)), Bar("", "", Interval(1.0), points=(0.61, 1.0))]
    low, high = html.scale(bars)
    assert 0 <= low < 0.61 and high == 1.0 and html.placed(1.0, (low, high)) == "100.00"
    assert html.scale([Bar("", "", Interval(0.0))]) == (0.0, 0.1)
    assert html.points(-0.023) == "−2.3"


def test_metrics_have_four_decimals() -> None:
    assert [html.decimals(value) for value in (0.061, 0.00294512, 0.88, 1, -1234.5, 1e300)] == [
        "0.0610", "0.0029", "0.8800", "1.0000", "-1,234.5000", "1e+300",
    ]  # fmt: skip


def test_a_column_of_numbers_is_one_also_where_some_are_text() -> None:
    table = Table("t", ("", "number", "some"), (("unreadable", 0, 7), ("largest over smallest", "1.0", "")))
    assert html.numbers(table) == [False, True, True]
    assert html.numbers(Table("t", ("", "kinds"), (("a", 3), ("b", "RGB 7")))) == [False, False]


def test_half_an_interval_is_none() -> None:
    assert Interval(0.5, 0.4) == Interval(0.5, high=0.6) == Interval(0.5)
    assert Interval(0.5, 0.4, 0.6).low == 0.4
