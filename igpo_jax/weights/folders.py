"""Reads and writes weights (docs/method.md section 3).

A Hugging Face folder has config.json and safetensors files. A model folder is this project's own format. It has the same files,
except that a folder params/ with one Orbax checkpoint per parameter takes the place of the weight files. Parameters are sharded
over the mesh and processed one at a time. Therefore a conversion holds only one parameter (all layers stacked) and one layer's
tensor in memory."""

import contextlib
import functools
import json
import math
import os
import pathlib
import resource
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from igpo_jax.model import int8
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig, abstract, abstract_base, parameter_table
from igpo_jax.runtime.bucket_folders import address_of
from igpo_jax.runtime.buckets import all_files, is_address, is_folder, path_of, sizes_in, small_files
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import (
    atomic_write,
    first_line,
    folder_size,
    named_errors,
    read_json,
    require_links_inside,
    require_plausible,
    wrap_read_errors,
)
from igpo_jax.runtime.mesh import AXES
from igpo_jax.runtime.orbax_files import check_chunks, check_whole_files, remove_paths
from igpo_jax.runtime.progress import progress
from igpo_jax.tokenizers import special_tokens
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.huggingface import (
    INDEX,
    Path,
    folder_model_config,
    head_name,
    model_config,
    read_model_json,
    tensor_names,
)
from igpo_jax.weights.new_folders import ORIGIN, check_link, copy_small_files, new_folder
from igpo_jax.weights.safetensors_files import DTYPE_NAMES, Stored, fill_files, read_weight_map, stored_tensors, write_headers

Stream = Iterator[tuple[Path, jax.Array]]  # (path of a parameter, its value)


class Layout(NamedTuple):
    """Layout of a parameter and of its tensors in Hugging Face's files. A parameter has one tensor, or one per layer."""

    leaf: jax.ShapeDtypeStruct  # shape, dtype and sharding of the parameter
    names: list[str]
    shape: tuple[int, ...]  # of each tensor
    transposed: bool


def _leaves(cfg: ModelConfig, mesh: Mesh) -> dict[Path, jax.ShapeDtypeStruct]:
    return dict(sorted(flatten_dict(abstract(cfg, mesh)).items()))


def _layouts(values: dict[str, Any], cfg: ModelConfig, mesh: Mesh, stores_head: bool) -> dict[Path, Layout]:
    names, layouts = tensor_names(values, cfg), {}
    if stores_head:
        names[("embedding",)].append(head_name(values))
    for path, leaf in _leaves(cfg, mesh).items():
        shape = leaf.shape[1:] if path[0] == "blocks" else leaf.shape
        transposed = len(shape) == 2 and path != ("embedding",)
        layouts[path] = Layout(leaf, names[path], shape[::-1] if transposed else shape, transposed)
    return layouts


def is_model_folder(folder: str | os.PathLike) -> bool:
    """Returns whether a folder, which may be in a bucket, is a model folder and not a Hugging Face folder. Raises ValueError if
    it has the weights of both, because they may be two models."""
    if not is_folder(path_of(folder) / "params"):
        return False
    for file in path_of(folder).glob("model*.safetensors"):
        raise ValueError(f"{folder} has weights in params and in {file.name}, maybe of two models; remove one of them")
    return True


def stores_tied_head(folder: str | os.PathLike, values: dict[str, Any], cfg: ModelConfig) -> bool:
    """Returns whether the weight files of a Hugging Face folder contain a second copy of the embedding as the output head. For
    a model folder, returns whether the Hugging Face folder from which it was converted contained this copy. transformers writes
    the copy for some models with a tied head. `values` is the content of config.json."""
    if not cfg.tied_head:
        return False
    if is_model_folder(folder):
        origin = small_files(folder) / ORIGIN
        return origin.is_file() and read_json(origin).get("stores_tied_head") is True
    return head_name(values) in stored_tensors(folder)


def _turn(tensor: jax.Array, transposed: bool, dtype: np.dtype) -> jax.Array:
    return (tensor.T if transposed else tensor).astype(dtype)


def check_tensors(folder: str | os.PathLike, values: dict[str, Any], cfg: ModelConfig, mesh: Mesh) -> dict[str, Stored]:
    """Returns the locations of all tensors of a Hugging Face folder, as found by `stored_tensors`. Raises ValueError if names
    or shapes do not match config.json, or if the tensors have different dtypes."""
    stored = stored_tensors(folder)
    layouts = _layouts(values, cfg, mesh, cfg.tied_head and head_name(values) in stored)
    wanted = {name: layout.shape for layout in layouts.values() for name in layout.names}
    missing, unexpected = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    for message, names in (("lacks", missing), ("has tensors that config.json has no place for:", unexpected)):
        require(not names, f"{folder} {message} {_first_names(names)}")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise ValueError(f"{stored[name].file}: tensor {name} has shape {stored[name].shape}, config.json asks for {shape}")
    _require_one_dtype(folder, "tensor", {name: tensor.dtype for name, tensor in stored.items()})
    return stored


def _require_one_dtype(folder: str | os.PathLike, kind: str, dtypes: dict[str, np.dtype]) -> None:
    """Raises ValueError if the values of `dtypes`, {name of a tensor or parameter: dtype}, differ."""
    names = {dtype: name for name, dtype in dtypes.items()}
    if len(names) > 1:
        (one, name), (other, another) = list(names.items())[:2]
        raise ValueError(f"{folder}: {kind} {name} is {one}, {kind} {another} is {other}; all must have one dtype")


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_tensor(stored: Stored, name: str, mesh: Mesh) -> jax.Array:
    """Reads a tensor with its rows sharded over all devices, or over fewer mesh axes if the rows cannot be divided evenly. With
    this sharding, each process reads one range of bytes. With the parameter's own sharding, Orbax would read thousands of
    pieces, and every host would read the whole tensor."""
    candidates = (AXES, AXES[1:], AXES[2:])
    divides = (axes for axes in candidates if stored.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0)
    sharding = NamedSharding(mesh, P(next(divides, None)))
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    # The file may have been replaced since its header was checked.
    with context, wrap_read_errors(stored.file), named_errors(stored.file):
        return ocp.load(stored.file, {name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)})[name]


def stream_hugging_face(
    folder: str | os.PathLike,
    cfg: ModelConfig,
    mesh: Mesh,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    values: dict[str, Any] | None = None,
) -> Stream:
    """Checks a Hugging Face folder and yields its parameters as sharded arrays. Their dtype is `dtype`, or the stored dtype if
    `dtype` is None. `values` replaces the content of config.json. Raises ValueError at the first tensor with NaN or infinite
    values, unless `allow_nonfinite` is True."""
    values = values or read_model_json(folder)
    stored = check_tensors(folder, values, cfg, mesh)
    out_dtype = jnp.dtype(dtype or next(iter(stored.values())).dtype)

    def read(name: str) -> jax.Array:
        tensor = _read_tensor(stored[name], name, mesh)
        check_finite(tensor, f"{stored[name].file}, tensor {name}", allow_nonfinite)
        if jnp.finfo(out_dtype).max < jnp.finfo(tensor.dtype).max:  # the cast may overflow
            check_finite(tensor.astype(out_dtype), f"{stored[name].file}, tensor {name} as {out_dtype}", allow_nonfinite)
        return tensor

    for path, (leaf, names, _, transposed) in _layouts(
        values, cfg, mesh, cfg.tied_head and head_name(values) in stored
    ).items():
        turn = functools.partial(_turn, transposed=transposed, dtype=out_dtype)
        if path[0] == "blocks":

            def insert(stack, tensor, layer, turn=turn):
                return jax.lax.dynamic_update_index_in_dim(stack, turn(tensor), layer, 0)

            # Layers are written in place, so that the stacked parameter never exists twice. On CPUs, .at[].set() would copy it.
            insert_layer = jax.jit(insert, donate_argnums=0, out_shardings=leaf.sharding)
            value = jax.jit(functools.partial(jnp.zeros, leaf.shape, out_dtype), out_shardings=leaf.sharding)()
            for layer, name in enumerate(names):
                value = insert_layer(value, read(name), np.int32(layer))
                jax.block_until_ready(value)  # else tensors of many layers would queue in memory
        else:
            value = read(names[0])
            for name in names[1:]:
                differs = f"{stored[name].file}: {name} differs from {names[0]}, but config.json says that they are tied"
                require(bool((read(name) == value).all()), differs)
            if transposed or value.dtype != out_dtype or not value.sharding.is_equivalent_to(leaf.sharding, value.ndim):
                value = jax.jit(turn, out_shardings=leaf.sharding)(value)
        yield path, value
        del value  # frees its memory before the next one is allocated


def stream_model_folder(
    folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, dtype: str | None = None, allow_nonfinite: bool = False
) -> Stream:
    """Checks a model folder, see `_check_parameters`, and yields its parameters as sharded arrays. Their dtype is `dtype`, or
    the stored dtype if `dtype` is None. Raises ValueError at the first parameter with NaN or infinite values, unless
    `allow_nonfinite` is True."""
    stored = _check_parameters(folder, cfg, mesh)
    out_dtype = jnp.dtype(dtype or stored)
    for path, leaf in _leaves(cfg, mesh).items():
        place = _place(folder, path)
        with _one_line_errors(place):
            wanted = jax.ShapeDtypeStruct(leaf.shape, out_dtype, sharding=leaf.sharding)
            value = ocp.load(place, {"value": wanted})["value"]
        check_finite(value, str(place), allow_nonfinite)
        yield path, value
        del value  # frees its memory before the next one is read


def _check_parameters(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh) -> np.dtype:
    """Returns the stored dtype of the parameters of a model folder. Reads only their metadata. Raises ValueError if a parameter
    is missing, cannot be read, or has another shape than config.json asks for, or if the parameters have different dtypes or a
    dtype that is not in `DTYPE_NAMES`. Also raises ValueError if the folder has parameters that config.json does not ask for,
    because a model without them would compute something else."""
    leaves, dtypes = _leaves(cfg, mesh), {}
    stored = {place.name for place in (path_of(folder) / "params").iterdir() if place.is_dir()}
    unexpected = sorted(stored - {".".join(path) for path in leaves})
    require(not unexpected, f"{folder} has parameters that config.json has no place for: {_first_names(unexpected)}")
    for path, leaf in leaves.items():
        place = _place(folder, path)
        with _one_line_errors(place):
            saved = _metadata(place)
            check_chunks(saved)
            require(saved.dtype in DTYPE_NAMES, f"it has dtype {saved.dtype}; only {', '.join(map(str, DTYPE_NAMES))} are read")
            if saved.shape != leaf.shape:
                raise ValueError(f"it has shape {saved.shape}, config.json asks for {leaf.shape}")
            require_plausible(place, math.prod(leaf.shape) * saved.dtype.itemsize, _stored_bytes(place))
        dtypes[".".join(path)] = saved.dtype
    _require_one_dtype(folder, "parameter", dtypes)
    return next(iter(dtypes.values()))


def _place(folder: str | os.PathLike, path: Path) -> Any:
    place = path_of(folder) / "params" / ".".join(path)
    return place.absolute() if isinstance(place, pathlib.Path) else place


def _metadata(place: Any) -> Any:
    """Returns Orbax's metadata of the parameter in the folder `place`, after checking the files that Orbax would read. Raises
    ValueError if a file is a named pipe, which would block the reader, or if `check_whole_files` rejects a file."""
    for file in place.rglob("*") if isinstance(place, pathlib.Path) else ():
        require(file.is_file() or file.is_dir(), f"{file} is neither a file nor a folder")
    check_whole_files(all_files(place))
    return ocp.metadata(place).metadata["value"]


def _stored_bytes(place: Any) -> int:
    return folder_size(place) if isinstance(place, pathlib.Path) else sum(sizes_in(str(place)).values())


@contextlib.contextmanager
def _one_line_errors(place: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file may make Orbax raise anything
        raise ValueError(f"{place} cannot be read: {first_line(error) or type(error).__name__}") from None


def load_params(folder: str | os.PathLike, cfg: ModelConfig, mesh: Mesh, allow_nonfinite: bool = False) -> Params:
    """Loads all parameters of a Hugging Face or model folder. The parameters have the dtype `cfg.param_dtype` and are sharded
    over the mesh. If `cfg.base_dtype` is set, the matrices are quantized from the stored values, one parameter at a time.
    Raises ValueError if the folder is incomplete, or if values are NaN or infinite and `allow_nonfinite` is False. The message
    names the file or tensor."""
    stream = stream_model_folder if is_model_folder(folder) else stream_hugging_face
    params = stream(folder, cfg, mesh, None if cfg.base_dtype else cfg.param_dtype, allow_nonfinite)
    params = _with_progress(params, cfg, mesh, "loading")
    return unflatten_dict(dict(_quantized(params, cfg, mesh) if cfg.base_dtype else params))


def _quantized(stream: Stream, cfg: ModelConfig, mesh: Mesh) -> Iterator[tuple[Path, jax.Array | int8.Int8Matrix]]:
    """Yields the parameters of a stream. Quantizes the matrices, and casts the norm scales and biases to `cfg.param_dtype`."""
    leaves, axes = flatten_dict(abstract_base(cfg, mesh)), flatten_dict(parameter_table(cfg))
    for path, value in stream:
        leaf = leaves[path]
        if isinstance(leaf, int8.Int8Matrix):
            shardings = jax.tree.map(lambda x: x.sharding, leaf)
            result = jax.jit(int8.quantize, static_argnums=1, out_shardings=shardings)(value, int8.summed_axis(axes[path].axes))
        else:
            result = value.astype(leaf.dtype)
        jax.block_until_ready(result)  # else the unquantized matrices would queue in memory
        del value
        yield path, result
        del result


def _with_progress(stream: Stream, cfg: ModelConfig, mesh: Mesh, description: str) -> Stream:
    """Yields the parameters of a stream, and shows a progress bar with the remaining time and the peak memory."""
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


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    mesh: Mesh,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    start: dict[str, Any] | None = None,
) -> None:
    """Converts a Hugging Face folder to a model folder. `dtype` is float32, bfloat16, or None for the stored dtype. The folder
    `target` appears only when it is complete. Raises ValueError if `target` exists, or if `model_config`, `check_tensors`,
    `check_link` or `check_finite` rejects the source. With `allow_nonfinite`, `check_finite` warns instead. If the source is an
    autoregressive model from which the training of a masked diffusion model starts, `start` is the content of config.json for
    the masked diffusion model, see `masked_config`."""
    values = start or read_model_json(source)
    cfg = model_config(values, special=special_tokens(small_files(source))) if start else folder_model_config(source)
    for file in sorted(path_of(source).glob("model*.safetensors")) if not is_address(source) else ():
        check_link(file)
    with new_folder(target) as folder:
        copy_small_files(source, folder)
        if jax.process_index() == 0:
            if start:
                atomic_write(folder / "config.json", json.dumps(start, indent=2))
            origin: dict[str, Any] = {"source": original_name(source)}
            if stores_tied_head(source, values, cfg):
                origin["stores_tied_head"] = True
            atomic_write(folder / ORIGIN, json.dumps(origin))
        stream = stream_hugging_face(source, cfg, mesh, dtype, allow_nonfinite, values)
        for path, value in _with_progress(stream, cfg, mesh, "converting"):
            ocp.save(_place(address_of(folder), path), {"value": value})
            del value
        if jax.process_index() == 0:
            remove_paths(folder / "params")


def export(
    source: str | os.PathLike, target: str | os.PathLike, mesh: Mesh, dtype: str | None = None, allow_nonfinite: bool = False
) -> None:
    """Converts a model folder to a Hugging Face folder. The arguments are those of `convert`, except `start`. The folder
    `target` appears only when it is complete. Raises ValueError if `target` exists, if a parameter cannot be read, if a link
    leads out of the model folder, or if `check_finite` rejects a value. With `allow_nonfinite`, `check_finite` warns
    instead."""
    cfg, values = folder_model_config(source), read_model_json(source)
    if not is_address(source):
        check_link(path_of(source) / "params")
        require_links_inside(path_of(source) / "params")
    dtype = dtype or _check_parameters(source, cfg, mesh).name
    with new_folder(target) as folder:
        copy_small_files(source, folder)
        stream = stream_model_folder(source, cfg, mesh, dtype, allow_nonfinite)
        stream = _with_progress(stream, cfg, mesh, "exporting")
        write_safetensors(folder, stream, values, cfg, mesh, dtype, *weight_names(source, values, cfg))


def original_name(folder: str | os.PathLike) -> str:
    """Returns the place of the original model: a name or path under which Hugging Face's libraries find it, or an address in a
    bucket. For a Hugging Face folder, this is the model's name on the hub if the folder is in the local cache of the hub, the
    address if the folder is in a bucket, and otherwise the absolute path of the folder. For a model folder, it is the place of
    the Hugging Face folder that was converted. Returns "" for model folders of earlier versions of this project, because these
    folders do not record the place."""
    origin = small_files(folder) / ORIGIN
    if origin.is_file():
        source = read_json(origin).get("source")
        return source if isinstance(source, str) and source.isprintable() else ""
    if is_model_folder(folder):
        return ""
    if is_address(folder):
        return os.fspath(folder)
    folder = path_of(folder).absolute()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return str(folder)


def weight_names(folder: str | os.PathLike, values: dict[str, Any], cfg: ModelConfig) -> tuple[dict[str, str] | None, bool]:
    """Returns the arguments `weight_map` and `stores_head` of `write_safetensors` with which the written folder has the tensor
    names and the division into files of the original Hugging Face folder. The original is `folder` itself, or the folder from
    which `folder` was converted. `weight_map` is {tensor name: file name}, or None if the original has no index. `stores_head`
    says whether the original also stores the embedding as the output head. The argument `values` is the content of
    config.json."""
    return read_weight_map(folder), stores_tied_head(folder, values, cfg)


def write_safetensors(
    folder: pathlib.Path,
    stream: Stream,
    values: dict[str, Any],
    cfg: ModelConfig,
    mesh: Mesh,
    dtype: str,
    weight_map: dict[str, str] | None = None,
    stores_head: bool = False,
) -> None:
    """Writes all parameters in Hugging Face's layout, with one layer's tensor in memory at a time. `values` is the content of
    config.json, which names the architecture and thereby determines the names of the tensors. `weight_map` is {tensor name:
    file name}. If `weight_map` is None, each file has at most 5 GB. If `stores_head` is True, also writes the embedding a
    second time as the output head, see `stores_tied_head`."""
    layouts, out_dtype = _layouts(values, cfg, mesh, stores_head), jnp.dtype(dtype)
    shapes = {name: layout.shape for layout in layouts.values() for name in layout.names}
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
        layout = layouts[path]

        def take(value, layer, path=path, transposed=layout.transposed):
            return _turn(value[layer] if path[0] == "blocks" else value, transposed, out_dtype)

        take_layer = jax.jit(take, out_shardings=NamedSharding(mesh, P()))
        for layer, name in enumerate(layout.names):
            tensor = np.asarray(take_layer(value, np.int32(layer)).addressable_data(0))
            if writes:
                file, begin = place[name]
                with file.open("r+b") as opened:
                    opened.seek(begin)
                    opened.write(tensor.view(np.uint8).reshape(-1).data)
        del value
