"""Detects damaged checkpoints by checksums of the arrays' bits and a CRC of the metadata."""

import json
import logging
import pathlib
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from igpo_jax.runtime.mesh import to_host

log = logging.getLogger(__name__)


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    words = [jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")) for leaf in leaves]
    return [jnp.sum(part, dtype=jnp.uint32) for part in words]


def array_sums(tree) -> dict[str, int]:
    """Maps each array's path to the sum of its elements' bits as unsigned integers, modulo 2^32; independent of the mesh."""
    named = jax.tree.leaves_with_path(tree)
    keys = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for _, leaf in named]
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named)
    return dict(zip(names, map(int, to_host(_bit_sums(keys))), strict=True))


def metadata_crc(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in about.items() if k != "crc32"}, sort_keys=True).encode())


def is_about_this_machine(error: Exception) -> bool:
    """Returns whether this host caused the error (out of memory, unresponsive storage), and not the checkpoint."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return True
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def remove_unreadable_metrics(folder: pathlib.Path) -> None:
    """Removes damaged metrics files, because Orbax reads the metrics of all steps on opening and fails at a damaged file."""
    for path in folder.glob("*/metrics/metrics"):
        if not path.parents[1].name.isdigit():
            continue  # an unfinished save
        try:
            json.loads(path.read_bytes())
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s cannot be read (%s); removed", path, first_line(error))
            shutil.rmtree(path.parent, ignore_errors=True)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
