"""Reads a Dockerfile: its stages and their instructions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """``words``: those of the exec form (a JSON list), else ``rest`` cut at white space."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return list(json.loads(self.rest)) if self.rest.startswith("[") else self.rest.split()


@dataclass
class Stage:
    """``name AS`` a ``base``: an image, or a stage before it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name == name]


def read_dockerfile(path: Path) -> list[Stage]:
    """In the file's order. Raises `ValueError` for a line before the first FROM."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if not name:
            continue
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(alias, base))
        elif not stages:
            raise ValueError(f"{line!r} comes before FROM")
        else:
            stages[-1].instructions.append(Instruction(name, rest.strip()))
    return stages


def lineage(stages: list[Stage], name: str) -> list[Stage]:
    """The stage ``name`` with those that it is built on, the first one first."""
    by_name = {stage.name: stage for stage in stages}
    found = [by_name[name]]
    while found[0].base in by_name:
        found.insert(0, by_name[found[0].base])
    return found
