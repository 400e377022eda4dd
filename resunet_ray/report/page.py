"""Self-contained HTML pages: figures and pictures are inline, opening a page fetches nothing."""

from io import StringIO
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from resunet_ray import storage

REPORT_FILE = "report.html"

COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

styled_figures = mpl.rc_context(
    {
        "font.size": 9,  # points, as all sizes here
        "font.family": "sans-serif",
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        # A text may be a name, in which a dollar sign starts no formula.
        "text.parse_math": False,
    }
)
"""Decorates a function that draws figures and turns them into SVG: they all look alike."""

FIGURE_WIDTH = 11.0
"""Inches. A point is then 1.3 pixels of the page."""


def write_page(uri: str, *, template: str, **values: Any) -> str:
    """Fill a template and write the page; returns its location."""
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
    """The figure as an `<svg>` element to put into a page."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
