"""Figures and names in messages."""

from __future__ import annotations

import pytest

from transferctl.wording import two_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.46, "9.5"), (99.7, "100"), (128.4, "130"), (1_234.5, "1,200"), (45_678, "46,000"), (0.0123, "0.012")],
)
def test_a_rough_figure_has_two_digits(value: float, text: str) -> None:
    assert two_digits(value) == text
