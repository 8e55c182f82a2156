"""Run folders of version 0.1.0, whose keys had other names (runtime/files.RENAMED), are read with the current names."""

import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from igpo_jax import config as configuration
from igpo_jax.run.experiment import open_experiment, read_run_config
from igpo_jax.run.metrics import MetricsWriter, last_logged, read_rows
from igpo_jax.runtime.files import RENAMED, renamed
from run_configs import tiny

OLD_CONFIG = pathlib.Path(__file__).with_name("config_0.1.0.json")  # config.json of configs/math.py:ref
OLD_FINGERPRINT = "616a442f128061c9"  # from version 0.1.0; adding a key changes it


def old_names(value):
    return renamed(value, {new: old for old, new in RENAMED.items()})


def test_an_old_configuration_is_read_with_current_names_and_keeps_its_fingerprint(tmp_path):
    shutil.copy(OLD_CONFIG, tmp_path / "config.json")
    text = OLD_CONFIG.read_text()
    assert all(f'"{name}"' in text for name in ("released", "rollout_slices"))
    values = read_run_config(tmp_path)
    config = configuration.parse(values)
    assert config.objective.reference_code is True and config.task.reference_code is True and config.rl.rollout_chunks == 8
    assert configuration.fingerprint(values) == OLD_FINGERPRINT
    assert configuration.fingerprint(ConfigDict(renamed(json.loads(text)))) == OLD_FINGERPRINT  # for reports, without its task
    written = old_names(configuration.to_json(values))
    assert written["reward"].pop("max_ungraded") == 0.2 and written["model"].pop("base_dtype") == ""  # keys of later versions
    assert written["sampler"].pop("layout") == "auto" and written["inpainting"].pop("tries") == 0
    assert [written["inpainting"].pop(f"{kind}_noise") for kind in ("number", "operator", "filler")] == [0.0, 0.0, 0.0]
    assert written["rl"].pop("seed") == written["rl"].pop("keep_every") == written["sft"].pop("epochs") == 0
    written |= {name: configuration.without_new_keys(written[name]) for name in ("sampler", "evaluation")}
    assert written == json.loads(text)


def test_a_run_of_the_old_version_continues(tmp_path):
    first = open_experiment(tiny(), tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = old_names(json.loads(file.read_text()))
    assert "released" in values["objective"] and "rollout_slices" in values["rl"]
    file.write_text(json.dumps(values))
    assert open_experiment(tiny(), tmp_path / "run").fingerprint == first.fingerprint
    with pytest.raises(ValueError, match=r"differing keys: objective\.reference_code\)"):
        open_experiment(tiny(objective__reference_code=True), tmp_path / "run")


def test_rows_of_old_logs_have_current_names(tmp_path):
    metrics = {"step": 3, "stage": "rl", "hint/centre": 0.4, "update/skipped_in_a_row": 2.0, "reward/first_try": 0.5}
    rollout = {"step": 3, "try": "first", "text": "4", "stated": "4", "written_at": [0, 1], "reward": 1.0, "correct": True}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n")
    [row] = read_rows(tmp_path / "metrics.jsonl")
    assert row["hint/ratio_center"] == 0.4 and row["update/consecutive_skips"] == 2.0 and row["reward/first_try"] == 0.5
    assert last_logged(tmp_path, "rl", "hint/ratio_center") == 0.4
    assert last_logged(tmp_path, "rl", "update/consecutive_skips") == 2.0
    [row] = read_rows(tmp_path / "rollouts.jsonl")
    assert row["extracted_answer"] == "4" and row["unmask_step"] == [0, 1]
    assert not RENAMED.keys() & row.keys()
    with MetricsWriter(tmp_path, 3):
        pass
    assert "hint/ratio_center" in (tmp_path / "metrics.jsonl").read_text()  # rewritten when the run resumes
