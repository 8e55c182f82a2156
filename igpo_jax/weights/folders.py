"""Reads and writes weights of LLaDA and iLLaDA (docs/method.md section 3).

A Hugging Face folder has config.json and safetensors files. A model folder is this project's: the same small files, and
params/ with one Orbax checkpoint per parameter. Parameters are streamed: memory holds one stacked parameter and one layer's
tensor, sharded over the mesh, and no two processes read the same bytes.
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
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, abstract
from igpo_jax.runtime.files import atomic_write, read_json
from igpo_jax.runtime.mesh import AXES
from igpo_jax.runtime.progress import progress
from igpo_jax.weights.huggingface import INDEX, Path, folder_model_config, read_model_json, tensor_names
from igpo_jax.weights.safetensors_files import Stored, fill_files, stored_tensors, write_headers

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")

Stream = Iterator[tuple[Path, jax.Array]]  # (path of a parameter, its value)


def _leaves(cfg: ModelConfig, mesh: Mesh) -> dict[Path, jax.ShapeDtypeStruct]:
    """Returns shape, dtype and sharding of every parameter, sorted by path."""
    return dict(sorted(flatten_dict(abstract(cfg, mesh)).items()))


def _tensor_layout(path: Path, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], bool]:
    """Returns (shape, is it transposed?) of a parameter's tensors in Hugging Face's layout."""
    shape = leaf.shape[1:] if path[0] == "blocks" else leaf.shape
    transposed = len(shape) == 2 and path != ("embedding",)
    return (shape[::-1], True) if transposed else (shape, False)


def check_tensors(folder: str | os.PathLike, values: dict[str, Any], cfg: ModelConfig, mesh: Mesh) -> dict[str, Stored]:
    """Returns `stored_tensors` after comparing names and shapes with the network.

    Raises:
        ValueError: tensors are missing, unexpected, mis-shaped, or of different dtypes.
    """
    stored, leaves = stored_tensors(folder), _leaves(cfg, mesh)
    names_of = tensor_names(values, cfg)
    wanted = {name: _tensor_layout(path, leaves[path])[0] for path in names_of for name in names_of[path]}
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
            raise ValueError(f"{stored[name].file}: tensor {name} has shape {stored[name].shape}, config.json asks for {shape}")
    dtypes = {tensor.dtype: name for name, tensor in stored.items()}
    if len(dtypes) > 1:
        (one, name), (other, another) = list(dtypes.items())[:2]
        raise ValueError(f"{folder}: tensor {name} is {one}, tensor {another} is {other}; all must have one dtype")
    return stored


def _read_tensor(stored: Stored, name: str, mesh: Mesh) -> jax.Array:
    """Reads a tensor with its rows sharded over all devices, so that each process reads one range of bytes, none twice.

    In the parameter's own sharding it would be read in thousands of pieces, and Orbax would read all of it on all hosts.
    """
    candidates = (AXES, AXES[1:], AXES[2:])
    divides = (axes for axes in candidates if stored.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0)
    sharding = NamedSharding(mesh, P(next(divides, None)))
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    with context:
        return ocp.load(stored.file, {name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)})[name]


def stream_hugging_face(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None) -> Stream:
    """Yields every parameter of a Hugging Face folder, sharded, in `dtype` (None: as stored).

    Raises:
        ValueError: see `check_tensors`; before the first parameter is read.
    """
    values = read_model_json(folder)
    stored, names = check_tensors(folder, values, cfg, mesh), tensor_names(values, cfg)
    out_dtype = jnp.dtype(dtype or next(iter(stored.values())).dtype)
    for path, leaf in _leaves(cfg, mesh).items():
        _, transposed = _tensor_layout(path, leaf)

        def place(tensor, transposed=transposed):
            return (tensor.T if transposed else tensor).astype(out_dtype)

        if path[0] != "blocks":
            [name] = names[path]
            value = _read_tensor(stored[name], name, mesh)
            if transposed or value.dtype != out_dtype or not value.sharding.is_equivalent_to(leaf.sharding, value.ndim):
                value = jax.jit(place, out_shardings=leaf.sharding)(value)
            yield path, value
            del value
            continue
        # Layers are written in place, so that the stacked parameter never exists twice.
        insert = jax.jit(
            # .at[].set() would copy the whole stack on CPUs.
            lambda stack, tensor, layer: jax.lax.dynamic_update_index_in_dim(stack, place(tensor), layer, 0),
            donate_argnums=0,
            out_shardings=leaf.sharding,
        )
        stack = jax.jit(functools.partial(jnp.zeros, leaf.shape, out_dtype), out_shardings=leaf.sharding)()
        for layer, name in enumerate(names[path]):
            stack = insert(stack, _read_tensor(stored[name], name, mesh), np.int32(layer))
            jax.block_until_ready(stack)  # else tensors of many layers would queue in memory
        yield path, stack
        del stack  # frees it before the next one is allocated


def stream_model_folder(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None) -> Stream:
    """Yields every parameter of a model folder, as `stream_hugging_face`."""
    for path, leaf in _leaves(cfg, mesh).items():
        place = _place(folder, path)
        with _one_line_errors(place):
            saved = ocp.metadata(place).metadata["value"]
            if saved.shape != leaf.shape:
                raise ValueError(f"it has shape {saved.shape}, config.json asks for {leaf.shape}")
            wanted = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype or saved.dtype), sharding=leaf.sharding)
            value = ocp.load(place, {"value": wanted})["value"]
        yield path, value
        del value  # frees it before the next one is read


def _place(folder: str | os.PathLike, path: Path) -> pathlib.Path:
    return pathlib.Path(folder).absolute() / "params" / ".".join(path)


def _stored_dtype(folder: str | os.PathLike) -> str:
    place = _place(folder, ("embedding",))
    with _one_line_errors(place):
        return ocp.metadata(place).metadata["value"].dtype.name


@contextlib.contextmanager
def _one_line_errors(place: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file may make Orbax raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{place} cannot be read: {reason[:300]}") from None


def load_params(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh) -> Params:
    """Loads all parameters of a Hugging Face or model folder in `cfg.param_dtype`, sharded over the mesh.

    Raises:
        ValueError: an incomplete folder; the message names the file or tensor.
    """
    stream = stream_model_folder if (pathlib.Path(folder) / "params").is_dir() else stream_hugging_face
    return unflatten_dict(dict(_with_progress(stream(folder, cfg, mesh, cfg.param_dtype), cfg, mesh, "loading")))


def _with_progress(stream: Stream, cfg: ModelConfig, mesh: Mesh, description: str) -> Stream:
    """Shows a bar that counts parameters, with remaining time and peak memory."""
    total = sum(math.prod(leaf.shape) for leaf in _leaves(cfg, mesh).values())
    with progress(total, 0, description, unit=" parameters", unit_scale=True) as bar:
        for path, value in stream:
            size = value.size
            yield path, value
            del value
            bar.set_postfix(last=".".join(path), peak_gib=f"{peak_memory() / 2**30:.1f}", refresh=False)
            bar.update(size)


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def convert(source: str | os.PathLike, target: str | os.PathLike, mesh: Mesh, dtype: str | None = None) -> None:
    """Converts a Hugging Face folder to a model folder, one parameter in memory at a time.

    Args:
        target: must not exist; appears when complete.
        dtype: float32 | bfloat16; None: as stored.

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
    """Converts a model folder back to a Hugging Face folder with the original names, file layout and small files.

    Takes the arguments of `convert`.

    Raises:
        ValueError: the source is incomplete, or `target` exists.
    """
    cfg, values = folder_model_config(source), read_model_json(source)
    dtype = dtype or _stored_dtype(source)
    with new_folder(target) as folder:
        if jax.process_index() == 0:
            copy_small_files(source, folder)
        stream = _with_progress(stream_model_folder(source, cfg, mesh, dtype), cfg, mesh, "exporting")
        write_safetensors(folder, stream, values, cfg, mesh, dtype, stored_weight_map(source))


def stored_weight_map(folder: str | os.PathLike) -> dict[str, str] | None:
    """Returns tensor -> file by a folder's index; None without an index."""
    index = pathlib.Path(folder) / INDEX
    return read_json(index).get("weight_map") if index.is_file() else None


def write_safetensors(
    folder: pathlib.Path,
    stream: Stream,
    values: dict[str, Any],
    cfg: ModelConfig,
    mesh: Mesh,
    dtype: str,
    weight_map: dict[str, str] | None = None,
) -> None:
    """Writes a stream of parameters in Hugging Face's layout, one layer's tensor in memory at a time.

    Args:
        stream: every parameter, sharded over `mesh`.
        values: of config.json, whose architecture decides the tensors' names.
        weight_map: tensor -> file; None: as few files as hold 5 GB each.
    """
    names, leaves, out_dtype = tensor_names(values, cfg), _leaves(cfg, mesh), jnp.dtype(dtype)
    shapes = {name: _tensor_layout(path, leaves[path])[0] for path in names for name in names[path]}
    size = {name: math.prod(shape) * out_dtype.itemsize for name, shape in shapes.items()}
    weight_map = weight_map or fill_files(size)
    if weight_map.keys() != size.keys():
        [name, *_] = sorted(weight_map.keys() ^ size.keys())
        raise ValueError(f"{INDEX} and config.json disagree about the tensor {name}")
    writes = jax.process_index() == 0
    place = write_headers(folder, weight_map, shapes, out_dtype) if writes else {}
    if writes and set(weight_map.values()) != {"model.safetensors"}:
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(weight_map.items()))}
        atomic_write(folder / INDEX, json.dumps(index, indent=2).encode())
    for path, value in stream:
        _, transposed = _tensor_layout(path, leaves[path])

        def take_layer(value, layer, path=path, transposed=transposed):
            tensor = value[layer] if path[0] == "blocks" else value
            return (tensor.T if transposed else tensor).astype(out_dtype)

        take = jax.jit(take_layer, out_shardings=NamedSharding(mesh, P()))
        for layer, name in enumerate(names[path]):
            tensor = np.asarray(take(value, np.int32(layer)).addressable_data(0))
            if writes:
                file, begin = place[name]
                with file.open("r+b") as opened:
                    opened.seek(begin)
                    opened.write(tensor.view(np.uint8).reshape(-1).data)
        del value


def copy_small_files(source: str | os.PathLike, target: pathlib.Path) -> None:
    """Copies all files but the weights: configuration, tokenizer, modeling code, license."""
    for file in pathlib.Path(source).iterdir():
        if file.is_file() and file.suffix not in WEIGHT_FILES:
            shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that becomes `target` if the body ends without an error, and is deleted otherwise.

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
    multihost_utils.sync_global_devices("new_folder created")
    try:
        yield partial
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    multihost_utils.sync_global_devices("new_folder written")
    if first:
        partial.rename(target)
    multihost_utils.sync_global_devices("new_folder renamed")
