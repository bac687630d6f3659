"""Which paths lead out of a folder, by their words and by the links on their way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from transferctl.errors import DataError
from transferctl.outside import Outsiders


@pytest.fixture
def outsiders(tmp_path: Path) -> Outsiders:
    """Of tmp_path/in, beside which lies `out`."""
    for name in ("in/a/deep", "in/b", "out/x"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("in/a/1.png", "out/x/1.png", "inner.png"):
        (tmp_path / name).touch()
    return Outsiders(tmp_path / "in", "links")


@pytest.mark.parametrize(
    ("link", "to", "leads_out"),
    [
        ("a/l.png", "../../out/x/1.png", True),
        ("a/l.png", "1.png", False),
        ("a/l.png", "deep/../../b", False),
        ("a/l.png", "..", False),
        ("a/l.png", "../..", True),
        ("a/l.png", "../../inner.png", True),
        ("a/l.png", "l.png", False),
        ("a/l.png", "../../out/gone.png", True),
        ("a/l.png", "../../out/back/1.png", False),
        ("a/l.png", "deep/second", True),
    ],
)
def test_a_link_leads_where_realpath_says(
    outsiders: Outsiders, tmp_path: Path, link: str, to: str, leads_out: bool
) -> None:
    (tmp_path / "out" / "back").symlink_to("../in/a")
    (tmp_path / "in" / "a" / "deep" / "second").symlink_to("../../../out/x/1.png")
    (tmp_path / "in" / link).symlink_to(to)
    path = str(tmp_path / "in" / link)
    assert outsiders.links_out(path) == leads_out
    assert leads_out != f"{os.path.realpath(path)}/".startswith(f"{tmp_path}/in/")


def test_a_folder_that_is_a_link_itself_holds_its_own_files(tmp_path: Path, outsiders: Outsiders) -> None:
    (tmp_path / "alias").symlink_to("in")
    through = Outsiders(tmp_path / "alias", "links")
    assert not through.links_out(str(tmp_path / "alias" / "a" / "1.png"))
    assert not through.names_out(f"{tmp_path}/in/a/1.png") and through.names_out(f"{tmp_path}/inner.png")


def test_they_are_counted_and_the_first_few_named(outsiders: Outsiders) -> None:
    for i in range(5):
        outsiders.add(f"{i}.png")
    (note,) = outsiders.notes("read")
    assert note.startswith("5 images outside") and "0.png, 1.png, 2.png and 2 more" in note
    with pytest.raises(DataError, match="remove them, or write outside: read"):
        list(outsiders.notes("refuse"))
