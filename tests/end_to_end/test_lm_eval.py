"""lm-evaluation-harness and igpo_jax have the same numbers for the same problems, runs and models."""

import functools
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs lm_eval")

from lm_eval.api.instance import Instance

import igpo_jax
from commands import QUICK
from doc_blocks import blocks_of
from igpo_jax import lm_eval as adapter
from igpo_jax.lm_eval import DiffusionHarnessModel
from igpo_jax.run.metrics import read_rows
from tiny_llada import one_device

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = {"completion_length": 8, "block_length": 4, "steps": 8}
TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: []}}
filter_list: [{{name: answer, filter: [{{function: regex, regex_pattern: "{pattern}"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model(llada):
    return igpo_jax.load(llada, mesh=one_device())


@pytest.fixture
def harness_model(llada, monkeypatch):
    """Returns a function that makes the harness's model on one device, given the arguments of --model_args."""
    monkeypatch.setattr(adapter, "load", functools.partial(adapter.load, mesh=one_device()))
    return lambda **arguments: DiffusionHarnessModel(path=str(llada), batch_size=1, **arguments)


def requests(kind, *arguments):
    return [Instance(kind, {}, given, 0) for given in arguments]


def test_completions_are_those_of_generate_in_order_and_cut_at_until(harness_model, model):
    prompts = ["Hello", "What is the answer to 17 + 25, once more?", "Hello", "", "two and two are", "Hello"]
    own = harness_model(**LENGTHS, temperature=1.0, seed=5)
    expected = [done.text for done in model.generate(prompts, **LENGTHS, temperature=1.0, seed=5)]
    assert len(set(expected)) == len(prompts)
    assert own.generate_until(requests("generate_until", *((prompt, {"until": []}) for prompt in prompts))) == expected
    end = expected[1][len(expected[1]) // 2]
    [text] = own.generate_until(requests("generate_until", (prompts[1], {"until": ["never", end], "max_gen_toks": 3})))
    assert text == expected[1].partition(end)[0] != expected[1]


@pytest.mark.slow
def test_log_likelihoods_are_those_of_score_and_greedy_means_decoded(harness_model, model, caplog):
    own = harness_model(draws=16, seed=3)
    [greedy] = model.generate(["two and two"], completion_length=3, block_length=3)
    texts = [("two and two", " are"), ("two and two", " are four"), ("", "What")]
    with caplog.at_level("INFO", "lm_eval"):
        found = own.loglikelihood(requests("loglikelihood", *texts, ("two and two ", "are")))
    scores = [model.score(*text, draws=16, seed=3) for text in texts]
    assert [value for value, _ in found] == [score.log_likelihood for score in (*scores, scores[0])]
    errors = [score.standard_error for score in (*scores, scores[0])]
    assert f"draws=16: standard errors of {sum(errors) / 4:.3g} nats on average, at most {max(errors):.3g}" in caplog.text
    tokens = greedy.tokens.tolist()
    assert own._greedy([([7, 8], tokens), (model.encode("two and two"), tokens)])[1] is True
    assert own._greedy([(model.encode("two and two"), [tokens[0], tokens[1], tokens[2] + 1])]) == [False]


def test_chats_are_encoded_as_generate_encodes_them(harness_model, model):
    own = harness_model()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|eot_id|>?"}]
    text = own.apply_chat_template(messages)
    assert own._encode(text) == model.encode(messages) == own._encode(pickle.loads(pickle.dumps(text)))
    assert "Be brief." in text and model.encode(text) != model.encode(messages)
    begun = own.apply_chat_template([*messages, {"role": "assistant", "content": "It is"}], add_generation_prompt=False)
    assert own._encode(begun) == model.encode(messages) + model.encode("It is")
    [done] = own.generate_until(requests("generate_until", (text, {"until": "never"})))
    assert done == model.generate([messages])[0].text


@pytest.mark.parametrize("arguments, message", [
    ({}, "--model_args: path=DIR is missing"),
    ({"path": "nowhere"}, "--model_args: path: there is no folder 'nowhere'"),
    ({"path": "nowhere", "lenght": 3}, "--model_args: lenght: there is no such argument; there are: path, draws, seed, "),
    ({"path": "nowhere", "steps": "many"}, "--model_args: steps='many' is not of the type int"),
    ({"path": "nowhere", "draws": 0}, "--model_args: draws=0 must be at least 1"),
    ({"path": "nowhere", "draws": 10**12}, "--model_args: draws=1000000000000 must be at most 65536"),
    ({"path": "nowhere", "seed": 2**32}, "--model_args: seed=4294967296 must be within [0, 4294967295]"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiffusionHarnessModel(**arguments)


def test_equal_contexts_are_in_one_batch():
    contexts = [[1], [2, 2], [1], [3], [1], [2, 2], [4]]
    batches = list(adapter._in_batches(contexts, 2))
    assert batches == [[1, 5], [0, 2, 4], [3, 6]]


def harness(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the command without a network. (Processes that `commands` starts cannot import torch, which datasets does.)"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    command = [sys.executable, "-m", "igpo_jax.lm_eval", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300)


def compared(folder: pathlib.Path, benchmark: str, pattern: str, *arguments: str) -> float:
    """Asserts that the harness has the completions of an evaluation, for its problems. Returns its accuracy on them. The harness
    also gets each question with the model's own answer, which is right however well the model was trained."""
    rows = read_rows(folder / "evaluated" / f"{benchmark}.jsonl")
    texts = [row["completions"][0]["text"] for row in rows]
    own = [re.search(pattern.replace("\\\\", "\\"), text) for text in texts]
    problems = [{key: row[key] for key in ("question", "answer")} for row in rows]
    problems += [{"question": row["question"], "answer": found[1]} for row, found in zip(rows, own, strict=True) if found]
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (folder / "own.yaml").write_text(TASK.format(file=folder / "problems.jsonl", pattern=pattern))
    stored = ("--include_path", ".", "--log_samples", "--output_path", "out")
    done = harness(folder, "--model", "igpo_jax", "--tasks", "own", *stored, *arguments)
    assert done.returncode == 0, done.stderr
    [samples] = (folder / "out").rglob("samples_own*.jsonl")
    found = sorted(read_rows(samples), key=lambda row: row["doc_id"])
    right = [bool(row["exact_match"]) for row in found]
    assert [row["resps"] for row in found[: len(rows)]] == [[[text]] for text in texts]
    assert right[: len(rows)] == [row["completions"][0]["correct"] for row in rows] and all(right[len(rows) :])
    [results] = (folder / "out").rglob("results*.json")
    assert json.loads(results.read_text())["results"]["own"]["exact_match,answer"] == pytest.approx(np.mean(right))
    return float(np.mean(right[: len(rows)]))


@pytest.mark.slow
def test_accuracies_are_those_of_evaluate_for_a_run(command, finished, tmp_path):
    done = command("evaluate", f"--workdir={finished}", "--output=evaluated", "--json", cwd=tmp_path)
    accuracy = json.loads(done.stdout)["benchmarks"]["arithmetic"]["pass@1"]
    assert accuracy < 1
    assert accuracy == compared(tmp_path, "arithmetic", r"=(\\d\\d)$", "--model_args", f"path={finished}")
    assert len(read_rows(tmp_path / "problems.jsonl")) > len(read_rows(tmp_path / "evaluated" / "arithmetic.jsonl"))


@pytest.mark.slow
def test_completions_are_those_of_evaluate_for_llada(command, llada, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": f"{n + 1}"}) + "\n" for n in range(9))
    )
    lengths = [f"--config.decode.{name}={value}" for name, value in LENGTHS.items()]
    benchmark = "--config.benchmarks.gsm8k.task.test=jsonl:test.jsonl"
    config = ("--config=evaluate_math.py", f"--config.model={llada}", "--output=evaluated", "--benchmarks=gsm8k")
    done = command("evaluate", *config, benchmark, *lengths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arguments = ",".join(f"{name}={value}" for name, value in LENGTHS.items())
    found = compared(tmp_path, "gsm8k", r"(\\d+)", "--model_args", f"path={llada},{arguments}", "--apply_chat_template")
    assert found == 0


@pytest.mark.slow
def test_the_tasks_of_the_document_run(finished, tmp_path):
    document = (ROOT / "docs" / "lm_eval.md").read_text()
    for block in blocks_of(document):
        (tmp_path / block.name).write_text(block.text)
    [command] = [line for line in document.splitlines() if "--include_path" in line]
    arguments = command.replace("runs/arithmetic", f"{finished},draws=8").split()[3:]
    done = harness(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|solutions *\|.*\|acc +\|", done.stdout) and re.search(r"\|sums *\|.*\|exact_match\|", done.stdout)
    model = igpo_jax.load(finished, mesh=one_device())
    rows = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    scores = [[model.score(row["question"], text, draws=8).log_likelihood for text in row["solutions"]] for row in rows]
    accuracy = float(re.search(r"\|solutions.*?\|acc +\|[^|]*\|(.*?)\|", done.stdout)[1])
    assert accuracy == sum(right > wrong for right, wrong in scores) / len(rows)


@pytest.mark.slow
def test_perplexities_and_unknown_models_are_one_line(finished, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"text": "85+10="}\n')
    task = TASK.format(file=tmp_path / "problems.jsonl", pattern="x").replace("generate_until", "loglikelihood_rolling")
    task = re.sub("(?m)^(generation_kwargs|filter_list|metric_list).*$", "", task)
    (tmp_path / "own.yaml").write_text(task.replace("answer", "text").replace("question", "text"))
    flags = ("--tasks", "own", "--include_path", str(tmp_path))
    for model, message in (("igpo_jax", "does not evaluate tasks of the type loglikelihood_rolling"), ("x", "no model")):
        done = harness(tmp_path, "--model", model, "--model_args", f"path={finished}", *flags)
        assert done.returncode == 1 and "Traceback" not in done.stderr and message in done.stderr.splitlines()[-1]
