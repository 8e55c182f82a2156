"""A LLaDA folder through all commands: convert, generate, train with adapters, evaluate, export."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from igpo_jax.run.metrics import read_rows
from igpo_jax.weights.safetensors_files import stored_tensors

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "llada_tiny.py"
SHORT = ("--completion_length=16", "--block_length=8")


def train(command, folder, workdir, *overrides):
    return command("train", f"--config={CONFIG}", f"--config.model.path={folder}", f"--workdir={workdir}", *overrides)


@pytest.fixture(scope="module")
def run(command, llada):
    workdir = llada.parent / "run"
    done = train(command, llada, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def generated(command, model, *arguments):
    done = command("generate", f"--model={model}", "--prompt=What is the answer?", *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tensors(folder):
    def values(of):
        return np.fromfile(of.file, of.dtype, offset=of.begin, count=(of.end - of.begin) // of.dtype.itemsize)

    return {name: values(of).astype(np.float32) for name, of in stored_tensors(folder).items()}


@pytest.mark.slow
def test_convert_generate_and_back(command, llada, tmp_path):
    for source, target, *form in (
        (llada, tmp_path / "model"),
        (tmp_path / "model", tmp_path / "back", "--format=huggingface"),
    ):
        done = command("convert", f"--source={source}", f"--target={target}", *form)
        assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in llada.glob("*.json") if "index" not in file.name} == {
        file.name: file.read_bytes() for file in (tmp_path / "back").glob("*.json") if "index" not in file.name
    }
    for name, of in stored_tensors(llada).items():
        other = stored_tensors(tmp_path / "back")[name]
        assert of.file.name == other.file.name and of.dtype == other.dtype
        assert of.file.read_bytes()[of.begin : of.end] == other.file.read_bytes()[other.begin : other.end]
    assert generated(command, llada, "--chat") == generated(command, tmp_path / "model", "--chat")


@pytest.mark.slow
def test_generate_reads_files_shows_steps_and_fills_templates(command, llada, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n\n{"prompt": "two and two"}\n')
    output = tmp_path / "out.jsonl"
    output.write_text('{"prompt": "kil')
    done = command("generate", f"--model={llada}", f"--prompts={tmp_path / 'prompts.jsonl'}", *SHORT, f"--output={output}")
    assert done.returncode == 0, done.stderr
    torn, *lines = output.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert torn == '{"prompt": "kil'
    assert [row["prompt"] for row in rows] == ["Hello", "two and two"] and all(len(row["tokens"]) == 16 for row in rows)
    shown = generated(command, llada, "--show")
    assert shown.startswith("step 0: " + "_" * 16) and "\nstep 16: " in shown
    filled = generated(command, llada, "--template=The answer is [MASK:4] because")
    assert filled.startswith("The answer is ") and filled.endswith(" because\n")
    assert generated(command, llada, "--hint=once more ").startswith("once more ")


@pytest.mark.slow
def test_adapters_are_all_that_is_trained_and_stored(command, llada, run, tmp_path):
    size = {stage: sum(f.stat().st_size for f in (run / "checkpoints" / stage / step).rglob("*") if f.is_file())
            for stage, step in (("sft", "4"), ("rl", "2"))}  # fmt: skip
    adapters = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 192)) * 4  # layers, rank, widths, float32
    assert all(bytes_ < 5 * adapters for bytes_ in size.values()), size  # includes both moments; the base has 690 kB
    for target in ("one", "two"):
        done = command("convert", f"--source={run}", f"--target={tmp_path / target}", "--format=huggingface")
        assert done.returncode == 0, done.stderr
    before, after = tensors(llada), tensors(tmp_path / "one")
    changed = {name.split(".")[-2] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    for name in ("model.transformer.ff_out.weight", "model.transformer.wte.weight"):
        np.testing.assert_array_equal(before[name], after[name])
    assert len(generated(command, tmp_path / "one", "--chat")) > 0


@pytest.mark.slow
def test_a_base_model_that_was_replaced_is_noticed(command, llada, tmp_path):
    """Adapters of another model would train on, or would be evaluated, without an error."""
    base = shutil.copytree(llada, tmp_path / "base")
    run, output = tmp_path / "run", tmp_path / "evaluation"
    assert train(command, base, run, "--config.rl.iterations=1").returncode == 0
    assert command("evaluate", f"--workdir={run}", f"--output={output}").returncode == 0
    for folder in (run / "checkpoints/rl", run / "result.json"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    [file, *_] = sorted(base.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-8:] = bytes(byte ^ 1 for byte in content[-8:])
    file.write_bytes(content)
    done = train(command, base, run, "--config.rl.iterations=1", "--accept_loss")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "was saved with another base model in model.path, or by an earlier version" in done.stderr
    done = command("evaluate", f"--workdir={run}", "--stage=sft", f"--output={output}")
    assert done.returncode == 1 and "differing: weights, base" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file, changes", [
    ("config.json", {"rope_theta": 2.0}), ("tokenizer_config.json", {"unk_token": "The"}),
], ids=["network", "never drawn"])  # fmt: skip
def test_settings_of_the_base_that_were_changed_are_noticed(file, changes, command, llada, tmp_path):
    """The checkpoints of a run without adapters have all weights, but the network's settings come from the base."""
    base = shutil.copytree(llada, tmp_path / "base")
    run, output = tmp_path / "run", tmp_path / "evaluation"
    given = ("--config.lora.rank=0", "--config.model.param_dtype=float32", "--config.rl.iterations=1")
    assert train(command, base, run, *given).returncode == 0
    assert command("evaluate", f"--workdir={run}", f"--output={output}").returncode == 0
    values = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps(values | changes))
    shutil.rmtree(run / "checkpoints" / "rl")
    (run / "result.json").unlink()
    done = train(command, base, run, *given, "--accept_loss")
    changed = "was saved with other settings of the model in model.path"
    assert done.returncode == 1 and changed in done.stderr and "Traceback" not in done.stderr
    done = command("evaluate", f"--workdir={run}", "--stage=sft", f"--output={output}")
    assert done.returncode == 1 and "differing: weights, network" in done.stderr
    assert changed in command("generate", f"--model={run}", "--prompt=1+1=", *SHORT).stderr
    done = command("convert", f"--source={run}", f"--target={tmp_path / 'new'}", "--format=huggingface")
    assert changed in done.stderr


@pytest.mark.slow
def test_evaluate_and_generate_work_on_the_run(command, run):
    done = command("evaluate", f"--workdir={run}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["origin"]["step"] == 2
    assert generated(command, run, "--chat").strip() and generated(command, run, "--chat", "--stage=sft").strip()


@pytest.mark.slow
def test_a_run_with_an_int8_base_trains_and_is_merged_into_the_original_weights(command, llada, tmp_path):
    folder, run = tmp_path / "hf", tmp_path / "run"
    shutil.copytree(llada, folder)
    rates = [f"--config.{stage}.optimizer.{key}" for stage in ("sft", "rl") for key in ("learning_rate=0.01", "warmup_steps=0")]
    done = train(command, folder, run, "--config.model.base_dtype=int8", *rates)
    assert done.returncode == 0, done.stderr
    assert train(command, folder, run, "--config.model.base_dtype=int8", *rates).returncode == 0  # is complete
    done = train(command, folder, run, *rates)
    assert done.returncode == 1 and "differing keys: model.base_dtype" in done.stderr
    losses = [
        row[f"{stage}/loss"]
        for row in read_rows(run / "metrics.jsonl")
        for stage in ("sft", "policy")
        if f"{stage}/loss" in row
    ]
    assert len(losses) >= 2 and np.isfinite(losses).all()
    assert command("evaluate", f"--workdir={run}").returncode == 0 and generated(command, run, "--chat")
    for target, form in (("merged", "huggingface"), ("peft", "peft")):
        done = command("convert", f"--source={run}", f"--target={tmp_path / target}", f"--format={form}")
        assert done.returncode == 0, done.stderr
    before, after = tensors(folder), tensors(tmp_path / "merged")
    adapters = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for name, value in before.items():
        part = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{part}A.weight" in adapters:
            change = 8.0 / 4 * adapters[f"{part}B.weight"] @ adapters[f"{part}A.weight"]
            assert np.abs(change).max() > 1e-3
            value = value + change.reshape(-1)
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    folder.rename(tmp_path / "moved")
    for command_line in (
        ("convert", f"--source={run}", f"--target={tmp_path / 'new'}"),
        ("generate", f"--model={run}", "--prompt=x"),
    ):
        done = command(*command_line, *["--format=huggingface"] * (command_line[0] == "convert"))
        assert done.returncode == 1 and f"model.path={str(folder)!r}, the model that the run began with" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_of_adapters_continues_where_it_stopped(command, llada, run, tmp_path):
    """Resumes from the last checkpoint but one of the supervised stage, and from the first iteration of RL."""
    for cut in (("sft", "4"), ("rl", "2")):
        workdir = tmp_path / cut[0]
        shutil.copytree(run, workdir)
        shutil.rmtree(workdir / "checkpoints" / cut[0] / cut[1])
        (workdir / "result.json").unlink()
        if cut[0] == "sft":
            shutil.rmtree(workdir / "checkpoints" / "rl")
        done = train(command, llada, workdir, *["--accept_loss"] * (cut[0] == "sft"))  # the RL stage starts again
        assert done.returncode == 0, done.stderr
        for target, source in (("whole", run), ("continued", workdir)):
            done = command("convert", f"--source={source}", f"--target={workdir / target}", "--format=huggingface")
            assert done.returncode == 0, done.stderr
        whole, continued = tensors(workdir / "whole"), tensors(workdir / "continued")
        assert all(np.array_equal(whole[name], continued[name]) for name in whole)


@pytest.mark.slow
def test_adapters_become_peft_files(command, llada, tmp_path):
    """Both stages train the same adapters, which apply to the original model."""
    rates = [f"--config.{stage}.optimizer.{key}" for stage in ("sft", "rl") for key in ("learning_rate=0.1", "warmup_steps=0")]
    done = train(command, llada, tmp_path / "run", *rates)
    assert done.returncode == 0, done.stderr
    done = command("convert", f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'peft'}", "--format=peft")
    assert done.returncode == 0, done.stderr
    with_peft = generated(command, llada, "--chat", f"--adapters={tmp_path / 'peft'}")
    assert with_peft == generated(command, tmp_path / "run", "--chat") != generated(command, llada, "--chat")
    assert with_peft != generated(command, tmp_path / "run", "--chat", "--stage=sft")


@pytest.mark.slow
def test_merging_loses_nothing_by_default_and_says_what_bfloat16_loses(command, llada, run, tmp_path):
    for target, flags in (("full", []), ("half", ["--dtype=bfloat16"])):
        done = command("convert", f"--source={run}", f"--target={tmp_path / target}", "--format=huggingface", *flags)
        assert done.returncode == 0, done.stderr
        assert ("rounding to bfloat16 loses" in done.stderr) == (target == "half")
    before, full, half = (tensors(folder) for folder in (llada, tmp_path / "full", tmp_path / "half"))
    name = next(name for name in before if "q_proj" in name)
    kinds = {target: stored_tensors(tmp_path / target)[name].dtype.name for target in ("full", "half")}
    assert kinds == {"full": "float32", "half": "bfloat16"}
    change = np.linalg.norm(full[name] - before[name].astype(np.float32))
    lost = np.linalg.norm(full[name] - half[name].astype(np.float32))
    assert 0 < change and 0.1 * change < lost


@pytest.mark.slow
def test_a_run_from_scratch_is_exported_in_lladas_format(command, finished, tmp_path):
    done = command("convert", f"--source={finished}", f"--target={tmp_path / 'hf'}", "--format=huggingface")
    assert done.returncode == 0, done.stderr
    [row, *_] = read_rows(finished / "rollouts.jsonl")
    prompt = f"--prompt={row['question']}"
    # A run's folder stores its evaluation's sampler settings; an exported model needs flags.
    own, told = (finished,), (tmp_path / "hf", *SHORT, "--steps=8")
    texts = [command("generate", f"--model={model}", prompt, *flags).stdout for model, *flags in (own, told)]
    assert texts[0] == texts[1] and texts[0].strip()
    filled = command("generate", f"--model={finished}", prompt, "--template=5+5=[MASK:2]\n").stdout
    assert filled.startswith("5+5=")


@pytest.mark.parametrize("arguments, message", [
    (("generate", "--model=nowhere", "--prompt=x"), "--model: there is no folder 'nowhere'"),
    (("generate", "--model={llada}"), "give --prompt, --prompts or --template"),
    (("generate", "--model={llada}", "--prompts=none.txt"), "there is no file 'none.txt'"),
    (("generate", "--model={llada}", "--template=x [MASK]", "--hint=y"), "--hint and --template are both given"),
    (("generate", "--model={llada}", "--template=x"), "has no blank"),
    (("generate", "--model={llada}", "--prompt=x", "--steps=3"), "steps=3 is not a multiple of the number of blocks"),
    (("generate", "--model={llada}", "--prompt=x", "--completion_length=262144", "--block_length=262144", "--steps=1"),
     "completion_length=262144 must be at most 65536"),
    (("convert", "--source={llada}", "--target={llada}"), "exists already"),
    (("convert", "--source={llada}", "--target=new", "--format=peft"), "of which --format=peft cannot be made; give --format=model"),
    (("convert", "--source={llada}", "--target=new", "--verify=LLaDA-8B-Base"), "config.json is not that of LLaDA-8B-Base"),
    (("convert", "--source=nowhere", "--target=new"), "--source: there is no folder 'nowhere'"),
    (("train", "--config={config}", "--workdir=new", "--config.model.path=nowhere"),
     "model.path: there is no folder 'nowhere'"),
    (("train", "--config={config}", "--workdir=new", "--config.model.path={llada}", "--config.model.width=32"),
     "model.width=32 and model.path="),
    (("train", "--config={config}", "--workdir=new", "--config.model.path={llada}", "--config.lora.targets=('q_proj',)"),
     "lora.targets=('q_proj',) must be some of query"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(command, llada, arguments, message):
    done = command(*(argument.format(llada=llada, config=CONFIG) for argument in arguments))
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


WITHOUT_MEMORY = """
import runpy, sys
from igpo_jax.api import DiffusionLM

def allocate(*args, **options):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

DiffusionLM.generate = allocate
runpy.run_module("igpo_jax.generate", run_name="__main__")
"""


@pytest.mark.slow
def test_a_lack_of_memory_is_told_in_one_line(llada):
    """No request within the limits lacks memory on a host, so the allocator is replaced."""
    command = [sys.executable, "-c", WITHOUT_MEMORY, f"--model={llada}", "--prompt=x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode != 0 and "error: out of memory: RESOURCE_EXHAUSTED" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [
    ("generate", "--model={bare}", "--prompt=x"),
    ("evaluate", "--config=evaluate_math.py", "--config.model={bare}", "--output=new",
     "--config.benchmarks.gsm8k.task.test=jsonl:{bare}/problems.jsonl"),
    ("playground", "--model={bare}"),
    ("train", "--config={config}", "--workdir=new", "--config.model.path={bare}"),
    ("inspect_data", "--config={config}", "--config.model.path={bare}"),
])  # fmt: skip
def test_a_missing_tokenizer_is_found_before_weights_are_read(command, llada, tmp_path, arguments):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "problems.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    shutil.copy(llada / "config.json", tmp_path / "bare")  # without weights: reading them would be another error
    done = command(*(argument.format(bare=tmp_path / "bare", config=CONFIG) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        f"{tmp_path / 'bare'} must have one tokenizer, but has neither tokenizer.json nor vocab.json nor a *.model file"
        in done.stderr
    )


@pytest.mark.slow
def test_convert_says_that_there_is_no_tokenizer_and_converts(command, llada, tmp_path):
    shutil.copytree(llada, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    done = command("convert", f"--source={tmp_path / 'hf'}", f"--target={tmp_path / 'model'}")
    assert done.returncode == 0 and (tmp_path / "model" / "params").is_dir()
    [line] = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "has neither tokenizer.json nor vocab.json nor a *.model file; download all files of the model" in line
    assert "; add the tokenizer's files to the target" in line
    assert "warning: " not in command("convert", f"--source={llada}", f"--target={tmp_path / 'other'}").stderr
