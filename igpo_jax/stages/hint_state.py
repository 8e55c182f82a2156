"""Updates the settings of hints that change during training: the center of hint ratios (a curriculum), and the bank of the
model's own solutions, from which hints can be taken."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from igpo_jax.data.pipeline import PromptBatch, hintable_tokens
from igpo_jax.rl.hints import InpaintingConfig
from igpo_jax.rl.rollout import Rollout
from igpo_jax.run.experiment import Experiment
from igpo_jax.runtime.checks import present, require
from igpo_jax.runtime.mesh import to_host
from igpo_jax.stages.stage import IterationState
from igpo_jax.tasks.answer_spans import Span, answer_spans, occurrences

NO_SOLUTION = -1  # fills rows of the solution bank without a solution
STATED = re.compile(r"<answer>(.*?)(?=</answer>|\Z)|####(?!.*####)(.*)", re.DOTALL)
NUMBER = re.compile(r"[-\d.,$%]+")


def update_hint_state(experiment: Experiment, state: IterationState, rollouts: Sequence[Rollout]) -> IterationState:
    """Returns the stage's state with an updated solution bank and an updated center of hint ratios. A hint ratio is the share
    of a solution that a hint reveals. `rollouts` are the rollouts of one iteration. The center changes only if second (hinted)
    attempts were graded."""
    bank, center = state.solution_bank, state.hint_ratio_center
    if bank is not None:
        for sampled in rollouts:
            rows, first = present(experiment.rl_data).rows_of(to_host(sampled.groups.problem_id)), sampled.first
            bank = update_solution_bank(bank, rows, first.tokens, first.grades.correct, experiment.model.eos_id)
    second = [sampled.second.grades for sampled in rollouts if sampled.second is not None]
    # How many further completions of a group are sampled depends on whether the first ones are correct.
    first = slice(experiment.config.inpainting.tries or None)
    correct = [grades.correct[:, first][grades.graded[:, first]] for grades in second]
    correct = np.concatenate(correct) if correct else np.zeros(0)
    if center is not None and correct.size:
        center = next_hint_ratio_center(center, float(correct.mean()), experiment.config.inpainting)
    return dataclasses.replace(state, solution_bank=bank, hint_ratio_center=center)


def initial_hint_ratio_center(cfg: InpaintingConfig) -> float:
    """Returns the initial center of hint ratios: the middle between the smallest and the largest ratio. A hint ratio is the
    share of a solution that a hint reveals."""
    return float(np.float32((cfg.ratio_min + cfg.ratio_max) / 2))


def next_hint_ratio_center(hint_ratio_center: float, correct: float, cfg: InpaintingConfig) -> float:
    """Returns the center of hint ratios for the next iteration. A hint ratio is the share of a solution that a hint reveals.
    `correct` is the fraction of correct completions among the graded second attempts of the last iteration.

    The center rises if `correct` is below one half and falls if `correct` is above one half. The reason is that the norm of the
    expected gradient is proportional to correct * (1 - correct), which is largest at one half (paper, Appendix K). The center
    is rounded to float32, so that all processes read the same number from the log."""
    return float(np.float32(min(max(hint_ratio_center + cfg.curriculum * (0.5 - correct), 0.0), 1.0)))


def update_solution_bank(
    solution_bank: np.ndarray, rows: np.ndarray, tokens: np.ndarray, correct: np.ndarray, eos_id: int
) -> np.ndarray:
    """Returns an updated copy of the solution bank. If a sampled problem has correct completions, the last of them is cut at
    EOS and becomes the problem's solution in the bank.

    Args:
        solution_bank: the model's own solutions, int32 [problems, l], padded with EOS. For a problem without a solution, all
            elements are `NO_SOLUTION`.
        rows: index in the bank of each sampled problem, int [n].
        tokens: completions of the sampled problems, int32 [n, g, l].
        correct: whether each completion is correct, bool [n, g]."""
    last = correct.shape[1] - 1 - correct[:, ::-1].argmax(axis=1)
    chosen, found = tokens[np.arange(len(tokens)), last], correct.any(axis=1)
    chosen = np.where(np.cumsum(chosen == eos_id, axis=1) > 0, eos_id, chosen)
    solution_bank = solution_bank.copy()  # a checkpoint may still be saving the old one
    solution_bank[rows[found]] = chosen[found]
    return solution_bank


def require_known_ids(checkpoint: pathlib.Path, solution_bank: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError if the solution bank of a checkpoint, which may be a stranger's, contains ids that are neither
    `NO_SOLUTION` nor ids of the network. Tokenizers fail at negative ids."""
    known = solution_bank.min() >= NO_SOLUTION and solution_bank.max() < vocab_size
    require(known, f"{checkpoint}: the model's own solutions (memory) have ids outside of [0, {vocab_size}); restore a copy")


def own_hintable_tokens(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str], extract_answer: Callable[[str], str | None]
) -> tuple[list[bool], int]:
    """Returns two values for a completion, in the same way as `hintable_tokens` does for a trace: a list with one bool per
    token, True if hints may show the token, and the number of leading tokens from which hints may be cut. `tokens` are the
    tokens before the first EOS.

    Hints must not show the `answer_spans` of the extracted answer, the contents of <answer> tags, or the text after the last
    ####. If the answer is not a number, hints must not show any other place where the answer occurs, either. If no answer is
    extracted, or if the completion contains none of these places, its last quarter is hidden. The last token is always
    hidden."""
    text = decode(tokens)
    answer = extract_answer(text)
    found = list(answer_spans(text, answer)) if answer else []
    if answer and not NUMBER.fullmatch(answer):
        found += occurrences(text, answer)
    stated = [match.span(match.lastindex or 0) for match in STATED.finditer(text)]
    hintable, length = hintable_tokens(decoded_offsets(tokens, decode), [*found, *stated])
    return hintable, min(length, len(tokens) - 1 if found or (answer and stated) else len(tokens) * 3 // 4)


def decoded_offsets(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Span]:
    """Returns the position of each token in the decoded text, as (begin, end) in characters. If several tokens together encode
    one character, the position of each of them is the whole character."""
    text = decode(tokens)
    prefixes = [decode(tokens[:number]) for number in range(len(tokens))]
    clean = [len(prefix) if text.startswith(prefix) else 0 for prefix in prefixes] + [len(text)]
    begins = itertools.accumulate(clean[:-1], max)  # a part of a character decodes to no text, or to a replacement character
    return [(begin, next((end for end in clean[number:] if end > begin), begin)) for number, begin in enumerate(begins, 1)]


def with_own_solutions(experiment: Experiment, prompts: PromptBatch, solution_bank: np.ndarray) -> PromptBatch:
    """Returns a copy of `prompts`, which belong to the RL split, with the model's own solutions as traces. Hints are taken from
    the traces. If inpainting.exclude_answer is True, hints do not show the answer. Problems without a solution in the bank get
    an empty trace."""
    tokenizer, extract = experiment.tokenizer, experiment.extract_answer
    own = solution_bank[present(experiment.rl_data).rows_of(prompts.problem_id)]
    trace = np.where(own == NO_SOLUTION, tokenizer.eos_id, own)
    length = (trace != tokenizer.eos_id).sum(axis=1, dtype=np.int32)
    hintable = np.arange(trace.shape[1]) < length[:, None]
    if experiment.config.inpainting.exclude_answer:
        for row, end in enumerate(length.tolist()):
            hintable[row, :end], length[row] = own_hintable_tokens(trace[row, :end].tolist(), tokenizer.decode, extract)
    return prompts.replace(trace=trace, trace_length=length, hintable=hintable)
