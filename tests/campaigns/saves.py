"""Trains with a save in every RL iteration under a low limit of open files, and records the process's descriptors, threads and
memory as it goes: they must not grow.

    python tests/campaigns/saves.py --iterations=400 --files=256 --output=benchmarks/results/saves.log
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

sys.path.append(str(pathlib.Path(__file__).parents[1] / "helpers"))

from commands import QUICK
from faults import log_to
from igpo_jax.run.results import environment

ROOT = pathlib.Path(__file__).parents[2]
SHORT = (
    f"--config={ROOT / 'tests' / 'end_to_end' / 'tiny.py'}",
    "--config.sft.updates=0",
    "--config.rl.checkpoint_every=1",
    "--config.rl.eval_every=0",
    "--config.reward.workers=1",
)
NOTED = 20  # iterations between two notes


def used(process: int) -> tuple[int, int, float]:
    """Returns the numbers of open descriptors and threads of a process, and its resident memory in MiB."""
    folder = pathlib.Path("/proc", str(process))
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return len(os.listdir(folder / "fd")), int(fields["Threads"]), int(fields["VmRSS"].split()[0]) / 1024


def iterations_done(workdir: pathlib.Path) -> int:
    log = workdir / "metrics.jsonl"
    rows = log.read_text().splitlines() if log.exists() else []
    return sum("reward/first_try" in json.loads(row) for row in rows if row.endswith("}"))


def main() -> int:
    """Returns 1 if the run fails, or if descriptors, threads or memory grow in the second half of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--files", type=int, default=256, help="the limit of open files (ulimit -n)")
    parser.add_argument("--output", type=pathlib.Path, help="a copy of what is printed")
    options = parser.parse_args()
    _, say = log_to(options.output)
    where = environment()
    say(f"{datetime.now(UTC):%Y-%m-%d}, {where['device']}, commit {where['commit']}: {options.iterations} iterations with a save each")
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        workdir, begin, notes = pathlib.Path(folder, "run"), time.monotonic(), []
        command = ["bash", "-c", f'ulimit -n {options.files}; exec "$@"', "train", sys.executable, "-m", "igpo_jax.train"]
        command += [*SHORT, f"--workdir={workdir}", f"--config.rl.iterations={options.iterations}"]
        with open(pathlib.Path(folder, "printed"), "w+") as printed:
            process = subprocess.Popen(command, env=os.environ | variables, stdout=printed, stderr=subprocess.STDOUT)
            while process.poll() is None:
                done = iterations_done(workdir)
                if done >= NOTED * (len(notes) + 1):
                    notes.append(used(process.pid))
                    say("iteration {}: {} descriptors, {} threads, {:.0f} MiB".format(done, *notes[-1]))
                time.sleep(0.1)
            if process.returncode:
                printed.seek(0)
                say(printed.read()[-2000:])
    # A note may fall into a save, which has descriptors and threads of its own: compares the most in both halves.
    early, late = (list(map(max, zip(*half, strict=True))) for half in (notes[: len(notes) // 2], notes[len(notes) // 2 :]))
    grows = late[0] > early[0] + 8 or late[1] > early[1] + 8 or late[2] > 1.05 * early[2]
    say(f"status {process.returncode} after {time.monotonic() - begin:.0f} s; {'GROWS' if grows else 'flat'}")
    return int(process.returncode != 0 or grows)


if __name__ == "__main__":
    sys.exit(main())
