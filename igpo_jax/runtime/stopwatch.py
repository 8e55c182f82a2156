"""Where the wall time goes."""

import contextlib
import time


class Stopwatch:
    """Adds up seconds by name. Measured code must end with its results on the host, or it measures the dispatch."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str):
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
