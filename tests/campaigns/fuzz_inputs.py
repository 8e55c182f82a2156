"""The commands that fuzz_commands.py runs, and the folders and files that they read."""

import dataclasses
import gzip
import pathlib
import shutil
import tempfile

import faults
from commands import start

TINY = f"--config={faults.TINY}"
SHORT = ("--config.sft.updates=20", "--config.sft.checkpoint_every=10", "--config.rl.iterations=3", "--config.rl.prompts=2")
SHORT += ("--config.rl.group_size=4", "--config.sft.heldout=0", "--config.reward.workers=1")
DECODED = ("--completion_length=8", "--block_length=8", "--steps=4", "--prompt=What is the answer?")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that runs in a sandbox. {NAME} in its flags is the path of an input.

    inputs: what is copied into the sandbox. mutable: patterns of the files that change; by default all of the first input.
    writes: what it may write. makes: a pattern of a file that exists after status 0.
    """

    module: str
    flags: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    mutable: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("out",)
    makes: str = ""
    weight: int = 2


def commands_of() -> dict[str, Command]:
    model, out, page = ("generate", ("--model={model}", *DECODED)), "--output=out", "--output=out.html"
    workdir, one, data = ("--workdir={run}", "--benchmarks=test"), "--config=math.py:smoke", ("data/*",)
    run, pages = (
        ("run/config.json", "run/*.json*", "run/tokenizer.model", "run/checkpoints/*"),
        ("out.html", "out.html.partial"),
    )
    decode = tuple(
        f"--config.decode.{name}={value}" for name, value in (("completion_length", 8), ("block_length", 8), ("steps", 4))
    )
    decode += ("--config.batch_size=2",)
    tests = (
        "math500.task.test=jsonl:{data}/jsonl.jsonl",
        "countdown.task.test={data}/countdown.jsonl",
        "sudoku.task.test={data}/sudoku.csv",
    )

    def inspected(file: str) -> Command:
        kind = file.partition(".")[0]
        sources = (
            f"--config.task.rl={kind}:{{data}}/{file}",
            "--config.task.test=jsonl:{data}/test.jsonl",
            "--config.task.sft=",
        )
        flags = (one, *sources, "--config.sft.updates=0", "--config.model.path={model}")
        return Command("inspect_data", flags, ("data", "model"), (f"data/{file}",), weight=1)

    return {
        "generate RUN": Command("generate", ("--model={run}", "--prompt=5+5="), ("run",), run),
        "generate MODEL": Command(*model, ("model",), weight=4),
        "generate CONVERTED": Command("generate", ("--model={converted}", *DECODED), ("converted",)),
        "generate ADAPTERS": Command(*(model[0], (*model[1], "--adapters={adapters}")), ("adapters", "model")),
        "generate PROMPTS": Command(*(model[0], (*model[1], "--prompts={prompts}")), ("prompts", "model"), weight=1),
        "evaluate RUN": Command("evaluate", (*workdir[:1], out), ("run",), run),
        "evaluate again": Command("evaluate", (*workdir[:1], "--output=evaluation"), ("evaluation", "run"), writes=("evaluation",)),
        "evaluate FILES": Command("evaluate", ("--config=evaluate_math.py", "--config.model={model}", out, *decode,
            *(f"--config.benchmarks.{test}" for test in tests), "--benchmarks=math500,countdown,sudoku"), ("data", "model"), data),
        "evaluate diff": Command("evaluate", ("diff", "{evaluation}", "{other}"), ("evaluation", "other"), weight=1),
        "evaluate --regrade": Command("evaluate", ("--regrade={evaluation}", out), ("evaluation",), weight=1),
        "convert RUN": Command("convert", ("--source={run}", "--target=out", "--format=huggingface"), ("run",), run, makes="out/*.safetensors"),
        "convert MODEL": Command("convert", ("--source={model}", "--target=out"), ("model",), makes="out/params", weight=4),
        "convert CONVERTED": Command("convert", ("--source={converted}", "--target=out", "--format=huggingface"), ("converted",),
            makes="out/*.safetensors", weight=4),
        "report RUN": Command("report", ("{run}", page), ("run",), run[:2], pages, makes="out.html", weight=4),
        "report RUN RUN": Command("report", ("{run}", "{run2}", page), ("run", "run2"), ("run/*.json*", "run2/*.json*"), pages, "out.html"),
        "compare": Command("compare", (TINY, "--arms=grpo,igpo", "--seeds=0", "--output=comparison", *SHORT), ("comparison",),
            ("comparison/*.json", "comparison/*.jsonl"), ("comparison",), "comparison/comparison.html"),
        **{f"inspect_data {file}": inspected(file) for file in DATA},
        "rewrite": Command("rewrite", ("--problems=jsonl:{data}/jsonl.jsonl.gz", "--tokenizer={model}", "--workers=1", out),
            ("data", "model"), ("data/jsonl.jsonl.gz", "model/token*"), weight=1),
        "train": Command("train", (TINY, "--workdir=part", *SHORT), ("part",), ("part/*",), ("part",), weight=4),
        "playground RUN": Command("playground", ("--model={run}",), ("run",), run),
        "playground MODEL": Command("playground", ("--model={model}",), ("model",), weight=1),
        "playground requests": Command("playground", ("--model={model}", "--time_limit=5"), ("model",), weight=4),
    }  # fmt: skip


DATA = (
    "gsm8k.jsonl",
    "math.json",
    "metamath.json",
    "openr1.parquet",
    "jsonl.jsonl",
    "jsonl.jsonl.gz",
    "jsonl.csv",
    "amc.array_record",
)


def prepare(shared: pathlib.Path, commands: dict[str, Command]) -> None:
    """Makes the inputs of the commands in a folder, except those that are there already."""
    needed = {name for command in commands.values() for name in command.inputs}
    needed |= {"run"} if needed & {"part", "run2", "comparison", "evaluation", "other"} else set()
    needed |= {"model"} if needed & {"converted", "adapters"} else set()
    for name in sorted(needed, key=list(MAKERS).index):
        if not (shared / name).exists():
            MAKERS[name](shared)


def _call(shared: pathlib.Path, module: str, *flags: str) -> None:
    log = shared / "log"
    status = start(module, *flags, stdout=log, cwd=shared).wait(600)
    assert status == 0, f"{module}: {log.read_text()[-3000:]}"


def _write_run(shared: pathlib.Path) -> None:
    _call(shared, "train", TINY, "--workdir=run", *SHORT)
    for path in (shared / "run").rglob("report.html"):
        path.unlink()  # large


def _write_part(shared: pathlib.Path) -> None:
    """Copies the run as it was before its last iteration."""
    part = shared / "part"
    shutil.copytree(shared / "run", part)
    (part / "result.json").unlink()
    shutil.rmtree(max((part / "checkpoints/rl").iterdir(), key=lambda folder: int(folder.name)))


def _write_model(shared: pathlib.Path) -> None:
    from tiny_llada import write_tiny_llada

    with tempfile.TemporaryDirectory() as folder:
        shutil.move(write_tiny_llada(pathlib.Path(folder), 2), shared / "model")
    (shared / "model" / "notes.txt").write_text("notes")


def _write_adapters(shared: pathlib.Path) -> None:
    import jax

    from igpo_jax.model import lora
    from igpo_jax.weights.huggingface import folder_model_config
    from igpo_jax.weights.peft import export_peft

    settings = lora.LoraConfig(2, 4.0, ("query", "down"))
    export_peft(lora.init(jax.random.key(0), folder_model_config(shared / "model"), settings), settings, shared / "adapters")


def _write_data(shared: pathlib.Path) -> None:
    from parsers import write_problems

    (shared / "data").mkdir()
    write_problems(shared / "data")
    (shared / "data/jsonl.jsonl.gz").write_bytes(gzip.compress((shared / "data/jsonl.jsonl").read_bytes()))
    (shared / "data/test.jsonl").write_text('{"question": "5 + 2?", "answer": "7"}\n')
    (shared / "data/jsonl.csv").write_text('id,question,answer,solution\n1,1 + 1?,2,It is 2.\n2,"2, 2",4,It is 4.\n')


def _write_comparison(shared: pathlib.Path) -> None:
    for arm in ("supervised", "grpo", "igpo"):
        shutil.copytree(
            shared / "run", shared / "comparison/seed-0" / arm, ignore=shutil.ignore_patterns("checkpoints", "tensorboard")
        )
    _call(shared, "compare", TINY, "--arms=grpo,igpo", "--seeds=0", "--output=comparison", *SHORT)


MAKERS = {
    "run": _write_run,
    "run2": lambda shared: shutil.copytree(shared / "run", shared / "run2"),
    "part": _write_part,
    "model": _write_model,
    "converted": lambda shared: _call(shared, "convert", "--source=model", "--target=converted"),
    "adapters": _write_adapters,
    "prompts": lambda shared: (shared / "prompts").write_text("Hello\nWhat is the answer?\n"),
    "data": _write_data,
    "evaluation": lambda shared: _call(shared, "evaluate", "--workdir=run", "--output=evaluation"),
    "other": lambda shared: shutil.copytree(shared / "evaluation", shared / "other"),
    "comparison": _write_comparison,
}
