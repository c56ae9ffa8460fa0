"""For MkDocs: the pages that lie beside this folder join the site, and links to code become its path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BESIDE = {
    "README.md": "readme-of-the-project.md",
    "SECURITY.md": "security-policy.md",
    "CHANGELOG.md": "changes.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the project's own README, security policy and changelog, their links as seen from here."""
    for source, name in BESIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_LINK.sub(lambda found: _moved(found, ROOT), text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave this folder."""
    if page.file.src_uri in BESIDE.values():
        return markdown
    return _LINK.sub(lambda found: _moved(found, ROOT / "docs"), markdown)


def _moved(found: re.Match[str], folder: Path) -> str:
    """One link of a page in ``folder``: to the page that joined, to a page here, or, for code, just where it lies."""
    picture, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    path = Path(*(folder / target).parts)
    inside = (path.parent.resolve() / path.name).relative_to(ROOT).as_posix()
    if inside in BESIDE:
        return f"[{text}]({BESIDE[inside]}{anchor})"
    if inside.startswith("docs/") and Path(inside).suffix in (".md", ".png", ".svg", ".gif"):
        return f"{picture}[{text}]({inside.removeprefix('docs/')}{anchor})"
    return text if inside in text else f"{text} (`{inside}`)"
