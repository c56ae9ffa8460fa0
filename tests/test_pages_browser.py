"""The pages in Chromium: by mouse and by keyboard, at both widths and in both colours, with axe-core over each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pages_browser import SCHEMES, WIDTHS_PX, Browser, Scheme, axe_faults, browser
from pages_site import ACCOUNT, Site, site
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
ANSWER_MS = 60_000


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as shown:
        yield shown


@pytest.fixture(scope="module")
def chromium(shown: Site) -> Iterator[Browser]:
    with browser(shown) as chromium:
        yield chromium


@pytest.fixture(autouse=True)
def _no_faults(chromium: Browser) -> Iterator[None]:
    chromium.faults.clear()
    yield
    assert chromium.faults == []


def answered(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("done", timeout=ANSWER_MS)


def segmented(page: Page, shown: Site) -> None:
    """The playground with an answer on it."""
    page.set_input_files("#file", shown.picture)
    expect(page.locator("#status")).to_contain_text(shown.picture.name)
    page.fill("#instruction", shown.instruction)
    page.press("#instruction", "Enter")
    expect(page.locator("#verdict")).to_contain_text("Both stages answered", timeout=ANSWER_MS)
    answered(page)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize("name", ["traces", "empty", "found", "failed", "beside", "play", "played", "jobs", "job"])
def test_pages_are_accessible_and_fit(chromium: Browser, shown: Site, name: str, width_px: int, scheme: Scheme) -> None:
    addresses = {
        "traces": "/traces", "empty": "/traces?project=99", "found": f"/traces/{shown.found}",
        "failed": f"/traces/{shown.failed}", "beside": f"/traces/{shown.found}?beside={shown.failed}", "play": "/play",
        "played": "/play", "jobs": "/jobs", "job": "/jobs/3",
    }  # fmt: skip
    with chromium.page(addresses[name], width_px, scheme) as page:
        if name == "played":
            segmented(page, shown)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert axe_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width_px
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(20, 23, 28)")


def test_axe_sees_what_is_wrong(chromium: Browser) -> None:
    with chromium.page("/play") as page:
        page.evaluate("document.querySelector('label[for=instruction]').remove()")
        page.evaluate("document.getElementById('instruction').removeAttribute('placeholder')")
        (fault,) = axe_faults(page)
        assert fault.startswith("label (critical)")


def test_clicks_refine_and_the_command_is_copied(chromium: Browser, shown: Site) -> None:
    with chromium.page("/play") as page:
        segmented(page, shown)
        mask = page.locator("#mask").get_attribute("src")
        crop = page.locator("#over .crop").bounding_box()
        assert crop is not None
        page.mouse.click(crop["x"] + crop["width"] / 2, crop["y"] + crop["height"] / 2)
        expect(page.locator("#command")).to_contain_text("--click ", timeout=ANSWER_MS)
        answered(page)
        assert page.locator("#mask").get_attribute("src") != mask
        page.click("#minus")
        page.locator("#shown").click(position={"x": 5, "y": 5})
        expect(page.locator("#command")).to_contain_text("--click-off ", timeout=ANSWER_MS)
        answered(page)
        assert page.locator("#over circle").count() == 2
        page.click("#undo")
        expect(page.locator("#over circle")).to_have_count(1)
        expect(page.locator("#command")).not_to_contain_text("--click-off ", timeout=ANSWER_MS)
        page.click("#copy")
        expect(page.locator("#status")).to_have_text("copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator("#command").inner_text()
        assert copied.startswith("rsvp-backend predict --click ")
        page.click("#marks")
        assert "/marked" in (page.locator("#photo").get_attribute("src") or "")
        page.click("#trace")
        expect(page.locator("h1")).to_contain_text(shown.instruction)


def test_the_playground_by_keyboard_alone(chromium: Browser) -> None:
    with chromium.page("/play") as page:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "sample":
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#instruction")).to_be_focused(timeout=ANSWER_MS)
        expect(page.locator("#instruction")).not_to_have_value("")
        page.keyboard.press("Enter")
        expect(page.locator("#verdict")).to_be_visible(timeout=ANSWER_MS)
        for _ in range(40):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.id") == "shown":
                break
        expect(page.locator("#over .cross")).to_have_count(1)
        for key in ("Shift+ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Enter"):
            page.keyboard.press(key)
        expect(page.locator("#over .in")).to_have_count(1)
        expect(page.locator("#command")).to_contain_text("--click ", timeout=ANSWER_MS)
        page.keyboard.press("Backspace")
        expect(page.locator("#over .in")).to_have_count(0)
        expect(page.locator("#command")).not_to_contain_text("--click ", timeout=ANSWER_MS)


def test_an_image_is_dropped(chromium: Browser, shown: Site) -> None:
    drop = """async ([name, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    with chromium.page("/play") as page:
        page.evaluate(drop, [shown.picture.name, list(shown.picture.read_bytes())])
        expect(page.locator("#status")).to_contain_text(shown.picture.name)
        assert page.locator("#photo").get_attribute("alt") == shown.picture.name
        expect(page.locator("#photo")).not_to_have_js_property("naturalWidth", 0)


def test_what_is_wrong_is_told_in_words(chromium: Browser, shown: Site, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with chromium.page("/play") as page:
        page.click("#run")
        expect(page.locator("#said")).to_have_text("Choose an image first.")
        page.set_input_files("#file", broken)
        expect(page.locator("#said")).to_contain_text("not a readable image")
        page.set_input_files("#file", shown.picture)
        expect(page.locator("#looked")).to_be_visible()
        page.click("#run")
        expect(page.locator("#said")).to_have_text("type an instruction, or click on what you want")
    # Browsers write refused requests to their console by themselves.
    assert all("422" in fault for fault in chromium.faults)
    chromium.faults.clear()


def test_the_list_is_narrowed_down_by_its_form(chromium: Browser, shown: Site) -> None:
    with chromium.page("/traces") as page:
        page.select_option("select[name=reason]", "absent")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**reason=absent**")
        rows = page.locator("tbody tr")
        assert rows.count() >= 1
        assert set(page.locator("tbody tr td:nth-child(2)").all_inner_texts()) == {"absent"}
        rows.first.locator("a").click()
        expect(page.locator(".told b")).to_have_text("Stage 1 answered that the object is absent.")


def test_two_versions_side_by_side(chromium: Browser, shown: Site) -> None:
    with chromium.page(f"/traces/{shown.found}") as page:
        page.get_by_label("Version").select_option(label="segmenter: the base weights")
        page.get_by_role("button", name="Run it").click()
        page.wait_for_url("**beside=**", timeout=ANSWER_MS)
        for name in ("This trace", "Run again"):
            expect(page.get_by_role("heading", name=name)).to_be_visible()
            picture = page.get_by_role("img", name=f"{name}: the mask on the image")
            picture.scroll_into_view_if_needed()
            expect(picture).not_to_have_js_property("naturalWidth", 0)
    health = httpx.get(f"{shown.url}/health").json()
    assert shown.versions[0] in health["model_version"]


def test_jobs_go_on_under_the_eyes_and_are_cancelled(chromium: Browser, shown: Site) -> None:
    with chromium.page("/jobs") as page:
        running = page.locator("section", has_text="Job 3, project 3")
        expect(running.locator("svg.plot").first).to_be_visible()
        with shown.jobs.store.changing() as changes:
            changes.update(3, done=200, text="loss 0.010, 12 s left")
            changes.keep_curve(3, (*shown.jobs.store.curve(3), (200, 0.01, 0.7)))
        expect(running).to_contain_text("200 of 240", timeout=15_000)
        expect(running.locator("svg.plot")).to_have_count(2)
        expect(page.locator("section", has_text="Job 2, project 2")).to_contain_text("cannot be reached: is it up?")
        page.get_by_role("button", name="Cancel job 4").click()
        expect(page.locator("section", has_text="Job 4, project 4").locator(".state")).to_have_text("cancelled")


def test_a_version_is_promoted_and_rolled_back_after_a_question(chromium: Browser, shown: Site) -> None:
    first, second = shown.versions
    with chromium.page("/jobs") as page:
        row = page.locator("tr", has_text=second).filter(has=page.locator("summary"))
        assert not row.get_by_role("button", name="Yes, promote").is_visible()
        row.locator("summary").press("Enter")
        row.get_by_role("button", name="Yes, promote").press("Enter")
        expect(page.get_by_text(f"{second} is current.")).to_be_visible(timeout=ANSWER_MS)
        page.locator("summary", has_text="Roll back").click()
        page.get_by_role("button", name="Yes, roll back").click()
        expect(page.get_by_text(f"{first} is current.")).to_be_visible(timeout=ANSWER_MS)


def test_without_the_password_there_is_no_page(shown: Site) -> None:
    assert httpx.get(f"{shown.url}/play").status_code == 401
    assert httpx.get(f"{shown.url}/play", auth=ACCOUNT).status_code == 200
