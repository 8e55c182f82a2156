"""Hints as training proceeds: the ratio curriculum, and solutions that the model found itself."""

import bisect
import functools
from collections.abc import Callable, Sequence

import numpy as np

from igpo_jax.data.pipeline import PromptBatch
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.run.experiment import Experiment
from igpo_jax.tasks import load_task

NO_SOLUTION = -1  # in the memory of own solutions: none yet


def initial_hint_ratio_center(cfg: InpaintingConfig) -> float:
    """The middle of the configured range."""
    return float(np.float32((cfg.ratio_min + cfg.ratio_max) / 2))


def next_hint_ratio_center(hint_ratio_center: float, correct: float, cfg: InpaintingConfig) -> float:
    """The centre of the ratios after an iteration in which the share `correct` of the second tries was correct: further up
    where it was below one half, where a group's expected gradient, as share * (1 - share), is largest (paper, Appendix K).
    A float32, which all processes read from the log as it was."""
    return float(np.float32(min(max(hint_ratio_center + cfg.curriculum * (0.5 - correct), 0.0), 1.0)))


# Solutions that the model found itself


def update_solution_bank(
    solution_bank: np.ndarray, rows: np.ndarray, tokens: np.ndarray, correct: np.ndarray, eos_id: int
) -> np.ndarray:
    """A new memory with the last correct completion of each problem that has one, up to its first EOS.

    Args:
        solution_bank: int32 [problems, l], padded with EOS; `NO_SOLUTION` where a problem has none yet.
        rows: int [n], of the problems in the memory. tokens: int32 [n, g, l]. correct: bool [n, g].
    """
    last = correct.shape[1] - 1 - correct[:, ::-1].argmax(axis=1)
    chosen, found = tokens[np.arange(len(tokens)), last], correct.any(axis=1)
    chosen = np.where(np.cumsum(chosen == eos_id, axis=1) > 0, eos_id, chosen)
    solution_bank = solution_bank.copy()  # the old one may be on its way to a checkpoint
    solution_bank[rows[found]] = chosen[found]
    return solution_bank


def hintable_prefix_length(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str], extract_answer: Callable[[str], str | None]
) -> int:
    """How many tokens of a completion may be shown, from its beginning; nobody has marked where its answer stands.

    Hidden is everything from the first place where the text of the answer that it states occurs, whether it is stated there
    or not; where no answer is stated, or its text does not occur as such, the last quarter. The last token always is.

    Args:
        tokens: of a completion, before its first EOS.
        decode: tokens to text.
        extract_answer: the answer that a text states, see `igpo_jax.tasks`.
    """
    text = decode(tokens)
    answer = extract_answer(text)
    place = text.find(answer) if answer else -1
    if place < 0:
        return len(tokens) * 3 // 4
    shown = bisect.bisect_right(range(len(tokens)), place, key=lambda number: len(decode(tokens[:number]))) - 1
    # The bytes of a character may be several tokens, the first of which are no text yet, or more text than the whole.
    while not text[:place].startswith(decode(tokens[:shown])):
        shown -= 1
    return shown


def with_own_solutions(experiment: Experiment, prompts: PromptBatch, solution_bank: np.ndarray) -> PromptBatch:
    """Prompts of the RL split, whose traces are what the memory has of them (see `update_solution_bank`), as far as it may be shown;
    where it has nothing, there is nothing to show."""
    task, eos_id = load_task(experiment.config.task.name), experiment.tokenizer.eos_id
    options = {name: experiment.config.task[name] for name in task.REWARD_OPTIONS}
    extract_answer = functools.partial(task.extract_answer, **options)
    own = solution_bank[experiment.rl_data.rows_of(prompts.problem_id)]
    trace = np.where(own == NO_SOLUTION, eos_id, own)
    length = (trace != eos_id).sum(axis=1, dtype=np.int32)
    if experiment.config.inpainting.exclude_answer:
        completions = (row[:end].tolist() for row, end in zip(trace, length, strict=True))
        length = np.array(
            [hintable_prefix_length(tokens, experiment.tokenizer.decode, extract_answer) for tokens in completions], np.int32
        )
    return prompts.replace(trace=trace, trace_length=length, hintable=np.arange(trace.shape[1]) < length[:, None])
