"""python -m igpo_jax.generate --model=DIR --prompt=TEXT [--chat] [--show]

Completes prompts, or fills the blanks of templates. The model is a Hugging Face folder of a supported model (docs/models.md), a
folder written by igpo_jax.convert, or the folder of a training run. --help lists all options.
"""

from igpo_jax.runtime import interrupts

if __name__ == "__main__":  # before the slow imports
    interrupts.install()

import itertools
import os
import pathlib
import sys
import time
from typing import Any

import jax
from absl import flags, logging

from igpo_jax.api import Completion, DiffusionLM, load
from igpo_jax.cli import define_allow_nonfinite, define_trust, escape_controls, parse_flags, run_command
from igpo_jax.diffusion.unmasking import CACHES, COMMITS, REMASKINGS
from igpo_jax.runtime import distributed
from igpo_jax.runtime.buckets import local_file, require_model
from igpo_jax.runtime.checks import MOST_SEED, require
from igpo_jax.runtime.files import append_row, open_without_links, parse_json, read_bytes
from igpo_jax.runtime.host import explain_shortage

MODEL = flags.DEFINE_string("model", None, "The model's folder, also gs://BUCKET/MODEL, or its id on the hub.", required=True)
ADAPTERS = flags.DEFINE_string("adapters", None, "A folder of adapters in PEFT's format.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts: one a line, or JSON Lines with the key prompt.")
CHAT = flags.DEFINE_bool("chat", False, "Put prompts as a user's messages into the model's chat template.")
HINT = flags.DEFINE_string("hint", "", "Fixed text with which each completion begins.")
TEMPLATE = flags.DEFINE_multi_string("template", [], 'Text with blanks, such as "The answer is [MASK:4] because".')
# None selects the run's evaluation settings. Models without a run decode 128 tokens in blocks of 32, greedily, one per step.
LENGTH = flags.DEFINE_integer("completion_length", None, "Tokens of a completion; by default the run's, or 128.", lower_bound=1)
BLOCK = flags.DEFINE_integer(
    "block_length", None, "Tokens of a block; blocks are filled from left to right. By default the run's, or 32.", lower_bound=1
)
STEPS = flags.DEFINE_integer("steps", None, "Total denoising steps; by default the run's, or one per token.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the most likely token.", lower_bound=0.0)
CFG_SCALE = flags.DEFINE_float("cfg_scale", None, "Classifier-free guidance scale; 0 turns it off.", lower_bound=0.0)
REMASKING = flags.DEFINE_enum("remasking", None, REMASKINGS, "Order in which tokens are unmasked.")
COMMIT = flags.DEFINE_enum("commit", None, COMMITS, "How many tokens a step unmasks, at least those of the schedule.")
CACHE = flags.DEFINE_enum("cache", None, CACHES, "What later steps reuse of the block's first evaluation.")
NEVER_EOS = flags.DEFINE_bool("logits_eos_inf", None, "Never sample EOS; the default for templates.")
EOS_LAST = flags.DEFINE_bool("confidence_eos_eot_inf", None, "Unmask EOS and end of turn last.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise at temperatures above 0.", lower_bound=0, upper_bound=MOST_SEED)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "By default float32 on CPUs and GPUs without bfloat16 (T4), otherwise bfloat16."
)
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "For a run's folder: the stage whose newest checkpoint is loaded.")
TRUST = define_trust()
ALLOW_NONFINITE = define_allow_nonfinite()
OUTPUT = flags.DEFINE_string("output", None, "Append the completions to this file, as JSON Lines.")
SHOW = flags.DEFINE_bool("show", False, "Show the denoising step by step.")
DECODING: list[flags.FlagHolder] = [STEPS, TEMPERATURE, CFG_SCALE, REMASKING, COMMIT, CACHE, NEVER_EOS, EOS_LAST]

SECONDS_PER_FRAME = 0.08


def main(_):
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        prompts = PROMPT.value + (read_prompts(PROMPTS.value) if PROMPTS.value else [])
        require(prompts or TEMPLATE.value, "give --prompt, --prompts or --template")
        both = "--hint and --template are both given; a template may begin with the hint"
        require(not (TEMPLATE.value and HINT.value), both)
        leads_away = OUTPUT.value and os.path.islink(OUTPUT.value)
        require(not leads_away, f"--output={OUTPUT.value} is a symbolic link; give the file itself")
        needs = "chat" if CHAT.value else "text"
        options: dict[str, Any] = {"adapters": ADAPTERS.value, "dtype": DTYPE.value, "stage": STAGE.value}
        options |= {"trust": TRUST.value, "allow_nonfinite": ALLOW_NONFINITE.value}
        require_model(MODEL.value, "--model")
        with distributed.raise_on_all_hosts():
            if OUTPUT.value and jax.process_index() == 0:
                open_without_links(pathlib.Path(OUTPUT.value), "ab").close()  # raises before the long work
        model = load(MODEL.value, **options, needs=needs)
        completions = complete(model, prompts)
        if jax.process_index() == 0:
            print_completions(model, prompts, completions)
    except Exception as error:
        shortage = explain_shortage(error, "shorter prompts or completions")
        if not (shortage or isinstance(error, ValueError | OSError)):
            raise
        sys.exit(f"error: {shortage or error}")


def print_completions(model: DiffusionLM, prompts: list[str], completions: list[Completion]) -> None:
    """Prints the completions, with control characters escaped. If the flag --output names a file, first appends the completions
    to this file. If the file cannot be written, raises the error after all completions are printed."""
    of_each = [prompts[number % len(prompts)] if prompts else "" for number in range(len(completions))]
    try:
        if OUTPUT.value:
            for prompt, completion in zip(of_each, completions, strict=True):
                row = {"prompt": prompt, "text": completion.text, "tokens": completion.tokens.tolist()}
                append_row(pathlib.Path(OUTPUT.value), row)
    finally:
        for prompt, completion in zip(of_each, completions, strict=True):
            if SHOW.value:
                show(model, completion)
            text = str(completion.text) if len(completions) == 1 else f"--- {prompt!r}\n{completion.text}"
            print(escape_controls(text), flush=True)


def complete(model: DiffusionLM, prompts: list[str]) -> list[Completion]:
    """Returns completions of the prompts, generated with the options of the command line. If templates are given, instead fills
    in every template once for each prompt. The prompt precedes the template."""
    options: dict[str, Any] = {"chat": CHAT.value, "seed": SEED.value}
    options |= {flag.name: flag.value for flag in DECODING if flag.value is not None}
    if not TEMPLATE.value:
        return model.generate(prompts, hint=HINT.value, completion_length=LENGTH.value, block_length=BLOCK.value, **options)
    templates, before = zip(*itertools.product(TEMPLATE.value, prompts or [""]), strict=True)
    return model.infill(templates, prompts=before, **options)


def read_prompts(path: str) -> list[str]:
    """Returns the prompts in a file: the lines of a text file, or the values of the key `prompt` in a JSON Lines file. Raises
    ValueError if the file is missing or has no prompts. If a line is invalid, raises a ValueError that names the line."""
    file = local_file(path)
    require(file.is_file(), f"there is no file {path!r}")
    prompts: list[str] = []
    for number, line in enumerate(read_bytes(file).splitlines(), 1):  # not str: JSON strings may hold other line ends
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        if file.suffix == ".jsonl":
            row = parse_json(line, place)
            works = isinstance(row, dict) and isinstance(row.get("prompt"), str)
            require(works, f"{place}: no JSON object with a text as prompt")
            prompt = row["prompt"]
        else:
            try:
                prompt = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8 ({error})") from None
        prompts.append(prompt)
    require(prompts, f"{path} has no prompts")
    return prompts


def show(model: DiffusionLM, completion: Completion) -> None:
    """Prints the tokens of a completion as they were after each denoising step. On a terminal, blanks are dim, new tokens are
    inverted, and given tokens are green."""
    terminal, tokenizer, written = sys.stdout.isatty(), model.tokenizer, completion.unmask_step.tolist()
    dim, new, given = (f"\x1b[{code}m{{}}\x1b[0m" if terminal else "{}" for code in (2, 7, 32))
    pieces = [
        f"{token} " if tokenizer is None else escape_controls(tokenizer.piece(token).replace("\n", "⏎"))
        for token in completion.tokens
    ]
    for step in sorted({-1, *written}):
        style = {step: new, -1: given}
        cells = [
            style.get(at, "{}").format(token) if at <= step else dim.format("_")
            for token, at in zip(pieces, written, strict=True)
        ]
        if terminal:
            print("\x1b[2J\x1b[H", end="")
            time.sleep(SECONDS_PER_FRAME)
        print(f"step {step + 1}: {''.join(cells)}", flush=True)


if __name__ == "__main__":
    run_command(main, parse_flags)
