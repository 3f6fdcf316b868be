"""What a report's page shows, and how it is written: as Markdown, and as one HTML page with everything inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from app.report.chart import Plot
from app.report.sections import Section


@dataclass(kw_only=True)
class Page:
    """The first screen (title, question, headline, facts and the plot `answer`), then the sections.

    facts: (name, sentence). details: the numbers behind the headline. links: of other pages, (text, address from here).
    """

    title: str
    question: str
    headline: str
    answer: Plot | None
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    details: Sequence[str] = ()
    cautions: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()

    def to_markdown(self, *, samples: bool = False, drawn: Mapping[str, str] = {}) -> str:
        """The tables and sentences. samples: samples.txt lies beside the file. drawn: {key of a plot: its SVG file}."""
        return fill("report.md.j2", report=self, samples=samples, drawn=drawn)

    def to_html(self, *, samples: bool = False) -> str:
        """One page with style and plots inside, without references to other files than samples.html and `links`."""
        return fill("report.html.j2", report=self, samples=samples)

    @property
    def plots(self) -> list[Plot]:
        return [*([self.answer] if self.answer else []), *(plot for section in self.sections for plot in section.plots)]


def svg_file(plot: Plot) -> str:
    """The plot as a file of its own: with the colours that the page has, light and dark."""
    return fill("plot.svg.j2", plot=plot, head=plot.svg.partition(">")[0], body=plot.svg.partition(">")[2])


def fill(template: str, **values: Any) -> str:
    """The text of a jinja2 template beside this module: *.html.j2 escape what is put in, the others do not. A name that it lacks
    raises jinja2's UndefinedError."""
    return _environment().get_template(template).render(values).rstrip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    """It keeps the templates that it has compiled, which takes much longer than to fill them in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment


def _code(text: str) -> Markup:
    """Escaped text with `backticks` as <code>."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))
