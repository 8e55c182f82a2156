"""Measures answer grading: agreement with public cases, answers built to hang, wrong answers, speed, fuzz.

    python tests/campaigns/grading.py --cases=grader_cases_public.jsonl --hangs=grader_hangs.jsonl \
        --math=math_train7500.jsonl --gsm8k=gsm8k_train.jsonl [--fuzz=10000] [--parts=speed] [--output=FILE]

Prints one JSON line per part, then a summary; exit status 1 if a part misses its entry in `TARGETS`. Parts cases and mutations
together write results/grader_disagreements.md: every unexpected verdict with its reason from the hand-written
grader_reasons.json; a verdict without a reason is a failure. The data files are not in this repository.
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
import statistics
import sys
import time
from fractions import Fraction

from igpo_jax.grading.answers import extract
from igpo_jax.tasks.problem import Problem
from igpo_jax.tasks.reward_pool import RewardPool, Verdict

HERE = pathlib.Path(__file__).parent
REASONS, TABLE = HERE / "grader_reasons.json", HERE.parents[1] / "benchmarks" / "results" / "grader_disagreements.md"
REWARD, ALONE = "igpo_jax.tasks.math:reward", "igpo_jax.evaluate.graders:math_verify"
LABELLED = 735 / 758  # least agreement with the labels of public cases
DEADLINE = 5.0  # seconds for one answer, as in a run
SLACK = 1.0  # to end the worker, on a busy machine
PARTS = ("cases", "hangs", "mutations", "speed", "fuzz")
TARGETS = {
    "cases": "at least 735 of 758 as labelled, every disagreement has a reason",
    "hangs": "each answer has a verdict within its deadline, the next one is graded right",
    "mutations": "no wrong plain number accepted; others under 0.2 %, every one with a reason",
    "speed": "500 answers a second with two workers",
    "fuzz": "no error, no wrong number accepted",
}


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n") if line]


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def problem(gold: str) -> Problem:
    return Problem("benchmark", "", gold, "", (), "")


def rewards(function: str, options: dict, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    pool = RewardPool(function, options, 2, 2 * DEADLINE)
    verdicts = pool(pairs)
    pool.close()
    return verdicts


def cases(rows: list[dict], reasons: dict[str, str]) -> tuple[dict, list[tuple]]:
    """Measures agreement with the labels of public test tables and model outputs, of the package's grader with the rule `any` and
    of math-verify alone.

    `form` of a row: "text", both strings are whole texts; "bare", both are answers; "gold_bare", the second is a completion.
    """
    rows = [row for row in rows if row["tier"] != "suspect"]
    pairs = []
    for row in rows:
        gold = extract(row["gold"], "any") or row["gold"] if row["form"] == "text" else row["gold"]
        pairs.append((problem(gold), boxed(row["pred"]) if row["form"] == "bare" else row["pred"]))
    verdicts = rewards(REWARD, {"answer": "any"}, pairs)
    texts = [(problem(row["gold"] if row["form"] == "text" else boxed(row["gold"])), text)
             for row, (_, text) in zip(rows, pairs, strict=True)]  # fmt: skip
    alone = sum(bool(verdict.reward) == row["expected"] for row, verdict in zip(rows, rewards(ALONE, {}, texts), strict=True))
    agree, listed = collections.Counter(), []
    for row, verdict in zip(rows, verdicts, strict=True):
        ours = bool(verdict.reward)
        agree[row["tier"], ours == row["expected"]] += 1
        if ours != row["expected"]:
            listed.append((row["id"], row["gold"], row["pred"], row["expected"], ours))
    right = len(rows) - len(listed)
    tiers = {
        tier: f"{agree[tier, True]} of {agree[tier, True] + agree[tier, False]}" for tier in sorted({tier for tier, _ in agree})
    }
    missing = [name for name, *_ in listed if name not in reasons]
    return {
        "cases": len(rows), "agree": right, "math_verify_alone": alone, "tiers": tiers,
        "false_accepts": sum(ours for *_, ours in listed),
        "outcomes": dict(collections.Counter(v.outcome for v in verdicts)),
        "without_reason": missing, "ok": right >= LABELLED * len(rows) and not missing,
    }, listed  # fmt: skip


def hangs(rows: list[dict]) -> dict:
    """Grades each answer alone in a pool of one worker, then an ordinary answer that needs math-verify."""
    pool = RewardPool(REWARD, {"answer": "box"}, 1, DEADLINE)
    ordinary = (problem("x^2+1"), boxed("1+x^2"))
    pool([ordinary])
    seconds, outcomes, late, none, broken, wrong = [], collections.Counter(), [], [], [], []
    for row in rows:
        begin = time.monotonic()
        [verdict] = pool([(problem(row["gold"]), row["pred"])])
        seconds.append(time.monotonic() - begin)
        outcomes[verdict.outcome] += 1
        if seconds[-1] > DEADLINE + SLACK:
            late.append(row["id"])
        if verdict.outcome != "ok":
            none.append(row["id"])
        if row["expected"] is False and verdict.reward:
            wrong.append(row["id"])
        [after] = pool([ordinary])
        if (after.reward, after.outcome) != (1.0, "ok"):
            broken.append(row["id"])
    pool.close()
    return {
        "strings": len(rows), "deadline_seconds": DEADLINE, "most_seconds": round(max(seconds), 2),
        "median_seconds": round(statistics.median(seconds), 4), "outcomes": dict(outcomes), "late": late,
        "without_verdict": none, "next_answer_not_right": broken, "false_accepts": wrong, "ok": not (late or none or broken or wrong),
    }  # fmt: skip


def plain(text: str) -> Fraction | None:
    """Parses an integer, a decimal or a fraction; deliberately independent of the package's own arithmetic."""
    text = re.sub(r"\\[!,]|[\s$]|\\(?=\$)", "", text)
    text = re.sub(r"\{,\}", ",", text)
    slash = re.fullmatch(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}", text) or re.fullmatch(r"(-?)(\d+)/(\d+)", text)
    if slash:
        return Fraction(int(slash[2]), int(slash[3])) * (-1 if slash[1] else 1) if int(slash[3]) else None
    if re.fullmatch(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?", text) and re.search(r"\d", text):
        return Fraction(text.replace(",", ""))
    return None


def mutated(answers: dict[str, str], number: int) -> list[tuple[str, str, str]]:
    """Returns (name, gold, wrong answer): a changed digit, an added or removed sign, or the answer of another problem."""
    draw, found = random.Random(0), []
    with_digits = [name for name, answer in answers.items() if re.search(r"\d", answer)]
    share = number // 3
    for name in draw.sample(with_digits, min(share, len(with_digits))):
        gold = answers[name]
        place = draw.choice([match.start() for match in re.finditer(r"[0-9]", gold)])
        digit = draw.choice([d for d in "0123456789" if d != gold[place]])
        found.append((f"digit {name}", gold, gold[:place] + digit + gold[place + 1 :]))
    for name in draw.sample(list(answers), min(share, len(answers))):
        gold = answers[name]
        found.append((f"sign {name}", gold, gold[1:] if gold.startswith("-") else f"-{gold}"))
    for name in draw.sample(list(answers), min(share, len(answers))):
        found.append((f"swap {name}", answers[name], answers[draw.choice(list(answers))]))
    return [(name, gold, wrong) for name, gold, wrong in found if wrong != gold]


def mutations(rows: list[dict], number: int, reasons: dict[str, str]) -> tuple[dict, list[tuple]]:
    made = mutated({row["id"]: row["answer"] for row in rows}, number)
    pool = RewardPool(REWARD, {"answer": "box"}, 2, DEADLINE)
    verdicts = pool([(problem(gold), boxed(wrong)) for _, gold, wrong in made])
    pool.close()
    counts, listed, wrong_numbers = collections.Counter(), [], []
    for (name, gold, wrong), verdict in zip(made, verdicts, strict=True):
        values = plain(gold), plain(wrong)
        numbers = None not in values
        if numbers and values[0] == values[1]:
            counts["the same number after all"] += 1
            continue
        counts["numbers" if numbers else "others"] += 1
        if verdict.reward and numbers:
            wrong_numbers.append([name, gold, wrong])
        if verdict.reward:
            listed.append((name, gold, wrong, False, True))
    others = [name for name, *_ in listed if name not in {name for name, *_ in wrong_numbers}]
    false = [name for name in others if not reasons.get(name, "").startswith("Right:")]
    missing = [name for name, *_ in listed if name not in reasons]
    share = len(false) / max(counts["others"], 1)
    return {
        "mutations": len(made), **counts, "outcomes": dict(collections.Counter(v.outcome for v in verdicts)),
        "wrong_numbers_accepted": wrong_numbers, "others_accepted": len(others), "of_these_truly_wrong": len(false),
        "share_of_others": share, "without_reason": missing, "ok": not wrong_numbers and share < 0.002 and not missing,
    }, listed  # fmt: skip


def speed(golds: list[str], batches: int, size: int) -> dict:
    """Measures answers per second with one and with two workers, alternating, on answers new to both."""
    draw = random.Random(1)
    draw.shuffle(golds)
    pools = {workers: RewardPool(REWARD, {"answer": "box"}, workers, DEADLINE) for workers in (1, 2)}
    rates, right = {1: [], 2: []}, []
    for batch in range(-1, batches):  # the first batch warms up
        some = golds[(batch + 1) * size : (batch + 2) * size]
        answers = [
            (problem(gold), f"We add them up, so the answer is {boxed(gold if i % 2 else some[i - 1])}.")
            for i, gold in enumerate(some)
        ]
        for workers, pool in pools.items():
            begin = time.monotonic()
            verdicts = pool(answers)
            if batch >= 0:
                rates[workers].append(len(answers) / (time.monotonic() - begin))
                right.append(sum(verdict.reward for verdict in verdicts) / len(answers))
    for pool in pools.values():
        pool.close()
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    return {
        "answers": batches * size, "answers_per_second": {"1 worker": round(one), "2 workers": round(two)},
        "range": {f"{n} worker{'s' * (n > 1)}": [round(min(r)), round(max(r))] for n, r in rates.items()},
        "ratio": round(two / one, 2), "share_graded_right": round(statistics.mean(right), 3), "ok": two >= 500,
    }  # fmt: skip


def fuzz(number: int) -> dict:
    """Grades random and hostile completions under all three rules, and wrong numbers in many notations."""
    from grading_strings import collected, other_numbers, same_numbers, texts

    draw = random.Random(2)
    golds = ["5", r"\frac{1}{2}", "x+1", "(1,2)", "1000", r"\text{A}", r"\{1,2\}", "[0,1)", "204_5"]
    outcomes, troubles = collections.Counter(), []
    strings = collected(texts, number)
    begin = time.monotonic()
    for i, rule in enumerate(("box", "number", "any")):
        pool = RewardPool(REWARD, {"answer": rule}, 2, DEADLINE)
        answers = [(problem(draw.choice(golds)), text) for text in strings[i::3]]
        for (_, text), verdict in zip(answers, pool(answers), strict=True):
            outcomes[verdict.outcome] += 1
            if verdict.outcome == "error":  # a timeout within the deadline is a valid verdict
                troubles.append([rule, verdict.reason[:80], text[:80]])
        pool.close()
    seconds = time.monotonic() - begin
    pool = RewardPool(REWARD, {"answer": "box"}, 2, DEADLINE)

    def rewarded(pairs: list[tuple[str, str]], right: bool) -> list[tuple[str, str]]:
        verdicts = pool([(problem(gold), boxed(answer)) for gold, answer in pairs])
        return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if bool(verdict.reward) == right]

    other, same = collected(other_numbers(), number), collected(same_numbers(), number)
    accepted, refused = rewarded(other, True), rewarded(same, False)
    pool.close()
    return {
        "strings": len(strings), "outcomes": dict(outcomes), "troubles": troubles[:20], "seconds": round(seconds, 1),
        "wrong_numbers": len(other), "wrong_numbers_accepted": accepted[:20], "right_numbers": len(same),
        "right_numbers_refused": len(refused), "some_of_them": refused[:5], "ok": not accepted and not troubles,
    }  # fmt: skip


def table(listed: list[tuple], reasons: dict[str, str], results: dict[str, dict]) -> str:
    def cell(text: str) -> str:
        """Returns a short snippet; the full texts belong to their sources."""
        text = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
        return f"`{text[:57]}...`" if len(text) > 60 else f"`{text}`"

    public, made = results["cases"], results["mutations"]
    lines = [
        "# Where the grader and a label differ", "",
        "Written by `tests/campaigns/grading.py`; the reasons are from `tests/campaigns/grader_reasons.json`.", "",
        f"Public cases: {public['agree']} of {public['cases']} agree; with math-verify alone, "
        f"{public['math_verify_alone']}. Mutations of MATH's answers: {made['numbers']} of plain numbers, "
        f"{len(made['wrong_numbers_accepted'])} accepted; {made['others']} others, {made['others_accepted']} accepted, "
        f"{made['of_these_truly_wrong']} of them wrongly.", "",
        "| id | gold | answer | expected | ours | reason |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, gold, answer, expected, ours in listed:
        said = ["right" if verdict else "wrong" for verdict in (expected, ours)]
        lines.append(f"| {' | '.join([name, cell(gold), cell(answer), *said, reasons.get(name, '**none**')])} |")
    return "\n".join(lines) + "\n"


def machine() -> dict:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("igpo_jax", "math-verify", "sympy")},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cases", "hangs", "math", "gsm8k"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--mutations", type=int, default=6000)
    parser.add_argument("--speed-answers", type=int, default=1500, help="of each of three batches")
    parser.add_argument("--fuzz", type=int, default=0, help="strings; needs hypothesis")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--output", type=pathlib.Path, help="a file for the JSON lines")
    given = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in given.parts.split(",") and (part != "fuzz" or given.fuzz)]
    reasons = json.loads(REASONS.read_text(encoding="utf-8"))
    results, listed = {}, []
    for part in parts:
        if part == "cases":
            result, found = cases(read(given.cases), reasons)
            listed += found
        elif part == "hangs":
            result = hangs(read(given.hangs))
        elif part == "mutations":
            result, found = mutations(read(given.math), given.mutations, reasons)
            listed += found
        elif part == "speed":
            golds = [row["answer"] for path in (given.gsm8k, given.math) for row in read(path)]
            result = speed(golds, 3, given.speed_answers)
        else:
            result = fuzz(given.fuzz)
        results[part] = {"name": part, **machine(), **result}
        print(json.dumps(results[part], ensure_ascii=False), flush=True)
    if {"cases", "mutations"} <= results.keys():
        TABLE.write_text(table(listed, reasons, results), encoding="utf-8")
    print()
    for part, result in results.items():
        print(f"{part:<10} {'ok' if result['ok'] else 'MISSED':<7} {TARGETS[part]}")
        hidden = ("name", "ok", *machine())
        for name, value in result.items():
            if name not in hidden:
                print(f"    {name:<24} {value if not isinstance(value, float) else f'{value:.4g}'}")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text("".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results.values()))
    return results


if __name__ == "__main__":
    sys.exit(0 if all(result["ok"] for result in main().values()) else 1)
