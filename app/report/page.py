"""What a report's page shows, and how it is written: as Markdown, and as one HTML page with everything inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.report.chart import Plot
from app.report.sections import Section
from app.report.template import fill


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
