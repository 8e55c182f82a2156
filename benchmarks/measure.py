"""What the benchmarks share: sides that take turns, a ratio, and where it was measured."""

import datetime
import json
import pathlib
import statistics
import time

import jax


def compare(what: str, error: float, tolerance: float) -> None:
    """Ends the benchmark where the two sides do not compute the same."""
    print(f"{what}: difference {error:.2e} (at most {tolerance:.0e})")
    if not error <= tolerance:
        raise SystemExit(f"error: the two sides differ in {what}: {error:.2e}")


def time_in_turns(runs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, after one that compiles; the sides alternate, so that both see the same noise."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def finish(benchmark: str, arguments, seconds: dict[str, list[float]], checks: dict, baseline: str) -> dict:
    """Prints the result, and writes it where --output says."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = next(name for name in medians if name != baseline)
    device = jax.devices()[0]
    sizes = {name: value for name, value in vars(arguments).items() if name != "output"}
    result = {
        "benchmark": benchmark,
        "sizes": sizes,
        "median_seconds": medians,
        "ratio": medians[baseline] / medians[ours],
        "checks": checks,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    print(", ".join(f"{name} {value}" for name, value in sizes.items()))
    print(f"device: {result['device']}, jax {jax.__version__}")
    print(", ".join(f"{name}: {value:.3f} s" for name, value in medians.items()))
    print(f"{ours} is {result['ratio']:.2f} times as fast as {baseline}")
    if arguments.output:
        pathlib.Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
    return result
