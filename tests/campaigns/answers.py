"""Measures answer grading on made answers: wrong answers that must be refused, and right ones in other notations.

    python tests/campaigns/answers.py --data=FOLDER [--wrong=10000] [--right=3450] [--list=FILE] [--parts=wrong]

wrong_answers.py and right_answers.py make the answers from the correct answers (field `answer`) of the data files in `FILES`,
without code of the package. Part hostile grades the texts of hostile_answers.py, which are made to hang a grader. Prints one
JSON line per kind, then a summary; exit status 1 if a target is missed. `--list` writes every accepted wrong answer, every
refused right answer and every answer without a verdict. The data files are not in this repository.
"""

import argparse
import collections
import json
import pathlib
import random
import sys
import time
import zlib

from answer_meaning import Gold, read
from grading import DEADLINE, REWARD, boxed, hangs, problem
from hostile_answers import hostile
from igpo_jax.tasks.reward_pool import RewardPool
from right_answers import RIGHT
from wrong_answers import WRONG, Golds

FILES = ("gsm8k_train", "gsm8k_test", "math_train7500", "math_test5000", "math500_test", "amc83_test", "minerva_math_test")
PARTS = {"wrong": WRONG, "right": RIGHT}
MOST = {"wrong": (0.001, 0.01), "right": (0.01, 0.05)}  # share of false verdicts: of all answers, of any kind
TRIES = 400  # draws for each answer


def read_golds(folder: str) -> Golds:
    """Returns the distinct correct answers of all data files, by shape."""
    found: dict[str, str] = {}
    for name in FILES:
        for line in (pathlib.Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"):
            if line:
                found.setdefault(str(json.loads(line)["answer"]), name)
    return by_shape(found)


def by_shape(answers: dict[str, str]) -> Golds:
    """Sorts answers {text: file} by their shape."""
    golds: Golds = collections.defaultdict(list)
    for text, file in answers.items():
        shape, parts = read(text)
        golds[shape].append(Gold(text, file, shape, parts))
    return dict(golds)


def made(part: str, golds: Golds, number: int, seed: int) -> list[dict[str, str]]:
    """Makes `number` distinct answers, equally many of each kind (the first kinds may have one more). Raises ValueError if the
    golds do not suffice for a kind."""
    kinds, rows = PARTS[part], []
    for place, (kind, make) in enumerate(kinds.items()):
        share = number // len(kinds) + (place < number % len(kinds))
        draw, found = random.Random(zlib.crc32(f"{seed} {part} {kind}".encode())), {}
        for _ in range(TRIES * share):
            if len(found) == share:
                break
            row = make(draw, golds)
            if row and row[1] != row[2] and row[1:] not in found:
                found[row[1:]] = {"part": part, "kind": kind, "gold": row[1], "answer": row[2], "file": row[0]}
        if len(found) < share:
            raise ValueError(f"only {len(found)} of {share} {part} answers of kind {kind!r}; give more golds")
        rows += found.values()
    return rows


def counted(part: str, rows: list[dict], verdicts: list) -> tuple[list[dict], list[dict]]:
    """Counts false verdicts. Returns one result per kind, the last one for all kinds, and the rows with a false verdict."""
    results, listed = {}, []
    for row, verdict in zip(rows, verdicts, strict=True):
        false = verdict.outcome != "ok" or bool(verdict.reward) == (part == "wrong")
        for kind, most in ((row["kind"], MOST[part][1]), ("all", MOST[part][0])):
            result = results.setdefault(
                kind, {"part": part, "kind": kind, "answers": 0, "false": 0, "most": most, "outcomes": collections.Counter()}
            )
            result["answers"] += 1
            result["false"] += false
            result["outcomes"][verdict.outcome] += 1
        if false:
            listed.append({**row, "outcome": verdict.outcome})
    for result in results.values():
        result["share"] = round(result["false"] / result["answers"], 5)
        result["ok"] = result["share"] <= result["most"] and set(result["outcomes"]) == {"ok"}
    return [result for kind, result in results.items() if kind != "all"] + [results["all"]], listed


def graded(part: str, rows: list[dict], workers: int) -> tuple[list[dict], list[dict]]:
    pool = RewardPool(REWARD, {"answer": "box"}, workers, DEADLINE)
    verdicts = pool([(problem(row["gold"]), boxed(row["answer"])) for row in rows])
    pool.close()
    return counted(part, rows, verdicts)


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the data files")
    parser.add_argument("--wrong", type=int, default=10_000)
    parser.add_argument("--right", type=int, default=3450)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", default="wrong,right,hostile")
    parser.add_argument("--list", type=pathlib.Path, help="a file for the answers with false verdicts, as JSON lines")
    given = parser.parse_args(arguments)
    if set(given.parts.split(",")) - {*PARTS, "hostile"}:
        parser.error(f"--parts={given.parts}: give some of {', '.join(PARTS)}, hostile")
    golds, results, listed = read_golds(given.data), [], []
    for part in given.parts.split(","):
        begin = time.monotonic()
        if part == "hostile":
            result = hangs(hostile())
            found, lines = [{"part": part, "kind": "all", **result, "ok": result["ok"] and not result["without_verdict"]}], []
        else:
            found, lines = graded(part, made(part, golds, getattr(given, part), given.seed), given.workers)
        found[-1]["seconds"] = round(time.monotonic() - begin, 1)
        for result in found:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        results, listed = results + found, listed + lines
    if given.list:
        given.list.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed), encoding="utf-8")
    print()
    for result in results:
        numbers = f"{result['false']:>5} of {result['answers']:<6}" if "false" in result else f"{result['strings']} strings"
        print(f"{result['part']:<8} {result['kind']:<12} {numbers} {'ok' if result['ok'] else 'MISSED'}")
    return results


if __name__ == "__main__":
    sys.exit(0 if all(result["ok"] for result in main()) else 1)
