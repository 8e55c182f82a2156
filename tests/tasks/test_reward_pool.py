"""Answers that break their worker do not affect the grading of others."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import reward_functions
from igpo_jax.tasks import reward_pool
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool

HELPERS = pathlib.Path(__file__).parents[1] / "helpers"
PROBLEM = Problem("id", "2+2?", "4", "2+2=4", (), "4")
REWARD = "def reward(problem, text):\n    return 1.0\n"


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.syspath_prepend(HELPERS)
    made = []

    def make(function="reward_functions:moody", options=None, workers=2, deadline_seconds=1.0, others=()):
        made.append(RewardPool(function, options or {}, workers, deadline_seconds, others))
        return made[-1]

    yield make
    for one in made:
        one.close()


def graded(pool, *texts):
    return pool([(PROBLEM, text) for text in texts])


def test_verdicts_come_in_the_order_of_the_answers(pool):
    numbers = [str(n) for n in range(500)]
    verdicts = graded(pool(options={"scale": 2.0}), *numbers)
    assert [v.reward for v in verdicts] == [2.0 * n for n in range(500)] and {v.outcome for v in verdicts} == {"ok"}


def test_a_lower_limit_of_memory_is_kept():
    program = """import resource
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool
limit = 3_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
pool = RewardPool("reward_functions:address_space", {}, 1, 5.0)
assert [verdict.reward for verdict in pool([(Problem("id", "", "", "", (), ""), "")])] == [limit]
pool.close()"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_with_the_log_costs_no_reward(pool, tmp_path, monkeypatch):
    (tmp_path / "talking.py").write_text("def reward(problem, text):\n    print(text, flush=True)\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    stderr, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, 2)
        verdicts = graded(pool("talking:reward", deadline_seconds=20.0), "1", "2", "3")
    finally:
        os.dup2(stderr, 2)
    assert [verdict.reward for verdict in verdicts] == [1.0] * 3


TROUBLE = {"sleep": "timeout", "raise": "error", "die": "error", "fill memory": "error", "no number": "error"}
TROUBLE |= {"give up": "timeout", "exit": "error"}
TROUBLE |= dict.fromkeys(["number as text", "nothing", "nan", "inf", "-inf", "1e300"], "error")


def test_every_kind_of_trouble_costs_its_own_answer_only(pool):
    texts = [text for trouble in TROUBLE for text in (trouble, "1", "2")] * 2
    one = pool()
    begin = time.monotonic()
    verdicts = graded(one, *texts)
    assert time.monotonic() - begin < 30
    for text, verdict in zip(texts, verdicts, strict=True):
        assert verdict.outcome == TROUBLE.get(text, "ok"), (text, verdict)
        assert verdict.reward == (float(text) if text.isdigit() else 0.0)
    assert "not this one" in verdicts[texts.index("raise")].reason
    assert "SystemExit: not this one" in verdicts[texts.index("exit")].reason
    assert "no verdict in 1 s" in verdicts[texts.index("sleep")].reason
    assert all(verdict.reason.startswith("problem 'id': ") for verdict in verdicts if verdict.outcome != "ok")
    for text, value in ("nan", "nan"), ("-inf", "-inf"), ("1e300", "1e+300"), ("nothing", "None"), ("no number", "'many'"):
        assert f"the function returned {value}; a reward is a number" in verdicts[texts.index(text)].reason
    assert [v.reward for v in graded(one, "7", "8")] == [7.0, 8.0]  # the pool still works


def test_junk_in_the_connection_costs_its_own_answer_only(pool):
    """A function may write anything to any open file. Replies are JSON, so that nothing is unpickled."""
    texts = [text for junk in reward_functions.JUNK for text in (junk, "1")]
    verdicts = graded(one := pool(deadline_seconds=20.0), *texts)
    for text, verdict in zip(texts, verdicts, strict=True):
        assert (verdict.outcome, verdict.reward) == (("ok", 1.0) if text == "1" else ("error", 0.0)), (text, verdict)
        assert ("the function wrote into the connection" in verdict.reason) == (text != "1")
    [verdict] = graded(pool(), "print NaN")  # looks like a reply about the first answer of a process
    assert verdict.outcome == "error" and "the function wrote into the connection" in verdict.reason
    [verdict] = graded(one, "odd text")
    assert verdict.outcome == "error" and "RuntimeError: ?" in verdict.reason


def test_one_death_of_the_answer_after_a_late_one_is_not_its_second(pool, tmp_path):
    """The late answer and the next are in the hands of the same worker, but only the late one was being graded."""
    verdicts = graded(pool(workers=1), "sleep", f"die unless there is {tmp_path / 'file'}", "3", "4")
    assert [v.outcome for v in verdicts] == ["timeout", "ok", "ok", "ok"], verdicts
    assert [v.reward for v in verdicts] == [0.0, 1.0, 3.0, 4.0]


def test_a_worker_that_reads_no_answers_is_late(pool):
    """The answers are larger than the buffer of the connection."""
    one = pool(workers=1)
    assert [v.outcome for v in graded(one, "stop later")] == ["ok"]
    stopped = one._workers[0]._process
    while state(stopped.pid) != "T":
        time.sleep(0.01)
    rescue = threading.Timer(30, stopped.kill)
    rescue.start()
    large = dataclasses.replace(PROBLEM, trace="x" * 2**24)
    assert [v.outcome for v in one([(large, "1"), (large, "2"), (large, "3")])] == ["timeout", "ok", "ok"]
    rescue.cancel()


def test_a_forked_process_that_returns_from_the_function_gives_no_verdict(pool):
    verdicts = graded(pool(workers=1), "2", "fork", "3", "fork and fail", "4", "5")
    assert [(v.outcome, v.reward) for v in verdicts] == [("ok", reward) for reward in (2.0, 1.0, 3.0, 1.0, 4.0, 5.0)]


@pytest.mark.parametrize("trouble, outcome", [("sleep", "timeout"), ("die", "error"), ("1", "ok")])
def test_programs_that_a_function_has_started_end_with_their_worker(trouble, outcome, pool, tmp_path):
    one = pool(workers=1)
    problem = dataclasses.replace(PROBLEM, id=str(tmp_path / "pid"))
    assert [v.outcome for v in one([(problem, f"start a program and {trouble}")])] == [outcome]
    if outcome == "ok":
        assert alive(int((tmp_path / "pid").read_text()))
        one.close()
    deadline = time.monotonic() + 10
    while alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_function_prints_goes_to_stderr(pool, capfd):
    """With --json, stdout is for the results alone."""
    assert [v.outcome for v in graded(pool(), "print")] == ["ok"]
    assert capfd.readouterr() == ("", "printed by the function\nprinted by its program\n")


@pytest.mark.slow
def test_loading_a_reward_function_does_not_count_against_the_deadline(pool):
    """A worker takes 2.4 s to load the function, also the one that replaces a late worker."""
    one = pool("slow_reward:reward", workers=1, deadline_seconds=1.0)
    texts = ["right", "hang", "right", "right"]
    for _ in range(2):
        assert [(v.reward, v.outcome) for v in graded(one, *texts)] == [
            (0.0, "timeout") if text == "hang" else (1.0, "ok") for text in texts
        ]


@pytest.mark.parametrize("warm_up, starting, message", [
    ("import os, sys; os.write(int(sys.argv[1]), b'loading\\n')", 60.0, "while it was loaded, the function wrote into"),
    ("raise RuntimeError('no licence')", 60.0, "RuntimeError: no licence"),
    ("raise SystemExit", 60.0, "SystemExit: "),
    ("time.sleep(1000)", 2.0, "it took more than 2 s to import and warm up"),
])  # fmt: skip
def test_a_function_that_cannot_be_warmed_up_is_one_clear_error(warm_up, starting, message, pool, tmp_path, monkeypatch):
    (tmp_path / "cold.py").write_text(f"import time\n\ndef warm_up():\n    {warm_up}\n\n{REWARD}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reward_pool, "STARTING", starting)
    with pytest.raises(ValueError, match=f"^the reward function 'cold:reward' cannot be used: {message}"):
        graded(pool("cold:reward"), "1")


def test_a_time_limit_of_the_warm_up_itself_is_no_error(pool, tmp_path, monkeypatch):
    """The time limits of math-verify may end its first comparison on a busy machine."""
    (tmp_path / "tired.py").write_text(f"def warm_up():\n    raise TimeoutError\n\n{REWARD}")
    monkeypatch.syspath_prepend(tmp_path)
    assert [v.reward for v in graded(pool("tired:reward"), "1")] == [1.0]


def test_a_module_with_several_functions_is_warmed_up_once_in_each_worker(pool, tmp_path, monkeypatch):
    source = f"def warm_up():\n    open({str(tmp_path / 'calls')!r}, 'a').write('x')\n\n{REWARD}\ndef other(problem, text):\n    return 2.0\n"
    (tmp_path / "warm.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    one = pool("warm:reward", workers=1, others=[("warm:other", {})])
    assert [v.values for v in graded(one, "1")] == [(1.0, 2.0)] and (tmp_path / "calls").read_text() == "x"


def test_a_worker_that_is_replaced_does_not_use_other_code(pool, tmp_path, monkeypatch):
    """One timeout in a long run switched to the function as it was in the file by then."""
    file = tmp_path / "edited.py"
    source = "import time\n\ndef reward(problem, text):\n    return 1.0 if text == '1' else time.sleep(100)\n"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    one = pool("edited:reward", workers=1)
    assert [v.reward for v in graded(one, "1")] == [1.0]
    for other in (source.replace("1.0", "2.0"), "("):
        file.write_text(other)
        with pytest.raises(ValueError, match=f"'edited:reward' cannot be used: {file} has changed since this command began; run"):
            graded(one, "no", "1")
        file.write_text(source)
        assert [v.reward for v in graded(one, "1")] == [1.0]
    # Python takes byte code for current if its source has the same size and was written in the same second.
    file.write_text(source.replace("1.0", "2.00"))
    assert [v.reward for v in graded(pool("edited:reward"), "1")] == [2.0]


def test_no_file_of_the_working_folder_is_imported_at_the_start_of_a_worker(pool, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [v.reward for v in graded(pool("igpo_jax.tasks.math:reward", {"answer": "any"}), "1")] and not (tmp_path / "executed").exists()


def test_the_warm_up_of_mathematics_loads_all_that_a_comparison_needs():
    code = (
        "import sys; from igpo_jax.tasks import math; from igpo_jax.tasks.problem import Problem\n"
        "before = {'math_verify', 'sympy'} & set(sys.modules); math.warm_up(); loaded = set(sys.modules)\n"
        "p = Problem('i', 'q', r'\\frac{\\sqrt{2}}{2}', '', (), '')\n"
        "print(before, math.reward(p, r'\\boxed{\\frac{1}{\\sqrt2}}'), {'math_verify', 'sympy'} <= loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() 1.0 True\n"


def test_an_empty_list_starts_nothing(pool):
    one = pool("no_such_module:reward")
    assert graded(one) == []


@pytest.mark.parametrize("function, message", [
    ("no_such_module:reward", "ModuleNotFoundError"), ("reward_functions:no_such_function", "AttributeError"),
])  # fmt: skip
def test_a_function_that_is_not_there_is_one_clear_error(function, message, pool):
    with pytest.raises(ValueError, match=f"the reward function '{function}' cannot be used: {message}"):
        graded(pool(function), "1")


@pytest.mark.slow
def test_workers_know_no_jax_and_end_with_their_parent(tmp_path):
    """Importing jax would cost each worker seconds and memory."""
    code = (
        "import sys; from igpo_jax.tasks.reward_pool import RewardPool; from igpo_jax.tasks.problem import Problem\n"
        "pool = RewardPool('igpo_jax.tasks.math:reward', {'answer': 'box'}, 2, 5.0)\n"
        "p = Problem('i', 'q', r'\\sqrt{2}', '', (), '')\n"
        "print([v.reward for v in pool([(p, r'\\boxed{\\frac{2}{\\sqrt2}}'), (p, 'no')])], 'jax' in sys.modules)\n"
        "print(*[w._process.pid for w in pool._workers], flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().strip() == "[1.0, 0.0] False"
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    maps = "".join(pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in workers)
    assert "jaxlib" not in maps
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_computes_in_c_ends_with_its_parent(tmp_path):
    """No thread and no signal handler of the worker could run."""
    (tmp_path / "endless.py").write_text(
        "import os, pathlib\n"
        "def reward(problem, text):\n"
        "    pathlib.Path(text).write_text(str(os.getpid()))\n"
        "    return sum(range(10**13))\n"
    )
    code = (
        "import sys; from igpo_jax.tasks.reward_pool import RewardPool; from igpo_jax.tasks.problem import Problem\n"
        "pool = RewardPool('endless:reward', {}, 1, 300.0)\n"
        "pool([(Problem('i', 'q', '', '', (), ''), 'started')])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "started").exists() and (tmp_path / "started").read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while alive(int((tmp_path / "started").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return state(pid) != "Z"


def state(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2]


HANGS = [
    r"9^{9^{9^9}}", r"1000000000!", r"\binom{1000000000}{500000000}", r"2^{1000000000}", r"\sqrt[1000000007]{2^{1000000007}}",
    "(" * 2000 + "1" + ")" * 2000, r"\frac{1}" * 3000, r"\sum_{k=1}^{100000000} \frac{1}{k^{2}+1}", "7" * 20_000, r"\frac" * 5000,
    r"\{" + ",".join(map(str, range(3000))) + r"\}", "x^{2}+" * 300 + "1", r"\int_0^{\infty} e^{x^x}", r"3^{10000000}+1", "\\" * 9999,
]  # fmt: skip


@pytest.mark.slow
def test_answers_that_are_made_to_hang_cost_at_most_their_deadline(pool):
    one = pool("igpo_jax.tasks.math:reward", {"answer": "box"}, deadline_seconds=3.0)
    problem = Problem("i", "q", r"x^2+1", "", (), "")
    answers = [(problem, f"\\boxed{{{text}}}") for hang in HANGS for text in (hang, "1+x^2")]
    begin = time.monotonic()
    verdicts = one(answers)
    assert time.monotonic() - begin < 4.0 * len(HANGS)
    assert [v.reward for v in verdicts] == [0.0, 1.0] * len(HANGS)


@pytest.mark.slow
def test_ordinary_answers_are_graded_at_five_hundred_a_second(pool):
    """Uses two workers on two cores; tests/campaigns/grading.py measures the speed."""
    one = pool("igpo_jax.tasks.math:reward", {"answer": "any"}, deadline_seconds=5.0)
    golds = ["72", r"\frac{3}{4}", "x+1", "(1,2)", r"2\sqrt{3}", "1250", "A", "0.5"]
    answers = [
        (Problem("i", "q", gold, "", (), ""), f"So the answer is \\boxed{{{given}}}.")
        for n in range(500)
        for gold, given in zip(
            golds, [str(72 + n % 2), r"\frac{6}{8}", "1+x", "(1,2)", r"\sqrt{12}", "1,250", "A", ".5"], strict=True
        )
    ]
    one(answers[:16])  # starts the workers
    begin = time.monotonic()
    verdicts = one(answers)
    assert len(answers) / (time.monotonic() - begin) > 500
    assert sum(v.reward for v in verdicts) == len(answers) - 250 and {v.outcome for v in verdicts} == {"ok"}


def test_the_first_reason_of_each_kind_is_logged_and_the_newest_is_kept(pool, caplog):
    one = pool()
    graded(one, "1", "raise", "no number", "give up", "2", "nan")
    graded(one, "nothing", "3")
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2 and all(text.startswith("reward_functions:moody: no verdict on problem 'id': ") for text in logged)
    assert "RuntimeError: not this one; more answers like this are only counted" in logged[0] and "TimeoutError" in logged[1]
    assert set(one.reasons) == {"error", "timeout"} and "returned None" in one.reasons["error"]
