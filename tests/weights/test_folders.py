"""Conversion of Hugging Face folders, and errors for damaged ones."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.model.transformer import ModelConfig, shardings
from igpo_jax.runtime import files
from igpo_jax.weights import folders, huggingface
from igpo_jax.weights.folders import convert, export, load_params
from igpo_jax.weights.huggingface import (
    INDEX,
    check_sha256,
    folder_model_config,
    llada_config,
    model_config,
    read_model_json,
    tensor_names,
)
from igpo_jax.weights.safetensors_files import fill_files, stored_tensors
from model_folders import PLAIN, assert_same_files, tensor_bytes, write_folder

GROUPED = ModelConfig(
    vocab_size=32, mask_id=30, eos_id=29, width=24, layers=2, heads=6, kv_heads=2, mlp_width=40, tied_head=True
)


def illada_config(cfg):
    return {
        "architectures": ["ILLaDAForCausalLM"],
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "intermediate_size": cfg.mlp_width,
        "vocab_size": cfg.vocab_size,
        "rms_norm_eps": cfg.norm_epsilon,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "layer_norm_eps": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tied_head,
        "eos_token_id": cfg.eos_id,
        "mask_token_id": cfg.mask_id,
    }


def in_three_files(values, cfg):
    """Maps tensors to three files, mixing layers as LLaDA-8B-Base does."""
    names = sorted(name for names in tensor_names(values, cfg).values() for name in names)
    return {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(names)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, cfg",
    [
        ("llada", PLAIN),
        ("llada", GROUPED),
        ("illada", GROUPED),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_folder_survives_conversion_and_export_on_any_mesh(family, cfg, shape, tmp_path, mesh, mesh_of):
    values = llada_config(cfg, 64) if family == "llada" else illada_config(cfg)
    original = tmp_path / "original"
    params = write_folder(original, mesh, cfg, values, weight_map=in_three_files(values, cfg))
    (original / "modeling.py").write_text("# the code that goes with the weights\n")
    convert(original, tmp_path / "model", mesh_of(shape))
    export(tmp_path / "model", tmp_path / "exported", mesh)
    assert_same_files(original, tmp_path / "exported")
    for name in ("config.json", "modeling.py"):
        assert (tmp_path / "exported" / name).read_bytes() == (original / name).read_bytes()
    found = folder_model_config(original, param_dtype="bfloat16")
    assert found == ModelConfig(**(vars(cfg) | {"param_dtype": "bfloat16"}))
    for folder in (original, tmp_path / "model"):
        loaded = load_params(folder, found, mesh_of(shape))
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
        wanted = shardings(cfg, mesh_of(shape))
        assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), loaded, wanted)))


def test_tensors_lie_as_torch_linear_layers_expect(tmp_path, mesh):
    params = write_folder(tmp_path / "hf", mesh, dtype="float32")
    stored = stored_tensors(tmp_path / "hf")

    def tensor(name):
        found = stored[f"model.transformer.{name}.weight"]
        return np.frombuffer(tensor_bytes(found), found.dtype).reshape(found.shape)

    np.testing.assert_array_equal(tensor("blocks.2.ff_proj"), params["blocks"]["gate"][2].T)
    np.testing.assert_array_equal(tensor("blocks.1.ff_out"), params["blocks"]["down"][1].T)
    np.testing.assert_array_equal(tensor("ff_out"), params["head"].T)
    np.testing.assert_array_equal(tensor("wte"), params["embedding"])
    np.testing.assert_array_equal(tensor("blocks.0.attn_norm"), params["blocks"]["attention_norm"][0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_dtype_can_be_chosen(dtype, tmp_path, mesh):
    params = write_folder(tmp_path / "hf", mesh, dtype="bfloat16")
    convert(tmp_path / "hf", tmp_path / "model", mesh, dtype)
    export(tmp_path / "model", tmp_path / "exported", mesh)
    found = next(iter(stored_tensors(tmp_path / "exported").values())).dtype
    assert found == jnp.dtype(dtype or "bfloat16")
    cfg = folder_model_config(tmp_path / "model", param_dtype="float32")
    loaded = load_params(tmp_path / "model", cfg, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), loaded, params)


def test_files_are_filled_in_order_and_not_beyond_the_limit(monkeypatch):
    monkeypatch.setattr("igpo_jax.weights.safetensors_files.MAX_FILE_BYTES", 10)
    assert fill_files({"a": 6, "b": 4, "c": 1, "d": 30, "e": 1}) == {
        "a": "model-00001-of-00004.safetensors",
        "b": "model-00001-of-00004.safetensors",
        "c": "model-00002-of-00004.safetensors",
        "d": "model-00003-of-00004.safetensors",
        "e": "model-00004-of-00004.safetensors",
    }
    assert set(fill_files({"a": 5, "b": 5}).values()) == {"model.safetensors"}


def test_target_is_whole_or_not_there(tmp_path, mesh, monkeypatch):
    write_folder(tmp_path / "hf", mesh)
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="taken exists already"):
        convert(tmp_path / "hf", tmp_path / "taken", mesh)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(folders.ocp, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(tmp_path / "hf", tmp_path / "model", mesh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "taken"]


# Damaged folders


def edit_json(file: pathlib.Path, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_header(file: pathlib.Path, change):
    """Changes the header of a safetensors file, but not its data."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


Q = "model.transformer.blocks.1.q_proj.weight"
GATE = "model.transformer.blocks.1.ff_proj.weight"
FILE = "model-00001-of-00003.safetensors"


def file_of(folder, name):
    return stored_tensors(folder)[name].file


def rename(names, old, new):
    names[new] = names.pop(old)


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
    (lambda f: (f / INDEX).write_text("nonsense"), "index.json: not JSON"),
    (lambda f: edit_json(f / INDEX, lambda v: v.pop("weight_map")), "weight_map does not map tensors to files"),
    (lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].pop(Q)), f"index.json places {Q} in None"),
    (lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update({Q: "model-00002-of-00003.safetensors"})), f"places {Q} in"),
    (lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update(extra=FILE)), "has no tensor extra"),
    (lambda f: (f / FILE).unlink(), f"{FILE} is missing; {INDEX} names it"),
    (lambda f: (f / INDEX).unlink(), f"there is no {INDEX}|model.safetensors is missing"),
    (lambda f: (f / "model-extra.safetensors").write_bytes(b""), "model-extra.safetensors is not named"),
    (lambda f: [path.unlink() for path in f.glob("*.safetensors")], "has no model"),
    (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-1]), f"{FILE}: cut short"),
    (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:40]), f"{FILE}: cut short, or not a safetensors file"),
    (lambda f: (f / FILE).write_bytes(b""), f"{FILE}: cut short, or not a safetensors file"),
    (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes() + b"x"), f"{FILE}: too long"),
    (lambda f: edit_header(file_of(f, Q), lambda h: h.pop(Q)), "has no tensor|begins at byte"),
    (lambda f: edit_header(file_of(f, Q), lambda h: h[Q].update(shape=[16, 15])), f"tensor {Q}: BF16"),
    (lambda f: edit_header(file_of(f, Q), lambda h: h[Q].update(shape=[16, -16])), f"tensor {Q}: shape"),
    (lambda f: edit_header(file_of(f, Q), lambda h: h[Q].update(dtype="I16")), f"tensor {Q}: dtype 'I16' is none of F32"),
    (lambda f: edit_header(file_of(f, Q), lambda h: h[Q].update(dtype="F16")), "all must have one dtype"),
    (lambda f: edit_header(file_of(f, GATE), lambda h: h[GATE]["shape"].reverse()), f"tensor {GATE} has shape .16, 24., config.json asks for .24, 16."),
    (lambda f: edit_json(f / "config.json", lambda v: v.update(n_layers=4)), "lacks model.transformer.blocks.3"),
    (lambda f: edit_json(f / "config.json", lambda v: v.update(n_layers=2)), "no place for: model.transformer.blocks.2.*and 6 more"),
    (lambda f: edit_json(f / "config.json", lambda v: v.update(weight_tying=True)), "ff_out.weight differs from model.transformer.wte.weight"),
    (lambda f: edit_json(f / "config.json", lambda v: v.update(n_kv_heads=2)), "k_proj.weight has shape|v_proj.weight has shape"),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_in_one_line(damage, message, tmp_path, mesh):
    folder = tmp_path / "hf"
    values = llada_config(PLAIN, 64)
    write_folder(folder, mesh, weight_map=in_three_files(values, PLAIN))
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        convert(folder, tmp_path / "model", mesh)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("change, message", [
    ({"architectures": ["LLaDAMoEModelLM"]}, "architectures=.'LLaDAMoEModelLM'.; mixtures of experts are not supported"),
    ({"architectures": None}, "architectures=None"),
    ({"activation_type": "swiglu"}, "activation_type='swiglu' is not supported; only 'silu' is"),
    ({"alibi": True}, "alibi=True"),
    ({"attention_layer_norm": True}, "attention_layer_norm=True"),
    ({"block_group_size": 2}, "block_group_size=2"),
    ({"block_type": "sequential"}, "block_type='sequential'"),
    ({"include_bias": True}, "include_bias=True"),
    ({"include_qkv_bias": True}, "include_qkv_bias=True"),
    ({"input_emb_norm": True}, "input_emb_norm=True"),
    ({"layer_norm_type": "default"}, "layer_norm_type='default'"),
    ({"scale_logits": True}, "scale_logits=True"),
    ({"rope": False}, "rope=False"),
    ({"rope_full_precision": False}, "rope_full_precision=False"),
    ({"residual_dropout": 0.1}, "residual_dropout=0.1"),
    ({"multi_query_attention": True}, "multi_query_attention=True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"d_model": None}, "d_model must be an integer, at least 1, not None"),
    ({"d_model": "16"}, "d_model must be an integer"),
    ({"d_model": None, "mlp_hidden_size": None, "mlp_ratio": 4}, "d_model must be an integer"),
    ({"n_layers": 0}, "n_layers must be an integer, at least 1, not 0"),
    ({"n_heads": 3, "n_kv_heads": 3}, "width=16 must divide into heads=3"),
    ({"n_kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
    ({"rope_theta": -1}, "rope_theta must be a positive number"),
    ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number"),
    ({"embedding_size": 64}, "embedding_size=64 differs from vocab_size=32"),
    ({"embedding_size": 64, "vocab_size": "a\nb"}, r"embedding_size=64 differs from vocab_size='a\\nb'"),
    ({"mask_token_id": 32}, "mask_token_id=32 is not below vocab_size=32"),
    ({"mask_token_id": None}, "no mask_token_id"),
    ({"eos_token_id": 99}, "eos_token_id=99 is not below"),
    ({"weight_tying": "yes"}, "tied must be true or false"),
])  # fmt: skip
def test_config_that_asks_for_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        model_config(llada_config(PLAIN, 64) | change)


@pytest.mark.parametrize("change, message", [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling=.* only the default is"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
])  # fmt: skip
def test_illada_config_that_asks_for_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        model_config(illada_config(GROUPED) | change)


def test_config_of_llada_8b_is_understood():
    values = llada_config(PLAIN, 4096) | dict(
        d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, mlp_hidden_size=12288, mlp_ratio=4, vocab_size=126464,
        embedding_size=126464, mask_token_id=126336, eos_token_id=126081, multi_query_attention=None,
        attention_layer_norm_with_affine=True, flash_attention=False, init_fn="mitchell", use_cache=False,
    )  # fmt: skip
    cfg = model_config(values)
    assert (cfg.width, cfg.head_size, cfg.mlp_width, cfg.mask_id, cfg.rope_theta) == (
        4096,
        128,
        12288,
        126336,
        500_000.0,
    )
    names = [name for names in tensor_names(values, cfg).values() for name in names]
    assert len(names) == 291 and len(set(names)) == 291  # docs/method.md section 3


def test_sizes_that_the_config_leaves_out_follow_from_others():
    values = llada_config(PLAIN, 64) | {"n_kv_heads": None, "mlp_hidden_size": None, "mlp_ratio": 4}
    cfg = model_config(values)
    assert (cfg.kv_heads, cfg.mlp_width) == (PLAIN.heads, 4 * PLAIN.width)


def test_a_mask_id_that_the_config_lacks_is_looked_up_in_the_tokenizer(tmp_path):
    values = {key: value for key, value in illada_config(GROUPED).items() if key != "mask_token_id"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="no mask_token_id, and the tokenizer names no mask token"):
        folder_model_config(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 5, "content": "<[MASK]>"}]}))
    assert folder_model_config(tmp_path).mask_id == 5


def test_a_mask_id_that_contradicts_the_tokenizer_is_refused(tmp_path):
    def config(mask_id, *names):
        added = [{"id": 5 + number, "content": name} for number, name in enumerate(names)]
        (tmp_path / "config.json").write_text(json.dumps(llada_config(PLAIN, 64) | {"mask_token_id": mask_id}))
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        return folder_model_config(tmp_path)

    for names in ((), ("<|other|>",), ("<|mdm_mask|>",), ("[MASK]", "<|mdm_mask|>"), ("<|mdm_mask|>", "[MASK]")):
        assert config(4 + len(names) if names else 6, *names).mask_id
    with pytest.raises(ValueError, match="mask_token_id=7, but the tokenizer's <.mdm_mask.> is 5; MASK has one id"):
        config(7, "<|mdm_mask|>", "<|other|>")


def test_known_releases_are_compared_file_by_file(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no sums are known of 'LLaDA-9B'; there are those of LLaDA-8B-Base"):
        check_sha256(tmp_path, "LLaDA-9B")
    with pytest.raises(ValueError, match="config.json is not that of LLaDA-1.5: its sha256 is 44136fa3"):
        check_sha256(tmp_path, "LLaDA-1.5")
    sums = {"config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "gone.json": "0" * 64}
    monkeypatch.setitem(huggingface.SHA256, "test", sums)
    with pytest.raises(ValueError, match="gone.json is missing; test has it"):
        check_sha256(tmp_path, "test")
    sums.pop("gone.json")
    assert check_sha256(tmp_path, "test") == ["config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("damage, message", [
    (lambda f: shutil.rmtree(f / "params" / "blocks.gate"), "blocks.gate cannot be read"),
    (lambda f: edit_json(f / "config.json", lambda v: v.update(d_model=32)), "it has shape .*config.json asks for"),
    (lambda f: [p.write_bytes(p.read_bytes()[:10]) for p in (f / "params" / "head").rglob("*") if p.is_file()], "head cannot be read"),
])  # fmt: skip
def test_a_damaged_model_folder_is_refused(damage, message, tmp_path, mesh):
    write_folder(tmp_path / "hf", mesh)
    convert(tmp_path / "hf", tmp_path / "model", mesh)
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "model", folder_model_config(tmp_path / "model"), mesh)


@pytest.mark.slow
def test_an_array_that_unpacks_to_far_more_than_is_stored_is_refused(tmp_path, mesh, monkeypatch):
    """Zeros take almost no space, so a stranger's small folder could fill the memory."""
    write_folder(tmp_path / "hf", mesh)
    convert(tmp_path / "hf", tmp_path / "model", mesh)
    load_params(tmp_path / "model", folder_model_config(tmp_path / "model"), mesh)
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 16)
    monkeypatch.setattr(files, "MOST_RATIO", 0)
    with pytest.raises(ValueError, match="params/.* cannot be read: .*unpacks to more than 0 times its size"):
        load_params(tmp_path / "model", folder_model_config(tmp_path / "model"), mesh)


def is_refused(folder, params, mesh):
    """Returns whether loading a damaged folder raises a single-line error; otherwise asserts that its weights are right."""
    try:
        loaded = load_params(folder, folder_model_config(folder, param_dtype="bfloat16"), mesh)
    except ValueError as error:
        assert "\n" not in str(error)
        return True
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    return False


@pytest.mark.slow
def test_model_folders_with_missing_or_shortened_files_give_an_error_or_the_right_weights(tmp_path, mesh):
    params = write_folder(tmp_path / "hf", mesh)
    convert(tmp_path / "hf", tmp_path / "model", mesh)
    files = sorted(path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*") if path.is_file())
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(30):
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "model", bad)
        file = bad / files[draw.integers(len(files))]
        raw = file.read_bytes()
        if number % 2:
            file.unlink()
        else:
            file.write_bytes(raw[: draw.integers(max(1, len(raw)))])
        refused += is_refused(bad, params, mesh)
        shutil.rmtree(bad)
    assert refused > 10


@pytest.mark.slow
def test_two_hundred_random_corruptions_give_an_error_or_the_right_weights(tmp_path, mesh):
    """Damages files by truncation, flipped bytes of headers, index and configuration, deleted keys and swapped shapes."""
    good = tmp_path / "good"
    values = llada_config(PLAIN, 64)
    params = write_folder(good, mesh, weight_map=in_three_files(values, PLAIN))
    cfg = folder_model_config(good)
    files = sorted(good.glob("*.safetensors"))
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        bad = tmp_path / f"bad{number}"
        shutil.copytree(good, bad)
        file = bad / files[draw.integers(len(files))].name
        raw = bytearray(file.read_bytes())
        length = int.from_bytes(raw[:8], "little")
        kind = number % 5
        if kind == 0:
            file.write_bytes(raw[: draw.integers(len(raw))])
        elif kind == 1:
            for _ in range(draw.integers(1, 4)):
                raw[draw.integers(8 + length)] ^= 1 << draw.integers(8)
            file.write_bytes(raw)
        elif kind == 2:
            text = bytearray((bad / INDEX).read_bytes())
            text[draw.integers(len(text))] ^= 1 << draw.integers(8)
            (bad / INDEX).write_bytes(text)
        else:

            def change(header, kind=kind):
                names = sorted(name for name in header if name != "__metadata__")
                one, other = draw.choice(names, 2, replace=False)
                if kind == 3:
                    del header[one]
                else:
                    header[one]["shape"], header[other]["shape"] = header[other]["shape"], header[one]["shape"]

            edit_header(file, change)
        if is_refused(bad, params, mesh):
            refused += 1
        else:
            assert read_model_json(bad) == read_model_json(good) and cfg.width == 16
        shutil.rmtree(bad)
    assert refused > 150
