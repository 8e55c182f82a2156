"""What conversions write beside the weights: modes of files, and the model that adapters belong to."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import stat
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from igpo_jax.evaluate.protocol import weights_digest
from igpo_jax.families import ILLADA
from igpo_jax.model import lora
from igpo_jax.model.lora import LoraConfig
from igpo_jax.run import export as run_export
from igpo_jax.runtime.files import atomic_write
from igpo_jax.runtime.orbax_files import COMMITTED
from igpo_jax.weights.folders import ORIGIN, convert, export, original_name
from igpo_jax.weights.peft import ADAPTER_CONFIG, ADAPTER_FILE, export_peft, import_peft
from model_folders import PLAIN, write_folder

LORA = LoraConfig(rank=2, alpha=2.0, targets=("query",))


@pytest.fixture(scope="module")
def adapters():
    return jax.jit(lora.init, static_argnums=(1, 2))(jax.random.key(0), PLAIN, LORA)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027])
def test_every_written_file_has_the_mode_that_the_umask_gives(umask, adapters, mesh, tmp_path):
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "hf", mesh)
        convert(tmp_path / "hf", tmp_path / "model", mesh)
        export(tmp_path / "model", tmp_path / "exported", mesh)
        export_peft(adapters, LORA, tmp_path / "peft")
        atomic_write(tmp_path / "text.json", "{}")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) > 20
    wrong = {path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}
    assert not wrong


def test_a_converted_model_does_not_hold_the_path_to_it(mesh, tmp_path):
    """The path of a checkpoint that a killed command leaves behind is not part of its hash either."""
    write_folder(tmp_path / "hf", mesh)
    convert(tmp_path / "hf", tmp_path / "model", mesh)
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file() and file.name != ORIGIN]
    marks = [file for file in files if file.name == COMMITTED]
    assert len(marks) > 10 and not [file for file in files if os.fsencode(tmp_path) in file.read_bytes()]
    before = weights_digest({"path": str(tmp_path / "model")})
    marks[0].write_text(f"committed to {tmp_path}")
    assert weights_digest({"path": str(tmp_path / "model")}) == before


@pytest.mark.slow
def test_adapters_name_the_model_that_was_converted(adapters, mesh, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--GSAI-ML--LLaDA-8B-Base" / "snapshots" / "0f2787f2"
    old = tmp_path / "old"
    for number, (folder, name) in enumerate({cached: "GSAI-ML/LLaDA-8B-Base", tmp_path / "hf": str(tmp_path / "hf")}.items()):
        write_folder(folder, mesh)
        model = tmp_path / f"model{number}"
        convert(folder, model, mesh)
        for base in (folder, model):  # a run may train either
            run = types.SimpleNamespace(
                adapters=adapters, config=types.SimpleNamespace(lora=LORA, model=types.SimpleNamespace(path=str(base)))
            )
            monkeypatch.setattr(run_export, "restore_run", lambda *_, run=run, **options: run)
            run_export.export_adapters(tmp_path / "run", tmp_path / f"{number}{base.name}", mesh)
            written = json.loads((tmp_path / f"{number}{base.name}" / ADAPTER_CONFIG).read_text())
            assert written["base_model_name_or_path"] == name
        export(model, tmp_path / f"exported{number}", mesh)
        assert not (tmp_path / f"exported{number}" / ORIGIN).exists()
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / ORIGIN).write_text("{}")
    assert weights_digest({"path": str(model)}) == weights_digest({"path": str(copy)})
    file = max(filter(pathlib.Path.is_file, (copy / "params").rglob("*")), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert weights_digest({"path": str(model)}) != weights_digest({"path": str(copy)})
    model.rename(old)
    (old / ORIGIN).unlink()
    assert original_name(old) == ""  # converted by an earlier version


def test_adapters_of_illada_have_the_names_of_its_modules(adapters, tmp_path):
    both = {"query": adapters["query"], "down": jax.tree.map(lambda x: x + 1, adapters["query"])}
    shape = dataclasses.replace(PLAIN, mlp_width=PLAIN.width)
    settings = dataclasses.replace(LORA, targets=("query", "down"))
    export_peft(both, settings, tmp_path, family=ILLADA)
    names = [name.removesuffix(".weight") for name in safetensors.numpy.load_file(tmp_path / ADAPTER_FILE)]
    prefix = "base_model.model.model.layers.0"
    assert {f"{prefix}.self_attn.q_proj.lora_A", f"{prefix}.mlp.down_proj.lora_B"} <= set(names) and len(names) == 12
    pattern = json.loads((tmp_path / ADAPTER_CONFIG).read_text())["target_modules"]
    modules = {name.removeprefix("base_model.model.").rpartition(".")[0] for name in names}
    assert all(re.fullmatch(pattern, module) for module in modules)
    assert not re.fullmatch(pattern, "lm_head") and not re.fullmatch(pattern, "model.layers.0.mlp.up_proj")
    found, loaded = import_peft(tmp_path, shape)
    assert found == settings
    jax.tree.map(np.testing.assert_array_equal, loaded, both)
