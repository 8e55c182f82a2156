"""How a comparison trains its runs: arms, seeds, folders, interruptions."""

import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import time

import pytest

import commands
from igpo_jax.compare.arms import (
    ARMS,
    CLAIMS,
    SUPERVISED,
    check_arms,
    create_run_folder,
    last_error,
    overrides_of,
    own_settings,
    parse_arms,
    parse_seeds,
    require_different_stages,
    require_own_logs,
    time_left,
)
from igpo_jax.config import fingerprint, to_json


@pytest.mark.slow
def test_a_comparison_on_two_tasks(tmp_path):
    tiny = pathlib.Path(__file__).parents[1] / "end_to_end" / "tiny.py"
    for name in ("one.py", "two.py"):
        shutil.copy(tiny, tmp_path / name)
    sizes = {"sft.updates": 4, "rl.iterations": 1, "rl.eval_every": 1, "evaluation.problems": 8}
    flags = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = ["compare", f"--config={tmp_path / 'one.py'}", f"--tasks={tmp_path / 'two.py'}", "--arms=grpo,igpo", "--seeds=0"]
    done = commands.run(*command, f"--output={tmp_path / 'both'}", *flags, env=os.environ | {"XLA_FLAGS": commands.QUICK})
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "both" / name / "comparison.html").is_file() for name in ("one", "two"))
    assert f"| grpo: {ARMS['grpo'].title} | two |" in done.stdout and (tmp_path / "both" / "tasks.html").is_file()


@pytest.mark.parametrize("place", ["seed-0/grpo.log", "seed-0/supervised/checkpoints/sft/more"])
def test_links_that_lead_out_of_a_comparison_are_refused(place, tmp_path):
    """Logs are written through links, and the checkpoints of the supervised stage are copied."""
    private = tmp_path / "private"
    private.mkdir()
    path = tmp_path / "comparison" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(private)
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    done = commands.run("compare", f"--config={config}", "--arms=grpo", "--seeds=0", f"--output={tmp_path / 'comparison'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"error: {path} leads to {private}, outside of {tmp_path / 'comparison'}; remove the link" in done.stderr
    assert list(private.iterdir()) == []


def test_a_log_of_no_run_is_named(tmp_path):
    log = tmp_path / "seed-1" / "grpo-1.log"
    log.parent.mkdir()
    log.write_text("mine")
    message = f"^{log} is of no run, and a run would append to it; move it away, or give another --output$"
    with pytest.raises(ValueError, match=message):
        require_own_logs(tmp_path, [(1, "grpo", 0), (1, "grpo", 1)])
    log.with_suffix(".json").write_text("{}")  # of a run whose folder was deleted, so that it begins again
    require_own_logs(tmp_path, [(1, "grpo", 1)])


@pytest.mark.slow
def test_with_a_log_of_no_run_nothing_is_written(tmp_path):
    log = tmp_path / "seed-1" / "grpo-1.log"
    log.parent.mkdir()
    log.write_text("mine")
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    done = commands.run("compare", f"--config={config}", "--arms=grpo", "--seeds=0,1", "--rl_seeds=2", f"--output={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "") and f"error: {log} is of no run" in done.stderr
    assert log.read_text() == "mine" and sorted(tmp_path.rglob("*")) == [log.parent, log]


def test_a_link_to_its_own_folder_is_not_copied(tmp_path):
    (tmp_path / "supervised" / "checkpoints" / "sft").mkdir(parents=True)
    link = tmp_path / "supervised" / "checkpoints" / "sft" / "link"
    link.symlink_to(".")
    with pytest.raises(ValueError, match=f"{link} is a link to a folder; put the folder in its place"):
        create_run_folder(tmp_path / "grpo")
    assert not list((tmp_path / "grpo.new").rglob("link"))


@pytest.mark.parametrize("place, kind", [
    ("checkpoints", "to a folder"), ("checkpoints/sft", "to a folder"), ("checkpoints/sft/4/array", "that leads out of"),
    ("tokenizer.model", "that leads out of"),
])  # fmt: skip
def test_a_supervised_stage_outside_of_its_folder_is_not_copied(place, kind, tmp_path):
    link, private = tmp_path / "supervised" / place, tmp_path / "private"
    link.parent.mkdir(parents=True)
    if kind == "to a folder":
        (private / "sft").mkdir(parents=True)
    else:
        private.write_text("private")
    link.symlink_to(private)
    with pytest.raises(ValueError, match=f"{link} is a link {kind}"):
        create_run_folder(tmp_path / "grpo")
    assert not (tmp_path / "grpo").exists()


def test_a_finished_run_of_another_seed_is_refused(tmp_path):
    result = tmp_path / "seed-0" / "supervised" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"seed": 77}))
    config = pathlib.Path(__file__).parents[2] / "configs" / "arithmetic.py"
    command = ["compare", f"--config={config}", "--arms=grpo", "--seeds=0", f"--output={tmp_path}"]
    done = commands.run(*command)
    nothing = "is of no arm supervised, because there is no supervised.json; give another --output"
    assert done.returncode == 1 and f"error: {result.parent} {nothing}" in done.stderr, done.stderr
    result.parent.with_suffix(".json").write_text('{"rl.iterations": 0}')
    done = commands.run(*command)
    assert done.returncode == 1
    assert f"error: {result} is of the seed 77; move the folder to seed-77, or remove it" in done.stderr, done.stderr


@pytest.mark.parametrize("text, seeds", [("0..4", [0, 1, 2, 3, 4]), ("2", [2]), ("0,3,7", [0, 3, 7])])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "4..1", "a", "0..x", "1,1", "-1..1", "0,1..3"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="--seeds=.* is neither FIRST..LAST nor a list of different numbers"):
        parse_seeds(text)


@pytest.mark.parametrize("text", [f"0..{10**12}", f"0..{10**30}", "0..1000", "4294967296", "4294967290..4294967296"])
def test_too_many_and_too_large_seeds_are_refused_before_there_is_a_list_of_them(text):
    assert len(parse_seeds("5..1004")) == 1000
    with pytest.raises(ValueError, match=f"^--seeds={re.escape(text)}: 1000 seeds up to 4294967295 are possible$"):
        parse_seeds(text)


def test_a_quick_trial_has_few_iterations_but_those_of_the_command_line():
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    config.sft.updates, config.rl.iterations = 20_000, 100
    assert own_settings(config, [], True, False) == {"sft.updates": 1500, "rl.iterations": 10}
    given = ["--config.rl.iterations=100", "--config.rl.iterations_=3"]
    assert own_settings(config, given, True, False) == {"sft.updates": 1500}
    config.rl.iterations, given = 3, ["--config.sft.updates=20000"]
    assert own_settings(config, given, True, False) == {"rl.iterations": 3}
    assert own_settings(config, given, False, True) == {"sft.updates": 0, "sft.epochs": 0}


@pytest.mark.slow
def test_the_finished_runs_of_a_quick_trial_are_not_those_of_other_arms(tmp_path):
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    command = ["compare", "--config=arithmetic.py", "--arms=grpo", "--seeds=0", "--quick", f"--output={tmp_path}"]
    for name, own in (("supervised", {"rl.iterations": 0}), ("grpo", overrides_of("grpo", config))):
        run = config.copy_and_resolve_references()
        run.update_from_flattened_dict(own_settings(config, [], True, False) | own)
        folder = tmp_path / "seed-0" / name
        folder.mkdir(parents=True)
        folder.with_suffix(".json").write_text(json.dumps(own))
        (folder / "config.json").write_text(json.dumps(to_json(run)))
        (folder / "result.json").write_text(json.dumps({"seed": 0, "fingerprint": fingerprint(run)}))
    done = commands.run(*command)
    assert done.returncode == 1 and "grpo/result.json has no versions" in done.stderr  # only the numbers are missing
    done = commands.run(*command[:-2], f"--output={tmp_path}")
    assert done.returncode == 1 and "another comparison" in done.stderr


def test_arms():
    assert parse_arms("all") == list(ARMS) and parse_arms("igpo,grpo") == ["igpo", "grpo"]
    for names, message in (("igpo,ppo", "no arm 'ppo'; there are: grpo"), ("", "names no arm"), ("igpo,igpo", "one twice")):
        with pytest.raises(ValueError, match=message):
            parse_arms(names)
    assert all({claim.better, *claim.worse} <= set(ARMS) for claim in CLAIMS)


def test_every_arm_can_be_trained_with_the_configuration_of_the_readme():
    config = runpy.run_path("configs/arithmetic.py")["get_config"]()
    check_arms(config, list(ARMS), [])
    config.inpainting.chunk_min = 0
    with pytest.raises(ValueError, match="arm igpo: .*chunk_min"):
        check_arms(config, ["igpo"], [])
    with pytest.raises(ValueError, match="--config.seed"):
        check_arms(config, ["igpo"], ["--config.seed=3"])
    config.rl.seed = 3
    with pytest.raises(ValueError, match=r"rl\.seed=3 conflicts with --rl_seeds, which counts from 0"):
        check_arms(config, ["igpo"], [])


@pytest.mark.slow
def test_a_comparison_can_be_stopped_and_goes_on(tmp_path):
    """Names a failed run, keeps finished runs, and shares the supervised stage among all arms."""
    sizes = {"sft.updates": 4, "rl.iterations": 2, "evaluation.problems": 4, "evaluation.batch_size": 4, "rl.eval_every": 1}
    sizes |= {"task.sft_problems": 200, "task.rl_problems": 40, "task.test_problems": 4, "sft.batch_size": 8, "rl.prompts": 2}
    sizes |= {"model.width": 16, "model.layers": 1, "model.mlp_width": 16, "rl.group_size": 4, "rl.checkpoint_every": 1}
    sizes |= {"sampler.steps": 6, "evaluation.steps": 6}
    flags = [f"--config.{key}={value}" for key, value in sizes.items()]
    command = [
        "compare",
        "--config=arithmetic.py",
        "--arms=grpo,igpo",
        "--seeds=0",
        "--rl_seeds=2",
        f"--output={tmp_path}",
        *flags,
    ]
    runs, one_device = tmp_path / "seed-0", os.environ | {"XLA_FLAGS": commands.QUICK}
    begun = commands.start(*command, stdout=tmp_path / "begun.log", env=one_device)
    while begun.poll() is None and not (runs / "supervised" / "config.json").is_file():
        time.sleep(0.2)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(timeout=120) == 143 and "run the same command to resume" in (tmp_path / "begun.log").read_text()
    (runs / "igpo").mkdir()
    (runs / "igpo" / "config.json").write_text("{}")  # belongs to another run
    (runs / "igpo.json").write_text("{}")
    done = commands.run(*command, env=one_device)
    assert done.returncode == 1
    assert re.search(r"0/igpo has stopped \(exit code 1\): .*0/igpo/config.json .*; see .*/igpo.log; run the same", done.stderr)
    kept = (runs / "grpo" / "result.json").stat().st_mtime_ns
    shutil.rmtree(runs / "igpo")
    done = commands.run(*command, env=one_device)
    assert done.returncode == 0, done.stderr
    assert (runs / "grpo" / "result.json").stat().st_mtime_ns == kept
    logs = [(runs / arm / "metrics.jsonl").read_text() for arm in ("supervised", "grpo", "igpo")]
    losses = [[line for line in log.splitlines() if "sft/loss" in line] for log in logs]
    assert losses[0] == losses[1] == losses[2] and losses[0]
    repeated = (runs / "igpo-1" / "metrics.jsonl").read_text()
    assert [line for line in repeated.splitlines() if "sft/loss" in line] == losses[0] and repeated != logs[2]
    assert "Hints help" in done.stdout and "from the same stage" in done.stdout and (tmp_path / "comparison.html").is_file()
    for old, new in (("grpo", "kept"), ("igpo", "grpo"), ("kept", "igpo")):
        (runs / old).rename(runs / new)
    swapped = commands.run(*command, env=one_device)
    assert swapped.returncode == 1 and "holds a run of another arm (differing keys: inpainting.enabled)" in swapped.stderr
    other = commands.run(*command, "--config.rl.iterations=3", env=one_device)
    assert other.returncode == 1 and "another comparison" in other.stderr
    # The same arms, from the exported result of the supervised stage
    again = tmp_path / "again"
    target = f"--target={tmp_path / 'stages' / 'seed-0'}"
    done = commands.run("convert", f"--source={runs / 'supervised'}", target, "--format=huggingface", env=one_device)
    assert done.returncode == 0, done.stderr
    from_stage = [part for part in command if not part.startswith(("--output", "--config.model."))]
    from_stage += [f"--stages={tmp_path / 'stages'}", f"--output={again}", "--quick", "--rl_seeds=1"]
    for report in ("0 finished", "2 finished"):
        done = commands.run(*from_stage, env=one_device)
        assert done.returncode == 0 and f"again: 2 runs of arms, {report}" in done.stderr, done.stderr
    first = [(folder / "evaluations.jsonl").read_text().splitlines()[0] for folder in (runs / "igpo", *again.glob("seed-0/*/"))]
    assert len(first) == 3 and len({str(json.loads(line)["correct"]) for line in first}) == 1


def test_two_stages_that_are_the_same_model_are_refused(tmp_path):
    for seed, content in ((0, b"a"), (1, b"b"), (2, b"a")):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "model.safetensors").write_bytes(content)
    require_different_stages(str(tmp_path), [0, 1])
    with pytest.raises(ValueError, match="seed-2 is the same model as .*seed-0; give each seed a stage of its own"):
        require_different_stages(str(tmp_path), [1, 0, 2])
    with pytest.raises(ValueError, match="--stages: there is no folder '.*seed-3'"):
        require_different_stages(str(tmp_path), [3])


@pytest.mark.parametrize("added, reason", [
    (b"error: no\nRL:  50%|##\rRL: 100%|##\r\nerror: runs/a is being written\nat the end\n", "runs/a is being written"),
    (b"stopped by a termination signal\n\n", "stopped by a termination signal"),
    (b"half a \xc3", "half a \ufffd"), (b"", "it wrote nothing"), (b"error: " + b"x" * 9999, "x" * 500),
])  # fmt: skip
def test_the_reason_why_a_run_has_stopped_is_in_the_part_of_the_log_that_it_wrote(added, reason, tmp_path):
    earlier = b"error: of an earlier command\n"
    (tmp_path / "a.log").write_bytes(earlier + added)
    assert last_error(tmp_path / "a.log", len(earlier)) == reason
    with (tmp_path / "a.log").open("ab") as log:
        log.truncate(1 << 34)  # a hole, as if the run had written 16 GiB
        log.write(b"\nerror: at last\n")
    assert last_error(tmp_path / "a.log", len(earlier)) == "at last"


def test_the_time_that_is_left_is_that_of_the_runs_of_each_kind():
    runs = [(0, SUPERVISED, 0), (1, SUPERVISED, 0), (0, "grpo", 0), (1, "grpo", 0), (0, "igpo", 0), (1, "igpo", 0)]
    assert time_left(runs, {}, 1) == ""
    assert time_left(runs, {runs[0]: 90.0}, 1) == "; about 2 min left, and 4 runs whose time is not known yet"
    assert time_left(runs, {runs[0]: 90.0, runs[1]: 30.0, runs[2]: 8.0, runs[4]: 12.0}, 2) == "; about 10 s left"
    assert time_left(runs, {runs[0]: 90.0, runs[1]: None, runs[2]: 3600.0}, 8) == "; about 1 h 00 min left"
    assert time_left(runs, dict.fromkeys(runs, 1.0), 2) == ""
