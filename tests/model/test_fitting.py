"""The back end of attention that `auto` takes, for devices that are described by their attributes."""

import types

import jax
import numpy as np
import pytest

from igpo_jax.model.attention import attend
from igpo_jax.model.fitting import attention_conflict, fit_to_devices
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.mesh import make_mesh

HEADS = 2
DEVICES = {
    "cpu": ("cpu", "cpu", None), "v5e": ("tpu", "TPU v5 lite", None), "t4": ("gpu", "Tesla T4", "7.5"),
    "a100": ("gpu", "NVIDIA A100-SXM4-80GB", "8.0"), "h100": ("gpu", "NVIDIA H100 80GB HBM3", "9.0"),
    "b200": ("gpu", "NVIDIA B200", "10.0"), "mi300": ("gpu", "AMD Instinct MI300X", "gfx942"), "unknown": ("gpu", "GPU", None),
}  # fmt: skip


def device(name):
    platform, kind, capability = DEVICES[name]
    given = {} if capability is None else {"compute_capability": capability}
    return types.SimpleNamespace(platform=platform, device_kind=kind, **given)


def model(attention="auto", head=128, dtype="bfloat16") -> ModelConfig:
    shape = {"width": HEADS * head, "layers": 1, "heads": HEADS, "kv_heads": 1, "mlp_width": 8}
    return ModelConfig(vocab_size=8, mask_id=1, eos_id=2, attention=attention, compute_dtype=dtype, **shape)


def chosen(name, lengths, **of_model) -> str:
    mesh = types.SimpleNamespace(devices=np.array([[[device(name)]]]), shape={"tensor": 1})
    return fit_to_devices(model(**of_model), mesh, lengths).attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", [4, 8, 64, 120, 128, 136, 256])
@pytest.mark.parametrize("lengths", [[128, 896], [128, 130], [128, 129], None])
def test_auto_takes_the_kernel_that_supports_the_rows_and_otherwise_xla(dtype, head, lengths):
    even = lengths != [128, 129]
    cudnn = dtype == "bfloat16" and head % 8 == 0 and head <= 128 and even
    splash = head == 128 and lengths == [128, 896]
    for name in DEVICES:
        expected = "xla"
        if name in ("a100", "h100", "b200") and cudnn:
            expected = "cudnn"
        if name == "v5e" and splash:
            expected = "splash"
        assert chosen(name, lengths, dtype=dtype, head=head) == expected, name


@pytest.mark.parametrize("attention", ["xla", "cudnn", "splash"])
def test_a_named_back_end_is_kept(attention):
    assert chosen("cpu", [7], attention=attention) == attention


@pytest.mark.parametrize("attention, name, of_model, lengths, message", [
    ("cudnn", "cpu", {}, [128], "runs on gpu, not on cpu"),
    ("cudnn", "v5e", {}, [128], "runs on gpu, not on tpu"),
    ("cudnn", "h100", {"dtype": "float32"}, [128], "computes in bfloat16, not in model.compute_dtype=float32"),
    ("cudnn", "t4", {}, [128], "needs an NVIDIA GPU of compute capability 8.0 or later; Tesla T4 has 7.5"),
    ("cudnn", "mi300", {}, [128], "compute capability 8.0 or later; AMD Instinct MI300X has gfx942"),
    ("cudnn", "unknown", {}, [128], "compute capability 8.0 or later; GPU has none"),
    ("cudnn", "a100", {"head": 136}, [128], "to be a multiple of 8 up to 128, not 136"),
    ("cudnn", "b200", {"head": 256}, [128], "to be a multiple of 8 up to 128, not 256"),
    ("cudnn", "h100", {"head": 256}, [128], ""),
    ("cudnn", "h100", {"head": 100}, [128], "to be a multiple of 8 up to 256, not 100"),
    ("cudnn", "h100", {}, [128, 131], "of an even length, not of 131 positions"),
    ("splash", "h100", {}, [128], "runs on tpu, not on gpu"),
    ("splash", "v5e", {"head": 64}, [128], "to be a multiple of 128, not 64"),
    ("splash", "v5e", {}, [128, 144], "whose length is a multiple of 128, not of 144 positions"),
    ("splash", "v5e", {"head": 256, "dtype": "float32"}, [128], ""),
    ("xla", "t4", {"head": 4, "dtype": "float32"}, None, ""),
])  # fmt: skip
def test_what_a_back_end_cannot_do_is_said(attention, name, of_model, lengths, message):
    conflict = attention_conflict(attention, model(**of_model), device(name), lengths)
    assert conflict.endswith(message) and bool(conflict) == bool(message)


def test_a_cpu_of_jax_computes_with_xla():
    mesh = make_mesh(devices=jax.devices("cpu")[:1])
    assert fit_to_devices(model(), mesh, [128]) == model("xla")


def test_attention_is_computed_only_by_a_named_back_end():
    q = jax.numpy.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match="attention='auto' is not xla, cudnn, splash"):
        attend(q, q, q, jax.numpy.ones((1, 2), bool), "auto")
