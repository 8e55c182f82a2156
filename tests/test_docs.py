"""The documentation is true: what is marked as runnable runs, and what is named is there."""

import functools
import importlib.util
import pathlib
import re
import runpy

import pytest
from ml_collections import ConfigDict

from doc_blocks import assert_outputs, blocks_of, run_blocks, with_outputs
from run_configs import CONFIGS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Files and folders of this repository that are named in running text.
FILE = re.compile(r"(?<![\w./-])(?:igpo_jax|configs|launch|tests|benchmarks|docs)/[\w/.-]*\w")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_runnable_blocks_run_and_print_what_stands_below_them(path, tmp_path):
    document = path.read_text()
    assert_outputs(document, run_blocks(document, tmp_path))


def test_a_block_that_fails_or_prints_something_else_is_noticed(tmp_path):
    good = "<!-- run -->\n```python\nprint(1)\n```\n\n<!-- output -->\n```text\n1\n```\n"
    other = good.replace("\n1\n", "\n2\n")
    assert_outputs(good, run_blocks(good, tmp_path))
    assert with_outputs(other, {0: "1\n"}) == good
    with pytest.raises(AssertionError):
        assert_outputs(other, {0: "1\n"})
    with pytest.raises(AssertionError, match="NameError"):
        run_blocks(good.replace("print(1)", "print(one)"), tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in LINK.findall(without_code(path.read_text())):
        if not re.match(r"https?://|mailto:", link):
            file, _, heading = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name}: {link} is not there"
            assert not heading or heading in headings(target.read_text()), f"{path.name}: {link} has no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    for name in FILE.findall(LINK.sub("", path.read_text())):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path):
    for name in re.findall(r"python -m (igpo_jax[.\w]*)", path.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")), f"{path.name} names python -m {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_of_configurations_exist(path):
    for key in re.findall(r"--config\.([\w.]*\w)", path.read_text()):
        assert key in known_keys() | {"key", "section.key"}, f"{path.name} names --config.{key}"
    for name in re.findall(r"--config=([\w./]+\.py)", without_files_of_its_own(path.read_text())):
        assert (CONFIGS / name).exists() or (ROOT / name).exists(), f"{path.name} names --config={name}"


@functools.cache
def known_keys() -> set[str]:
    """Of all configurations; variants only change values."""
    found: set[str] = set()
    for path in CONFIGS.glob("*.py"):
        found |= keys(runpy.run_path(str(path))["get_config"]())
    return found


def keys(config: ConfigDict, prefix: str = "") -> set[str]:
    found = {prefix + key for key in config}
    for key, value in config.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else set()
    return found


def headings(document: str) -> set[str]:
    """As GitHub links to them."""
    titles = re.findall(r"^#+ (.+)$", without_code(document), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def without_code(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", document, flags=re.M | re.S)


def without_files_of_its_own(document: str) -> str:
    for block in blocks_of(document):
        if block.kind == "file":
            document = document.replace(f"--config={block.name}", "")
    return document
