"""User-written reward functions that misbehave."""

import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time


def length(problem, text):
    return float(len(text))


def address_space(problem, text):
    return float(resource.getrlimit(resource.RLIMIT_AS)[0])


def count(problem, text):
    return len(text.split())


class Bomb:
    """Ends the process in which it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


# Text -> bytes that `moody` writes into the connection to the pool before it answers
JUNK = {
    "print a word": b"word", "print a line": b"done: 0.5\n", "print a number": b"1.0\n", "print a reply": b'["loaded", null]\n',
    "print a later reply": b"[7, [1.0]]\n", "print NaN": b"[0, [NaN]]\n", "print true": b"[false, [1.0]]\n",
    "print one reward": b"[0, 1.0]\n", "print two rewards": b"[0, [1.0, 1.0]]\n", "print a text": b'[0, ["1.0"]]\n', "print nothing": b"\n",
    "print bytes": bytes(range(256)), "print deep": b"[" * 9999 + b"\n", "print a lot": b"a" * 2**17,
    "print a frame": (2**31 - 1).to_bytes(4, "big") + b"x",
    "print a pickle": len(pickle.dumps(Bomb())).to_bytes(4, "big") + pickle.dumps(Bomb()),
}  # fmt: skip


def moody(problem, text, scale=1.0):
    """Does what `text` says, for example "sleep" or "raise". Returns `scale` times the number in other texts."""
    match text:
        case "sleep":
            time.sleep(1000)
        case "raise":
            raise RuntimeError("not this one")
        case "die":
            os._exit(1)
        case "fork" | "fork and fail":
            if child := os.fork():
                os.waitpid(child, 0)
                return scale
            if text == "fork":
                return 999.0
            raise RuntimeError("not this one")
        case "exit":
            sys.exit("not this one")
        case "fill memory":
            return float(len(bytearray(64 * 2**30)))
        case "stop later":
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGSTOP)).start()
            return scale
        case _ if text.startswith("start a program"):
            started = subprocess.Popen(["sleep", "300"])
            pathlib.Path(problem.id).write_text(str(started.pid))
            return moody(problem, text.removeprefix("start a program and "), scale)
        case "print":
            print("printed by the function", flush=True)
            subprocess.run(["echo", "printed by its program"], check=True)
            return scale
        case "odd text":
            raise RuntimeError("\ud800")
        case _ if text in JUNK:
            os.write(int(sys.argv[1]), JUNK[text])  # see reward_worker.main
            return scale
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
