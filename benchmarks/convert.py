"""Time and peak memory of converting a checkpoint of LLaDA-8B's shape and exporting it again.

    python benchmarks/convert.py --folder=SCRATCH [--layout=base|1.5] [--layers=32]

Writes an 8B-shaped Hugging Face folder of random bfloat16 numbers (16 GB) into SCRATCH, in the file layout of
LLaDA-8B-Base and -Instruct (grouped by kind) or of LLaDA-1.5 (in order of layers), converts it, exports the result and
compares it with the original, byte by byte. Needs 48 GB of disk. Each part runs in its own process, so that its peak memory can
be measured. Reading speed depends on the disk, so the baseline of the times is copying the same files.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np

from igpo_jax.families import LLADA
from igpo_jax.run.results import environment
from igpo_jax.weights.huggingface import INDEX
from igpo_jax.weights.safetensors_files import stored_tensors

WIDTH, MLP, VOCABULARY = 4096, 12288, 126464
CONFIG = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
    "d_model": WIDTH, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": MLP, "vocab_size": VOCABULARY,
    "embedding_size": VOCABULARY, "mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081,
    "rope": True, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "weight_tying": False, "max_sequence_length": 4096,
}  # fmt: skip
# Kinds of tensors that share a file in the layout of LLaDA-8B-Base, roughly as published.
BY_KIND = [("attention_out", "embedding", "final_norm"), ("down", "head"), ("attention_norm", "mlp_norm", "query", "key"),
           ("value", "gate"), ("up",)]  # fmt: skip


def tensors(layers: int) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Returns name -> (kind, layer, shape)."""
    square, wide = (WIDTH, WIDTH), (MLP, WIDTH)
    shapes = dict(attention_norm=(WIDTH,), query=square, key=square, value=square, attention_out=square,
                  mlp_norm=(WIDTH,), gate=wide, up=wide, down=wide[::-1])  # fmt: skip
    found = {}
    for path, template in LLADA.tensors.items():
        kind = path[-1]
        if path[0] == "blocks":
            found |= {template.format(i): (kind, i, shapes[kind]) for i in range(layers)}
        else:
            shape = (WIDTH,) if kind == "final_norm" else (VOCABULARY, WIDTH)
            found[template] = (kind, layers if kind != "embedding" else -1, shape)
    return found


def write_folder(folder: pathlib.Path, layout: str, layers: int) -> None:
    """Writes tensors of real shapes; the values are one random block of 64 MB, from another offset for every tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"n_layers": layers}), encoding="utf-8")
    found, files = tensors(layers), {}
    if layout == "base":
        for number, kinds in enumerate(BY_KIND):
            files |= {name: number for name, (kind, *_) in found.items() if kind in kinds}
    else:
        order = sorted(found, key=lambda name: found[name][1])
        files = {name: position * 6 // len(order) for position, name in enumerate(order)}
    number_of_files = max(files.values()) + 1
    weight_map = {name: f"model-{n + 1:05}-of-{number_of_files:05}.safetensors" for name, n in files.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    bits = np.random.default_rng(0).integers(0, 1 << 16, 1 << 25, dtype=np.uint16)
    bits = (bits & 0x81FF) | 0x3C00  # moderate magnitudes: neither infinite nor denormal
    for file in sorted(set(weight_map.values())):
        header, end = {}, 0
        names = [name for name in found if weight_map[name] == file]
        for name in names:
            size = 2 * int(np.prod(found[name][2]))
            header[name] = {"dtype": "BF16", "shape": found[name][2], "data_offsets": [end, end + size]}
            end += size
        encoded = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(encoded).to_bytes(8, "little") + encoded)
            for position, name in enumerate(names):
                left, begin = int(np.prod(found[name][2])), position * 7919
                while left:
                    part = bits[begin : begin + left]
                    opened.write(part.data)
                    left, begin = left - part.size, 0


def run(*command: str) -> dict[str, float]:
    """Runs igpo_jax.convert; returns its seconds and peak resident memory, GiB."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "igpo_jax.convert", *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: igpo_jax.convert {' '.join(command)} failed")
    return {"seconds": round(time.perf_counter() - begin, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def differing(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the tensors whose name, file, dtype, shape or bytes differ."""
    a, b = stored_tensors(one), stored_tensors(other)
    names = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        same = (x.file.name, x.dtype, x.shape) == (y.file.name, y.dtype, y.shape)
        data = [np.memmap(of.file, np.uint8, "r", of.begin, of.end - of.begin) for of in (x, y)]
        if not same or not np.array_equal(*data):
            names.append(name)
    return names


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--layout", choices=["base", "1.5"], default="base")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    scratch = pathlib.Path(arguments.folder)
    original, model, exported = (scratch / name for name in ("original", "model", "exported"))
    for folder in (original, model, exported):
        shutil.rmtree(folder, ignore_errors=True)
    write_folder(original, arguments.layout, arguments.layers)
    begin = time.perf_counter()
    shutil.copytree(original, exported)
    copying = time.perf_counter() - begin
    shutil.rmtree(exported)
    parameters = sum(int(np.prod(shape)) for *_, shape in tensors(arguments.layers).values())
    result = {"date": time.strftime("%Y-%m-%d"), **environment()}
    result |= {"layout": arguments.layout, "parameters": parameters, "seconds_of_a_copy": round(copying, 1)}
    result["convert"] = run(f"--source={original}", f"--target={model}")
    result["export"] = run(f"--source={model}", f"--target={exported}", "--format=huggingface")
    result["differing_tensors"] = differing(original, exported)
    result["largest_parameter_gib"] = round(2 * arguments.layers * WIDTH * MLP / 2**30, 2)
    for folder in (original, model, exported):
        shutil.rmtree(folder)
    print(json.dumps(result, indent=2))
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
