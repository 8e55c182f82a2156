"""Computes hashes that identify a model. Only samples of its files are read."""

import hashlib
import os
from typing import Any

from igpo_jax.runtime.buckets import all_files, path_of, read_range, size_of
from igpo_jax.weights.folders import ORIGIN

SAMPLED = 2**16  # bytes of each sampled piece of a file


def files_digest(files: dict[Any, int]) -> str:
    """Returns a hash of files as 16 hexadecimal digits. `files` is {file: size in bytes}. The hash covers the name, the size
    and samples of the content of every file except `ORIGIN`."""
    digest = hashlib.sha256()
    for file, size in sorted(files.items()):
        if file.name != ORIGIN:
            digest.update(f"{file.name} {size}".encode(errors="surrogateescape"))  # names may have any bytes
            for place in (*range(0, size, max(SAMPLED, size // 16)), max(0, size - SAMPLED)):
                digest.update(read_range(file, place, min(size, place + SAMPLED)))
    return digest.hexdigest()[:16]


def model_files(path: str | os.PathLike) -> dict[Any, int]:
    """Returns {file: size in bytes} for all files of a Hugging Face folder, a model folder or a folder of adapters."""
    folder = path_of(path)
    return {file: size_of(file) for file in folder.iterdir() if file.is_file()} | all_files(folder / "params")


def network_digest(path: str | os.PathLike) -> str:
    """Returns a hash of the weights and of config.json in a Hugging Face or model folder, see `files_digest`. Copies have the
    same hash. If the same model is converted twice, the two results may have different hashes."""
    folder = path_of(path)
    own = (file for file in folder.iterdir() if file.suffix == ".safetensors" or file.name == "config.json")
    own = (file for file in own if file.is_file())  # opening a named pipe would block
    return files_digest({file: size_of(file) for file in own} | all_files(folder / "params"))
