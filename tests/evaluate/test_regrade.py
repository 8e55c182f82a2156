"""Stored generations are read from three formats, and every grader gives the same verdicts as when it is called alone."""

import contextlib
import json
import math
import os
import pathlib
import signal
import time

import numpy as np
import pytest

import commands
import igpo_jax
from igpo_jax.evaluate import regrade as module
from igpo_jax.evaluate.generations import Generation, find_files, protocol_rule, read_generations
from igpo_jax.evaluate.regrade import (
    GRADERS,
    KINDS,
    accuracy,
    as_text,
    compare_graders,
    differing,
    grade_all,
    paired_test,
    regrade,
    require_finished,
    stored_verdicts,
)
from igpo_jax.grading.reference_code import correct
from igpo_jax.runtime.progress import progress
from igpo_jax.runtime.statistics import wilson

# gold, text: the graders differ on units, <answer> tags, boxes, decimals and commas.
CASES = [
    ("7", "So it is \\boxed{7}."), ("7", "So it is \\boxed{8}."), ("7", "<answer>7</answer>"), ("1/2", "\\boxed{0.5}"),
    ("\\frac{1}{2}", "\\boxed{\\frac12}"), ("1000", "#### 1,000"), ("1000", "\\boxed{1,000}"), ("10", "\\boxed{10 \\text{ cm}}"),
    ("(1, 2)", "\\boxed{(1,2)}"), ("[0, 3)", "no answer"), ("18", "18 of 20 are left, so 2"), ("x+1", "$\\boxed{1+x}$"),
]  # fmt: skip
HANGING = ("1", "\\boxed{9^{9^{9^9}}}")  # math-verify computes until its time limit


def graded_alone(gold, text, rule):
    from math_verify import parse, verify

    boxed = gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"
    verdicts = (igpo_jax.grade(gold, text, rule), verify(parse(boxed), parse(text)), correct(gold, text))
    return dict(zip(GRADERS, ["right" if verdict else "wrong" for verdict in verdicts], strict=True))


def assert_graded_as_alone(generations, rule):
    with progress(len(generations), 0, "graded", leave=False) as bar:
        found = grade_all(generations, rule, bar)
    for number, one in enumerate(generations):
        assert {name: found[name][number] for name in GRADERS} == graded_alone(one.gold, one.text, rule), one
    assert len({tuple(column) for column in found.values()}) > 1  # the graders differ on these texts


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluation(folder, cases=CASES, draws=1, rule="box"):
    """Writes an evaluation with the benchmarks sums, which has `draws` equal completions per problem, and countdown."""
    folder.mkdir(parents=True)
    tasks = {"sums": {"name": "math", "answer": rule, "reference_code": False}, "countdown": {"name": "countdown"}}
    protocol = {name: {"task": task, "draws": draws, "problems": len(cases)} for name, task in tasks.items()}
    (folder / "protocol.json").write_text(json.dumps({"weights": "0" * 16, "protocol": protocol}))
    completion = {"extracted_answer": None, "reward": 0.0, "outcome": "ok", "steps": 8}
    rows = []
    for number, (gold, text) in enumerate(cases):
        completions = [{"draw": draw, "text": text, "correct": number % 2 == 0, **completion} for draw in range(draws)]
        rows.append({"id": f"p{number}", "question": "?", "answer": gold, "completions": completions})
    for name in tasks:
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


def harness_rows(docs, filters=("strict-match", "flexible-extract"), **fields):
    """Rows as lm-evaluation-harness 0.4.9 writes them with --log_samples: all documents for the first filter, then all for the
    next one. `docs` has (doc, target, texts)."""
    return [
        {
            "doc_id": number, "doc": doc, "target": target,
            "arguments": {"gen_args_0": {"arg_0": "Question: ?\nAnswer:", "arg_1": {"until": ["Question:"], "do_sample": False}}},
            "resps": [texts], "filtered_resps": ["[invalid]"], "filter": name, "metrics": ["exact_match"],
            "doc_hash": "a" * 64, "prompt_hash": "b" * 64, "target_hash": "c" * 64, "exact_match": float(number % 2 == place),
        }
        | fields
        for place, name in enumerate(filters)
        for number, (doc, target, texts) in enumerate(docs)
    ]  # fmt: skip


def gsm8k(gold, *texts):
    answer = f"First, 3*2 = <<3*2=6>>6.\nThen it follows.\n#### {gold}"
    return {"question": "?", "answer": answer}, answer, list(texts)


@pytest.mark.slow
def test_an_evaluation_is_graded_by_its_protocols_rule(tmp_path):
    folder = evaluation(tmp_path / "run" / "evaluations" / "rl-6")
    files, left_out = find_files(tmp_path / "run", [])  # the run has one evaluation
    assert files == [folder / "sums.jsonl"] and left_out == {"countdown": "accepts several answers"}
    assert protocol_rule(files[0]) == "box"
    generations = read_generations(files[0])
    assert [(one.gold, one.text) for one in generations] == CASES and generations[3].id == "p3"
    assert_graded_as_alone(generations, "box")


@pytest.mark.slow
def test_a_completion_that_an_evaluation_could_not_grade_has_no_stored_verdict(tmp_path):
    file = evaluation(tmp_path / "sums") / "sums.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["completions"][0] |= {"correct": False, "outcome": "timeout"}
    del rows[1]["completions"][0]["outcome"]  # as in earlier versions
    first, second, third, *_ = read_generations(write_lines(file, rows))
    assert (first.stored, second.stored, third.stored) == ({}, {"correct": False}, {"correct": True})
    for key, value in (("correct", "yes"), ("outcome", "fine")):
        changed = [*rows[:2], rows[2] | {"completions": [rows[2]["completions"][0] | {key: value}]}]
        with pytest.raises(ValueError, match=rf"sums.jsonl, line 3: completions\[0\]: '{key}' is n"):
            read_generations(write_lines(file, changed))


@pytest.mark.parametrize("change, message", [
    (lambda lines: lines[:5], "5 rows for 12 problems; run its evaluation again, which completes it"),
    (lambda lines: lines[:3] + lines[4:], "11 rows for 12 problems; run its evaluation again, which completes it"),
    (lambda lines: [*lines[:-1], lines[-1][:-30]], "line 12: not JSON"),
])  # fmt: skip
def test_an_evaluation_that_lost_rows_is_not_graded(change, message, tmp_path):
    file = evaluation(tmp_path / "sums") / "sums.jsonl"
    require_finished(file)
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    for path in (file, file.parent):
        with pytest.raises(ValueError, match=f"{file}(:|,) {message}"):
            regrade(path, None, [], tmp_path / "regraded")
    assert not (tmp_path / "regraded").exists()
    protocol = file.with_name("protocol.json")
    protocol.write_text('{"protocol": {"sums": {"task": {}}}}')
    with pytest.raises(ValueError, match=f"{protocol}: draws or problems of sums is missing; restore the file from a copy"):
        require_finished(file)


@pytest.mark.parametrize("name", ["exact", "fast"])
def test_a_comparison_of_samplers_has_its_protocol_one_folder_up(name, tmp_path, monkeypatch):
    folder = evaluation(tmp_path / "rl-6-sampler") / name
    folder.mkdir()
    file = (folder.parent / "sums.jsonl").rename(folder / "sums.jsonl")
    monkeypatch.chdir(folder)
    for path in (file, pathlib.Path("sums.jsonl")):
        assert protocol_rule(path) == "box"
    require_finished(file)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    for path in (file, pathlib.Path("sums.jsonl")):
        with pytest.raises(ValueError, match="sums.jsonl: 5 rows for 12 problems; run its evaluation again"):
            regrade(path, None, [], None)
    own = folder / "own" / "sums.jsonl"  # a copy in a folder of another name belongs to no evaluation
    own.parent.mkdir()
    file.rename(own)
    assert protocol_rule(own) is None


def test_a_file_of_the_harness_has_a_row_per_filter_but_its_texts_once(tmp_path):
    docs = [gsm8k(gold, text) for gold, text in CASES]
    file = write_lines(tmp_path / "samples_gsm8k_2025-09-01T10-00-00.000000.jsonl", harness_rows(docs))
    assert find_files(tmp_path, []) == ([file], {})
    generations = read_generations(file)
    assert [(one.gold, one.text) for one in generations] == CASES
    scores = [one.stored for one in generations[:2]]
    assert scores == [
        {"exact_match,strict-match": True, "exact_match,flexible-extract": False},
        {"exact_match,strict-match": False, "exact_match,flexible-extract": True},
    ]
    assert_graded_as_alone(generations, "number")


def test_a_score_of_the_harness_belongs_to_the_first_of_several_texts(tmp_path):
    rows = harness_rows([gsm8k("7", "7", "8", "9")], ["maj@3"])
    generations = read_generations(write_lines(tmp_path / "samples.jsonl", rows))
    assert [(one.id, one.sample, one.text) for one in generations] == [("0", 0, "7"), ("0", 1, "8"), ("0", 2, "9")]
    assert [one.stored for one in generations] == [{"exact_match,maj@3": True}, {}, {}]


def test_scores_of_old_harness_files_without_names_of_filters_are_numbered(tmp_path):
    rows = harness_rows([gsm8k("7", "7"), gsm8k("8", "8")])
    for row in rows:
        del row["filter"], row["metrics"]
    one = read_generations(write_lines(tmp_path / "samples.jsonl", rows))[0]
    assert one.stored == {"exact_match,filter 1": True, "exact_match,filter 2": False}


@pytest.mark.parametrize("doc, target, gold", [
    ({"problem": "?", "solution": "It is $\\boxed{5}$.", "answer": "5"}, "5", "5"),  # hendrycks_math, minerva_math
    ({"solution": "Half.\nSo $\\boxed{\\frac12}$.", "answer": "\\frac12"}, "Half.\nSo $\\boxed{\\frac12}$.", "\\frac12"),
    ({"answer": "Add.\n#### 1,000"}, "Add.\n#### 1,000", "1,000"), ({"answer": 12}, "", "12"), ({}, "(C)", "(C)"),
])  # fmt: skip
def test_the_gold_answer_of_the_harness_is_the_target_or_in_the_document(doc, target, gold, tmp_path):
    file = write_lines(tmp_path / "samples.jsonl", harness_rows([(doc, target, ["text"])], ["none"]))
    assert [one.gold for one in read_generations(file)] == [gold]


@pytest.mark.slow
def test_plain_rows_may_use_either_name_of_a_key(tmp_path):
    rows = [
        {"gold": gold, "text": text} if i % 2 else {"answer": gold, "completion": text} for i, (gold, text) in enumerate(CASES)
    ]
    rows += [{"id": "a", "gold": 7, "text": "7"}, {"id": "a", "gold": 7, "text": "8"}]
    generations = read_generations(write_lines(tmp_path / "texts.jsonl", rows))
    assert [(one.gold, one.text) for one in generations[:-2]] == CASES and generations[1].id == "line 2"
    assert [(one.id, one.sample, one.gold) for one in generations[-2:]] == [("a", 0, "7"), ("a", 1, "7")]
    assert_graded_as_alone(generations, "any")


def test_a_gold_number_that_a_float_would_round_is_read_as_its_text(tmp_path):
    golds = ["12345678901234567890.0", "0.1234567890123456789", "3.5", "2.0"]
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"gold": {gold}, "text": "7"}}\n' for gold in golds))
    assert [one.gold for one in read_generations(tmp_path / "texts.jsonl")] == golds


def test_mcnemars_test_of_a_case_computed_by_hand():
    one = np.array([1.0] * 1 + [0.0] * 8 + [1.0] * 5 + [0.0] * 6 + [np.nan, 1.0])
    other = np.array([0.0] * 1 + [1.0] * 8 + [1.0] * 5 + [0.0] * 6 + [1.0, np.nan])
    # Of 9 fair coins, at most 1 is heads with probability (1 + 9) / 2^9.
    assert paired_test(one, other) == {"n": 20, "only_first": 1, "only_second": 8, "p_value": 2 * 10 / 512}
    assert paired_test(one, one) == {"n": 21, "only_first": 0, "only_second": 0, "p_value": 1.0}


def test_texts_without_a_verdict_do_not_count():
    found = accuracy(np.array([1, 1, 0, np.nan]), np.arange(4))
    assert found == {"verdicts": 3, "right": 2, "accuracy": pytest.approx(2 / 3), "interval95": wilson(2 / 3, 3)}
    assert accuracy(np.array([np.nan]), np.arange(1))["accuracy"] is None


def test_samples_of_a_problem_count_for_accuracies_and_only_the_first_for_pairs(tmp_path):
    rows = [{"id": name, "gold": "7", "text": text} for name in "ab" for text in "123"]
    generations = read_generations(write_lines(tmp_path / "texts.jsonl", rows))
    verdicts = {
        "x": ["right", "wrong", "wrong", "wrong", "right", "timeout"],
        "y": ["right", "right", "wrong", "right", "", "error"],
    }
    found = compare_graders(generations, verdicts)
    assert (found["problems"], found["texts"]) == (2, 6)
    assert found["graders"]["x"]["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert [found["graders"]["x"][key] for key in ("right", "verdicts", "timeout", "error")] == [2, 5, 1, 0]
    assert found["pairs"] == [{"first": "x", "second": "y", "n": 2, "only_first": 0, "only_second": 1, "p_value": 1.0}]
    assert [(row["id"], row["sample"], row["differ"]) for row in differing(generations, verdicts)] == [
        ("a", 1, True), ("b", 0, True), ("b", 2, False),
    ]  # fmt: skip


def test_an_example_is_short_and_has_three_lines():
    shown = module.example({"id": "a\nb" * 1000, "sample": 0, "gold": "c\n" * 1000, "text": "d\n" * 1000})
    assert len(shown.splitlines()) == 3 and len(shown) < 4 * module.SHOWN_CHARS


@pytest.mark.slow
def test_a_text_on_which_a_grader_hangs_gets_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE_SECONDS", 2.0)
    rows = [{"gold": gold, "text": text} for gold, text in (HANGING, ("7", "\\boxed{7}"))]
    report = regrade(write_lines(tmp_path / "texts.jsonl", rows), None, [], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "regrade.json").read_text())["results"]["texts"]
    assert (found["graders"]["math_verify"]["timeout"], found["graders"]["math_verify"]["verdicts"]) == (1, 1)
    assert [pair["n"] for pair in found["pairs"]] == [1, 2, 1] and found["disagreements"] == 0
    assert "wrong: igpo_jax, reference_code; timeout: math_verify (1)" in report


@pytest.mark.slow
def test_a_report_names_graders_stored_scores_and_all_disagreements(tmp_path):
    report = regrade(evaluation(tmp_path / "evaluation", draws=2), None, [], tmp_path / "out")
    card = json.loads((tmp_path / "out" / "regrade.json").read_text())
    found = card["results"]["sums"]
    assert card["not_regraded"] == {"countdown": "accepts several answers"}
    assert (found["problems"], found["texts"], found["rule"]) == (len(CASES), 2 * len(CASES), "box")
    assert found["graders"]["stored correct"]["accuracy"] == 0.5 and len(found["pairs"]) == 6
    alone = [
        graded_alone(gold, text, "box") | {"stored correct": "wrong" if i % 2 else "right"}
        for i, (gold, text) in enumerate(CASES)
    ]
    for name, numbers in found["graders"].items():
        assert numbers["right"] == 2 * sum(verdicts[name] == "right" for verdicts in alone)
    for pair in found["pairs"]:
        both = [(verdicts[pair["first"]], verdicts[pair["second"]]) for verdicts in alone]
        assert (pair["n"], pair["only_first"]) == (len(CASES), both.count(("right", "wrong")))
    rows = [json.loads(line) for line in (tmp_path / "out" / "disagreements.jsonl").read_text().splitlines()]
    expected = [(f"p{i}", draw) for i, verdicts in enumerate(alone) for draw in (0, 1) if len(set(verdicts.values())) > 1]
    assert [(row["id"], row["sample"]) for row in rows] == expected and len(expected) == found["disagreements"]
    assert all(row["verdicts"] == alone[int(row["id"][1:])] for row in rows)
    assert "Not regraded: countdown, which accepts several answers." in report and "    gold: 7\n" in report


@pytest.mark.parametrize("rows, message", [
    ([], "the file has no rows"), (["not JSON"], "line 1: not JSON"), ([[1]], "line 1: not a JSON object"),
    ([{"question": "?"}], "line 1: unknown format with the keys question"),
    ([{"gold": "7", "text": "7"}, {"gold": "7"}], "line 2: the key 'text' or 'completion' is missing"),
    ([{"gold": "7", "text": "7"}, {"text": "7"}], "line 2: the key 'gold' or 'answer' is missing"),
    ([{"gold": True, "text": "7"}], "line 1: 'gold' is bool, not text"), ([{"gold": " ", "text": ""}], "gold answer is empty"),
    ([{"id": 1, "gold": "7", "text": ""}, {"id": 1, "gold": "8", "text": ""}], "line 2: the id '1' has come before"),
    ([{"id": "p", "answer": "7", "completions": [{"correct": True}]}], "line 1: completions[0]: the key 'text' is missing"),
    ([{"id": "p", "answer": "7", "completions": []}], "line 1: the key 'completions' is missing or is no list"),
    (harness_rows([({}, "3", [["-1.5", "False"]])]), "line 1: 'resps' is not [[text, ...]]"),
    (harness_rows([({"solution": "One.\nTwo."}, "One.\nTwo.", ["text"])]), "line 1: 'target' is no answer"),
    (harness_rows([gsm8k("7", "text")], ["none", "none"]), "line 2: doc_id 0 has come before with the filter 'none'"),
    ([*harness_rows([gsm8k("7", "a")], ["x"]), *harness_rows([gsm8k("7", "b")], ["y"])], "line 2: 'resps' of doc_id 0 differs"),
    ([*harness_rows([gsm8k("7", "a")], ["x"]), *harness_rows([gsm8k("8", "a")], ["y"])], "line 2: 'target' of doc_id 0 differs"),
    (harness_rows([gsm8k("7", "a")], exact_match="yes"), "line 1: 'exact_match' is str, not a number"),
    (harness_rows([gsm8k("7\nextra", "a")]), "line 1: the target has further lines after the answer"),
    ([{"gold": math.nan, "text": "7"}], "line 1: 'gold' is nan, which is no finite number"),
    ([{"gold": math.inf, "text": "7"}], "line 1: 'gold' is inf, which is no finite number"),
    ([{"resps": [["a"]], "target": "7"}], "line 1: the key 'doc_id' is missing"),
    (harness_rows([gsm8k("7", "a")], map(str, range(3000))), "line 17: '16' is filter 17 of the file; at most 16"),
    (harness_rows([gsm8k("7", "a")], ["x" * 101]), "line 1: the filter 'xx"), (harness_rows([gsm8k("7", "a")], [7]), "the filter 7 is no text"),
])  # fmt: skip
def test_an_unusable_row_is_told_with_file_line_and_key(rows, message, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    with pytest.raises(ValueError) as error:
        read_generations(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_the_printed_kinds_of_disagreement_are_few():
    """A file can have a different combination of verdicts on every text."""
    names = [f"filter {number}" for number in range(8)]
    stored = [{name: bool(number >> place & 1) for place, name in enumerate(names)} for number in range(256)]
    generations = [Generation(str(number), 0, "7", "7", scores) for number, scores in enumerate(stored)]
    verdicts = stored_verdicts(generations)
    rows = differing(generations, verdicts)
    result = {"file": "x", "rule": "any", **compare_graders(generations, verdicts), "disagreements": len(rows)}
    printed = as_text(result, rows)
    assert printed.count("\n  id ") == KINDS and printed.endswith("There are 224 rarer kinds of disagreement.")


def test_a_folder_with_several_or_no_generations_lists_them(tmp_path):
    with pytest.raises(ValueError, match="holds no evaluation"):
        find_files(tmp_path, [])
    folders = [evaluation(tmp_path / "evaluations" / name) for name in ("rl-6", "sft-200")]
    with pytest.raises(ValueError, match=f"several generations; give one of: {folders[0]}, {folders[1]}"):
        find_files(tmp_path, [])
    with pytest.raises(ValueError, match="--benchmarks=products: .* has sums, countdown"):
        find_files(folders[0], ["products"])
    with pytest.raises(ValueError, match="no benchmark to regrade: countdown accepts several answers"):
        find_files(folders[0], ["countdown"])
    assert find_files(folders[0], ["sums"]) == ([folders[0] / "sums.jsonl"], {})
    (folders[1] / "sums.jsonl").unlink()
    with pytest.raises(ValueError, match="sums has no rows"):
        find_files(folders[1], [])


@pytest.mark.parametrize("flags, message", [
    (["--regrade={tmp}/none.jsonl"], "there is no such file or folder"), (["--rule=box"], "--rule goes with --regrade"),
    (["--regrade={tmp}/texts.jsonl", "--stage=sft"], "--stage does not go with --regrade"),
    (["--regrade={tmp}/texts.jsonl", "--benchmarks=sums"], "--benchmarks selects benchmarks of an evaluation's folder"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(flags, message, tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"gold": "7", "text": "7"}])
    done = commands.run("evaluate", *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_samples_whose_name_is_not_unicode_are_refused(tmp_path):
    write_lines(tmp_path / os.fsdecode(b"samples_\xff.jsonl"), [{"gold": "7", "text": "7"}])
    with pytest.raises(ValueError, match="is not UTF-8; rename this file or folder"):
        find_files(tmp_path, [])


@pytest.mark.parametrize("name", ["regrade.json", "disagreements.jsonl"])
def test_an_earlier_regrading_is_not_overwritten(name, tmp_path):
    file = write_lines(tmp_path / "texts.jsonl", [{"gold": "7", "text": "7"}])
    (tmp_path / name).write_text("earlier")
    with pytest.raises(ValueError, match=f"{name} exists already; give another --output"):
        regrade(file, None, [], tmp_path)
    assert (tmp_path / name).read_text() == "earlier"


@pytest.mark.slow
def test_the_command_needs_no_device_and_writes_nothing_by_default(tmp_path):
    file = write_lines(tmp_path / "texts.jsonl", [{"gold": gold, "text": text} for gold, text in CASES])
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    done = commands.run("evaluate", f"--regrade={file}", "--rule=box", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{file}: {len(CASES)} problems, {len(CASES)} texts, rule of igpo_jax: box" in done.stdout
    right = sum(igpo_jax.grade(gold, text, "box") for gold, text in CASES)
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("igpo_jax"))
    assert (row[0], row[1], row[4]) == ("igpo_jax", f"{right / len(CASES):.4f}", str(right))
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def command_line(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.mark.slow
def test_an_interrupt_ends_the_command_and_its_workers(tmp_path):
    file = write_lines(tmp_path / "texts.jsonl", [dict(zip(("gold", "text"), HANGING, strict=True))] * 100)
    log = tmp_path / "log"
    process = commands.start("evaluate", f"--regrade={file}", f"--output={tmp_path / 'out'}", stdout=log)
    deadline, workers = time.monotonic() + 120, []
    while not any("graders:math_verify" in command_line(worker) for worker in workers):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        workers = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and not any(map(command_line, workers))
    assert "interrupted; nothing was written" in log.read_text() and "Traceback" not in log.read_text()
    assert list((tmp_path / "out").iterdir()) == []
