"""Evaluations as a user runs them: reproducible rows, resumption, and comparisons that refuse mismatched evaluations."""

import json
import pathlib
import runpy
import shutil

import pytest
from sentencepiece import sentencepiece_model_pb2

from igpo_jax.config import to_json
from igpo_jax.evaluate.benchmark import compare
from igpo_jax.evaluate.protocol import (
    base_digest,
    base_evaluation,
    benchmark,
    benchmark_protocol,
    require_same_code,
    run_evaluation,
    weights_digest,
)
from igpo_jax.run.metrics import read_rows
from igpo_jax.runtime.files import as_json_lines, require_same_identity
from igpo_jax.tasks import arithmetic
from processes import ends, start

TINY = pathlib.Path(__file__).parent / "tiny.py"
UPDATES, ITERATIONS = 200, 6  # as in tiny.py
CONFIG = """
from igpo_jax.evaluate.protocol import base_evaluation, benchmark
from igpo_jax.tasks import arithmetic

def get_config():
    config = base_evaluation()
    config.update({"chat": False, "prompt_buckets": (9, 16), "batch_size": 8})
    config.decode.update({"completion_length": 16, "block_length": 8, "steps": 8})
    task = arithmetic.defaults(slots=2, test_problems=20)
    config.benchmarks.sums = benchmark(task)
    config.benchmarks.drawn = benchmark(task, draws=3, temperature=0.7, problems=7)
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "sums.py"
    path.write_text(CONFIG)
    return path


def evaluated(command, config, model, output, *flags):
    done = command("evaluate", f"--config={config}", f"--config.model={model}", f"--output={output}", "--json", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((output / "card.json").read_text())
    return {name: (output / f"{name}.jsonl").read_text() for name in ("sums", "drawn") if (output / f"{name}.jsonl").exists()}


@pytest.fixture(scope="module")
def expected(command, config, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "out"
    return folder, evaluated(command, config, finished, folder)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does_and_the_first_prints_the_results(config, finished, expected, tmp_path):
    flags = [f"--config.model={finished}", f"--output={tmp_path / 'out'}", "--benchmarks=sums"]
    codes, outputs = ends(start(2, 2, flags, flags, folder=tmp_path, config=str(config), command="evaluate"), tmp_path)
    assert codes == [0, 0], outputs
    assert (tmp_path / "out" / "sums.jsonl").read_text() == expected[1]["sums"]
    assert [output.count("of 20 problems") for output in outputs] == [1, 0]


@pytest.mark.slow
def test_a_card_says_all_that_is_needed_to_judge_its_numbers(expected, finished):
    card = json.loads((expected[0] / "card.json").read_text())
    assert card["model"]["origin"] == {"path": finished.name, "stage": "rl", "step": ITERATIONS}
    assert card["benchmarks"]["sums"]["problems"] == 20 and card["benchmarks"]["drawn"]["draws"] == 3
    assert set(card["benchmarks"]["drawn"]) >= {"pass@1", "avg@3", "pass@2", "pass@3", "interval95", "of_each_draw"}
    protocol = card["protocol"]["drawn"]
    assert protocol["decode"]["temperature"] == 0.7 and protocol["decode"]["steps"] == 8 and len(protocol["data"]) == 16
    assert card["versions"]["jax"] and card["device"] == "1 x cpu" and card["date"] and "commit" in card
    rows = read_rows(expected[0] / "drawn.jsonl")
    assert len(rows) == 7 and [c["draw"] for c in rows[0]["completions"]] == [0, 1, 2]
    assert set(rows[0]["completions"][0]) == {"draw", "text", "extracted_answer", "reward", "correct", "outcome", "steps"}


@pytest.mark.slow
@pytest.mark.parametrize("flags, devices", [
    ((), 1), (("--config.batch_size=5",), 1),
    (("--config.batch_size=16", "--config.mesh.tensor=2"), 8),
])  # fmt: skip
def test_batch_size_and_mesh_change_nothing(flags, devices, command, config, finished, expected, tmp_path):
    again = evaluated(command.on_devices(devices), config, finished, tmp_path / "out", *flags)
    assert again["sums"] == expected[1]["sums"]
    if devices == 1:
        assert again == expected[1]


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(command, config, finished, expected, tmp_path):
    folder = shutil.copytree(expected[0], tmp_path / "out")
    (folder / "card.json").unlink()
    (folder / "drawn.jsonl").unlink()
    lines = expected[1]["sums"].splitlines(keepends=True)
    (folder / "sums.jsonl").write_text("".join(lines[:9]) + lines[9][:30])  # killed in the middle of a line
    assert evaluated(command, config, finished, folder) == expected[1]


@pytest.mark.slow
def test_benchmarks_without_files_are_left_out_if_others_have_files(command, finished, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    config = ("--config=evaluate_math.py", f"--config.model={finished}", f"--output={tmp_path / 'out'}", "--config.chat=False")
    short = [f"--config.decode.{name}=8" for name in ("completion_length", "block_length", "steps")]
    done = command("evaluate", *config, *short, f"--config.benchmarks.gsm8k.task.test=jsonl:{tmp_path / 'gsm8k.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "out" / "card.json").read_text())["benchmarks"]) == ["gsm8k"]
    assert "no files are given for them: countdown, sudoku" in done.stderr


@pytest.mark.parametrize("form", ["[{}]", "{}\n{}\n"], ids=["array", "lines"])
def test_problems_in_the_output_folder_are_not_replaced(form, command, finished, tmp_path):
    file, content = tmp_path / "gsm8k.jsonl", form.replace("{}", '{"question": "1+1?", "answer": "#### 2"}')
    file.write_text(content)
    flags = (f"--config.model={finished}", "--config.chat=False", f"--config.benchmarks.gsm8k.task.test=gsm8k:{file}")
    done = command("evaluate", "--config=evaluate_math.py", f"--output={tmp_path}", *flags)
    refusal = f"error: {file} is of no evaluation, because there is no protocol.json; give another --output"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == refusal, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["gsm8k.jsonl"] and file.read_text() == content


def test_rows_of_a_comparison_of_samplers_are_not_replaced(command, config, finished, tmp_path):
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "sums.jsonl").write_text("mine")
    flags = (f"--config.model={finished}", "--sampler-error", "--sampler=cache=dual", f"--output={tmp_path}")
    done = command("evaluate", f"--config={config}", *flags)
    assert done.returncode == 1 and f"error: {tmp_path}/fast/sums.jsonl is of no evaluation, because" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fast"]


def test_a_folder_keeps_to_its_model_and_protocol(command, config, finished, expected):
    for flags in (["--config.decode.steps=4"], ["--config.stage=sft"]):
        done = command("evaluate", f"--config={config}", f"--config.model={finished}", f"--output={expected[0]}", *flags)
        assert done.returncode == 1 and "holds another evaluation (differing: " in done.stderr


def test_a_folder_keeps_to_its_tokenizer(command, config, finished, expected, tmp_path):
    """With two pieces exchanged, the same weights read other prompts and write other texts."""
    run = shutil.copytree(finished, tmp_path / "run")
    model = sentencepiece_model_pb2.ModelProto.FromString((run / "tokenizer.model").read_bytes())
    one, other = [piece for piece in model.pieces if piece.piece in ("1", "2")]
    one.piece, other.piece = other.piece, one.piece
    (run / "tokenizer.model").write_bytes(model.SerializeToString())
    given = (f"--config={config}", f"--config.model={run}", f"--output={expected[0]}")
    done = command("evaluate", *given)
    refusal = f"error: {expected[0]} holds another evaluation (differing: tokenizer.hash); give another --output"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == refusal, done.stderr


def test_a_run_is_graded_as_it_grades_itself(command, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((finished / "result.json").read_text())
    for flags, key, name in (([], "after_rl", f"rl-{ITERATIONS}"), (["--stage=sft"], "before_rl", f"sft-{UPDATES}")):
        done = command("evaluate", f"--workdir={workdir}", *flags)
        assert done.returncode == 0, done.stderr
        folder = workdir / "evaluations" / name
        card = json.loads((folder / "card.json").read_text())
        low, high = (f"{100 * bound:.1f}" for bound in result[key]["interval95"])
        accuracy = f"{100 * result[key]['accuracy']:.1f}% of {result[key]['problems']} problems (95% interval {low} to {high})"
        assert done.stdout == f"arithmetic: {accuracy}\nall numbers: {folder / 'card.json'}\n"
        assert card["benchmarks"]["arithmetic"]["pass@1"] == result[key]["accuracy"]
        assert card["benchmarks"]["arithmetic"]["interval95"] == result[key]["interval95"]
        assert card["protocol"]["arithmetic"]["decode"] == result["decode"]["evaluation"]
        assert (folder / "arithmetic.jsonl").is_file()


@pytest.mark.slow
def test_two_evaluations_are_compared_problem_by_problem(command, config, finished, expected, tmp_path):
    before = tmp_path / "sft"
    evaluated(command, config, finished, before, "--config.stage=sft", "--benchmarks=sums")
    done = command("evaluate", "diff", str(before), str(expected[0]), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lines = command("evaluate", "diff", str(before), str(expected[0])).stdout.splitlines()
    one, other = (f"{100 * found['sums'][key]:.1f}%" for key in ("one", "other"))
    assert lines[0] == "drawn: only one of the two evaluations has it" and lines[1].startswith(f"sums: {one} -> {other} (")
    assert set(found) == {"sums", "drawn"} and found["drawn"] is None  # only one evaluation has it
    accuracies = [
        json.loads((folder / "card.json").read_text())["benchmarks"]["sums"]["pass@1"] for folder in (before, expected[0])
    ]
    assert [found["sums"][key] for key in ("one", "other")] == accuracies
    assert found["sums"]["difference"] == pytest.approx(accuracies[1] - accuracies[0]) and 0 < found["sums"]["p_value"] <= 1


@pytest.mark.slow
def test_stored_texts_of_an_evaluation_are_graded_again(command, expected, tmp_path):
    done = command("evaluate", f"--regrade={expected[0]}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    card = json.loads((expected[0] / "card.json").read_text())["benchmarks"]
    found = json.loads((tmp_path / "regrade.json").read_text())["results"]
    for name, draws in (("sums", 1), ("drawn", 3)):
        stored = found[name]["graders"]["stored correct"]
        assert stored["accuracy"] == pytest.approx(card[name]["pass@1"]) and stored["interval95"] == card[name]["interval95"]
        assert found[name]["texts"] == draws * found[name]["problems"] == draws * card[name]["problems"]


def test_a_run_hands_its_grader_and_its_numbers_to_its_evaluation(tmp_path):
    config = runpy.run_path(str(TINY))["get_config"]()
    config.reward.update({"function": "mine:f", "after_eos": True, "deadline_seconds": 3.0})
    config.model.compute_dtype = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    found = run_evaluation(str(tmp_path), None, trust=["mine:f"])
    assert found.reward.to_dict() == {"function": "mine:f", "workers": 2, "deadline_seconds": 3.0, "after_eos": True}
    protocol = benchmark_protocol(found, "arithmetic", [])
    assert protocol["reward"] == {"function": "mine:f", "deadline_seconds": 3.0, "after_eos": True}
    assert protocol["dtype"] == "bfloat16" and protocol["decode"]["temperature"] == 0.0
    assert protocol["task"] == {"name": "arithmetic"}  # without the keys of supervised data


def test_an_evaluation_does_not_mix_two_versions_of_a_reward_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = base_evaluation()
    config.reward.function = "own_grader:f"
    config.benchmarks.arithmetic = benchmark(arithmetic.defaults())

    def protocol(source: str) -> dict:
        (tmp_path / "own_grader.py").write_text(source)
        return {"arithmetic": benchmark_protocol(config, "arithmetic", [])}

    file, first = tmp_path / "protocol.json", protocol("def f(problem, text): return 1.0")
    require_same_identity(file, first, "evaluation")
    require_same_identity(file, protocol("def f(problem, text): return 1.0"), "evaluation")
    with pytest.raises(ValueError, match=r"holds another evaluation \(differing: arithmetic.code\)"):
        require_same_identity(file, protocol("def f(problem, text): return 0.0"), "evaluation")
    with pytest.raises(ValueError, match="^benchmark arithmetic: the code of its task or reward has changed"):
        require_same_code(config, "arithmetic", first["arithmetic"])
    require_same_code(config, "arithmetic", benchmark_protocol(config, "arithmetic", []))
    config.reward.function = ""
    assert "code" not in benchmark_protocol(config, "arithmetic", [])


def test_the_digest_of_weights_is_of_what_is_in_them_not_of_where_they_are(finished, tmp_path):
    origin = {"path": str(finished), "stage": "rl", "step": ITERATIONS}
    copy = origin | {"path": str(shutil.copytree(finished, tmp_path / "copy"))}
    assert weights_digest(origin) == weights_digest(copy) != weights_digest(origin | {"step": ITERATIONS - 1})
    file = max((tmp_path / "copy" / "checkpoints" / "rl" / str(ITERATIONS)).rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert weights_digest(origin) != weights_digest(copy)


@pytest.mark.slow
def test_protocols_that_differ_are_not_compared(command, config, finished, expected, tmp_path):
    other = tmp_path / "other"
    evaluated(command, config, finished, other, "--config.decode.steps=4", "--benchmarks=sums")
    done = command("evaluate", "diff", str(expected[0]), str(other))
    assert done.returncode == 1 and "decode.steps: 8 and 4" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (("--workdir={tmp}",), "holds no run: it has no config.json"), ((), "give either --workdir=RUN, or --config=FILE"),
    (("--config={config}",), "--config.model=FOLDER is missing"), (("diff", "{tmp}"), "evaluate diff DIR DIR"),
    (("diff", "{tmp}", "{tmp}"), "holds no finished evaluation"), (("--config={config}", "--config.model={tmp}", "--output={tmp}/x"), "config.json is missing"),
    (("--config={config}", "--config.model={run}"), None), (("--config={config}", "--config.model=x", "--benchmarks=products"), "--benchmarks=products: there are drawn, sums"),
    (("--config=evaluate_math.py", "--config.model=x", "--benchmarks=gsm8k"), "benchmark gsm8k: task.test is empty"),
    (("--config=evaluate_math.py:d2",), "has no protocol 'd2'"),
    (("--config={config}", "--config.model=x", "--config.reward.function=task + m"), "reward.function='task + m': 'm' is neither task nor"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(arguments, message, command, config, finished, tmp_path):
    given = [argument.format(tmp=tmp_path, config=config, run=finished) for argument in arguments]
    done = command("evaluate", *given)
    if message is None:  # a run's folder has a default place for its evaluations
        assert done.returncode == 0 and (finished / "evaluations" / f"rl-{ITERATIONS}" / "card.json").is_file()
        shutil.rmtree(finished / "evaluations")
        return
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_configs_of_the_repository_are_protocols():
    path = pathlib.Path(__file__).parents[2] / "configs" / "evaluate_math.py"
    get_config = runpy.run_path(str(path))["get_config"]
    paper = get_config()
    assert (paper.benchmarks.amc.draws, paper.benchmarks.amc.temperature) == (16, 0.1)
    assert paper.decode.to_dict()["steps"] == 128 and get_config("d1-512").decode.steps == 256


def test_a_problem_without_a_verdict_on_one_side_is_left_out(expected, tmp_path):
    folder = shutil.copytree(expected[0], tmp_path / "late")
    rows = read_rows(folder / "sums.jsonl")
    rows[0]["completions"][0] |= {"outcome": "timeout", "correct": False, "reward": 0.0}
    (folder / "sums.jsonl").write_text(as_json_lines(rows))
    for pair in ((folder, expected[0]), (expected[0], folder)):
        found = compare(*pair)["sums"]
        assert (found["problems"], found["left_out"], found["difference"]) == (19, 1, 0.0)
    for row in rows:
        row["completions"][0]["outcome"] = "error"
    (folder / "sums.jsonl").write_text(as_json_lines(rows))
    with pytest.raises(ValueError, match="benchmark sums: no problem has a verdict in both evaluations"):
        compare(folder, expected[0])


def test_the_hash_of_a_base_model_needs_no_trust(tmp_path):
    """A run of a user's own task was refused here, although --trust named the task."""
    values = {"task": {"name": "mytask"}, "model": {"path": ""}, "lora": {"rank": 0}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert base_digest({"path": tmp_path, "stage": "rl", "step": 6}) == base_digest({"path": tmp_path}) == ""
    (tmp_path / "config.json").write_text("{}")  # all keys have their default values
    assert base_digest({"path": tmp_path, "stage": "rl", "step": 6}) == ""
