"""Models of other families through all commands: train with hints, generate, infill, score, evaluate, export."""

import json
import pathlib

import numpy as np
import pytest
from starlette.testclient import TestClient

import igpo_jax
from igpo_jax.playground.server import application
from igpo_jax.run.metrics import read_rows
from igpo_jax.weights.huggingface import model_config
from model_folders import write_folder
from processes import word_problems
from qwen_files import write_small

CONFIG = pathlib.Path(__file__).parent / "llada_tiny.py"
SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=320,
    rope_theta=10000.0, rms_norm_eps=1e-6, hidden_act="silu", max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip
MODELS = {
    "dream": {"architectures": ["DreamModel"], "model_type": "Dream", "mask_token_id": None},
    "qwen3": {"architectures": ["A2DQwen3LMHeadModel"], "model_type": "a2d-qwen3", "head_dim": 16, "tie_word_embeddings": True},
}
REWARD = """import zlib


def reward(problem, text):
    return float(zlib.crc32((problem.id + text).encode()) % 4 == 0)
"""


@pytest.fixture(params=[*MODELS])
def model(request, tmp_path, mesh):
    ids = write_small(tmp_path / "files", texts=["What is 1+2? It is 3.", "You are a helpful assistant. user system"])
    values = SIZES | MODELS[request.param] | {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    write_folder(tmp_path / "model", mesh, model_config(values, special=ids), values, "float32")
    for file in (tmp_path / "files").iterdir():
        file.rename(tmp_path / "model" / file.name)
    return tmp_path / "model"


@pytest.mark.slow
def test_every_command_works(model, command, tmp_path):
    (command._folder / "chance.py").write_text(REWARD)
    workdir = tmp_path / "run"
    flags = [
        f"--config={CONFIG}",
        f"--config.model.path={model}",
        f"--workdir={workdir}",
        "--config.reward.function=chance:reward",
    ]
    flags += ["--config.sampler.remasking=entropy", "--config.sampler.commit=timestep", "--config.sampler.top_p=0.95"]
    flags += ["--config.sampler.tempered_confidence=True", "--config.data.prompt_buckets=(96,)", "--config.rl.group_size=4"]
    done = command("train", *flags)
    assert done.returncode == 0, done.stderr
    rows = read_rows(workdir / "metrics.jsonl")
    first = [row for row in rows if row["stage"] == "rl" and "policy/ratio_mean" in row][0]
    assert first["policy/ratio_mean"] == pytest.approx(1, abs=0.05)
    assert sum(row.get("hint/replaced", 0) for row in rows) > 0
    done = command("evaluate", f"--workdir={workdir}", "--trust=chance:reward")
    assert done.returncode == 0, done.stderr
    done = command("generate", f"--model={workdir}", "--prompt=What is 1+2?", "--chat", "--show")
    assert done.returncode == 0 and "step 0: " in done.stdout, done.stderr
    for form, source in (("huggingface", workdir), ("peft", workdir), ("model", model)):
        done = command("convert", f"--source={source}", f"--target={tmp_path / form}-folder", f"--format={form}")
        assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "huggingface-folder/config.json").read_text())
    assert values == json.loads((model / "config.json").read_text())
    texts = []
    for place, adapters in ((tmp_path / "huggingface-folder", None), (model, tmp_path / "peft-folder")):
        loaded = igpo_jax.load(place, adapters=adapters, dtype="float32")
        [done] = loaded.generate(["What is 1+2?"], chat=True, completion_length=16, block_length=8)
        texts.append(done.tokens.tolist())
        assert np.isfinite(loaded.score("What is", " 3.").log_likelihood)
        [filled] = loaded.infill(["It is [MASK:3] 3."])
        assert filled.text.startswith("It is ") and filled.text.endswith(" 3.")
        cached = loaded.generate(["What is 1+2?"], chat=True, completion_length=16, block_length=8, cache="dual", refresh=1)
        assert cached[0].tokens.tolist() == done.tokens.tolist()
    assert texts[0] == texts[1]
    client = TestClient(application(loaded, {}, "127.0.0.1", 600), base_url="http://localhost:8000")
    asked = {"prompt": "What is 1+2?", "chat": True, "completion_length": 16, "block_length": 8, "steps": 16, "seed": 0}
    events = [json.loads(event.removeprefix("data: ")) for event in client.post("/generate", json=asked).text.split("\n\n") if event]
    assert events[-1]["type"] == "done" and events[-1]["text"] == done.text


@pytest.mark.slow
def test_a_model_is_made_from_an_autoregressive_one(command, tmp_path, mesh):
    """convert --as, configs/a2d.py, and configs/gsm8k.py:small from the result."""
    ids = write_small(tmp_path / "files", texts=["What is 1+2? It is 3.", "user system assistant boxes books pens cups left?"])
    values = SIZES | {"architectures": ["A2DQwen2LMHeadModel"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    write_folder(tmp_path / "causal", mesh, model_config(values, special=ids), values, "float32")
    for file in (tmp_path / "files").iterdir():
        file.rename(tmp_path / "causal" / file.name)
    (tmp_path / "causal/config.json").write_text(json.dumps(values | {"architectures": ["Qwen2ForCausalLM"]}))
    start, run, model = (tmp_path / name for name in ("start", "run", "model"))
    done = command("convert", f"--source={tmp_path / 'causal'}", f"--target={start}", "--as=A2DQwen2LMHeadModel")
    assert done.returncode == 0 and done.stdout.startswith(f"written: {start}\nnext: "), done.stderr
    word_problems(tmp_path / "problems.jsonl", 48)
    word_problems(tmp_path / "test.jsonl", 60)
    rows = (tmp_path / "test.jsonl").read_text().splitlines()[48:]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    data = [f"--config.task.{split}=gsm8k:{tmp_path / 'problems.jsonl'}" for split in ("sft", "rl")]
    data += [f"--config.task.test=gsm8k:{tmp_path / 'test.jsonl'}"]
    small = [f"--config.{s}.{key}" for s in ("sampler", "evaluation") for key in ("completion_length=256", "steps=8")]
    done = command("train", "--config=a2d.py:smoke", f"--config.model.path={start}", f"--workdir={run}", *data, *small)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["heldout_loss"]["last"] < result["heldout_loss"]["first"]
    done = command("convert", f"--source={run}", f"--target={model}", "--format=huggingface")
    assert done.returncode == 0, done.stderr
    short = ["--config.sft.updates=2", "--config.sft.batch_size=8", "--config.sft.heldout=4", "--config.rl.iterations=1"]
    short += ["--config.rl.group_size=2", "--config.sft.microbatches=1", "--config.evaluation.problems=8"]
    short += ["--config.evaluation.batch_size=8", "--config.model.compute_dtype=float32", *small]
    done = command("train", "--config=gsm8k.py:small", f"--config.model.path={model}", f"--workdir={tmp_path / 'rl'}", *data, *short)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "rl/metrics.jsonl")
    assert any("policy/ratio_mean" in row for row in rows)
