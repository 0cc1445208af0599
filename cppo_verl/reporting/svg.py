"""A panel as SVG to put inside a page: text stays text in the page's font, colours are the page's variables."""

import re
from collections.abc import Callable
from io import StringIO
from xml.etree import ElementTree

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cppo_verl.reporting.figures import Panel
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.style import PALETTE, drawing_style

SIZE_INCHES = (3.7, 2.9)  # at phone width a point is then about a CSS pixel and a quarter


def panel_svg(panel: Panel, run: Run, alt: str) -> str:
    """One panel as an ``<svg>`` element without references to anything outside it.

    Args:
        alt: what the panel shows, in words, for those who do not see it.
    """
    return drawing_svg(panel.key, lambda figure: panel.draw(figure, run), alt)


def drawing_svg(key: str, draw: Callable[[Figure], None], alt: str) -> str:
    """What ``draw`` draws on an empty figure, as an ``<svg>`` element; ``key`` makes its ids unique on the page."""
    with drawing_style({"svg.fonttype": "none", "svg.hashsalt": key, "axes.facecolor": "none"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="none")
        draw(figure)
        buffer = StringIO()
        nothing: dict[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return _embed(ElementTree.fromstring(buffer.getvalue()), key, alt)


def _embed(root: ElementTree.Element, key: str, alt: str) -> str:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # the page has its own style, and no links
                parent.remove(child)
    for element in root.iter():
        _plain_element(element, f"{key}-")
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib.update({"class": "plot", "role": "img", "focusable": "false", "aria-label": alt})
    return _with_page_colors(ElementTree.tostring(root, encoding="unicode"))


def _plain_element(element: ElementTree.Element, prefix: str) -> None:
    """No namespaces (HTML needs none), ids that are unique on the page, short numbers, no font of its own."""
    element.tag = element.tag.rpartition("}")[2]
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        name = name.rpartition("}")[2]
        if name == "id":
            value = prefix + value
        elif name in ("d", "points"):
            value = re.sub(r"-?[0-9]*\.[0-9]+", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
        elif name == "style":
            value = _without_family(value)
        value = re.sub(r"url\(#", f"url(#{prefix}", value)
        element.set(name, f"#{prefix}{value[1:]}" if name == "href" and value.startswith("#") else value)


def _without_family(style: str) -> str:
    """Keeps a font's size and drops its family: the page's own applies."""
    size = re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px)[^;]*", r"font-size: \1", style)
    return re.sub(r"font-family:[^;]*;?\s*", "", size)


def _with_page_colors(text: str) -> str:
    for name, color in PALETTE.items():
        text = text.replace(color, f"var(--{name})")
    return text
