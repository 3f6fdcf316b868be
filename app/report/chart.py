"""A chart as inline SVG: two axes, lines, marks, a legend. Colours are CSS variables of report.html.j2."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from markupsafe import escape

from app.report.format import number

_PATHS = {  # around 0, 0
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.6-3.6h7.2v7.2h-7.2z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "up": "M0-4.6L4.4 3.6H-4.4z",
    "down": "M0 4.6L4.4-3.6H-4.4z",
    "plus": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
}
WIDTH = 400  # of the viewBox, shown at 388 CSS pixels on a phone and at 522 elsewhere
_FONT = 12  # pixels of the viewBox
_LETTER = 6.8  # pixels a letter: an estimate on the large side, since the reader's font is unknown
LINE = 15  # pixels a line of text


@dataclass(frozen=True)
class Plot:
    """An SVG element with its caption; `description` states its numbers in words."""

    key: str
    title: str
    description: str
    svg: str


@dataclass
class Chart:
    """A drawing with two axes: `x` and `y` are the values at its left and right, at its top and bottom."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float  # of the area between the axes, as the margins in pixels of the viewBox
    left: float
    right: float = 10
    top: float = 8
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.x[0] == self.x[1]:
            self.x = self.x[0] - 0.5, self.x[1] + 0.5
        if self.y[0] == self.y[1]:
            self.y = self.y[0] + 0.5, self.y[1] - 0.5

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a pair of values."""
        across, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (WIDTH - self.left - self.right), self.top + down * self.height

    def line(self, values: Sequence[tuple[float, float]], colour: str, width: float = 1, style: str = "") -> None:
        path = "L".join("{:.1f} {:.1f}".format(*self.at(*value)) for value in values)
        style = f"stroke: var(--{colour}); stroke-width: {width}; {style}"
        self.parts.append(f'<path d="M{path}" fill="none" stroke-linecap="round" style="{style.strip()}" />')

    def mark(self, x: float, y: float, shape: str, colour: str, *, hollow: bool = False) -> None:
        self._mark(*self.at(x, y), shape, colour, hollow)

    def _mark(self, left: float, top: float, shape: str, colour: str, hollow: bool) -> None:
        style = f"fill: var(--{'surface' if hollow else colour}); stroke: var(--{colour}); stroke-width: 1.2"
        where = f"translate({left:.1f} {top:.1f})"
        self.parts.append(f'<path d="{_PATHS[shape]}" transform="{where}" style="{style}" />')

    def text(self, left: float, top: float, text: str, colour: str = "ink", anchor: str = "start") -> None:
        """`top`: of the middle of its letters."""
        where = f'x="{left:.1f}" y="{top + 4:.1f}" text-anchor="{anchor}"'
        self.parts.append(f'<text {where} style="fill: var(--{colour})">{escape(text)}</text>')

    def x_axis(
        self, name: str, about: int = 5, *, grid: bool = True, ticks: Sequence[tuple[float, str]] | None = None
    ) -> None:
        bottom = self.top + self.height
        for value, text in _ticks(*self.x, about) if ticks is None else ticks:
            if grid:
                self.line([(value, self.y[0]), (value, self.y[1])], "line", 0.6)
            self.text(self.at(value, 0)[0], bottom + 12, text, anchor="middle")
        self.line([(self.x[0], self.y[1]), (self.x[1], self.y[1])], "line")
        middle = (self.left + WIDTH - self.right) / 2
        place, anchor = (middle, "middle") if middle + _LETTER * len(name) / 2 <= WIDTH else (float(WIDTH), "end")
        self.text(place, bottom + 12 + LINE, name, "muted", anchor)

    def y_axis(self) -> None:
        for value, text in _ticks(self.y[1], self.y[0], 5):
            self.line([(self.x[0], value), (self.x[1], value)], "line", 0.6)
            self.text(self.left - 8, self.at(0, value)[1], text, anchor="end")

    def legend(self, entries: Sequence[tuple[str, str, str, bool]]) -> None:
        """(name, shape, colour, hollow) in lines from the top on, each as far as it has room."""
        for (name, shape, colour, hollow), (left, top) in zip(entries, _flow([e[0] for e in entries]), strict=True):
            self._mark(left + 6, top, shape, colour, hollow)
            self.text(left + 16, top, name)

    def plot(self, key: str, title: str, description: str) -> Plot:
        height = self.top + self.height + 12 + 2 * LINE
        head = (
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{key}-title {key}-desc" '
            f'style="font-size: {_FONT}px"><title id="{key}-title">{escape(title)}</title>'
            f'<desc id="{key}-desc">{escape(description)}</desc>'
        )
        return Plot(key, title, description, "\n".join([head, *self.parts, "</svg>"]))


def rows_chart(names: Sequence[str], x: tuple[float, float], height: float, *, right: float, top: float) -> Chart:
    """A chart with a row of `height` pixels or more for each name; a long one is split after its colon and before its bracket."""
    lines = [re.split(r"(?<=:) | (?=\((?!leaks))", name) if len(name) >= 20 else [name] for name in names]
    height = max(height, 4.0 + LINE * max(map(len, lines)))
    left = 14 + _LETTER * max(len(line) for of_row in lines for line in of_row)
    chart = Chart(x, (-0.5, len(names) - 0.5), height * len(names), left, right, top)
    for y, of_row in enumerate(lines):
        for n, line in enumerate(of_row):
            chart.text(left - 8, chart.at(0, y)[1] + (n - (len(of_row) - 1) / 2) * LINE, line, anchor="end")
    return chart


def _flow(names: Sequence[str]) -> list[tuple[float, float]]:
    """Where the entries of a legend stand, line by line."""
    found, left, top = [], 0.0, LINE / 2
    for name in names:
        width = 30 + _LETTER * len(name)
        if left and left + width > WIDTH:
            left, top = 0.0, top + LINE
        found.append((left, top))
        left += width
    return found


def below_legend(names: Sequence[str]) -> float:
    """The top of the chart below a legend of these names."""
    return (_flow(names)[-1][1] if names else 0) + LINE


def _ticks(lo: float, hi: float, about: int) -> list[tuple[float, str]]:
    """Round numbers from `lo` to `hi`, `about` of them at most, with their texts."""
    least = (hi - lo) / about
    power = 10.0 ** floor(log10(least))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= least * 0.999)
    digits = max(0, -floor(log10(step * 1.001)))
    return [(k * step, number(k * step, digits)) for k in range(ceil(lo / step), floor(hi / step) + 1)]
