"""LLaDA in plain PyTorch, for comparison: forward pass, losses and the released sampler (docs/method.md sections 3 and 5).

Does not use the project's code. Weights are a dict of tensors with LLaDA's names. The configuration has config.json's values.
"""

import torch
import torch.nn.functional as F

PREFIX = "model.transformer."


def random_weights(config, seed):
    """Returns random weights. Embedding rows differ much in size, and norm scales are not 1."""
    draw = torch.Generator().manual_seed(seed)
    d, f, head_size = config["d_model"], config["mlp_hidden_size"], config["d_model"] // config["n_heads"]
    kv = config["n_kv_heads"] * head_size

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    shapes = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d), "ff_proj": (f, d),
              "up_proj": (f, d), "ff_out": (d, f)}  # fmt: skip
    size = torch.exp(torch.empty(config["vocab_size"], 1).uniform_(-2, 2, generator=draw))
    weights = {"wte": size * normal(config["vocab_size"], d) * d**-0.5, "ln_f": 1 + 0.2 * normal(d)}
    for i in range(config["n_layers"]):
        weights |= {f"blocks.{i}.{name}": 1 + 0.2 * normal(d) for name in ("attn_norm", "ff_norm")}
        weights |= {f"blocks.{i}.{name}": normal(*shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    if not config["weight_tying"]:
        weights["ff_out"] = normal(config["vocab_size"], d) * 3 * d**-0.5
    return {f"{PREFIX}{name}.weight": weight.contiguous() for name, weight in weights.items()}


def rms_norm(x, weight, epsilon):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


def rotate(x, theta):
    """Applies rotary embeddings to x [b, heads, t, size]; the first half of a head is paired with the second."""
    size, length = x.shape[-1], x.shape[-2]
    inverse = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(length).float(), inverse)
    sin, cos = torch.cat([angles.sin()] * 2, -1), torch.cat([angles.cos()] * 2, -1)
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def run(weights, config, ids, mask=None, bias=None):
    """Returns logits [b, t, v], the hidden states, and the internals of block 0.

    Args:
        mask: [b, t], 0 at padding keys.
        bias: bool [1 or b, 1, t, t], True if a query may attend to a key.
    """
    heads, kv_heads, epsilon = config["n_heads"], config["n_kv_heads"], config["rms_norm_eps"]
    b, t = ids.shape
    allowed = torch.ones(b, 1, t, t, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & mask.bool()[:, None, None, :]
    if bias is not None:
        allowed = allowed & bias
    x = weights[f"{PREFIX}wte.weight"][ids]
    states, block0 = [x], {}
    for i in range(config["n_layers"]):

        def weight(name, i=i):
            return weights[f"{PREFIX}blocks.{i}.{name}.weight"]

        h = rms_norm(x, weight("attn_norm"), epsilon)
        now = {"attn_norm": h} | {name: h @ weight(name).T for name in ("q_proj", "k_proj", "v_proj")}
        q, k, v = (
            now[f"{name}_proj"].view(b, t, number, -1).transpose(1, 2)
            for name, number in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = now["q_rope"], now["k_rope"] = rotate(q, config["rope_theta"]), rotate(k, config["rope_theta"])
        k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).float()
        scores = scores.masked_fill(~allowed, torch.finfo(torch.float32).min)
        attended = (scores.softmax(-1).to(x.dtype) @ v).transpose(1, 2).reshape(b, t, -1)
        now["attn_out"] = attended @ weight("attn_out").T
        x = x + now["attn_out"]
        h = now["ff_norm"] = rms_norm(x, weight("ff_norm"), epsilon)
        now["ff_proj"], now["up_proj"] = h @ weight("ff_proj").T, h @ weight("up_proj").T
        now["ff_out"] = (F.silu(now["ff_proj"]) * now["up_proj"]) @ weight("ff_out").T
        x = now["out"] = x + now["ff_out"]
        states.append(x)
        block0 = block0 or now
    states[-1] = rms_norm(x, weights[f"{PREFIX}ln_f.weight"], epsilon)
    head = weights[f"{PREFIX}{'wte' if config['weight_tying'] else 'ff_out'}.weight"]
    return states[-1] @ head.T, states, block0


def losses(weights, config, ids, noisy, p, prompt_lengths=None):
    """Returns the loss, a mean over all tokens or (with `prompt_lengths`) over each answer, and CE / p of every masked
    token."""
    masked = noisy == config["mask_token_id"]
    logits = run(weights, config, noisy)[0]
    by_token = F.cross_entropy(logits[masked], ids[masked], reduction="none") / p[masked]
    if prompt_lengths is None:
        return by_token.sum() / ids.numel(), by_token
    lengths = (ids.shape[1] - prompt_lengths)[:, None].expand(ids.shape)
    return (by_token / lengths[masked]).sum() / len(ids), by_token


@torch.no_grad()
def generate(weights, config, prompt, eos_id, eot_id, attention_mask=None, steps=128, gen_length=128, block_length=128,
             temperature=0.0, cfg_scale=0.0, remasking="low_confidence", logits_eos_inf=False,
             confidence_eos_eot_inf=False, seed=0):  # fmt: skip
    """Runs LLaDA's sampler. Returns the canvas after every step, [steps + 1, b, t], and a dict of the sampler's noise."""
    mask_id, draw = config["mask_token_id"], torch.Generator().manual_seed(seed)
    rows, prompt_length = prompt.shape
    x = torch.cat([prompt, torch.full((rows, gen_length), mask_id)], dim=1)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones(rows, gen_length, dtype=torch.long)], dim=1)
    given, trace, noise = x != mask_id, [x.clone()], {}
    blocks = gen_length // block_length
    per_block = steps // blocks
    for block in range(blocks):
        begin, end = prompt_length + block * block_length, prompt_length + (block + 1) * block_length
        masks = (x[:, begin:end] == mask_id).sum(1)
        for step in range(per_block):
            logits = run(weights, config, x, attention_mask)[0]
            if cfg_scale > 0:
                nothing = run(weights, config, torch.where(given, mask_id, x), attention_mask)[0]
                logits = nothing + (cfg_scale + 1) * (logits - nothing)
            if logits_eos_inf:
                logits[..., eos_id] = -torch.inf
            noisy = logits
            if temperature > 0:
                u = torch.rand(logits.shape, dtype=torch.float64, generator=draw)
                noise.setdefault("uniform_noise_f64", []).append(u)
                noisy = logits.double().exp() / (-u.log()) ** temperature
            x0 = noisy.argmax(-1)
            if confidence_eos_eot_inf:  # at temperature 0 `noisy` and `logits` are one tensor
                noisy[..., eos_id] = logits[..., eot_id] = -torch.inf
            if remasking == "random":
                confidence = torch.rand(x0.shape, generator=draw)
                noise.setdefault("uniform_conf_f32", []).append(confidence)
            else:
                confidence = logits.softmax(-1).gather(-1, x0[..., None])[..., 0]
            candidate = x == mask_id
            candidate[:, end:] = False
            confidence = torch.where(candidate, confidence, -torch.inf)
            for row in range(rows):
                count = masks[row] // per_block + (step < masks[row] % per_block)
                chosen = confidence[row].sort(descending=True, stable=True).indices[:count]
                x[row, chosen] = torch.where(candidate[row], x0[row], x[row])[chosen]
            trace.append(x.clone())
    return torch.stack(trace), {name: torch.stack(values) for name, values in noise.items()}
