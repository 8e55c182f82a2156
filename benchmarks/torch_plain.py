"""LLaDA's plain sampler in PyTorch, a baseline: full forward passes, the head at every position (llada.md 6)."""

import numpy as np
import torch
import torch.nn.functional as F

from igpo_jax.diffusion.sampler import DecodeConfig
from igpo_jax.model.transformer import ModelConfig, Params


def torch_weights(params: Params, device: str, dtype: torch.dtype) -> dict:
    """The same weights; matrices [in, out], blocks as a list."""

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


def logits_of(weights: dict, tokens: torch.Tensor, valid: torch.Tensor, cfg: ModelConfig) -> torch.Tensor:
    """float32 [b, t, v]."""
    b, t = tokens.shape
    inverse = cfg.rope_theta ** -(torch.arange(0, cfg.head_size, 2, device=tokens.device) / cfg.head_size)
    angles = torch.outer(torch.arange(t, device=tokens.device).float(), inverse)
    sin, cos, keys = angles.sin(), angles.cos(), valid[:, None, None, :]
    x = weights["embedding"][tokens]
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
def plain_sample(weights: dict, prompt, valid, canvas, cfg: ModelConfig, decode: DecodeConfig) -> np.ndarray:
    """Completions, int32 [b, l], at temperature 0: every row takes all steps of all blocks, whatever has ended."""
    device = weights["embedding"].device
    prompt, valid, canvas = (torch.from_numpy(np.array(x)).to(device) for x in (prompt, valid, canvas))
    tokens = torch.cat([prompt, canvas], 1).long()
    valid = torch.cat([valid, torch.ones_like(canvas, dtype=torch.bool)], 1)
    steps, block = decode.steps // decode.blocks, decode.block_length
    for begin in range(prompt.shape[1], tokens.shape[1], block):
        masks = (tokens[:, begin : begin + block] == cfg.mask_id).sum(1)
        for step in range(steps):
            logits = logits_of(weights, tokens, valid, cfg)
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
