"""Hostile files raise one error: no crash, no hang, no code execution. tests/campaigns/fuzz.py runs more of them."""

import functools
import json
import pickle
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igpo_jax.chat import encode_chat
from igpo_jax.grading.answers import box_spans
from igpo_jax.runtime.files import MAX_NESTED, parse_json
from igpo_jax.tasks.sources import load_sources
from igpo_jax.tokenizers import load_tokenizer
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.safetensors_files import stored_tensors
from mutations import mutated
from parsers import PARSERS, TEXT, Attack
from tokenizer_files import write_tokenizer

EXAMPLES = 300  # per parser
SLOW = ("comparison", "endpoint", "evaluations", "report")  # these do more than parse


@pytest.fixture(scope="module")
def attack_of():
    return functools.cache(Attack)


LONG = ("endpoint", "evaluations", "report")


@pytest.mark.parametrize(
    "parser",
    [pytest.param(each, marks=[pytest.mark.slow] * (each.name in LONG)) for each in PARSERS],
    ids=[each.name for each in PARSERS],
)
def test_a_damaged_file_is_read_or_refused_by_its_name(parser, attack_of):
    attack = attack_of(parser)

    @settings(
        max_examples=EXAMPLES // 4 if parser.name in SLOW else EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(sorted(attack.valid)), st.randoms(use_true_random=False))
    def hostile(name, draw):
        attack(name, mutated(attack.valid[name], draw))

    hostile()


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"\xff" * 64, b"\xef\xbb\xbf{}", b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**6]
)
def test_what_is_no_file_at_all_is_refused(parser, attack_of, content):
    attack = attack_of(parser)
    for name in attack.valid:
        attack(name, content)


# Known attacks on single parsers


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' + "9" * 10**6 + "}",
        "[" * 10**5 + "]" * 10**5,
        "[" * (MAX_NESTED + 1) + "]" * (MAX_NESTED + 1),
        r'"\ud800"',
        "\ufeff{}",
    ],
    ids=["digits", "deep", "deeper", "surrogate", "BOM"],
)
def test_json_that_python_would_choke_on_is_refused(text):
    with pytest.raises(ValueError, match=r"^a\.json: not (JSON|UTF-8) \(") as raised:
        parse_json(text, "a.json")
    assert len(str(raised.value)) < 300


def test_json_as_deep_as_allowed_is_read():
    assert json.dumps(parse_json("[" * MAX_NESTED + "]" * MAX_NESTED, "a.json")).count("[") == MAX_NESTED
    assert parse_json("[" + "[]," * 1000 + "[]]", "a.json")[-1] == []


@pytest.mark.parametrize("claimed", [2**60, 2**63, 2**64 - 1])
def test_a_header_that_claims_exabytes_takes_no_memory(claimed, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(claimed.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(ValueError, match="model.safetensors: cut short"):
        stored_tensors(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_more_layers_than_can_be_listed_are_refused_before_they_are(attack_of):
    [parser] = [parser for parser in PARSERS if parser.name == "model"]
    attack = attack_of(parser)
    values = json.loads(attack.valid["config.json"])
    assert not attack("config.json", json.dumps(values | {"n_layers": 10**12}).encode())


@pytest.mark.parametrize("template", ["[MASK:999999999]", "[MASK:" + "9" * 10**6 + "]", "[MASK:60000]" * 1000])
def test_a_blank_is_not_as_long_as_it_says(template, attack_of):
    [parser] = [parser for parser in PARSERS if parser.name == "templates"]
    assert attack_of(parser)("template.txt", template.encode())


class _Bomb:
    """Fails the test when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_weights_that_are_a_pickle_are_not_opened(tmp_path, attack_of):
    [parser] = [parser for parser in PARSERS if parser.name == "model"]
    folder = attack_of(parser).folder
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    from igpo_jax.weights.huggingface import folder_model_config
    from parsers import MESH

    with pytest.raises(ValueError, match="model.safetensors: cut short"):
        load_params(tmp_path, folder_model_config(tmp_path), MESH)


def test_a_chat_template_of_a_tokenizer_is_not_rendered(tmp_path):
    """Ignores the template, since Jinja templates are programs; tokenizers.py implements LLaDA's."""
    write_tokenizer(tmp_path)
    conversation = [{"role": "user", "content": TEXT}]
    before = encode_chat(load_tokenizer(tmp_path, 323), conversation)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**12) %}x{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values | {"chat_template": hostile}))
    (tmp_path / "chat_template.jinja").write_text(hostile)
    assert encode_chat(load_tokenizer(tmp_path, 323), conversation) == before


@pytest.mark.slow
def test_long_solutions_are_read_in_linear_time(tmp_path):
    """Reads a million spaces, boxes or marks, for which backtracking regular expressions took hours."""
    for filler in (" ", "\n", "\\boxed ", "####", "#### \n", "<<", "{"):
        response = "It is 2" + filler * (10**6 // len(filler)) + "x\nThe answer is: 2"
        row = {"type": "MATH_AnsAug", "query": "1 + 1?", "response": response}
        (tmp_path / "a.json").write_text(json.dumps([row]))
        [record], _ = load_sources(f"metamath:{tmp_path / 'a.json'}", {})
        assert record.answer == "2"
    assert box_spans("\\boxed " * 10**5) == []
