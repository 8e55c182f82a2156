"""Computes hashes that identify a model. Of large files, only samples are read."""

import hashlib
import os
from typing import Any

from igpo_jax.runtime.buckets import all_files, path_of, read_ranges, size_of
from igpo_jax.runtime.orbax_files import COMMITTED
from igpo_jax.weights.folders import ORIGIN

WHOLE = 1 << 26  # bytes; a larger file is sampled
SAMPLED, STRIDE = 1 << 16, 1 << 22  # bytes of a sample, and between the beginnings of two of them
MOST_SAMPLES = 1 << 14  # of a file; one of more than 64 GiB may be sparse and come from a stranger


def files_digest(files: dict[Any, int]) -> str:
    """Returns a hash of files as 16 hexadecimal digits. `files` is {file: size in bytes}. The hash covers the name and the size
    of every file, and its content: a file of at most `WHOLE` bytes is hashed as a whole. Of a larger file, the hash covers the
    first `SAMPLED` bytes of every `STRIDE` bytes and the end. It therefore changes with every tensor that is replaced as a
    whole and has at least `STRIDE` bytes, but not with every number. `ORIGIN` and `COMMITTED`, which may contain the path of
    the folder, are left out."""
    digest = hashlib.sha256()
    for file, size in sorted(files.items()):
        if file.name not in (ORIGIN, COMMITTED):
            digest.update(f"{file.name} {size}".encode(errors="surrogateescape"))  # names may have any bytes
            for content in read_ranges(file, _samples(size)):
                digest.update(content)
    return digest.hexdigest()[:16]


def _samples(size: int) -> list[tuple[int, int]]:
    """Returns the ranges [begin, end) of a file of `size` bytes that are hashed."""
    if size <= WHOLE:
        return [(0, size)]
    begins = (*range(0, size, max(STRIDE, size // MOST_SAMPLES)), size - SAMPLED)
    return [(begin, min(size, begin + SAMPLED)) for begin in begins]


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
