"""A progress bar."""

import sys

import jax
from tqdm import tqdm


def progress(total: int, done: int, description: str, **options):
    """A bar with an ETA; a line every ten seconds where there is no terminal; nothing where nothing is left. `options` are
    tqdm's."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    disable = jax.process_index() > 0 or done == total
    return tqdm(total=total, initial=done, desc=description, mininterval=interval, disable=disable, **options)
