import pytest

from igpo_jax.runtime.files import place_name


@pytest.mark.parametrize("path, name", [
    ("/secret/of/mine/run", "run"), ("/secret/run/", "run"), ("runs/a/../b", "b"), (".", "here"), ("run.jsonl", "run.jsonl"),
    ("/c/models--GSAI-ML--LLaDA-8B-Base/snapshots/0f27", "models--GSAI-ML--LLaDA-8B-Base/0f27"),
])  # fmt: skip
def test_a_name_has_no_path(path, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert place_name(path) == name


def test_a_link_keeps_its_name(tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    assert place_name(tmp_path / "link") == "link"
