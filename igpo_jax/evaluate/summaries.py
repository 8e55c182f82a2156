"""Formats the results of an evaluation, or of a comparison of two evaluations, as the lines of text that `evaluate` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

from igpo_jax.runtime.statistics import interval_text, percent


def card_lines(card: dict[str, Any]) -> list[str]:
    """Returns the main numbers of a card.json as lines of text. Each benchmark has one line, or two lines if samplers were
    compared. A further line follows for each published accuracy of the benchmark."""
    lines = []
    for name, numbers in card["benchmarks"].items():
        if "changed_texts" in numbers:
            lines += sampler_lines(name, numbers)
        else:
            lines.append(f"{name}: {_accuracy(numbers)}")
            lines += [f"  published: {line}" for line in card.get("published", {}).get(name, [])]
    return lines


def _accuracy(numbers: dict[str, Any]) -> str:
    problems, draws = f"{numbers['problems']:,} problems", numbers["draws"]
    if numbers["pass@1"] is None:
        return f"no verdict on any of {problems}"
    text = f"{percent(numbers['pass@1'])} of {problems}"
    if numbers["interval95"] is not None:
        text += f" ({interval_text(numbers['interval95'])})"
    if draws > 1:
        text += f", mean of {draws} draws"
        if numbers.get(f"pass@{draws}") is not None:
            text += f"; pass@{draws} {percent(numbers[f'pass@{draws}'])}"
    return text + (f"; {numbers['ungraded']:,} completions without a verdict" if numbers["ungraded"] else "")


def sampler_lines(name: str, numbers: dict[str, Any]) -> Iterator[str]:
    """Yields two lines with the main results of comparing two samplers on the benchmark `name`. `numbers` are all results (see
    `compare_samplers`)."""
    yield f"{name}: exact sampler -> this sampler: {_paired(numbers['accuracy'])}"
    ratio = numbers["exact"]["evaluations"] / numbers["fast"]["evaluations"]
    flops = numbers["exact"]["flops"] / numbers["fast"]["flops"]
    cost = f"network evaluations divided by {ratio:.2f}, FLOPs divided by {flops:.2f}"
    yield f"  {percent(numbers['changed_texts'])} of the texts differ; {cost}"


def diff_lines(found: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """Returns the main numbers of a comparison of two evaluations, with one line for each benchmark. `found` is the
    comparison as {benchmark: result} (see `benchmark.compare`)."""
    only_one = "only one of the two evaluations has it"
    return [f"{name}: {only_one if numbers is None else _paired(numbers)}" for name, numbers in found.items()]


def _paired(numbers: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in numbers["interval95"])
    difference = (
        f"{100 * numbers['difference']:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}, p = {numbers['p_value']:.2g}"
    )
    counts = f"{numbers['better']:,} problems better, {numbers['worse']:,} worse, of {numbers['problems']:,}"
    counts += f"; {numbers['left_out']:,} left out, without a verdict" if numbers["left_out"] else ""
    return f"{percent(numbers['one'])} -> {percent(numbers['other'])} ({difference}; {counts})"
