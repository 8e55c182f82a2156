# gsm8k_sample.jsonl holds problems in GSM8K's format that were written for these tests; none is from GSM8K.
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from igpo_jax.tasks import gsm8k
from igpo_jax.tasks.problem import Problem

SAMPLE = pathlib.Path(__file__).parent / "gsm8k_sample.jsonl"


def config(train=SAMPLE, test=SAMPLE, max_malformed_lines=0) -> ConfigDict:
    return ConfigDict({"train_path": str(train), "test_path": str(test), "max_malformed_lines": max_malformed_lines})


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return gsm8k.load(config(), "rl", seed=0)


def problem(answer: str) -> Problem:
    return Problem("id", "Question: ?\nAnswer: ", answer, f"#### {answer}", ((0, 5 + len(answer)),), "")


def test_a_problem_whole(problems):
    trace = "She saves 250*5 = $1,250.\n#### 1,250"
    assert problems[1].question == (
        "Question: Mara saves $250 a month. How many dollars does she have after 5 months?\nAnswer: "
    )
    assert problems[1].trace == problems[1].demonstration == trace
    assert trace[slice(*problems[1].answer_spans[0])] == "#### 1,250"


def test_annotations_go_and_nothing_else_does(problems):
    raw = [json.loads(line)["answer"] for line in SAMPLE.read_text("utf-8").splitlines()]
    for text, loaded in zip(raw, problems, strict=True):
        assert "<<" in text
        assert loaded.trace == re.sub(r"<<.*?>>", "", text)


def test_the_answer_span_is_the_last_line_and_nothing_else(problems):
    for loaded in problems:
        ((begin, end),) = loaded.answer_spans
        assert end == len(loaded.trace)
        assert loaded.trace[begin - 1] == "\n"
        assert loaded.trace[begin:end].startswith("#### ")
        assert "\n" not in loaded.trace[begin:end]
        assert "####" not in loaded.trace[:begin]


def test_every_trace_earns_its_reward_and_only_for_its_own_problem(problems):
    rewards = [[gsm8k.reward(p, other.trace) for other in problems] for p in problems]
    assert rewards == [[float(i == j) for j in range(len(problems))] for i in range(len(problems))]


def test_splits_read_their_files_and_ids_tell_them_apart():
    splits = {split: gsm8k.load(config(), split, seed=0) for split in ("sft", "rl", "test")}
    assert splits["sft"] == splits["rl"]
    ids = {split: {p.id for p in problems} for split, problems in splits.items()}
    assert all(len(names) == 5 for names in ids.values())
    assert not ids["sft"] & ids["test"]
    assert gsm8k.load(config(), "rl", seed=1) == splits["rl"]


def test_the_other_column_names_give_the_same_problems(tmp_path, problems):
    path = tmp_path / "renamed.jsonl"
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    renamed = [{"problem": r["question"], "raw_answer": r["answer"], "answer": "short"} for r in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    assert gsm8k.load(config(train=path), "sft", seed=0) == problems


@pytest.mark.parametrize("split, key", [("sft", "train_path"), ("rl", "train_path"), ("test", "test_path")])
def test_an_empty_path_names_its_key(split, key):
    with pytest.raises(ValueError, match=rf"task\.{key} is empty"):
        gsm8k.load(config(train="", test=""), split, seed=0)


def test_an_answer_that_is_not_stated_is_an_error_that_names_file_and_problem(tmp_path):
    path = tmp_path / "unstated.jsonl"
    path.write_text(SAMPLE.read_text("utf-8") + json.dumps({"question": "?", "answer": "It is 5."}) + "\n")
    with pytest.raises(ValueError, match=r"unstated\.jsonl.*5.*####"):
        gsm8k.load(config(train=path), "rl", seed=0)


def test_malformed_lines_count_against_the_limit(tmp_path):
    path = tmp_path / "malformed.jsonl"
    path.write_text("{\n" + SAMPLE.read_text("utf-8"))
    with pytest.raises(ValueError, match=r"malformed\.jsonl, line 1"):
        gsm8k.load(config(train=path), "rl", seed=0)
    assert len(gsm8k.load(config(train=path, max_malformed_lines=1), "rl", seed=0)) == 5


@pytest.mark.parametrize(
    "text",
    [
        "#### 1250",
        "#### 1,250",
        "####1250",
        "#### $1,250.00",
        "#### 1250.",
        "#### 1250 dollars",
        "She saves 5 a day.\n#### 1250\n",
        "#### 7\n#### 1250",
        "#### 7 or rather #### 1250",
        "that is 1300-50=1250\n####",
        "1300-1250",
        "She has $1,250.",
        "5 months make 1250",
    ],
)
def test_right_answers(text):
    assert gsm8k.reward(problem("1,250"), text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "none", "####", "#### none", "1250\n#### 7", "#### 1250\n#### 7", "#### -1250", "#### 125", "#### 12500"]
    + ["#### 1250.5", "1250 is what she has after 5 months", "#### 1e999", "#### " + "9" * 5000],
)
def test_wrong_answers(text):
    assert gsm8k.reward(problem("1,250"), text) == 0.0


def test_signs_and_decimals_are_compared_as_numbers():
    assert gsm8k.reward(problem("-5"), "It is 4-9 = -5 degrees.\n#### -5") == 1.0
    assert gsm8k.reward(problem("-5"), "#### 5") == 0.0
    assert gsm8k.reward(problem("0.1"), "#### 0.10") == 1.0
    assert gsm8k.reward(problem("0.1"), "#### 0.1000000000000000000000000001") == 0.0
