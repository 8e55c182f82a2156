"""Reads and strictly checks the headers of safetensors files. Also creates safetensors files whose data are written later. A
file consists of the length of the header (8 bytes), a JSON header, and the data. Orbax reads the values (folders.py) but does
not check the headers, so this module checks them."""

import fnmatch
import json
import math
import os
import pathlib
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from igpo_jax.runtime.buckets import path_of, read_range, size_of, small_files
from igpo_jax.runtime.checks import require
from igpo_jax.runtime.files import parse_json, read_json, require_file, require_plain_name, require_stored
from igpo_jax.weights.huggingface import INDEX

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER, MOST_AXES = 10**8, 64  # MOST_HEADER: bytes, the limit of the safetensors library
MAX_FILE_BYTES = 5 * 10**9  # limit if no weight_map of an original folder is given


class Stored(NamedTuple):
    """Location of a stored tensor: bytes [begin, end) of a file."""

    file: Any  # pathlib.Path, or epath.Path for a file in a bucket
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def stored_tensors(folder: str | os.PathLike) -> dict[str, Stored]:
    """Returns the location of every tensor of a Hugging Face folder, as {tensor name: location}. Reads only the headers of the
    folder's files. Raises ValueError if a file or tensor is missing, truncated or duplicated, has a wrong size, or conflicts
    with the index."""
    folder = path_of(folder)
    present = {path.name for path in folder.glob("model*.safetensors")}
    weight_map = read_weight_map(folder)
    expected = {"model.safetensors"} if weight_map is None else set(weight_map.values())
    if not present:
        all_files = "download all files of the model (hf download MODEL --local-dir DIR)"
        raise ValueError(f"{folder} has no model*.safetensors; {all_files}")
    for file in sorted(expected - present):
        raise ValueError(f"{folder / file} is missing" + (f"; {INDEX} names it" if weight_map else ""))
    for file in sorted(present - expected):
        raise ValueError(f"{folder / file} is not named by {INDEX if weight_map else 'anything; there is no ' + INDEX}")
    tensors: dict[str, Stored] = {}
    for file in sorted(expected):
        for name, stored in _read_header(folder / file).items():
            if name in tensors:
                raise ValueError(f"tensor {name} is in {tensors[name].file.name} and in {file}")
            if weight_map is not None and weight_map.get(name) != file:
                raise ValueError(f"{folder / INDEX} places {name} in {weight_map.get(name)}, but it is in {file}")
            tensors[name] = stored
    for name, file in sorted((weight_map or {}).items()):
        if name not in tensors:
            raise ValueError(f"{folder / file} has no tensor {name}; {INDEX} places it there")
    return tensors


def read_weight_map(folder: str | os.PathLike) -> dict[str, str] | None:
    """Returns {tensor name: file name} from the index of a folder, or None if the folder has no index. Raises ValueError if a
    file name does not have the form model*.safetensors, or if it contains a path to another folder. The check is needed because
    an export creates files with these names."""
    index = small_files(folder) / INDEX
    if not index.is_file():
        return None
    weight_map: Any = read_json(index).get("weight_map")
    names = [*weight_map, *weight_map.values()] if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError(f"{index}: weight_map does not map tensors to files")
    for file in sorted(set(weight_map.values())):
        require_plain_name(file, index)
        require(fnmatch.fnmatchcase(file, "model*.safetensors"), f"{index}: {file[:100]} is not named model*.safetensors")
    return weight_map


def _read_header(file: pathlib.Path) -> dict[str, Stored]:
    def fail(reason: str) -> NoReturn:
        raise ValueError(f"{file}: {reason}")

    require_file(file)
    size = size_of(file)
    length = int.from_bytes(read_range(file, 0, 8), "little")
    if size < 8 or 8 + length > size:
        fail(f"cut short, or not a safetensors file: {size} bytes, the header would take {8 + length}")
    if length > MOST_HEADER:
        fail(f"a header of {length} bytes; the format allows {MOST_HEADER}")
    if isinstance(file, pathlib.Path):
        require_stored(file)
    header = parse_json(read_range(file, 8, 8 + length), f"{file}: the header")
    if not isinstance(header, dict):
        fail("the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors: dict[str, Stored] = {}
    end = data = 8 + length
    for name, entry in header.items():
        if not name.isprintable():
            fail(f"{name!r} is no name of a tensor")
        entry = entry if isinstance(entry, dict) else {}
        shape: Any = entry.get("shape")
        offsets: Any = entry.get("data_offsets")
        numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
        if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(offsets) != 2 or len(shape) > MOST_AXES:
            fail(f"tensor {name}: shape {repr(shape)[:100]} and data_offsets {repr(offsets)[:100]} are not lists of sizes")
        if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
            fail(f"tensor {name}: dtype {entry.get('dtype')!r} is none of {', '.join(DTYPES)}")
        dtype = DTYPES[entry["dtype"]]
        if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
            fail(f"tensor {name}: {entry['dtype']} {shape} does not fill bytes {offsets[0]} to {offsets[1]}")
        tensors[name] = Stored(file, dtype, tuple(shape), data + offsets[0], data + offsets[1])
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].begin):
        if stored.begin != end:
            fail(f"tensor {name} begins at byte {stored.begin}, the one before it ends at {end}")
        end = stored.end
    if end != size:
        fail(f"{'cut short' if size < end else 'too long'}: {size} bytes, the header says {end}")
    return tensors


def fill_files(size: dict[str, int]) -> dict[str, str]:
    """Distributes tensors in order over files of at most `MAX_FILE_BYTES`. Takes {tensor name: size in bytes} and returns
    {tensor name: file name}."""
    numbers: dict[str, int] = {}
    number, filled = 1, 0
    for name, bytes_ in size.items():
        if filled and filled + bytes_ > MAX_FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + bytes_
    if number == 1:
        return dict.fromkeys(size, "model.safetensors")
    return {name: f"model-{n:05}-of-{number:05}.safetensors" for name, n in numbers.items()}


def write_headers(
    folder: pathlib.Path, weight_map: dict[str, str], shapes: dict[str, tuple[int, ...]], dtype: np.dtype
) -> dict[str, tuple[pathlib.Path, int]]:
    """Creates every safetensors file with its header and its full size. The data of the tensors must be written later. Returns
    {tensor name: (file, offset in bytes of the tensor's data)}."""
    place = {}
    for file in sorted(set(weight_map.values())):
        header: dict[str, Any] = {}
        end = 0
        for name in sorted(name for name in shapes if weight_map[name] == file):
            begin, end = end, end + math.prod(shapes[name]) * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shapes[name], "data_offsets": [begin, end]}
        encoded = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # aligns the data for programs that map the file into memory
        with (folder / file).open("wb") as opened:
            opened.write(len(encoded).to_bytes(8, "little") + encoded)
            opened.truncate(8 + len(encoded) + end)
        place |= {name: (folder / file, 8 + len(encoded) + entry["data_offsets"][0]) for name, entry in header.items()}
    return place
