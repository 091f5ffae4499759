"""How long a visitor of the web app waits: the first visit, a return from the cache, and pictures. `make web` first.

    python benchmarks/web_app.py [--repeats N] [--out benchmarks/results]

Chromium without a window opens the page as `snapgen web` serves it, with one thread of WebAssembly. "Return" is a visit
with everything in the browser's cache, from the navigation to the finished picture, the loading of the model included.
The other pictures are drawn with a loaded model, from the click to the picture, previews included. All have the model's
own steps. Writes web_app.json and .md: medians, with the fastest and the slowest.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, sync_playwright
from shared import machine_facts, make_parser, page, write_results

from snapgen.messages import markdown_table
from snapgen.web.serve import SiteServer, site_files

PROMPT = "two red apples"
SIDES = (128, 256)  # px
GOALS = {"return, 128 px": 8.0, "128 px": 1.5, "256 px": 3.0}  # s, on two quiet cores
SECONDS = 120_000  # ms, the longest wait


def draw(window: Page, number: int) -> None:
    """Asks for the session's picture `number`, and waits until it is there."""
    window.get_by_label("What should it show?").fill(PROMPT)
    window.get_by_role("button", name="Draw", exact=True).click()
    window.wait_for_selector(f"#pictures li:nth-child({number})")
    window.wait_for_selector("#stop", state="hidden")


def visit(context: BrowserContext, url: str) -> tuple[Page, float]:
    """A page that has drawn its first picture, and the seconds since the navigation."""
    window = context.new_page()
    window.set_default_timeout(SECONDS)
    start = time.perf_counter()
    window.goto(url)
    window.wait_for_selector("#model:not(:empty)")
    draw(window, 1)
    return window, time.perf_counter() - start


def measure(context: BrowserContext, url: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of everything that a visitor waits for."""
    window, first = visit(context, url)
    window.evaluate("navigator.serviceWorker.ready")
    seconds: dict[str, list[float]] = {"first visit, 128 px": [first], "return, 128 px": []}
    for _ in range(repeats):
        window.close()
        window, took = visit(context, url)
        seconds["return, 128 px"].append(took)
    window.evaluate("document.querySelector('details').open = true")
    number = 1
    for side in SIDES:
        for label in ("Width", "Height"):
            window.get_by_label(label, exact=True).select_option(str(side))
        found = seconds[f"{side} px"] = []
        for _ in range(repeats):
            number += 1
            start = time.perf_counter()
            draw(window, number)
            found.append(time.perf_counter() - start)
    return seconds


def table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [name, f"{statistics.median(found):.1f}", f"{min(found):.1f} to {max(found):.1f}", str(GOALS.get(name, ""))]
        for name, found in report["seconds"].items()
    ]
    head = f"Chromium {report['browser']} on {report['device']}; {report['bytes'] / 1e6:.1f} MB of files, all variants."
    return page(__file__, "# The web app", [head, "", *markdown_table(["", "s", "range", "goal, s"], rows)])


def main() -> None:
    """Open, draw and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    files = site_files()
    server = SiteServer(("127.0.0.1", 0), files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium-headless-shell"))
        seconds = measure(browser.new_context(), server.url, options.repeats)
        facts = machine_facts() | {"browser": browser.version, "bytes": sum(map(size, files.values()))}
        browser.close()
    report = {"seconds": seconds} | facts
    write_results(options.out / "web_app", report, table(report))


def size(file: Path) -> int:
    """Bytes."""
    return file.stat().st_size


if __name__ == "__main__":
    main()
