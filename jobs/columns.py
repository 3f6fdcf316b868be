"""A table for a terminal of any width: one line a row, numbers to the right, no broken word.

A table wider than the terminal becomes narrower by this rule:

1. Whole columns go, the highest `drop` first, until the rest fits with its cuttable columns at their `least` width.
2. A cuttable column takes the room that is left; its text ends after a whole word, and `…` marks the cut. Brackets stay
   with the word before them, so that `base/bidirectional (leaks)` is never shown without its warning.
3. A table that is still too wide stays so: half an id is of no use, and the terminal continues the line below.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

_ROOMY = 80  # from this width on, two blanks separate the columns; below it one


@dataclass(frozen=True)
class Column:
    """`name` may hold line breaks. `right`: a number. `drop` 0: never dropped. `least` 0: never cut."""

    name: str
    right: bool = False
    drop: int = 0
    least: int = 0


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The names of the columns, a rule and one line for each row, without trailing blanks."""
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]  # an error message may hold line breaks
    natural = [max(map(_cells, [*c.name.split("\n"), *(row[i] for row in rows)])) for i, c in enumerate(columns)]
    least = [min(n, c.least or n) for c, n in zip(columns, natural, strict=True)]
    gap = 2 if width >= _ROOMY else 1
    kept = list(range(len(columns)))

    def excess(widths: Sequence[int]) -> int:
        return sum(widths[i] for i in kept) + gap * (len(kept) - 1) - width

    while excess(least) > 0 and any(columns[i].drop for i in kept):
        kept.remove(max(kept, key=lambda i: columns[i].drop))
    widths = list(natural)
    for i in reversed(kept):  # the last, such as a text for people, is cut first
        widths[i] = max(least[i], natural[i] - max(0, excess(widths)))

    def line(cells: Sequence[str]) -> str:
        padded = []
        for i in kept:
            text = _cut(cells[i], widths[i])
            blanks = " " * (widths[i] - _cells(text))
            padded.append(blanks + text if columns[i].right else text + blanks)
        return (" " * gap).join(padded).rstrip()

    names = [column.name.split("\n") for column in columns]
    height = max(len(names[i]) for i in kept)
    heads = [[*[""] * height, *name][-height:] for name in names]  # the last line of each stands on the rule
    head = [line(cells) for cells in zip(*heads, strict=True)]
    return [*head, line(["─" * n for n in widths]), *(line(row) for row in rows)]


def _cells(text: str) -> int:
    """Columns of the terminal that the text takes; East Asian characters take two."""
    return sum(1 + (east_asian_width(c) in "WF") for c in text)


def _cut(text: str, width: int) -> str:
    if _cells(text) <= width:
        return text
    words = re.split(r" (?!\()", text)
    if _cells(words[0]) > width - 2 and words[0].count("/") > 1:  # the path of an error: its end names the file
        words[0] = "…/" + words[0].rstrip("/").rpartition("/")[2]
    for count in range(len(words) - 1, 0, -1):
        shown = " ".join(words[:count]) + " …"
        if _cells(shown) <= width:
            return shown
    first = words[0].rstrip(",:;")
    return first if _cells(first) <= width else "…"
