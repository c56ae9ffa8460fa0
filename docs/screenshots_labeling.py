"""Pictures of the labeling screen, each step done in Chromium on a real Label Studio with the demo models.

    python docs/screenshots_labeling.py

writes docs/images/label-*.png, and docs/images/loop-*.png from what `make browser` left in out/browser. Label Studio is
the one that `make setup` installs.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from screen import Screen, browser_page  # noqa: E402

from rsvp_backend.demo import label_studio  # noqa: E402
from rsvp_backend.demo.label_studio import Home  # noqa: E402
from rsvp_backend.demo.project import DemoProject, create_project, demo_tasks, preannotate  # noqa: E402
from rsvp_backend.demo.run import running  # noqa: E402
from rsvp_backend.labelstudio.client import LabelStudioClient  # noqa: E402

IMAGES = ROOT / "docs" / "images"
LIST_PX, TOP_PX = 240, 45  # the data manager's list of tasks, and Label Studio's own header: not shown
COLORS = 160
THINKING_MS = 4000
say = logging.getLogger(__name__).info


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for path in sorted((ROOT / "out" / "browser").glob("[1-9]-*.png")):
        with Image.open(path) as picture:
            keep(picture, IMAGES / f"loop-{path.name}", cropped="lesson" not in path.name)
    home = Home(ROOT / Home().root)
    label_studio.prepare(home, say)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "labeling-pictures"
        with running(home, data, say) as stack, LabelStudioClient(stack.label_studio_url, stack.token) as client:
            project = create_project(client, stack.backend, demo_tasks(data / "images", 6), "Labeling")
            preannotate(client, project, say)
            with browser_page() as page:
                screen = Screen(page, stack.label_studio_url, stack.account.email, stack.account.password)
                walk(screen, project)
                if screen.faults:
                    raise SystemExit("\n".join(screen.faults))


def walk(screen: Screen, project: DemoProject) -> None:
    """The steps of docs/labeling.md, in its order."""
    screen.open(project.project, project.task_ids[4])
    take(screen, "open")
    screen.select_region(0)
    take(screen, "reasoning")
    screen.tool("eraser")
    screen.drag([(0.76, 0.78), (0.8, 0.97)])
    screen.drag([(0.78, 0.78), (0.78, 0.97)])
    take(screen, "erased")
    screen.submit()
    take(screen, "submitted")

    screen.open(project.project, project.task_ids[3])
    screen.auto_annotation()
    screen.prompt("the red ball")
    screen.suggested()
    take(screen, "prompt")
    screen.accept()
    take(screen, "accepted")

    screen.open(project.project, project.task_ids[5])
    screen.smart_tool("key-point-tool", "ball")
    screen.click((0.62, 0.25))
    screen.suggested()
    screen.click((0.54, 0.4), negative=True)
    screen.settle(THINKING_MS)
    take(screen, "click")

    screen.open(project.project, project.task_ids[1])
    screen.smart_tool("rectangle-tool", "book")
    screen.drag([(0.5, 0.55), (0.8, 0.99)])
    screen.suggested()
    take(screen, "box")

    screen.open(project.project, project.task_ids[2])
    screen.prompt("the red key")
    screen.has_text("Nothing segmented")
    take(screen, "absent")


def take(screen: Screen, name: str) -> None:
    screen.page.mouse.move(0, 0)
    screen.settle(300)
    keep(Image.open(io.BytesIO(screen.page.screenshot())), IMAGES / f"label-{name}.png")
    say("label-%s.png", name)


def keep(picture: Image.Image, path: Path, cropped: bool = True) -> None:
    """With few colours: a fifth of the size."""
    picture = picture.convert("RGB")
    if cropped:
        picture = picture.crop((LIST_PX, TOP_PX, picture.width, picture.height))
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
