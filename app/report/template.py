"""The report's files are jinja2 templates beside this module: *.html.j2 escape what is put in, the others do not."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape


def _code(text: str) -> Markup:
    """Escaped text with `backticks` as <code>."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


# It keeps the templates that it has compiled, which takes much longer than to fill them in.
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(("html.j2",)),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.filters["code"] = _code


def fill(template: str, **values: Any) -> str:
    """The text of a template. A name that it lacks raises jinja2's UndefinedError."""
    return _ENVIRONMENT.get_template(template).render(values).rstrip() + "\n"
