"""Progress bar of a command that may run on several processes."""

import sys

import jax
from tqdm import tqdm


def progress(total: int, done: int, description: str, **options) -> tqdm:
    """Returns a tqdm progress bar. Only process 0 shows the bar, and only if `done` is not yet `total`. If the output is not a
    terminal, the bar is printed every ten seconds."""
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    # A single process must not call process_index, which starts JAX and occupies an accelerator that the command may not need.
    disable = (jax.distributed.is_initialized() and jax.process_index() > 0) or done == total
    return tqdm(total=total, initial=done, desc=description, mininterval=seconds, disable=disable, **options)


def duration(seconds: float) -> str:
    """Returns a time in seconds as text, in seconds, minutes, or hours and minutes."""
    if not 0 <= seconds < 1e9:  # a file may have any number
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
