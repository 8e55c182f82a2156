import pathlib
import types

import jax
import pytest

from igpo_jax.runtime import host


@pytest.fixture
def library(monkeypatch):
    """Replaces the C library; returns the (parameter, value) pairs of its mallopt's calls."""
    calls = []
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: types.SimpleNamespace(mallopt=lambda *pair: calls.append(pair)))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return calls


def test_memory_is_kept_where_there_is_no_accelerator(library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: [])
    host.prepare()
    assert sorted(library) == sorted(host.MALLOPT.values()) and len(library) == 3


@pytest.mark.parametrize("platforms, kept", [(None, False), ("cpu", True)])
def test_with_an_accelerator_only_where_it_is_not_used(platforms, kept, library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    host.prepare()
    assert bool(library) == kept


def test_another_c_library_is_left_alone(library, monkeypatch):
    monkeypatch.setattr(host.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    host.keep_freed_memory()
    assert library == []


@pytest.mark.parametrize("given", [None, "/elsewhere"])
def test_programs_are_kept_in_the_users_cache_unless_told(given, tmp_path, monkeypatch):
    changed = []
    config = types.SimpleNamespace(jax_compilation_cache_dir=given, update=lambda *pair: changed.append(pair))
    monkeypatch.setattr(host.jax, "config", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host.cache_compiled_programs()
    if given:
        assert changed == []
    else:
        [(name, folder)] = changed
        assert name == "jax_compilation_cache_dir" and folder.startswith(f"{tmp_path}/igpo_jax/compiled/")
        assert jax.devices()[0].device_kind in folder
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert host.user_cache() == pathlib.Path.home() / ".cache" / "igpo_jax"
