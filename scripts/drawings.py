#!/usr/bin/env python3
"""Writes the drawings of README and docs, docs/images/*.svg, light or dark as the reader's page.

python scripts/drawings.py           writes them
python scripts/drawings.py --check   exit code 1 if one is not current

Their numbers are computed here, so that a drawing cannot say a sum that is wrong.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
TARGET = Path(__file__).resolve().parents[1] / "docs" / "images"

STYLE = """\
    text { font-family: Helvetica, Arial, sans-serif; font-size: 14px; fill: var(--ink) }
    .small { font-size: 12.5px; fill: var(--muted) }
    .name { font-weight: bold }
    .number { font-size: 26px; font-weight: bold }
    .cell { font-size: 16px; font-family: Menlo, Consolas, monospace }
    .you { fill: var(--you) } .alice { fill: var(--alice) } .bob { fill: var(--bob) }
    .carol { fill: var(--carol) }
    .box { fill: var(--box); stroke: var(--edge); stroke-width: 1.4 }
    .box.you { stroke: var(--you) } .box.alice { stroke: var(--alice) }
    .box.bob { stroke: var(--bob) } .box.carol { stroke: var(--carol) }
    rect.box { fill: var(--box) }
    .seen { fill: none; stroke: var(--ink); stroke-width: 2.4 }
    .way { stroke: var(--muted); stroke-width: 1.8; fill: none }
    path.way { fill: none }
    .way.you { stroke: var(--you) } .way.alice { stroke: var(--alice) }
    .way.bob { stroke: var(--bob) } .way.carol { stroke: var(--carol); stroke-dasharray: 6 4 }
    .head { fill: var(--muted); fill: context-stroke }
    svg { --ink: #1b2430; --muted: #4d5866; --box: #f6f7f9; --edge: #8a94a3;
          --you: #6b4fa3; --alice: #1f6fb2; --bob: #b04a10; --carol: #2b7349 }
    @media (prefers-color-scheme: dark) {
      svg { --ink: #e6e9ee; --muted: #aab4c0; --box: #1d232c; --edge: #5b6675;
            --you: #b9a2f0; --alice: #6cb4f0; --bob: #f0a06a; --carol: #6fcf97 }
    }
"""


@dataclass
class Drawing:
    """What is drawn so far, in pixels from the upper left corner."""

    width: int
    height: int
    title: str
    says: str
    """What somebody who cannot see it is told."""
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Words on the line y; anchor: which part of them is at x."""
        attributes = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self.parts.append(f'<text class="{kind}" {attributes}>{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str = "") -> None:
        """A rectangle with round corners."""
        size = f'width="{width:g}" height="{height:g}" rx="7"'
        self.parts.append(f'<rect class="box {kind}" x="{x:g}" y="{y:g}" {size}/>')

    def ring(self, x: float, y: float, width: float, height: float) -> None:
        """A frame around what all can see."""
        size = f'width="{width:g}" height="{height:g}" rx="5"'
        self.parts.append(f'<rect class="seen" x="{x:g}" y="{y:g}" {size}/>')

    def way(self, start: tuple[float, float], end: tuple[float, float], kind: str = "") -> None:
        """An arrow."""
        path = f"M{start[0]:g} {start[1]:g}L{end[0]:g} {end[1]:g}"
        self.parts.append(f'<path class="way {kind}" d="{path}" marker-end="url(#head)"/>')

    def svg(self) -> str:
        """The whole file."""
        size = (
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        )
        return "\n".join(
            [
                "<!-- Written by scripts/drawings.py -->",
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
                'aria-labelledby="title says">',
                f'  <title id="title">{escape(self.title)}</title>',
                f'  <desc id="says">{escape(self.says)}</desc>',
                '  <defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
                'markerHeight="7" orient="auto"><path class="head" d="M0 0L10 5L0 10z"/>'
                "</marker></defs>",
                f"  <style>\n{STYLE}  </style>",
                *(f"  {part}" for part in self.parts),
                "</svg>\n",
            ]
        )


class Words(NamedTuple):
    """What the drawing of a share says, in one language."""

    title: str
    says: str
    you: str
    split: str
    sees: str
    twice: str
    join: str
    carol: str
    deals: str
    sees_none: str
    foot: str


ENGLISH = Words(
    title="A number as two shares",
    says="You split 7 into 3 and 4. alice sees 3, bob sees 4. Each doubles what it has: 6 and 8. "
    "You add them: 14, which is twice 7. carol deals random numbers and sees none of these.",
    you="you",
    split="split",
    sees="sees",
    twice="doubles it",
    join="add",
    carol="carol",
    deals="deals random numbers",
    sees_none="and sees none of these",
    foot="Real shares are random 64-bit numbers: alice's could be the same whatever the secret is.",
)
PORTUGUESE = Words(
    title="Um número em duas partes",
    says="Você divide 7 em 3 e 4. alice vê 3, bob vê 4. Cada um dobra o que tem: 6 e 8. "
    "Você soma: 14, o dobro de 7. carol distribui números aleatórios e não vê nenhum destes.",
    you="você",
    split="divide",
    sees="vê",
    twice="dobra",
    join="soma",
    carol="carol",
    deals="distribui números aleatórios",
    sees_none="e não vê nenhum destes",
    foot="As partes reais são números aleatórios de 64 bits: a de alice poderia ser a mesma para "
    "qualquer segredo.",
)


def share(words: Words) -> Drawing:
    """How a secret is split, computed on and joined."""
    secret, alices = 7, 3
    bobs = secret - alices
    drawing = Drawing(760, 286, words.title, words.says)
    drawing.box(20, 70, 150, 120, "you")
    drawing.text(95, 96, words.you, "name you")
    drawing.text(95, 138, str(secret), "number")
    drawing.text(95, 172, f"{words.split}: {alices} + {bobs}", "small")
    for name, top, own in (("alice", 24, alices), ("bob", 150, bobs)):
        drawing.box(290, top, 180, 88, name)
        drawing.text(380, top + 24, f"{name} {words.sees}", f"name {name}")
        drawing.text(380, top + 56, str(own), "number")
        drawing.text(380, top + 78, f"{words.twice}: {2 * own}", "small")
        drawing.way((170, 130 + (top - 87) / 4), (286, top + 44), name)
        drawing.way((470, top + 44), (586, 130 + (top - 87) / 4), name)
        drawing.text(222, top + (50 if top < 87 else 68), str(own), f"name {name}")
        drawing.text(534, top + (50 if top < 87 else 68), str(2 * own), f"name {name}")
    drawing.box(590, 70, 150, 120, "you")
    drawing.text(665, 96, words.you, "name you")
    drawing.text(665, 138, str(2 * alices + 2 * bobs), "number")
    drawing.text(665, 172, f"{words.join}: {2 * alices} + {2 * bobs} = 2 {TIMES} {secret}", "small")
    line = f"{words.deals} {words.sees_none}"
    drawing.text(380, 132, f"{words.carol} {line}", "small carol")
    drawing.text(380, 274, words.foot, "small")
    return drawing


def opening() -> Drawing:
    """How compute parties learn a masked value, and nothing of what is masked."""
    shares, masks = (3, 4), (9, -4)
    seen = sum(shares) - sum(masks)
    drawing = Drawing(
        760,
        300,
        "An opening",
        f"alice has {shares[0]} and bob {shares[1]}, shares of a secret. carol has dealt "
        f"{masks[0]} to alice and {masks[1]} to bob, shares of a random mask. Each subtracts "
        f"its share of the mask and sends the other the difference. Both add the differences and "
        f"know {seen}, the secret less the mask, which is as random as the mask.",
    )
    drawing.box(280, 14, 200, 50, "carol")
    drawing.text(380, 35, "carol", "name carol")
    drawing.text(
        380, 54, f"a random mask: {sum(masks)} = {masks[0]} + {_bracketed(masks[1])}", "small"
    )
    for name, left, own, mask in (
        ("alice", 30, shares[0], masks[0]),
        ("bob", 490, shares[1], masks[1]),
    ):
        middle = left + 120
        drawing.box(left, 100, 240, 112, name)
        drawing.text(middle, 124, name, f"name {name}")
        drawing.text(middle, 150, f"has {own} of the secret, {_signed(mask)} of the mask", "small")
        subtracted = f"{own} {MINUS} {_bracketed(mask)} = {_signed(own - mask)}"
        drawing.text(middle, 188, subtracted, "name")
        drawing.text(middle, 206, "sends this", "small")
        drawing.way((350 if name == "alice" else 410, 64), (middle, 96), "carol")
        drawing.text(
            middle + (70 if name == "alice" else -70), 78, _signed(mask), "small carol", "middle"
        )
    drawing.way((270, 160), (486, 160), "alice")
    drawing.text(380, 152, _signed(shares[0] - masks[0]), "name alice")
    drawing.way((490, 184), (274, 184), "bob")
    drawing.text(380, 202, _signed(shares[1] - masks[1]), "name bob")
    drawing.ring(210, 236, 340, 30)
    first, second = shares[0] - masks[0], shares[1] - masks[1]
    drawing.text(
        380, 256, f"both know {_signed(first)} + {second} = {seen}: secret less mask", "name"
    )
    drawing.text(
        380,
        290,
        "They do not know the mask, which is used once: so this number tells them nothing.",
        "small",
    )
    return drawing


def table() -> Drawing:
    """How a one-time truth table answers a question on a secret, with one read."""
    size, secret, mask = 8, 3, 6
    opened = (secret + mask) % size
    answers = [int((i - mask) % size < size // 2) for i in range(size)]
    alices = [0, 1, 1, 0, 1, 0, 0, 1]
    bobs = [one ^ other for one, other in zip(alices, answers, strict=True)]
    said = alices[opened] ^ bobs[opened]
    assert said == answers[opened] == int(secret < size // 2)
    drawing = Drawing(
        760,
        330,
        "A one-time truth table",
        f"The question is whether a secret u, here {secret}, is zero or more. carol knows the mask "
        f"r, here {mask}, and writes for every number that may be opened what the answer would be: "
        f"{' '.join(map(str, answers))}. alice gets random bits and bob what makes them that "
        f"table. u + r is opened: {opened}. alice reads {alices[opened]} there and bob "
        f"{bobs[opened]}; the exclusive or, {said}, is the answer, and neither of them knows it.",
    )
    left, cell = 262, 46
    drawing.text(20, 40, "if u + r is opened as", "small", "start")
    for i in range(size):
        drawing.text(left + cell * i + cell / 2, 40, str(i), "cell")
    rows = [
        ("carol", "carol: is u ≥ 0 then?", answers, 62),
        ("alice", "alice's bits: random", alices, 126),
        ("bob", "bob's bits: the rest", bobs, 176),
    ]
    for name, words, bits, top in rows:
        drawing.text(20, top + 24, words, f"name {name}", "start")
        for i, bit in enumerate(bits):
            drawing.box(left + cell * i, top, cell - 4, 36, name)
            drawing.text(left + cell * i + cell / 2 - 2, top + 24, str(bit), "cell")
    drawing.way((left + cell * size / 2, 98), (left + cell * size / 2, 122), "carol")
    drawing.text(left + cell * size / 2 + 12, 116, "shares, one per party", "small", "start")
    drawing.ring(left + cell * opened - 5, 20, cell + 6, 200)
    x = left + cell * opened + cell / 2 - 2
    drawing.way((x, 222), (x, 252))
    drawing.text(
        20,
        274,
        f"u = {secret}, r = {mask}: {opened} is opened. alice reads {alices[opened]}, bob "
        f"{bobs[opened]}: {alices[opened]} xor {bobs[opened]} = {said}, so u ≥ 0.",
        "name",
        "start",
    )
    drawing.text(
        20,
        298,
        "Here numbers are 0 to 7, and 4 to 7 count as negative. carol does not learn which column "
        "is read,",
        "small",
        "start",
    )
    drawing.text(
        20,
        317,
        "and alice and bob do not learn r. They keep the answer as these two bits: a share each.",
        "small",
        "start",
    )
    return drawing


def query() -> Drawing:
    """The way of one query: who sends what to whom, in which order."""
    drawing = Drawing(
        760,
        430,
        "The way of a query",
        "Ahead of the query carol sends alice and bob a pack of random numbers. 1: the client "
        "splits its input and sends one share to alice and one to bob. 2: alice and bob "
        "compute, layer by layer, on their shares of input and weights, and send each "
        "other masked values. 3: each sends the client its share of the answer, rounded. 4: "
        "the client adds the shares and applies the final softmax.",
    )
    lanes = {"client": 100, "alice": 330, "bob": 520, "carol": 680}
    kinds = {"client": "you", "alice": "alice", "bob": "bob", "carol": "carol"}
    for name, x in lanes.items():
        drawing.box(x - 62, 14, 124, 46, kinds[name])
        drawing.text(x, 34, name, f"name {kinds[name]}")
        role = {"client": "has the input", "carol": "deals"}.get(name, "computes")
        drawing.text(x, 52, role, "small")
        drawing.parts.append(f'<path class="way" stroke-dasharray="2 5" d="M{x} 60V418"/>')
    drawing.way((680, 88), (524, 88), "carol")
    drawing.way((680, 104), (334, 104), "carol")
    drawing.text(674, 80, "ahead: a pack each", "small carol", "end")
    drawing.text(110, 136, "1  split the input", "name you", "start")
    drawing.way((100, 162), (326, 162), "alice")
    drawing.text(215, 156, "a share", "small alice")
    drawing.way((100, 186), (516, 186), "bob")
    drawing.text(430, 180, "the other share", "small bob")
    drawing.text(425, 220, "2  layer by layer", "name")
    for y in (236, 262, 288):
        drawing.way((330, y), (516, y), "alice")
        drawing.way((520, y + 12), (334, y + 12), "bob")
    drawing.text(425, 320, "masked values", "small")
    drawing.way((330, 350), (104, 350), "alice")
    drawing.text(215, 344, "3  its share of the answer", "small alice")
    drawing.way((520, 376), (104, 376), "bob")
    drawing.text(430, 370, "its share", "small bob")
    drawing.text(110, 404, "4  add, then softmax", "name you", "start")
    return drawing


def _signed(value: int) -> str:
    return f"{MINUS}{-value}" if value < 0 else str(value)


def _bracketed(value: int) -> str:
    return f"({_signed(value)})" if value < 0 else str(value)


def drawings() -> dict[str, Drawing]:
    """All of them, by the file's name."""
    return {
        "share.svg": share(ENGLISH),
        "share.pt-BR.svg": share(PORTUGUESE),
        "opening.svg": opening(),
        "table.svg": table(),
        "query.svg": query(),
    }


def main() -> int:
    """Exit code 0, or 1 where --check finds a file out of date."""
    parser = argparse.ArgumentParser(description="Writes docs/images/*.svg.")
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = []
    for name, drawing in drawings().items():
        file = TARGET / name
        if not check:
            TARGET.mkdir(exist_ok=True)
            file.write_text(drawing.svg(), encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != drawing.svg():
            stale.append(name)
    if stale:
        names = ", ".join(stale)
        print(f"out of date: {names}: run python scripts/drawings.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
