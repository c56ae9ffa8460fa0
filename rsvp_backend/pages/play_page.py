"""The page of /play: an image, an instruction, and what each stage makes of them."""

from __future__ import annotations

from html import escape

from rsvp_backend.pages import layout
from rsvp_backend.settings import Settings
from rsvp_backend.types import Marks

_KINDS = {"bands": "bands: rows and columns", "cells": "cells: a grid"}
_ZOOMS = {"off": "off", "auto": "auto: small targets", "always": "always"}
_IMAGES = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif"


def render(settings: Settings, marks: Marks, fixed: tuple[Marks, ...]) -> str:
    """``marks``: those asked with at first; ``fixed``: the only ones that the reasoner reads, where it is so."""
    main = (
        f'<div class="play"><section class="card" aria-label="Image">{_IMAGE}</section><div class="side">'
        f'<form class="card" id="ask" aria-label="Instruction">{_INSTRUCTION}{_changes(settings, marks, fixed)}</form>'
        f'<section class="card" id="result" aria-label="Result" hidden>{_RESULT}</section></div></div>'
    )
    return layout.page("Playground", "Playground", main, here="play", script="play.js")


def _changes(settings: Settings, marks: Marks, fixed: tuple[Marks, ...]) -> str:
    closed = " disabled" if fixed else ""
    only = " and ".join(map(str, fixed))
    why = f'<p class="dim small" id="why">This reasoner reads {only} only.</p>' if fixed else ""
    kinds = {kind: text for kind, text in _KINDS.items() if not fixed or kind in {one.kind for one in fixed}}
    return (
        '<details><summary>Marks, padding, zoom</summary><div class="fields row">'
        f"<label>Marks{_select('kind', kinds, marks.kind, ' disabled' if len(kinds) < 2 else '')}</label>"
        f'<label>Rows<input name="rows" type="number" min="1" max="50" value="{marks.rows}" required{closed}></label>'
        f'<label>Columns<input name="columns" type="number" min="1" max="50" value="{marks.columns}" required{closed}>'
        f'</label><label>Padding<input name="padding" type="number" min="0" max="2" step="0.05" required '
        f'value="{settings.padding:g}"></label><label>Zoom{_select("zoom", _ZOOMS, settings.zoom, "")}</label></div>'
        f"{why}</details>"
    )


def _select(name: str, options: dict[str, str], chosen: str, closed: str) -> str:
    rows = "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<select name="{name}"{closed}>{rows}</select>'


_IMAGE = f"""
<div class="drop" id="drop">
  <label class="file">Drop an image here, or choose one<input id="file" type="file" accept="{_IMAGES}"></label>
  <button type="button" id="sample">Take a generated scene</button>
</div>
<div id="looked" hidden>
  <div class="shown" id="shown" tabindex="0" role="application" aria-label="The image, to click on"
       aria-describedby="keys"><img id="photo" alt=""><img class="mask" id="mask" alt="" hidden>
    <svg id="over" aria-hidden="true"></svg></div>
  <div class="row" role="group" aria-label="Clicks">
    <button type="button" id="plus" aria-pressed="true">+ belongs to it</button>
    <button type="button" id="minus" aria-pressed="false">− does not</button>
    <button type="button" id="undo" disabled>Take the last click back</button>
    <button type="button" id="marks" aria-pressed="false" disabled>Show the marks</button>
    <button type="button" id="other">Another image</button>
  </div>
  <p class="dim small" id="keys">A click refines the mask (with Alt: what does not belong to it). By keyboard: the
  arrows move a cross (with Shift: further), Enter clicks, Backspace takes the last click back.</p>
</div>
"""
_INSTRUCTION = """
<label for="instruction">Instruction</label>
<textarea id="instruction" name="instruction" rows="2" placeholder="the thing you would drink from"></textarea>
<div class="row"><button class="main" id="run">Segment</button>
<span class="dim small" id="status" role="status"></span></div>
"""
_RESULT = """
<h2>Stages</h2>
<ul class="stagelist" id="stages"></ul>
<p class="note told" id="verdict" hidden></p>
<div id="answer"></div>
<h3>The same on the command line</h3>
<pre id="command" tabindex="0" role="region" aria-label="Command"></pre>
<div class="row"><button type="button" id="copy">Copy</button><a id="trace" hidden>Its trace</a></div>
<p class="dim small">In the server's environment (its RSVP_ settings), beside the image.</p>
"""
