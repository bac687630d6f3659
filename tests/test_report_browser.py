"""The page in a real browser, from disk: nothing is asked of the network, nothing is wider than a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transferctl.reporting import comparison, page
from transferctl.reporting.gather import gather

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = ["<img src=x onerror=document.title='ran'>", "\"><svg onload=document.title='ran'>", "W" * 300]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, call: Any) -> dict[str, Path]:
    """A run of three classes, two with names that would run; beside itself; and one of 30 classes."""
    from test_report import make_images  # the same folder; pytest has it on the path

    folder, made = tmp_path_factory.mktemp("pages"), dict[str, Path]()
    for name, classes in {"few": ["ants", "bees", "wasps"], "many": [f"class{i:02}" for i in range(30)]}.items():
        for split in ("train", "val"):
            make_images(folder / name / split, **dict.fromkeys(classes, 3))
        (folder / f"{name}.yaml").write_text(
            "backbone: {name: resnet18, weights: none}\npreprocess: {crop: 32}\nepochs: 2\nworkers: 0\n"
            f"target: {{train: {name}/train, val: {name}/val}}\n"
        )
        run = Path(call("finetune", folder / f"{name}.yaml", "--runs-dir", folder / "runs")["run"])
        if name == "few":
            _rename(run, dict(zip(classes, HOSTILE, strict=True)))
        made[name] = folder / f"{name}.html"
        made[name].write_text(page.of(gather(run)).html, encoding="utf-8")
    made["both"] = folder / "both.html"
    made["both"].write_text(
        comparison.of([gather(path) for path in (folder / "runs").iterdir()]).html, encoding="utf-8"
    )
    return made


def _rename(run: Path, names: dict[str, str]) -> None:
    """The run's own words about its classes."""
    for file in ("summary.json", "predictions.csv", "environment.json"):
        text = (run / file).read_text()
        for old, new in names.items():
            text = text.replace(f'"{old}"', json.dumps(new)).replace(
                f",{old},", f',"{new.replace(chr(34), chr(34) * 2)}",'
            )
        (run / file).write_text(text)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """opened(path, width, scheme): the page, with what it said and asked for; requests are refused."""
    contexts = []

    def open_page(path: Path, width: int = 1200, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.said, shown.asked = [], []
        shown.on("console", lambda message: shown.said.append(message.text))
        shown.on("pageerror", lambda error: shown.said.append(str(error)))

        def refuse(route: Any) -> None:
            shown.asked.append(route.request.url)
            route.abort()

        context.route(lambda url: not url.startswith(("file:", "data:")), refuse)
        shown.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["few", "many", "both"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_a_word_and_without_a_request(
    pages: dict[str, Path], opened: Any, name: str, scheme: str
) -> None:
    shown = opened(pages[name], scheme=scheme)
    assert (shown.said, shown.asked) == ([], [])
    assert shown.title() != "ran" and shown.locator("h1").count() == 1
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert shown.evaluate(broken) == 0
    load_ms = shown.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"{name}, {scheme}: {pages[name].stat().st_size / 1000:.0f} kB, loaded in {load_ms:.0f} ms")


@pytest.mark.parametrize("name", ["few", "many", "both"])
def test_nothing_is_wider_than_a_phone(pages: dict[str, Path], opened: Any, name: str) -> None:
    shown = opened(pages[name], width=375)
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") == 375


@pytest.mark.parametrize("name", ["few", "both"])
@pytest.mark.parametrize("width", [375, 1200])
def test_no_column_is_cut_off(pages: dict[str, Path], opened: Any, name: str, width: int) -> None:
    """But those of confusion matrices and what is laid out by hand (pre)."""
    shown = opened(pages[name], width=width)
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    cut = "one => !one.querySelector('.matrix') && one.scrollWidth > one.clientWidth"
    assert shown.evaluate(f"[...document.querySelectorAll('.scroll')].filter({cut}).map(one => one.innerText)") == []


def test_on_a_phone_cells_have_labels_and_the_map_a_legend(pages: dict[str, Path], opened: Any) -> None:
    shown = opened(pages["both"], width=375)
    label = "getComputedStyle(document.querySelector('#top ~ section td:last-child'), '::before').content"
    assert shown.evaluate(label) == '"state"'
    shown = opened(pages["many"], width=375, is_mobile=True, has_touch=True)
    assert shown.locator(".pointer").is_hidden()
    shown = opened(pages["few"], width=375)
    assert shown.locator(".pointer").is_visible()
    assert all(box["height"] >= 12 for box in [one.bounding_box() for one in shown.locator(".legend li").all()])
    assert shown.locator(".legend li").count() >= 3


def test_dark_is_dark_in_page_and_figures(pages: dict[str, Path], opened: Any) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        shown = opened(pages["many"], scheme=scheme)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        paper = shown.evaluate(style.format("body", "backgroundColor"))
        seen[scheme] = paper, shown.evaluate(style.format("svg text", "fill"))
    light, dark = ([_lightness(colour) for colour in seen[scheme]] for scheme in ("light", "dark"))
    assert light[0] > 0.9 and light[1] < 0.5 and dark[0] < 0.15 and dark[1] > 0.5


def _lightness(colour: str) -> float:
    return sum(float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]) / 3 / 255


def test_text_stands_out_from_its_ground(pages: dict[str, Path], opened: Any) -> None:
    """Contrast of at least 4.5 to 1 for muted and coloured text on cards (WCAG 2, AA)."""
    for scheme in ("light", "dark"):
        shown = opened(pages["few"], scheme=scheme)
        variable = "getComputedStyle(document.documentElement).getPropertyValue('--{}')"
        colours = {name: shown.evaluate(variable.format(name)).strip() for name in
                   ("card", "ink", "muted", "accent", "good", "warn", "bad")}  # fmt: skip
        ground = colours.pop("card")
        for name, colour in colours.items():
            assert _contrast(colour, ground) >= 4.5, (scheme, name)


def _contrast(one: str, other: str) -> float:
    lights = sorted(_luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
