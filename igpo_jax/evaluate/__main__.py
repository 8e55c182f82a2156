"""python -m igpo_jax.evaluate --config=evaluate_math.py:paper --config.model=FOLDER --output=DIR [--config.key=value ...]
python -m igpo_jax.evaluate --workdir=RUN [--stage=sft|rl] [--step=N] [--output=DIR]
python -m igpo_jax.evaluate --sampler-error --workdir=RUN [--sampler=cache=dual,commit=threshold]
python -m igpo_jax.evaluate diff DIR DIR [--json]
python -m igpo_jax.evaluate --regrade=RUN_OR_FILE [--rule=box|number|any] [--output=DIR]

Evaluates a model on benchmarks, or a training run on its own test problems, and records all settings that affect the results.
Run the same command again to resume an interrupted evaluation. `diff` compares two evaluations problem by problem.
--sampler-error compares a cached or parallel sampler with the exact sampler. The exact sampler uses no cache and unmasks a
scheduled number of tokens per step. The comparison includes the accuracy, the number of network evaluations, and the logits at
each step. --regrade grades stored generations with several graders side by side, without a model or device. RUN_OR_FILE is the
folder of an evaluation or an evaluated run, a samples file of lm-evaluation-harness, or a JSON Lines file with the keys gold
and text."""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install("interrupted; run the same command to resume")

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

import igpo_jax
from igpo_jax.api import DiffusionLM
from igpo_jax.cli import (
    define_allow_nonfinite,
    define_config,
    define_json,
    define_trust,
    escape_controls,
    parse_arguments,
    parse_flags,
    run_command,
)
from igpo_jax.config import MeshConfig
from igpo_jax.diffusion.unmasking import exact_sampler
from igpo_jax.evaluate.benchmark import compare, run_benchmark
from igpo_jax.evaluate.protocol import (
    base_digest,
    benchmark_protocol,
    decode_config,
    require_same_code,
    run_evaluation,
    weights_digest,
)
from igpo_jax.evaluate.published import published_beside
from igpo_jax.evaluate.regrade import regrade
from igpo_jax.evaluate.samplers import compare_samplers
from igpo_jax.evaluate.summaries import card_lines, diff_lines
from igpo_jax.run.checkpoint_integrity import network_hash
from igpo_jax.run.results import environment
from igpo_jax.runtime import distributed
from igpo_jax.runtime.bucket_folders import local_results, opened_by_all, opened_output, share_files
from igpo_jax.runtime.buckets import is_address, require_model, with_addresses
from igpo_jax.runtime.checks import MOST_ROWS, MOST_TOKENS, present, require, require_seed
from igpo_jax.runtime.distributed import check_same, raise_on_all_hosts
from igpo_jax.runtime.files import atomic_write, is_inside, place_name, read_json, require_same_identity
from igpo_jax.runtime.host import explain_shortage
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks.benchmark import load_benchmark
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_terms import reward_terms

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder, to evaluate on its own test problems.")
STEP = flags.DEFINE_integer(
    "step", None, "With --workdir, the number of a checkpoint of --stage, by default rl; by default the newest.", lower_bound=0
)
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "The stage whose newest checkpoint is evaluated; by default the last.")
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write; with --workdir by default RUN/evaluations/STAGE-STEP, with --regrade by default none."
)
SAMPLER_ERROR = flags.DEFINE_boolean(
    "sampler-error", False, "Compare the sampler (with --workdir that of the rollouts) with the exact one."
)
SAMPLER = flags.DEFINE_list("sampler", [], "With --sampler-error: changes to the sampler, key=value,...")
TRUST = define_trust()
BENCHMARKS = flags.DEFINE_list(
    "benchmarks",
    [],
    "Only these; by default those whose files are given, or all that generate their problems if no file is given.",
)
ALLOW_NONFINITE = define_allow_nonfinite()
JSON = define_json()
REGRADE = flags.DEFINE_string("regrade", None, "An evaluation's folder or a JSON Lines file, to grade its texts again.")
RULE = flags.DEFINE_enum(
    "rule", None, ["box", "number", "any"], "With --regrade: igpo_jax's rule; by default that of the protocol, or any."
)
MODEL_FLAGS: tuple[flags.FlagHolder, ...] = (CONFIG, WORKDIR, STAGE, STEP, SAMPLER_ERROR, SAMPLER, TRUST, ALLOW_NONFINITE)


def main(_):
    if REGRADE.value is None and RULE.value is None:
        evaluate_model()
    else:
        print_regraded()


@distributed.ending_at_once()
def evaluate_model() -> None:
    """Evaluates the model that the flags name, and prints the results on process 0."""
    # With --json, only the results go to stdout. The functions of a task may print.
    with contextlib.redirect_stdout(sys.stderr if JSON.value else sys.stdout):
        lines = lines_of_evaluation()
    if jax.process_index() == 0:
        print(escape_controls(with_addresses("\n".join(lines))))


def lines_of_evaluation() -> list[str]:
    """Evaluates the model that the flags name, and returns lines with the results, or [] if this is not process 0."""
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        with raise_on_all_hosts():
            if bool(WORKDIR.value) == (CONFIG.value is not None):
                raise ValueError("give either --workdir=RUN, or --config=FILE with --config.model=FOLDER")
            require(
                STEP.value is None or WORKDIR.value, "--step needs --workdir; with --config, give --config.stage=STAGE-STEP"
            )
            stage = STAGE.value if STEP.value is None else f"{STAGE.value or 'rl'}-{STEP.value}"
            section = "sampler" if SAMPLER_ERROR.value else "evaluation"
            own = run_evaluation(WORKDIR.value, stage, section, TRUST.value) if WORKDIR.value else None
            config = CONFIG.value if own is None else own
            problems, protocol = prepare(_with_sampler(config))
        check_same({f"benchmark {name}": part["data"] for name, part in protocol.items()})
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    try:
        model = open_model(config)
        with opened_by_all(output_folder(model)) as (folder, upload):
            check_identity(folder, model, protocol, upload)
            card = evaluate(config, model, problems, protocol, folder)
    except Exception as error:
        shortage = explain_shortage(error, "a lower --config.batch_size; the same command then resumes")
        if jax.process_count() > 1 or not (shortage or isinstance(error, ValueError | OSError)):
            raise  # ends this process at once, because other processes may not have noticed the error
        sys.exit(f"error: {shortage or error}")
    if jax.process_index() != 0:  # whose card has no numbers
        return []
    return [json.dumps(card, indent=2)] if JSON.value else [*card_lines(card), f"all numbers: {folder / 'card.json'}"]


def print_regraded() -> None:
    """Grades the stored generations that the flag --regrade names, and prints the results. This function must not initialize
    JAX, because another process may hold the devices."""
    interrupts.install("interrupted; nothing was written")
    try:
        if not REGRADE.value:
            raise ValueError("--rule goes with --regrade=RUN_OR_FILE")
        refuse((*MODEL_FLAGS, JSON), "--regrade, which reads stored texts")
        with opened_output(OUTPUT.value) if OUTPUT.value else contextlib.nullcontext((None, None)) as (output, _):
            text = regrade(local_results(REGRADE.value), RULE.value, BENCHMARKS.value, output)
        print(escape_controls(with_addresses(text)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def refuse(given: tuple[flags.FlagHolder, ...], by: str) -> None:
    """Raises ValueError if one of the flags `given` was set. `by` names the option or command that these flags cannot be
    combined with, for the error message."""
    for flag in given:
        require(flag.value is None or not (flag.present or flag.value), f"--{flag.name} does not go with {by}")


def _with_sampler(config: ConfigDict) -> ConfigDict:
    """Applies the changes given by the flag --sampler to the configuration, and returns the configuration. Raises ValueError if
    --sampler is given without --sampler-error, if a key is unknown, if a value is invalid, or if --sampler-error would compare
    the exact sampler with itself."""
    if not SAMPLER_ERROR.value:
        if SAMPLER.value:
            raise ValueError("--sampler goes with --sampler-error")
        return config
    for entry in SAMPLER.value:
        key, _, value = entry.partition("=")
        if key not in config.decode:
            raise ValueError(f"--sampler={entry}: unknown key; there are: {', '.join(config.decode)}")
        kind = type(config.decode[key])
        try:
            config.decode[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"--sampler={entry}: {value!r} is not a valid {kind.__name__}") from None
    if any(decode == exact_sampler(decode) for decode in (decode_config(config, name) for name in config.benchmarks)):
        raise ValueError(
            "the sampler is exact, so there is nothing to compare; give cache or commit (config.decode, --sampler)"
        )
    return config


def prepare(config: ConfigDict) -> tuple[dict[str, list[Problem]], dict[str, dict[str, Any]]]:
    """Returns ({benchmark: problems}, {benchmark: protocol}). A protocol records the settings that affect the results of a
    benchmark. Also performs all checks that need no device. If an option is missing, raises a ValueError that names the
    option."""
    longest, size = max(config.prompt_buckets), config.batch_size
    require(longest <= MOST_TOKENS, f"prompt_buckets={longest} must be at most {MOST_TOKENS}")
    require(size <= MOST_ROWS, f"batch_size={size} must be at most {MOST_ROWS}")
    require_seed(config.seed)
    reward_terms(config.reward.function)  # raises ValueError if it is invalid
    if not config.model:
        raise ValueError("--config.model=FOLDER is missing: the run or model to evaluate")
    with_file = [name for name, part in config.benchmarks.items() if part.task.get("test", "")]
    generated = [name for name, part in config.benchmarks.items() if part.task.name != "math" and name not in with_file]
    names = BENCHMARKS.value or with_file or generated
    if generated and names == with_file:
        left_out = (
            "not evaluated, because no files are given for them: %s; name them in --benchmarks to generate their problems"
        )
        logging.warning(left_out, ", ".join(generated))
    if not names or set(names) - set(config.benchmarks):
        known = f"--benchmarks={','.join(BENCHMARKS.value)}: there are {', '.join(config.benchmarks)}"
        raise ValueError(f"{known}; give their files as --config.benchmarks.NAME.task.test=FORMAT:PATH")
    sections = {name: config.benchmarks[name] for name in names}
    problems = {name: load_benchmark(name, part)[: part.problems or None] for name, part in sections.items()}
    return problems, {name: benchmark_protocol(config, name, loaded) for name, loaded in problems.items()}


def open_model(config: ConfigDict) -> DiffusionLM:
    """Loads and returns the model to evaluate. Raises ValueError if the model cannot be loaded, or if it lacks a tokenizer or a
    chat template that the evaluation needs."""
    options: dict[str, Any] = {name: config[name] or None for name in ("stage", "adapters", "dtype")}
    # The tasks in `config` are those of --config, which is the user's own, or they were checked when config.json was read.
    trust = [*TRUST.value, *(part.task.name for part in config.benchmarks.values())]
    options |= {"needs": "chat" if config.chat else "text", "trust": trust, "allow_nonfinite": ALLOW_NONFINITE.value}
    require_model(config.model, "--config.model")
    mesh = None if config.mesh.to_dict() == dataclasses.asdict(MeshConfig()) else make_mesh(**config.mesh)
    return igpo_jax.load(config.model, **options, mesh=mesh)


def output_folder(model: DiffusionLM) -> str:
    """Returns the folder for the results of an evaluation: the value of --output or, by default, a folder inside the evaluated
    run. Raises ValueError if --output is missing and the model is not a run. Also raises ValueError if a symbolic link
    redirects the default folder to a place outside of the run, because the run may come from an untrusted source."""
    if OUTPUT.value:
        return OUTPUT.value
    if "step" in model.origin:
        name = f"{model.origin['stage']}-{model.origin['step']}" + ("-sampler" if SAMPLER_ERROR.value else "")
        run = str(model.origin["path"]).rstrip("/")
        folder = f"{run}/evaluations/{name}"
        linked = f"{folder} leads to {os.path.realpath(folder)}, outside of the run; give --output=DIR"
        require(is_address(run) or is_inside(folder, run), linked)
        return folder
    raise ValueError("--output=DIR is missing: the folder to write")


def check_identity(folder: pathlib.Path, model: DiffusionLM, protocol: dict, upload: Callable[[], None]) -> None:
    """Records the protocol and hashes of the weights and the tokenizer in the file protocol.json of an evaluation's folder, and
    for a run also a hash of the network's settings. The hash of the weights of any other model covers its settings. Raises
    ValueError on all processes if the folder belongs to an evaluation with another protocol or another model, or if a process
    cannot see the files that process 0 writes. If the folder is in a bucket, `upload` uploads changed files (see
    `opened_by_all`)."""
    with raise_on_all_hosts():
        if jax.process_index() == 0:
            tokenizer = present(model.tokenizer)
            # Of a Hugging Face tokenizer, the hash does not cover tokenizer_config.json, which names these special tokens.
            used = {"hash": tokenizer.digest, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
            identity = {"weights": weights_digest(model.origin), "tokenizer": used, "protocol": protocol}
            identity |= {"compared_with": "the exact sampler"} if SAMPLER_ERROR.value else {}
            identity |= {"network": network_hash(model.config, tokenizer)} if "step" in model.origin else {}
            identity |= {"base": base} if (base := base_digest(model.origin)) else {}
            folders = ("exact/", "fast/") if SAMPLER_ERROR.value else ("",)
            results = [folder / "card.json", *(folder / f"{place}{name}.jsonl" for name in protocol for place in folders)]
            require_same_identity(folder / "protocol.json", json.loads(json.dumps(identity)), "evaluation", results)
    share_files(folder, ("protocol.json",), upload)


def evaluate(config: ConfigDict, model: DiffusionLM, problems: dict, protocol: dict, folder: pathlib.Path) -> dict[str, Any]:
    """Runs all benchmarks, writes their results to card.json, and returns the content of card.json."""
    begin, device = time.monotonic(), environment()
    measure = compare_samplers if SAMPLER_ERROR.value else run_benchmark
    numbers = {}
    for name, loaded in problems.items():
        with raise_on_all_hosts():
            require_same_code(config, name, protocol[name])
        numbers[name] = measure(model, config, name, loaded, folder)
    weights = read_json(folder / "protocol.json")["weights"]
    # A card may be published: it names folders without the path to them.
    named = {key: place_name(str(model.origin[key])) for key in ("path", "adapters") if key in model.origin}
    about = {"origin": model.origin | named, "weights": weights}
    card: dict[str, Any] = {"benchmarks": numbers, "model": about, "protocol": protocol}
    card |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begin, 1)}
    if jax.process_index() == 0 and not SAMPLER_ERROR.value and (published := published_beside(numbers)):
        card["published"] = published
    card |= device
    if jax.process_index() == 0:
        atomic_write(folder / "card.json", json.dumps(card, indent=2, ensure_ascii=False))
    return card


def diff(arguments: list[str]) -> None:
    """Runs the command `evaluate diff DIR DIR [--json]`. An error message may quote a file from an untrusted source, so
    `run_command` escapes the control characters in the message."""
    if len(arguments) != 2:
        sys.exit("error: python -m igpo_jax.evaluate diff DIR DIR")
    try:
        refuse((*MODEL_FLAGS, OUTPUT, BENCHMARKS, REGRADE, RULE), "diff, which compares the files of two evaluations")
        found = compare(*map(local_results, arguments))
        print(escape_controls(json.dumps(found, indent=2) if JSON.value else "\n".join(diff_lines(found))))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["diff"]:
        run_command(lambda arguments: diff(arguments[2:]), functools.partial(parse_arguments, words=True))
    else:
        run_command(main, parse_flags)
