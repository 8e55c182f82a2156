"""Fuzzes everything that reads external input, longer than the tests do: coverage-guided parsers, and random configurations.

    pip install atheris
    python tests/campaigns/fuzz.py [--minutes=10] [--targets=model,...] [--configs=10000] [--output=benchmarks/results/fuzz.log]

Parsers, valid files, mutations and checks come from tests/helpers. Each target runs in its own process under libFuzzer
(atheris), which keeps inputs that reach new code of igpo_jax, with limits on memory and on the time per input. Prints
executions, coverage and findings of each target; exit status 1 if there is a finding. The printed folder keeps its input.
Needs neither GPU nor network.
"""

import argparse
import collections
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "helpers"))
TARGETS = {
    "model": ("model", "weights", "adapters"),
    "tokenizers": ("tokenizer.json", "tokenizer.model"),
    "problems": tuple(
        f"problems {name}" for name in ("gsm8k.jsonl", "math.json", "metamath.json", "jsonl.jsonl", "countdown.jsonl")
    ),
    "tables": ("problems openr1.parquet", "problems amc.array_record", "problems sudoku.jsonl"),
    "configs": ("config.json",),
    "runs": ("report", "comparison", "evaluations"),
    "endpoints": ("replies", "endpoint"),
    "texts": ("answers", "templates"),
}
MOST_BYTES, MOST_MIB, MOST_SECONDS = 100_000, 4096, 60  # per input; per process; per input, on a busy machine
PACKAGES = (
    "igpo_jax",
    "atheris",
    "jax",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "pyarrow",
    "array_record",
    "openai",
    "ml_collections",
)


def run_target(target: str, minutes: float, folder: pathlib.Path) -> None:
    """Fuzzes one target; libFuzzer ends the process. Appends findings to findings.jsonl, one per place and kind."""
    import atheris

    with atheris.instrument_imports(include=["igpo_jax"]):
        from parsers import PARSERS, Attack, Finding
    from mutations import mutated

    attacks = [Attack(parser) for parser in PARSERS if parser.name in TARGETS[target]]
    files = [(attack, name) for attack in attacks for name in attack.valid]
    corpus, seen = folder / "corpus", set()
    corpus.mkdir()
    for number, (attack, name) in enumerate(files):
        (corpus / str(number)).write_bytes(bytes([number]) + attack.valid[name])

    def test_one(data: bytes) -> None:
        if not data:
            return
        attack, name = files[data[0] % len(files)]
        try:
            attack(name, data[1:])
        except Finding as finding:
            cause = finding.__cause__ or finding
            places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(cause.__traceback__)]
            key = (attack.parser.name, type(cause).__name__, places[-1])
            if key not in seen:
                seen.add(key)
                input = folder / f"finding-{len(seen)}"
                input.write_bytes(data[1:])
                with (folder / "findings.jsonl").open("a") as opened:
                    row = {
                        "parser": attack.parser.name,
                        "file": name,
                        "input": str(input),
                        "finding": str(finding),
                        "at": places[-3:],
                    }
                    opened.write(json.dumps(row) + "\n")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return atheris.Mutate(data, most)
        return (data[:1] + mutated(data[1:], draw))[:most]

    options = {"max_total_time": round(60 * minutes), "rss_limit_mb": MOST_MIB, "timeout": MOST_SECONDS, "max_len": MOST_BYTES}
    options |= {"print_final_stats": 1, "artifact_prefix": f"{folder}/", "seed": 1}
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(arguments, test_one, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(target: str, minutes: float, folder: pathlib.Path) -> dict:
    """Runs a target in a process and returns its statistics and findings."""
    folder.mkdir()
    command = [sys.executable, str(HERE), f"--run={target}", f"--minutes={minutes}", f"--folder={folder}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1", "RUST_BACKTRACE": "0"}
    with (folder / "log").open("wb") as log:
        code = subprocess.run(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
    text = (folder / "log").read_text(errors="replace")
    numbers = [re.findall(pattern, text) for pattern in (r"number_of_executed_units:\s*(\d+)", r"cov: (\d+)", r"corp: (\d+)")]
    executions, coverage, corpus = (int(found[-1]) if found else 0 for found in numbers)
    file = folder / "findings.jsonl"
    findings = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if code:  # a crash of native code, or a memory or time limit
        findings.append(
            {"parser": target, "finding": f"exit status {code}", "input": str(folder), "at": text.splitlines()[-3:]}
        )
    begun = int(next(iter(re.findall(r"INITED cov: (\d+)", text)), 0))
    return {
        "target": target, "parsers": list(TARGETS[target]), "minutes": minutes, "executions": executions,
        "coverage": coverage, "coverage_of_valid_files": begun, "inputs_kept": corpus, "findings": findings,
    }  # fmt: skip


def configurations(number: int) -> dict:
    """Counts random configurations that build, that are rejected by naming a key, and that do neither (findings)."""
    from configurations import Finding, build, generated

    begin, built, messages, findings = time.monotonic(), 0, collections.Counter(), []
    for i in range(number):
        config, changes = generated(i)
        try:
            message = build(config)
        except Finding as finding:
            findings.append(
                {"number": i, "changes": {key: repr(value) for key, value in changes.items()}, "finding": str(finding)}
            )
            continue
        built += not message
        messages.update([re.sub(r"=.*|\d+", "", message)[:60]] if message else [])
    return {
        "target": "configurations", "generated": number, "built": built, "refused": sum(messages.values()),
        "kinds_of_messages": len(messages), "seconds": round(time.monotonic() - begin), "findings": findings,
    }  # fmt: skip


def setting() -> dict:
    names = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": names[0] if names else platform.processor(),
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of each target; 0: none of them")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--configs", type=int, default=10_000, help="configurations; 0: none")
    parser.add_argument("--output", type=pathlib.Path, help="a file to which the results are appended")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help="for corpora, logs and findings; must not exist")
    given = parser.parse_args()
    if given.run:
        return run_target(given.run, given.minutes, given.folder)
    folder = given.folder or pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"), "found")
    folder.mkdir(parents=True)
    failed = False
    jobs = [lambda name=name: fuzz(name, given.minutes, folder / name) for name in given.targets.split(",") if given.minutes]
    jobs += [lambda: configurations(given.configs)] if given.configs else []
    for job in jobs:
        result = job() | setting()
        failed |= bool(result["findings"])
        line = json.dumps(result, ensure_ascii=False)
        print(line, flush=True)
        if given.output:
            with given.output.open("a") as opened:
                opened.write(line + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
