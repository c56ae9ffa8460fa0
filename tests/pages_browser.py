"""Chromium on the pages of `pages_site`: what it complains about, and what axe-core finds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Literal

from pages_site import ACCOUNT, Site
from playwright.sync_api import Page, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
Scheme = Literal["light", "dark"]
WIDTHS_PX = (1280, 390)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


class Browser:
    """Opens pages of one site; ``faults`` is what their consoles and requests complained about."""

    def __init__(self, chromium: Any, site: Site) -> None:
        self._chromium, self._site = chromium, site
        self.faults: list[str] = []

    @contextmanager
    def page(self, address: str, width_px: int = 1280, scheme: Scheme = "light") -> Iterator[Page]:
        account = {"username": ACCOUNT[0], "password": ACCOUNT[1]}
        context = self._chromium.new_context(
            viewport={"width": width_px, "height": 860}, color_scheme=scheme, http_credentials=account,
            base_url=self._site.url, permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        page: Page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: self.faults.append(f"{address}: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: self.faults.append(f"{address}: {error}"))
        page.on("request", lambda request: self._look(address, request.url))
        page.goto(address)
        try:
            yield page
        finally:
            context.close()

    def _look(self, address: str, url: str) -> None:
        if not url.startswith((self._site.url, "data:", "blob:")):
            self.faults.append(f"{address} asks {url}")


@contextmanager
def browser(site: Site) -> Iterator[Browser]:
    """The Chromium that is installed, else Playwright's own."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        try:
            yield Browser(chromium, site)
        finally:
            chromium.close()


def axe_faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements. Run by the debugger, which no page's policy binds."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
