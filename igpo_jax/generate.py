"""python -m igpo_jax.generate --model=DIR --prompt=TEXT [--chat] [--show]

Completes prompts, or fills the blanks of templates, with a Hugging Face folder of LLaDA or iLLaDA, a folder that
igpo_jax.convert wrote, or a run's folder. All options: --help.
"""

import json
import pathlib
import sys
import time
from typing import Any

import jax
from absl import app, flags, logging

from igpo_jax.api import Completion, DiffusionLM, load
from igpo_jax.diffusion.unmasking import CACHES, COMMITS, REMASKINGS
from igpo_jax.runtime import distributed
from igpo_jax.runtime.files import parse_json

MODEL = flags.DEFINE_string("model", None, "The folder.", required=True)
ADAPTERS = flags.DEFINE_string("adapters", None, "A folder of adapters in PEFT's format.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts: a line each, or JSON lines with the key prompt.")
CHAT = flags.DEFINE_bool("chat", False, "Prompts are a user's messages in the model's chat template.")
HINT = flags.DEFINE_string("hint", "", "What every completion begins with; it stays as it is.")
TEMPLATE = flags.DEFINE_multi_string(
    "template", [], 'Text with blanks, "The answer is [MASK:4] because"; the rest stays.'
)
# None: as the run's evaluations decode; other models write 128 tokens in blocks of 32, greedily, one in every step.
LENGTH = flags.DEFINE_integer("completion_length", None, "Tokens of a completion; a run's own, or 128.", lower_bound=1)
BLOCK = flags.DEFINE_integer(
    "block_length", None, "Tokens of a block; blocks are filled from left to right. A run's own, or 32.", lower_bound=1
)
STEPS = flags.DEFINE_integer("steps", None, "Denoising steps in all; a run's own, or one for each token.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the likeliest token.", lower_bound=0.0)
CFG_SCALE = flags.DEFINE_float("cfg_scale", None, "Classifier-free guidance; 0 is none.", lower_bound=0.0)
REMASKING = flags.DEFINE_enum("remasking", None, REMASKINGS, "Which tokens are written first.")
COMMIT = flags.DEFINE_enum("commit", None, COMMITS, "How many tokens a step writes, at least what is due.")
CACHE = flags.DEFINE_enum("cache", None, CACHES, "What a step takes from the block's first evaluation.")
NEVER_EOS = flags.DEFINE_bool("logits_eos_inf", None, "EOS is never drawn; the default for templates.")
EOS_LAST = flags.DEFINE_bool("confidence_eos_eot_inf", None, "EOS and end of turn are written last.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise at a temperature above 0.", lower_bound=0)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "By default bfloat16 on accelerators, float32 on CPUs."
)
STAGE = flags.DEFINE_enum("stage", None, ["sft", "rl"], "Of a run's folder: whose newest checkpoint.")
OUTPUT = flags.DEFINE_string("output", None, "Append the completions to this file, as JSON lines.")
SHOW = flags.DEFINE_bool("show", False, "Show how the text was denoised, step by step.")

SECONDS_PER_FRAME = 0.08


def main(_):
    distributed.initialize()
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        prompts = PROMPT.value + (read_prompts(PROMPTS.value) if PROMPTS.value else [])
        if not prompts and not TEMPLATE.value:
            raise ValueError("give --prompt, --prompts or --template")
        if TEMPLATE.value and HINT.value:
            raise ValueError("--hint and --template are both given; a template may begin with the hint")
        model = load(MODEL.value, adapters=ADAPTERS.value, dtype=DTYPE.value, stage=STAGE.value)
        completions = complete(model, prompts)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if jax.process_index() > 0:
        return
    for number, completion in enumerate(completions):
        prompt = prompts[number % len(prompts)] if prompts else ""
        if SHOW.value:
            show(model, completion)
        print(completion.text if len(completions) == 1 else f"--- {prompt!r}\n{completion.text}", flush=True)
        if OUTPUT.value:
            row = {"prompt": prompt, "text": completion.text, "tokens": completion.tokens.tolist()}
            with open(OUTPUT.value, "a", encoding="utf-8") as opened:
                opened.write(json.dumps(row, ensure_ascii=False) + "\n")


def complete(model: DiffusionLM, prompts: list[str]) -> list[Completion]:
    flags_of: tuple[flags.FlagHolder, ...] = (STEPS, TEMPERATURE, CFG_SCALE, REMASKING, COMMIT, CACHE, NEVER_EOS, EOS_LAST)
    decoding: dict[str, Any] = {"chat": CHAT.value, "seed": SEED.value}
    decoding |= {flag.name: flag.value for flag in flags_of if flag.value is not None}
    if not TEMPLATE.value:
        lengths = {"completion_length": LENGTH.value, "block_length": BLOCK.value}
        return model.generate(prompts, hint=HINT.value, **lengths, **decoding)
    # Every template with every prompt.
    pairs = [(template, prompt) for template in TEMPLATE.value for prompt in prompts or [""]]
    return model.infill([template for template, _ in pairs], prompts=[prompt for _, prompt in pairs], **decoding)


def read_prompts(path: str) -> list[str]:
    """The lines of a text file, or what JSON lines have as `prompt`.

    Raises:
        ValueError: no such file, or a line without a prompt; the message names the line.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {path!r}")
    prompts = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):  # of bytes: JSON may hold other ends of lines
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        if file.suffix == ".jsonl":
            row = parse_json(line, place)
            line = row.get("prompt") if isinstance(row, dict) else None
            if not isinstance(line, str):
                raise ValueError(f"{place}: no JSON object with a text as prompt")
        else:
            try:
                line = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8 ({error})") from None
        prompts.append(line)
    if not prompts:
        raise ValueError(f"{path} has no prompts")
    return prompts


def show(model: DiffusionLM, completion: Completion) -> None:
    """Replays the steps: blanks are dim, what a step has just written stands out, what was given is green."""
    dim, new, given, plain = "\x1b[2m", "\x1b[7m", "\x1b[32m", "\x1b[0m"
    if not sys.stdout.isatty():
        dim = new = given = plain = ""
    pieces = [piece_of(model, token) for token in completion.tokens]
    for step in sorted(set(completion.unmask_step.tolist()) | {-1}):
        cells = []
        for piece, written in zip(pieces, completion.unmask_step.tolist(), strict=True):
            if written > step:
                cells.append(f"{dim}_{plain}")
            else:
                style = given if written < 0 else new if written == step else ""
                cells.append(f"{style}{piece}{plain if style else ''}")
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
            time.sleep(SECONDS_PER_FRAME)
        print(f"step {step + 1}: " + "".join(cells), flush=True)


def piece_of(model: DiffusionLM, token: int) -> str:
    return f"{token} " if model.tokenizer is None else model.tokenizer.piece(token).replace("\n", "⏎")


if __name__ == "__main__":
    app.run(main)
