"""Instructions on a scene with their true answers and reasoning sentences.

Five kinds: ``name`` (with or without colour), ``relation`` (and superlatives), ``function``, ``absent``, and
``several`` (two objects, or all of a class). Each has carriers for training and paraphrases held out from it (made of
words that training has seen elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rsvp_backend.scenes.layout import Item, Layout, Level

Kind = Literal["name", "relation", "function", "absent", "several"]
KINDS: tuple[Kind, ...] = ("name", "relation", "function", "absent", "several")
PLAIN_KINDS = KINDS[:4]

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "key": ("open the door", "unlock the door", "start the car"),
    "mug": ("drink coffee", "hold a hot drink", "serve tea"),
    "ball": ("play football", "kick around", "score a goal"),
    "hammer": ("drive in a nail", "hit a nail", "hang up a picture"),
    "book": ("read a story", "learn something", "study for school"),
    "lamp": ("light the room", "see in the dark", "brighten the room"),
    "umbrella": ("stay dry in the rain", "keep off the rain", "walk in the rain"),
    "bottle": ("carry water", "store water", "pour some water"),
    "apple": ("eat a healthy snack", "bake a pie", "make juice"),
    "banana": ("peel and eat", "feed a monkey", "make a milkshake"),
    "scissors": ("cut paper", "trim hair", "cut cloth"),
    "spoon": ("eat soup", "stir the pot", "scoop sugar"),
    "fork": ("eat noodles", "pick up salad", "eat pasta"),
    "knife": ("slice bread", "chop onions", "carve meat"),
    "chair": ("sit down", "rest the legs", "sit at the table"),
    "clock": ("tell the time", "know the hour", "not be late"),
    "pencil": ("write a letter", "draw a sketch", "sign a form"),
    "hat": ("cover the head", "keep off the sun", "dress up the head"),
    "mushroom": ("cook from the forest", "make a sauce from the forest", "pick in the forest"),
    "padlock": ("secure the gate", "lock the bike", "keep thieves out"),
}
NAME_CARRIERS = (
    "the {x}", "find the {x}", "segment the {x}", "where is the {x}?", "show me the {x}", "please mark the {x}",
    "I need the {x}",
)  # fmt: skip
NAME_HELD_OUT = ("please show me the {x}", "please find the {x}")
# The same as of names, so that nothing but the word tells them apart.
EVERY_CARRIERS = tuple(carrier.replace("the", "every") for carrier in NAME_CARRIERS)
EVERY_HELD_OUT = tuple(carrier.replace("the", "every") for carrier in NAME_HELD_OUT)
FUNCTION_CARRIERS = (
    "what would you use to {x}?", "the thing you would use to {x}", "I want to {x}", "something to {x}",
    "which object helps to {x}?", "find something to {x}", "what do I need to {x}?",
)  # fmt: skip
FUNCTION_HELD_OUT = ("show me the thing you would use to {x}", "please mark something to {x}")
SUPERLATIVES = {
    "leftmost": ("leftmost", "farthest left"), "rightmost": ("rightmost", "farthest right"),
    "highest": ("highest", "farthest up"), "lowest": ("lowest", "farthest down"),
    "largest": ("largest", "biggest"), "smallest": ("smallest", "tiniest"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Referent:
    """What an instruction means: ``target`` indexes the layout's items, None where the object is absent."""

    object: str
    target: int | None
    reasoning: str


@dataclass(frozen=True, slots=True)
class Truth:
    """An instruction with its true answer, in the answer's order: one referent, or several under ``several``."""

    kind: Kind
    instruction: str
    referents: tuple[Referent, ...]
    held_out: bool

    @property
    def targets(self) -> tuple[int, ...]:
        """Those of the referents that are in the scene."""
        return tuple(one.target for one in self.referents if one.target is not None)


def a(name: str) -> str:
    """The name with its indefinite article."""
    if name == "scissors":
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def position(layout: Layout, item: Item) -> str:
    """The ninth of the image that holds the item's centre, in words."""
    short = min(layout.width_px, layout.height_px)
    row = min(2, int(item.cy * short / layout.height_px * 3))
    column = min(2, int(item.cx * short / layout.width_px * 3))
    name = f"{('upper', 'middle', 'lower')[row]} {('left', 'middle', 'right')[column]}"
    return "middle" if name == "middle middle" else name


def draw_truth(
    rng: np.random.Generator, layout: Layout, level: Level, kind: Kind, held_out: bool = False
) -> Truth | None:
    """One instruction of ``kind``, or None where the scene admits none without ambiguity."""
    makers = {"name": _name, "relation": _relation, "function": _function, "absent": _absent, "several": _several}
    return makers[kind](rng, layout, level, held_out)


def corpus(level: Level) -> Iterator[str]:
    """Every word and phrase that instructions and answers of a level are made of (for training tokenizers)."""
    for carrier in (*NAME_CARRIERS, *NAME_HELD_OUT):
        yield from (carrier.format(x=f"{colour} {name}") for name in level.classes for colour in level.colours)
    yield from level.colours
    yield from level.classes
    for name in level.classes:
        for verb in FUNCTIONS[name]:
            yield from (carrier.format(x=verb) for carrier in (*FUNCTION_CARRIERS, *FUNCTION_HELD_OUT))
            yield f"you use {a(name)} to {verb}; the red {name} is at the upper left."
    for word, phrases in SUPERLATIVES.items():
        yield from (f"the {phrase} object; it is the {word} object, at the lower right." for phrase in phrases)
    yield "the object nearest to the red key; the object left of, right of, above, below it, in the middle."
    for carrier in (*EVERY_CARRIERS, *EVERY_HELD_OUT):
        yield from (carrier.format(x=name) for name in level.classes)
    yield "the red key and the green key; the red key at the upper left is a key."
    yield "there is no red key in the picture. nothing in the picture is used to open the door."


def _pick(rng: np.random.Generator, train: tuple[str, ...], held_out: tuple[str, ...], use_held_out: bool) -> str:
    options = held_out if use_held_out else train
    return options[int(rng.integers(len(options)))]


def _name(rng: np.random.Generator, layout: Layout, level: Level, held_out: bool) -> Truth | None:
    target = int(rng.integers(len(layout.items)))
    item = layout.items[target]
    unique = sum(other.name == item.name for other in layout.items) == 1
    said = item.name if unique and rng.random() < 0.35 else item.phrase
    carrier = _pick(rng, NAME_CARRIERS, NAME_HELD_OUT, held_out)
    return Truth("name", carrier.format(x=said), (_named(layout, target),), held_out)


def _named(layout: Layout, target: int) -> Referent:
    item = layout.items[target]
    return Referent(item.phrase, target, f"the {item.phrase} is at the {position(layout, item)}.")


def _several(rng: np.random.Generator, layout: Layout, level: Level, held_out: bool) -> Truth:
    """Every object of a class that the scene holds more than once, from left to right; or two by their names."""
    names = [item.name for item in layout.items]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated and rng.random() < 0.6:
        name = repeated[int(rng.integers(len(repeated)))]
        carrier = _pick(rng, EVERY_CARRIERS, EVERY_HELD_OUT, held_out)
        targets = sorted((i for i, own in enumerate(names) if own == name), key=lambda i: layout.items[i].cx)
        referents = tuple(_one_of(layout, target) for target in targets)
        return Truth("several", carrier.format(x=name), referents, held_out)
    first, second = (int(i) for i in rng.permutation(len(names))[:2])
    carrier = _pick(rng, NAME_CARRIERS, NAME_HELD_OUT, held_out)
    said = f"{layout.items[first].phrase} and the {layout.items[second].phrase}"
    return Truth("several", carrier.format(x=said), (_named(layout, first), _named(layout, second)), held_out)


def _one_of(layout: Layout, target: int) -> Referent:
    item = layout.items[target]
    return Referent(item.phrase, target, f"the {item.phrase} at the {position(layout, item)} is {a(item.name)}.")


def _function(rng: np.random.Generator, layout: Layout, level: Level, held_out: bool) -> Truth | None:
    names = [item.name for item in layout.items]
    options = [i for i, name in enumerate(names) if names.count(name) == 1]
    if not options:
        return None
    target = options[int(rng.integers(len(options)))]
    item = layout.items[target]
    verb = FUNCTIONS[item.name][int(rng.integers(len(FUNCTIONS[item.name])))]
    carrier = _pick(rng, FUNCTION_CARRIERS, FUNCTION_HELD_OUT, held_out)
    reasoning = f"you use {a(item.name)} to {verb}; the {item.phrase} is at the {position(layout, item)}."
    return Truth("function", carrier.format(x=verb), (Referent(item.phrase, target, reasoning),), held_out)


def _absent(rng: np.random.Generator, layout: Layout, level: Level, held_out: bool) -> Truth | None:
    """An object by name and colour (half the time one attribute is in the scene), or by function."""
    missing = sorted(set(level.classes) - {item.name for item in layout.items})
    if missing and rng.random() < 0.35:
        name = missing[int(rng.integers(len(missing)))]
        verb = FUNCTIONS[name][int(rng.integers(len(FUNCTIONS[name])))]
        carrier = _pick(rng, FUNCTION_CARRIERS, FUNCTION_HELD_OUT, held_out)
        return Truth("absent", carrier.format(x=verb), (_missing(name),), held_out)
    pairs = {(item.name, item.colour) for item in layout.items}
    while True:
        name, colour = str(rng.choice(level.classes)), str(rng.choice(level.colours))
        if rng.random() < 0.4:
            name = layout.items[int(rng.integers(len(layout.items)))].name
        if (name, colour) not in pairs:
            break
    carrier = _pick(rng, NAME_CARRIERS, NAME_HELD_OUT, held_out)
    phrase = f"{colour} {name}"
    return Truth("absent", carrier.format(x=phrase), (_missing(phrase),), held_out)


def _missing(phrase: str) -> Referent:
    return Referent(phrase, None, f"there is no {phrase} in the picture.")


def _relation(rng: np.random.Generator, layout: Layout, level: Level, held_out: bool) -> Truth | None:
    return _superlative(rng, layout, held_out) if rng.random() < 0.6 else _nearest(rng, layout, held_out)


def _superlative(rng: np.random.Generator, layout: Layout, held_out: bool) -> Truth | None:
    """The extreme object of the scene, with a margin that leaves no doubt."""
    words = list(SUPERLATIVES)
    word = words[int(rng.integers(len(words)))]
    keys = {
        "leftmost": [i.cx for i in layout.items], "rightmost": [-i.cx for i in layout.items],
        "highest": [i.cy for i in layout.items], "lowest": [-i.cy for i in layout.items],
        "largest": [-i.size for i in layout.items], "smallest": [i.size for i in layout.items],
    }[word]  # fmt: skip
    order = np.argsort(keys)
    if len(order) < 2 or keys[order[1]] - keys[order[0]] < (
        0.05 if "est" in word and word.startswith(("la", "sm")) else 0.1
    ):
        return None
    item = layout.items[int(order[0])]
    phrase = SUPERLATIVES[word][int(rng.integers(2))]
    carrier = _pick(rng, NAME_CARRIERS, NAME_HELD_OUT, held_out)
    said = f"{phrase} object" if not phrase.startswith("farthest") else f"object {phrase}"
    reasoning = f"the {word} object is the {item.phrase}, at the {position(layout, item)}."
    return Truth("relation", carrier.format(x=said), (Referent(item.phrase, int(order[0]), reasoning),), held_out)


def _nearest(rng: np.random.Generator, layout: Layout, held_out: bool) -> Truth | None:
    anchor_index = int(rng.integers(len(layout.items)))
    anchor = layout.items[anchor_index]
    distances = sorted(
        (float(np.hypot(i.cx - anchor.cx, i.cy - anchor.cy)), n)
        for n, i in enumerate(layout.items)
        if n != anchor_index
    )
    if len(distances) > 1 and distances[1][0] - distances[0][0] < 0.12:
        return None
    item = layout.items[distances[0][1]]
    carrier = _pick(rng, NAME_CARRIERS, NAME_HELD_OUT, held_out)
    reasoning = f"nearest to the {anchor.phrase} is the {item.phrase}, at the {position(layout, item)}."
    instruction = carrier.format(x=f"object nearest to the {anchor.phrase}")
    return Truth("relation", instruction, (Referent(item.phrase, distances[0][1], reasoning),), held_out)
