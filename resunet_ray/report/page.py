"""Self-contained HTML pages: a template, figures as SVG, pictures within. Nothing is fetched when one is opened."""

from io import StringIO
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from resunet_ray import storage

REPORT_FILE = "report.html"
COLOURS = ("#2f6f9f", "#c8553d", "#588157", "#7b5ea7", "#b08900")


def write_page(uri: str, *, template: str, **values: Any) -> str:
    """Fills a template and writes the page; returns where."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resunet_ray.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    storage.write_bytes(uri, environment.get_template(template).render(**values).encode())
    return uri


def to_svg(figure: Figure) -> str:
    """The figure as an element to stand in a page."""
    text = StringIO()
    for label in figure.findobj(
        Text
    ):  # what it says may be a name, in which a dollar is no formula
        label.set_parse_math(False)
    with mpl.rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif", "text.parse_math": False}
    ):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
