"""Pages in a browser, for the tests that are marked so."""

import contextlib
import shutil


@contextlib.contextmanager
def browsing(url, width=1280, scheme="light", ready=".main-svg .xtick"):
    """A page in a browser, and what it wrote to the console or asked of the network.

    Args:
        url: its address.
        width: pixels of the window.
        scheme: light or dark.
        ready: the selector of what is there once the page is drawn.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        heard, asked = [], []
        page.on("console", lambda message: heard.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector(ready, state="attached")
        yield page, heard, asked
        browser.close()
