"""Golden values: records what one checkout of this repository computes in small runs, and compares it with another checkout.

    python tests/campaigns/golden.py record --repository=DIR --output=DIR [--only=NAME,...]  runs the scenarios with the code in DIR
    python tests/campaigns/golden.py compare OLD NEW [--tolerance=0]  compares two outputs of record
    python tests/campaigns/golden.py continue --repository=DIR --runs=DIR [--tolerance=0]  continues copies of stopped runs with that code

compare and continue exit with 1 if a token, verdict, reward or text differs, or another float by more than the tolerance,
relative to max(1, |x|). Artefacts are flat rows {"a.b": value} without times, and the arrays of the newest checkpoints.
A stopped run is a folder RUN or RUN-WHERE with the run's folder `run` and the artefacts `expected` of an uninterrupted run.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from igpo_jax.runtime.files import RENAMED

# RENAMED is applied to artefacts of both sides, and to the flags that new code gets: whole dotted names, or whole parts of them.
VARYING = re.compile(
    r"(time|speed|memory)/|(wall_seconds|seconds|logs|date|device|platform|python|versions|commit|fingerprint)($|\.)"
    r"|model\.(weights|origin\.path)$|.*compile_seconds$"
)
VERDICTS = re.compile(r"reward|accuracy|correct|groups/|pass@")  # floats to which no tolerance applies
# A config file, and a reward by chance: models this small are right too rarely for groups with correct and wrong completions.
SETUP = """import zlib

def get_config():
    from igpo_jax.config import base_config
    from igpo_jax.tasks import arithmetic
    return base_config(**arithmetic.defaults())

def reward(problem, text):
    return (1.0, 0.5, 0.0, 0.0, 0.0)[zlib.crc32((problem.answer + text).encode()) % 5]
"""
# Config keys. One without a section is of the section before it, and of one that occurs twice the last value counts.
BASE = """
task.slots=2 worked_share=1.0 sft_problems=2048 rl_problems=64 test_problems=16 data.prompt_buckets=(9,)
sampler.completion_length=16 block_length=8 steps=8 temperature=0.3
evaluation.completion_length=16 block_length=8 steps=8 problems=16 batch_size=8
sft.updates=40 batch_size=64 checkpoint_every=20 heldout=48 eval_every=20 sft.optimizer.learning_rate=0.01 warmup_steps=5
rl.iterations=4 prompts=8 group_size=4 checkpoint_every=1 eval_every=2 show_every=1
rl.optimizer.learning_rate=0.001 warmup_steps=2 inpainting.chunk_min=1 chunk_max=3 ratio_min=0.6 ratio_max=1.0
objective.inner_steps=2 reward.function=scenario:reward deadline_seconds=60.0 """
TINY = BASE + "model.width=64 layers=2 heads=2 kv_heads=2 mlp_width=64 "
SHORT = TINY + "sft.updates=20 eval_every=0 rl.iterations=2 eval_every=0 "
RUNS = {
    # With the reward of the task. Trained for long enough that some groups are right at once and others are rescued by hints.
    "hints": TINY + "reward.function= sft.updates=300 eval_every=150 rl.iterations=6 group_size=8",
    "mesh": TINY + "mesh.data=2 fsdp=2 tensor=2 model.remat=full rl.rollout_slices=2 microbatches=2 sft.microbatches=2",
    "dual": TINY + "sampler.cache=dual commit=threshold threshold=0.5 refresh=2 rl.probe_every=2",
    "prefix": TINY + "sampler.cache=prefix commit=factor factor=1.5 fallback=most_confident remasking=position_first "
    "rl.probe_every=1 probe_limit=0.011",
    "lora": BASE + "model.path=llada param_dtype=bfloat16 compute_dtype=bfloat16 lora.rank=4 alpha=8.0 tokenizer.chat=True "
    "data.prompt_buckets=(48,) task.sft_problems=128 sft.updates=6 batch_size=8 checkpoint_every=3 heldout=8 eval_every=3 "
    "rl.prompts=4 group_size=2 rl.optimizer.first_moment_dtype=bfloat16",
    "released": TINY + "inpainting.exclude_answer=False round_up=True stretch=True by_completion=True objective.released=True "
    "reward.scale=3.0 format=True after_eos=True rl.optimizer.schedule=linear sampler.completion_length=48 steps=24 "
    "evaluation.completion_length=48 steps=24",
    "coupled": SHORT + "objective.estimator=coupled samples=2 upper_weight=0.5 upper_power=2.0 normalize_advantages=True",
    "trace": SHORT + "objective.estimator=trace samples=2 ratio=token kl=k2 normalization=canvas hint_supervision=0.1 "
    "model.kv_heads=1 tied_head=True",
    "wd1": SHORT + "objective.loss=wd1 estimator=quadrature samples=2 kl=k2 sft.corruption=independent "
    "sampler.cfg_scale=0.5 remasking=entropy",
    "own": SHORT + "inpainting.source=own curriculum=0.3 ratio_min=0.2 ratio_max=0.6 "
    "rl.dynamic_batches=2 iterations=6 eval_every=2 task.rl_problems=24 objective.estimator=masked",
    "leading": SHORT + "inpainting.policy=prefix chunk_min=5 chunk_max=10 curriculum=0.3 ratio_min=0.2 ratio_max=0.6 "
    "rl.dynamic_batches=2 objective.estimator=prompt_masked",
    "processes": SHORT,
}  # fmt: skip
DEVICES = {"mesh": {"devices": 8}, "processes": {"processes": 2, "devices": 2}}
COMMANDS = {  # name -> command lines, and the files of the workspace that are artefacts; printed.*: what the commands print
    "evaluate": ("evaluate --workdir=runs/hints --output=e", "e/arithmetic.jsonl e/card.json"),
    "sampler_error": ("evaluate --sampler-error --workdir=runs/dual --output=s",
        "s/exact/arithmetic.jsonl s/fast/arithmetic.jsonl s/card.json"),
    "generate": ("""generate --model=runs/hints --prompt=38+05+20= --prompt=07+50...= --hint='# 4'
        generate --model=runs/hints --prompt=38+05+20= --temperature=1 --seed=3 --cache=prefix --commit=threshold
        generate --model=runs/hints --prompt=38+05+20= --show --template='# [MASK:2] 63=[MASK:2]'
        generate --model=runs/lora --prompt=38+05+20= --chat""", "printed.txt"),
    "convert": ("""convert --source=runs/hints --target=h --format=huggingface
        convert --source=runs/lora --target=l --format=huggingface
        convert --source=runs/lora --target=p --format=peft""",
        "h/model.safetensors l/model-00001-of-00003.safetensors p/adapter_model.safetensors p/adapter_config.json"),
    "report": ("report runs/hints --output=page.html", "printed.txt"),
    "plan": ("plan --json CONFIG-OF-HINTS", "printed.json"),
}  # fmt: skip


class Workspace:
    """A temporary folder in which commands of one checkout run; paths in configurations are relative to it."""

    def __init__(self, repository: pathlib.Path, folder: str):
        root, self.folder = repository.resolve(), pathlib.Path(folder).resolve()
        compiled = {"JAX_COMPILATION_CACHE_DIR": f"{self.folder}/compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        self.environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"} | compiled
        (self.folder / "scenario.py").write_text(SETUP)
        shutil.copytree(root / "tests/model/fixtures/llada_tiny/bf16_sharded", self.folder / "llada")
        runpy.run_path(str(next(root.glob("tests/**/tokenizer_files.py"))))["write_tokenizer"](self.folder / "llada")
        probe = "import json, scenario, igpo_jax; print(json.dumps([igpo_jax.__file__, scenario.get_config().to_dict()]))"
        file, defaults = json.loads(self.finish(self.start("-c", probe)))
        if not pathlib.Path(file).is_relative_to(root):
            raise RuntimeError(f"igpo_jax is imported from {file}, not from {root}")
        self.known = flat(defaults)

    def start(self, *arguments: str, processes: int = 1, devices: int = 1) -> list[subprocess.Popen]:
        """Starts Python; several processes as `srun` starts those of a run, each with so many emulated devices."""
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        environment = self.environment | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment["JAX_COORDINATOR_PORT"] = str(free.getsockname()[1])
            environment |= {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(processes)}
        ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} if processes > 1 else {} for rank in range(processes)]
        options = {"cwd": self.folder, "stdout": subprocess.PIPE, "stderr": (self.folder / "log").open("a"), "text": True}
        return [subprocess.Popen([sys.executable, *arguments], env=environment | rank, **options) for rank in ranks]

    def finish(self, processes: list[subprocess.Popen]) -> str:
        """Waits for processes and returns what the first one printed."""
        printed = [process.communicate(timeout=900)[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError(f"{processes[0].args}\n{(self.folder / 'log').read_text()[-4000:]}")
        return printed[0]

    def config_flags(self, name: str) -> list[str]:
        """The configuration of a run, with the names that this checkout knows."""
        values, section = {}, ""
        for key, value in (item.split("=", 1) for item in RUNS[name].split()):
            section = key.rpartition(".")[0] or section
            key = f"{section}.{key.rpartition('.')[2]}"
            values[key if key in self.known else renamed(key)] = value
        return ["--config=./scenario.py", *(f"--config.{key}={value}" for key, value in values.items())]

    def start_training(self, name: str, workdir: str) -> list[subprocess.Popen]:
        arguments = "-m", "igpo_jax.train", f"--workdir={workdir}", *self.config_flags(name)
        return self.start(*arguments, **DEVICES.get(name, {}))

    def train(self, name: str) -> pathlib.Path:
        """Trains a run, unless it has been, and returns its folder."""
        folder = self.folder / "runs" / name
        if not folder.is_dir():
            self.finish(self.start_training(name, f"runs/{name}"))
        return folder

    def record(self, name: str, target: pathlib.Path) -> None:
        """Writes the artefacts of a scenario."""
        if name in RUNS:
            return save_run(self.train(name), target)
        lines, artefacts = COMMANDS[name]
        for run in re.findall(r"runs/(\w+)", lines):
            self.train(run)
        lines = lines.replace("CONFIG-OF-HINTS", shlex.join(self.config_flags("hints"))).splitlines()
        printed = "".join(self.finish(self.start("-m", *shlex.split(f"igpo_jax.{line.strip()}"))) for line in lines)
        for file in ("printed.txt", "printed.json"):
            (self.folder / file).write_text(printed, "utf-8")
        for file in artefacts.split():
            save_rows(self.folder / file, target / file.replace("/", "_"))


def save_run(folder: pathlib.Path, target: pathlib.Path) -> None:
    for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl", "result.json", "config.json"):
        save_rows(folder / name, target / name)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    for stage in (folder / "checkpoints").iterdir():
        steps, arrays = sorted(int(path.name) for path in stage.iterdir() if path.name.isdigit()), {}
        for part, reader in itertools.product(("state", "progress"), [ocp.Checkpointer(ocp.PyTreeCheckpointHandler())]):
            path = stage / str(steps[-1]) / part
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(path, restore_args=how)):
                name = f"{part}.{jax.tree_util.keystr(keys, simple=True, separator='.')}.{leaf.dtype}"
                arrays[name] = leaf if leaf.dtype.kind in "iuf" else leaf.astype(np.float32)  # NumPy cannot save bfloat16
        np.savez(target / f"checkpoint_{stage.name}.npz", steps=np.array(steps), **arrays)


def save_rows(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes an artefact as flat rows, without what varies."""
    match source.suffix:
        case ".json":
            rows = [json.loads(source.read_bytes())]
        case ".jsonl":
            rows = [json.loads(line) for line in source.open("rb")]
        case ".txt":
            rows = [{"text": line} for line in source.read_text("utf-8").splitlines()]
        case _:
            rows = [{"sha256": hashlib.sha256(source.read_bytes()).hexdigest()}]
    kept = [{key: value for key, value in flat(row).items() if not VARYING.match(key)} for row in rows]
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")


def flat(value, prefix: str = "") -> dict:
    """Nested dicts, and lists of dicts or lists, as {"a.0.b": value}."""
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}{name}.").items()}


def renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}" + ("" if old.endswith(".") else r"(?![^.])"), new, name)
    return name


def read(file: pathlib.Path) -> tuple[str, list[dict]]:
    """SHA-256 and rows of an artefact; "" and none if it is missing."""
    if not file.is_file():
        return "", []
    rows = [dict(np.load(file))] if file.suffix == ".npz" else [json.loads(row) for row in file.open(encoding="utf-8")]
    return hashlib.sha256(file.read_bytes()).hexdigest(), rows


def difference(one, other) -> float:
    """The largest difference of floats, relative to max(1, |x|); infinite if anything else differs."""
    x, y = np.asarray(one), np.asarray(other)
    if x.shape != y.shape or x.dtype != y.dtype or x.dtype.kind != "f":
        return 0.0 if x.dtype == y.dtype and np.array_equal(x, y) else np.inf
    with np.errstate(invalid="ignore"):
        relative = np.nan_to_num(np.abs(x - y) / np.maximum(1, np.abs(x)), nan=np.inf)
    return float(np.max(np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, relative), initial=0))


def compare(old: pathlib.Path, new: pathlib.Path, tolerance: float) -> bool:
    """Compares the artefacts of one scenario, prints a line for each and returns whether they agree."""
    agree = True
    for name in sorted({file.name for folder in (old, new) for file in folder.iterdir()} - {"hashes.json"}):
        (old_hash, before), (new_hash, after), found = read(old / name), read(new / name), []
        # Of both: a continued run keeps its config.json, with the old names.
        before, after = ([{renamed(key): value for key, value in row.items()} for row in rows] for rows in (before, after))
        for number, (a, b) in enumerate(itertools.zip_longest(before, after, fillvalue={})):
            for key in dict.fromkeys([*a, *b]):
                one, other = a.get(key, "missing"), b.get(key, "missing")
                if size := difference(one, other):
                    failed = size > tolerance or bool(VERDICTS.search(key))
                    found.append((failed, size, re.sub(r"\s+", " ", f"row {number}, {key}: {one!s:.70} | {other!s:.70}")))
        told = "equal" if old_hash == new_hash else "equal, with another sha256: names, order of fields or signs of 0"
        if found:
            agree &= not (failed := any(entry[0] for entry in found))
            told = f"{'DIFFERS' if failed else 'within the tolerance'} in {len(found)} values, first in {found[0][2]}; "
            told += f"by {max(entry[1] for entry in found):.3g} at most"
        print(f"{new.name}/{name}: {told}", flush=True)
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "compare", "continue"))
    parser.add_argument("folders", nargs="*", type=pathlib.Path, metavar="OLD NEW")
    for name in ("repository", "output", "runs"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--only", default=",".join([*RUNS, *COMMANDS]))
    parser.add_argument("--tolerance", type=float, default=0.0)
    given, agree = parser.parse_args(), True
    if given.command == "compare":
        old, new = given.folders
        sys.exit(not all([compare(old / folder.name, folder, given.tolerance) for folder in sorted(new.iterdir())]))
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        work = Workspace(given.repository, folder)
        for name in given.only.split(",") if given.command == "record" else ():
            begin, target = time.monotonic(), given.output / name
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            work.record(name, target)
            hashes = {file.name: read(file)[0] for file in sorted(target.iterdir())}
            (target / "hashes.json").write_text(json.dumps(hashes, indent=2))
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        for source in sorted(given.runs.iterdir()) if given.command == "continue" else ():
            run = shutil.copytree(source / "run", work.folder / "stopped" / source.name)
            (found := work.folder / "found" / source.name).mkdir(parents=True)
            work.finish(work.start_training(source.name.partition("-")[0], str(run)))
            save_run(run, found)
            agree &= compare(source / "expected", found, given.tolerance)
    sys.exit(not agree)


if __name__ == "__main__":
    main()
