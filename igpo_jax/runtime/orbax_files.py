"""Checks folders that Orbax reads and that may come from untrusted sources."""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import MOST_BYTES, hub_blobs

COMMITTED = "commit_success.txt"  # Orbax's mark of a complete checkpoint
METADATA = "_CHECKPOINT_METADATA"  # Orbax's file of a checkpoint's metadata
MOST_METADATA = 1 << 18  # bytes of metadata; an honest file has about 300 per array, and at most 100 arrays
READ_AS_A_WHOLE = {  # file -> most bytes; Orbax needs 25 KB of memory per array that is named in _METADATA
    METADATA: MOST_METADATA,
    "_METADATA": MOST_METADATA,
    "array_metadatas/*": MOST_METADATA,
    "_sharding": MOST_BYTES,  # has a list of all devices for each array
    "manifest.ocdbt": MOST_BYTES,
}


def check_files(folder: pathlib.Path, boundary: pathlib.Path) -> None:
    """Raises ValueError if a symbolic link in `folder` leads out of `boundary`, because the numbers of a private file could
    then be exported. Links to the blobs of Hugging Face's cache are allowed. Also raises ValueError for a named pipe or a
    device, which could block the reader."""
    allowed = [pathlib.Path(os.path.realpath(boundary)), *hub_blobs(boundary)]
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = pathlib.Path(place, name)
            if path.is_symlink():
                found = pathlib.Path(os.path.realpath(path))
                inside = any(found.is_relative_to(root) for root in allowed)
                require(inside, f"{path} leads to {found}, outside of {boundary}; remove the link")
            require(path.is_file() or path.is_dir(), f"{path} is neither a file nor a folder")


def check_whole_files(sizes: Mapping[Any, int]) -> None:
    """Raises ValueError if one of the files that Orbax reads as a whole is larger than `READ_AS_A_WHOLE` allows. `sizes` is
    {path: bytes}. A sparse file of gigabytes would otherwise fill the memory, although it takes no space on a disk, and so
    would the names of 200,000 arrays."""
    for file, size in sizes.items():
        most = min((most for name, most in READ_AS_A_WHOLE.items() if file.match(name)), default=size)
        require(size <= most, f"{file}: more than {most >> 10} KiB")


def check_chunks(metadata: Any) -> None:
    """Raises ValueError if an array is stored in chunks that are larger than the array. Reading a single element unpacks its
    whole chunk, so a small array could fill the memory. `metadata` is a pytree with the metadata that Orbax has read."""
    for path, leaf in jax.tree.leaves_with_path(metadata):
        stored = getattr(leaf, "storage_metadata", None)
        for shape in (stored.chunk_shape, stored.write_shape) if stored else ():
            fits = shape is None or all(part <= max(1, size) for part, size in zip(shape, leaf.shape, strict=True))
            require(fits, f"{jax.tree_util.keystr(path)}: chunks of {shape} are larger than the array")


def remove_paths(folder: pathlib.Path) -> None:
    """Removes absolute paths of this machine from the files of the complete checkpoints in `folder`. Orbax writes these paths
    into the files `COMMITTED`, but later only tests whether they exist. Does not change files that may also be files of another
    folder, through a link."""
    for file in folder.rglob(COMMITTED):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # it may be deleted meanwhile
            if not file.is_file() or file.is_symlink() or file.stat().st_nlink > 1:
                continue
            with file.open("r+", encoding="utf-8") as opened:
                opened.write("committed\n")
                opened.truncate()
