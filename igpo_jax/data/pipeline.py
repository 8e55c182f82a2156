"""Data pipeline: turns problems into token arrays, and token arrays into batches with the Grain library.

The batch of step i depends only on the data, the seed and i. Therefore, a run can be resumed from the step number alone, and
the batches do not depend on the number of hosts. Every epoch has its own random order."""

import bisect
import logging
import math
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import flax
import grain
import jax
import numpy as np

from igpo_jax.chat import encode_chat, encode_end_of_turn
from igpo_jax.data.buckets import bucket_of
from igpo_jax.runtime.checks import require
from igpo_jax.tasks.answer_spans import Span, merged
from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import Tokenizer

log = logging.getLogger(__name__)

Arrays = TypeVar("Arrays", bound=Any)  # a pytree of arrays with the fields tokens and prompt_mask


class PromptBatch(flax.struct.PyTreeNode):
    """A batch of prompts, with the reference solutions (traces) from which hints are taken."""

    problem_id: np.ndarray  # u32[n]
    tokens: np.ndarray  # i32[n, p], padded on the left
    prompt_mask: np.ndarray  # bool[n, p], False on padding
    trace: np.ndarray  # i32[n, l], padded with EOS
    trace_length: np.ndarray  # i32[n], number of leading trace tokens that hints may come from
    hintable: np.ndarray  # bool[n, l], False on tokens that overlap an answer span


class SFTBatch(flax.struct.PyTreeNode):
    tokens: np.ndarray  # i32[n, p], padded on the left
    prompt_mask: np.ndarray  # bool[n, p], False on padding
    completion: np.ndarray  # i32[n, l], padded with EOS


def prompt_arrays(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    chat: bool = False,  # renders questions as a user's message in the chat template
    prefix: str = "",  # beginning of every answer, appended to the prompt
    prompt_length: int,
    completion_length: int,
    exclude_answer: bool,  # hints end before a trace's last answer span and show no tokens of any span
    overflow: str,  # data.overflow (see `_fitting`), or "cut", which keeps the last tokens of a long prompt
) -> tuple[list[Problem], PromptBatch]:
    """Tokenizes problems. Returns a list of the problems whose prompts fit into `prompt_length` tokens, and a `PromptBatch`
    with one row for each of these problems."""
    encoded = []
    for problem in problems:
        ids, offsets = tokenizer.encode_with_offsets(problem.trace)
        question = encode_question(problem, tokenizer, chat) + (tokenizer.encode(prefix) if prefix else [])
        question = question[-prompt_length:] if overflow == "cut" else question
        # Longer traces are cut, because a hint cannot lie beyond the end of the completion.
        encoded.append((question, ids[:completion_length], offsets[:completion_length]))
    keep = _fitting(problems, [(len(q), 0) for q, _, _ in encoded], prompt_length, completion_length, overflow)
    tokens, prompt_mask = left_padded([encoded[i][0] for i in keep], prompt_length, tokenizer.pad_id)
    trace = np.full((len(keep), completion_length), tokenizer.eos_id, np.int32)
    hintable, trace_length = np.zeros(trace.shape, bool), np.zeros(len(keep), np.int32)
    for row, index in enumerate(keep):
        _, ids, offsets = encoded[index]
        spans = problems[index].answer_spans if exclude_answer else ()
        trace[row, : len(ids)] = ids
        hintable[row, : len(ids)], trace_length[row] = hintable_tokens(offsets, spans)
    kept = [problems[i] for i in keep]
    return kept, PromptBatch(_problem_numbers(kept), tokens, prompt_mask, trace, trace_length, hintable)


def hintable_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> tuple[list[bool], int]:
    """Finds the tokens of a trace that hints may show. Returns two values. The first is a list with one bool per token, True if
    the token overlaps no answer span. The second is the number of leading tokens that end before the last answer span begins.
    `offsets` are the character spans (begin, end) of the tokens, and `spans` are the character spans of the answers."""
    firsts, lasts = zip(*merged(spans), (math.inf, math.inf), strict=True)  # ascending; a long trace has thousands of spans
    hintable = [end <= firsts[bisect.bisect_right(lasts, begin)] for begin, end in offsets]
    last_answer = max((first for first, _ in spans), default=math.inf)
    return hintable, sum(end <= last_answer for _, end in offsets)


def _problem_numbers(problems: Sequence[Problem]) -> np.ndarray:
    """Returns a distinct number for each problem, uint32 [n]. The number is the CRC-32 checksum of the problem's id, or the
    next free number if another problem has the same checksum. Raises ValueError if two problems have the same id."""
    owner: dict[int, str] = {}
    for problem in problems:
        number = zlib.crc32(problem.id.encode())
        while number in owner:  # unique, because rewards look up their problem by number
            if owner[number] == problem.id:
                raise ValueError(f"two problems have the id {problem.id!r}; rename one")
            number = (number + 1) % 2**32
        owner[number] = problem.id
    return np.array(list(owner), np.uint32)


def sft_arrays(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    chat: bool = False,
    prompt_length: int,
    completion_length: int,
    overflow: str,
) -> tuple[list[Problem], SFTBatch]:
    """Tokenizes problems for supervised fine-tuning. Returns a list of the problems whose prompt and demonstration fit, and an
    `SFTBatch` with one row for each of these problems. The arguments are those of `prompt_arrays`, except that `overflow`
    cannot be "cut". If it is "truncate", demonstrations are cut to `completion_length` tokens, so that they have no end."""
    end = encode_end_of_turn(tokenizer) if chat else []
    encoded = [(encode_question(p, tokenizer, chat), tokenizer.encode(p.demonstration) + end) for p in problems]
    if overflow == "truncate":
        long = sum(len(ids) > completion_length for _, ids in encoded)
        log.warning("%d of %d solutions are cut to %d tokens (data.overflow=truncate)", long, len(encoded), completion_length)
        encoded = [(question, ids[:completion_length]) for question, ids in encoded]
    keep = _fitting(problems, [(len(q), len(d)) for q, d in encoded], prompt_length, completion_length, overflow)
    tokens, prompt_mask = left_padded([encoded[i][0] for i in keep], prompt_length, tokenizer.pad_id)
    completion = np.full((len(keep), completion_length), tokenizer.eos_id, np.int32)
    for row, (_, ids) in zip(completion, (encoded[i] for i in keep), strict=True):
        row[: len(ids)] = ids
    return [problems[i] for i in keep], SFTBatch(tokens, prompt_mask, completion)


def batches(arrays: Arrays, batch_size: int, seed: int, buckets: Sequence[int]) -> grain.MapDataset[Arrays]:
    """Returns an endless sequence of batches with random access. Item i is the batch of training step i, after `cut_to_bucket`
    has removed padding. At the end of an epoch, the problems that do not fill a batch are left out, so that no batch contains a
    problem twice. Raises ValueError if there are fewer problems than `batch_size`."""
    rows = len(arrays.tokens)
    if rows < batch_size:
        raise ValueError(f"{rows} problems do not fill a batch of {batch_size}")
    order = grain.MapDataset.range(rows).seed(seed).shuffle().batch(batch_size, drop_remainder=True).repeat(None)
    return order.map(lambda index: cut_to_bucket(take_rows(arrays, index), buckets))


def take_rows(arrays, index: np.ndarray):
    """Selects rows from every array of a pytree, and returns the pytree of the selected rows. `index` holds the row numbers."""
    return jax.tree.map(lambda x: x[index], arrays)


def cut_to_bucket(arrays: Arrays, buckets: Sequence[int]) -> Arrays:
    """Returns a batch with less padding in front of its prompts. The new prompt length is the smallest bucket that holds the
    longest prompt of the batch."""
    longest = arrays.prompt_mask.sum(axis=1).max()
    length = bucket_of(longest, buckets)
    return arrays.replace(tokens=arrays.tokens[:, -length:], prompt_mask=arrays.prompt_mask[:, -length:])


def _fitting(
    problems: Sequence[Problem], lengths: list[tuple[int, int]], prompt_length: int, completion_length: int, overflow: str
) -> list[int]:
    """Returns the indices of the problems whose prompt and completion both fit, and logs how many problems do not fit.
    `lengths` holds (prompt tokens, completion tokens) of each problem. Raises ValueError if no problem fits, or if `overflow`
    is "error" and at least one problem does not fit. The message names the configuration keys to change."""
    fits = [p <= prompt_length and c <= completion_length for p, c in lengths]
    keep = [index for index, fit in enumerate(fits) if fit]
    if all(fits):
        return keep
    first = fits.index(False)
    message = (
        f"{len(problems) - len(keep)} of {len(problems)} problems do not fit; the first is {problems[first].id!r} with "
        f"{lengths[first][0]} prompt tokens (at most {prompt_length}, data.prompt_buckets) and {lengths[first][1]} "
        f"solution tokens (at most {completion_length}, sampler.completion_length)"
    )
    if overflow == "error":
        raise ValueError(f"{message}; make room, or set data.overflow=drop")
    if not keep:
        raise ValueError(message)
    log.warning("%s; dropped (data.overflow=%s)", message, overflow)
    return keep


def encode_question(problem: Problem, tokenizer: Tokenizer, chat: bool) -> list[int]:
    message = {"role": "user", "content": problem.question}
    return encode_chat(tokenizer, [message]) if chat else tokenizer.encode(problem.question)


def require_prompts(shift: bool, prompt_mask: np.ndarray) -> None:
    """Raises ValueError if `shift` is True and a prompt is empty. With `shift`, the model predicts each token from the position
    before the token, so the first token of a completion needs a prompt. `prompt_mask` is bool [n, length]."""
    empty = np.flatnonzero(~prompt_mask.any(axis=1))
    message = f"prompt {empty[:1]} is empty, but this model predicts the first token of a completion from the token before it"
    require(not shift or not empty.size, message)


def left_padded(rows: list[list[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads lists of tokens on the left to `length` tokens. Returns the tokens, int32 [n, length], and a mask, bool [n, length],
    which is False on padding."""
    tokens, prompt_mask = np.full((len(rows), length), pad_id, np.int32), np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        tokens[row, length - len(ids) :], prompt_mask[row, length - len(ids) :] = ids, True
    return tokens, prompt_mask
