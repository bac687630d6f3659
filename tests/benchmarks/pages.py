"""How large a report is, how long each part takes to make, and how long Chromium takes to open it.

    python tests/benchmarks/pages.py RUN…

Each run's page is made once, in this process, imports included for the first; the page is opened three times from disk,
and the median of its load event is told. Needs playwright and chromium.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        started, processor = time.monotonic(), time.process_time()
        from transferctl.reporting import page
        from transferctl.reporting.gather import gather

        seconds: dict[str, float] = {}
        page._Parts.made = _timed(page._Parts.made, seconds)  # type: ignore[method-assign]
        text = page.of(gather(path)).html
        took = time.monotonic() - started
        parts = ", ".join(f"{name} {spent:.2f}" for name, spent in seconds.items())
        print(f"{path.name}: {len(text.encode()) / 1000:.0f} kB, {took:.1f} s, {time.process_time() - processor:.1f} s of "
              f"processors ({parts}), opens in {_load_ms(text):.0f} ms")  # fmt: skip


def _timed(made: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(self: Any, name: str, make: Callable[[], Any]) -> Any:
        started = time.monotonic()
        try:
            return made(self, name, make)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started

    return timed


def _load_ms(text: str) -> float:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "report.html").write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        found = []
        for _ in range(3):
            shown = browser.new_page()
            shown.goto((Path(folder) / "report.html").as_uri())
            found.append(shown.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            shown.close()
        browser.close()
    return float(statistics.median(found))


if __name__ == "__main__":
    main()
