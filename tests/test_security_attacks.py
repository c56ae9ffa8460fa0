"""Every attack of docs/security.md, tried: nothing gets through, and the server goes on answering."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_field import Attack, Field, field_of, table
from attacks_callers import CALLERS
from attacks_inputs import INPUTS
from attacks_network import NETWORK

ATTACKS = [*NETWORK, *INPUTS, *CALLERS]
PAGE = Path(__file__).parents[1] / "docs" / "security.md"


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One server for all: what an attack leaves behind is met by the next ones."""
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", log)
        with field_of(tmp_path_factory.mktemp("attacked"), log) as field:
            yield field


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.kind}: {attack.name}")
def test_nothing_gets_through(attack: Attack, field: Field) -> None:
    attack.run(field)
    field.fine()
    assert field.inner.seen == []


def test_there_are_enough_and_each_is_another() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40
    assert sum(attack.kind == "SSRF" for attack in ATTACKS) >= 15


def test_the_page_lists_them_as_they_are_tried() -> None:
    shown = PAGE.read_text(encoding="utf-8").split("<!-- attacks -->")[1].split("<!-- /attacks -->")[0]
    assert shown.strip() == table(ATTACKS)
