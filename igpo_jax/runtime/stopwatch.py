"""Wall time by name."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Sums the seconds of measured code by name. The code must fetch its results, or only their dispatch is measured."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
