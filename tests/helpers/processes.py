"""Starts runs with one or several processes on this machine, as SLURM does, writes their data, and finds a browser."""

import json
import os
import pathlib
import shutil
import socket

import commands

TINY = pathlib.Path(__file__).parents[1] / "end_to_end" / "tiny.py"
DEVICES = 4  # total over all processes of a run
LIMIT = 600  # seconds per process
HEARTBEAT = 10  # seconds


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"))), None
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(
    processes: int,
    devices: int,
    *arguments_of_each: list[str],
    folder: pathlib.Path,
    config: str = str(TINY),
    command: str = "train",
) -> list[commands.Process]:
    """Starts a command, by default `python -m igpo_jax.train`, as `srun` does, with `devices` emulated devices per process."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(processes),
        "JAX_COORDINATOR_PORT": str(free_port()),
        "IGPO_HEARTBEAT_SECONDS": str(HEARTBEAT),
    }
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{commands.QUICK} --xla_force_host_platform_device_count={devices}",
    }
    started = []
    for rank in range(processes):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        started.append(
            commands.start(
                command,
                f"--config={config}",
                *arguments_of_each[rank],
                stdout=folder / f"{rank}-of-{processes}.log",
                cwd=folder,
                env=env | (slurm | own if processes > 1 else {}),
            )
        )
    return started


def ends(processes: list[commands.Process], folder: pathlib.Path) -> tuple[list[int], list[str]]:
    """Waits for all processes to end. Returns their exit statuses and outputs."""
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    number = len(processes)
    return codes, [(folder / f"{rank}-of-{number}.log").read_text() for rank in range(number)]


def word_problems(file: pathlib.Path, number: int) -> None:
    """Writes word problems in GSM8K's format."""
    names, things = ("Mara", "Tom", "Ada", "Kofi", "Lin", "Omar"), ("apples", "books", "pens", "cups", "shells", "stamps")
    rows = []
    for i in range(number):
        name, thing, (a, b, c) = names[i % 6], things[i // 6 % 6], (2 + i % 9, 3 + i % 11, 1 + i % 7)
        question = f"{name} buys {a} boxes of {b} {thing} and gives {c} {thing} away. How many {thing} are left?"
        answer = f"{name} buys {a}*{b} = <<{a}*{b}={a * b}>>{a * b} {thing}.\nThen {a * b}-{c} = {a * b - c} are left."
        rows.append(json.dumps({"question": question, "answer": f"{answer}\n#### {a * b - c}"}))
    file.write_text("\n".join(rows))
