"""Comparison with a PyTorch reference (torch_reference.py), which is first compared with the released LLaDA.

Covers cases that the recorded fixture lacks: six query heads, two key/value heads, tied heads, three layers.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from igpo_jax.diffusion.corruption import Corruption, sft_loss
from igpo_jax.weights.folders import load_params
from igpo_jax.weights.huggingface import folder_model_config

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

import llada_parity
import torch_reference as reference

COPY = pathlib.Path(__file__).parent / "fixtures" / "llada_tiny"
EOS, EOT, MASK = 61, 17, 190
# As released, except for the sizes.
CONFIG = json.loads((COPY / "config.json").read_text()) | dict(
    d_model=48, n_heads=6, n_kv_heads=2, n_layers=3, mlp_hidden_size=80, vocab_size=200, embedding_size=200,
    max_sequence_length=160, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS, rope_theta=10000.0,
    weight_tying=True,
)  # fmt: skip
ILLADA_NAMES = {
    "wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head",
    "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj", "attn_out": "self_attn.o_proj", "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
}  # fmt: skip


def write_folder(folder, config, weights, files=1):
    """Writes a Hugging Face folder; with several files, consecutive tensors go to different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    place = {name: f"model-{1 + i % files:05}-of-{files:05}.safetensors" for i, name in enumerate(weights)}
    for file in set(place.values()):
        save_file({name: weights[name] for name in weights if place[name] == file}, folder / file, {"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tokens_of(rows, length, seed=0):
    """Returns random tokens without MASK, EOS and EoT."""
    ids = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))
    return torch.where((ids == EOS) | (ids == EOT), 3, ids)


def logits_of(folder, ids, mesh):
    cfg = folder_model_config(folder)
    with jax.default_matmul_precision("highest"):
        params = load_params(folder, cfg, mesh)
        return params, cfg, llada_parity.logits_of(params, ids.numpy().astype(np.int32), np.ones(ids.shape, bool), cfg)


@pytest.mark.slow
def test_the_reference_equals_the_released_llada():
    """Validates the reference for the tests below."""
    from safetensors.torch import load_file

    config, weights = json.loads((COPY / "config.json").read_text()), {}
    for file in (COPY / "bf16_sharded").glob("*.safetensors"):
        weights |= {name: weight.float() for name, weight in load_file(file).items()}
    recorded = {name: torch.from_numpy(value) for name, value in np.load(COPY / "forward.npz").items()}
    ids = recorded["input_ids"]
    for case, given in {
        "": {},
        "leftpad_": {"mask": recorded["leftpad_mask"]},
        "rightpad_": {"mask": recorded["rightpad_mask"]},
        "bool_bias_": {"bias": recorded["bool_bias"]},
    }.items():
        logits, states, block0 = reference.run(weights, config, ids, **given)
        np.testing.assert_allclose(logits, recorded[f"{case}logits"], atol=1e-4)
        if not case:
            np.testing.assert_allclose(torch.stack(states), recorded["hidden_states"], atol=1e-4)
            for name, value in block0.items():
                np.testing.assert_allclose(value, recorded[f"block0.{name}"], atol=1e-4)

    loss = {name: torch.from_numpy(value) for name, value in np.load(COPY / "loss.npz").items()}
    pretrain, _ = reference.losses(weights, config, loss["ids"], loss["noisy"], loss["p_mask"])
    tuned, _ = reference.losses(weights, config, loss["ids"], loss["sft_noisy"], loss["p_mask"], loss["sft_prompt_lengths"])
    assert pretrain == pytest.approx(float(loss["pretrain_loss"]), abs=1e-5)
    assert tuned == pytest.approx(float(loss["sft_loss"]), abs=1e-5)

    settings, arrays = json.loads((COPY / "generate.json").read_text()), np.load(COPY / "generate.npz")
    for case in settings["cases"]:
        name, kwargs = case["name"], case["kwargs"]
        if kwargs.get("temperature", 0) > 0 or kwargs.get("remasking") == "random":  # depends on the recorded noise
            continue
        if case["has_attention_mask"]:
            kwargs["attention_mask"] = torch.from_numpy(arrays[f"{name}/attention_mask"])
        ends = (settings[f"{end}_id_used_by_generate"] for end in ("eos", "eot"))
        prompt = torch.from_numpy(arrays[f"{name}/prompt"])
        trace, _ = reference.generate(weights, config, prompt, *ends, **kwargs)
        np.testing.assert_array_equal(trace, arrays[f"{name}/trace"], name)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_logits_loss_and_gradients_with_grouped_heads(tmp_path, mesh, tied):
    config = CONFIG | {"weight_tying": tied}
    weights = reference.random_weights(config, seed=1)
    write_folder(tmp_path, config, weights)
    for weight in weights.values():
        weight.requires_grad_()
    ids, p = tokens_of(3, 22), torch.tensor([0.3, 0.6, 0.9])[:, None].expand(3, 22)
    noisy = torch.where(torch.rand(3, 22, generator=torch.Generator().manual_seed(2)) < p, MASK, ids)
    params, cfg, logits = logits_of(tmp_path, noisy, mesh)
    assert (cfg.heads, cfg.kv_heads, "head" in params) == (6, 2, not tied)
    np.testing.assert_allclose(logits, reference.run(weights, config, noisy)[0].detach(), atol=2e-4)

    expected, _ = reference.losses(weights, config, ids, noisy, p)
    expected.backward()
    # Gradients are loaded like weights, which looks up their names.
    write_folder(tmp_path / "gradients", config, {name: weight.grad for name, weight in weights.items()})
    tokens, corruption = ids.numpy(), Corruption(noisy.numpy() == MASK, 1 / p[:, 0].numpy())
    with jax.default_matmul_precision("highest"):
        loss, gradients = jax.jit(jax.value_and_grad(
            lambda params: sft_loss(params, tokens[:, :0], np.ones((3, 0), bool), tokens, corruption, cfg)
        ))(params)  # fmt: skip
    assert float(loss) == pytest.approx(expected.item(), abs=1e-5)
    expected = load_params(tmp_path / "gradients", cfg, mesh)
    for (path, have), want in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(have - want) <= 1e-3 * np.linalg.norm(want), jax.tree_util.keystr(path)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_logits_of_illada(tmp_path, mesh, tied):
    """The same network with another configuration and other names; the mask id is in the tokenizer only."""
    config = CONFIG | {"weight_tying": tied}
    weights = reference.random_weights(config, seed=3)

    def illada_name(name):
        *parents, last = name.removeprefix(reference.PREFIX).removesuffix(".weight").split(".")
        if not parents:
            return f"{ILLADA_NAMES[last]}.weight"
        return f"model.layers.{parents[1]}.{'mlp.down_proj' if last == 'ff_out' else ILLADA_NAMES[last]}.weight"

    theirs = {
        "architectures": ["ILLaDAForCausalLM"], "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 80, "vocab_size": 200, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": tied, "eos_token_id": EOS,
        "pad_token_id": EOS, "attention_bias": False, "mlp_bias": False, "layer_norm_eps": None, "rope_scaling": None,
    }  # fmt: skip
    write_folder(tmp_path, theirs, {illada_name(name): weight for name, weight in weights.items()}, files=2)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 5, "content": "<[MASK]>"}]}))
    ids = tokens_of(2, 19)
    _, cfg, logits = logits_of(tmp_path, ids, mesh)
    assert cfg.mask_id == 5
    np.testing.assert_allclose(logits, reference.run(weights, config, ids)[0], atol=2e-4)


# llada_parity.py on a fixture of other sizes

B5S15 = dict(steps=15, gen_length=15, block_length=5)
CASES = {
    "plain": dict(rows=1, prompt=5, steps=6, gen_length=12, block_length=12),
    "uneven": dict(rows=2, prompt=4, steps=6, gen_length=15, block_length=5),
    "more steps than tokens": dict(rows=1, prompt=3, steps=14, gen_length=10, block_length=5),
    "left padding, guidance": dict(rows=2, prompt=6, pads=(3, 0), cfg_scale=0.8, **B5S15),
    "no EOS": dict(rows=1, prompt=5, logits_eos_inf=True, **B5S15),
    "EOS and EoT last": dict(rows=2, prompt=5, confidence_eos_eot_inf=True, **B5S15),
    "temperature, EoT last": dict(rows=2, prompt=5, temperature=1.0, confidence_eos_eot_inf=True, **B5S15),
    "temperature, both flags, guidance": dict(rows=2, prompt=5, pads=(0, 2), temperature=0.9, cfg_scale=0.5,
                                              logits_eos_inf=True, confidence_eos_eot_inf=True, **B5S15),
    "random": dict(rows=3, prompt=5, remasking="random", **B5S15),
    "random, temperature": dict(rows=2, prompt=5, remasking="random", temperature=1.3, **B5S15),
    "masks in the prompt": dict(rows=2, prompt=6, masked=2, **B5S15),
}  # fmt: skip
UNTIED = ("uneven", "left padding, guidance", "temperature, EoT last", "random")  # the cases of the model with an untied head


def write_fixture(folder, config, seed, cases):
    """Writes the files that tests/model/fixtures/README.md lists, computed by the reference. cases: keys of CASES."""
    weights = {name: weight.bfloat16().float() for name, weight in reference.random_weights(config, seed).items()}
    write_folder(folder, config, weights)
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    write_folder(folder / "bf16_sharded", config, halves, files=3)

    rows, length = 3, 21
    ids, left, right = tokens_of(rows, length, seed), torch.ones(rows, length), torch.ones(rows, length)
    left[0, :4], left[2, :7], right[1, -5:] = 0, 0, 0
    blocks = torch.arange(length) // 6
    bias = (blocks[:, None] >= blocks)[None, None]
    long_ids = tokens_of(1, config["max_sequence_length"], seed + 1)
    with torch.no_grad():
        logits, states, block0 = reference.run(weights, config, ids)
        half_logits, half_states, _ = reference.run(halves, config, ids)
        forward = {f"block0.{name}": value for name, value in block0.items()} | {
            "input_ids": ids, "logits": logits, "hidden_states": torch.stack(states),
            "leftpad_mask": left.long(), "leftpad_logits": reference.run(weights, config, ids, left)[0],
            "rightpad_mask": right.long(), "rightpad_logits": reference.run(weights, config, ids, right)[0],
            "bool_bias": bias, "bool_bias_logits": reference.run(weights, config, ids, bias=bias)[0],
            "long_input_ids": long_ids, "long_logits": reference.run(weights, config, long_ids)[0],
            "bf16_logits_as_f32": half_logits.float(), "bf16_hidden_as_f32": torch.stack(half_states).float(),
        }  # fmt: skip
    np.savez(folder / "forward.npz", **forward)

    draw = torch.Generator().manual_seed(seed)
    p = torch.tensor([0.2, 0.5, 0.9])[:, None].expand(rows, length)
    noisy = torch.where(torch.rand(rows, length, generator=draw) < p, config["mask_token_id"], ids)
    prompts = torch.tensor([5, 9, 2])
    tuning = torch.where(torch.arange(length) < prompts[:, None], ids, noisy)
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    loss, by_token = reference.losses(leaves, config, ids, noisy, p)
    loss.backward()
    save_file({name: leaf.grad for name, leaf in leaves.items()}, folder / "pretrain_grads.safetensors")
    sft, _ = reference.losses(weights, config, ids, tuning, p, prompts)
    recorded = dict(
        ids=ids, p_mask=p, noisy=noisy, pretrain_loss=loss.detach().double(), pretrain_token_loss=by_token.detach(),
        sft_loss=sft.double(), sft_prompt_lengths=prompts, sft_noisy=tuning,
    )  # fmt: skip
    np.savez(folder / "loss.npz", **recorded)

    arrays, entries = {}, []
    for number, (name, case) in enumerate((name, CASES[name]) for name in cases):
        kwargs = {key: value for key, value in case.items() if key not in ("rows", "prompt", "pads", "masked")}
        prompt, mask = tokens_of(case["rows"], case["prompt"], seed + 10 + number), None
        prompt[:, 1 : 1 + case.get("masked", 0)] = config["mask_token_id"]
        if "pads" in case:
            mask = (torch.arange(case["prompt"]) >= torch.tensor(case["pads"])[:, None]).long()
            arrays[f"{name}/attention_mask"] = mask
        trace, noise = reference.generate(weights, config, prompt, EOS, EOT, mask, seed=seed + number, **kwargs)
        found = {"prompt": prompt, "trace": trace, "out": trace[-1]} | noise
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
        entries.append({"name": name, "kwargs": kwargs})
    np.savez(folder / "generate.npz", **arrays)
    settings = {"eos_id_used_by_generate": EOS, "eot_id_used_by_generate": EOT, "mask_id": config["mask_token_id"]}
    (folder / "generate.json").write_text(json.dumps(settings | {"cases": entries}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tied, layers, seed, cases",
    [(True, 3, 0, tuple(name for name in CASES if name not in UNTIED)), (False, 1, 1, UNTIED)],
    ids=["True-3-0", "False-1-1"],
)
def test_the_parity_tool_holds_for_other_sizes(tmp_path, capsys, tied, layers, seed, cases):
    write_fixture(tmp_path, CONFIG | {"weight_tying": tied, "n_layers": layers}, seed, cases)
    status = llada_parity.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and {line.split()[0] for line in lines} == {"ok"}, "\n".join(lines)
    assert f"{len(cases)}/{len(cases)} cases exact" in lines[-2]
