"""Renders the HTML pages and SVG figures of all commands. Templates escape every value that is not of type `Markup`, and only
this module creates values of this type. A page is a single file that loads no other files. The Content-Security-Policy of a
page lists the hashes of the page's own scripts and style sheets, so that a browser runs no other code."""

import base64
import hashlib
import html
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

PACKAGE = pathlib.Path(__file__).parents[1]
MOST_INDENTED = 1 << 20  # characters
PLOTLY_STYLE = ""  # Plotly creates an empty style element and adds its rules by script


def read_source(name: str) -> str:
    """Returns the text of a script or style sheet of this package. `name` is the path of the file in the package."""
    return (PACKAGE / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> Markup:
    """Renders a template with the variables `values`, and returns the result. `template` is the path of the template in the
    package. Raises jinja2.UndefinedError if a variable is missing."""
    return Markup(_TEMPLATES.get_template(template).render(values))


def render_page(template: str, styles: Sequence[str], scripts: Sequence[str], connect: str = "'none'", **values: Any) -> Markup:
    """Returns a page rendered from a template that extends report/layout.html. `styles` are style sheets and `scripts` are
    JavaScript. Both must be code of this package or of its dependencies, because they are not escaped. `connect` lists the
    addresses that the page may connect to, in the syntax of a Content-Security-Policy."""
    style = "".join(styles)
    policy = content_policy([style], scripts, connect)
    trusted = {"style": Markup(style), "scripts": [Markup(script) for script in scripts], "policy": Markup(policy)}
    return render(template, **trusted, **values)


def content_policy(styles: Sequence[str], scripts: Sequence[str], connect: str = "'none'") -> str:
    """Returns a Content-Security-Policy that allows only the given inline style sheets and scripts, and network connections
    only to the sources in `connect`."""
    allowed_styles, allowed_scripts = (
        " ".join(map(_source_of, part)) or "'none'" for part in ([*styles, PLOTLY_STYLE], scripts)
    )
    return (
        f"default-src 'none'; script-src {allowed_scripts}; style-src {allowed_styles}; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def embed(content: Any) -> Markup:
    """Returns `content` as JSON that cannot end or break an HTML script element around it. NaN and infinity become null."""
    text = json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def plotly_text(text: str) -> str:
    """Returns a text escaped for a Plotly figure, because Plotly interprets a few HTML tags and all character references."""
    return html.escape(text)


def _source_of(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _indented_json(content: Any) -> str:
    """Returns a JSON value as text with an indented line per entry. A large value is not indented, because the indentation of
    nested lists could be many times as large as the value."""
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) > MOST_INDENTED else json.dumps(content, indent=2, ensure_ascii=False)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PACKAGE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["indented_json"] = _indented_json
_TEMPLATES.globals["parts"] = _TEMPLATES.get_template("report/parts.html").module
