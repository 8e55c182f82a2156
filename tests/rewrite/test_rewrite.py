"""Rewriting with a stand-in endpoint that misbehaves in every known way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

import commands
import qwen_files
from igpo_jax.grading.answers import extract
from igpo_jax.grading.equality import equal
from igpo_jax.rewrite.__main__ import KEPT, judge_replies, read_replies
from igpo_jax.rewrite.__main__ import _replies as saved_replies
from igpo_jax.rewrite.endpoint import Endpoint, ask_all
from igpo_jax.tasks.sources import Record, load_sources
from igpo_jax.tokenizers import train_sentencepiece

HELPERS = pathlib.Path(__file__).parents[1] / "helpers"
FIELDS = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}
OUTCOMES = {
    "fine": "rewritten", "html": "rewritten", "thinks": "rewritten", "limits": "rewritten",
    "refuses": "refused or empty",
    "empty": "refused or empty", "wrong": "wrong answer", "mute": "no answer", "long": "too long", "tiny": "too short",
    "same": "not shorter", "cut": "cut off", "fails": "unanswered", "page": "unanswered", "hangs": "unanswered",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Path of a tokenizer with one token per character."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(["".join(map(chr, range(32, 127)))], path, kind="char", vocab_size=200)
    return path


@pytest.fixture
def start(tmp_path):
    """Function: (die_after, port) -> (process of the stand-in, its port)."""
    processes = []

    def begin(die_after=0, port=0):
        command = [sys.executable, HELPERS / "stub_endpoint.py", str(port), tmp_path / "log", str(die_after)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, int(process.stdout.readline())

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def write_problems(path, behaviors):
    with path.open("w") as file:
        for i, behavior in enumerate(behaviors):
            begin = "First we think about it, as one should with <sums>. " + "Then we add. " * 6
            solution = f"{begin}So it is \\boxed{{{40 + i}}}."
            row = {
                "id": f"p{i}",
                "question": f"#p{i} [{behavior}] What is {i} + 40?",
                "answer": str(40 + i),
                "solution": solution,
            }
            file.write(json.dumps(row) + "\n")
    return path


def command(tmp_path, tokenizer, port=None, **options):
    options = {
        "problems": f"jsonl:{tmp_path / 'problems.jsonl'}", "tokenizer": tokenizer, "output": tmp_path / "out",
        "min_tokens": 20,
        "max_tokens": 400, **({"endpoint": f"http://127.0.0.1:{port}/v1", "model": "m"} if port else {}), "requests": 4,
        "timeout": 0.7, "retries": 1, **options,
    }  # fmt: skip
    return [sys.executable, "-m", "igpo_jax.rewrite", *(f"--{name}={value}" for name, value in options.items())]


def environment(key="s3cret", **variables):
    others = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
    return {**others, "OPENAI_API_KEY": key, "NO_PROXY": "127.0.0.1", **variables}


def run(*arguments, key="s3cret", variables=None, **options):
    return commands.run("rewrite", *command(*arguments, **options)[3:], timeout=60, env=environment(key, **variables or {}))


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked_of(tmp_path):
    return [line.split()[1] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("asked")]


def card_of(done, tmp_path):
    """Returns the card after checking that its counts add up."""
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    first, lengths, *_, last = done.stdout.splitlines()
    assert first.startswith(f"kept {card['kept']} of {card['problems']} solutions (") and "mean tokens: " in lengths
    assert last.endswith(f"igpo train --config=sft_math.py --config.task.sft=jsonl:{tmp_path / 'out'}/kept.jsonl")
    assert sum(card["outcomes"].values()) == card["problems"]
    kept = rows_of(tmp_path / "out" / "kept.jsonl")
    assert len(kept) == card["kept"] == sum(card["outcomes"].get(name, 0) for name in KEPT)
    assert all("/" not in source and " rows" in source for source in card["sources"])
    assert sum(card["histogram"]["before"]) == sum(card["histogram"]["after"]) == card["kept"]
    return card


@pytest.mark.slow
def test_every_kind_of_reply_gets_its_verdict_and_only_right_ones_are_kept(tmp_path, tokenizer, start):
    behaviors = [*OUTCOMES, *OUTCOMES]
    write_problems(tmp_path / "problems.jsonl", behaviors)
    _, port = start()
    done = run(tmp_path, tokenizer, port)
    card = card_of(done, tmp_path)
    assert card["problems"] == 30
    assert card["outcomes"] == {name: 2 * list(OUTCOMES.values()).count(name) for name in card["outcomes"]}
    assert set(card["outcomes"]) == set(OUTCOMES.values())
    assert "6 problems got no reply" in done.stderr and not {"Traceback", "POST"} & set(done.stderr.split())
    replies = {reply["id"]: reply for reply in rows_of(tmp_path / "out" / "replies.jsonl")}
    assert len(replies) == 24 and replies["p0"]["attempts"] == 1 and replies["p3"]["attempts"] == 2
    assert card["cost"] == {
        "replies": 24, "attempts": 26, "prompt_tokens": 2400, "completion_tokens": 240, "replies_without_count": 0
    }  # fmt: skip
    assert sorted(card["unanswered"].values()) == [2, 2, 2] and card["unanswered"]["500: broken <b>"] == 2

    records, _ = load_sources(f"jsonl:{tmp_path / 'out' / 'kept.jsonl'}", FIELDS)
    assert [record.id for record in records] == [f"p{i}" for i, b in enumerate(behaviors) if OUTCOMES[b] == "rewritten"]
    for record in records:
        assert equal(record.answer, extract(record.solution, "box"))
        [(begin, end)] = record.spans
        assert record.solution[begin:end] == record.answer and "think" not in record.solution
    assert all(
        row["tokens"] == len(row["solution"]) < row["original_tokens"] for row in rows_of(tmp_path / "out" / "kept.jsonl")
    )

    page = (tmp_path / "out" / "card.html").read_text("utf-8")
    assert "<script>alert" not in page and "&lt;sums&gt;" in page and "broken &lt;b&gt;" in page
    assert "http" not in page.split("<script>")[0].replace("http-equiv", "").replace(f"http://127.0.0.1:{port}", "")
    assert all("s3cret" not in path.read_text("utf-8") for path in (tmp_path / "out").iterdir())

    before = asked_of(tmp_path)
    again = card_of(run(tmp_path, tokenizer, port, requests=2), tmp_path)  # requests only what got no reply
    assert {behaviors[int(id[1:])] for id in asked_of(tmp_path)[len(before) :]} == {"fails", "page", "hangs"}
    assert again["outcomes"] == card["outcomes"]


@pytest.mark.slow
def test_after_kill_9_no_request_whose_reply_is_written_is_repeated(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine", "limits", "wrong"] * 40)
    _, port = start()
    process = subprocess.Popen(
        command(tmp_path, tokenizer, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    replies = tmp_path / "out" / "replies.jsonl"
    while not (replies.is_file() and replies.read_bytes().count(b"\n") > 20):
        time.sleep(0.005)
    process.kill()
    process.wait()
    written = {json.loads(line)["id"] for line in replies.read_text("utf-8").split("\n")[:-1]}
    assert 20 < len(written) < 120 and not (tmp_path / "out" / "kept.jsonl").exists()
    with replies.open("a") as file:
        file.write('{"id": "p119", "text": "half a li')  # as after a crash of the machine
    before = len(asked_of(tmp_path))
    card = card_of(run(tmp_path, tokenizer, port), tmp_path)
    assert not written & set(asked_of(tmp_path)[before:])
    assert card["outcomes"] == {"rewritten": 80, "wrong answer": 40}
    assert len({reply["id"] for reply in rows_of(replies)}) == len(rows_of(replies)) == 120

    before = asked_of(tmp_path)
    assert card_of(run(tmp_path, tokenizer, port), tmp_path)["outcomes"] == card["outcomes"]
    assert asked_of(tmp_path) == before
    assert card_of(run(tmp_path, tokenizer, port, limit=3), tmp_path)["problems"] == 3


@pytest.mark.slow
def test_an_endpoint_that_dies_half_way_stops_the_command_and_it_goes_on_later(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine"] * 40)
    process, port = start(die_after=12)
    done = run(tmp_path, tokenizer, port)
    saved = len(rows_of(tmp_path / "out" / "replies.jsonl"))
    assert process.wait() == 1 and 12 - 4 <= saved <= 12
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: 8 consecutive requests got no reply")
    assert (
        f"{saved} replies are saved and judged; run the same command to resume" in done.stderr
        and "Traceback" not in done.stderr
    )
    half = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert half["outcomes"] == {"rewritten": saved, "unanswered": 40 - saved}
    written = {reply["id"] for reply in rows_of(tmp_path / "out" / "replies.jsonl")}
    before = len(asked_of(tmp_path))
    start(port=port)
    card = card_of(run(tmp_path, tokenizer, port), tmp_path)
    assert card["outcomes"] == {"rewritten": 40} and not written & set(asked_of(tmp_path)[before:])


def error_of(done) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.slow
def test_an_endpoint_that_is_dead_is_an_error_however_few_problems_there_are(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine"] * 3)
    process, port = start()
    process.kill()
    process.wait()
    error = error_of(run(tmp_path, tokenizer, port))
    assert (
        "3 requests got no reply; an error: Connection error. " in error and f"(endpoint http://127.0.0.1:{port}/v1)" in error
    )
    assert error.endswith("No reply is saved; run the same command to try again")
    assert not (tmp_path / "out" / "kept.jsonl").exists()
    start(port=port)
    assert card_of(run(tmp_path, tokenizer, port), tmp_path)["kept"] == 3


@pytest.mark.parametrize(
    "behavior, reason",
    [
        ("limited", "429: no more today"),
        ("down", "503: no server"),
        ("fails", "500: broken <b>"),
        ("page", "the response is not a chat completion"),
        ("hangs", "Request timed out."),
    ],
)
def test_an_endpoint_that_answers_nothing_usable_is_an_error(behavior, reason, tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", [behavior] * 2)
    _, port = start()
    error = error_of(run(tmp_path, tokenizer, port))
    assert "got no reply" in error and reason in error and "No reply is saved" in error
    assert not (tmp_path / "out" / "kept.jsonl").exists()


@pytest.mark.parametrize("behavior", ["empty", "refuses", "wrong", "cut"])
def test_replies_that_are_all_rejected_are_an_error(behavior, tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", [behavior] * 2)
    _, port = start()
    error = error_of(run(tmp_path, tokenizer, port))
    assert error.endswith(f"kept.jsonl is empty, because none of 2 solutions is kept ({OUTCOMES[behavior]}: 2)")
    assert json.loads((tmp_path / "out" / "card.json").read_text())["outcomes"] == {OUTCOMES[behavior]: 2}
    assert len(rows_of(tmp_path / "out" / "replies.jsonl")) == 2 and (tmp_path / "out" / "kept.jsonl").read_text() == ""


@pytest.mark.slow
def test_a_few_problems_lost_to_an_endpoint_are_an_error_and_what_was_replied_is_kept(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine"] * 12)
    _, port = start(die_after=8)
    error = error_of(run(tmp_path, tokenizer, port, requests=2))
    replies, kept = (rows_of(tmp_path / "out" / name) for name in ("replies.jsonl", "kept.jsonl"))
    assert 6 <= len(replies) == len(kept) <= 8
    assert f"{12 - len(kept)} requests got no reply" in error and f"{len(kept)} replies are saved and judged" in error
    start(port=port)
    error = error_of(run(tmp_path, tokenizer, port, requests=2, key="other"))  # also if the key is refused later
    assert "401: go away" in error and f"{len(kept)} replies are saved and judged" in error
    assert rows_of(tmp_path / "out" / "kept.jsonl") == kept
    assert card_of(run(tmp_path, tokenizer, port), tmp_path)["outcomes"] == {"rewritten": 12}


@pytest.mark.slow
def test_no_file_repeats_the_key_that_a_reply_has(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["leaks"] * 2)
    _, port = start()
    out = tmp_path / "out"
    for names in (["card.html", "card.json", "kept.jsonl", "replies.jsonl", "settings.json"], ["card.html", "kept.jsonl"]):
        done = run(tmp_path, tokenizer, endpoint=f"http://127.0.0.1:{port}/s3cret/v1", model="m")
        assert card_of(done, tmp_path)["kept"] == 2
        assert not any("s3cret" in text for text in [done.stdout, done.stderr, *((out / name).read_text() for name in names)])
        assert rows_of(out / "kept.jsonl")[0]["solution"].startswith("I was called with Bearer [key]. Adding")
        saved = (out / "replies.jsonl").read_text()
        (out / "replies.jsonl").write_text(saved.replace("[key]", "s3cret"))  # as an earlier version has written it


def test_given_solutions_that_are_all_rejected_are_an_error(tmp_path, tokenizer):
    (tmp_path / "m.jsonl").write_text(json.dumps({"problem": "p", "answer": "5", "solution": "Clearly $\\boxed{6}$."}) + "\n")
    error = error_of(run(tmp_path, tokenizer, problems=f"math:{tmp_path / 'm.jsonl'}", min_tokens=5))
    assert error.endswith("none of 1 solutions is kept (wrong answer: 1)")


@pytest.mark.slow
def test_the_card_of_an_evaluation_is_not_replaced(tmp_path, tokenizer):
    write_problems(tmp_path / "problems.jsonl", ["wrong"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "card.json").write_text("{}")
    assert "card.json is of no rewriting" in error_of(run(tmp_path, tokenizer))
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [("card.json", "{}")]


def test_missing_files_are_told_with_their_flag_and_the_way_to_get_them(tmp_path, tokenizer):
    error = error_of(run(tmp_path, tokenizer, problems="metamath:nowhere.json"))
    assert "--problems: no data file 'nowhere.json'; for example, run hf download meta-math/MetaMathQA " in error
    write_problems(tmp_path / "problems.jsonl", ["fine"])
    error = error_of(run(tmp_path, "ORG/NAME"))
    assert "--tokenizer: there is no file or folder 'ORG/NAME' and no complete model of this name" in error
    assert error.endswith("run hf download ORG/NAME --local-dir NAME and give --tokenizer=NAME")


def test_a_folder_with_vocab_and_merges_has_a_tokenizer(tmp_path):
    write_problems(tmp_path / "problems.jsonl", ["fine"])
    qwen_files.write_small(tmp_path / "model")
    card = card_of(run(tmp_path, tmp_path / "model"), tmp_path)
    assert card["outcomes"] == {"unchanged": 1}
    with (tmp_path / "model" / "merges.txt").open("a") as file:
        file.write("W h\n")
    assert "(differing: tokenizer)" in error_of(run(tmp_path, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_replied(number, tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine"] * 4 + ["hangs"] * 4)
    _, port = start()
    process = subprocess.Popen(
        command(tmp_path, tokenizer, port, timeout=30), stderr=subprocess.PIPE, text=True, env=environment()
    )
    replies = tmp_path / "out" / "replies.jsonl"
    while not (replies.is_file() and replies.read_bytes().count(b"\n") == 4):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert (
        process.returncode == 128 + number and errors.splitlines()[-1].startswith("interrupted") and "Traceback" not in errors
    )
    assert {reply["id"] for reply in rows_of(replies)} == {"p0", "p1", "p2", "p3"}


@pytest.mark.slow
def test_what_cannot_work_is_said_in_one_line(tmp_path, tokenizer, start):
    write_problems(tmp_path / "problems.jsonl", ["fine"] * 5)
    _, port = start()

    assert "does not take these requests: 401: go away" in error_of(run(tmp_path, tokenizer, port, key="other"))
    assert len(asked_of(tmp_path)) <= 4
    (tmp_path / "key").write_text("s3cret\n")
    card_of(run(tmp_path, tokenizer, port, key="other", key_file=tmp_path / "key"), tmp_path)
    error = error_of(run(tmp_path, tokenizer, port, max_tokens=300, model="n"))
    assert "another rewriting (differing: model, max_tokens)" in error
    assert "--model=NAME is missing" in error_of(run(tmp_path, tokenizer, endpoint=f"http://127.0.0.1:{port}/v1"))
    assert "404" in error_of(run(tmp_path, tokenizer, port, endpoint=f"http://127.0.0.1:{port}", output=tmp_path / "2"))
    for lines in ("s3cret\r\nsecond\r\n", "s3crét"):
        (tmp_path / "key").write_text(lines)
        for given in ({"key": lines.strip()}, {"key_file": tmp_path / "key"}):
            error = error_of(run(tmp_path, tokenizer, port, **given, output=tmp_path / "3"))
            assert "has a line break or another character that is not printable ASCII" in error and "s3" not in error
    for name, value in (("OPENAI_ORG_ID", "o\r"), ("OPENAI_PROJECT_ID", "é"), ("OPENAI_CUSTOM_HEADERS", "a: b\r\nc: d\re")):
        error = error_of(run(tmp_path, tokenizer, port, output=tmp_path / "3", variables={name: value}))
        assert error.startswith(f"error: {name} has a line break")
    assert not (tmp_path / "3").exists()
    headers = {"OPENAI_CUSTOM_HEADERS": "a: b\r\nc: d\r\n"}
    card_of(run(tmp_path, tokenizer, port, key="s3cret\r\n", variables=headers), tmp_path)
    assert "--fields has 'frage'" in error_of(run(tmp_path, tokenizer, fields="frage"))


@pytest.mark.parametrize("text, reason, outcome", [
    ("<think>Hm.</think> It is $\\boxed{5}$.", "stop", "rewritten"), ("$\\boxed{5}$", None, "rewritten"),
    ("<think>\\boxed{5}", "stop", "cut off"), ("<think>a</think> <think>$\\boxed{5}$", "stop", "cut off"),
    ("$\\boxed{5}$", "length", "cut off"), ("$\\boxed{5}$", "max_tokens", "cut off"), ("$\\boxed{5}$", "MAX_TOKENS", "cut off"),
])  # fmt: skip
def test_a_reply_that_ends_too_early_is_cut_off(text, reason, outcome):
    record = Record("p", "2+3?", "5", "Two and three are 5.", (), "")
    reply = {"id": "p", "text": text, "refused": False, "finish_reason": reason}

    def pool(answers):
        return [types.SimpleNamespace(outcome="ok", reward=1.0) for _ in answers]

    [(found, _, _)] = judge_replies([record], {"p": reply}, "box", pool)
    assert found == outcome


def reply_of(id: str) -> bytes:
    rest = {"refused": False, "finish_reason": "stop", "prompt_tokens": None, "completion_tokens": None, "attempts": 1}
    return json.dumps({"id": id, "text": "1", **rest}).encode()


@pytest.mark.parametrize("end", [b"", b'{"id": "c", "te', b'{"id"', b"\xff\xfe", b'{"id": "c", "text": ""}', reply_of("c")])
def test_a_torn_last_line_is_mended(end, tmp_path):
    path = tmp_path / "replies.jsonl"
    whole = reply_of("a") + b"\n" + reply_of("b") + b"\n"
    path.write_bytes(whole + end)
    with path.open("a+b") as file:
        replies = read_replies(file)
        file.write(b"next\n")
    complete = end == reply_of("c")
    assert [reply["id"] for reply in replies] == ["a", "b", *(["c"] if complete else [])]
    assert path.read_bytes() == whole + (end + b"\n" if complete else b"") + b"next\n"
    with path.open("a+b") as file, pytest.raises(ValueError, match=rf"line {4 if complete else 3} is not a reply"):
        file.write(b"more\n")
        file.flush()
        read_replies(file)


@pytest.mark.parametrize("line", [b'{"id": "b", "text": 1}\n', b'{"id": "b", "te\n', b"\n"])
def test_a_whole_last_line_that_is_no_reply_is_told_and_kept(line, tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(reply_of("a") + b"\n" + line)
    message = rf"{path}, line 2 is not a reply \(.+\); repair or remove this line"
    with path.open("a+b") as file, pytest.raises(ValueError, match=message):
        read_replies(file)
    assert path.read_bytes() == reply_of("a") + b"\n" + line


def test_replies_behind_a_link_are_not_asked_again(tmp_path):
    (tmp_path / "paid.jsonl").write_bytes(reply_of("a") + b"\n")
    link = tmp_path / "replies.jsonl"
    link.symlink_to("paid.jsonl")
    endpoint = Endpoint("http://127.0.0.1:9", "m", "", timeout=1, retries=0)
    with pytest.raises(ValueError, match=f"{link} is a symbolic link; put the file itself in its place"):
        saved_replies(link, [], endpoint)
    assert link.is_symlink() and (tmp_path / "paid.jsonl").read_bytes() == reply_of("a") + b"\n"


@pytest.mark.slow
def test_a_thought_is_left_out_where_the_solution_after_it_states_the_answer(tmp_path, tokenizer):
    texts = ["<think>2+2? Wait.</think>\n\nIt is $\\boxed{4}$.", "<think>It is $\\boxed{4}$.</think>\n\nThat was all."]
    rows = [
        {"uuid": f"{i}", "problem": "p", "answer": "4", "generations": [text], "correctness_math_verify": [True]}
        for i, text in enumerate(texts)
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = card_of(run(tmp_path, tokenizer, problems=f"openr1:{tmp_path / 'r.jsonl'}", min_tokens=5), tmp_path)
    solutions = [row["solution"] for row in rows_of(tmp_path / "out" / "kept.jsonl")]
    assert solutions == ["It is $\\boxed{4}$.", "It is $\\boxed{4}$.\n\nThat was all."]
    assert card["outcomes"] == {"shortened": 1, "unchanged": 1}


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[data\]\""):
        ask_all([], print, Endpoint("", "", "", timeout=1, retries=0), requests=1)


@pytest.mark.slow
def test_without_an_endpoint_solutions_are_only_filtered(tmp_path, tokenizer):
    rows = [
        {"question": "q", "answer": "It is 2+3 = 5.\n#### 5"},
        {"question": "How many are 2 and 3?", "answer": "Let's think step by step. It is 2+3 = 5.\n#### 5"},
        {"question": "q", "answer": "She has 5 after 3 days.\n#### 5"},
        {"question": "q", "answer": f"{'It is long. ' * 40}2+3 = 5\n#### 5"},
    ]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [
        {"problem": "p", "answer": "5", "solution": "Clearly $\\boxed{6}$."},
        {"problem": "p", "answer": "5", "solution": "Clearly."},
        {"problem": "p", "answer": "5"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    problems = f"gsm8k:{tmp_path / 'g.jsonl'},math:{tmp_path / 'm.jsonl'}"
    card = card_of(run(tmp_path, tokenizer, problems=problems, min_tokens=5), tmp_path)
    assert card["outcomes"] == {
        "unchanged": 3, "no solution": 1, "no answer": 1, "wrong answer": 1, "too long": 1
    }  # fmt: skip
    kept = rows_of(tmp_path / "out" / "kept.jsonl")
    assert [row["solution"] for row in kept] == [
        "It is 2+3 = 5.", "Let's think step by step. It is 2+3 = 5.", "She has 5 after 3 days.\n#### 5"
    ]  # fmt: skip
    assert "cost" not in card and "unanswered" not in card
    assert card["tokens"]["mean_shortening"] == 0
