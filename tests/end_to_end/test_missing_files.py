"""A run from whose folder something was deleted is refused before anything is cut, or continues as if nothing had happened."""

import json
import logging
import pathlib
import shutil
from collections.abc import Callable

import pytest

from damaged_runs import change_lines, refusal, remove, resume
from igpo_jax import config as configuration
from igpo_jax.compare.arms import ARMS, overrides_of
from igpo_jax.compare.numbers import read_run_numbers
from igpo_jax.report.page import write_report
from igpo_jax.run import checkpoint_integrity as integrity
from igpo_jax.run.experiment import open_experiment
from igpo_jax.run.metrics import LOGS, read_rows
from igpo_jax.run.missing_files import check_finished_logs, check_links, check_logs
from igpo_jax.run.restore import restore_run
from igpo_jax.run.results import write_result
from igpo_jax.stages import rl
from run_configs import contents, tiny
from run_log import untimed
from same_run import corrupt

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def half_of_the_supervised_stage(run: pathlib.Path) -> None:
    """Leaves what a run has that was killed after update 180 of 200."""
    remove("checkpoints/rl", "checkpoints/sft/200", "result.json", "rollouts.jsonl")(run)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= 180))


def after(*steps: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    def changing(run: pathlib.Path) -> None:
        for step in steps:
            step(run)

    return changing


def begun_after(folder: str) -> list[str]:
    return [f"{folder} has no checkpoint of the end of the supervised stage (update 200), from which the RL stage in "]


HALF = half_of_the_supervised_stage
NONE = "has no checkpoints, but"
CASES = {
    "checkpoints of the supervised stage": (remove("checkpoints/sft"), begun_after("checkpoints/sft")),
    "last checkpoint of the supervised stage": (remove("checkpoints/sft/200"), begun_after("checkpoints/sft")),
    "checkpoints of the RL stage": (remove("checkpoints/rl"), ["rl", NONE, "go on to update 212", "--accept_loss"]),
    "all checkpoints": (remove("checkpoints"), ["checkpoints/sft", NONE, "go on to update 212"]),
    "RL stage and its metrics": (remove("checkpoints/rl", "metrics.jsonl"), [NONE, "go on to update 212"]),
    "RL checkpoints without a result": (remove("checkpoints/rl", "result.json"), [NONE, "go on to update 212"]),
    "checkpoints of half a supervised stage": (after(HALF, remove("checkpoints/sft")), [NONE, "go on to update 180"]),
    "metrics of half a supervised stage": (after(HALF, remove("metrics.jsonl")), ["metrics.jsonl is missing", "sft/180"]),
    "last RL checkpoint": (
        remove("checkpoints/rl/6"),
        ["finished with update 212 (result.json), but", "rl/5, is of update 210"],
    ),
    "metrics": (remove("metrics.jsonl"), ["metrics.jsonl is missing", "checkpoints/rl/6", "--accept_loss"]),
    "rollouts": (remove("rollouts.jsonl"), ["rollouts.jsonl is missing", "checkpoints/rl/6"]),
    "evaluations": (remove("evaluations.jsonl"), ["evaluations.jsonl is missing", "checkpoints/rl/6"]),
    "tokenizer": (remove("tokenizer.model"), ["tokenizer.model, with which the run began, is missing"]),
    "tokenizer and configuration": (remove("tokenizer.model", "config.json"), ["tokenizer.model, with which", "is missing"]),
}
CHANGES = {
    "first": lambda lines: lines[1:],
    "middle": lambda lines: lines[:2] + lines[3:],
    "last": lambda lines: lines[:-1],
    "all": lambda lines: [],
    "swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_deleted_is_named_and_nothing_is_cut(case, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    delete, words = CASES[case]
    delete(run)
    message = refusal(run)
    assert all(word in message for word in [str(run), "restore it from a copy, or start over in another --workdir", *words])


@pytest.mark.parametrize("log", LOGS)
def test_lines_that_were_deleted_are_noticed(log, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for change in CHANGES.values():
        change_lines(log, change)(run)
        with pytest.raises(
            ValueError, match=f"{run / log} has lost or changed lines since {run / 'checkpoints/rl/6'} was saved; "
        ):
            check_logs(run, run / "checkpoints/rl/6", 212, ("sft", "rl"))
        shutil.copy(finished / log, run)
    change_lines(log, CHANGES["middle"])(run)
    refusal(run)


@pytest.mark.parametrize("files", [[], ["config.json"], ["data.json"], ["config.json", "data.json"], ["result.json"]], ids=str)
def test_files_that_the_rest_of_the_folder_replaces(files, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = contents(run)
    remove(*files)(run)
    resume(run)
    kept = {name: content for name, content in before.items() if name.startswith(("checkpoints", *LOGS, "config", "data"))}
    assert kept.items() <= contents(run).items()


@pytest.mark.parametrize(
    "changes, files, words",
    [
        ({"rl__optimizer__learning_rate": 2e-3}, ["config.json"], "checkpoints/rl/6 was saved with another configuration"),
        ({"rl__optimizer__learning_rate": 2e-3}, ["checkpoints/rl", "config.json"], NONE),
        ({"sft__optimizer__learning_rate": 1e-3}, ["config.json"], "checkpoints/sft/200 was saved with another configuration"),
        ({"sft__optimizer__learning_rate": 1e-3}, ["checkpoints/rl", "config.json"], "sft/200 was saved with another config"),
        ({"task__slots": 3}, ["config.json"], "the run began with other problems in the split sft, rl, test (data.json)"),
        ({"task__slots": 3}, ["config.json", "data.json"], "checkpoints/sft/200 was saved with another configuration"),
    ],
)
def test_without_its_files_a_run_keeps_its_configuration_and_data(changes, files, words, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    remove(*files)(run)
    assert words in refusal(run, **changes)
    assert not (run / "config.json").exists()


def test_a_changed_configuration_file_is_noticed(finished, tmp_path, caplog, mesh):
    run = shutil.copytree(finished, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    values["rl"]["optimizer"]["learning_rate"] = 2e-3
    (run / "config.json").write_text(json.dumps(values))
    message = refusal(run, rl__optimizer__learning_rate=2e-3)
    assert f"{run / 'checkpoints/rl/6'} was saved with another configuration" in message
    with caplog.at_level(logging.WARNING):
        assert restore_run(run, mesh).step == 6  # readers go on: paths in the file may have been adapted
    assert "checkpoints/rl/6 was saved with another configuration" in caplog.text


def test_every_restore_compares_the_configuration(finished, tmp_path):
    experiment = open_experiment(tiny(), finished)
    for stage, name in (("sft", "sft_fingerprint"), ("rl", "fingerprint")):
        about = integrity.read_metadata(max((finished / "checkpoints" / stage).iterdir(), key=lambda path: int(path.name)))
        assert integrity.other_identity(stage, about, experiment.identity(stage)) == ""
        assert "another configuration" in integrity.other_identity(stage, about, experiment.identity(stage) | {name: "0"})
        assert "split test;" in integrity.other_identity(stage, about, {"data": experiment.data | {"test": "0"}})


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("log", LOGS)
def test_lines_that_a_finished_run_has_lost_are_noticed_by_its_readers(log, summed, finished, tmp_path):
    """Without sums in result.json, as in earlier versions, the newest checkpoint has them."""
    run = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    assert result["logs"] == integrity.read_metadata(run / "checkpoints/rl/6")["logs"]
    if not summed:
        del result["logs"]
        (run / "result.json").write_text(json.dumps(result))
    page = write_report(run).read_bytes()
    assert read_run_numbers(run).rollouts
    for delete, words in (change_lines(log, CHANGES["middle"]), "has lost or changed lines since"), (remove(log), "is missing"):
        delete(run)
        for read in (write_report, read_run_numbers):
            with pytest.raises(ValueError, match=f"{run / log} {words}.* the run finished; restore it from a copy, or train"):
                read(run)
        assert (run / "report.html").read_bytes() == page
        shutil.copy(finished / log, run)


def test_the_sums_of_a_finished_run_have_a_form(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for sums in ([], {"metrics.jsonl": 1}, {"metrics.jsonl": [1]}, {"../x": [1, 1]}):
        (run / "result.json").write_text(json.dumps({"logs": sums}))
        with pytest.raises(ValueError, match=r"result.json: logs=.* are no checksums of logs; restore it from a copy$"):
            check_finished_logs(run)


def test_a_loss_can_be_accepted(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    change_lines("metrics.jsonl", lambda lines: lines[1:])(run)
    resume(run, accept_loss=True)
    assert len(read_rows(run / "metrics.jsonl")) == len(read_rows(finished / "metrics.jsonl")) - 1
    remove("checkpoints/sft")(run)
    with pytest.raises(ValueError, match="has no checkpoint of the end of the supervised stage"):
        resume(run, accept_loss=True)


def test_the_name_of_a_checkpoint_with_a_leading_zero_is_no_step(finished, tmp_path, caplog, mesh):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints/rl/6").rename(run / "checkpoints/rl/06")
    assert integrity.steps_in(run / "checkpoints/rl")[-1] == 5
    assert refusal(run) == f"{run / 'checkpoints/rl/06'}: 06 is not the step of a checkpoint; move it away"
    renamed = (
        f"checkpoint {run / 'checkpoints/rl/06'} cannot be read: 06 is not the step of a checkpoint; rename it to its step"
    )
    assert restore_run(run, mesh).step == 5 and renamed in caplog.text
    for step in integrity.steps_in(run / "checkpoints/rl"):
        remove(f"checkpoints/rl/{step}")(run)
    caplog.clear()
    assert restore_run(run, mesh, "sft").stage == "sft" and not caplog.text
    assert restore_run(run, mesh).stage == "sft" and renamed in caplog.text


@pytest.mark.parametrize("lost, stage, step, updates", [("rl/6", "rl", 5, 210), ("rl", "sft", 200, 200)])
def test_an_older_model_of_a_finished_run_is_loaded_with_a_warning(
    lost, stage, step, updates, finished, tmp_path, caplog, mesh
):
    run = shutil.copytree(finished, tmp_path / "run")
    assert restore_run(run, mesh).step == 6 and not caplog.text
    remove(f"checkpoints/{lost}")(run)
    newest = run / "checkpoints" / stage / str(step)
    for given in (None, *["rl"] * (stage == "rl")):
        caplog.clear()
        assert restore_run(run, mesh, given).step == step
        told = f"the run finished with update 212 (result.json), but its newest checkpoint, {newest}, is of update {updates}"
        assert [record.getMessage() for record in caplog.records] == [f"{told}; restore the missing one from a copy"]
    caplog.clear()
    for given in ("sft", f"{stage}-{step}"):
        restore_run(run, mesh, given)
    remove("result.json")(run)
    restore_run(run, mesh)
    assert not caplog.text


@pytest.mark.parametrize("has_supervised", [True, False])
def test_the_end_of_a_run_with_epochs_is_known_from_its_supervised_checkpoints(
    has_supervised, finished, tmp_path, caplog, mesh
):
    run = shutil.copytree(finished, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    values["sft"] |= {"updates": 0, "epochs": 3}
    (run / "config.json").write_text(json.dumps(values))
    restore_run(run, mesh)
    assert "finished with update" not in caplog.text
    remove("checkpoints/rl/6", *["checkpoints/sft"] * (not has_supervised))(run)
    restore_run(run, mesh)
    assert ("finished with update 212" in caplog.text) is has_supervised


@pytest.mark.slow
def test_a_finished_run_that_trains_further_is_unfinished_and_its_last_checkpoint_may_be_unreadable(
    finished, tmp_path, monkeypatch
):
    def killed(*_):
        raise InterruptedError

    monkeypatch.setattr(rl, "run_iteration", killed)
    for name, accept_loss in (("lost", True), ("unreadable", False)):
        run = shutil.copytree(finished, tmp_path / name)
        if accept_loss:
            remove("checkpoints/rl/6")(run)
        else:
            corrupt(run / "checkpoints/rl/6")
        for accepted in (accept_loss, False):  # it continues without --accept_loss
            with pytest.raises(InterruptedError):
                resume(run, accepted)
            assert not (run / "result.json").exists()
            write_report(run)


@pytest.mark.slow
def test_an_accepted_loss_of_the_rl_stage_repeats_it(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    remove("checkpoints/rl")(run)
    resume(run, accept_loss=True)
    assert [row["step"] for row in read_rows(run / "rollouts.jsonl")] == [
        row["step"] for row in read_rows(finished / "rollouts.jsonl")
    ]
    change_lines("metrics.jsonl", lambda lines: lines[:-1])(run)
    assert "metrics.jsonl has lost or changed lines since" in refusal(run)


@pytest.mark.slow
def test_a_run_that_is_killed_twice_before_its_second_rl_checkpoint_continues(finished, tmp_path, monkeypatch):
    """The first RL checkpoint vouches for the evaluation before it, which a run that continues there must not cut."""
    run = shutil.copytree(finished, tmp_path / "run")
    remove("checkpoints/rl", "result.json", "rollouts.jsonl")(run)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        change_lines(name, lambda lines: [line for line in lines if json.loads(line)["stage"] == "sft"])(run)

    def killed(*_):
        raise InterruptedError

    monkeypatch.setattr(rl, "run_iteration", killed)
    for _ in range(3):
        with pytest.raises(InterruptedError):
            resume(run)
        assert integrity.steps_in(run / "checkpoints/rl") == [0]
        check_logs(run, run / "checkpoints/rl/0", 200, ("sft", "rl"))
        monkeypatch.setattr(rl.Stage, "evaluate", killed)  # is not repeated


@pytest.mark.slow
@pytest.mark.parametrize("log", ["metrics.jsonl", "evaluations.jsonl"])
def test_an_evaluation_after_the_last_checkpoint_is_made_again(log, finished, tmp_path):
    """The supervised stage saves before it evaluates."""
    run = shutil.copytree(finished, tmp_path / "run")
    remove("checkpoints/rl", "result.json", "rollouts.jsonl", "config.json", "data.json")(run)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        change_lines(name, lambda lines: [line for line in lines if json.loads(line)["stage"] == "sft"])(run)
    before = [read_rows(run / name) for name in ("metrics.jsonl", "evaluations.jsonl")]
    change_lines(log, lambda lines: lines[:-1])(run)
    resume(run, rl__iterations=0)
    metrics, verdicts = (read_rows(run / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    assert [(row["step"], row.keys()) for row in metrics] == [(row["step"], row.keys()) for row in before[0]]
    assert [row["step"] for row in verdicts] == [row["step"] for row in before[1]] == [0, 100, 200]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_continues(finished, tmp_path):
    """Its checkpoints have no sums of logs, and no fingerprint of the supervised stage."""
    run = shutil.copytree(finished, tmp_path / "run")
    for file in run.glob(f"checkpoints/*/*/{integrity.METADATA}"):
        values = json.loads(file.read_text())
        about = {name: value for name, value in values["custom_metadata"].items() if name not in ("logs", "sft_fingerprint")}
        values["custom_metadata"] = about | {"crc32": integrity.metadata_crc(about)}
        file.write_text(json.dumps(values))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({name: value for name, value in result.items() if name != "logs"}))
    change_lines("metrics.jsonl", lambda lines: lines[1:])(run)
    resume(run)
    remove("config.json")(run)
    assert "another configuration" in refusal(run, rl__optimizer__learning_rate=2e-3)


def test_arms_of_a_comparison_share_the_identity_of_the_supervised_stage():
    config = tiny()
    fingerprints = {configuration.fingerprint(tiny(rl__iterations=0), "sft")}
    for arm in ARMS:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(overrides_of(arm, config))
        fingerprints.add(configuration.fingerprint(changed, "sft"))
    assert fingerprints == {configuration.fingerprint(config, "sft")}
    assert configuration.fingerprint(tiny(sft__updates=100), "sft") not in fingerprints


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/rl", "tensorboard"])
def test_a_run_is_not_written_through_a_link_out_of_its_folder(place, finished, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(finished, run)
    if (run / place).exists():
        shutil.move(run / place, elsewhere)
    else:
        elsewhere.mkdir()
    (run / place).symlink_to(elsewhere)
    assert f"{place} leads to {elsewhere}, outside of the run" in refusal(run)


@pytest.mark.parametrize("accept_loss", [False, True])
@pytest.mark.parametrize("name", ["report.html", "result.json", *LOGS])
def test_a_foreign_file_is_not_replaced(name, accept_loss, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path / name} is of no run, and a run would replace it; give another --work"):
        open_experiment(tiny(), tmp_path, accept_loss)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_run_that_was_killed_while_it_was_opened_continues(tmp_path):
    open_experiment(tiny(), tmp_path)
    remove("config.json")(tmp_path)
    (tmp_path / "config.json.partial").write_text("{")
    open_experiment(tiny(), tmp_path)
    remove("config.json", "data.json")(tmp_path)
    open_experiment(tiny(), tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_an_accepted_loss_of_configuration_and_checkpoints_starts_the_run_again(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    remove("config.json", "checkpoints")(run)
    refusal(run)
    open_experiment(tiny(), run, accept_loss=True)
    assert (run / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("logged", [True, False])
def test_a_run_that_ended_before_its_checkpoint_had_an_accuracy_adds_it_without_saving_again(logged, finished, tmp_path):
    """A signal during an evaluation saves a checkpoint without an accuracy. The next command may be killed at any moment."""
    run = shutil.copytree(finished, tmp_path / "run")
    newest = run / "checkpoints/rl/6"
    accuracy, other = (newest / "metrics/metrics").read_bytes(), contents(newest)
    remove("checkpoints/rl/6/metrics")(run)
    if not logged:
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            change_lines(name, lambda lines: lines[:-1])(run)
    inode = newest.stat().st_ino
    resume(run, accept_loss=not logged)
    assert newest.stat().st_ino == inode and (newest / "metrics/metrics").read_bytes() == accuracy
    assert contents(newest).items() <= other.items() and untimed(run) == untimed(finished)


def test_events_are_not_written_through_a_link_out_of_the_run(tmp_path):
    """A stranger who knows the name of the host can guess the name of the next file of TensorBoard."""
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    link = tmp_path / "run" / "tensorboard" / "events.out.tfevents.1.host"
    link.symlink_to(tmp_path / "own")
    with pytest.raises(ValueError, match=f"{link} leads to {tmp_path / 'own'}, outside of the run"):
        check_links(tmp_path / "run")


@pytest.mark.parametrize("row", [
    {"eval/accuracy": None}, {"time/total": None}, {"update/consecutive_skips": float("inf")},
], ids=str)  # fmt: skip
def test_a_foreign_line_at_the_end_of_the_log_is_one_error(row, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    *rows, last = read_rows(run / "metrics.jsonl")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*rows, last | row)))
    with pytest.raises(ValueError, match="metrics.jsonl cannot be read: "):
        resume(run, accept_loss=True)  # without accept_loss, the checksum of the log does not match
        write_result(open_experiment(tiny(), run))


@pytest.mark.parametrize("name", LOGS)
def test_a_log_behind_a_link_is_not_copied_into_the_run(name, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.move(run / name, tmp_path / "private")
    (run / name).symlink_to(tmp_path / "private")
    assert f"{name} leads to {tmp_path / 'private'}, outside of the run" in refusal(run)


def test_a_stage_does_not_continue_past_its_end(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    [*_, last] = integrity.steps_in(run / "checkpoints/rl")
    shutil.copytree(run / f"checkpoints/rl/{last}", run / "checkpoints/rl/99")
    resume(run)  # the copy is moved away
    assert integrity.steps_in(run / "checkpoints/rl")[-1] == last
    assert (run / "checkpoints/rl-unreadable/99").is_dir()
