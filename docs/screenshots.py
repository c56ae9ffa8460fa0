"""Pictures of the server's pages, taken in Chromium from the real application with the demo models.

    python docs/screenshots.py [--all out/screenshots]

writes those that the documentation shows into docs/images; ``--all`` also writes every page at both widths and in both
colours.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from pages_browser import SCHEMES, WIDTHS_PX, Browser, Scheme, browser  # noqa: E402
from pages_site import Site, site  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHOWN: tuple[tuple[str, int, Scheme], ...] = (
    ("traces", 1280, "light"), ("trace", 1280, "light"), ("failed", 1280, "dark"), ("beside", 1280, "light"),
    ("play", 1280, "light"), ("play", 390, "dark"), ("jobs", 1280, "light"), ("jobs", 390, "dark"),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(name for name, _, _ in SHOWN))
_MS = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="DIR", help="every page at both widths and in both colours")
    folder = parser.parse_args().all
    wanted = [(name, width, scheme) for name in NAMES for width in WIDTHS_PX for scheme in SCHEMES] if folder else SHOWN
    with tempfile.TemporaryDirectory() as temporary, site(Path(temporary)) as shown, browser(shown) as chromium:
        taken = {one: take(chromium, shown, *one) for one in wanted}
        if chromium.faults:
            raise SystemExit("\n".join(chromium.faults))
    IMAGES.mkdir(exist_ok=True)
    for name, width_px, scheme in SHOWN:
        narrow = "-narrow" if width_px == WIDTHS_PX[1] else ""
        save(taken[name, width_px, scheme], IMAGES / f"page-{name}{narrow}.png")
    for (name, width_px, scheme), picture in taken.items() if folder else ():
        folder.mkdir(parents=True, exist_ok=True)
        save(picture, folder / f"{name}-{width_px}-{scheme}.png")


def take(chromium: Browser, shown: Site, name: str, width_px: int, scheme: Scheme) -> Image.Image:
    addresses = {"traces": "/traces", "trace": f"/traces/{shown.found}", "failed": f"/traces/{shown.failed}",
                 "beside": f"/traces/{shown.found}", "play": "/play", "jobs": "/jobs"}  # fmt: skip
    with chromium.page(addresses[name], width_px, scheme) as page:
        if name == "play":
            play(page, shown)
        if name == "beside":
            page.get_by_label("Version").select_option(label="segmenter: the base weights")
            page.get_by_role("button", name="Run it").click()
            page.wait_for_url("**beside=**", timeout=_MS)
        for picture in page.locator("main img:visible").all():
            picture.scroll_into_view_if_needed()
            expect(picture).not_to_have_js_property("naturalWidth", 0)
        page.evaluate("scrollTo(0, 0)")
        if name == "beside":
            section = page.locator("section", has_text="The same instruction under another version")
            return Image.open(io.BytesIO(section.screenshot()))
        height_px = page.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width_px, "height": min(height_px, 1500 if width_px < 500 else 1100)}
        return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))


def play(page: Page, shown: Site) -> None:
    """An instruction, then a click in the middle of its crop."""
    page.set_input_files("#file", shown.picture)
    expect(page.locator("#status")).to_contain_text(shown.picture.name)
    page.fill("#instruction", shown.instruction)
    page.press("#instruction", "Enter")
    expect(page.locator("#status")).to_have_text("done", timeout=_MS)
    crop = page.locator("#over .crop").bounding_box()
    assert crop is not None
    page.mouse.click(crop["x"] + crop["width"] / 2, crop["y"] + crop["height"] / 2)
    expect(page.locator("#command")).to_contain_text("--click", timeout=_MS)
    expect(page.locator("#status")).to_have_text("done", timeout=_MS)
    page.mouse.move(0, 0)


def save(picture: Image.Image, path: Path) -> None:
    """With few colours, which these pages have, the rare ones among them: a third of the size."""
    few = picture.convert("RGB").quantize(kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main()
