"""The pages' templates and styles, which lie in ``assets`` and refer to nothing outside the page.

Autoescape is on for every page of HTML: what a run is called, and what a model wrote, is text.
"""

from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cppo_verl import __version__
from cppo_verl.atomic import writable
from cppo_verl.reporting import text


@cache
def environment() -> Environment:
    """Templates by name; those that end in ``.html`` escape what is put into them."""
    made = Environment(
        loader=PackageLoader("cppo_verl.reporting", "assets"), autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {name: getattr(text, name) for name in ("md", "tex", "percent", "minus", "capital")}
    made.globals |= {"version": __version__, "md_table": text.md_table, "asset": asset}
    return made


def asset(name: str) -> Markup:
    """A file of ``assets`` as it is."""
    return Markup(environment().loader.get_source(environment(), name)[0])  # type: ignore[union-attr]


@cache
def data(name: str) -> Any:
    return yaml.safe_load(asset(name))


def render(template: str, /, **values: Any) -> str:
    """The template with these values in it."""
    return writable(environment().get_template(template).render(**values))
