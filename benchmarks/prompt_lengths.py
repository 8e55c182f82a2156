"""Counts the tokens of GSM8K's and MATH's prompts, and finds prompt buckets for configs/math.py.

    pip install tiktoken && pip download --no-deps dashscope==1.20.0 && unzip dashscope-*.whl dashscope/resources/qwen.tiktoken
    python benchmarks/prompt_lengths.py --vocabulary=dashscope/resources/qwen.tiktoken --gsm8k=FILE --math=FILE \\
        --output=benchmarks/results/prompt_lengths.json

The prompts are those of configs/math.py in LLaDA's chat template. The vocabulary, Qwen's, has 151,643 tokens, splits numbers into
digits like LLaDA's, and comes with a package on PyPI. --gsm8k and --math name training sets in JSON Lines with the key "problem".
The output holds the number of prompts of each length, so the table can be made again without the data: --output alone."""

import argparse
import base64
import collections
import json
import pathlib

import numpy as np

from igpo_jax.data.buckets import best_buckets, padding_share, rollout_batches
from igpo_jax.model.attention import LANES
from igpo_jax.plan.__main__ import table
from igpo_jax.tasks.math import BOXED_PROMPT

MARKERS = 5  # special tokens of the chat template; its two roles and two blank lines are encoded as text
# The pattern that Qwen's tokenizer splits text with
PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
COLUMNS = ("buckets", "padding", "mean positions of a row")
PROMPTS, CHUNKS, LARGEST, COMPLETION = 64, 8, 640, 256  # of configs/math.py
MOST = 5  # buckets


def prompt_lengths(vocabulary: pathlib.Path, files: dict[str, pathlib.Path]) -> dict[str, dict[str, int]]:
    """Returns, for each file, the number of prompts of each length in tokens."""
    import tiktoken  # not needed to make the table again

    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, vocabulary.read_text().splitlines())}
    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    template = MARKERS + sum(len(encoding.encode(text)) for text in ("user", "assistant", "\n\n", "\n\n"))
    counts = {}
    for name, file in files.items():
        questions = [json.loads(line)["problem"] for line in file.read_text("utf-8").splitlines()]
        prompts = encoding.encode_ordinary_batch([BOXED_PROMPT.replace("{question}", question) for question in questions])
        found = collections.Counter(len(prompt) + template for prompt in prompts)
        counts[name] = {str(length): found[length] for length in sorted(found)}
    return counts


def fitting_lengths(counts: dict[str, dict[str, int]]) -> np.ndarray:
    """Returns the lengths of all prompts that fit the largest bucket."""
    lengths = [int(length) for by_length in counts.values() for length, number in by_length.items() for _ in range(number)]
    return np.array([length for length in lengths if length <= LARGEST])


def rows(counts: dict[str, dict[str, int]]) -> list[tuple[str, str, str]]:
    """Returns the rows of a table of the best buckets."""
    batches = rollout_batches(fitting_lengths(counts), PROMPTS, CHUNKS)
    choices = [best_buckets(batches, number, LARGEST, multiple) for multiple in (LANES, 16) for number in range(1, MOST + 1)]
    found = []
    for buckets in dict.fromkeys(choices):
        padded = [next(size for size in buckets if size >= batch.max()) for batch in batches]
        share = f"{padding_share(batches, buckets, COMPLETION):.1%}"
        found.append((", ".join(map(str, buckets)), share, f"{np.mean(padded) + COMPLETION:.0f}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("vocabulary", "gsm8k", "math"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if options.vocabulary:
        counts = prompt_lengths(options.vocabulary, {"gsm8k": options.gsm8k, "math": options.math})
        options.output.write_text(json.dumps(counts) + "\n")
    counts = json.loads(options.output.read_text())
    for name, by_length in counts.items():
        lengths = np.repeat([int(length) for length in by_length], list(by_length.values()))
        p50, p95 = np.percentile(lengths, (50, 95))
        fit = (lengths <= LARGEST).mean()
        print(
            f"{name}: {len(lengths)} prompts, median {p50:.0f} tokens, p95 {p95:.0f}, max {lengths.max()}; {fit:.1%} fit {LARGEST}"
        )
    print("\n".join(table(COLUMNS, rows(counts))))


if __name__ == "__main__":
    main()
