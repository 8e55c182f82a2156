"""Documentation is correct: runnable blocks run, and files, commands and keys that it names exist."""

import ast
import functools
import importlib.util
import io
import pathlib
import re
import runpy
import tokenize

import pytest
from ml_collections import ConfigDict

import igpo_jax.__main__ as igpo_commands
from doc_blocks import assert_outputs, blocks_of, run_blocks, with_outputs
from igpo_jax.tasks.sources import DATASETS, download_advice
from run_configs import CONFIGS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Files and folders of this repository, in prose.
FILE = re.compile(r"(?<![\w./-])(?:igpo_jax|configs|launch|tests|benchmarks|docs)/[\w/.-]*\w")
# A file name, or the end of its path, in a docstring, a comment or a document.
NAME = re.compile(r"(?<![\w./<{*\\-])(?:[\w-]+/)*[\w-]+\.(?:py|md|sh|sbatch)\b(?![\w(/-])")
FOLDERS = ("igpo_jax", "tests", "benchmarks", "configs", "docs", "launch")
# Names of files that are not in this repository.
ELSEWHERE = {
    "comparison.md": "written by igpo_jax.compare",
    "tasks.md": "the same",
    "runs/compare/comparison.md": "the same",
    "file.py": "a placeholder for a configuration",
    "modeling_llada.py": "released with LLaDA's weights",
    "run_igpo.sh": "in the released code of IGPO",
}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.name in ("CONTRIBUTING.md", "how_it_works.md", "rewards.md")))
        for path in DOCUMENTS
    ],
    ids=lambda path: path.name,
)
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


def test_every_file_that_code_or_a_document_names_exists():
    missing, known = [], endings(repository_files()) | ELSEWHERE.keys()
    for path in repository_files():
        # Tables in benchmarks/results record the names of the commit that was measured.
        if path.suffix in (".py", ".md") and not path.is_relative_to(ROOT / "benchmarks/results"):
            unknown = set(NAME.findall(path.read_text())) - known
            if unknown:  # possibly in code only; parsing for prose is slower
                missing += [f"{path.relative_to(ROOT)}: {name}" for name in unknown.intersection(NAME.findall(prose(path)))]
    assert not missing, "\n".join(missing)


def test_a_missing_file_is_noticed_in_docstrings_and_comments(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""See gone/a.py, `b.md`."""\n\nx = "c.py"  # d.sh, module.py:3\n\n\ndef f():\n    """(e.sbatch)"""\n')
    assert set(NAME.findall(prose(file))) == {"gone/a.py", "b.md", "d.sh", "module.py", "e.sbatch"}
    assert endings([ROOT / "docs/x/a.py"]) == {"docs/x/a.py", "x/a.py", "a.py"}


def test_no_file_cites_private_notes():
    private = re.compile(r"\b(igpo_method|llada)[.]md")
    assert not [path for path in repository_files() if private.search(path.read_bytes().decode("utf-8", "replace"))]


def repository_files() -> list[pathlib.Path]:
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    found += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def endings(files: list[pathlib.Path]) -> set[str]:
    """Returns all names that can cite a file: its path in the repository, and every end of it."""
    parts = [file.relative_to(ROOT).parts for file in files]
    return {"/".join(path[first:]) for path in parts for first in range(len(path))}


def prose(path: pathlib.Path) -> str:
    """Returns a document without the files that its own blocks write, or the comments and docstrings of a module."""
    text = path.read_text()
    if path.suffix == ".md":
        own = {block.name for block in blocks_of(text) if block.kind == "file"} | {"blocks.py"}
        return NAME.sub(lambda name: "" if name[0] in own else name[0], text)
    found = [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path):
    for name in re.findall(r"python -m (igpo_jax[.\w]*)", path.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")), f"{path.name} names python -m {name}"
    for name in re.findall(r"^ *igpo (\w+) |`igpo (\w+) ", path.read_text(), re.MULTILINE):
        assert "".join(name) in igpo_commands.COMMANDS, f"{path.name} names igpo {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_of_configurations_exist(path):
    for key in re.findall(r"--config\.([\w.]*\w)", path.read_text()):
        assert key in known_keys() | {"key", "section.key"}, f"{path.name} names --config.{key}"
    for name in re.findall(r"--config=([\w./]+\.py)", without_files_of_its_own(path.read_text())):
        assert (CONFIGS / name).exists() or (ROOT / name).exists(), f"{path.name} names --config={name}"


@functools.cache
def known_keys() -> set[str]:
    """Returns the keys of all configurations; variants only change values."""
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
    """Returns the anchors of a document's headings, as on GitHub."""
    titles = re.findall(r"^#+ (.+)$", without_code(document), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def without_code(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", document, flags=re.M | re.S)


def without_files_of_its_own(document: str) -> str:
    for block in blocks_of(document):
        if block.kind == "file":
            document = document.replace(f"--config={block.name}", "")
    return document


def test_the_data_sets_of_the_page_on_mathematics_are_those_of_the_messages():
    text = (ROOT / "docs" / "mathematics.md").read_text()
    for kind in DATASETS:
        command, path = re.search("run (.+) and give (.+?)(?: or .*)?$", download_advice(kind)).groups()
        assert command in text and path in text, (command, path)


def test_the_page_on_models_names_the_transformers_with_which_exports_load():
    """LLaDA's released code never calls post_init, which sets the attribute in transformers 5, so no export can mend it."""
    text = " ".join((ROOT / "docs" / "models.md").read_text().split())
    assert 'needs `pip install "transformers<5"`: transformers 5 expects' in text and "all_tied_weights_keys" in text
