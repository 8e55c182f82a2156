"""The policy: a network and the parameters that are trained."""

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from igpo_jax.model import lora as adapters
from igpo_jax.model import transformer
from igpo_jax.model.lora import LoraConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.runtime.checks import present


class PolicyParams(NamedTuple):
    """Parameters of a policy. Without adapters, `trained` contains all parameters of the network, and `base` is None. With
    adapters, `trained` contains the adapters, and `base` contains the frozen parameters of the network."""

    trained: Params
    base: Params | None


@dataclasses.dataclass(frozen=True)
class Policy:
    """Configuration of a policy: the network and its adapters. If `lora` is None, there are no adapters, and all parameters of
    the network are trained."""

    model: ModelConfig
    lora: LoraConfig | None = None

    def abstract(self, mesh: Mesh) -> Params:
        """Returns a `jax.ShapeDtypeStruct` (shape, dtype and sharding on `mesh`) for each trained parameter."""
        return transformer.abstract(self.model, mesh) if self.lora is None else adapters.abstract(self.model, self.lora, mesh)

    def abstract_base(self, mesh: Mesh) -> Params | None:
        """Returns a `jax.ShapeDtypeStruct` (shape, dtype and sharding) for each array of the frozen parameters, or None without
        adapters."""
        return None if self.lora is None else transformer.abstract_base(self.model, mesh)

    def init(self, key: jax.Array, mesh: Mesh) -> Params:
        """Returns initial values of the trained parameters, sharded on `mesh`. These are random network parameters, or adapters
        that leave the network unchanged."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(mesh))
        if self.lora is None:
            return jax.jit(transformer.init, static_argnums=1, out_shardings=shardings)(key, self.model)
        return jax.jit(adapters.init, static_argnums=(1, 2), out_shardings=shardings)(key, self.model, self.lora)

    def assemble(self, trained: Params, base: Params | None) -> Params:
        """Returns the network's parameters for `transformer.forward`. The returned parameters are differentiable with respect
        to `trained`."""
        return trained if self.lora is None else adapters.attach(present(base), trained, self.lora)

    def for_sampling(self, trained: Params, base: Params | None, mesh: Mesh) -> Params:
        """Returns parameters for sampling and for computing log-probabilities. Without adapters, the parameters are cast to the
        compute dtype. With adapters, the base parameters keep their dtype and are not copied."""
        return self.assemble(trained if self.lora else cast_params(trained, self.model, mesh), base)

    def abstract_for_sampling(self, mesh: Mesh) -> Params:
        """Returns the shapes, dtypes and shardings on `mesh` of the parameters that `for_sampling` returns."""
        return self.abstract_sampling(self.abstract(mesh), self.abstract_base(mesh), mesh)

    def abstract_sampling(self, trained: Params, base: Params | None, mesh: Mesh) -> Params:
        """Returns the shapes, dtypes and shardings of the parameters that `for_sampling` returns. `trained` and `base` contain
        `jax.ShapeDtypeStruct` in place of the arrays that are passed to `for_sampling`."""
        if self.lora is not None:
            return abstract_attach(present(base), trained)
        return transformer.abstract(in_compute_dtype(self.model), mesh) if self.makes_copy() else trained

    def copy_to(self, sampling_params: Params, mesh: Mesh) -> Params:
        """Copies the parameters that `for_sampling` returns to another mesh of the same devices, and waits for the copy.
        Parameters that are already on `mesh` are returned as they are."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_for_sampling(mesh))
        return jax.block_until_ready(jax.device_put(sampling_params, shardings))

    def makes_copy(self) -> bool:
        """Returns whether `for_sampling` makes a copy of the trained parameters in another dtype."""
        return self.lora is None and self.model.compute_dtype != self.model.param_dtype

    def decay_mask(self) -> Params | None:
        """Returns the weight-decay mask: True for matrices, False for norm scales and biases. With adapters, returns None,
        which means that all trained parameters decay."""
        return transformer.weight_decay_mask(self.model) if self.lora is None else None


def abstract_attach(base: Params, trained: Params) -> Params:
    """Returns the shapes of the parameters that `lora.attach` returns: those of the base model, with the adapters attached.
    `base` and `trained` are the shapes of the base parameters and of the adapters."""
    return base | {"blocks": base["blocks"] | {"adapters": trained}}


def in_compute_dtype(model: ModelConfig) -> ModelConfig:
    """Returns a copy of the model configuration whose parameter dtype is the compute dtype."""
    return dataclasses.replace(model, param_dtype=model.compute_dtype)


def cast_params(params: Params, model: ModelConfig, mesh: Mesh) -> Params:
    """Returns the parameters, cast to the compute dtype, with the same shardings. Returns `params` itself if no cast is needed.
    The cast halves the bytes to read and exchange. Results do not change, because every weight is cast before use anyway."""
    return params if model.compute_dtype == model.param_dtype else make_cast(model, mesh)(params)


def make_cast(model: ModelConfig, mesh: Mesh):
    """Returns a compiled function that casts all parameters to the compute dtype."""

    def cast(params):
        return jax.tree.map(lambda x: x.astype(model.compute_dtype), params)

    return jax.jit(cast, out_shardings=transformer.shardings(model, mesh))
