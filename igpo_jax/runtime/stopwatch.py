"""Stopwatch that adds up the wall time of named parts of a program."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Adds up the seconds that each named part of a program takes. The measured code must fetch its JAX results to the host.
    Otherwise, only the time to start the computation is measured."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
