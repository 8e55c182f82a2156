"""Finds models by their ids on the Hugging Face hub, such as GSAI-ML/LLaDA-8B-Instruct, in the hub's cache on this machine.
Never uses the network."""

import functools
import os
import pathlib
import re

from igpo_jax.runtime.checks import require

HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
EXAMPLE = "GSAI-ML/LLaDA-8B-Instruct"


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path on this machine as a pathlib.Path. If nothing exists at the path, and it is the id of a model in the hub's
    cache, returns the folder of this model in the cache."""
    place, text = pathlib.Path(path), os.fspath(path)
    if not HUB_ID.fullmatch(text) or place.exists():
        return place
    try:
        return _snapshot(text)
    except Exception:  # the model is not in the cache, or not all of its files are; damaged files of the cache raise anything
        return place


@functools.cache  # so that a process reads one version of a model
def _snapshot(hub_id: str) -> pathlib.Path:
    from huggingface_hub import constants, snapshot_download

    named = pathlib.Path(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
    version = named / "refs" / "main"
    require(version.is_file(), f"{version} is no file")  # opening a named pipe would block
    folder = pathlib.Path(snapshot_download(hub_id, local_files_only=True))
    # The name of the folder comes from a file of the cache, and could be that of any folder.
    around = (named.name, "snapshots")
    require(folder.parts[-3:-1] == around and folder.name != "..", f"{folder} is no snapshot of {hub_id}")
    return folder


def how_to_get(path: str | os.PathLike, key: str) -> str:
    """Returns the end of an error message about a missing model folder. The text says how to get a model. `path` is the missing
    folder, and `key` is the flag or configuration key that has this path as its value."""
    missing, hub_id = "; for example,", EXAMPLE
    if HUB_ID.fullmatch(os.fspath(path)) and not pathlib.Path(path).parent.is_dir():  # otherwise, probably a folder here
        missing, hub_id = " and no complete model of this name in the Hugging Face cache; if it is on the hub,", os.fspath(path)
    name = hub_id.rpartition("/")[2]
    return f"{missing} run hf download {hub_id} --local-dir {name} and give {key}={name}"
