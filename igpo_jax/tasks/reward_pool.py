"""Computes rewards in worker processes. If an answer takes too long or crashes its worker, only this answer gets no reward.

Threads are not an alternative: in a thread, math-verify's time limits silently fail, and every score becomes 0. The pools of
Python's multiprocessing are not an alternative, either: they cannot replace a single stuck worker, and each of their workers
would import jax when it starts."""

import atexit
import collections
import contextlib
import dataclasses
import json
import logging
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Pipe
from typing import Any

from igpo_jax.runtime import interrupts
from igpo_jax.runtime.files import parse_json
from igpo_jax.tasks import load_task
from igpo_jax.tasks.own_code import file_digest, own_files
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_terms import TASK, reward_terms

log = logging.getLogger(__name__)

OUTCOMES = ("ok", "timeout", "error")
JOBS = 16  # maximum number of answers sent to a worker at a time
MAX_REPLY = 2**16  # bytes
# Program of a worker process; its first argument is the path to import from.
WORKER = """import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module("igpo_jax.tasks.reward_worker", run_name="__main__", alter_sys=True)"""
JUNK = "the function wrote into the connection of its process to the pool"
STARTING = 60.0  # time limit in seconds for importing the reward function and for its `warm_up()`


@dataclasses.dataclass(frozen=True)
class Verdict:
    reward: float  # value of the pool's first function; 0.0 unless outcome is "ok"
    outcome: str  # one of `OUTCOMES`
    reason: str = ""  # of an error or timeout, with the id of the problem
    others: tuple[float, ...] = ()  # values of the pool's other functions

    @property
    def correct(self) -> bool:
        return self.reward >= 1

    @property
    def values(self) -> tuple[float, ...]:
        return self.reward, *self.others


def reward_pool(task, reward, shared: "RewardPool | None" = None) -> "RewardPool":
    """Creates a reward pool from the sections `task` and `reward` of a configuration. Returns the pool `shared` if it calls the
    same functions with the same options."""
    module = load_task(task.name)
    own = f"{module.__name__}:reward", {name: task[name] for name in module.REWARD_OPTIONS}
    functions = [own if term.function == TASK else (term.function, {}) for term in reward_terms(reward.function)]
    if shared is not None and shared.functions == functions:
        return shared
    return RewardPool(*functions[0], reward.workers, reward.deadline_seconds, functions[1:])


class RewardPool:
    """Calls a reward function, (problem, text, **options) -> float, in worker processes. `function` is its name,
    "package.module:name", and must be importable from this process. The workers start when they are first needed, and run until
    `close` is called or this process ends. A worker that takes more than `deadline_seconds` for one answer, or for reading its
    next answers, is killed with the processes that its functions have started, and replaced. `others` are further functions,
    each with its options, that the same worker calls for the same answer. If one of the functions fails, the answer has no
    verdict.

    The time for imports does not count against the deadline. A worker first imports the reward function, and calls `warm_up()`
    if the function's module defines it. Only then does the worker get its first answer. Therefore, `warm_up` must load
    everything that the reward function would otherwise load during its first call. All workers use the same code: if the file
    of a user's own function has changed since the pool was made, no further worker starts.

    `reasons` is {outcome: newest reason why an answer has no verdict} for the outcomes "timeout" and "error". The first reason
    for an outcome is logged as a warning."""

    def __init__(
        self,
        function: str,
        options: dict[str, Any],
        workers: int,
        deadline_seconds: float,
        others: Sequence[tuple[str, dict[str, Any]]] = (),
    ):
        self.functions = [(function, options), *others]
        self._name = " + ".join(name for name, _ in self.functions)
        self._files = {str(file): file_digest(file) for file in own_files(name for name, _ in self.functions).values()}
        self._number, self._deadline = workers, deadline_seconds
        self._workers: list[_Worker] = []
        self.reasons: dict[str, str] = {}
        self._died_loading = 0  # processes that died since one was last ready
        self._starting = threading.Lock()
        self._registered = contextlib.ExitStack()
        self._registered.enter_context(interrupts.before_end(self._end_workers))
        atexit.register(self.close)

    def __call__(self, answers: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Returns one verdict for each (problem, text), in the same order. Raises ValueError if the reward function cannot be
        loaded."""
        verdicts: dict[int, Verdict] = {}
        waiting, died = collections.deque(range(len(answers))), set[int]()
        size = max(1, min(JOBS, len(answers) // (2 * self._number)))
        while waiting or any(worker.jobs for worker in self._workers):
            needed = min(self._number, len(waiting))
            while len(self._workers) < needed:
                with self._starting:
                    self._workers.append(_Worker(self._name, self.functions, self._files))
            for worker in self._workers:
                if worker.ready() and worker.alive() and not worker.jobs and waiting:
                    self._died_loading = 0
                    jobs = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                    worker.hand(jobs, [answers[job] for job in jobs])
            since = min((worker.since for worker in self._workers if worker.jobs), default=time.monotonic())
            patience = since + self._deadline - time.monotonic()  # seconds until the first worker is late
            _wait(self._workers, max(0.0, min(0.5, patience)))
            for worker in list(self._workers):
                worker.send()
                for job, result in worker.results():
                    if isinstance(result, list):
                        verdicts[job] = Verdict(result[0], "ok", others=tuple(result[1:]))
                    else:  # None: a function raised TimeoutError
                        outcome = "timeout" if result is None else "error"
                        verdicts[job] = self._no_verdict(answers[job][0], outcome, result or "TimeoutError")
                is_late = worker.jobs and time.monotonic() - worker.since > self._deadline
                if is_late or worker.broken or not worker.alive():
                    self._replace(worker, answers, verdicts, waiting, died)
        found = [verdicts[job] for job in range(len(answers))]
        for verdict in (verdict for verdict in found if verdict.outcome != "ok"):
            if verdict.outcome not in self.reasons:
                reason = " ".join(verdict.reason.split())
                log.warning("%s: no verdict on %s; more answers like this are only counted", self._name, reason)
            self.reasons[verdict.outcome] = verdict.reason
        return found

    def _replace(
        self,
        worker: "_Worker",
        answers: Sequence[tuple[Problem, str]],
        verdicts: dict[int, Verdict],
        waiting: collections.deque,
        died: set[int],
    ) -> None:
        """Kills a worker and queues its unfinished answers again. The answer that the worker was grading is not queued again,
        but gets a verdict, in three cases. If grading took too long, the verdict is "timeout". If the worker sent anything
        other than replies, or if this answer has now killed a second worker, the verdict is "error". After the first death, the
        answer is tried again, because the worker may have been killed from outside. Raises ValueError if more processes than
        the pool has workers died in succession before they were ready."""
        jobs = list(worker.jobs)
        if jobs and (worker.alive() or worker.broken or jobs[0] in died):
            job, verdict = jobs.pop(0), ("timeout", f"no verdict in {self._deadline:g} s")
            if worker.broken or not worker.alive():
                verdict = ("error", JUNK if worker.broken else "two processes died of it")
            verdicts[job] = self._no_verdict(answers[job][0], *verdict)
        elif jobs:
            died.add(jobs[0])
        waiting.extendleft(reversed(jobs))
        worker.kill()
        self._workers.remove(worker)
        self._died_loading += not worker.loaded
        if self._died_loading > self._number:
            raise unusable(self._name, "processes die while they load it, see above")

    def _no_verdict(self, problem: Problem, outcome: str, reason: str) -> Verdict:
        return Verdict(0.0, outcome, f"problem {problem.id!r}: {reason}", (0.0,) * (len(self.functions) - 1))

    def close(self) -> None:
        self._registered.close()
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _end_workers(self) -> None:
        """Kills the workers when a signal is about to end this process. Another thread may be using the pool at this time."""
        self._starting.acquire(timeout=0.5)  # not released: from now on, no worker starts
        for worker in list(self._workers):
            worker.end()


class _Worker:
    """Worker process of a reward pool, with its unfinished jobs (answers to grade)."""

    def __init__(self, name: str, functions: Sequence[tuple[str, dict[str, Any]]], files: dict[str, str]):
        self.connection, theirs = Pipe()
        os.set_blocking(self.connection.fileno(), False)  # a worker may stop reading in the middle of its answers
        # Workers import from this process's sys.path, including added entries. It is not passed as PYTHONPATH, where Python
        # looks for the module sitecustomize at its start. -P: Python adds no current folder of its own.
        path = [entry or os.getcwd() for entry in sys.path]
        arguments = [str(theirs.fileno()), json.dumps(functions), json.dumps(files)]  # of `reward_worker.main`
        full = [sys.executable, "-P", "-c", WORKER, json.dumps(path), *arguments]
        # A process group of its own keeps the terminal's signals away; only this process handles them. See also `end`.
        options: dict[str, Any] = {"pass_fds": [theirs.fileno()], "process_group": 0}
        # A function may print. Its output goes to stderr, because commands print their results to stdout, with --json as JSON.
        self._process = subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=2, **options)
        theirs.close()
        self._name, self._number = name, len(functions)  # of the reward functions
        self.loaded = False  # True if the reward functions are imported and warmed up
        self.jobs: collections.deque[int] = collections.deque()  # sent and not answered, in order
        self.unsent = memoryview(b"")  # rest of the answers that the worker's side of the connection has no room for yet
        self.broken = False  # the worker has sent something other than replies
        self._answered, self._received = 0, b""  # number of replies, and bytes of the next one
        self.since = time.monotonic()  # time of the latest event: process started, jobs sent or result received

    def ready(self) -> bool:
        if not self.loaded:
            if reply := self._reply("loaded"):
                if reply[0] is not None:
                    raise unusable(self._name, reply[0])
                self.loaded = True
            if self.broken:
                raise unusable(self._name, f"while it was loaded, {JUNK}")
            if not self.loaded and time.monotonic() - self.since > STARTING:
                raise unusable(self._name, f"it took more than {STARTING:g} s to import and warm up")
        return self.loaded

    def hand(self, jobs: list[int], answers: list[tuple[Problem, str]]) -> None:
        self.unsent = memoryview(pickle.dumps(answers))
        self.jobs.extend(jobs)
        self.since = time.monotonic()
        self.send()

    def send(self) -> None:
        """Sends as much of `unsent` as the connection takes. Never waits."""
        with contextlib.suppress(OSError):  # the connection is full, or the worker died, see `alive`
            while self.unsent:
                self.unsent = self.unsent[os.write(self.connection.fileno(), self.unsent) :]

    def results(self) -> list[tuple[int, Any]]:
        found = []
        while self.loaded and (reply := self._reply(self._answered)):
            if not self.jobs:
                self.broken = True
                break
            found.append((self.jobs.popleft(), reply[0]))
            self._answered += 1
            self.since = time.monotonic()
        return found

    def _reply(self, subject: str | int) -> tuple[Any] | None:
        """Returns the result of the worker's next reply as (result,), or None if no reply has arrived. Never waits. Sets
        `broken` if the worker sent anything other than a reply about `subject` (see `reward_worker.reply`)."""
        with contextlib.suppress(EOFError, OSError):  # it died, see `alive`
            while b"\n" not in self._received and len(self._received) <= MAX_REPLY and self.connection.poll(0):
                part = os.read(self.connection.fileno(), MAX_REPLY)
                if not part:
                    break
                self._received += part
        line, end, rest = self._received.partition(b"\n")
        if not end:
            self.broken = self.broken or len(line) > MAX_REPLY
            return None
        self._received = rest
        value = None
        with contextlib.suppress(ValueError):
            value = parse_json(line, "a reply")
        match value:
            case [str() | int() as about, None | str() | list() as result] if (type(about), about) == (type(subject), subject):
                if not isinstance(result, list) or self._are_values(result):
                    return (result,)
        self.broken = True
        return None

    def _are_values(self, result: list[Any]) -> bool:
        """Returns whether a list has one finite number for each function. If a function returns NaN, the worker does not send a
        list, but the text of an error."""
        return len(result) == self._number and all(isinstance(value, float) and math.isfinite(value) for value in result)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kills the worker and the processes that its functions have started. They are in the worker's process group, which
        may outlive the worker."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended; macOS calls this a lack of permission
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill(self) -> None:
        self.end()
        self.connection.close()


def _wait(workers: Sequence[_Worker], seconds: float) -> None:
    """Waits at most `seconds` seconds, until a worker has sent something, or can take more of its answers."""
    events = select.poll()
    for worker in workers:
        events.register(worker.connection, select.POLLIN | (select.POLLOUT if worker.unsent else 0))
    events.poll(1000 * seconds)


def unusable(function: str, trouble: str) -> ValueError:
    return ValueError(f"the reward function {function!r} cannot be used: {trouble}")
