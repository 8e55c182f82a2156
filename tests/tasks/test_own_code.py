"""Files of a user's own tasks and reward functions are found without importing anything."""

import pytest

from igpo_jax.tasks.own_code import own_code, own_files


@pytest.mark.parametrize("file, name", [
    ("alone.py", "alone:reward"), ("pack/__init__.py", "pack:reward"), ("pack/part.py", "pack.part:reward"), ("pack/deep/part.py", "pack.deep.part"),
    ("plain/deeper/part.py", "plain.deeper.part:reward"), ("pack/deep/__init__.py", "pack.deep:reward"),
])  # fmt: skip
def test_the_file_of_a_module_is_found(file, name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("pack/__init__.py", file):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("raise SystemExit")
    assert own_files([name]) == {name.partition(":")[0]: tmp_path / file}


@pytest.mark.parametrize("name", [
    "math", "igpo_jax.tasks.math:reward", "igpo_jax.evaluate.graders:reward", "no_such_module:f", "sys:f", ":f", "", ".a:f", "a..b:f",
    "os.path:f", "\0:f", "a/b:f",
])  # fmt: skip
def test_code_of_this_package_and_modules_without_a_file_are_left_out(name):
    assert own_files([name]) == {}


def test_a_hash_tells_code_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = {"task": {"name": "mine"}, "reward": {"function": "task + 0.5*other:reward"}}
    (tmp_path / "mine.py").write_text("1")
    (tmp_path / "other.py").write_text("2")
    before = own_code(config)
    (tmp_path / "other.py").write_text("3")
    after = own_code(config)
    assert list(before) == list(after) == ["mine", "other"]
    assert before["mine"] == after["mine"] and len({before["mine"], before["other"], after["other"]}) == 3
