"""python tests/campaigns/every_file.py --data=DIR [--output=FILE]

Runs every problem file of DIR through the whole pipeline: `inspect_data` (records kept), a run with all stages from scratch on
the mathematical files (`gsm8k.py:smoke`), and an evaluation of that run on all files. The model learns almost nothing; the
campaign checks that each file is read completely and that each step works. DIR holds the files listed below; if its
README.md has a table of record counts, they are compared.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

TRAIN = {"gsm8k_train.jsonl": "gsm8k", "math_train7500.jsonl": "math", "math_test5000.jsonl": "math"}
TEST = {
    "gsm8k_test.jsonl": "gsm8k",
    "math500_test.jsonl": "math",
    "amc83_test.jsonl": "amc",
    "minerva_math_test.jsonl": "minerva",
}
PUZZLES = {"countdown3_test.jsonl": "countdown", "sudoku4_d1_test.jsonl": "sudoku", "sudoku4_spg_test.jsonl": "sudoku"}
BENCHMARKS = {"gsm8k": "gsm8k_test", "math500": "math500_test", "amc": "amc83_test", "minerva": "minerva_math_test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    data, begin = arguments.data.absolute(), time.monotonic()

    def sources(files: dict[str, str]) -> str:
        return ",".join(f"{kind}:{data / name}" for name, kind in files.items())

    with tempfile.TemporaryDirectory() as scratch:
        run = pathlib.Path(scratch, "run")
        flags = ["--config=gsm8k.py:smoke", f"--config.task.rl={sources(TRAIN)}", f"--config.task.test={sources(TEST)}"]
        told = command("inspect_data", *flags, "--config.sft.updates=0", "--config.evaluation.problems=100000")
        kept = {pathlib.Path(path).name: [int(n) for n in numbers] for path, *numbers in COUNT.findall(told)}
        trained = command("train", *flags, f"--workdir={run}", "--config.evaluation.problems=16")
        graded = []
        for puzzle in ("sudoku4_d1_test.jsonl", "sudoku4_spg_test.jsonl"):
            files = BENCHMARKS if not graded else {}
            small = ["--config.decode.completion_length=64", "--config.decode.steps=8", "--config.batch_size=64"]
            small += [f"--config.benchmarks.{name}.problems=8" for name in files]
            tests = {n: f"{TEST[f'{file}.jsonl']}:{data / file}.jsonl" for n, file in files.items()}
            tests |= {"sudoku": data / puzzle} | ({"countdown": data / "countdown3_test.jsonl"} if files else {})
            named = [f"--config.benchmarks.{name}.task.test={path}" for name, path in tests.items()]
            only = [f"--benchmarks={','.join(tests)}", f"--output={scratch}/{puzzle}", f"--config.model={run}"]
            card = json.loads(
                command("evaluate", "--config=evaluate_math.py:paper", "--config.chat=False", *only, *named, *small)
            )
            graded.append(card["benchmarks"])
            of_puzzles = {puzzle: "sudoku"} | ({"countdown3_test.jsonl": "countdown"} if files else {})
            for file, name in of_puzzles.items():
                kept[file] = [card["benchmarks"][name]["problems"]] * 2
        result = {
            "kept_and_rows": kept,
            "expected_rows": expected_rows(data / "README.md", kept),
            "run": json.loads(trained[trained.index("{") : trained.rindex("}") + 1]),
            "evaluations": graded,
            "seconds": round(time.monotonic() - begin, 1),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    wrong = {name: rows for name, rows in result["expected_rows"].items() if rows != kept[name][1]}
    missing = {*TRAIN, *TEST, *PUZZLES} - kept.keys()
    sys.exit(f"error: numbers of records differ: {wrong}; not read: {missing}" if wrong or missing else 0)


COUNT = re.compile(r"^  \w+:(\S+): (\d+) of (\d+) rows", re.MULTILINE)


def expected_rows(readme: pathlib.Path, names) -> dict[str, int]:
    """Returns {file: record count} from a table with rows "| file | records | ..."; empty without a table."""
    text = readme.read_text("utf-8") if readme.is_file() else ""
    return {name: int(n) for name, n in re.findall(r"^\| (\S+\.jsonl) \| (\d+) \|", text, re.MULTILINE) if name in names}


def command(module: str, *flags: str) -> str:
    begin = time.monotonic()
    print(f"python -m igpo_jax.{module} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", f"igpo_jax.{module}", *flags], stdout=subprocess.PIPE, text=True)
    print(f"    {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        sys.exit(f"error: igpo_jax.{module} has failed")
    return done.stdout


if __name__ == "__main__":
    main()
