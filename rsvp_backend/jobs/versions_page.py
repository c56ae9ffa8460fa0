"""The versions as the page of /jobs shows them: scores, which one is current, and buttons that ask once more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

TITLES = {"vlsm": "Versions of the segmenter", "reasoner": "Versions of the reasoner"}
_SCORES = (("held_out", "Held-out IoU"), ("replay", "IoU on earlier data"))
_BACK = ("Roll back…", "Go back to what was current before?", "Yes, roll back")
_COLUMNS = ("Version", "State", "Made (UTC)", *dict(_SCORES).values(), "Parent")


def section(of: str, found: Mapping[str, Any], serving: str) -> str:
    """``found``: as `versioning.listed` gives it; ``serving``: why nothing can be changed here; empty where it can."""
    versions = list(reversed(found["versions"]))
    rows = "".join(_row(of, one, serving) for one in versions)
    damaged = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in found["damaged"].items())
    current = found["current"]
    lead = f"<b>{escape(current)}</b> is current." if current else "The base weights are current."
    body = [f'<p class="times">{lead}{f" {escape(serving)}" if serving and rows else ""}</p>']
    if rows:
        head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS) + "<td></td>"
        body.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{TITLES[of]}"><table><thead><tr>{head}</tr>'
            f"</thead><tbody>{rows}</tbody></table></div>"
        )
    body += [f'<ul class="lines error">{damaged}</ul>'] if damaged else []
    body += [_sure(f"back-{of}", _BACK, "versions/rollback", {"of": of})] if current and not serving else []
    return f'<section class="card"><h2>{TITLES[of]}</h2>{"".join(body)}</section>'


def unreadable(of: str, why: str) -> str:
    return f'<section class="card"><h2>{TITLES[of]}</h2><p class="error">{escape(why)}</p></section>'


def _row(of: str, one: Mapping[str, Any], serving: str) -> str:
    name, state = escape(one["id"]), "current" if one["current"] else str(one["state"])
    scores = "".join(_score(one["before"].get(key), one["after"].get(key)) for key, _ in _SCORES)
    act = ""
    if not one["current"] and not serving:
        said = ("Promote…", f"Serve {name} from now on?", "Yes, promote")
        act = _sure(f"promote-{of}-{name}", said, "versions/promote", {"of": of, "version": one["id"]})
    css, made = " done" if one["current"] else "", escape(one["created"][:16].replace("T", " "))
    return (
        f'<tr><th scope="row" class="name">{name}</th><td class="name{css}">{escape(state)}</td>'
        f'<td class="when">{made}</td>{scores}<td>{escape(one["parent"] or "the base weights")}</td><td>{act}</td></tr>'
    )


def _score(before: object, after: object) -> str:
    """Scores of parent and version; versions keep what is not a number as a text."""
    if not isinstance(before, float) or not isinstance(after, float) or before != before or after != after:
        return "<td>-</td>"
    css = "up" if after - before > 0.005 else "down" if after - before < -0.005 else ""
    return f'<td class="name {css}">{before:.3f} → {after:.3f}</td>'


def _sure(name: str, said: tuple[str, str, str], address: str, body: Mapping[str, str]) -> str:
    """A button behind another one: nothing is changed by one slip. ``said``: first button, question, second button."""
    text, question, yes = said
    sent = escape(json.dumps(body))
    return (
        f'<details><summary id="{name}">{text}</summary><p>{question}</p>'
        f'<button class="main" data-post="{address}" data-body="{sent}">{yes}</button></details>'
    )
