"""Problems -> token arrays -> batches, with Grain.

Batch i is a function of (data, seed, i): reshuffled every epoch, the same for any number of hosts, and resuming needs
nothing but the step number.
"""

import logging
import zlib
from collections.abc import Sequence

import flax
import grain
import jax
import numpy as np

from igpo_jax.tasks.problem import Problem
from igpo_jax.tokenizers import Tokenizer, encode_chat

log = logging.getLogger(__name__)


@flax.struct.dataclass
class PromptBatch:
    """Prompts and the solutions that hints are cut from.

    problem_id uint32 [n]; tokens int32 [n, p], padded on the left; valid bool [n, p]; trace int32 [n, l], padded with
    EOS; trace_length int32 [n], the part that chunks are cut from; hintable bool [n, l], False on every token that
    touches an answer span.
    """

    problem_id: np.ndarray
    tokens: np.ndarray
    prompt_mask: np.ndarray
    trace: np.ndarray
    trace_length: np.ndarray
    hintable: np.ndarray


@flax.struct.dataclass
class SFTBatch:
    """tokens int32 [n, p], padded on the left; valid bool [n, p]; completion int32 [n, l], padded with EOS."""

    tokens: np.ndarray
    prompt_mask: np.ndarray
    completion: np.ndarray


def prompt_arrays(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    chat: bool = False,
    prefix: str = "",
    prompt_length: int,
    completion_length: int,
    exclude_answer: bool,
    overflow: str,
) -> tuple[list[Problem], PromptBatch]:
    """The problems whose prompt fits, and their arrays, one row each.

    Args:
        chat: questions become a user's message in the chat template.
        prefix: what every answer begins with, part of the prompt.
        exclude_answer: chunks are cut from the trace up to its last answer span, and no token of any answer span is
            shown; otherwise the whole trace may be.
        overflow: what happens to problems whose prompt does not fit, see `_fitting`; or cut: its last tokens are kept.
    """
    encoded = []
    for problem in problems:
        # Hints beyond the completion's end fall away; so the trace may be longer.
        trace, offsets = (part[:completion_length] for part in tokenizer.encode_with_offsets(problem.trace))
        question = encode_question(problem, tokenizer, chat) + (tokenizer.encode(prefix) if prefix else [])
        encoded.append((question[-prompt_length:] if overflow == "cut" else question, trace, offsets))
    keep = _fitting(problems, [(len(q), 0) for q, _, _ in encoded], prompt_length, completion_length, overflow)
    tokens, prompt_mask = left_padded([encoded[i][0] for i in keep], prompt_length, tokenizer.pad_id)
    shape = (len(keep), completion_length)
    trace, hintable = np.full(shape, tokenizer.eos_id, np.int32), np.zeros(shape, bool)
    trace_length = np.zeros(len(keep), np.int32)
    for row, index in enumerate(keep):
        _, ids, offsets = encoded[index]
        spans = problems[index].answer_spans if exclude_answer else ()
        may_show = np.array(
            [all(end <= first or begin >= last for first, last in spans) for begin, end in offsets], bool
        )
        trace[row, : len(ids)], hintable[row, : len(ids)] = ids, may_show
        last_answer = max((first for first, _ in spans), default=None)
        trace_length[row] = len(ids) if last_answer is None else sum(end <= last_answer for _, end in offsets)
    ids = _numbers([problems[i].id for i in keep])
    return [problems[i] for i in keep], PromptBatch(ids, tokens, prompt_mask, trace, trace_length, hintable)


def _numbers(ids: Sequence[str]) -> np.ndarray:
    """A number for every problem, uint32: the checksum of its id, or the next free one; the same ids give the same numbers.

    Raises:
        ValueError: two problems have the same id.
    """
    owner: dict[int, str] = {}
    for name in ids:
        number = zlib.crc32(name.encode())
        while number in owner:  # rewards find their problem by this number
            if owner[number] == name:
                raise ValueError(f"two problems have the id {name!r}; rename one")
            number = (number + 1) % 2**32
        owner[number] = name
    return np.array(list(owner), np.uint32)


def sft_arrays(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    chat: bool = False,
    prompt_length: int,
    completion_length: int,
    overflow: str,
) -> SFTBatch:
    """Arrays of the problems whose prompt and demonstration fit, one row each; see `prompt_arrays`."""
    encoded = [(encode_question(p, tokenizer, chat), tokenizer.encode(p.demonstration)) for p in problems]
    keep = _fitting(problems, [(len(q), len(d)) for q, d in encoded], prompt_length, completion_length, overflow)
    tokens, prompt_mask = left_padded([encoded[i][0] for i in keep], prompt_length, tokenizer.pad_id)
    completion = np.full((len(keep), completion_length), tokenizer.eos_id, np.int32)
    for row, index in enumerate(keep):
        ids = encoded[index][1]
        completion[row, : len(ids)] = ids
    return SFTBatch(tokens, prompt_mask, completion)


def batches(arrays, batch_size: int, seed: int, buckets: Sequence[int]):
    """An endless, random-access sequence: item i is the batch of step i, with its prompts cut to the smallest bucket.

    Problems that do not fill an epoch's last batch wait for the next epoch, so no batch holds a problem twice.

    Args:
        arrays: `PromptBatch` or `SFTBatch` of a whole split.

    Raises:
        ValueError: the split has fewer rows than a batch.
    """
    rows = len(arrays.tokens)
    if rows < batch_size:
        raise ValueError(f"{rows} problems do not fill a batch of {batch_size}")
    order = grain.MapDataset.range(rows).seed(seed).shuffle().batch(batch_size, drop_remainder=True).repeat(None)
    return order.map(lambda index: cut_to_bucket(take_rows(arrays, index), buckets))


def take_rows(arrays, index: np.ndarray):
    """Some rows of a `PromptBatch`, an `SFTBatch` or other arrays with the same leading axis."""
    return jax.tree.map(lambda x: x[index], arrays)


def cut_to_bucket(arrays, buckets: Sequence[int]):
    """Drops padding that no prompt needs: the prompts take the smallest of `buckets` that holds the longest of them."""
    longest = arrays.prompt_mask.sum(axis=1).max()
    length = next(size for size in buckets if size >= longest)
    return arrays.replace(tokens=arrays.tokens[:, -length:], prompt_mask=arrays.prompt_mask[:, -length:])


def _fitting(
    problems: Sequence[Problem],
    lengths: list[tuple[int, int]],
    prompt_length: int,
    completion_length: int,
    overflow: str,
) -> list[int]:
    """Indices of the problems that fit; the others are dropped with a warning, or are an error (overflow="error").

    Raises:
        ValueError: names how many do not fit, the first of them, its lengths and the config keys to change.
    """
    keep = [i for i, (p, c) in enumerate(lengths) if p <= prompt_length and c <= completion_length]
    if len(keep) == len(problems):
        return keep
    kept = set(keep)
    first = next(i for i in range(len(problems)) if i not in kept)
    message = (
        f"{len(problems) - len(keep)} of {len(problems)} problems do not fit; the first is {problems[first].id!r} with "
        f"{lengths[first][0]} prompt tokens (at most {prompt_length}, data.prompt_buckets) and {lengths[first][1]} "
        f"solution tokens (at most {completion_length}, sampler.completion_length)"
    )
    if overflow == "error":
        raise ValueError(f"{message}; make room, or set data.overflow=drop")
    if not keep:
        raise ValueError(message)
    log.warning("%s; dropped (data.overflow=drop)", message)
    return keep


def encode_question(problem: Problem, tokenizer: Tokenizer, chat: bool) -> list[int]:
    """The prompt as the model reads it."""
    if chat:
        return encode_chat(tokenizer, [{"role": "user", "content": problem.question}])
    return tokenizer.encode(problem.question)


def left_padded(rows: list[list[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists of at most `length` as int32 [n, length], and which of it is no padding, bool [n, length]."""
    tokens, prompt_mask = np.full((len(rows), length), pad_id, np.int32), np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        if ids:
            tokens[row, -len(ids) :], prompt_mask[row, -len(ids) :] = ids, True
    return tokens, prompt_mask
