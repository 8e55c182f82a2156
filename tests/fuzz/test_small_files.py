"""Files of a few bytes on disk that would fill the memory, the disk or an hour when they are read or copied."""

import gzip
import json

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from igpo_jax.report.templates import MOST_INDENTED, _indented_json
from igpo_jax.runtime.files import require_stored
from igpo_jax.tasks import load_task, rows
from igpo_jax.tasks import math as mathematics
from igpo_jax.tokenizers import load_tokenizer
from igpo_jax.weights.folders import convert
from igpo_jax.weights.peft import import_peft
from model_folders import PLAIN, write_folder

HOLE = 1 << 30  # bytes
SPARSE = "it has 1073741824 bytes, but more than 99% of them are a hole"


def stretch(file, size=HOLE):
    with file.open("ab") as opened:
        opened.truncate(size)


def test_a_file_with_few_holes_is_allowed(tmp_path):
    file = tmp_path / "half"
    with file.open("wb") as opened:
        for place in range(0, 1 << 27, 1 << 23):
            opened.seek(place)
            opened.write(b"x" * (1 << 21))
    require_stored(file)
    stretch(file)
    require_stored(file)  # a thirtieth is data


def test_a_model_folder_with_a_sparse_file_is_not_copied(tmp_path, mesh):
    write_folder(tmp_path / "hf", mesh)
    (tmp_path / "hf" / "README.md").write_text("hello")
    stretch(tmp_path / "hf" / "README.md")
    with pytest.raises(ValueError, match=f"README.md: {SPARSE}"):
        convert(tmp_path / "hf", tmp_path / "model", mesh)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name, begin", [("a.csv", "question,answer\n"), ("a.json", "["), ("a.jsonl", "{}\n")])
def test_a_sparse_problem_file_is_refused(name, begin, tmp_path):
    (tmp_path / name).write_text(begin)
    stretch(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: {SPARSE}"):
        list(rows.read_rows(str(tmp_path / name)))


def test_a_sparse_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    stretch(tmp_path / "tokenizer.model", 1 << 27)
    with pytest.raises(ValueError, match="tokenizer.model: more than 64 MiB"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_sparse_adapters_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    stretch(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"adapter_model.safetensors: {SPARSE}"):
        import_peft(tmp_path, PLAIN)


def test_a_compressed_file_may_not_have_more_rows_than_problems_could_have(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_PROBLEMS", 100)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}\n" * 100))
    assert len(list(rows.read_rows(str(file)))) == 100
    file.write_bytes(gzip.compress(b"{}\n" * 101))
    with pytest.raises(ValueError, match=r"line 101: more than 100 rows in such a small file"):
        list(rows.read_rows(str(file)))
    plain = tmp_path / "a.jsonl"
    plain.write_text('{"a": 1}\n' * 5000)
    assert len(list(rows.read_rows(str(plain)))) == 5000


def test_templates_may_not_multiply_a_file(tmp_path, monkeypatch):
    problem = json.dumps({"problem": "1+1", "answer": "2", "solution": "$1+1=2$"})
    (tmp_path / "a.jsonl").write_text("\n".join([problem] * 3))
    task = load_task("math")
    values = task.defaults(test=f"math:{tmp_path / 'a.jsonl'}", prompt="x" * 1000 + "{question}")
    assert len(task.load(ConfigDict(values), "test", 0)) == 3
    monkeypatch.setattr(mathematics, "MOST_TEXT", 3000)
    with pytest.raises(ValueError, match="task.prompt and task.demonstration add .* characters to 3 problems; at most 3000"):
        task.load(ConfigDict(values), "test", 0)


def test_a_large_value_is_not_indented():
    nested = [0] * MOST_INDENTED
    for _ in range(60):
        nested = [nested]
    assert len(_indented_json({"x": nested})) < 4 * MOST_INDENTED
    assert _indented_json({"a": [1]}) == '{\n  "a": [\n    1\n  ]\n}'


@pytest.mark.slow
def test_a_weight_that_overflows_in_another_dtype_is_refused(tmp_path, mesh):
    write_folder(tmp_path / "hf", mesh, dtype="float32")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == np.float32 and tensor.ndim == 2)
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = 3.4e38  # finite in float32, infinite in bfloat16
    safetensors.numpy.save_file(tensors, file)
    convert(tmp_path / "hf", tmp_path / "kept", mesh, "float32")
    with pytest.raises(ValueError, match=f"tensor {name} as bfloat16: 1 of"):
        convert(tmp_path / "hf", tmp_path / "model", mesh, "bfloat16")
