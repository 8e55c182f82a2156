"""Problems from files of every format, and the spans that reveal their answers."""

import dataclasses
import json
import math
import os
import pathlib
import re

import pytest

from igpo_jax.tasks.problem import problems_fingerprint
from igpo_jax.tasks.sources import load_sources, split_sources

SAMPLE = pathlib.Path(__file__).parent / "gsm8k_sample.jsonl"
FIELDS = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}


def load(text, fields=FIELDS, max_malformed=0):
    return load_sources(text, fields, max_malformed)


def records_of(kind, rows, tmp_path, name="rows.jsonl", **options):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows))
    return load(f"{kind}:{path}", **options)


def shown(record):
    return [record.solution[slice(*span)] for span in record.spans]


def test_gsm8k_as_published_and_with_other_names(tmp_path):
    records, [count] = load(f"gsm8k:{SAMPLE}")
    assert (count.rows, count.kept) == (5, 5) and str(count).endswith("gsm8k_sample.jsonl: 5 of 5 rows")
    assert [record.id for record in records] == [f"gsm8k_sample-{i}" for i in range(5)]
    assert records[1].answer == "1,250" and shown(records[1]) == ["$1,250"]
    assert "<<" not in records[1].solution and "####" not in records[1].solution and "####" in records[1].response
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    renamed = [
        {"id": f"x/{i}", "problem": r["question"], "raw_answer": r["answer"], "answer": "short"} for i, r in enumerate(rows)
    ]
    others, _ = records_of("gsm8k", renamed, tmp_path)
    assert [(o.question, o.answer, o.solution, o.spans) for o in others] == [
        (r.question, r.answer, r.solution, r.spans) for r in records
    ]
    assert others[0].id == "x/0"


@pytest.mark.parametrize("answer, solution, found", [
    ("18", "9*2 = $18.00 a day", ["$18.00"]), ("5", "9-5=4, so 4+1 = 5", ["5", "5"]), ("-5", "it is 4-9=-5", ["-5"]),
    ("4", "9-5 = 4.", ["4"]), ("1000", "that is 1,000 then", ["1,000"]), ("72", "no such number", []),
    ("7", "17 and 7.5 and 70", []), ("5", "9-5", ["5"]), ("25", ".50-.25 = $0.25", []), ("1/2", "2/4, that is 1/2.", ["1/2"]),
    ("5", "She had 5 apples.\n10 = 5 + 5, 9-4=5.\nShe ate one. Then 5 were left. Mr. Fox had five.", ["5", "5", "five"]),
    ("8", "2*4=$8.\nHe pays 8 = 2*4 dollars for 8 men.\nThat is all", ["$8", "8", "2*4", "8"]),
    ("6", "6 apples.\n3*2=6 apples, then 3+3=6 pears of 6 kinds.\nThe end", ["6", "6", "6"]), ("3", "It is 3\nall", ["3"]),
])  # fmt: skip
def test_where_a_solution_gives_its_number_away(answer, solution, found, tmp_path):
    [record], _ = records_of("gsm8k", [{"question": "q", "answer": f"{solution}\n#### {answer}"}], tmp_path)
    assert shown(record) == found


@pytest.mark.parametrize("answer, solution, found", [
    ("271", r"Hence, $n + (n + 1) = \boxed{271}$. We add.\n\nSo it is $\boxed{271}$.", ["271", "271"]),
    (r"\frac{1}{2}", "We have $p = 1/2$ and \\frac{1}{2} of it.\nSo $p = \\dfrac12$ as well.\nIt is $\\boxed{ 0.5 }$.", ["1/2", "\\dfrac12", "0.5"]),
    (r"\text{Alice}", "Alice is first. Bob is next.\nThus \\boxed{\\text{Alice}} wins, and Alice smiles.", ["\\text{Alice}", "Alice"]),
    ("x+1", "We get $y = x+1$ and $z = x + 12$, but no x+1.\nHence $y = 1 + x$.", ["x+1", "x+1", "1 + x"]),
    ("(3,4)", "The point is \\begin{align*} p &= (3, 4)\\\\ &= q \\end{align*} here.\nThe answer: $(3,4)$", ["(3, 4)", "(3,4)"]),
    ("A", "Alice says so. The answer is A\nAs we know, A is it.", ["A", "A"]), ("12", "The 12 men.\nWe have x \\equiv 12 \\pmod{20}.\nThat is all.", ["12"]),
    (r"\frac{3}{4}", "Another notation\nhas no place.", ["Another notation\nhas no place."]),
])  # fmt: skip
def test_where_any_solution_gives_its_answer_away(answer, solution, found, tmp_path):
    fields = {"question": "q", "answer": answer, "solution": solution}
    [record], _ = records_of("jsonl", [fields], tmp_path)
    assert shown(record) == found


@pytest.mark.parametrize("answer, reason", [
    ("", "without an answer"), (r"\boxed{}", "without an answer"), ("$ $", "without an answer"), (r"\text{ }.", "without an answer"),
    (math.inf, "without an answer"), (-math.inf, "without an answer"), ("\u200b", "without an answer"), ("\u0301", "without an answer"),
    ("\x07", "without an answer"), ("$\u200b$", "without an answer"),
    *((f"{blank} {blank}", "without an answer") for blank in "\u115f\u1160\u2800\u3164\uffa0"),
    ("NaN", "with 'nan' for an answer"), ("proof", "with 'proof' for an answer"), ("N/A", "with 'n/a' for an answer"),
    ("None", "with 'none' for an answer"), ("not found", "with 'not found' for an answer"),
])  # fmt: skip
def test_rows_without_an_answer_are_dropped(answer, reason, tmp_path):
    rows = [
        {"problem": "p", "answer": answer},
        *({"problem": "p", "answer": a} for a in (r"\text{None}", "no solution", r"\{\}", "0")),
    ]
    records, [count] = records_of("math", rows, tmp_path)
    assert len(records) == 4 and count.dropped == {reason: 1}


def test_a_number_of_gsm8k_is_the_whole_rest_of_its_row(tmp_path):
    rows = [{"question": "q", "answer": answer} for answer in ("Add.\n#### 5 \n", "Add.\n#### 5\nextra line")]
    [record], [count] = records_of("gsm8k", rows, tmp_path)
    assert record.answer == "5" and count.dropped == {"with further lines after the answer": 1}


def test_a_question_that_is_an_infinite_number_is_named(tmp_path):
    with pytest.raises(ValueError, match="the field 'problem' is infinite, not text"):
        records_of("math", [{"problem": math.inf, "answer": "5"}], tmp_path)


def test_math_and_its_last_box(tmp_path):
    rows = [
        {"problem": "p", "answer": r"\frac{1}{2}", "solution": r"First $\boxed{3}$, then $\boxed{ \frac{1}{2} }$."},
        {"problem": "q", "answer": "0", "solution": r"Nothing: $\boxed{}$."},
        {"problem": "r", "answer": 5},
    ]
    records, _ = records_of("math", rows, tmp_path)
    assert shown(records[0]) == [r"\frac{1}{2}"]
    assert records[1].spans == ((0, len(rows[1]["solution"])),)  # the box has no answer: hide everything
    assert (records[2].answer, records[2].solution, records[2].spans) == ("5", "", ())


METAMATH = [
    {"type": "GSM_AnsAug", "query": "How many?", "response": "It is 2*3 = 6.\n#### 6\nThe answer is: 6"},
    {"type": "MATH_AnsAug", "query": "What?", "response": "So $x=\\boxed{7}$.\nThe answer is: 7"},
    {"type": "GSM_AnsAug", "query": "How many?", "response": "Another way: 6.\nThe answer is: 6"},
    {"type": "GSM_Rephrased", "query": "How?", "response": "The answer is: 6"},
    {"type": "MATH_AnsAug", "query": "Which?", "response": "no end"},
]


def test_metamath_keeps_two_types_and_one_of_each_question(tmp_path):
    records, [count] = records_of("metamath", METAMATH, tmp_path, "MetaMathQA.json")
    assert [(r.question, r.answer, r.solution, shown(r)) for r in records] == [
        ("How many?", "6", "It is 2*3 = 6.", ["6"]),
        ("What?", "7", "So $x=\\boxed{7}$.", ["7"]),
    ]
    assert records[0].response.endswith("#### 6\nThe answer is: 6")  # the reference code shows it
    assert count.dropped == {"of a question that came before": 1, "of the type GSM_Rephrased": 1, "without an answer": 1}
    assert "2 of 5 rows" in str(count)


def test_lines_after_an_answer_of_metamath_are_no_part_of_it(tmp_path):
    matrix = "\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}"
    ends = ("6\nI hope this helps.", "\n6\n\n", matrix, f"{matrix}\nI hope this helps.", "6\n\\end{a}\n\\begin{a}")
    rows = [
        {"type": "MATH_AnsAug", "query": f"q{i}", "response": f"We add.\nThe answer is: {end}"} for i, end in enumerate(ends)
    ]
    records, [count] = records_of("metamath", rows, tmp_path)
    assert [record.answer for record in records] == ["6", matrix]
    assert count.dropped == {"with further lines after the answer": 3}


OPENR1 = [
    {"uuid": "a", "problem": "p", "answer": "4", "generations": ["<think>hm, 5?</think> $\\boxed{5}$",
     "<think>2+2, long and wide</think> $\\boxed{4}$", "<think>2+2</think> $\\boxed{4}$"],
     "correctness_math_verify": [False, True, True]},
    {"uuid": "b", "problem": "q", "answer": "1", "generations": ["no"], "correctness_math_verify": [False]},
    {"uuid": "c", "problem": "r", "answer": "1", "generations": ["\\boxed{1}"], "correctness_math_verify": None},
]  # fmt: skip


def write_parquet(rows, path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_array_record(rows, path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()


@pytest.mark.parametrize("blank", ["", None, "   ", "<think> </think>"])
def test_openr1_takes_no_blank_trace(blank, tmp_path):
    row = {
        "problem": "p",
        "answer": "4",
        "generations": [blank, "It is 4, as 2 and 2 are 4."],
        "correctness_math_verify": [True, True],
    }
    [record], _ = records_of("openr1", [row], tmp_path)
    assert record.solution == "It is 4, as 2 and 2 are 4."


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "array_record"])
def test_openr1_takes_the_shortest_correct_trace_from_any_kind_of_file(ending, tmp_path):
    path = tmp_path / f"openr1.{ending}"
    match ending:
        case "parquet":
            write_parquet(OPENR1, path)
        case "array_record":
            write_array_record(OPENR1, path)
        case "json":
            path.write_text(json.dumps(OPENR1))
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in OPENR1))
    [record], [count] = load(f"openr1:{path}")
    assert (record.id, record.answer, shown(record)) == ("a", "4", ["4"])
    assert record.solution == "2+2 $\\boxed{4}$"
    assert count.dropped == {"without a correct trace": 1, "without marks of correctness": 1}


def test_ones_own_fields(tmp_path):
    rows = [{"nr": 7, "frage": "1+1?", "antwort": 2, "weg": "1 and 1 are 2"}, {"nr": 8, "frage": "2+2?", "antwort": 4}]
    fields = {"id": "nr", "question": "frage", "answer": "antwort", "solution": "weg"}
    records, _ = records_of("jsonl", rows, tmp_path, fields=fields)
    assert [(r.id, r.question, r.answer, shown(r)) for r in records] == [("7", "1+1?", "2", ["2"]), ("8", "2+2?", "4", [])]
    with pytest.raises(ValueError, match="line 1: no row of the format jsonl: lacks the field 'question'"):
        records_of("jsonl", rows, tmp_path)


def test_several_sources_are_one_list_with_one_of_each_id(tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    records, counts = load(f"gsm8k:{SAMPLE}, math:{tmp_path / 'other.jsonl'}")
    assert len(records) == 6 and [count.kept for count in counts] == [5, 1]
    with pytest.raises(ValueError, match="gsm8k_sample.jsonl' is given twice"):
        load(f"gsm8k:{SAMPLE},gsm8k:{SAMPLE}")


@pytest.mark.parametrize("other", ["jsonl:{0}/./a.jsonl", "math:{0}/a.jsonl", "jsonl:{0}/link.jsonl"])
def test_a_file_is_given_once_in_any_spelling(other, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "?", "problem": "?", "answer": "5", "solution": "5"}')
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    with pytest.raises(ValueError, match="is given twice"):
        load_sources(f"jsonl:{tmp_path}/a.jsonl,{other.format(tmp_path)}", FIELDS)


def test_a_matching_file_whose_name_is_not_unicode_is_refused(tmp_path):
    file = tmp_path / os.fsdecode(b"odd\xff.jsonl")
    file.write_text("")
    with pytest.raises(ValueError, match=re.escape(f"{ascii(str(file))} is not UTF-8; rename this file or folder")):
        split_sources(f"jsonl:{tmp_path}/*.jsonl")


def test_a_pattern_means_the_files_of_its_folder_that_match_it(tmp_path):
    for folder in ("a*", "a1"):  # in the path, * is a character like any other
        (tmp_path / folder).mkdir()
    for name in ("a*/train-1.jsonl", "a*/train-0.jsonl", "a*/test-0.jsonl", "a1/train-2.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": name, "answer": "5"}))
    records, counts = load(f"jsonl:{tmp_path}/a*/train-*.jsonl")
    assert [record.question for record in records] == ["a*/train-0.jsonl", "a*/train-1.jsonl"]
    assert [count.source for count in counts] == [f"jsonl:{tmp_path}/a*/train-{n}.jsonl" for n in (0, 1)]
    (tmp_path / "*.jsonl").write_text(json.dumps({"question": "a file of this name", "answer": "5"}))
    [record] = load(f"jsonl:{tmp_path}/*.jsonl")[0]
    assert record.question == "a file of this name"
    with pytest.raises(ValueError, match=r"no data file '.*/\*\.parquet'; .*openr1:data/OpenR1-Math-220k/data/\*\.parquet"):
        load(f"openr1:{tmp_path}/*.parquet")


def test_files_of_the_same_name_have_different_ids_and_own_ids_come_once(tmp_path):
    for folder, rows in (("a", [{"problem": "p", "answer": "1"}]), ("b", [{"problem": "q", "answer": "2"}])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / folder / "own.jsonl").write_text(json.dumps(rows[0] | {"id": "x"}) + "\n")
    both = ",".join(f"math:{tmp_path / folder / 'train.jsonl'}" for folder in "ab")
    assert [record.id for record in load(both)[0]] == ["train-0", "train-0 of source 1"]
    assert [record.id for record in load(both.replace("train", "own"))[0]] == ["x", "x of source 1"]
    own = tmp_path / "a" / "own.jsonl"
    own.write_text(own.read_text() * 2)
    with pytest.raises(ValueError, match="line 2: the id 'x' has come before"):
        load(f"math:{own}")


@pytest.mark.parametrize("text, message", [
    ("SAMPLE", "is not format:path, where format is one of gsm8k, math"), ("csv:SAMPLE", "is not format:path"),
    ("math:nowhere.jsonl", "no data file 'nowhere.jsonl'; .* hf download HuggingFaceH4/MATH-500 .*math:data/MATH-500/test.jsonl"),
    ("aime:nowhere.jsonl", "no data file 'nowhere.jsonl'; give the path of a problem file, such as JSON Lines"),
    ("math:SAMPLE", "line 1: no row of the format math: lacks the field 'problem'"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(text.replace("SAMPLE", str(SAMPLE)))


@pytest.mark.parametrize("ending", ["json", "parquet", "array_record", "jsonl"])
def test_damaged_files_are_named(ending, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"damaged.{ending}"
    path.write_bytes(b"{garbage")
    with pytest.raises(ValueError, match=rf"damaged\.{ending}"):
        load(f"openr1:{path}")


def test_rows_of_another_format_count_against_the_limit(tmp_path, caplog):
    rows = [{"problem": "p", "answer": "1"}, {"answer": "1"}, {"problem": ["p"], "answer": "1"}]
    records, [count] = records_of("math", rows, tmp_path, max_malformed=2)
    assert len(records) == 1 and count.dropped == {"of another format": 2} and "line 2" in caplog.text
    with pytest.raises(ValueError, match="line 3: .*'problem' is list, not text.*max_malformed_lines=1 are allowed"):
        records_of("math", rows, tmp_path, max_malformed=1)


def test_the_fingerprint_is_of_all_that_is_used(tmp_path):
    records, _ = load(f"gsm8k:{SAMPLE}")
    assert (
        problems_fingerprint(records) == problems_fingerprint(load(f"gsm8k:{SAMPLE}")[0]) != problems_fingerprint(records[1:])
    )
    changed = [dataclasses.replace(records[0], solution="other"), *records[1:]]
    assert len({problems_fingerprint(records), problems_fingerprint(records[::-1]), problems_fingerprint(changed)}) == 3
