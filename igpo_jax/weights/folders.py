"""LLaDA and iLLaDA weights: Hugging Face folders of safetensors <-> parameters (llada.md 1, 2, 4).

A *Hugging Face folder* has config.json and safetensors files; a *model folder* is this project's: the same small files,
and params/ with one Orbax checkpoint for each parameter. Parameters are moved one at a time: what is in memory is one
stacked parameter and one layer's tensor, spread over the mesh, and no byte is read by two processes.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import resource
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, abstract
from igpo_jax.runtime.files import atomic_write, read_json
from igpo_jax.runtime.mesh import AXES
from igpo_jax.runtime.progress import progress
from igpo_jax.weights.huggingface import INDEX, Path, folder_model_config, read_config, tensor_names
from igpo_jax.weights.safetensors_files import Stored, fill_files, stored_tensors, write_headers

UNTRANSPOSED = ("embedding",)  # of two axes here and there, and the same way round
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")


def _leaves(cfg: ModelConfig, mesh: Mesh) -> dict[Path, jax.ShapeDtypeStruct]:
    """Every parameter with its shape, dtype and sharding."""
    paths_and_leaves = jax.tree.leaves_with_path(abstract(cfg, mesh))
    return {tuple(key.key for key in path): leaf for path, leaf in paths_and_leaves}


def _nested(leaves: dict[Path, jax.Array]) -> Params:
    params: Params = {}
    for (*parents, name), leaf in leaves.items():
        section = params
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = leaf
    return params


def _of_one_layer(path: Path, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], bool]:
    """Shape of their tensor, and whether ours is its transpose."""
    shape = leaf.shape[1:] if path[0] == "blocks" else leaf.shape
    transposed = len(shape) == 2 and path != UNTRANSPOSED
    return (shape[::-1], True) if transposed else (shape, False)


def check_tensors(folder: str | os.PathLike, values: dict[str, Any], cfg: ModelConfig, mesh: Mesh) -> dict[str, Stored]:
    """`stored_tensors`, which must be exactly those of the network, in shape, and of one dtype.

    Raises:
        ValueError: names the tensors that are missing, not wanted, mis-shaped or of another dtype.
    """
    stored, wanted = stored_tensors(folder), {}
    leaves = _leaves(cfg, mesh)
    for path, names in tensor_names(values, cfg).items():
        wanted |= dict.fromkeys(names, _of_one_layer(path, leaves[path])[0])
    for message, names in (
        ("lacks", wanted.keys() - stored.keys()),
        ("has tensors that config.json has no place for:", stored.keys() - wanted.keys()),
    ):
        if names:
            shown = sorted(names)[:3]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            raise ValueError(f"{folder} {message} {', '.join(shown)}{more}")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{stored[name].file}: tensor {name} has shape {stored[name].shape}, config.json asks for {shape}"
            )
    dtypes = {of.dtype: name for name, of in stored.items()}
    if len(dtypes) > 1:
        (one, name), (other, another) = list(dtypes.items())[:2]
        raise ValueError(f"{folder}: tensor {name} is {one}, tensor {another} is {other}; all must have one dtype")
    return stored


def _read_tensor(stored: Stored, name: str, mesh: Mesh) -> jax.Array:
    """A tensor, its rows spread over all devices: every process reads one run of bytes, and none is read twice. (Cut as
    the parameters are, it would fall into thousands of pieces, and Orbax would read all of it everywhere.)"""
    divides = (
        axes for axes in (AXES, AXES[1:], AXES[2:]) if stored.shape[0] % math.prod(mesh.shape[a] for a in axes) == 0
    )
    sharding = NamedSharding(mesh, P(next(divides, None)))
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    with context:
        return ocp.load(stored.file, {name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)})[name]


def stream_hugging_face(
    folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None
) -> Iterator[tuple[Path, jax.Array]]:
    """Every parameter of a Hugging Face folder, one after the other, sharded, in `dtype` (None: as stored).

    Raises:
        ValueError: see `check_tensors`; before the first parameter is read.
    """
    values = read_config(folder)
    stored, names = check_tensors(folder, values, cfg, mesh), tensor_names(values, cfg)
    dtype = jnp.dtype(dtype or next(iter(stored.values())).dtype)
    for path, leaf in _leaves(cfg, mesh).items():
        _, transposed = _of_one_layer(path, leaf)

        def place(tensor, transposed=transposed):
            return (tensor.T if transposed else tensor).astype(dtype)

        if path[0] != "blocks":
            [name] = names[path]
            value = _read_tensor(stored[name], name, mesh)
            if transposed or value.dtype != dtype or not value.sharding.is_equivalent_to(leaf.sharding, value.ndim):
                value = jax.jit(place, out_shardings=leaf.sharding)(value)
            yield path, value
            del value
            continue
        # Written in place, layer by layer: two of the stacked parameter never exist.
        insert = jax.jit(
            # Not .at[].set(), which copies the whole stack on CPUs.
            lambda stack, tensor, layer: jax.lax.dynamic_update_index_in_dim(stack, place(tensor), layer, 0),
            donate_argnums=0,
            out_shardings=leaf.sharding,
        )
        stack = jax.jit(functools.partial(jnp.zeros, leaf.shape, dtype), out_shardings=leaf.sharding)()
        for layer, name in enumerate(names[path]):
            stack = insert(stack, _read_tensor(stored[name], name, mesh), np.int32(layer))
            jax.block_until_ready(stack)  # or the tensors of many layers wait in memory to be written
        yield path, stack
        del stack  # before the next one is made


def stream_model_folder(
    folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None
) -> Iterator[tuple[Path, jax.Array]]:
    """Every parameter of a model folder, see `stream_hugging_face`."""
    for path, leaf in _leaves(cfg, mesh).items():
        place = _place(folder, path)
        with _one_line_errors(place):
            saved = ocp.metadata(place).metadata["value"]
            if saved.shape != leaf.shape:
                raise ValueError(f"it has shape {saved.shape}, config.json asks for {leaf.shape}")
            wanted = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype or saved.dtype), sharding=leaf.sharding)
            value = ocp.load(place, {"value": wanted})["value"]
        yield path, value
        del value  # before the next one is read


def _place(folder: str | os.PathLike, path: Path) -> pathlib.Path:
    """Of one parameter in a model folder."""
    return pathlib.Path(folder).absolute() / "params" / ".".join(path)


def _stored_dtype(folder: str | os.PathLike) -> str:
    """In which a model folder was written."""
    place = _place(folder, ("embedding",))
    with _one_line_errors(place):
        return ocp.metadata(place).metadata["value"].dtype.name


@contextlib.contextmanager
def _one_line_errors(place: pathlib.Path):
    try:
        yield
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{place} cannot be read: {reason[:300]}") from None


def stream_params(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None):
    """`stream_model_folder` or `stream_hugging_face`, whatever the folder is."""
    is_ours = (pathlib.Path(folder) / "params").is_dir()
    return (stream_model_folder if is_ours else stream_hugging_face)(folder, cfg, mesh, dtype)


def load_params(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh) -> Params:
    """All parameters of a Hugging Face or a model folder, in `cfg.param_dtype`, sharded over the mesh.

    Raises:
        ValueError: a folder that is not whole; the message names the file or the tensor.
    """
    return _nested(dict(_with_progress(stream_params(folder, cfg, mesh, cfg.param_dtype), cfg, mesh, "loading")))


def _with_progress(stream, cfg: ModelConfig, mesh: Mesh, what: str):
    """The stream, with a bar that counts parameters, their time left, and the memory in use."""
    total = sum(math.prod(leaf.shape) for leaf in _leaves(cfg, mesh).values())
    with progress(total, 0, what, unit=" parameters", unit_scale=True) as bar:
        for path, value in stream:
            size = value.size
            yield path, value
            del value
            bar.set_postfix(last=".".join(path), peak_gib=f"{peak_memory() / 2**30:.1f}", refresh=False)
            bar.update(size)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes (Linux: as /proc counts it)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def convert(source: str | os.PathLike, target: str | os.PathLike, mesh: Mesh, dtype: str | None = None) -> None:
    """A Hugging Face folder to a model folder, one parameter in memory at a time.

    Args:
        target: must not exist yet; it appears when it is whole.
        dtype: float32 | bfloat16; None keeps what is stored.

    Raises:
        ValueError: see `model_config` and `check_tensors`, or `target` exists.
    """
    cfg = folder_model_config(source)
    with new_folder(target) as folder:
        if jax.process_index() == 0:
            copy_small_files(source, folder)
        for path, value in _with_progress(stream_hugging_face(source, cfg, mesh, dtype), cfg, mesh, "converting"):
            ocp.save(_place(folder, path), {"value": value})
            del value


def export(source: str | os.PathLike, target: str | os.PathLike, mesh: Mesh, dtype: str | None = None) -> None:
    """A model folder back to a Hugging Face folder: names, file layout, config.json and the other files it came with.

    Args: see `convert`.

    Raises:
        ValueError: the source is not whole, or `target` exists.
    """
    cfg, values = folder_model_config(source), read_config(source)
    weight_map = stored_weight_map(source)
    dtype = dtype or _stored_dtype(source)
    with new_folder(target) as folder:
        if jax.process_index() == 0:
            copy_small_files(source, folder)
        stream = _with_progress(stream_model_folder(source, cfg, mesh, dtype), cfg, mesh, "exporting")
        write_safetensors(folder, stream, values, cfg, mesh, dtype, weight_map)


def stored_weight_map(folder: str | os.PathLike) -> dict[str, str] | None:
    """tensor -> file, as the index of a folder has it; None without an index."""
    index = pathlib.Path(folder) / INDEX
    return read_json(index).get("weight_map") if index.is_file() else None


def write_safetensors(
    folder: pathlib.Path,
    stream: Iterator[tuple[Path, jax.Array]],
    values: dict[str, Any],
    cfg: ModelConfig,
    mesh: Mesh,
    dtype: str,
    weight_map: dict[str, str] | None = None,
) -> None:
    """Writes parameters as their tensors, each to its place as it comes; the memory of one layer's tensor.

    Args:
        stream: every parameter, sharded over `mesh`.
        values: of config.json; they decide the names.
        weight_map: tensor -> file; None: as few files as hold 5 GB each.
    """
    names, leaves, dtype = tensor_names(values, cfg), _leaves(cfg, mesh), jnp.dtype(dtype)
    shapes = {name: _of_one_layer(path, leaves[path])[0] for path in names for name in names[path]}
    size = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    weight_map = weight_map or fill_files(size)
    if weight_map.keys() != size.keys():
        [name, *_] = sorted(weight_map.keys() ^ size.keys())
        raise ValueError(f"{INDEX} and config.json disagree about the tensor {name}")
    writes = jax.process_index() == 0
    place = write_headers(folder, weight_map, shapes, size, dtype) if writes else {}
    if writes and set(weight_map.values()) != {"model.safetensors"}:
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(weight_map.items()))}
        atomic_write(folder / INDEX, json.dumps(index, indent=2).encode())

    for path, value in stream:
        _, transposed = _of_one_layer(path, leaves[path])
        whole = NamedSharding(mesh, P())

        def tensor_of(value, layer, path=path, transposed=transposed):
            tensor = value[layer] if path[0] == "blocks" else value
            return (tensor.T if transposed else tensor).astype(dtype)

        take = jax.jit(tensor_of, out_shardings=whole)
        for layer, name in enumerate(names[path]):
            tensor = np.asarray(take(value, np.int32(layer)).addressable_data(0))
            if writes:
                file, begin = place[name]
                with file.open("r+b") as opened:
                    opened.seek(begin)
                    opened.write(tensor.view(np.uint8).reshape(-1).data)
        del value


def copy_small_files(source: str | os.PathLike, target: pathlib.Path) -> None:
    """Everything beside the weights: configuration, tokenizer, modelling code, licence."""
    for file in pathlib.Path(source).iterdir():
        if file.is_file() and file.suffix not in WEIGHT_FILES:
            shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def new_folder(target: str | os.PathLike):
    """A folder that appears as `target` when the block is left without an error, and not at all otherwise.

    Raises:
        ValueError: `target` exists.
    """
    target = pathlib.Path(target).absolute()
    partial = target.with_name(target.name + ".partial")
    if target.exists():
        raise ValueError(f"{target} exists already; give a folder that does not")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _everybody("created")
    try:
        yield partial
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    _everybody("written")
    if first:
        partial.rename(target)
    _everybody("renamed")


def _everybody(name: str) -> None:
    multihost_utils.sync_global_devices(f"new_folder {name}")
