"""Takes docs/web_light.webp and docs/web_dark.webp, the web app with the bundled model: `make web` first."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from snapgen.web.serve import SiteServer, site_files

DOCS = Path(__file__).parents[1] / "docs"
PROMPTS = (  # each with seed 0, none picked
    "three yellow stars on a blue background",
    "a butterfly",
    "a purple car",
    "a cat to the left of a tree",
    "two red apples",
    "a rocket at night",
)
TYPED = "a green frog and a mushrom"  # with a slip
SCREENS: dict[str, dict[str, Any]] = {
    "web_light": {"color_scheme": "light", "viewport": {"width": 1120, "height": 920}},
    "web_dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
SECONDS = 120_000  # ms


def main() -> None:
    """Draws the pictures on each screen."""
    server = SiteServer(("127.0.0.1", 0), site_files())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium-headless-shell"))
        for name, screen in SCREENS.items():
            picture = Image.open(io.BytesIO(take(browser, server.url, screen)))
            picture.convert("RGB").save(DOCS / f"{name}.webp", quality=88, method=6)
            print(DOCS / f"{name}.webp")
        browser.close()


def take(browser: Browser, url: str, screen: dict[str, Any]) -> bytes:
    """The screen after all prompts were drawn, as PNG."""
    page: Page = browser.new_page(**screen)
    page.set_default_timeout(SECONDS)
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    page.evaluate("document.getElementById('seed').value = '0'")
    for number, prompt in enumerate(PROMPTS, 1):
        page.get_by_label("What should it show?").fill(prompt)
        page.get_by_role("button", name="Draw", exact=True).click()
        page.wait_for_selector(f"#pictures li:nth-child({number})")
    page.wait_for_selector("#stop", state="hidden")
    page.get_by_label("What should it show?").fill(TYPED)
    page.get_by_text("is not a word it knows").wait_for()
    page.evaluate("document.activeElement.blur()")
    content = page.screenshot()
    page.close()
    return content


if __name__ == "__main__":
    main()
