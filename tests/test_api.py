"""generate, infill, logits and score, on a converted tiny LLaDA."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import igpo_jax
from igpo_jax import api
from igpo_jax.diffusion.unmasking import DecodeConfig, propose
from igpo_jax.model.int8 import is_int8, quantize
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.transformer import ModelConfig, forward, init, shardings, unembed
from igpo_jax.run import layout
from igpo_jax.training.policy import Policy
from igpo_jax.weights.folders import convert
from igpo_jax.weights.huggingface import llada_config
from model_folders import PLAIN, write_folder
from tiny_llada import one_device, write_tiny_llada
from tokenizer_files import write_tokenizer

PROMPTS = ["Hello", "What is the answer to 17 + 25, once more?", "", "two and two are"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llada(tmp_path_factory.mktemp("llada"), layers=2)


@pytest.fixture(scope="module")
def model(folder):
    return igpo_jax.load(folder, mesh=one_device())


def tokens_of(completions):
    return [completion.tokens.tolist() for completion in completions]


LENGTHS = dict(completion_length=16, block_length=8)


@pytest.mark.slow
def test_folder_its_conversion_and_any_mesh_generate_the_same(folder, model, tmp_path, mesh_of):
    convert(folder, tmp_path / "model", mesh_of((1, 2, 1)))
    expected = tokens_of(model.generate(PROMPTS, **LENGTHS))
    for path, mesh in (
        (tmp_path / "model", mesh_of((1, 1, 1))),
        (folder, mesh_of((2, 2, 2))),
        (folder, mesh_of((1, 8, 1))),
    ):
        assert tokens_of(igpo_jax.load(path, mesh=mesh).generate(PROMPTS, **LENGTHS)) == expected


@pytest.mark.slow
def test_by_default_the_weights_lie_where_sampling_is_fast(folder, model, monkeypatch):
    """Each of the eight devices has a copy, or, without memory for it, an eighth of the weights."""
    copied = igpo_jax.load(folder)
    assert copied.mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(copied.params))
    how = dict(temperature=0.7, **LENGTHS)
    assert tokens_of(copied.generate(PROMPTS[:2], **how)) == tokens_of(model.generate(PROMPTS[:2], **how))
    monkeypatch.setattr(layout, "UNKNOWN", dataclasses.replace(layout.UNKNOWN, memory_gib=1e-6))
    assert igpo_jax.load(folder).mesh.shape["fsdp"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("base_dtype", ["", "int8"])
def test_weights_under_adapters_are_copied_for_sampling(base_dtype, mesh_of):
    mesh, cfg = mesh_of((1, 8, 1)), ModelConfig(32, 30, 29, width=32, layers=2, heads=8, kv_heads=8, mlp_width=64)
    policy = Policy(dataclasses.replace(cfg, base_dtype=base_dtype), LoraConfig(rank=2, alpha=4.0))
    made = jax.tree.leaves(jax.jit(init, static_argnums=1, out_shardings=shardings(cfg, mesh))(jax.random.key(0), cfg))
    wanted, structure = jax.tree.flatten(policy.abstract_base(mesh), is_leaf=is_int8)
    base = structure.unflatten(quantize(w, -2) if is_int8(like) else w for w, like in zip(made, wanted, strict=True))
    params = policy.assemble(policy.init(jax.random.key(1), mesh), base)
    copied = api._laid_out_for_sampling(api.DiffusionLM(policy.model, params, None, mesh), policy.lora)
    assert copied.mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(copied.params), strict=True):
        assert other.is_fully_replicated and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_batch_of_mixed_lengths_equals_one_by_one(model, temperature):
    # With an empty prompt all masks of the first block look the same, so rounding would decide between them.
    prompts = [prompt or "no" for prompt in PROMPTS]
    together = model.generate(prompts, temperature=temperature, **LENGTHS)
    alone = [model.generate([prompt], temperature=temperature, **LENGTHS)[0] for prompt in prompts]
    assert tokens_of(together) == tokens_of(alone)
    assert [done.text for done in together] == [done.text for done in alone]


@pytest.mark.slow
def test_equal_prompts_differ_by_noise_and_seeds_repeat(model):
    first, second, third = tokens_of(model.generate(["Hello"] * 3, temperature=1.0, seed=5, **LENGTHS))
    assert first != second != third
    assert tokens_of(model.generate(["Hello"] * 3, temperature=1.0, seed=5, **LENGTHS)) == [first, second, third]
    assert tokens_of(model.generate(["Hello"], temperature=1.0, seed=6, **LENGTHS)) != [first]


@pytest.mark.slow
def test_text_ends_at_the_first_eos_and_is_decoded_as_a_whole(model):
    for done in model.generate(PROMPTS, temperature=1.0, **LENGTHS):
        ended = np.flatnonzero(done.tokens == model.config.eos_id)
        assert done.text == model.tokenizer.decode(done.tokens[: ended[0]] if ended.size else done.tokens)
        assert not np.any(done.tokens == model.config.mask_id)


def test_chat_and_conversations_use_the_template(model):
    asked = model.generate(["  Hello\n"], chat=True, **LENGTHS)
    talked = model.generate([[{"role": "user", "content": "Hello"}]], **LENGTHS)
    assert tokens_of(asked) == tokens_of(talked) != tokens_of(model.generate(["  Hello\n"], **LENGTHS))


def test_hint_stays_at_the_beginning(model):
    hint = model.tokenizer.encode("The answer")
    for done in model.generate(PROMPTS, hint="The answer", temperature=1.0, **LENGTHS):
        assert done.tokens[: len(hint)].tolist() == hint
        assert (done.unmask_step[: len(hint)] == -1).all() and (done.unmask_step[len(hint) :] >= 0).all()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An untrained model with more embeddings than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("wide")
    ids = write_tokenizer(folder)
    vocabulary = {"vocab_size": 512, "mask_id": ids["<|mdm_mask|>"], "eos_id": ids["<|endoftext|>"]}
    write_folder(folder / "hf", one_device(), dataclasses.replace(PLAIN, **vocabulary), dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, folder / "hf")
    return igpo_jax.load(folder / "hf", mesh=one_device())


@pytest.mark.slow
@pytest.mark.parametrize("call", [
    lambda m: m.generate(["Hello"] * 16, temperature=1.2, **LENGTHS),
    lambda m: m.generate(["Hello"] * 8, chat=True, temperature=1.2, cfg_scale=1.0, cache="dual", **LENGTHS),
    lambda m: m.generate(["Hello"] * 8, temperature=1.2, watch=lambda step: None, **LENGTHS),
    lambda m: m.infill(["one [MASK:12] and two"] * 8, temperature=1.2),
    lambda m: m.infill(["[MASK:12]"] * 8, prompts=["Hello"] * 8, temperature=1.2, watch=lambda step: None, remasking="random"),
])  # fmt: skip
def test_every_drawn_token_has_text_or_ends_the_text(call, wide):
    tokenizer, ends = wide.tokenizer, {wide.config.eos_id, wide.config.eot_id}
    drawn = np.concatenate([done.tokens[done.unmask_step >= 0] for done in call(wide)])
    assert len(drawn) >= 64
    for id in set(drawn.tolist()) - ends:
        assert tokenizer.decode([id]) and id < tokenizer.vocab_size
    without = dataclasses.replace(wide, config=dataclasses.replace(wide.config, never_drawn=()))
    assert any((done.tokens >= tokenizer.vocab_size).any() for done in call(without))


@pytest.mark.slow
def test_given_ids_without_text_stay_and_are_counted_once(wide, caplog):
    mask = wide.config.mask_id
    done = wide.infill([[7, 400, mask, mask], [7, mask], [*wide.tokenizer.encode("a"), mask]], prompts=["", [511], "b"])
    assert [row.tokens[0] for row in done[:2]] == [7, 7] and done[0].tokens[1] == 400
    [record] = caplog.records
    assert "2 of 3 prompts with their given tokens have ids without text" in record.getMessage()
    wide.generate(["Hello"], chat=True, hint="a", **LENGTHS)
    wide.score([510, 7], " 4", draws=4)
    assert len(caplog.records) == 2


@pytest.mark.slow
def test_infill_keeps_a_thousand_random_canvases(model):
    draw = np.random.default_rng(0)
    mask_id = model.config.mask_id
    canvases = []
    for _ in range(1000):
        length = int(draw.choice([3, 8, 13, 21]))
        canvas = draw.integers(0, model.config.vocab_size, length)
        canvas[draw.uniform(size=length) < draw.uniform(0.1, 0.9)] = mask_id
        canvas[draw.integers(length)] = mask_id
        canvases.append(canvas)
    prompts = [draw.integers(0, 200, draw.integers(0, 30)).tolist() for _ in canvases]
    done = model.infill(canvases, prompts=prompts, temperature=1.5, steps=2)
    for canvas, filled in zip(canvases, done, strict=True):
        kept = canvas != mask_id
        np.testing.assert_array_equal(filled.tokens[kept], canvas[kept])
        np.testing.assert_array_equal(filled.unmask_step == -1, kept)
        assert not np.any(filled.tokens == mask_id) and not np.any(filled.tokens[~kept] == model.config.eos_id)


@pytest.mark.slow
def test_infill_of_mixed_lengths_equals_one_by_one(model):
    templates = [
        "The answer is [MASK:4] because two and two are four.",
        "[MASK] world",
        "once [MASK:2] more [MASK:3]",
        "a [MASK:4]",
    ]
    together = model.infill(templates, prompts=PROMPTS)
    alone = [model.infill([template], prompts=[prompt])[0] for template, prompt in zip(templates, PROMPTS, strict=True)]
    assert tokens_of(together) == tokens_of(alone)
    before, after = (model.tokenizer.encode(text) for text in ("The answer is ", " because two and two are four."))
    assert together[0].tokens[: len(before)].tolist() == before and together[0].tokens[-len(after) :].tolist() == after
    assert len(together[0].tokens) == len(before) + 4 + len(after)
    assert together[0].text.startswith("The answer is ") and together[0].text.endswith(" because two and two are four.")


@pytest.mark.slow
def test_logits_are_those_of_the_network(model):
    tokens = np.random.default_rng(0).integers(0, 200, (3, 9))
    prompt_mask = np.arange(9) >= np.array([[0], [2], [5]])
    expected = unembed(model.params, forward(model.params, tokens, prompt_mask, model.config), model.config)
    np.testing.assert_allclose(model.logits(tokens, prompt_mask), expected, atol=1e-5)
    everything = np.ones((3, 9, 9), bool)
    np.testing.assert_allclose(model.logits(tokens), model.logits(tokens, everything), atol=1e-5)


@pytest.mark.slow
def test_score_of_one_token_is_its_log_probability(model):
    prompt = model.tokenizer.encode("two and two are")
    logits = model.logits(np.array([[*prompt, model.config.mask_id]]))[0, -1]
    token = model.tokenizer.encode("4")
    score = model.score("two and two are", "4")
    assert score.draws == 1 and score.standard_error == 0
    assert score.log_likelihood == pytest.approx(float(jax.nn.log_softmax(logits)[token[0]]), abs=1e-4)


@pytest.mark.slow
def test_score_approaches_the_mean_over_all_maskings_within_its_error(model):
    """Enumerates the 7 maskings of three tokens: weight 3 / k for k masks; k, then the tokens, are uniform."""
    prompt, answer = model.tokenizer.encode("Hello"), model.tokenizer.encode("421")
    exact = 0.0
    for chosen in range(1, 8):
        masked = np.array([chosen >> i & 1 for i in range(3)], bool)
        k = int(masked.sum())
        row = [*prompt, *np.where(masked, model.config.mask_id, answer)]
        log_probs = jax.nn.log_softmax(model.logits(np.array([row]))[0, -3:])
        exact += float(log_probs[np.arange(3), answer][masked].sum()) * (3 / k) / 3 / [3, 3, 1][k - 1]
    few, many = model.score("Hello", "421", draws=16), model.score("Hello", "421", draws=1024)
    assert 0 < many.standard_error < few.standard_error
    assert abs(many.log_likelihood - exact) < 4 * many.standard_error


@pytest.mark.parametrize("call, message", [
    (lambda m: m.generate(["x"], completion_length=10, block_length=4), "not a multiple of block_length=4"),
    (lambda m: m.generate(["x"], hint="x" * 40, **LENGTHS), "the hint has .* tokens, completion_length=16"),
    (lambda m: m.generate([[999]], **LENGTHS), "do not all lie in the vocabulary"),
    (lambda m: m.infill(["no blank"]), "'no blank' has no blank; write .MASK:n."),
    (lambda m: m.infill(["[MASK]"], prompts=["a", "b"]), "2 prompts for 1 canvases"),
    (lambda m: m.score("x", ""), "empty completion"),
    (lambda m: m.generate(["x"], seed=2**32, **LENGTHS), r"^seed=4294967296 must be within \[0, 4294967295\]$"),
    (lambda m: m.infill(["[MASK]"], seed=-1), r"^seed=-1 must be within"),
    (lambda m: m.score("x", "42", seed=2**70), r"^seed=1180591620717411303424 must be within"),
    (lambda m: m.score("x", "42", draws=0), "^draws=0 must be at least 1$"),
    (lambda m: m.score("x", "4", draws=-1), "^draws=-1 must be at least 1$"),
    (lambda m: m.score("x", "42", draws=10**12), "^draws=1000000000000 must be at most 65536$"),
])  # fmt: skip
def test_impossible_calls_are_refused(call, message, model):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.slow
def test_a_folder_without_tokenizer_takes_token_ids(folder, tmp_path, mesh):
    shutil.copytree(folder, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    model = igpo_jax.load(tmp_path / "bare", mesh=mesh)
    [done] = model.generate([[5, 6, 7]], **LENGTHS)
    assert done.text is None and done.tokens.shape == (16,)
    with pytest.raises(ValueError, match="has no tokenizer; give token ids"):
        model.generate(["text"], **LENGTHS)


def test_what_text_or_chat_needs_is_checked_before_weights_are_read(tmp_path, mesh):
    shape = ModelConfig(vocab_size=512, mask_id=1, eos_id=2, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
    (tmp_path / "config.json").write_text(json.dumps(llada_config(shape, 64)))  # without weights
    with pytest.raises(ValueError, match="has neither tokenizer.json nor vocab.json nor a ..model file"):
        igpo_jax.load(tmp_path, mesh=mesh, needs="text")
    write_tokenizer(tmp_path, instruct=False)
    with pytest.raises(ValueError, match="tokenizer of a base model"):
        igpo_jax.load(tmp_path, mesh=mesh, needs="chat")
    with pytest.raises(ValueError, match="has no model..safetensors"):
        igpo_jax.load(tmp_path, mesh=mesh, needs="text")
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")
    with pytest.raises(ValueError, match="merges.txt is missing; vocab.json needs it"):
        igpo_jax.load(tmp_path, mesh=mesh, needs="text")


@pytest.mark.parametrize("path, message", [
    ("nowhere", "there is no folder"),
    ("empty", "config.json is missing"),
])  # fmt: skip
def test_what_is_no_model_is_refused(path, message, tmp_path, mesh):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        igpo_jax.load(tmp_path / path, mesh=mesh)


def test_a_model_that_does_not_divide_over_the_mesh_is_refused(folder, mesh_of):
    with pytest.raises(ValueError, match="model.heads = 4 is not a multiple of mesh.tensor = 8"):
        igpo_jax.load(folder, mesh=mesh_of((1, 1, 8)))


# Effect of each option of docs/method.md section 5

CFG = ModelConfig(vocab_size=6, mask_id=5, eos_id=1, eot_id=2, width=4, layers=1, heads=2, kv_heads=2, mlp_width=4)
DECODE = DecodeConfig(completion_length=3, block_length=3, steps=3)
LOGITS = jnp.log(jnp.array([[[0.1, 0.6, 0.1, 0.1, 0.1], [0.2, 0.1, 0.5, 0.1, 0.1], [0.05, 0.3, 0.3, 0.35, 1e-9]]]))


def options(**change):
    drawn, confidence = propose(LOGITS, None, None, CFG, DecodeConfig(**(vars(DECODE) | change)))
    return drawn[0].tolist(), pytest.approx(np.exp(confidence[0]).tolist(), abs=1e-6)


def test_without_options_confidence_is_the_probability_of_the_token():
    assert options() == ([1, 2, 3], [0.6, 0.5, 0.35])


def test_logits_eos_inf_never_draws_eos_and_leaves_end_of_turn():
    drawn, confidence = options(logits_eos_inf=True)
    assert drawn == [0, 2, 3] and confidence == [0.25, 0.5 / 0.9, 0.5]


def test_confidence_eos_eot_inf_keeps_the_tokens_and_writes_them_last():
    drawn, confidence = options(confidence_eos_eot_inf=True)
    assert drawn == [1, 2, 3] and confidence == [0.0, 0.0, 0.875]


def test_both_options_together():
    drawn, confidence = options(logits_eos_inf=True, confidence_eos_eot_inf=True)
    assert drawn == [0, 2, 3] and confidence == [1 / 3, 0.0, 0.875]


@pytest.mark.slow
def test_options_reach_the_sampler(model):
    """Uses a network that prefers EOS everywhere: EOS is rare if it is written last, absent if it is excluded."""
    params = jax.tree.map(jnp.zeros_like, model.params)
    head = params["head"].at[:, model.config.eos_id].set(8 / 32).at[:, 7].set(7 / 32).at[:, 8].set(7 / 32)
    params |= {"embedding": jnp.ones_like(params["embedding"]), "final_norm": jnp.ones(32), "head": head}
    constant = igpo_jax.DiffusionLM(model.config, params, model.tokenizer, model.mesh)

    def eos_of(**options):
        done = constant.generate([[i] for i in range(16)], temperature=1.0, **LENGTHS, **options)
        return sum(int((row.tokens == model.config.eos_id).sum()) for row in done)

    plain = eos_of()
    assert 0 < eos_of(confidence_eos_eot_inf=True) < plain / 3
    assert eos_of(logits_eos_inf=True) == 0


@pytest.mark.slow
def test_what_is_not_asked_for_is_as_the_model_decodes(model):
    """Defaults are the lengths, steps and sampler of a run's evaluations; each argument overrides one of them."""
    decode = DecodeConfig(completion_length=16, block_length=8, steps=4, temperature=0.7, remasking="random")
    own = dataclasses.replace(model, decode=decode)
    for asked, meant in (
        ({}, {"steps": 4, **LENGTHS}),
        ({"completion_length": 4}, {"completion_length": 4, "block_length": 4}),
        ({"steps": 8, "temperature": 0.0}, {"steps": 8, "temperature": 0.0, **LENGTHS}),
    ):
        expected = model.generate(["two"], **{"temperature": 0.7, "remasking": "random"} | meant)[0]
        found = own.generate(["two"], **asked)[0]
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.unmask_step, expected.unmask_step)
    filled = [
        of.infill(["a [MASK:3] b"], **more)[0] for of, more in ((own, {}), (model, {"temperature": 0.7, "remasking": "random"}))
    ]
    np.testing.assert_array_equal(filled[0].unmask_step, filled[1].unmask_step)
    assert igpo_jax.DiffusionLM(model.config, model.params, None, model.mesh).decode == DecodeConfig(128, 32, 128)


@pytest.mark.slow
def test_many_prompts_are_denoised_in_batches_of_one_size(model, monkeypatch):
    prompts = [f"two and {i}" for i in range(5)]
    lengths = {"completion_length": 8, "block_length": 8}
    at_once = [done.tokens.tolist() for done in model.generate(prompts, temperature=0.7, **lengths)]
    monkeypatch.setattr(api, "ROWS_PER_DEVICE", 2)
    sizes = []
    sample = api.sample
    monkeypatch.setattr(api, "sample", lambda params, rows, *rest: sizes.append(len(rows)) or sample(params, rows, *rest))
    in_parts = [done.tokens.tolist() for done in model.generate(prompts, temperature=0.7, **lengths)]
    assert in_parts == at_once and len(sizes) == -(-5 // sizes[0]) and len(set(sizes)) == 1


@pytest.mark.slow
def test_prompts_are_padded_batch_by_batch(model, monkeypatch):
    """One long prompt among many short ones does not fill the memory."""
    sizes, padded = [], api.left_padded
    monkeypatch.setattr(api, "left_padded", lambda rows, *rest: sizes.append(len(rows)) or padded(rows, *rest))
    model.generate(["a"] * 17 + ["b " * 100], completion_length=4, block_length=4)
    assert sizes == [8, 8, 8]


def test_a_prompt_that_is_too_long_is_named(model):
    with pytest.raises(ValueError, match="prompt 1 .* has 65537 tokens; a prompt has at most 65536"):
        model.generate([[1], [1] * (api.MOST_TOKENS + 1)])


def test_a_text_is_no_list_of_texts(model):
    for call in (model.generate, model.infill):
        with pytest.raises(ValueError, match="give a list"):
            call("What is [MASK:2]?")


@pytest.mark.parametrize("change, message", [
    ({"eos_token_id": 3}, "eos_token_id of config.json is 3, that of the tokenizer"),
    ({"eos_token_id": None}, "eos_token_id"),
])  # fmt: skip
def test_a_tokenizer_of_another_model_is_refused(change, message, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    values = json.loads((other / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        igpo_jax.load(other)


@pytest.mark.parametrize(
    "platform, capability, dtype",
    [
        ("gpu", "7.5", "float32"),  # a T4, which has no units for bfloat16
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "10.0", "bfloat16"),
        ("gpu", "gfx942", "bfloat16"),  # AMD's names of its GPUs
        ("tpu", None, "bfloat16"),
        ("cpu", None, "float32"),
    ],
)
def test_the_default_dtype_is_one_that_the_device_computes_with(monkeypatch, platform, capability, dtype):
    device = types.SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert api.default_dtype() == dtype


def test_completion_in_a_shell_shows_the_python_api_before_it_is_imported():
    program = "import sys, igpo_jax; print(*dir(igpo_jax)); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    names = done.stdout.split()
    assert set(igpo_jax.__all__) | {"__version__"} <= set(names) and names == sorted(set(names)), done.stderr
