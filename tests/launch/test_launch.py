"""The launchers: the commands that they run, and their reactions to preempted hosts, signals and failing trainings.

gcloud, srun and scontrol are stand-ins that run commands on this machine; so is the training.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHERS = sorted(ROOT.glob("launch/*.sh")) + [ROOT / "launch/slurm.sbatch"]
OTHERS = [ROOT / ".ci/run", *sorted(ROOT.glob("benchmarks/*.sh"))]
LIMIT = 60  # seconds
TRAINING = ["--", "--config=math.py:full", "--workdir=/shared/a run", "--config.lora.targets=('query','key')"]
TPU = ["--name=pod", "--zone=us-west4-a", "--type=v5litepod-16"]


def bash(script, *arguments, cwd=ROOT, **env):
    command = ["bash", str(script), *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("IGPO_", "SLURM_"))}
    return subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=LIMIT)


def printed(done) -> list[list[str]]:
    """Returns the commands of a dry run, split into words."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def loaded_library(name: str) -> str | None:
    """Returns the path from which this process loaded a library; None if unknown."""
    maps = pathlib.Path("/proc/self/maps")
    found = re.findall(rf"/\S+/{re.escape(name)}", maps.read_text()) if maps.exists() else []
    return found[0] if found else None


LIBM = loaded_library("libm.so.6")
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (extra test)")
def test_shellcheck():
    done = subprocess.run(
        [SHELLCHECK, "--external-sources", *map(str, LAUNCHERS + OTHERS)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# Dry runs


def test_local_says_what_it_would_run():
    command = [".venv/bin/python", "-m", "igpo_jax.train"]
    mine = {"LD_PRELOAD": LIBM or "mine"}  # the launcher must not replace it
    assert printed(bash("launch/local.sh", "--dry-run", **mine)) == [["exec", *command, "--config=arithmetic.py"]]
    given = ["--config=gsm8k.py:smoke", "--workdir=a b"]
    assert printed(bash("launch/local.sh", *given, IGPO_DRY_RUN="1", **mine)) == [["exec", *command, *given]]


@pytest.mark.skipif(LIBM is None, reason="needs glibc's loader")
def test_local_prefers_tcmalloc_where_the_loader_finds_it(tmp_path):
    name = "libtcmalloc_minimal.so.4"
    shutil.copy(LIBM, tmp_path / name)
    [words] = printed(bash("launch/local.sh", "--dry-run", LD_LIBRARY_PATH=str(tmp_path), LD_PRELOAD=""))
    assert words[:4] == ["exec", "env", f"LD_PRELOAD={name}", ".venv/bin/python"]
    (tmp_path / name).write_text("no library")
    [words] = printed(bash("launch/local.sh", "--dry-run", LD_LIBRARY_PATH=str(tmp_path), LD_PRELOAD=""))
    assert words[:2] == ["exec", ".venv/bin/python"]


def test_a_pod_is_made_filled_started_and_followed():
    create, copy, start, follow = printed(
        bash("launch/tpu_vm.sh", *TPU, "--spot", "--project=p", "--setup=mount /shared", "--dry-run", *TRAINING)
    )
    where = ["--zone=us-west4-a", "--project=p"]
    tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    image = "--version=v2-alpha-tpuv5-lite"
    assert create == [*tpu_vm, "create", "pod", *where, "--accelerator-type=v5litepod-16", image, "--spot"]
    assert copy[:5] == [*tpu_vm, "scp"] and copy[6:] == ["pod:", *where, "--worker=all"]
    assert start[:5] == [*tpu_vm, "ssh"] and "--worker=all" in start
    remote = shlex.split(start[-1].removeprefix("--command="))
    assert remote[-6:] == ["launch/tpu_vm_host.sh", "start", "mount /shared", *TRAINING[1:]]
    assert "--worker=0" in follow and "tail" in follow[-1]


def test_flags_of_a_pod_may_be_variables():
    flags = printed(bash("launch/tpu_vm.sh", *TPU, "--dry-run", *TRAINING))
    variables = {"IGPO_NAME": "pod", "IGPO_ZONE": "us-west4-a", "IGPO_TYPE": "v5litepod-16", "IGPO_DRY_RUN": "1"}
    same = printed(bash("launch/tpu_vm.sh", *TRAINING, **variables))
    assert [c for c in same if "scp" not in c] == [c for c in flags if "scp" not in c]


@pytest.mark.parametrize("type, image", [
    ("v5p-32", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e"), ("v4-8", "tpu-ubuntu2204-base"),
])  # fmt: skip
def test_every_type_has_its_image(type, image):
    create = printed(bash("launch/tpu_vm.sh", *TPU[:2], f"--type={type}", "--dry-run", *TRAINING))[0]
    assert f"--version={image}" in create
    create = printed(bash("launch/tpu_vm.sh", *TPU[:2], f"--type={type}", "--version=mine", "--dry-run", *TRAINING))[0]
    assert "--version=mine" in create


def test_xpk_starts_slices():
    flags = ["--cluster=c", "--name=igpo", "--type=v5litepod-16", "--slices=2", "--storage=files"]
    delete, create = printed(bash("launch/xpk.sh", *flags, "--dry-run", *TRAINING))
    assert delete[:3] == ["xpk", "workload", "delete"] and "--filter-by-status=FINISHED" in delete
    assert "--filter-by-job=^igpo$" in delete
    assert create[:3] == ["xpk", "workload", "create"]
    for flag in ("--cluster=c", "--workload=igpo", "--tpu-type=v5litepod-16", "--num-slices=2", "--storage=files"):
        assert flag in create
    assert any(word.startswith("--script-dir=/") for word in create) and "--base-docker-image=python:3.12" in create
    (command,) = (word.removeprefix("--command=") for word in create if word.startswith("--command="))
    words = shlex.split(command)
    assert words[: words.index("&&")] == ["pip", "install", "--quiet", ".[tpu,report,gcs,data]"]
    assert words[words.index("exec") :] == ["exec", "bash", "launch/on_tpu.sh", *TRAINING[1:]]
    _, create = printed(bash("launch/xpk.sh", *flags, "--image=gcr.io/p/igpo", "--dry-run", *TRAINING))
    assert "--docker-image=gcr.io/p/igpo" in create and not any("pip" in word for word in create)


def test_slurm_starts_a_process_per_gpu():
    start, requeue = printed(bash("launch/slurm.sbatch", "--dry-run", *TRAINING, SLURM_JOB_ID="7"))
    assert start == ["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "igpo_jax.train", *TRAINING[1:]]
    assert requeue == ["scontrol", "requeue", "7"]
    directives = [line for line in (ROOT / "launch/slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    for directive in ("--signal=B:TERM@600", "--requeue", "--ntasks-per-node=8", "--gpus-per-node=8"):
        assert f"#SBATCH {directive}" in directives


@pytest.mark.parametrize("script, arguments, message", [
    ("tpu_vm.sh", ["--nam=x"], "there is no flag --nam; there are: name zone type"),
    ("tpu_vm.sh", [*TPU, "--config=math.py"], "there is no flag --config"),
    ("tpu_vm.sh", [*TPU, "math.py"], "math.py is no flag"),
    ("tpu_vm.sh", [*TPU, *TRAINING, "rl.iterations=3"], "rl.iterations=3 is no flag; a key is changed with --config.key=value"),
    ("xpk.sh", ["--dry-run", *TRAINING, "--config.seed", "3", "4"], "4 is no flag"),
    ("slurm.sbatch", ["--dry-run", "--", "rl.iterations", "3", "--workdir=x"], "rl.iterations is no flag"),
    ("../benchmarks/gpu.sh", ["--config=math.py"], "--config=math.py: this script has no flags"),
    ("../benchmarks/profile.sh", ["--config=math.py"], "the first argument is the folder to write"),
    ("tpu_vm.sh", [*TPU[:2], *TRAINING], "--type (or IGPO_TYPE in the environment) is needed"),
    ("tpu_vm.sh", [*TPU, "--", "--config=math.py"], "need a --workdir"),
    ("xpk.sh", ["--name=x", *TRAINING], "--cluster (or IGPO_CLUSTER in the environment) is needed"),
    ("slurm.sbatch", ["--", "--config=math.py"], "need a --workdir"),
    ("on_tpu.sh", ["--config=math.py"], "need a --workdir"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(script, arguments, message):
    done = bash(f"launch/{script}", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh", "slurm.sbatch", "local.sh", "test.sh", "test_wheel.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_comment_at_the_top(script, flag):
    done = bash(f"launch/{script}", flag)
    assert done.returncode == 0 and script in done.stdout and "#" not in done.stdout and not done.stderr
    assert "--workdir" in done.stdout or script in ("local.sh", "test.sh", "test_wheel.sh")


def test_a_flag_that_is_0_is_off():
    create = printed(bash("launch/tpu_vm.sh", *TPU, "--dry-run", "--spot=0", *TRAINING, IGPO_BABYSIT="0"))[0]
    assert "--spot" not in create


# Execution. The stand-in for the training obeys $FOLDER/plan, one word per start:
# complete | stop (until SIGTERM, then 0 without a result) | preempted (it vanishes, and the TPU with it) | fail |
# interrupt (ends as after ^C) | lost (exits as if another host was lost; the TPU turns out to be preempted)

TRAIN = r"""#!/usr/bin/env bash
mkdir -p "$FOLDER/run"
echo "$@" >> "$FOLDER/started"
word=$(head -n 1 "$FOLDER/plan")
sed -i 1d "$FOLDER/plan"
case $word in
  complete) echo '{}' > "$FOLDER/run/result.json" ;;
  stop) trap 'echo saved >> "$FOLDER/signals"; exit 0' TERM; echo > "$FOLDER/waiting"; while true; do sleep 0.05; done ;;
  preempted) echo PREEMPTED > "$FOLDER/state"; kill -KILL $$ ;;
  deaf) trap "" TERM; echo > "$FOLDER/waiting"; while true; do sleep 0.05; done ;;
  lost) echo PREEMPTED > "$FOLDER/state"; exit 1 ;;
  interrupt) exit 130 ;;
  fail) exit 3 ;;
esac
"""

GCLOUD = r"""#!/usr/bin/env bash
# gcloud compute tpus tpu-vm VERB ...; ssh is this machine, in $FOLDER/home.
verb=$4
echo "$verb" >> "$FOLDER/verbs"
for word; do case $word in --command=*) command=${word#--command=} ;; esac; done
case $verb in
  describe) cat "$FOLDER/state" 2>/dev/null || exit 1 ;;
  start) echo READY > "$FOLDER/state" ;;
  create) rm -rf "$FOLDER/home"; mkdir -p "$FOLDER/home"; echo READY > "$FOLDER/state" ;;
  delete) rm -f "$FOLDER/state" ;;
  scp) [ ! -f "$FOLDER/scp_fails" ] && cp "$5" "$FOLDER/home/" ;;
  ssh) [ -f "$FOLDER/silent" ] && { rm "$FOLDER/silent"; exit 255; }
    [ "$(cat "$FOLDER/state" 2>/dev/null)" = READY ] || exit 255; cd "$FOLDER/home" && exec bash -c "$command" ;;
esac
"""

SRUN = '#!/usr/bin/env bash\nshift\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$FOLDER/scontrol"\n'


@pytest.fixture
def stage(tmp_path):
    """Repository with the launchers and stand-ins."""

    class Stage:
        folder = tmp_path
        repository = tmp_path / "repository"

        def plan(self, *words):
            (self.folder / "plan").write_text("".join(f"{word}\n" for word in words))

        def lines(self, name):
            file = self.folder / name
            return file.read_text().splitlines() if file.exists() else []

        @property
        def env(self):
            return {
                "FOLDER": str(self.folder),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "IGPO_POLL_SECONDS": "0.1",
            }

    def executable(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    shutil.copytree(ROOT / "launch", Stage.repository / "launch")
    (Stage.repository / "launch/venv.sh").write_text("echo $IGPO_EXTRAS >> $FOLDER/installed\n")
    executable(Stage.repository / ".venv/bin/python", TRAIN)
    for name, text in (("gcloud", GCLOUD), ("srun", SRUN), ("scontrol", SCONTROL)):
        executable(tmp_path / "bin" / name, text)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=Stage.repository, check=True)
    return Stage()


def workdir_flags(stage) -> list[str]:
    return ["--config=math.py", f"--workdir={stage.folder / 'run'}"]


def pod(stage, *flags):
    return bash("launch/tpu_vm.sh", *TPU, *flags, "--", *workdir_flags(stage), cwd=stage.repository, **stage.env)


@pytest.mark.slow
def test_a_pod_trains_to_the_end_and_the_same_command_trains_no_second_time(stage):
    stage.plan("complete")
    done = pod(stage)
    assert done.returncode == 0 and "complete" in done.stdout, done.stderr
    assert stage.lines("installed") == ["tpu,report,gcs,data"]
    assert stage.lines("started") == [f"-m igpo_jax.train {' '.join(workdir_flags(stage))}"]
    assert [v for v in stage.lines("verbs") if v in ("create", "delete")] == ["create"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "lost"])
def test_a_babysat_pod_is_made_again_after_it_was_preempted(stage, how):
    stage.plan(how, how, "complete")
    done = pod(stage, "--babysit")
    assert done.returncode == 0 and "complete" in done.stdout, done.stderr
    assert len(stage.lines("started")) == 3
    assert [v for v in stage.lines("verbs") if v in ("create", "delete")] == ["create", "delete"] * 2 + ["create"]


@pytest.mark.slow
def test_without_babysitting_it_says_that_the_same_command_goes_on(stage):
    stage.plan("preempted", "complete")
    done = pod(stage)
    assert done.returncode != 0 and "the same command goes on" in done.stderr
    done = pod(stage)
    assert done.returncode == 0 and "complete" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("flags, starts", [([], 1), (["--babysit"], 3)])
def test_a_training_that_fails_again_and_again_is_given_up(stage, flags, starts):
    stage.plan(*["fail"] * 5)
    done = pod(stage, *flags)
    assert done.returncode != 0 and "the training has ended 3" in done.stderr
    assert len(stage.lines("started")) == starts


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["setup", "copy"])
def test_a_start_that_fails_is_no_success_of_an_earlier_one(stage, broken):
    stage.plan("complete", "complete")
    assert pod(stage).returncode == 0
    if broken == "copy":
        (stage.folder / "scp_fails").touch()
    done = pod(stage, "--babysit", *["--setup=false"] * (broken == "setup"))
    assert done.returncode != 0 and "could not be started, three times in a row" in done.stderr
    assert len(stage.lines("started")) == 1


def test_a_host_that_does_not_answer_once_does_not_lose_its_training(stage):
    stage.plan("stop")
    command = ["bash", "launch/tpu_vm.sh", *TPU, "--babysit", "--", *workdir_flags(stage)]
    first = subprocess.Popen(command, cwd=stage.repository, env=os.environ | stage.env, stdout=subprocess.DEVNULL)
    wait_for(stage.folder / "waiting")
    first.kill()
    first.wait()
    (stage.folder / "silent").touch()
    second = subprocess.Popen(command, cwd=stage.repository, env=os.environ | stage.env, stdout=subprocess.DEVNULL)
    time.sleep(1.5)
    second.kill()
    assert not (stage.folder / "silent").exists() and len(stage.lines("started")) == 1
    end_session(stage)


@pytest.mark.slow
def test_a_stopped_tpu_is_started_and_never_deleted(stage):
    stage.plan("complete", "complete", "complete")
    assert pod(stage).returncode == 0
    (stage.folder / "state").write_text("STOPPED\n")
    assert pod(stage).returncode == 0
    assert "start" in stage.lines("verbs") and "delete" not in stage.lines("verbs")
    (stage.folder / "state").write_text("TERMINATED\n")
    done = pod(stage)
    assert done.returncode != 0 and "delete it, or say --babysit" in done.stderr
    assert "delete" not in stage.lines("verbs")


def end_session(stage, signal_name="KILL") -> None:
    """Signals every process that the host's script started."""
    pid = (stage.folder / "home/igpo_jax/run.pid").read_text().strip()
    pattern = ["-f", "on_tpu.sh --config"] if signal_name == "TERM" else []
    subprocess.run(["pkill", f"-{signal_name}", "-s", pid, *pattern], check=True)


@pytest.mark.slow
def test_a_training_that_runs_is_followed_not_started_twice(stage):
    stage.plan("stop", "complete")
    command = ["bash", "launch/tpu_vm.sh", *TPU, "--", *workdir_flags(stage)]
    first = subprocess.Popen(command, cwd=stage.repository, env=os.environ | stage.env, stdout=subprocess.DEVNULL)
    wait_for(stage.folder / "waiting")
    first.kill()  # simulates a closed laptop
    first.wait()
    second = subprocess.Popen(command, cwd=stage.repository, env=os.environ | stage.env, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    assert len(stage.lines("started")) == 1 and second.poll() is None
    end_session(stage, "TERM")
    assert "the same command goes on" in second.communicate(timeout=LIMIT)[1]
    assert stage.lines("signals") == ["saved"]


def wait_for(file: pathlib.Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < deadline, f"nothing in {file}"
        time.sleep(0.02)


@pytest.mark.parametrize("word, status", [("complete", 0), ("fail", 3), ("stop", 42), ("interrupt", 42)])
def test_a_host_tells_complete_from_failed_from_stopped(stage, word, status):
    stage.plan(word)
    command = ["bash", "launch/on_tpu.sh", *workdir_flags(stage)]
    process = subprocess.Popen(command, cwd=stage.repository, env=os.environ | stage.env)
    if word == "stop":
        wait_for(stage.folder / "waiting")
        process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == status
    assert stage.lines("signals") == ["saved"] * (word == "stop")


@pytest.mark.parametrize("word, status, requeued", [("complete", 0, False), ("fail", 3, False), ("stop", 0, True)])
def test_slurm_queues_again_what_a_signal_has_stopped(stage, word, status, requeued):
    process = submit(stage, word)
    if word == "stop":
        wait_for(stage.folder / "waiting")
        process.send_signal(signal.SIGTERM)  # SLURM signals the batch script, because of --signal=B:
    assert process.wait(LIMIT) == status
    assert stage.lines("scontrol") == ["requeue 7"] * requeued
    assert stage.lines("installed") == ["cuda,report,gcs,data"]
    assert stage.lines("signals") == ["saved"] * requeued


def test_slurm_queues_again_what_does_not_save_in_time(stage):
    process = submit(stage, "deaf", IGPO_SAVE_SECONDS="0.5")
    wait_for(stage.folder / "waiting")
    process.send_signal(signal.SIGTERM)
    wait_for(stage.folder / "scontrol")
    assert stage.lines("scontrol") == ["requeue 7"] and process.poll() is None
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=True)
    assert process.wait(LIMIT) != 0


def submit(stage, word: str, **env: str) -> subprocess.Popen:
    stage.plan(word)
    spooled = shutil.copy(stage.repository / "launch/slurm.sbatch", stage.folder / "slurm_script")  # sbatch copies the script
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(stage.repository)}
    command = ["bash", spooled, "--", *workdir_flags(stage)]
    return subprocess.Popen(command, cwd=stage.folder, env=os.environ | stage.env | job | env)


def test_a_failed_installation_is_tried_again(tmp_path):
    """Uses a Python whose pip fails: an error every time, and no completion marker."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "setup.py").touch()
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\ncase $1 in --version) echo Python 3.12 ;; -c) exit 0 ;;\n"
        '-m) mkdir -p .venv/bin; printf "#!/bin/sh\\nexit 1\\n" > .venv/bin/python; chmod +x .venv/bin/python ;; esac\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        done = bash("launch/test.sh", cwd=tmp_path, PYTHON=str(python))
        assert done.returncode == 1 and "installing igpo_jax[test,report] into .venv has failed" in done.stderr
    assert not (tmp_path / ".venv/installed").exists()


@pytest.mark.slow
def test_tpu_flags_are_known_to_the_tpu_compiler():
    """A flag that a new libtpu dropped would end a run at its start."""
    pytest.importorskip("libtpu")
    text = (ROOT / "launch/on_tpu.sh").read_text()
    (flags,) = (line.partition('"')[2].rstrip('"') for line in text.splitlines() if line.startswith("flags="))
    code = "from igpo_jax.plan.devices import topology_devices; print(len(topology_devices('v5e:2x2', 1)))"
    for extra, expected in (("", 0), (" --xla_tpu_no_such_flag=1", 1)):
        env = os.environ | {"LIBTPU_INIT_ARGS": flags + extra, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=LIMIT)
        assert (done.returncode == 0) == (expected == 0), done.stderr
