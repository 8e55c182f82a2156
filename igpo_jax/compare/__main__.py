"""python -m igpo_jax.compare --config=arithmetic.py --arms=grpo,resample,dapo,igpo,igpo_ref,full_hint --seeds=0..4
       [--rl_seeds=N] [--tasks=FILE,FILE] [--stages=DIR] [--output=DIR] [--jobs=N] [--quick] [--config.key=value ...]

Compares arms, which are variants of the training method (igpo_jax/compare/arms.py). Runs one supervised stage for each seed,
continues it with each arm (--rl_seeds times, with different prompts and samples), and writes comparison.html, comparison.md
and comparison.json. These files contain the accuracies of the arms, with confidence intervals, after equal numbers of prompts,
equal numbers of network evaluations and equal wall time. They also contain a verdict on each claim whose arms were all
trained. With --tasks, also runs a comparison for each further configuration, and writes tasks.html and tasks.md with the
results of all comparisons. With --stages, the arms start from supervised models that were trained before. Run the same command
again to resume; finished runs are kept. --quick checks the whole process in a few minutes, with few iterations and, by default,
with seeds 0..3.
"""

from igpo_jax.runtime import interrupts, streams

if __name__ == "__main__":  # before the slow imports
    interrupts.install("interrupted; run the same command to resume")

import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys
import threading
from typing import Any

from absl import flags

from igpo_jax.cli import config_overrides, define_config, escape_controls, parse_flags, run_command, tell
from igpo_jax.compare.arms import (
    SUPERVISED,
    Run,
    check_arms,
    check_comparison,
    create_run_folder,
    last_error,
    overrides_of,
    own_settings,
    parse_arms,
    parse_seeds,
    path_of,
    require_different_stages,
    require_finished,
    require_own_logs,
    run_name,
    time_left,
)
from igpo_jax.compare.numbers import compare_runs, seconds_of
from igpo_jax.compare.page import write_comparison
from igpo_jax.compare.tasks import check_tasks, compare_tasks
from igpo_jax.runtime.files import (
    open_without_links,
    require_links_inside,
    require_same_identity,
)
from igpo_jax.runtime.installation import ending_with_parent, python_command
from igpo_jax.runtime.locks import locked
from igpo_jax.runtime.progress import duration

CONFIG = define_config()
ARM_NAMES = flags.DEFINE_string("arms", "grpo,resample,dapo,igpo,igpo_ref,full_hint", "Comma-separated, or all.")
SEEDS = flags.DEFINE_string("seeds", None, "Of supervised stages, FIRST..LAST or a list; by default 0..4, with --quick 0..3.")
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write; by default runs/compare-CONFIG, with --tasks runs/compare-tasks."
)
RL_SEEDS = flags.DEFINE_integer("rl_seeds", 1, "Runs of each arm from each supervised stage.", lower_bound=1, upper_bound=100)
TASKS = flags.DEFINE_list("tasks", [], "Further configurations to compare on; one page shows all of them.")
STAGES = flags.DEFINE_string(
    "stages", None, "A folder of model folders seed-N, the results of supervised stages; with --tasks, of TASK/seed-N."
)
JOBS = flags.DEFINE_integer("jobs", 1, "Concurrent runs.", lower_bound=1, upper_bound=1000)
QUICK = flags.DEFINE_boolean("quick", False, "Few iterations and seeds.")

STARTING = threading.Lock()  # held while a process is added to the set of running processes or removed from it


def main(_) -> None:
    streams.use_as_log("stdout")  # the results are in files
    config, given = CONFIG.value, config_overrides(sys.argv[1:])
    own = own_settings(config, given, QUICK.value, bool(STAGES.value))
    config.update_from_flattened_dict(own)
    overrides = [*given, *(f"--config.{key}={value}" for key, value in own.items())]  # the last one wins
    flag: Any = flags.FLAGS["config"]
    file = flag.config_filename
    name = pathlib.Path(file.partition(":")[0]).stem
    output = OUTPUT.value or f"runs/compare-{'tasks' if TASKS.value else name}" + ("-quick" if QUICK.value else "")
    folder = pathlib.Path(output)
    try:
        arms, seeds = parse_arms(ARM_NAMES.value), parse_seeds(SEEDS.value or ("0..3" if QUICK.value else "0..4"))
        check_arms(config, arms, overrides)
        if TASKS.value:
            check_tasks(TASKS.value, arms, overrides)
            return compare_on_tasks(folder, [file, *TASKS.value])
        if STAGES.value:
            require_different_stages(STAGES.value, seeds)
        # With one RL seed of all stages, all arms can be compared; the further ones make the intervals narrower.
        stages = [[(seed, SUPERVISED, 0) for seed in seeds] if config.sft.updates or config.sft.epochs else []]
        stages += [[(seed, arm, rl_seed) for rl_seed in range(RL_SEEDS.value) for seed in seeds for arm in arms]]
        with locked(output):
            require_links_inside(folder)
            require_own_logs(folder, sum(stages, []))
            check_comparison(folder / "overrides.json", {"config": file, "overrides": overrides}, config)
            train_all(folder, file, stages, overrides)
            write_comparison(folder, compare_runs(folder, arms, seeds, RL_SEEDS.value, QUICK.value))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(escape_controls((folder / "comparison.md").read_text(encoding="utf-8")))
    print(escape_controls(f"report: {folder / 'comparison.html'}"))


def compare_on_tasks(folder: pathlib.Path, configs: list[str]) -> None:
    """Runs this command once for each of several configurations, and prints tables with the results on all of them."""
    values = {
        "arms": ARM_NAMES.value,
        "seeds": SEEDS.value,
        "rl_seeds": RL_SEEDS.value,
        "jobs": JOBS.value,
        "quick": QUICK.value,
    }
    given = [f"--{name}={value}" for name, value in values.items() if value is not None]
    with locked(str(folder)):
        require_links_inside(folder)
        compare_tasks(folder, configs, [*given, *config_overrides(sys.argv[1:])], STAGES.value)
    print(escape_controls((folder / "tasks.md").read_text(encoding="utf-8")))
    print(escape_controls(f"report: {folder / 'tasks.html'}"))


def train_all(folder: pathlib.Path, file: str, stages: list[list[Run]], overrides: list[str]) -> None:
    """Trains all unfinished runs of a comparison. Prints the name of each run when it ends, and the estimated remaining time.
    `stages` are two lists: the runs of supervised stages, which are trained first, and the runs of arms. If a run fails, starts
    no further runs, waits for the runs in progress, and raises RuntimeError. After a signal, the runs in progress save a
    checkpoint before this process ends."""
    cores, shares = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
    for job in range(JOBS.value):
        shares.put(set(cores[job :: JOBS.value]) or set(cores))

    def take_share() -> None:
        """Restricts the calling thread, and the processes that it starts, to some of the machine's CPU cores."""
        os.sched_setaffinity(0, shares.get())

    supervised, of_arms = stages
    runs = supervised + of_arms
    finished = {run for run in runs if (path_of(folder, *run) / "result.json").is_file()}
    seconds = {run: seconds_of(path_of(folder, *run)) for run in finished}
    counts = f"{len(supervised)} supervised stages and " * bool(supervised) + f"{len(of_arms)} runs of arms"
    left = time_left(runs, seconds, JOBS.value)
    tell(f"{folder}: {counts}, {len(finished)} finished{left}. Each run writes a log: {folder}/seed-N/ARM.log")
    pool = concurrent.futures.ThreadPoolExecutor(JOBS.value, initializer=take_share)
    running: set[subprocess.Popen] = set()

    def stop_runs() -> None:
        STARTING.acquire(timeout=0.5)  # not released: from now on, no run starts and none is reported
        for process in running.copy():
            process.terminate()
        for process in running.copy():
            process.wait()

    with interrupts.before_end(stop_runs), pool:
        try:
            for stage in stages:
                futures = {
                    pool.submit(train, folder / f"seed-{seed}", file, arm, rl_seed, overrides, running): (seed, arm, rl_seed)
                    for seed, arm, rl_seed in stage
                }
                for done in concurrent.futures.as_completed(futures):
                    run = futures[done]
                    done.result()
                    if run not in finished:
                        spent = seconds[run] = seconds_of(path_of(folder, *run))
                        told = f"{path_of(folder, *run)}: {'finished' if spent is None else duration(spent)}"
                        tell(f"{told}; {len(seconds)} of {len(runs)}{time_left(runs, seconds, JOBS.value)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(folder: pathlib.Path, file: str, arm: str, rl_seed: int, overrides: list[str], running: set) -> None:
    """Trains one run in a separate process, unless it is finished. `folder` is the folder seed-N, which holds all runs from one
    supervised stage. The set `running` contains the training process until it ends. If the run fails, raises a RuntimeError
    with the reason and the name of the log file. Raises ValueError if the run's folder contains a run of another arm, with
    other overrides or with another seed."""
    run, seed = folder / run_name(arm, rl_seed), int(folder.name.removeprefix("seed-"))
    own = {"rl.iterations": 0} if arm == SUPERVISED else overrides_of(arm, CONFIG.value)
    own |= {"rl.seed": rl_seed} if rl_seed else {}
    own |= {"model.path": f"{STAGES.value}/seed-{seed}"} if STAGES.value else {}
    require_same_identity(run.with_suffix(".json"), own, f"arm {arm}", [run])
    if (run / "result.json").is_file():
        requested = CONFIG.value.copy_and_resolve_references()
        requested.update_from_flattened_dict({"seed": seed} | own)
        return require_finished(run, requested)
    if not run.exists():
        create_run_folder(run)
    command = ending_with_parent([*python_command("igpo_jax.train"), f"--config={file}", f"--workdir={run}"])
    command += [*overrides, f"--config.seed={seed}", *(f"--config.{key}={value}" for key, value in own.items())]
    log = run.with_suffix(".log")
    with open_without_links(log, "ab") as output:
        begin = output.tell()
        # A process group of its own keeps the terminal's signals away; only this process handles them.
        with STARTING:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, process_group=0)
            running.add(process)
        code = process.wait()
        with STARTING:
            running.remove(process)
    if code or not (run / "result.json").is_file():
        told = f"the run {run} has stopped (exit code {code}): {last_error(log, begin)}"
        raise RuntimeError(f"{told}; see {log}; run the same command to resume")


def run() -> None:
    flags.mark_flag_as_required("config")
    run_command(main, parse_flags)


if __name__ == "__main__":
    run()
