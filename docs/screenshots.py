"""Pictures of the explorer for the documentation, as a browser shows it: ``python docs/screenshots.py`` writes them.

It needs ``loopprobe[browser]`` and a Chromium.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from loopprobe import explore
from loopprobe.show.explore.server import ExplorerServer

DOCS = Path(__file__).resolve().parent
SHOWN = "() => view.told.includes('head 0.1 off')"


def main() -> None:
    """Take head 0.1 out of the default model by a click, on a laptop in light and on a phone in dark."""
    server = ExplorerServer(explore("lr-b20-T10"))  # type: ignore[arg-type]  # of a checkpoint it is an Exploration
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        _take(browser, server.url, "explore.png", viewport={"width": 1280, "height": 1210}, color_scheme="light")
        _take(browser, server.url, "explore-phone.png", viewport={"width": 500, "height": 860}, color_scheme="dark")
        browser.close()
    server.shutdown()
    server.server_close()


def _take(browser: Browser, url: str, name: str, **options: Any) -> None:
    page = browser.new_page(**options)
    page.goto(url)
    page.wait_for_selector("#error .xtick", state="attached")
    page.click("#heads button[data-head='0.1']")
    page.wait_for_function(SHOWN)
    page.locator("#loop").fill("12")
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=DOCS / name)
    page.close()


if __name__ == "__main__":
    main()
