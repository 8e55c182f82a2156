"""Ids of models on the Hugging Face hub are found in its cache on this machine, and nowhere else."""

import os
import pathlib
import re
import sys

import pytest

from hub_cache import COMMIT, write_hub_cache
from igpo_jax.runtime import hub
from igpo_jax.runtime.buckets import is_folder, path_of, require_model, small_files


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache with the model ORG/Model-1.5, in which a request to the network is an error."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_hub_cache(tmp_path, "ORG/Model-1.5", tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a request to the network"))
    hub._snapshot.cache_clear()
    yield tmp_path
    hub._snapshot.cache_clear()


def test_an_id_is_the_folder_in_the_cache(home):
    [snapshot] = (home / "hub/models--ORG--Model-1.5/snapshots").iterdir()
    assert path_of("ORG/Model-1.5") == small_files("ORG/Model-1.5") == path_of(pathlib.Path("ORG/Model-1.5")) == snapshot
    assert is_folder("ORG/Model-1.5")
    require_model("ORG/Model-1.5", "--model")


def test_a_folder_of_the_same_name_comes_first(home):
    pathlib.Path("ORG/Model-1.5").mkdir(parents=True)
    assert path_of("ORG/Model-1.5") == pathlib.Path("ORG/Model-1.5")


@pytest.mark.parametrize("path", ["ORG/Model", "Model-1.5", "./ORG/Model-1.5", "/ORG/Model-1.5", "../Model-1.5", "ORG/..", "a/b/c",
                                  f"a/{'b' * 97}", "ORG/a--b", "ORG/", "ORG/Model-1.5\n"])  # fmt: skip
def test_other_paths_stay_as_they_are(path, home):
    assert path_of(path) == small_files(path) == pathlib.Path(path)


@pytest.mark.parametrize("name", ["refs/main", f"trees/{COMMIT}.json"])
@pytest.mark.parametrize("content", ["", "/etc", "..", "../..", "../refs", "5", "[" * 10**5])
def test_a_damaged_cache_leads_nowhere(name, content, home):
    snapshot = write_hub_cache(home, "ORG/OTHER", home / "model")
    (snapshot.parents[1] / "trees").mkdir()
    (snapshot.parents[1] / name).write_text(content)
    assert path_of("ORG/OTHER") in (snapshot, pathlib.Path("ORG/OTHER"))


def test_a_named_pipe_in_the_cache_does_not_block(home):
    version = home / "hub/models--ORG--Model-1.5/refs/main"
    version.unlink()
    os.mkfifo(version)
    assert path_of("ORG/Model-1.5") == pathlib.Path("ORG/Model-1.5")


def test_without_the_hubs_package_paths_stay_as_they_are(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert path_of("ORG/Model-1.5") == pathlib.Path("ORG/Model-1.5")


def test_a_process_reads_one_version(home):
    first = path_of("ORG/Model-1.5")
    (home / "hub/models--ORG--Model-1.5/refs/main").write_text("1" * 40)
    assert path_of("ORG/Model-1.5") == first
    hub._snapshot.cache_clear()
    assert not is_folder("ORG/Model-1.5")


def test_a_missing_model_is_told_with_the_way_to_get_it(home):
    with pytest.raises(ValueError) as raised:
        require_model("ORG/Other", "--source")
    assert str(raised.value) == (
        "--source: there is no folder 'ORG/Other' and no complete model of this name in the Hugging Face cache; if it is on the "
        "hub, run hf download ORG/Other --local-dir Other and give --source=Other"
    )
    with pytest.raises(ValueError, match=re.escape("model.path: there is no folder 'nowhere'; for example, run hf download ")):
        require_model("nowhere", "model.path")
