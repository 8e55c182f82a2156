"""Counts the tokens of GSM8K's and MATH's prompts, and finds prompt buckets for configs/math.py.

    pip install tiktoken && pip download --no-deps dashscope==1.20.0 && unzip dashscope-*.whl dashscope/resources/qwen.tiktoken
    python benchmarks/prompt_lengths.py --vocabulary=dashscope/resources/qwen.tiktoken --gsm8k=FILE --math=FILE

The prompts are those of configs/math.py in LLaDA's chat template. The vocabulary, Qwen's, has 151,643 tokens, splits numbers into
digits like LLaDA's, and comes with a package on PyPI. --gsm8k and --math name training sets in JSON Lines with the key "problem".
Writes igpo_jax/data/prompt_lengths.json, the number of prompts of each length. Without flags, reads this file and prints the
table."""

import argparse
import base64
import collections
import json
import pathlib
import runpy

import numpy as np

from igpo_jax.data.buckets import DEFAULT_LENGTHS, best_buckets, bucket_of, padding_share, read_lengths, rollout_batches
from igpo_jax.model.attention import LANES
from igpo_jax.plan.text import table
from igpo_jax.tasks.math import BOXED_PROMPT

MARKERS = 5  # special tokens of the chat template; its two roles and two blank lines are encoded as text
# The pattern that Qwen's tokenizer splits text with
PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
COLUMNS = ("buckets", "padding", "mean positions of a row")
CONFIG = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "math.py"))["get_config"]()
MOST = 5  # buckets


def count(vocabulary: pathlib.Path, files: list[pathlib.Path]) -> dict[str, int]:
    """Returns the number of prompts of each length in tokens."""
    import tiktoken  # not needed to print the table

    lines = vocabulary.read_text(encoding="utf-8").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    template = MARKERS + sum(len(encoding.encode(text)) for text in ("user", "assistant", "\n\n", "\n\n"))
    questions = [json.loads(line)["problem"] for file in files for line in file.read_text("utf-8").splitlines()]
    prompts = encoding.encode_ordinary_batch([BOXED_PROMPT.replace("{question}", question) for question in questions])
    found = collections.Counter(len(prompt) + template for prompt in prompts)
    return {str(length): found[length] for length in sorted(found)}


def rows(lengths: np.ndarray) -> list[tuple[str, str, str]]:
    """Returns the rows of a table of the best buckets for prompts of these lengths."""
    largest, completion_length = CONFIG.data.prompt_buckets[-1], CONFIG.sampler.completion_length
    batches = rollout_batches(lengths[lengths <= largest], CONFIG.rl.prompts, CONFIG.rl.rollout_chunks)
    choices = [best_buckets(batches, number, largest, multiple) for multiple in (LANES, 16) for number in range(1, MOST + 1)]
    found = []
    for buckets in dict.fromkeys(choices):
        positions = np.mean([bucket_of(batch.max(), buckets) for batch in batches]) + completion_length
        share = f"{padding_share(batches, buckets, completion_length):.1%}"
        found.append((", ".join(map(str, buckets)), share, f"{positions:.0f}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("vocabulary", "gsm8k", "math"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    options = parser.parse_args()
    if options.vocabulary:
        counted = count(options.vocabulary, [options.gsm8k, options.math])
        DEFAULT_LENGTHS.write_text(json.dumps(counted) + "\n", encoding="utf-8")
    lengths = read_lengths(DEFAULT_LENGTHS)
    p50, p95 = np.percentile(lengths, (50, 95))
    largest = CONFIG.data.prompt_buckets[-1]
    fit = (lengths <= largest).mean()
    print(f"{len(lengths)} prompts, median {p50:.0f} tokens, p95 {p95:.0f}, max {lengths.max()}; {fit:.1%} fit {largest}")
    print("\n".join(table(COLUMNS, rows(lengths))))


if __name__ == "__main__":
    main()
