"""Opening a run checks its data and folder; an error is one line and leaves no files."""

import json
import logging
import pathlib

import pytest

from igpo_jax import config as configuration
from igpo_jax.run import problems as run_problems
from igpo_jax.run.experiment import _with_saved_attention, open_experiment, read_run_config
from igpo_jax.run.results import summarize
from igpo_jax.tasks import math
from run_configs import GSM8K_SAMPLE, contents, error_of, gsm8k, tiny


@pytest.fixture
def gsm8k_file(tmp_path) -> pathlib.Path:
    """File with twenty problems, none of which is in the test file."""
    path = tmp_path / "train.jsonl"
    path.write_text(GSM8K_SAMPLE.read_text("utf-8").replace('"question": "', '"question": "Say: ') * 4, "utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.mark.parametrize("key", ["task.rl", "task.test"])
def test_a_missing_or_empty_data_file_is_named(key, gsm8k_file, tmp_path):
    paths = {"task.rl": str(gsm8k_file), "task.test": str(GSM8K_SAMPLE)}
    message = error_of(gsm8k(*(paths | {key: str(tmp_path / "absent.jsonl")}).values()), tmp_path / "run")
    assert message.startswith(f"{key}: no data file '{tmp_path / 'absent.jsonl'}'; for example, run hf download openai/gsm8k ")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    message = error_of(gsm8k(*(paths | {key: str(tmp_path / "empty.jsonl")}).values()), tmp_path / "run")
    assert f"{tmp_path / 'empty.jsonl'}: no problems" in message
    message = error_of(gsm8k(*(paths | {key: ""}).values()), tmp_path / "run")
    assert f"{key} is empty" in message and "hf download openai/gsm8k --repo-type dataset --local-dir data/gsm8k" in message
    assert not (tmp_path / "run").exists()


def test_a_malformed_line_is_named_with_its_number(gsm8k_file, tmp_path):
    lines = gsm8k_file.read_text("utf-8").splitlines()
    gsm8k_file.write_text("\n".join([*lines[:6], '{"question": "cut off', *lines[6:]]), "utf-8")
    message = error_of(gsm8k(gsm8k_file), tmp_path / "run")
    assert f"{gsm8k_file}, line 7: not JSON" in message and "task.max_malformed_lines=0" in message
    assert not (tmp_path / "run").exists()
    experiment = open_experiment(gsm8k(gsm8k_file, task__max_malformed_lines=1), tmp_path / "run")
    assert len(experiment.rl_data.problems) == 20


def long_one(**texts) -> str:
    return json.dumps({"question": "How many?", "answer": "It is 5.\n#### 5"} | texts) + "\n"


@pytest.mark.parametrize(
    "line, words",
    [
        (long_one(question="How many? " * 100), ["prompt tokens (at most 192, data.prompt_buckets)"]),
        (long_one(answer="It is 5. " * 100 + "\n#### 5"), ["solution tokens (at most 192, sampler.completion_length)"]),
    ],
    ids=["prompt", "solution"],
)
def test_what_does_not_fit_is_an_error_or_dropped_and_counted(line, words, gsm8k_file, tmp_path, caplog):
    with gsm8k_file.open("a", encoding="utf-8") as file:
        file.write(line)
    message = error_of(gsm8k(gsm8k_file, data__overflow="error"), tmp_path / "run")
    for word in ["1 of 21 problems do not fit", "'train-20'", "data.overflow=drop", *words]:
        assert word in message

    with caplog.at_level(logging.WARNING):
        experiment = open_experiment(gsm8k(gsm8k_file, data__overflow="drop"), tmp_path / "run")
    # RL cuts a long solution; a demonstration must fit completely.
    kept = {"rl": len(experiment.rl_data.problems), "sft": len(experiment.sft_data.tokens)}
    assert kept == {"rl": 20 if "prompt" in words[0] else 21, "sft": 20}
    warnings = [record.getMessage() for record in caplog.records if "do not fit" in record.getMessage()]
    assert len(warnings) == 42 - sum(kept.values())
    assert all("1 of 21 problems do not fit" in text and "dropped" in text for text in warnings)


def test_long_solutions_are_cut_and_problems_with_long_prompts_are_dropped(gsm8k_file, tmp_path, caplog):
    whole = open_experiment(gsm8k(gsm8k_file), tmp_path / "whole").sft_data
    with gsm8k_file.open("a", encoding="utf-8") as file:
        file.write(long_one(answer="It is 5. " * 100 + "\n#### 5") + long_one(question="How many? " * 100))
    with caplog.at_level(logging.WARNING):
        experiment = open_experiment(gsm8k(gsm8k_file, data__overflow="truncate"), tmp_path / "run")
    rows, tokenizer = experiment.sft_data.completion, experiment.tokenizer
    assert len(rows) == len(whole.completion) + 1 == 21 and len(experiment.rl_data.problems) == 21
    assert not (rows[-1] == tokenizer.eos_id).any()
    text = tokenizer.decode(rows[-1].tolist())
    assert text.startswith("It is 5. It is 5.") and len(text) < 900 and "####" not in text
    assert all((row == tokenizer.eos_id).any() for row in rows[:-1])
    told = [record.getMessage() for record in caplog.records]
    assert "1 of 22 solutions are cut to 192 tokens (data.overflow=truncate)" in told
    assert [text.endswith("dropped (data.overflow=truncate)") for text in told if "do not fit" in text] == [True, True]


def test_epochs_count_the_updates_of_the_training_problems(gsm8k_file, tmp_path):
    config = gsm8k(gsm8k_file, sft__updates=0, sft__epochs=3, sft__heldout=2)
    experiment = open_experiment(config, tmp_path / "run")
    assert experiment.config.sft.updates == 3 * (18 // 8)
    again = open_experiment(config, tmp_path / "run")
    assert again.fingerprint == experiment.fingerprint and again.config.sft == experiment.config.sft
    assert "differing keys: sft.epochs" in message_of(
        gsm8k(gsm8k_file, sft__updates=0, sft__epochs=4, sft__heldout=2), tmp_path / "run"
    )
    both = error_of(gsm8k(gsm8k_file, sft__updates=6, sft__epochs=3), tmp_path / "both")
    assert both == "sft.updates=6 and sft.epochs=3 are both given; set one of them to 0"


def test_ids_without_text_are_excluded_from_draws_and_counted_in_the_data(gsm8k_file, tmp_path, caplog):
    test = tmp_path / "test.jsonl"
    rows = ({"question": question, "answer": "It is 5.\n#### 5"} for question in ("How many?", "How many €?"))
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    gsm8k_file.write_text(gsm8k_file.read_text("utf-8").replace("How", "How ø", 1), "utf-8")  # 53 pieces
    with caplog.at_level(logging.WARNING):
        experiment = open_experiment(gsm8k(gsm8k_file, test, tokenizer__kind="char"), tmp_path / "run")
    [message] = [record.getMessage() for record in caplog.records if "without text" in record.getMessage()]
    assert message.startswith("1 of 2 problems of the split test have") and "the first is number 2" in message
    tokenizer, model = experiment.tokenizer, experiment.model
    assert model.vocab_size > tokenizer.vocab_size
    unused = (tokenizer.vocab_size, model.vocab_size)
    assert model.never_drawn == ((tokenizer.pad_id, tokenizer.pad_id + 1), (3, 4), unused)
    assert model.excluded == 2 + model.vocab_size - tokenizer.vocab_size


def test_it_is_an_error_if_nothing_fits(gsm8k_file, tmp_path):
    message = error_of(gsm8k(gsm8k_file, data__overflow="drop", data__prompt_buckets=(2,)), tmp_path / "run")
    assert "20 of 20 problems do not fit" in message and "data.prompt_buckets" in message


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_with_another_run_is_left_alone(tmp_path):
    workdir = tmp_path / "run"
    open_experiment(tiny(), workdir)
    before = contents(workdir)
    with pytest.raises(ValueError) as raised:
        open_experiment(tiny(rl__optimizer__learning_rate=5e-4, seed=1, task__slots=3), workdir)
    message = str(raised.value)
    assert str(workdir) in message and "--workdir" in message
    assert "differing keys: rl.optimizer.learning_rate, seed, task.slots)" in message
    assert contents(workdir) == before


def test_an_address_is_not_a_local_folder():
    with pytest.raises(ValueError, match="gs://bucket/run is not a local folder; see `opened_workdir`"):
        open_experiment(tiny(), "gs://bucket/run")


def test_a_run_may_continue_in_other_portions(tmp_path):
    open_experiment(tiny(), tmp_path / "run")
    again = open_experiment(tiny(rl__microbatches=2, mesh__fsdp=4, mesh__tensor=2), tmp_path / "run")
    assert again.config.rl.microbatches == 2
    assert configuration.to_json(read_run_config(tmp_path / "run"))["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}


def test_a_run_from_before_a_key_came_into_being_goes_on(tmp_path):
    open_experiment(tiny(), tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    del values["model"]["attention"], values["rl"]["rollout_chunks"]
    file.write_text(json.dumps(values))
    assert open_experiment(read_run_config(tmp_path / "run"), tmp_path / "run").config.rl.rollout_chunks == 1
    file.write_text("[]")
    assert "is no configuration of this version" in message_of(tiny(), tmp_path / "run")


@pytest.mark.parametrize("saved, requested, expected", [
    ("xla", "auto", "xla"), (None, "auto", "xla"), ("auto", "auto", "auto"), ("auto", "xla", "xla"),
])  # fmt: skip
def test_a_run_keeps_the_back_end_of_attention_that_it_began_with(tmp_path, saved, requested, expected):
    open_experiment(tiny(), tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    assert values["model"].pop("attention") == "auto"
    file.write_text(json.dumps(values | {"model": values["model"] | ({"attention": saved} if saved else {})}))
    experiment = open_experiment(tiny(model__attention=requested), tmp_path / "run")
    assert experiment.config.model.attention == expected == json.loads(file.read_text())["model"]["attention"]
    assert experiment.model.attention == "xla"
    assert experiment.fingerprint == configuration.fingerprint(tiny(model__attention="splash"))


def test_a_section_that_a_file_lacks_has_the_default_values(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert _with_saved_attention(tmp_path, tiny(model__attention="auto")).model.attention == "xla"


def test_a_run_may_continue_with_other_buckets_below_the_largest(tmp_path):
    workdir, [largest] = tmp_path / "run", tiny().data.prompt_buckets
    first = open_experiment(tiny(), workdir)
    assert "prompt_buckets" not in json.loads((workdir / "data.json").read_text())
    for buckets in ((2, largest), (2, largest), (1, 3, largest), (largest,)):
        again = open_experiment(tiny(data__prompt_buckets=buckets), workdir)
        assert again.config.data.prompt_buckets == buckets and again.fingerprint == first.fingerprint
        assert json.loads((workdir / "config.json").read_text())["data"]["prompt_buckets"] == list(buckets)
        assert json.loads((workdir / "data.json").read_text())["prompt_buckets"] == [largest]
    (workdir / "config.json").unlink()
    for _ in range(2):
        assert open_experiment(tiny(data__prompt_buckets=(2, largest)), workdir).fingerprint == first.fingerprint
    for buckets in ((largest, largest + 1), (1, largest - 1)):
        assert "differing keys: data.prompt_buckets" in message_of(tiny(data__prompt_buckets=buckets), workdir)


def test_a_run_of_an_earlier_version_with_several_buckets_keeps_its_fingerprint(tmp_path):
    workdir, [largest] = tmp_path / "run", tiny().data.prompt_buckets
    began = configuration.fingerprint(tiny(data__prompt_buckets=(2, largest)))
    open_experiment(tiny(data__prompt_buckets=(2, largest)), workdir)
    assert open_experiment(tiny(), workdir).fingerprint == began == open_experiment(tiny(), workdir).fingerprint


def test_a_configuration_without_buckets_is_an_error_of_one_line(tmp_path):
    workdir = tmp_path / "run"
    open_experiment(tiny(), workdir)
    values = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(values | {"data": values["data"] | {"prompt_buckets": []}}))
    assert "differing keys: data.prompt_buckets" in message_of(tiny(), workdir)


def message_of(config, workdir) -> str:
    with pytest.raises(ValueError) as raised:
        open_experiment(config, workdir)
    return str(raised.value)


def test_stages_that_are_left_out_need_not_divide(tmp_path):
    open_experiment(tiny(sft__updates=0, sft__batch_size=7), tmp_path / "run")  # eight devices


def test_the_same_configuration_opens_its_folder_again(tmp_path):
    workdir = tmp_path / "run"
    first = open_experiment(tiny(), workdir)
    before = contents(workdir)
    again = open_experiment(tiny(), workdir)
    assert contents(workdir) == before
    assert again.fingerprint == first.fingerprint
    read = open_experiment(read_run_config(workdir), workdir)
    assert read.fingerprint == first.fingerprint and read.config.data == first.config.data


def test_a_run_does_not_go_on_with_other_data(gsm8k_file, tmp_path):
    workdir = tmp_path / "run"
    first = open_experiment(gsm8k(gsm8k_file), workdir)
    assert first.data == json.loads((workdir / "data.json").read_text()) and set(first.data) == {"sft", "rl", "test"}
    lines = gsm8k_file.read_text("utf-8").splitlines(keepends=True)
    gsm8k_file.write_text("".join(lines[:-1] + [lines[-1].replace("5", "6")]), "utf-8")
    before = contents(workdir)
    assert "the run began with other problems in the split sft, rl" in message_of(gsm8k(gsm8k_file), workdir)
    assert contents(workdir) == before
    gsm8k_file.write_text("".join(lines), "utf-8")
    assert open_experiment(gsm8k(gsm8k_file), workdir).data == first.data


@pytest.mark.parametrize("name, content", [("data.json", '{"mine": 1}'), ("tokenizer.model", "mine")])
def test_a_new_run_does_not_replace_files_of_others(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert message_of(tiny(), tmp_path).startswith(f"{tmp_path / name} is ")
    assert contents(tmp_path) == {name: content.encode()}


def test_a_folder_without_a_run_is_not_read(tmp_path):
    with pytest.raises(ValueError, match="holds no run: it has no config.json"):
        read_run_config(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Test problems in the training data


def shared_files(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
    """Two files: twenty problems, and three of these in another form."""
    train, test = tmp_path / "shared_train.jsonl", tmp_path / "shared_test.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(20)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(
        "".join(json.dumps(row | {"question": row["question"].replace(" ", "  ").upper()}) + "\n" for row in rows[:3])
    )
    return train, test


def test_test_problems_are_dropped_from_training_and_counted(tmp_path):
    train, test = shared_files(tmp_path)
    config = gsm8k(train, test, evaluation__problems=1)  # the file counts, also beyond the problems that the run evaluates
    experiment = open_experiment(config, tmp_path / "run")
    assert experiment.dropped == {"sft": 3, "rl": 3} and len(experiment.rl_data.problems) == 17
    assert "What is 2 + 1?" not in "".join(problem.question for problem in experiment.rl_data.problems)
    assert len(experiment.sft_data.tokens) == 17 and len(experiment.test_data.problems) == 1
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert written == experiment.data | {"dropped": {"sft": 3, "rl": 3}}
    assert open_experiment(config, tmp_path / "run").dropped == experiment.dropped
    clean = open_experiment(gsm8k(train), tmp_path / "clean")
    assert clean.dropped == {} and json.loads((tmp_path / "clean" / "data.json").read_text()) == clean.data


def test_a_run_that_began_with_the_test_problems_does_not_go_on_without_them(tmp_path, monkeypatch):
    train, test = shared_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_problems, "untested", lambda contents, test: [True] * len(contents))
        open_experiment(gsm8k(train, test), tmp_path / "run")
    message = message_of(gsm8k(train, test), tmp_path / "run")
    assert (
        "other problems in the split sft, rl" in message
        and "drops problems that are in the test split, too: 3 of sft, 3 of rl" in message
    )


def test_identical_problems_and_empty_questions_are_counted(tmp_path, caplog):
    train, test = shared_files(tmp_path)
    with train.open("a", encoding="utf-8") as file:
        for question in ("what is 5 + 1", "What  is 5 + 1 ?", "", " \u200b\n"):
            file.write(json.dumps({"question": question, "answer": "It is 6.\n#### 6"}) + "\n")
    experiment = open_experiment(gsm8k(train, test), tmp_path / "run")
    assert len(experiment.rl_data.problems) == 22 - 3
    told = [record.getMessage() for record in caplog.records]  # once, although two stages have this file
    assert [text for text in told if "rows" in text] == [f"gsm8k:{train}: 22 of 24 rows, 2 without a question"]
    assert [text for text in told if "earlier" in text] == [
        "2 of 22 problems of the split sft have the question of an earlier one, compared as for the test split; all are kept"
    ]


def test_a_file_is_read_once_and_every_question_is_compared_once(tmp_path, monkeypatch):
    train, test = shared_files(tmp_path)
    read, compared = [], []
    load, content = math.load_counted, math.content
    monkeypatch.setattr(math, "load_counted", lambda task, split: read.append(split) or load(task, split))
    monkeypatch.setattr(math, "content", lambda task, problem: compared.append(problem.id) or content(task, problem))
    problems, dropped, counts = run_problems.load_run_problems(configuration.parse(gsm8k(train, test)))
    assert read == ["sft", "test"] and len(compared) == 20 + 3
    assert problems["rl"] == problems["sft"] and dropped == {"sft": 3, "rl": 3} and counts["rl"] == counts["sft"]


def test_a_split_of_test_problems_only_is_an_error(tmp_path):
    train, _ = shared_files(tmp_path)
    assert "all 20 problems of the split sft are in the test split" in error_of(gsm8k(train, train), tmp_path / "run")


def test_other_solutions_of_held_out_problems_are_dropped(tmp_path, monkeypatch):
    train, _ = shared_files(tmp_path)
    train.write_text(train.read_text() * 2)
    config = gsm8k(train, sft__heldout=4)
    experiment = open_experiment(config, tmp_path / "run")
    rows = {tuple(row) for row in experiment.heldout.tokens.tolist()}
    assert len(experiment.heldout.tokens) == 4 and not rows & {tuple(row) for row in experiment.sft_data.tokens.tolist()}
    dropped = experiment.dropped["heldout"]
    assert 0 < dropped == 40 - 4 - len(experiment.sft_data.tokens)
    file = tmp_path / "run" / "data.json"
    assert json.loads(file.read_text())["dropped"] == {"heldout": dropped}
    file.write_text(json.dumps(experiment.data))  # of a run that kept them
    assert "the run began without the training problems none" in message_of(config, tmp_path / "run")


def test_a_run_that_goes_on_with_other_code_warns_and_records_it(tmp_path, monkeypatch, caplog):
    """A run went on with another reward without a word."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_reward.py").write_text("def right(problem, text):\n    return 1.0\n")
    config = tiny(reward__function="own_reward:right")

    def opened() -> list[str]:
        caplog.clear()
        experiment = open_experiment(config, tmp_path / "run")
        code = json.loads((tmp_path / "run" / "data.json").read_text())["code"]
        assert summarize(experiment)["code"] == code and list(code) == ["own_reward"]
        return code["own_reward"]

    first = opened()
    assert len(first) == 1 and opened() == first and "has changed" not in caplog.text
    (tmp_path / "own_reward.py").write_text("def right(problem, text):\n    return 0.0\n")
    second = opened()
    [message] = [record.getMessage() for record in caplog.records if "has changed" in record.getMessage()]
    assert message.startswith(f"{tmp_path / 'run'}: the module own_reward has changed since the run was last opened; ")
    assert second[:1] == first and len(set(second)) == 2 and opened() == second and "has changed" not in caplog.text
    file = tmp_path / "run" / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": {"own_reward": 1}}))
    with pytest.raises(ValueError, match=f"{file}, key code, cannot be read"):
        open_experiment(config, tmp_path / "run")
