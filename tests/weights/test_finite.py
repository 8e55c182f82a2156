"""Weights that are NaN or infinite are refused by name while they are read, unless they are allowed."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import igpo_jax
from igpo_jax.model import lora
from igpo_jax.model.lora import LoraConfig
from igpo_jax.weights.finite import check_finite
from igpo_jax.weights.folders import convert, export, load_params
from igpo_jax.weights.huggingface import folder_model_config
from igpo_jax.weights.peft import ADAPTER_FILE, export_peft, import_peft
from igpo_jax.weights.safetensors_files import stored_tensors
from model_folders import PLAIN, assert_same_files, write_folder

QUERY = "model.transformer.blocks.1.q_proj.weight"


def poison(folder, name: str, value: float, at: tuple[int, ...] = (-1,)) -> None:
    """Overwrites values of a stored tensor."""
    stored = stored_tensors(folder)[name]
    with stored.file.open("r+b") as file:
        for index in at:
            file.seek((stored.end if index < 0 else stored.begin) + index * stored.dtype.itemsize)
            file.write(np.array(value, stored.dtype).tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype, value", [
    ("model.transformer.wte.weight", "bfloat16", np.nan), ("model.transformer.ff_out.weight", "float32", np.inf),
    (QUERY, "float16", -np.inf), (QUERY, "bfloat16", np.nan), ("model.transformer.blocks.2.ff_norm.weight", "bfloat16", np.nan),
])  # fmt: skip
def test_a_bad_value_in_any_tensor_is_refused_by_name(name, dtype, value, tmp_path, mesh_of):
    mesh = mesh_of((1, 2, 1))
    write_folder(tmp_path / "hf", mesh, dtype=dtype)
    poison(tmp_path / "hf", name, value, (0, 3, -1))
    message = rf"model.safetensors, tensor {re.escape(name)}: 3 of \d+ values are NaN or infinite; .* --allow_nonfinite"
    with pytest.raises(ValueError, match=message) as raised:
        convert(tmp_path / "hf", tmp_path / "model", mesh)
    assert "\n" not in str(raised.value) and [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.slow
def test_they_can_be_allowed_and_survive_conversion_and_export(tmp_path, mesh, caplog):
    write_folder(tmp_path / "hf", mesh)
    poison(tmp_path / "hf", QUERY, np.nan)
    cfg = folder_model_config(tmp_path / "hf")
    with caplog.at_level(logging.WARNING):
        convert(tmp_path / "hf", tmp_path / "model", mesh, allow_nonfinite=True)
        with pytest.raises(ValueError, match=r"params/blocks.query: 1 of 768 values are NaN or infinite"):
            export(tmp_path / "model", tmp_path / "exported", mesh)
        export(tmp_path / "model", tmp_path / "exported", mesh, allow_nonfinite=True)
    told = [record.getMessage().replace(str(tmp_path), "") for record in caplog.records]
    assert told == [
        f"/hf/model.safetensors, tensor {QUERY}: 1 of 256 values are NaN or infinite",
        "/model/params/blocks.query: 1 of 768 values are NaN or infinite",
    ]
    assert_same_files(tmp_path / "hf", tmp_path / "exported")
    for folder in (tmp_path / "hf", tmp_path / "model"):
        with pytest.raises(ValueError, match="values are NaN or infinite"):
            igpo_jax.load(folder, mesh=mesh)
        loaded = load_params(folder, cfg, mesh, allow_nonfinite=True)
        bad = {jax.tree_util.keystr(path): int(jnp.isnan(x).sum()) for path, x in jax.tree.leaves_with_path(loaded)}
        assert {name: count for name, count in bad.items() if count} == {"['blocks']['query']": 1}


def test_adapters_are_checked(tmp_path, mesh):
    settings = LoraConfig(rank=2, alpha=2.0, targets=("query", "down"))
    adapters = jax.tree.map(np.array, jax.jit(lora.init, static_argnums=(1, 2))(jax.random.key(0), PLAIN, settings))
    adapters["down"]["b"][2, 1, 0] = np.inf
    export_peft(adapters, settings, tmp_path)
    with pytest.raises(ValueError, match=rf"{ADAPTER_FILE}, tensor \S+blocks.2.ff_out.lora_B.weight: 1 of 32 values"):
        import_peft(tmp_path, PLAIN)
    assert import_peft(tmp_path, PLAIN, allow_nonfinite=True)[0] == settings


@pytest.mark.parametrize("name, scale", [("ff_out", 1e38), ("blocks.1.q_proj", 1e38)])
def test_finite_weights_whose_logits_overflow_are_refused(name, scale, tmp_path, mesh, caplog):
    write_folder(tmp_path / "hf", mesh, dtype="float32")
    igpo_jax.load(tmp_path / "hf", mesh=mesh)
    stored = stored_tensors(tmp_path / "hf")[f"model.transformer.{name}.weight"]
    with stored.file.open("r+b") as file:
        file.seek(stored.begin)
        values = np.frombuffer(file.read(stored.end - stored.begin), np.float32)
        file.seek(stored.begin)
        file.write((np.sign(values) * np.float32(scale)).tobytes())
    with pytest.raises(ValueError, match=r"hf: the network's logits are too large to compute: \d+ of \d+ values are NaN"):
        igpo_jax.load(tmp_path / "hf", mesh=mesh)
    with caplog.at_level(logging.WARNING):
        igpo_jax.load(tmp_path / "hf", mesh=mesh, allow_nonfinite=True)
    assert "logits" in caplog.text


@pytest.mark.slow
def test_adapters_whose_product_overflows_are_refused(tmp_path, mesh_of):
    mesh = mesh_of((1, 2, 1))
    write_folder(tmp_path / "hf", mesh, dtype="float32")
    settings = LoraConfig(rank=2, alpha=2.0, targets=("query", "down"))
    adapters = jax.tree.map(np.array, jax.jit(lora.init, static_argnums=(1, 2))(jax.random.key(0), PLAIN, settings))
    for large in (1.0, 1e20):
        filled = jax.tree.map(lambda x, large=large: np.full_like(x, large), adapters)
        export_peft(filled, settings, tmp_path / f"{large:g}")
    igpo_jax.load(tmp_path / "hf", adapters=tmp_path / "1", mesh=mesh)
    with pytest.raises(ValueError, match=r"hf with adapters .*1e\+20: the network's logits are too large"):
        igpo_jax.load(tmp_path / "hf", adapters=tmp_path / "1e+20", mesh=mesh)


@pytest.mark.slow
def test_the_files_are_read_once(tmp_path, mesh):
    read = []
    jax.monitoring.register_scalar_listener(
        lambda name, value, **_: read.append(value) if name.endswith("safetensors/bytes_read") else None
    )
    write_folder(tmp_path / "hf", mesh)
    load_params(tmp_path / "hf", folder_model_config(tmp_path / "hf"), mesh)
    sizes = [stored.end - stored.begin for stored in stored_tensors(tmp_path / "hf").values()]
    assert sum(read) == sum(sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_largest_finite_values_are_no_infinite_ones(dtype):
    largest = float(jnp.finfo(dtype).max)
    for values in ([[largest, -largest]], [largest], np.zeros((0, 4)), np.full((3, 2, 2), -largest), [[1e-45, -0.0]]):
        check_finite(np.array(values, dtype), "here")
        check_finite(jnp.array(values, dtype), "here")
    with pytest.raises(ValueError, match="^here: 2 of 4 values"):
        check_finite(np.array([[1, np.nan], [-np.inf, 0]], dtype), "here")
