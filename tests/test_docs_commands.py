"""What the README and docs/ tell to type: commands, options, settings, make targets and configs that exist."""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rsvp_backend import cli
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def every_page() -> Iterator[tuple[str, str]]:
    for name, page in zip(NAMES, PAGES, strict=True):
        yield name, page.read_text(encoding="utf-8")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Of a command and of its own sub-commands, which a list names in one line."""
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options(inner) for inner in subcommands(parser).values()))


COMMANDS = subcommands(cli._parser())


def told_commands(text: str) -> Iterator[str]:
    """Each ``rsvp-backend ...`` up to the end of its line or its backtick, and ``COMMAND --option`` in backticks."""
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        for found in re.finditer(r"(?<![\w/-])rsvp-backend ((?:[a-z]|\[)[^`]*)", line):
            yield found[1].strip()
        for found in re.finditer(r"`([a-z][a-z-]*) (--[^`]*)`", line):
            if found[1] in COMMANDS:
                yield f"{found[1]} {found[2]}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name: str) -> None:
    wrong = []
    for line in told_commands((ROOT / name).read_text(encoding="utf-8")):
        command, _, rest = line.partition(" ")
        parser = COMMANDS.get(command.strip(".,;:)"))
        if parser is None:
            wrong.append(line)
            continue
        inner = subcommands(parser).get(rest.partition(" ")[0].strip("[],"))
        # A shell line may go on with another program.
        told = OPTION.findall(re.split(r"[|&;] ", rest)[0])
        known = options(inner or parser)
        wrong += [f"{command}: {option}" for option in told if option not in known]
    assert wrong == []


def test_the_readme_lists_every_command() -> None:
    listed = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Command line")[2].partition("\n## ")[0]
    assert set(COMMANDS) == set(re.findall(r"^rsvp-backend ([a-z-]+)", listed, re.MULTILINE))


def test_named_settings_exist() -> None:
    known = {f"RSVP_{name.upper()}" for name in Settings.model_fields}
    for name, text in every_page():
        told = set(re.findall(r"RSVP_[A-Z_]*[A-Z]\b(?!_?\*|\.\.\.)", text))
        assert told <= known, (name, told - known)


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name, text in every_page():
        told = set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
        assert told <= targets, (name, told - targets)


def test_configs_and_programs_in_the_text_can_be_read() -> None:
    seen = set()
    for name, text in every_page():
        for found in BLOCK.finditer(text):
            language, inside = found[2], "\n".join(line.removeprefix(found[1]) for line in found[3].splitlines())
            seen.add(language)
            try:
                read(language, inside)
            except (ValueError, SyntaxError, ET.ParseError, yaml.YAMLError) as error:
                pytest.fail(f"{name}: a block of {language}: {error}")
    assert {"json", "python", "xml"} <= seen


def read(language: str, text: str) -> None:
    match language:
        case "json":
            json.loads(text)
        case "yaml":
            yaml.safe_load(text)
        case "python":
            ast.parse(text)
        case "xml" if "<View" in text:
            parse_label_config(text)
        case "xml":
            ET.fromstring(f"<all>{text}</all>")


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_pages_beside_docs_lead_somewhere(name: str) -> None:
    """Those of docs/ are MkDocs' to check, below."""
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_is_built_without_a_warning_and_asks_nobody_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement on stderr
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    pages = list((tmp_path / "site").glob("*.html"))
    assert {path.stem for path in pages} >= {"index", "tutorial", "labeling", "readme-of-the-project"}
    loads = re.compile(r'<(?:script|img|iframe)[^>]+src="(https?:)?//|<link[^>]+href="(https?:)?//|@import|preconnect')
    assert [path.name for path in pages if loads.search(path.read_text(encoding="utf-8"))] == []


def test_every_page_is_in_the_sites_contents() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w-]+\.md", json.dumps(nav)))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - listed == set()
