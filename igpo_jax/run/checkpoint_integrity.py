"""What shows that a checkpoint is damaged."""

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
    def of(leaf):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return jnp.sum(bits, dtype=jnp.uint32)

    return [of(leaf) for leaf in leaves]


def array_sums(tree) -> dict[str, int]:
    """The sum of every array's bits, as words of an element's size, modulo 2^32: the same on every mesh."""
    named = jax.tree.leaves_with_path(tree)
    keys = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for _, leaf in named]
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named)
    return dict(zip(names, map(int, to_host(_bit_sums(keys))), strict=True))


def metadata_crc(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in about.items() if k != "crc32"}, sort_keys=True).encode())


def is_about_this_machine(error: Exception) -> bool:
    """Memory, or storage that does not answer: the checkpoint may be as good as ever."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return True
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def remove_unreadable_metrics(folder: pathlib.Path) -> None:
    """Orbax reads the metrics of every step when a folder is opened, and gives up at one that is damaged."""
    for path in folder.glob("*/metrics/metrics"):
        if not path.parents[1].name.isdigit():
            continue  # a save that is under way
        try:
            json.loads(path.read_bytes())
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s cannot be read (%s); removed", path, first_line(error))
            shutil.rmtree(path.parent, ignore_errors=True)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
