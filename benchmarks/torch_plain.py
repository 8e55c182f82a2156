"""Baselines in PyTorch: the plain sampler (docs/method.md section 5) and the plain policy update (section 10).

Forward passes are full, with one row per completion and the head at every position. Only types and configs come from the
package.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from comparison import UpdateInputs
from igpo_jax.diffusion.unmasking import DecodeConfig
from igpo_jax.model.sharding import Params
from igpo_jax.model.transformer import ModelConfig
from igpo_jax.rl.objective import MAX_LOG_RATIO


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_weights(params: Params, device: str, dtype: torch.dtype) -> dict:
    """Returns the same weights as tensors; matrices are [in, out], blocks a list."""

    def tensor(x):
        return torch.from_numpy(np.array(x, np.float32)).to(device, dtype)

    blocks = [{name: tensor(w[i]) for name, w in params["blocks"].items()} for i in range(len(params["blocks"]["query"]))]
    return {"blocks": blocks, **{name: tensor(params[name]) for name in ("embedding", "final_norm", "head")}}


def _rms_norm(x, scale, epsilon):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * scale


def _rotate(x, sin, cos):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def logits_of(weights: dict, tokens: torch.Tensor, prompt_mask: torch.Tensor, cfg: ModelConfig) -> torch.Tensor:
    """Returns logits, f32[b, t, v]."""
    b, t = tokens.shape
    inverse = cfg.rope_theta ** -(torch.arange(0, cfg.head_size, 2, device=tokens.device) / cfg.head_size)
    angles = torch.outer(torch.arange(t, device=tokens.device).float(), inverse)
    sin, cos, keys = angles.sin(), angles.cos(), prompt_mask[:, None, None, :]
    x = F.embedding(tokens, weights["embedding"])
    for w in weights["blocks"]:
        h = _rms_norm(x, w["attention_norm"], cfg.norm_epsilon)
        q, k, v = ((h @ w[name]).view(b, t, -1, cfg.head_size).transpose(1, 2) for name in ("query", "key", "value"))
        k, v = (y.repeat_interleave(cfg.heads // cfg.kv_heads, dim=1) for y in (k, v))
        attended = F.scaled_dot_product_attention(_rotate(q, sin, cos), _rotate(k, sin, cos), v, attn_mask=keys)
        x = x + attended.transpose(1, 2).reshape(b, t, -1) @ w["attention_out"]
        h = _rms_norm(x, w["mlp_norm"], cfg.norm_epsilon)
        x = x + (F.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
    return (_rms_norm(x, weights["final_norm"], cfg.norm_epsilon) @ weights["head"]).float()


@torch.no_grad()
def plain_sample(weights: dict, prompt, prompt_mask, canvas, cfg: ModelConfig, decode: DecodeConfig) -> np.ndarray:
    """Returns completions, i32[b, l], at temperature 0; every row takes all steps of all blocks, even after its end."""
    device = weights["embedding"].device
    prompt, prompt_mask, canvas = (torch.from_numpy(np.array(x)).to(device) for x in (prompt, prompt_mask, canvas))
    tokens = torch.cat([prompt, canvas], 1).long()
    prompt_mask = torch.cat([prompt_mask, torch.ones_like(canvas, dtype=torch.bool)], 1)
    steps, block = decode.steps_per_block, decode.block_length
    for begin in range(prompt.shape[1], tokens.shape[1], block):
        masks = (tokens[:, begin : begin + block] == cfg.mask_id).sum(1)
        for step in range(steps):
            logits = logits_of(weights, tokens, prompt_mask, cfg)
            logits[..., cfg.mask_id] = -torch.inf
            drawn = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
            candidate = tokens == cfg.mask_id
            candidate[:, begin + block :] = False
            confidence = torch.where(candidate, confidence, -torch.inf)
            for row, count in enumerate((masks // steps + (step < masks % steps)).tolist()):
                chosen = confidence[row].topk(count).indices
                tokens[row, chosen] = torch.where(candidate[row], drawn[row], tokens[row])[chosen]
    return tokens[:, prompt.shape[1] :].int().cpu().numpy()


def make_policy_update(inputs: UpdateInputs) -> Callable[[], list[float]]:
    """Returns a function that makes one policy update, in float32, and returns the loss of every inner step: log-probs of the
    old policy and the reference, then inner steps of forward, backward, clipping and AdamW. Each call continues from the last.

    Supports the paper's objective only (mean_field, sequence-level ratio, advantages as given), at the peak learning rate.

    Args:
        inputs: with a batch of host arrays; it is tiled to one row per completion here.
    """
    params, old, reference, batch, cfg, objective, adamw = inputs
    device = best_device()
    policy, old, reference = (torch_weights(weights, device, torch.float32) for weights in (params, old, reference))
    trained = [w for block in policy["blocks"] for w in block.values()]
    trained = [w.requires_grad_() for w in (*trained, policy["embedding"], policy["final_norm"], policy["head"])]
    matrices, norms = [w for w in trained if w.dim() > 1], [w for w in trained if w.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": adamw.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=adamw.learning_rate,
        betas=(adamw.b1, adamw.b2),
    )

    def tensor(x):
        return torch.from_numpy(np.array(x)).to(device)

    group = batch.completions.shape[1]
    prompt, prompt_mask = (tensor(x).repeat_interleave(group, 0) for x in (batch.prompt, batch.prompt_mask))
    completions, hint, loss_mask = (tensor(x).flatten(0, 1) for x in (batch.completions, batch.hint, batch.loss_mask))
    advantages, targets = tensor(batch.advantages).flatten(), completions.long()[..., None]
    tokens = torch.cat([prompt, torch.full_like(completions, cfg.mask_id)], 1)
    prompt_mask = torch.cat([prompt_mask, torch.ones_like(loss_mask)], 1)

    def log_softmax(weights):  # [n * g, l, v]
        return logits_of(weights, tokens, prompt_mask, cfg)[:, prompt.shape[1] :].log_softmax(-1)

    def of_targets(table):  # [n * g, l]
        return table.gather(-1, targets)[..., 0]

    def scores():
        table = log_softmax(old)
        candidates, entropy = hint & loss_mask, -(table.exp() * table).sum(-1)
        kept = (objective.entropy_keep * candidates.sum(-1, keepdim=True) + 1e-6).floor().clamp(min=1)
        rank = torch.where(candidates, -entropy, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
        return of_targets(table), of_targets(log_softmax(reference)), loss_mask & (~hint | (rank < kept))

    def loss_of(new, old, reference, counted):
        def mean(values):
            return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)

        ratio = mean(new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        to_reference = (reference - new).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        kl = to_reference.exp() - to_reference - 1
        return mean(objective.kl_coefficient * kl - surrogate[:, None]).mean()

    def policy_update():
        with torch.no_grad():
            fixed, losses = scores(), []
        for _ in range(objective.inner_steps):
            optimizer.zero_grad()
            loss = loss_of(of_targets(log_softmax(policy)), *fixed)
            loss.backward()
            norm = torch.stack([w.grad.norm() for w in trained]).norm()
            for w in trained:
                w.grad *= (adamw.max_grad_norm / norm).clamp(max=1)
            optimizer.step()
            losses.append(loss.detach())
        return [float(loss) for loss in losses]

    return policy_update
