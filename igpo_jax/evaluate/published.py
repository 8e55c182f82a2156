"""Published accuracies on the benchmarks of evaluate_math.py, in percent, with what is known about their evaluation protocols.
If a model was not trained further, its measured accuracy should be close to the published one. A large difference shows that
the protocols differ. It is best to find such a difference before a week of training."""

import math
from typing import Any

IGPO = "IGPO, arXiv 2509.10396, Table 1: temperature 0, AMC avg@16 at 0.1; length, prompt and checker not published"
SPG = "SPG, arXiv 2510.09541, Table 1: d1's protocol with {} tokens"
LLADA, LLADA_15 = "LLaDA-8B-Instruct", "LLaDA-1.5"
PUBLISHED = {
    "gsm8k": (
        (LLADA, 81.5, IGPO),
        (LLADA, 69.5, SPG.format(128)),
        (LLADA, 77.2, SPG.format(256)),
        (LLADA, 79.8, SPG.format(512)),
        (LLADA_15, 83.3, IGPO),
    ),
    "math500": (
        (LLADA, 39.0, IGPO),
        (LLADA, 28.2, SPG.format(128)),
        (LLADA, 32.4, SPG.format(256)),
        (LLADA, 34.6, SPG.format(512)),
        (LLADA_15, 42.6, IGPO),
    ),
    "amc": ((LLADA, 14.5, IGPO), (LLADA_15, 13.6, IGPO)),
    "minerva": ((LLADA, 9.2, IGPO), (LLADA_15, 8.8, IGPO)),
}


def published_beside(numbers: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Returns {benchmark: lines} for the benchmarks with published accuracies. Each line gives a model, its published accuracy,
    the difference between the measured and the published accuracy in points, whether the published accuracy lies in the
    measured confidence interval, and the source. `numbers` is {benchmark: measured results} (see `summary`)."""
    return {name: [_line(found, *row) for row in PUBLISHED[name]] for name, found in numbers.items() if name in PUBLISHED}


def _line(found: dict[str, Any], model: str, percent: float, source: str) -> str:
    mean, interval = found["pass@1"], found["interval95"]
    if mean is None or math.isnan(mean) or interval is None:
        return f"{model}: {percent} ({source})"
    place = "within" if interval[0] <= percent / 100 <= interval[1] else "outside"
    return f"{model}: {percent}, difference {100 * mean - percent:+.1f}, {place} the interval ({source})"
