"""User-written reward functions that misbehave."""

import os
import pathlib
import time


def length(problem, text):
    return float(len(text))


def moody(problem, text, scale=1.0):
    """Does what the text says."""
    match text:
        case "sleep":
            time.sleep(1000)
        case "raise":
            raise RuntimeError("not this one")
        case "die":
            os._exit(1)
        case "fill memory":
            return float(len(bytearray(64 * 2**30)))
        case "give up":
            raise TimeoutError("too long")
        case "no number":
            return "many"
        case "number as text":
            return "1.0"
        case "nothing":
            return None
        case "nan" | "inf" | "-inf" | "1e300":
            return float(text)
        case _ if text.startswith("die unless there is "):
            file = pathlib.Path(text.removeprefix("die unless there is "))
            if not file.exists():
                file.touch()
                os._exit(1)
            return scale
    return scale * float(text)
