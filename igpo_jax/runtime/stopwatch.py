"""Stopwatch that sums the wall time of named parts of a program."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Sums the seconds of measured code by name. The measured code must fetch its JAX results, because otherwise only the start
    of their computation is measured."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
