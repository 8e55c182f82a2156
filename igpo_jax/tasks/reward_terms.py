"""Values of the key `reward.function`: a reward function, or a weighted sum such as "task + 0.2*my_rewards:concise"."""

import dataclasses
from collections.abc import Sequence

from igpo_jax.runtime.checks import require

TASK = "task"  # the reward of the run's task
METRICS = ("first_try", "final")  # the metrics reward/NAME that are not of a function
LARGEST_WEIGHT = 1e6
MOST_CHARACTERS, MOST_TERMS = 4096, 16


@dataclasses.dataclass(frozen=True)
class RewardTerm:
    """One function of a weighted sum. The first function of a sum decides which completions are correct."""

    weight: float
    function: str  # "package.module:name" or `TASK`

    @property
    def name(self) -> str:
        """Name of the function in metrics."""
        return self.function.rpartition(":")[2]


def split_terms(text: str) -> list[tuple[str, str]]:
    """Splits a weighted sum into its terms (weight, function). Checks neither the weights nor the functions. Removes the spaces
    around them, but no other characters: if it removed more, a different text could become the name of a function that the user
    trusts. "" means the reward of the task. A term without a weight has the weight "1". Raises ValueError if the text is too
    long or has too many terms."""
    require(not _too_long(text), f"reward.function{_too_long(text)}")
    parts = [term.rpartition("*") for term in (text or TASK).split("+")]
    return [(weight.strip(" ") if star else "1", function.strip(" ")) for weight, star, function in parts]


def reward_terms(text: str) -> list[RewardTerm]:
    """Returns the terms of a weighted sum. Raises ValueError if the sum is invalid, see `term_error`."""
    error = term_error(text)
    require(not error, f"reward.function={text!r}{error}")
    return [RewardTerm(float(weight), function) for weight, function in split_terms(text)]


def term_error(text: str) -> str:
    """Returns "" if a weighted sum is valid, otherwise the end of an error message that begins with the key and its value."""
    if _too_long(text):
        return _too_long(text)
    names = list(METRICS)
    for weight, function in split_terms(text):
        if function != TASK and ":" not in function:
            return f": {function!r} is neither {TASK} nor package.module:name"
        if not _is_weight(weight):
            return f": the weight {weight!r} of {function} is not a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        names.append(RewardTerm(1.0, function).name)
        if names.count(names[-1]) > 1:
            return f": the metric reward/{names[-1]} would have two meanings; give the function {function} another name"
    return ""


def _too_long(text: str) -> str:
    is_long = len(text) > MOST_CHARACTERS or text.count("+") >= MOST_TERMS
    return f" has more than {MOST_CHARACTERS} characters or {MOST_TERMS} functions" if is_long else ""


def _is_weight(text: str) -> bool:
    try:
        return abs(float(text)) <= LARGEST_WEIGHT  # False for NaN
    except ValueError:
        return False


def weighted_sum(terms: Sequence[RewardTerm], values: Sequence[float]) -> float:
    """Returns the reward of a completion, given the value of each function."""
    return sum(term.weight * value for term, value in zip(terms, values, strict=True))
