"""No name, text or setting of a run becomes an element or an attribute of a page: a page with hostile texts has the same elements
and attributes as a page with harmless ones, and its policy allows only its own scripts and style sheets."""

import ast
import base64
import hashlib
import html.parser
import json
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from igpo_jax.compare.numbers import compare_runs
from igpo_jax.compare.page import figure, write_comparison
from igpo_jax.playground.server import read_page
from igpo_jax.report import templates
from igpo_jax.report.page import write_page
from igpo_jax.rewrite.card import make_card, write_card
from parsers import PARSERS

pytest.importorskip("plotly")

ATTACKS = (
    '<img src=x onerror=document.title="PWNED">',
    "\"><svg onload='document.title=1'><p title='",
    "</script><script>document.title='PWNED'</script></style></title></pre><style>*{display:none}</style>",
    "<!--<script>{{ 7 * 7 }}{% raw %}&lt;b&gt;<a href=javascript:alert(1)>\x00\x1b[31m|\n\n<b>",
)
KEPT = {"stage", "try", "outcome"}  # keys whose values select code paths


class Structure(html.parser.HTMLParser):
    """Elements with their attributes, and the texts between them."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.text, self.inline = [], "", {"script": [], "style": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", [])
        if self.cdata_elem and "type" not in dict(attributes):
            self.inline[tag].append(data)
        elif not self.cdata_elem:
            self.text += data


def with_text(value, text: str):
    """Puts `text` into all strings of a JSON value, and as another key into all of its objects."""
    if isinstance(value, dict):
        changed = {key: part if key in KEPT else with_text(part, text) for key, part in value.items()}
        return changed | {text: 0.5 if "step" in value and "try" not in value else text}  # a row of metrics has numbers only
    if isinstance(value, list):
        return [with_text(part, text) for part in value]
    return f"{text}{value}" if isinstance(value, str) else value


def write_folder(parser: str, folder: pathlib.Path, text: str) -> pathlib.Path:
    """Writes the valid files of a parser of the fuzzing tests, and puts `text` into their strings."""
    folder.mkdir(parents=True)
    next(known for known in PARSERS if known.name == parser).write(folder)
    for file in folder.rglob("*.json*"):
        rows = [with_text(json.loads(line), text) for line in file.read_text().splitlines()]
        if file.name == "metrics.jsonl":
            rows = [row | {f"policy/{text}": 0.5} for row in rows]
        if file.name == "result.json":
            rows[0] |= {"commit": text, "versions": {"igpo_jax": text, "jax": text}}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def folder_name(text: str) -> str:
    return text.replace("/", "").replace("\0", "")[:200]


def report(folder, text):
    write_page([write_folder("report", folder / folder_name(text), text)], folder / "page.html")
    return (folder / "page.html").read_text()


def compared(folder, text):
    runs = [write_folder("report", folder / name / folder_name(text), text) for name in ("one", "other")]
    runs.append(write_folder("report", folder / f"third{folder_name(text)}" / "run", text))
    write_page(runs, folder / "page.html")
    return (folder / "page.html").read_text()


def comparison(folder, text):
    runs = write_folder("comparison", folder / folder_name(text), text)
    write_comparison(runs, compare_runs(runs, ["grpo", "igpo"], [0]))
    return (runs / "comparison.html").read_text()


def rewrite_card(folder, text):
    folder.mkdir(parents=True)
    kept = [{"original_tokens": 9, "tokens": 5}]
    card = make_card({"rewritten": 1, text: 2}, kept, [], {"p0": text})
    card |= {"settings": {"model": text, "min_tokens": 1, "max_tokens": 9, text: text}, "sources": [text]}
    write_card(folder, card, [(text, text, text)])
    return (folder / "card.html").read_text()


PAGES = {page.__name__: page for page in (report, compared, comparison, rewrite_card)}


@pytest.mark.parametrize("attack", ATTACKS, ids=("img", "attribute", "end-tags", "markup"))
@pytest.mark.parametrize("page", PAGES)
def test_no_element_and_no_attribute_of_a_page_comes_from_data(page, attack, tmp_path):
    harmless, hostile = (Structure(PAGES[page](tmp_path / name, text)) for name, text in (("a", "harmless"), ("b", attack)))
    assert hostile.elements == harmless.elements
    assert hostile.inline == harmless.inline
    assert attack in hostile.text or folder_name(attack) in hostile.text  # it is shown, as text


def with_policy(page):
    """Returns (structure, {directive: sources}) of a page."""
    structure = Structure(page)
    [policy] = [dict(attributes)["content"] for tag, attributes in structure.elements if dict(attributes).get("http-equiv")]
    return structure, {directive: sources for directive, *sources in map(str.split, policy.split(";"))}


@pytest.mark.parametrize("page", [*PAGES, "playground"])
def test_a_page_allows_its_own_scripts_and_style_sheets_by_their_hashes_and_nothing_else(page, tmp_path):
    structure, policy = with_policy(read_page()[0] if page == "playground" else PAGES[page](tmp_path / "runs", "text"))
    for name, codes in structure.inline.items():
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" for code in codes}
        assert hashes <= set(policy[f"{name}-src"]) and codes or page == "comparison" and name == "script"
    assert "unsafe" not in str(policy) and policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["connect-src"] == (["'self'"] if page == "playground" else ["'none'"])
    for tag, attributes in structure.elements:
        for name, value in attributes:
            assert not name.startswith("on") and name != "style", (tag, name)
            assert name not in ("src", "srcdoc", "action", "formaction") and (
                name != "href" or value == "data:," or value.startswith("data:text/csv,")
            ), (tag, name)


@pytest.mark.parametrize("attack", ATTACKS, ids=("img", "attribute", "end-tags", "markup"))
def test_texts_of_an_svg_figure_are_texts(attack):
    curve = (np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]))
    text = attack.replace("\0", "").replace("\x1b", "")  # no characters of XML
    harmless, hostile = (xml.etree.ElementTree.fromstring(figure(name, name, {name: curve})) for name in ("text", text))
    assert [(node.tag, sorted(node.keys())) for node in hostile.iter()] == [
        (node.tag, sorted(node.keys())) for node in harmless.iter()
    ]
    assert text in "".join(hostile.itertext())


@pytest.mark.parametrize("attack", ATTACKS, ids=("img", "attribute", "end-tags", "markup"))
def test_the_markdown_of_a_comparison_has_no_markup_and_no_control_characters_from_data(attack, tmp_path):
    comparison(tmp_path, attack)
    [file] = tmp_path.rglob("comparison.md")
    text = file.read_text()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert not re.search(r"(?<!\\)[<\[]", text) and "device" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(text.splitlines()) == len(tables) + 3  # two empty lines, and the note


def test_pages_are_made_by_templates_that_escape():
    """Keeps escaping in one place: no other module makes markup, and no template marks a value as safe."""
    for file in sorted(templates.PACKAGE.rglob("*.py")):
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        assert file.name == "templates.py" or not imported & {"html", "jinja2", "markupsafe"}, file
    sources = [file for pattern in ("*.html", "*.svg") for file in templates.PACKAGE.rglob(pattern)]
    assert len(sources) > 8
    for file in sources:
        assert not re.search(r"\|\s*safe|autoescape|\son\w+\s*=|\sstyle\s*=|javascript:", file.read_text()), file
