"""Drives Label Studio's labeling screen as an annotator does: Chromium with its mouse and keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
SETTLE_MS = 700
Point = tuple[float, float]


@contextmanager
def browser_page(width_px: int = 1400, height_px: int = 900, record: Path | None = None) -> Iterator[Page]:
    """A page of the Chromium that is installed, else of Playwright's own.

    ``record``: a ZIP for all that it does and shows, to be looked at by ``playwright show-trace``.
    """
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    size: Any = {"width": width_px, "height": height_px}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        context = browser.new_context(viewport=size)
        if record is not None:
            context.tracing.start(screenshots=True, snapshots=True)
        page = context.new_page()
        page.set_default_timeout(60_000)
        try:
            yield page
        finally:
            if record is not None:
                context.tracing.stop(path=record)
            context.close()
            browser.close()


class Screen:
    """One annotator's browser. Coordinates of the image are shares of its width and height, 0 to 1."""

    def __init__(self, page: Page, url: str, email: str, password: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(f"{url}/user/login/")
        page.fill("input[name=email]", email)
        page.fill("input[name=password]", password)
        page.click("button[type=submit], input[type=submit]")
        page.wait_for_url(lambda address: "/login" not in address)

    def open(self, project: int, task: int) -> None:
        """Show a task; its image and its newest prediction or annotation are there afterwards."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        self.page.wait_for_selector("canvas")
        self.page.wait_for_load_state("networkidle")
        self.settle()

    def settle(self, ms: int = SETTLE_MS) -> None:
        """Label Studio paints after it has answered; there is no event to wait for."""
        self.page.wait_for_timeout(ms)

    def at(self, point: Point) -> Point:
        """Where a point of the image is on the page."""
        box = self.page.locator("canvas").first.bounding_box()
        assert box is not None
        return box["x"] + box["width"] * point[0], box["y"] + box["height"] * point[1]

    @property
    def regions(self) -> Locator:
        """The rows of the region list."""
        return self.page.locator(".lsf-outliner-item__content")

    def select_region(self, number: int) -> None:
        """By its row in the list, from 0."""
        self.regions.nth(number).click()
        self.settle(300)

    def auto_annotation(self) -> None:
        """Switch it over; the smart tools come and go with it."""
        self.page.get_by_text("Auto-Annotation").first.click()
        self.settle()

    def label(self, name: str, row: int) -> None:
        """Choose a label: row 0 the masks', 1 the clicks', 2 the boxes'."""
        self.page.locator(".lsf-label", has_text=name).nth(row).click()
        self.settle(300)

    def tool(self, name: str) -> None:
        """By Label Studio's name for it: brush-tool, eraser, move-tool."""
        self.page.locator(f".lsf-tool[aria-label='{name}']").first.click()
        self.settle(300)

    def smart_tool(self, name: str, label: str) -> None:
        """One of Auto-Annotation's, ``key-point-tool`` or ``rectangle-tool``, and then its label: in this order."""
        self.page.locator(".lsf-tool_smart").first.hover()
        self.page.locator(f".lsf-tool_smart[aria-label='{name}']").click()
        self.settle(300)
        self.label(label, ("key-point-tool", "rectangle-tool").index(name) + 1)

    def click(self, point: Point, *, negative: bool = False) -> None:
        if negative:
            self.page.keyboard.down("Alt")
        self.page.mouse.click(*self.at(point))
        if negative:
            self.page.keyboard.up("Alt")
        self.settle()

    def drag(self, points: Sequence[Point]) -> None:
        """Press at the first point, move along the others, release: a stroke, or a box from corner to corner."""
        self.page.mouse.move(*self.at(points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(point), steps=4)
        self.page.mouse.up()
        self.settle(200)

    def prompt(self, text: str) -> None:
        """Type another instruction and press its button; the backend's suggestion, or its message, comes later."""
        self.page.fill("textarea[name=prompt]", text)
        self.page.get_by_test_id("textarea-add-button").first.click()

    def suggested(self, count: int = 1) -> None:
        """Wait for so many suggestions of the backend."""
        expect(self.page.get_by_text(f"{count} suggestions")).to_be_visible(timeout=60_000)
        self.settle()

    def accept(self) -> None:
        """All suggestions."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        self.settle()

    def submit(self) -> None:
        """Submit, or update what was submitted before; it is saved afterwards."""
        with self.page.expect_response(
            lambda answer: "/annotations" in answer.url and answer.request.method in ("POST", "PATCH")
        ):
            self.page.get_by_test_id(re.compile("^bottombar-(submit|update)-button$")).click()
        self.settle()

    def has_text(self, text: str) -> None:
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=60_000)
