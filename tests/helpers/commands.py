"""Runs `python -m igpo_jax.NAME` in a process forked from one that has imported everything.

Importing JAX, Orbax and the rest takes 3 to 5 seconds of CPU time; a fork takes milliseconds. The server is this file run as a
program: it imports the package's modules except the commands, starts no thread (a process with threads cannot be forked), and
forks for every request. `start` and `run` replace subprocess.Popen and subprocess.run.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import pathlib
import pkgutil
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# XLA flags of all tests, which compile tiny programs: compiling them costs far more than running them. The two flags of the
# second line reduce the CPU time of compiling and running the sampler to about a third.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
SELDOM = (50_000, 20, 100)  # thresholds of garbage collection
# Variables read when libraries or the interpreter load: a fork cannot change them.
READ_AT_START = ("JAX_", "PYTHON", "LD_")
CHANGEABLE = "JAX_COORDINATOR_PORT"  # read by jax.distributed.initialize


class Process:
    """A running command, with the part of subprocess.Popen's interface that tests use.

    pid: process id. exit_status: file into which the process's parent writes it. returncode: None while the process runs.
    """

    def __init__(self, pid: int, exit_status: pathlib.Path):
        self.pid, self._exit_status, self.returncode = pid, exit_status, None

    def poll(self) -> int | None:
        if self.returncode is None and self._exit_status.exists():
            self.returncode = int(self._exit_status.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status, or -N after signal N. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # its exit status is not written yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    module: str, *arguments: str, stdout: pathlib.Path, stderr: pathlib.Path | None = None, cwd=None, env=None
) -> Process | subprocess.Popen:
    """Starts `python -m igpo_jax.<module>` and writes its output to files. Without `stderr`, both streams go to `stdout`."""
    name, directory, environment = f"igpo_jax.{module}", str(cwd or os.getcwd()), dict(os.environ if env is None else env)
    if _read_at_start(environment) != _read_at_start(os.environ):
        with stdout.open("w") as out, (stderr or stdout).open("a") as error:
            command = [sys.executable, "-m", name, *arguments]
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": error}
            return subprocess.Popen(command, cwd=directory, env=environment, preexec_fn=_heed_sighup, **streams)
    return _server().start([name, *arguments], directory, environment, stdout.absolute(), stderr and stderr.absolute())


def run(module: str, *arguments: str, cwd=None, env=None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs `python -m igpo_jax.<module>` to its end. Returns exit status and text output."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        process = start(module, *arguments, stdout=files[0], stderr=files[1], cwd=cwd, env=env)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess((module, *arguments), status, *(file.read_text() for file in files))


def _read_at_start(environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START) and name != CHANGEABLE}


def _heed_sighup() -> None:
    """Lets the command end at SIGHUP even if the tests run under nohup, whose child processes ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class _Server:
    def __init__(self):
        self._folder, self._started = tempfile.mkdtemp(), 0
        # Importing numpy makes OpenBLAS start a thread per core.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._close)

    def start(self, argv, cwd, env, stdout, stderr) -> Process:
        self._started += 1
        status = pathlib.Path(self._folder, str(self._started))
        streams = {"stdout": str(stdout), "stderr": str(stderr or stdout)}
        request = {"argv": argv, "cwd": cwd, "env": env, "status": str(status), **streams}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Process(int(self._process.stdout.readline()), status)

    def _close(self) -> None:
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


_server = functools.cache(_Server)


def _import_package() -> None:
    """Imports all modules except the commands, which define their flags when they start."""
    sys.path[0] = str(ROOT)
    sys.modules["torch"] = None  # tensorboardX would import it if installed; unused here
    import igpo_jax

    for module in pkgutil.walk_packages(igpo_jax.__path__, "igpo_jax."):
        file = ROOT / (module.name.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py"))
        if '__name__ == "__main__"' not in file.read_text():
            __import__(module.name)


def _serve() -> None:
    """Forks twice for every request. The second child returns to run the command, and the first waits for it."""
    _heed_sighup()
    _import_package()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    for line in sys.stdin:
        if os.fork():
            with contextlib.suppress(ChildProcessError):  # no child is left
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        request = json.loads(line)
        child = os.fork()
        if not child:
            return _run(request)
        print(child, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = pathlib.Path(f"{request['status']}.partial")
        written.write_text(str(code))
        written.rename(request["status"])
        os._exit(0)
    with contextlib.suppress(ChildProcessError):  # counts their CPU time as this process's
        while True:
            os.wait()


def _run(request: dict) -> None:
    """Turns this process into the command."""
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["stdout"], writing)):
        os.dup2(os.open(path, flags), fd)
    os.dup2(1 if request["stderr"] == request["stdout"] else os.open(request["stderr"], writing), 2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = request["argv"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
