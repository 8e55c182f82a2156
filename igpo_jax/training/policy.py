"""The policy: a network and what of it is trained."""

import jax
from jax.sharding import Mesh

from igpo_jax.model import transformer
from igpo_jax.model.lora import LoraConfig, attach
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig


def policy_params(trained: Params, base_params: Params | None, lora: LoraConfig | None) -> Params:
    """The network's parameters: what is trained itself, or the frozen ones with the adapters that are trained."""
    return trained if lora is None else attach(base_params, trained, lora)


def cast_params(params: Params, model: ModelConfig, mesh: Mesh) -> Params:
    """All parameters in the compute dtype, where they lie: what a network computes is the same, since every weight is cast
    before it is used, and half is read and exchanged. `params` themselves where that is their dtype."""
    if model.compute_dtype == model.param_dtype:
        return params
    return make_cast(model, mesh)(params)


def sampling_params(trained: Params, base_params: Params | None, model: ModelConfig, mesh: Mesh, lora: LoraConfig | None) -> Params:
    """The network as it samples and is scored."""
    return policy_params(trained if lora else cast_params(trained, model, mesh), base_params, lora)


def make_cast(model: ModelConfig, mesh: Mesh):
    """The compiled cast of all parameters to the compute dtype."""

    def cast(params):
        return jax.tree.map(lambda x: x.astype(model.compute_dtype), params)

    return jax.jit(cast, out_shardings=transformer.shardings(model, mesh))
