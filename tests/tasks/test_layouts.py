"""Problem files as people have them: the columns of public data sets, encodings, compression, and what is refused by name."""

import codecs
import gzip
import json
import pathlib
import random
import time
import tracemalloc

import pytest
from ml_collections import ConfigDict

from igpo_jax.runtime import files
from igpo_jax.runtime.files import read_json
from igpo_jax.tasks import countdown, rows, sudoku
from igpo_jax.tasks.rows import read_rows
from igpo_jax.tasks.sources import FORMATS, load_sources

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {name: name for name in ("id", "question", "answer", "solution")}
PUZZLES = ("3102200002100320", "0140432014020000", "4310010000303420", "2004001203201003", "0234341221434321")
SOLUTIONS = ("3142243142131324", "2143432114323214", "4312214312343421", "2134341243211243", "1234341221434321")
NUMBERS, TARGETS = ([44, 19, 35], [2, 3, 4], [6, 6, 6], [50, 7, 3], [1, 2, 3, 4]), (28, 24, 18, 60, 10)


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows) -> bytes:
    quoted = ('"' + str(value).replace('"', '""') + '"' for row in rows for value in row.values())
    values, width = list(quoted), len(rows[0])
    return "\n".join([",".join(rows[0]), *(",".join(values[i : i + width]) for i in range(0, len(values), width))]).encode()


def parquet_of(rows, path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def written(path, content: bytes):
    path.write_bytes(content)
    return path


def puzzles(task, path, **options):
    return task.load(ConfigDict(task.defaults(test=str(path), **options)), "test", 0)


def message_of(function, *arguments, **options) -> str:
    with pytest.raises(ValueError) as raised:
        function(*arguments, **options)
    return str(raised.value)


@pytest.mark.parametrize("layout", [
    lambda numbers, target: {"input": ",".join(map(str, numbers)), "output": str(target)},  # countdown_cd3_test.jsonl of d1
    lambda numbers, target: {"input": str(numbers), "output": target},
    lambda numbers, target: {"nums": numbers, "target": target},  # Countdown-Tasks-3to4
    lambda numbers, target: {"target": float(target), "nums": [str(number) for number in numbers], "id": None},
    lambda numbers, target: {"numbers": f"[{'  '.join(map(str, numbers))}]", "target": f"{target}.0"},  # NumPy's, pandas'
    lambda numbers, target: {"numbers": f" ({', '.join(map(str, numbers))})", "target": target, "extra": None},
    lambda numbers, target: {"Numbers": [float(number) for number in numbers], "Target": target},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_countdown(layout, kind, tmp_path):
    rows = [layout(numbers, target) for numbers, target in zip(NUMBERS, TARGETS, strict=True)]
    if kind == "parquet":
        path = parquet_of(rows, tmp_path / "test.parquet")
    else:
        content = {"jsonl": lines, "csv": csv_of, "json": lambda rows: json.dumps(rows).encode()}[kind](rows)
        if kind == "csv" and "id" in rows[0]:
            content = content.replace(b'"None"', b"")
        path = written(tmp_path / f"test.{kind}", content)
    loaded = puzzles(countdown, path)
    answers = [f"{' '.join(map(str, numbers))} -> {target}" for numbers, target in zip(NUMBERS, TARGETS, strict=True)]
    assert [problem.answer for problem in loaded] == answers and len({problem.id for problem in loaded}) == 5
    assert "44, 19, 35" in loaded[0].question and countdown.reward(loaded[0], r"\boxed{44+19-35}") == 1.0


@pytest.mark.parametrize("names", [("Puzzle", "Solution"), ("puzzle", "solution")])
@pytest.mark.parametrize("kind", ["csv", "CSV", "csv.gz", "jsonl", "parquet"])
def test_sudoku_of_d1_and_spg(names, kind, tmp_path):
    rows = [dict(zip(names, pair, strict=True)) for pair in zip(PUZZLES, SOLUTIONS, strict=True)]
    plain = "\r\n".join([",".join(names), *map(",".join, zip(PUZZLES, SOLUTIONS, strict=True)), "", ""]).encode()
    path = tmp_path / f"4x4_test_sudoku.{kind}"
    if kind == "parquet":
        parquet_of(rows, path)
    else:
        written(path, {"csv.gz": gzip.compress(plain, mtime=0), "jsonl": lines(rows)}.get(kind, codecs.BOM_UTF8 + plain))
    assert [problem.answer for problem in puzzles(sudoku, path)] == [
        f"{puzzle} -> {solution}" for puzzle, solution in zip(PUZZLES, SOLUTIONS, strict=True)
    ]


MATH = [
    {"problem": f"What is {n}+{n}?", "level": "Level 1", "solution": f"First $\\boxed{{x}}$. The sum is $\\boxed{{{2 * n}}}$."}
    for n in range(1, 6)
]


def test_math_without_the_column_answer_takes_the_last_box(tmp_path):
    records, [count] = load_sources(f"math:{written(tmp_path / 'math.jsonl', lines(MATH))}", FIELDS)
    assert [record.answer for record in records] == ["2", "4", "6", "8", "10"] and count.kept == 5
    assert all(record.solution[slice(*span)] == record.answer for record in records for span in record.spans[-1:])
    rows = [MATH[0] | {"answer": None}, MATH[1] | {"answer": "5"}, MATH[2] | {"solution": "no box"}]
    records, [count] = load_sources(f"math:{written(tmp_path / 'mixed.jsonl', lines(rows))}", FIELDS)
    assert [record.answer for record in records] == ["2", "5"] and count.dropped == {"without an answer": 1}


@pytest.mark.parametrize("rows", [
    [{"problem": f"p{n}", "solution": f"$\\boxed{{{n:03}}}$."} for n in range(5)],
    [{"id": n, "problem": f"p{n}", "answer": f"{n:03}", "url": "u"} for n in range(5)],
    [{"ID": f"2024-I-{n}", "Problem": f"p{n}", "Solution": "", "Answer": f"{n:03}"} for n in range(5)],
])  # fmt: skip
@pytest.mark.parametrize("kind", ["aime", "math"])
def test_aime(rows, kind, tmp_path):
    for path in (written(tmp_path / "aime.jsonl", lines(rows)), written(tmp_path / "aime.csv", csv_of(rows))):
        records, _ = load_sources(f"{kind}:{path}", FIELDS)
        assert [(record.question, record.answer, record.solution) for record in records] == [
            (f"p{n}", f"{n:03}", "") for n in range(5)
        ]


@pytest.mark.parametrize("rows", [
    [{"ID": f"2024-I-{n}", "Year": 2024, "Problem Number": n, "Question": f"p{n}", "Answer": f"{n:03}", "Part": "I"} for n in range(5)],
    [{"question": f"p{n}", "answer": f"{n:03}"} for n in range(5)],
    [{"id": n, "question": f"p{n}", "answer": f"{n:03}", "url": "u"} for n in range(5)],
])  # fmt: skip
@pytest.mark.parametrize("kind", ["amc", "aime", "minerva"])
def test_contests_whose_problems_are_named_question(rows, kind, tmp_path):
    """The files of AIME 1983 to 2024 in CSV, AIME 2025 and AMC 2023 in JSON Lines."""
    for path in (written(tmp_path / "rows.jsonl", lines(rows)), written(tmp_path / "rows.csv", csv_of(rows))):
        records, _ = load_sources(f"{kind}:{path}", FIELDS)
        assert [(record.question, record.answer) for record in records] == [(f"p{n}", f"{n:03}") for n in range(5)]
    both = [row | {"problem": "the problem"} for row in rows]
    assert load_sources(f"{kind}:{written(path, csv_of(both))}", FIELDS)[0][0].question == "the problem"
    path = written(tmp_path / "rows.jsonl", lines([{"prompt": "p", "answer": 1}]))
    message = message_of(load_sources, f"{kind}:{path}", FIELDS)
    assert "lacks the field 'problem'; it has 'prompt', 'answer', and the format has problem or question" in message


@pytest.mark.parametrize("name, content", [
    ("bom.jsonl", codecs.BOM_UTF8 + lines(MATH)), ("lines.json", lines(MATH)), ("array.jsonl", json.dumps(MATH).encode()),
    ("pretty.jsonl", json.dumps(MATH, indent=1).encode()), ("bom.json", codecs.BOM_UTF8 + json.dumps(MATH).encode()),
    ("blank.json", b"\n \r\n" + lines(MATH) + b"\n\n  \n"), ("windows.jsonl", lines(MATH).replace(b"\n", b"\r\n")),
    ("lines.jsonl.gz", gzip.compress(lines(MATH), mtime=0)), ("array.json.gz", gzip.compress(json.dumps(MATH).encode())),
    ("lines.JSON.GZ", gzip.compress(codecs.BOM_UTF8 + lines(MATH), mtime=0)), ("rows.csv.gz", gzip.compress(csv_of(MATH))),
    ("rows.csv", codecs.BOM_UTF8 + csv_of(MATH).replace(b"\n", b"\r\n") + b"\r\n\r\n"), ("lines.txt", lines(MATH)),
])  # fmt: skip
def test_all_of_these_files_are_the_same_problems(name, content, tmp_path):
    records, _ = load_sources(f"math:{written(tmp_path / name, content)}", FIELDS)
    expected, _ = load_sources(f"math:{written(tmp_path / 'plain.jsonl', lines(MATH))}", FIELDS)
    assert [vars(r) | {"id": ""} for r in records] == [vars(r) | {"id": ""} for r in expected]
    assert [record.id for record in records] == [f"{name.partition('.')[0]}-{n}" for n in range(5)]


@pytest.mark.parametrize(
    "answer, text", [(5, "5"), ("5", "5"), (5.0, "5"), (0.5, "0.5"), (-3.0, "-3"), ("5.0", "5.0"), (10**20, "1" + "0" * 20)]
)
def test_numbers_as_answers(answer, text, tmp_path):
    path = written(tmp_path / "rows.jsonl", lines([{"question": 7, "answer": answer, "solution": None}]))
    [record], _ = load_sources(f"jsonl:{path}", FIELDS)
    assert (record.question, record.answer, record.solution) == ("7", text, "")


@pytest.mark.parametrize("number, text", [
    *((number, number) for number in ("12345678901234567890.0", "0.1234567890123456789", "1e400", "-1E-400", "1e" + "9" * 30)),
    ("3.5", "3.5"), ("3.50", "3.5"), ("1e3", "1000"), ("2.0", "2"), ("-0.0", "0"), ("1e20", "1e+20"), ("0.00001", "1e-05"),
    ("0.10000000000000001", "0.1"),
])  # fmt: skip
@pytest.mark.parametrize("row", ['{{"question": "q", "answer": {}}}\n', '[{{"question": "q", "answer": {}}}]'])
def test_a_number_that_a_float_would_round_is_read_as_its_text(number, text, row, tmp_path):
    path = written(tmp_path / "rows.json", row.format(number).encode())
    assert [record.answer for record in load_sources(f"jsonl:{path}", FIELDS)[0]] == [text]


@pytest.mark.parametrize("answer", [None, float("nan"), "", "NaN"])
def test_a_missing_answer_is_dropped_and_a_missing_question_is_an_error(answer, tmp_path):
    rows = [{"question": "a", "answer": answer}, {"question": "b", "answer": "1"}, {"question": answer, "answer": "1"}]
    records, [count] = load_sources(f"jsonl:{written(tmp_path / 'rows.jsonl', lines(rows[:2]))}", FIELDS)
    assert [record.question for record in records] == ["b"] and sum(count.dropped.values()) == 1
    if not isinstance(answer, str):
        message = message_of(load_sources, f"jsonl:{written(tmp_path / 'rows.jsonl', lines(rows))}", FIELDS)
        assert "rows.jsonl, line 3" in message and "the field 'question' is null, not text" in message


@pytest.mark.parametrize("kind", ["jsonl", "math"])
@pytest.mark.parametrize("answer, hint", [
    ("She has 2*3 = <<2*3=6>>6 pens.\n#### 6", "give this file as gsm8k:PATH"), ("#### 6", "give this file as gsm8k:PATH"),
    ("She has six.\r\n####6", "give this file as gsm8k:PATH"), ("Hence it is six,\nas in $\\boxed{6}$.", "give this file as math:PATH"),
])  # fmt: skip
def test_a_whole_solution_is_no_answer(kind, answer, hint, tmp_path):
    rows = [{"question": "q", "problem": "q", "answer": "6"}, {"question": "q", "problem": "q", "answer": answer}]
    message = message_of(load_sources, f"{kind}:{written(tmp_path / 'rows.jsonl', lines(rows))}", FIELDS)
    assert "rows.jsonl, line 2" in message and hint in message
    pure = [{"question": "q", "answer": "\\boxed{\n6\n}\n"}, {"question": "r", "answer": "the number # 6"}]
    assert len(load_sources(f"jsonl:{written(tmp_path / 'rows.jsonl', lines(pure))}", FIELDS)[0]) == 2


@pytest.mark.parametrize("task, row, parts", [
    (countdown, {"numbers": [1, 2], "aim": 3}, ["numbers and target, or nums and target, or input and output", "it has 'numbers', 'aim'"]),
    (countdown, {"input": "86,28,13,31", "output": "86+28=114,31-13=18"}, ["'86+28=114,31-13=18' is no whole number"]),  # another split
    (countdown, {"nums": [[1, 2], [3]], "target": 6}, ["[1, 2] is no whole number"]),
    (countdown, {"nums": None, "target": 6}, ["None is no list"]), (countdown, {"nums": "1 2, 3", "target": 6}, ["'1 2' is no"]),
    (countdown, {"nums": [1, 2], "target": None}, ["None is no whole"]), (countdown, {"nums": [True, 2], "target": 3}, ["True is no"]),
    (countdown, {"nums": [1, float("nan")], "target": 3}, ["nan is no whole number"]), (countdown, {"nums": "", "target": 3}, ["no numbers"]),
    (sudoku, {"Puzzle;Solution": "1;2"}, ["must be puzzle and solution", "it has 'Puzzle;Solution'"]),
    (sudoku, {"Puzzle": 140432014020000, "Solution": SOLUTIONS[1]}, ["140432014020000 has 15 digits", "write the column as text"]),
])  # fmt: skip
def test_rows_of_another_layout_are_named(task, row, parts, tmp_path):
    message = message_of(puzzles, task, written(tmp_path / "test.jsonl", lines([row])))
    assert "test.jsonl, line 1: no " in message and all(part in message for part in parts), message


def test_missing_columns_are_named(tmp_path):
    message = message_of(
        load_sources, f"math:{written(tmp_path / 'a.jsonl', lines([{'question': 'q', 'answer': '1'}]))}", FIELDS
    )
    assert "lacks the field 'problem'; it has 'question', 'answer', and the format has problem, answer and solution" in message
    message = message_of(load_sources, f"jsonl:{written(tmp_path / 'a.jsonl', lines([{'prompt': 'q'}]))}", FIELDS)
    assert (
        "a.jsonl, line 1" in message
        and "it has 'prompt'" in message
        and "task.fields: id, question, answer, solution" in message
    )


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2: not UTF-8"), ("a.csv", b"a,b\n1,2\n3,\x92\n", "line 3: not UTF-8"),
    ("a.json", b'[{"a": 1},\n{"a": "\xe9"}]', "line 2: not UTF-8"), ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "not UTF-8 but UTF-16"),
    ("a.jsonl", gzip.compress(b'{"a": 1}\n', mtime=0), "must end in .gz"), ("a.jsonl.gz", b'{"a": 1}\n', "no complete gzip file"),
    ("a.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "no complete gzip file"), ("a.csv", b"a,b,a\n1,2,3\n", "the column 'a' is given twice"),
    ("a.csv", b"a,b\n1,2\n\n1\n", "line 4: 1 values for 2 columns"), ("a.csv", b'a,b\n1,"2\n3\n', "line 2: not CSV"),
    ("a.jsonl", b'{"a": 1, "a": 2}\n', "line 1: not JSON .the key 'a' is given twice"), ("a.csv", b"a,b\n", "no problems in this file"),
    ("a.json", b'{\n "rows": []\n}\n', "line 1: not JSON .*is an array of objects, or has one object per line"),
    ("a.json", b'[{"a": 1}, 2]', "entry 1 .from 0.: not a JSON object"), ("a.json", b"[]", "no problems"), ("a.csv", b"", "no problems"),
])  # fmt: skip
def test_files_that_cannot_be_read_are_named_with_the_line(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        list(read_rows(str(written(tmp_path / name, content))))


def test_other_json_files_may_have_a_byte_order_mark(tmp_path):
    assert read_json(written(tmp_path / "config.json", codecs.BOM_UTF8 + b'{"a": 1}')) == {"a": 1}


def test_twice_the_same_column_of_a_parquet_file_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"]), tmp_path / "a.parquet"
    )
    assert "the column 'a' is given twice" in message_of(list, read_rows(str(tmp_path / "a.parquet")))


def test_malformed_rows_of_every_kind_count_against_the_limit(tmp_path, caplog):
    for name, content in (
        ("a.csv", b"a,b\n1\n2,3\n"),
        ("a.json", b'[1, {"a": 2}]'),
        ("a.jsonl.gz", gzip.compress(b'{\n{"a": 2}\n', mtime=0)),
    ):
        path = str(written(tmp_path / name, content))
        assert len(list(read_rows(path, 1))) == 1 and name in caplog.text
        assert "task.max_malformed_lines=0 are allowed" in message_of(list, read_rows(path))


def test_the_documentation_lists_the_columns():
    text = (ROOT / "docs" / "mathematics.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(any(f"`{kind}:`" in line for line in table) for kind in FORMATS)
    for first, second in (*countdown.LAYOUTS, ("Puzzle", "Solution")):
        assert any(f"`{first}`, `{second}`" in line for line in table)


def test_openr1_needs_lists_of_texts_and_marks(tmp_path):
    row = {"problem": "1+1?", "answer": "2", "generations": ["<think>a</think> 3", "<think>b</think> 2"]}
    for marks, texts in (
        ("[False, True]", row["generations"]),
        (["False", "True"], row["generations"]),
        ([True], "long"),
        ([True], row["generations"]),
    ):
        path = written(tmp_path / "a.jsonl", lines([row | {"correctness_math_verify": marks, "generations": texts}]))
        with pytest.raises(ValueError, match="generations"):
            load_sources(f"openr1:{path}", FIELDS)


@pytest.mark.parametrize("content, message", [
    (b'{"question": "' + b"a" * 200 + b'"}', "line 1: more than 0.0001.* MiB in one line"),
    (b'{"question": "1", "answer": "2"}\n' + b" " * 100 + b"x" * 50, "line 2: more than"),
])  # fmt: skip
def test_a_compressed_line_cannot_fill_the_memory(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", 128)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        list(read_rows(str(tmp_path / "rows.jsonl.gz")))


@pytest.mark.parametrize("name, content", [
    ("array.json.gz", b"[" + b"{}," * 10**5 + b"{}]"),
    ("lines.jsonl.gz", b'{"question": "1"}\n' * 10**4),
    ("table.csv.gz", b"question,answer\n" + b"1,2\n" * 10**5),
])  # fmt: skip
def test_a_compressed_file_cannot_fill_the_memory(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 2**16)
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert len(content) > files.MOST_RATIO * (tmp_path / name).stat().st_size
    with pytest.raises(ValueError, match=f"{name}: unpacks to more than 100 times its size; unpack it first"):
        list(read_rows(str(tmp_path / name)))
    texts = [{"question": hex(random.getrandbits(200)), "answer": "1"} for _ in range(2000)]
    (tmp_path / "true.jsonl.gz").write_bytes(gzip.compress(lines(texts)))
    assert [row for *_, row in read_rows(str(tmp_path / "true.jsonl.gz"))] == texts


@pytest.mark.parametrize("name, content", [
    ("blank.csv.gz", b"question,answer\nq,5\n" + b"\n" * 10**5),
    ("commas.csv.gz", b",\r" * 10**5),
    ("quoted.csv.gz", b'question,answer\nq,"' + b"\n" * 10**5 + b'"\n'),
    ("blank.jsonl.gz", b'{"question": "1"}\n' + b"\n" * 10**5),
])  # fmt: skip
def test_the_lines_of_a_compressed_file_are_counted_even_blank_ones(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_PROBLEMS", 5000)
    file = tmp_path / name
    file.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"{name}, line 10001: more than 10000 lines in such a small file; unpack it first"):
        list(read_rows(str(file)))


def test_a_long_line_with_many_carriage_returns_is_split_as_it_is_read(tmp_path):
    file = tmp_path / "old.csv"
    file.write_bytes(b"question,answer\r" + b"q,5\r" * 10**5)
    found = read_rows(str(file))
    tracemalloc.start()
    assert next(found)[2] == {"question": "q", "answer": "5"}
    assert tracemalloc.get_traced_memory()[1] < 4 * file.stat().st_size
    tracemalloc.stop()
    assert sum(1 for _ in found) == 10**5 - 1


@pytest.mark.parametrize("column", ["zone", "offset", "twice"])
def test_a_parquet_column_that_python_cannot_represent_is_refused(column, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zones = {"zone": "Nowhere/City", "offset": "+99:99"}
    if column in zones:
        values = pyarrow.array([1], pyarrow.timestamp("us", tz=zones[column]))
    else:
        values = pyarrow.StructArray.from_arrays([pyarrow.array([1])] * 2, names=["a", "a"])
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": ["q"], "answer": ["5"], "unused": values}), file)
    assert "rows.parquet: a column has values for which Python has no type" in message_of(list, read_rows(str(file)))


def test_a_column_that_repeats_one_text_cannot_fill_the_memory(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(files, "ALWAYS_UNPACKED", 2**20)
    parquet.write_table(pyarrow.table({"question": ["x" * 2**18] * 1000}), tmp_path / "rows.parquet")
    begin = time.monotonic()
    with pytest.raises(ValueError, match="rows.parquet: unpacks to more than 100 times its size"):
        list(read_rows(str(tmp_path / "rows.parquet")))
    assert (tmp_path / "rows.parquet").stat().st_size < 2**16 and time.monotonic() - begin < 5


def test_a_record_cannot_fill_the_memory(tmp_path, monkeypatch):
    from array_record.python.array_record_module import ArrayRecordWriter

    monkeypatch.setattr(rows, "MOST_BYTES", 2**10)
    writer = ArrayRecordWriter(str(tmp_path / "rows.array_record"), "group_size:1")
    for size in (10, 2**11):
        writer.write(json.dumps({"question": "x" * size}).encode())
    writer.close()
    with pytest.raises(ValueError, match=r"record 1 \(from 0\): more than .* MiB"):
        list(read_rows(str(tmp_path / "rows.array_record")))
