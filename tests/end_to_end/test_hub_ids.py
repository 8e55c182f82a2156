"""All commands take a model by its id on the Hugging Face hub if the model is in the cache, and say how to get it otherwise."""

import json
import pathlib
import shutil

import pytest

from hub_cache import write_hub_cache

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "llada_tiny.py"
ID = "GSAI-ML/LLaDA-8B-Instruct"
ADVICE = f"run hf download {ID} --local-dir LLaDA-8B-Instruct and give {{}}=LLaDA-8B-Instruct"
LENGTHS = ("--completion_length=8", "--block_length=8")


@pytest.fixture
def cached(command, llada, tmp_path):
    """Commands of a user whose cache has the model."""
    write_hub_cache(tmp_path, ID, llada)
    return command.with_hub_cache(tmp_path)


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_generate_reads_the_model_in_the_cache(cached, llada):
    texts = [output(cached("generate", f"--model={name}", "--prompt=x", *LENGTHS)) for name in (llada, ID)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_run_keeps_the_id_and_continues(cached, tmp_path):
    arguments = ("train", f"--config={CONFIG}", f"--config.model.path={ID}", f"--workdir={tmp_path / 'run'}")
    output(cached(*arguments))
    last = max((tmp_path / "run" / "checkpoints" / "rl").iterdir(), key=lambda folder: int(folder.name))
    shutil.rmtree(last)
    (tmp_path / "run" / "result.json").unlink()
    output(cached(*arguments))
    assert last.exists() and json.loads((tmp_path / "run" / "config.json").read_text())["model"]["path"] == ID
    output(cached("generate", f"--model={tmp_path / 'run'}", "--prompt=x"))
    output(cached("evaluate", f"--workdir={tmp_path / 'run'}"))
    output(cached("convert", f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'adapters'}", "--format=peft"))
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"] == ID
    shutil.rmtree(tmp_path / "hub")
    gone = cached("generate", f"--model={tmp_path / 'run'}", "--prompt=x")
    assert gone.returncode == 1 and f"if it is a model of the Hugging Face hub, run hf download {ID}" in gone.stderr


@pytest.mark.slow
def test_convert_evaluate_and_inspect_data_take_an_id(cached, tmp_path):
    output(cached("convert", f"--source={ID}", f"--target={tmp_path / 'model'}"))
    assert json.loads((tmp_path / "model" / "origin.json").read_text())["source"] == ID
    texts = [output(cached("generate", f"--model={name}", "--prompt=x", *LENGTHS)) for name in (ID, "model")]
    assert texts[0] == texts[1]
    output(cached("inspect_data", f"--config={CONFIG}", f"--config.model.path={ID}"))


@pytest.mark.parametrize("key, arguments", [
    ("--model", ("generate", f"--model={ID}", "--prompt=x")),
    ("--model", ("playground", f"--model={ID}")),
    ("--source", ("convert", f"--source={ID}", "--target=new")),
    ("model.path", ("train", f"--config={CONFIG}", "--workdir=new", f"--config.model.path={ID}")),
    ("model.path", ("inspect_data", f"--config={CONFIG}", f"--config.model.path={ID}")),
    ("--config.model", ("evaluate", "--config=evaluate_math.py", f"--config.model={ID}", "--output=new")),
])  # fmt: skip
def test_a_model_that_is_not_in_the_cache_is_one_line_with_the_way_to_get_it(key, arguments, command, tmp_path):
    done = command.with_hub_cache(tmp_path)(*arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {key}: there is no folder '{ID}'") and error.endswith(ADVICE.format(key))
