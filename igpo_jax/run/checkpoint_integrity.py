"""Detects damaged checkpoints and checkpoints of other runs. Damage is found with a checksum of each array and a CRC-32 of the
metadata. Another run is recognized by the fingerprints of its configuration and data."""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from igpo_jax.config import NUMERICS
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.run.metrics import LOGS
from igpo_jax.runtime.buckets import BucketError, all_files, names_in, read_range
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import first_line, folder_size, is_inside, parse_json, require_file, require_plausible
from igpo_jax.runtime.host import explain_shortage
from igpo_jax.runtime.mesh import to_host
from igpo_jax.runtime.orbax_files import COMMITTED, METADATA, MOST_METADATA, check_files, check_whole_files
from igpo_jax.tokenizers import Tokenizer

log = logging.getLogger(__name__)

MOST_DIGITS = 15  # of a step
COPY = "put the folder of the checkpoints in the place of the link"
NO_LINK = "is a symbolic link; remove it, or put the folder of the checkpoint in its place"
# Stage -> (name of the configuration's fingerprint in the metadata, splits on which the stage depends). The fingerprint of the
# supervised stage leaves out the keys of the RL stage, because the arms of a comparison share supervised checkpoints.
IDENTITIES = {"sft": ("sft_fingerprint", ("sft", "test")), "rl": ("fingerprint", ("sft", "rl", "test"))}


def leaf_names(tree) -> list[str]:
    """Returns the dotted names of a pytree's leaves, such as blocks.query."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)]


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    words = [jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")) for leaf in leaves]
    return [jnp.sum(part, dtype=jnp.uint32) for part in words]


def array_sums(tree) -> dict[str, int]:
    """Returns {name: checksum} for the arrays in a pytree. For the checksum, the bits of each array element are read as an
    unsigned integer, and these integers are added modulo 2^32. The checksums do not depend on the device mesh."""
    leaves = jax.tree.leaves(tree)
    keys = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in leaves]
    return dict(zip(leaf_names(tree), map(int, to_host(_bit_sums(keys))), strict=True))


def metadata_crc(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in about.items() if k != "crc32"}, sort_keys=True).encode())


def check_metadata(about: Mapping[str, Any], step: int) -> None:
    """Raises ValueError if the metadata of the checkpoint in the folder `step` is incomplete or damaged, or belongs to another
    step. The metadata contains its own CRC-32. Metadata from earlier versions of this package has no CRC-32; then only its form
    and its step are checked."""
    crc = metadata_crc(about)
    types = {"sums": Mapping, "data": Mapping, "unlogged": Sequence, "data_position": int}
    valid = all(isinstance(about[name], kind) for name, kind in types.items() if name in about)
    valid &= are_log_sums(about.get("logs", {}))
    for pair in about.get("unlogged", ()) if valid else ():
        valid &= isinstance(pair, Sequence) and [type(number) for number in pair] == [float, float]
    if crc != about.get("crc32", crc) or "data_position" not in about or not valid:
        raise ValueError("its metadata has changed since it was saved")
    require(about["data_position"] == step, f"it was saved as step {about['data_position']}; its folder was renamed or copied")


def are_log_sums(logs: Any) -> bool:
    """Returns whether a value from a file has the form of `MetricsWriter.sums`."""
    return isinstance(logs, Mapping) and all(
        name in LOGS and isinstance(sums, Sequence) and [type(number) for number in sums] == [int, int]
        for name, sums in logs.items()
    )


def check_sizes(checkpoint: pathlib.Path, abstract: Any) -> None:
    """Checks the files of a checkpoint before Orbax reads them, see `check_files` and `check_whole_files`. Raises ValueError if
    the arrays described by `abstract` are implausibly large for the size of the stored files. Orbax stores compressed arrays,
    so a small file could otherwise unpack to arrays of zeros that fill the memory."""
    if isinstance(checkpoint, pathlib.Path):
        check_files(checkpoint, checkpoint.parents[2])
    sizes = all_files(checkpoint)
    stored = folder_size(checkpoint) if isinstance(checkpoint, pathlib.Path) else sum(sizes.values())
    arrays = [leaf for leaf in jax.tree.leaves(abstract) if hasattr(leaf, "shape")]
    if arrays:
        require_plausible(checkpoint, sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays), stored)
    check_whole_files(sizes)


def check_dtypes(metadata: Any, abstract: Any) -> None:
    """Raises ValueError if an array was saved with another dtype than the array of the same name in `abstract`, because Orbax
    would cast it without a warning. `metadata` is a pytree with the metadata that Orbax has read."""
    saved = dict(zip(leaf_names(metadata), jax.tree.leaves(metadata), strict=True))
    for name, leaf in zip(leaf_names(abstract), jax.tree.leaves(abstract), strict=True):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # saved as its numbers
        wanted = jax.eval_shape(jax.random.key_data, leaf).dtype if is_key else leaf.dtype
        found = getattr(saved.get(name), "dtype", wanted)  # Orbax refuses to read an array that is missing
        require(found == wanted, f"{name} has dtype {found}, not {wanted}")


def is_step(name: str) -> bool:
    """Returns whether `name` is a name that Orbax gives to a checkpoint's folder: a number of updates or iterations."""
    return name.isascii() and name.isdecimal() and len(name) <= MOST_DIGITS and name == str(int(name))


def steps_in(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder in ascending order. Saves that were not finished are left out. Raises
    ValueError if a symbolic link has the name of a step: Orbax cannot delete it, and many links could lead to one checkpoint,
    which would be read again and again. Also raises ValueError if a link makes `folder`, which is RUN/checkpoints/STAGE, lead
    out of the run, because the weights of another place could then be exported."""
    if isinstance(folder, pathlib.Path):
        require(is_inside(folder, folder.parents[1]), f"{folder} leads to {folder.resolve()}, outside of the run; {COPY}")
        paths = [path for path in folder.glob("*") if is_step(path.name)]
        for path in paths:
            require(not path.is_symlink(), f"{path} {NO_LINK}")
        return sorted(int(path.name) for path in paths if path.is_dir())
    # Objects cannot be renamed together, so Orbax writes a mark last.
    return sorted(int(name) for name in names_in(folder) if is_step(name) and COMMITTED in names_in(folder / name))


def misnamed(folder: Any) -> list[Any]:
    """Returns the files and subfolders in a folder of checkpoints whose names are numbers, but not those of steps, such as
    02."""
    names = [path.name for path in folder.glob("*")] if isinstance(folder, pathlib.Path) else names_in(folder)
    return [folder / name for name in sorted(names) if name.isnumeric() and not is_step(name)]


def check_names(folder: pathlib.Path) -> None:
    """Raises ValueError if there is a misnamed checkpoint in a folder, because Orbax would fail at its name. Also raises
    ValueError if the metadata of a checkpoint is no file, or has more than `MOST_METADATA`. When Orbax opens the folder, it
    reads the metadata of all checkpoints, and would wait for a named pipe."""
    for path in misnamed(folder):
        raise ValueError(f"{path}: {path.name[:50]} is not the step of a checkpoint; move it away")
    for path in folder.glob("*"):
        about = path / METADATA
        small = about.is_file() and about.stat().st_size <= MOST_METADATA
        require(small or not about.exists(), f"{about} is no file of at most {MOST_METADATA >> 10} KiB; move {path} away")


def read_metadata(checkpoint: pathlib.Path) -> dict[str, Any] | None:
    """Returns the metadata that was saved with a checkpoint, or None if the metadata is missing or damaged. Raises BucketError
    if the checkpoint is in a bucket and the request fails. Does not read the arrays of the checkpoint."""
    try:
        file = checkpoint / METADATA
        if isinstance(checkpoint, pathlib.Path):
            require_file(file)
        about = parse_json(read_range(file, 0, MOST_METADATA), file)["custom_metadata"]
        check_metadata(about, int(checkpoint.name))
    except BucketError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return about


def network_hash(model: ModelConfig, tokenizer: Tokenizer) -> str:
    """Returns a hash of what, besides the weights and the vocabulary, decides which texts a model writes: the settings of the
    network, the special ids, the ids that are never drawn, and the chat template. The hash of the tokenizer's file covers none
    of them, because they come from config.json, tokenizer_config.json and special_tokens_map.json."""

    def settings(values: Any) -> dict[str, Any]:
        """Returns the fields that have other values than their defaults, so that a new field does not change all hashes."""
        fields = {field.name: field.default for field in dataclasses.fields(values) if field.name not in NUMERICS}
        return {name: getattr(values, name) for name, default in fields.items() if getattr(values, name) != default}

    settings_of_both = {"network": settings(model), "chat": settings(tokenizer.chat)}
    return hashlib.sha256(json.dumps(settings_of_both, sort_keys=True).encode()).hexdigest()[:16]


def other_identity(stage: str, about: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Returns "" if a checkpoint belongs to the run. Otherwise returns what differs, as the predicate of a sentence, such as
    "was saved with another configuration".

    `about` is the metadata of a checkpoint of the given stage. `identity` describes the run, see `Experiment.identity`. Both
    contain the fingerprint of the configuration, and hashes of the tokenizer, of the network's settings (see `network_hash`)
    and of the base model. Under the key `data`, both contain the fingerprints of the data splits. A fingerprint or hash that
    `about` or `identity` lacks is not compared."""
    name, splits = IDENTITIES[stage]
    if name in about and about[name] != identity.get(name, about[name]):
        return (
            "was saved with another configuration (config.json is missing or has changed); give the configuration with which "
            "the run began, or another --workdir"
        )
    if "tokenizer" in about and about["tokenizer"] != identity.get("tokenizer", about["tokenizer"]):
        return "was saved with another tokenizer; put the tokenizer's file back with which the run began, or give another --workdir"
    if "base" in about and about["base"] != identity.get("base", about["base"]):
        return (
            "was saved with another base model in model.path, or by an earlier version, which computed the model's hash in "
            "another way; put the model back, or give another --workdir"
        )
    if "network" in about and about["network"] != identity.get("network", about["network"]):
        return (
            "was saved with other settings of the model in model.path (config.json, tokenizer_config.json or "
            "special_tokens_map.json); put these files back, or give another --workdir"
        )
    saved, data = about.get("data", {}), identity.get("data", {})
    changed = [split for split in splits if split in saved and saved[split] != data.get(split, saved[split])]
    if changed:
        return f"was saved with other problems in the split {', '.join(changed)}; give the same data, or another --workdir"
    return ""


def is_about_this_machine(error: Exception) -> bool:
    """Returns whether an error in reading a checkpoint is caused by the host and not by the checkpoint. Examples of causes are
    a lack of memory, too many open files, and storage that does not respond."""
    storage = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return storage or explain_shortage(error, "") is not None


def remove_unreadable_metrics(folder: Any) -> None:
    """Removes the metrics of checkpoints if they are damaged. Orbax would fail on damaged metrics, because it reads the metrics
    of all checkpoints when it opens the folder, and compares their accuracies when it saves. If a symbolic link leads to
    damaged metrics in another folder, raises ValueError and does not remove them."""
    local = isinstance(folder, pathlib.Path)
    if local:
        paths = [path for path in folder.glob("*/metrics/metrics") if is_step(path.parents[1].name)]  # not of unfinished saves
    else:
        steps = [folder / str(step) for step in steps_in(folder)]
        paths = [step / "metrics" / "metrics" for step in steps if "metrics" in names_in(step)]
    for path in paths:
        try:
            if local:
                require_file(path)  # reading a named pipe would block
            metrics = parse_json(read_range(path, 0, MOST_METADATA), path)
            accuracy = metrics.get("accuracy") if isinstance(metrics, dict) else None
            require(type(accuracy) in (int, float), f"accuracy={accuracy!r} is no number")
        except BucketError:
            raise
        except (ValueError, FileNotFoundError, IsADirectoryError) as error:
            if local and path.parent.resolve() != folder.resolve() / path.parents[1].name / path.parent.name:
                raise ValueError(f"{path.parent} leads to damaged metrics in another folder; remove the link") from None
            log.warning("%s cannot be read (%s); removed", path, describe(error))
            if local:
                shutil.rmtree(path.parent, ignore_errors=True)
            else:
                path.parent.rmtree()


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]
