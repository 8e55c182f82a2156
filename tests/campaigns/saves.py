"""Trains a tiny run that saves a checkpoint at every iteration, with few file descriptors, and watches what its process holds.

    python tests/campaigns/saves.py [--iterations=400] [--limit=256] [--output=benchmarks/results/saves.log]

Prints the most open file descriptors, threads and MiB of resident memory within every twentieth of the iterations. Exits with 1
if the run fails, or if the last half of the run, without its end, exceeds the second quarter by 32 descriptors, 16 threads or
10 % of memory.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

os.environ.setdefault("JAX_PLATFORMS", "cpu")

sys.path.append(str(pathlib.Path(__file__).parents[1] / "helpers"))

from commands import QUICK
from faults import TINY, log_to
from igpo_jax.run.results import environment
from run_log import rows_so_far

UPDATES, INNER_STEPS = 20, 1
FLAGS = (
    f"--config.sft.updates={UPDATES}",
    "--config.sft.heldout=0",
    "--config.sft.eval_every=0",
    "--config.rl.checkpoint_every=1",
    "--config.rl.eval_every=0",
    "--config.rl.group_size=2",
    f"--config.objective.inner_steps={INNER_STEPS}",
    "--config.reward.workers=1",
)
PARTS = 20
MORE = (32, 16, 1.1)  # descriptors, threads, factor of memory
Held = tuple[int, int, float]  # open file descriptors, threads, resident memory in MiB


def held_by(process: int) -> Held | None:
    """Returns what a process holds, or None if it has ended."""
    folder = pathlib.Path("/proc", str(process))
    try:
        pages = int((folder / "statm").read_text().split()[1])
        return len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")), pages * resource.getpagesize() / 2**20
    except OSError:
        return None


def watch(workdir: pathlib.Path, iterations: int, limit: int) -> tuple[int, list[list[Held]]]:
    """Trains the run. Returns its exit status, and what it held at moments of every part of the iterations."""
    command = [sys.executable, "-m", "igpo_jax.train", f"--config={TINY}", f"--workdir={workdir}", *FLAGS]
    command.append(f"--config.rl.iterations={iterations}")
    settings = {"XLA_FLAGS": QUICK, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with workdir.with_suffix(".log").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "bash", *command],
            env=os.environ | settings,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        parts: list[list[Held]] = [[] for _ in range(PARTS)]
        while process.poll() is None:
            time.sleep(0.3)
            rows = [row["step"] for row in rows_so_far(workdir) if row["stage"] == "rl"]
            held = held_by(process.pid)
            if rows and held and rows[-1] > UPDATES:
                done = (rows[-1] - UPDATES) // INNER_STEPS
                parts[min(done * PARTS // iterations, PARTS - 1)].append(held)
    return process.returncode, parts


def most(parts: list[list[Held]]) -> Held:
    moments = [held for part in parts for held in part]
    return max(a for a, _, _ in moments), max(b for _, b, _ in moments), max(c for _, _, c in moments)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--limit", type=int, default=256, help="of open file descriptors")
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args(arguments)
    _, say = log_to(options.output)
    where = environment()
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("igpo_jax", "jax", "orbax-checkpoint"))
    say(f"{datetime.now(UTC):%Y-%m-%d}, {where['device']}, Python {where['python']}, {versions}, commit {where['commit']}")
    say(f"{options.iterations} RL iterations, each with a checkpoint, under ulimit -n {options.limit}")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        workdir = pathlib.Path(name, "run")
        status, parts = watch(workdir, options.iterations, options.limit)
        printed = workdir.with_suffix(".log").read_text()
    for number, part in enumerate(parts):
        if part:
            files, threads, memory = most([part])
            until = (number + 1) * options.iterations // PARTS
            say(f"until iteration {until:4}: {files:3} descriptors, {threads:3} threads, {memory:6.0f} MiB")
    if status:
        say(f"the run ended with {status}: {printed.strip().splitlines()[-1]}")
        return 1
    # The last part is left out, because the process makes the report there.
    early, late = most(parts[PARTS // 4 : PARTS // 2]), most(parts[PARTS // 2 : -1])
    flat = late[0] <= early[0] + MORE[0] and late[1] <= early[1] + MORE[1] and late[2] <= early[2] * MORE[2]
    say(f"finished in {time.monotonic() - begin:.0f} s: {'flat' if flat else 'NOT FLAT'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
