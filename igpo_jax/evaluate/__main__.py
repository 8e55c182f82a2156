"""python -m igpo_jax.evaluate --config=evaluate_math.py:paper --config.model=FOLDER --output=DIR [--config.key=value ...]
python -m igpo_jax.evaluate --workdir=RUN [--stage=sft|rl] [--output=DIR]
python -m igpo_jax.evaluate --sampler-error --workdir=RUN [--sampler=cache=dual,commit=threshold]
python -m igpo_jax.evaluate diff DIR DIR

Grades a model on benchmarks by a written protocol, or a run on its own test problems; the same command goes on with an
evaluation that was interrupted. diff compares two evaluations problem by problem. --sampler-error compares a cached or
parallel sampler with the exact one: logits step by step, work, and accuracy.
"""

import json
import pathlib
import sys
import time
from datetime import UTC, datetime

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import igpo_jax
from igpo_jax.api import DiffusionLM
from igpo_jax.cli import parse_flags
from igpo_jax.diffusion.unmasking import exact_sampler
from igpo_jax.evaluate.benchmark import compare, run_benchmark
from igpo_jax.evaluate.protocol import decode_of, load_problems, of_run, protocol_of, weights_digest
from igpo_jax.evaluate.samplers import compare_samplers
from igpo_jax.run.results import environment
from igpo_jax.runtime import distributed
from igpo_jax.runtime.distributed import check_same, check_shared, raise_on_all_hosts
from igpo_jax.runtime.files import atomic_write, require_same_identity
from igpo_jax.runtime.host import explain_shortage
from igpo_jax.runtime.mesh import make_mesh

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or a path; file.py:variant for a variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, to be graded on its own test problems.")
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "Whose newest checkpoint; by default the last stage's.")
OUTPUT = flags.DEFINE_string("output", None, "The evaluation's folder; RUN/evaluations/STAGE-STEP with --workdir.")
SAMPLER_ERROR = flags.DEFINE_boolean(
    "sampler-error", False, "Compare the sampler, of a run that of its rollouts, with the exact one."
)
SAMPLER = flags.DEFINE_list("sampler", [], "With --sampler-error: what that sampler does otherwise, key=value,...")
BENCHMARKS = flags.DEFINE_list("benchmarks", [], "Only these; by default all that have their file.")


@distributed.ending_at_once()
def main(_):
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        with raise_on_all_hosts():
            if bool(WORKDIR.value) == (CONFIG.value is not None):
                raise ValueError("give either --workdir=RUN, or --config=FILE with --config.model=FOLDER")
            section = "sampler" if SAMPLER_ERROR.value else "evaluation"
            config = of_run(WORKDIR.value, STAGE.value, section) if WORKDIR.value else CONFIG.value
            problems, protocol = prepare(_with_sampler(config))
        check_same({f"benchmark {name}": of["data"] for name, of in protocol.items()})
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        model = open_model(config)
        card = evaluate(config, model, problems, protocol, open_folder(model, protocol))
    except Exception as error:
        shortage = explain_shortage(error, "a lower --config.batch_size, with which the same command goes on")
        if jax.process_count() > 1 or not (shortage or isinstance(error, ValueError)):
            raise  # the others may not know of it
        sys.exit(f"error: {shortage or error}")
    if jax.process_index() == 0:
        print(card)


def _with_sampler(config: ConfigDict) -> ConfigDict:
    """With what --sampler says.

    Raises:
        ValueError: a key or value that cannot be, or nothing to compare.
    """
    if not SAMPLER_ERROR.value:
        if SAMPLER.value:
            raise ValueError("--sampler goes with --sampler-error")
        return config
    for entry in SAMPLER.value:
        key, _, value = entry.partition("=")
        if key not in config.decode:
            raise ValueError(f"--sampler={entry}: there is no such key; there are: {', '.join(config.decode)}")
        kind = type(config.decode[key])
        try:
            config.decode[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"--sampler={entry}: {value!r} is no {kind.__name__}") from None
    for name in config.benchmarks:
        if decode_of(config, name) == exact_sampler(decode_of(config, name)):
            raise ValueError(
                "the sampler is exact, so there is nothing to compare; give cache or commit (config.decode, --sampler)"
            )
    return config


def prepare(config: ConfigDict):
    """(problems by benchmark, protocol by benchmark), everything checked that can be without a device.

    Raises:
        ValueError: names what is missing.
    """
    if not config.model:
        raise ValueError("--config.model=FOLDER is missing: the run or model to grade")
    ready = [name for name, part in config.benchmarks.items() if part.task.get("test", "") or part.task.name != "math"]
    names = BENCHMARKS.value or ready  # mathematical problems need a file, the others can be drawn
    if not names or set(names) - set(config.benchmarks):
        raise ValueError(
            f"--benchmarks={','.join(BENCHMARKS.value)}: there are {', '.join(config.benchmarks)}; give their files as "
            "--config.benchmarks.NAME.task.test=FORMAT:PATH"
        )
    problems = {name: load_problems(config, name) for name in names}
    return problems, {name: protocol_of(config, name, of) for name, of in problems.items()}


def open_model(config: ConfigDict) -> DiffusionLM:
    """
    Raises:
        ValueError: it cannot be used.
    """
    options = {name: config[name] or None for name in ("stage", "adapters", "dtype")}
    model = igpo_jax.load(config.model, **options, mesh=make_mesh(**config.mesh))
    if model.tokenizer is None:
        raise ValueError(f"{config.model} has no tokenizer")
    return model


def open_folder(model: DiffusionLM, protocol: dict) -> pathlib.Path:
    """The evaluation's folder, made, or checked that it is this evaluation's.

    Raises:
        ValueError: it is another evaluation's, or the processes do not share it. It is raised on all processes.
    """
    folder = pathlib.Path(OUTPUT.value or _default_output(model))
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            identity = {"weights": weights_digest(model.origin), "protocol": protocol}
            identity |= {"compared_with": "the exact sampler"} if SAMPLER_ERROR.value else {}
            require_same_identity(folder / "protocol.json", json.loads(json.dumps(identity)), "evaluation")
    check_shared(folder)
    return folder


def evaluate(config: ConfigDict, model: DiffusionLM, problems: dict, protocol: dict, folder: pathlib.Path) -> str:
    """All benchmarks; returns the card as text."""
    begin, where = time.monotonic(), environment()
    measure = compare_samplers if SAMPLER_ERROR.value else run_benchmark
    numbers = {name: measure(model, config, name, of, folder) for name, of in problems.items()}
    card = {
        "benchmarks": numbers,
        "model": {"origin": model.origin, "weights": json.loads((folder / "protocol.json").read_text())["weights"]},
        "protocol": protocol,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
        **where,
    }
    text = json.dumps(card, indent=2, ensure_ascii=False)
    if jax.process_index() == 0:
        atomic_write(folder / "card.json", text)
    return text


def _default_output(model) -> pathlib.Path:
    if "step" not in model.origin:
        raise ValueError("--output=DIR is missing: where the evaluation goes")
    name = f"{model.origin['stage']}-{model.origin['step']}" + ("-sampler" if SAMPLER_ERROR.value else "")
    return pathlib.Path(model.origin["path"], "evaluations", name)


def diff(arguments: list[str]) -> None:
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        sys.exit("error: python -m igpo_jax.evaluate diff DIR DIR")
    try:
        print(json.dumps(compare(*map(pathlib.Path, arguments)), indent=2))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["diff"]:
        diff(sys.argv[2:])
    else:
        app.run(main, flags_parser=parse_flags)
