"""Solutions that get shorter by rules, and never lose a step that something hangs on."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.rewrite.condense import RULES, condense, sentences
from igpo_jax.tasks.sources import load_sources

QUESTION = "There are 24 apples in each of 3 boxes. How many apples are there in all the boxes?"
FIELDS = {"id": "id", "question": "question", "answer": "answer", "solution": "solution"}


def last(trace, answer):
    begin = trace.rindex(answer)
    return [(begin, begin + len(answer))]


def shortened(trace, answer="72", question=QUESTION):
    text, dropped = condense(question, trace, last(trace, answer))
    assert {rule for rule, _ in dropped} <= set(RULES)
    return text


@pytest.mark.parametrize("superfluous", [
    "Okay, let's see. ", "Let's think step by step.\n\n", "Alright. ", "Hmm.\n",
    "Let me solve this problem carefully. ",
    "Okay, so I need to find how many apples are there in all the boxes. ",
    "We want to find how many apples there are. ",
    "There are 24 apples in each of 3 boxes. ", "So there are 24 apples in each of 3 boxes.\n",
])  # fmt: skip
def test_filler_and_restatements_go(superfluous):
    wanted = "Three times is $24 \\cdot 3$. That is 72."
    if superfluous.startswith("So"):  # it may conclude something
        assert shortened(superfluous + wanted) == superfluous + wanted
    else:
        assert shortened(superfluous + wanted) == wanted


@pytest.mark.parametrize("detour", [
    "Wait, let me double-check. 24 and 24 are 48, and 24 more are 72. ", "Hmm, 24+24+24 is 72, too. ",
    "Wait, is that all? ",
    "Just to be sure, 72/3 = 24. ", "Let me verify this: 72/24 = 3. Good. ", "Is that right? Yes. ",
    "That makes sense. ",
])  # fmt: skip
def test_detours_go(detour):
    assert shortened(f"We get 24*3 = 72.\n\n{detour}\n\nSo it is 72.") == "We get 24*3 = 72.\n\nSo it is 72."
    assert shortened(f"So it is \\boxed{{72}}. {detour}", "72") == "So it is \\boxed{72}." or "72" in detour


@pytest.mark.parametrize("needed", [
    "Wait, that is wrong: it is 24*3 = 72.", "Hmm, there are not 4 boxes.",
    "Wait, let me check: half of 24 is 12. Then 6*12 = 72.",
    "Let me check the cases $x=3$ and $x=24$: only $x=24$ fits.",
    "Let me check how many are left, with y boxes gone. Let y be 0.",
    "We can check that no other number fits.", "There are not 24 apples in each of 3 boxes.",
    "Each box has 24 apples, so 3 have",
    "Then 24 apples in each of 3 boxes are 24*3 = 72 apples.", "I need to find how many are in 5 boxes.",
    "First find the total:",
    "This looks like balanced ternary.", "Just to make sure the sum converges, we compute it.",
])  # fmt: skip
def test_what_changes_or_introduces_something_stays(needed):
    trace = f"We get 24*3 = 71.\n\n{needed}\n\nThe total with y is 72."
    assert shortened(trace) == trace


def test_what_the_next_sentence_refers_to_stays():
    for after in ("This means 24 three times.", "We do this by adding.", "In other words, we multiply."):
        trace = f"We want to find how many apples there are. {after} It is 72."
        assert shortened(trace) == trace


def test_second_ways_go_after_the_answer_only():
    way = "Alternatively, we add 24+24+24.\n\nTherefore it is 72 again."
    assert shortened(f"It is $\\boxed{{72}}$. {way}", "72}") == "It is $\\boxed{72}$."
    before = f"We multiply. {way} So $\\boxed{{72}}$."
    assert shortened(before, "72}") == before


def test_duplicates_go_but_not_in_another_case():
    step = "So the product of them is 72."
    assert shortened(f"{step} {step} The end is 72.") == f"{step} The end is 72."
    assert shortened(f"So, the product of them all is 72.\n{step}\nThe end is 72.").count("product") == 1
    for other in ("Case 2: it is red.", "Suppose it is red.", "2. It is red."):
        trace = f"{step}\n{other}\n{step}\nThe end is 72."
        assert shortened(trace) == trace
    for one, other in (("Ann gives 5 of them to Tom.", "Tom gives 5 of them to Ann."), ("It is not so at 5.",
    "It is so at 5."),
                       ("So $x-y$ is what we have.", "So $y-x$ is what we have.")):  # fmt: skip
        assert shortened(f"{one} {other} The end is 72.") == f"{one} {other} The end is 72."


def test_of_a_thought_and_a_solution_only_the_solution_stays():
    assert shortened("<think>\nWhat is it? 24*3 = 72.\n</think>\n\nIt is 72.") == "It is 72."
    assert shortened("<think>Okay. It is 24*3 = 72.</think>\n\nThat was all.") == "It is 24*3 = 72.\n\nThat was all."


@pytest.mark.parametrize("text, parts", [
    ("It costs 3.50 dollars. Then 2 more.", ["It costs 3.50 dollars.", "Then 2 more."]),
    ("Let $f(x) = 3. X$ be. So \\[a. B\n\nC\\] holds.", ["Let $f(x) = 3. X$ be.", "So \\[a. B\n\nC\\] holds."]),
    ("Thus \\begin{align*}a. B\n\nC\\end{align*} ends. Now.", ["Thus \\begin{align*}a. B\n\nC\\end{align*} ends.",
    "Now."]),
    ("So \\boxed{\\text{A. B}}. End", ["So \\boxed{\\text{A. B}}.", "End"]),
    ("He had 5\nShe had 6\nand more", ["He had 5", "She had 6\nand more"]), ("E.g. this, i.e. that. Mr. X",
    ["E.g. this, i.e. that.", "Mr. X"]),
    ("1. First\n2. Second", ["1. First", "2. Second"]), ("", []),
])  # fmt: skip
def test_sentences_hold_formulas_whole(text, parts):
    assert [body for body, _ in sentences(text)] == parts


def test_nothing_goes_where_it_is_not_known_what_states_the_answer():
    trace = "Okay. Wait. Okay. Wait."
    assert condense("q", trace, []) == (trace, []) == condense("q", trace, [(0, len(trace))])


FRAGMENTS = st.sampled_from([
    "Okay. ", "Wait, let me check. ", "It is 24*3 = 72. ", "There are 24 apples in each of 3 boxes. ", "\n\n", "\n",
    "$x = 7", "$ ", "</think>",
    "<think>", "\\[", "\\]", "{", "}", "Alternatively, it is 72. ", "So it is $\\boxed{72}$. ", "The answer is 72",
    ". ", "\\begin{a}", "\\end{a}", "1. ",
    "Hmm, 5? ", "We know: ",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS | st.text(max_size=8), max_size=25).map("".join), st.data())
def test_the_answer_is_never_lost_and_nothing_is_added(trace, data):
    assert "".join(body + gap for body, gap in sentences(trace)) == trace
    begin = data.draw(st.integers(0, len(trace)))
    end = data.draw(st.integers(begin, len(trace)))
    answer = trace[begin:end]
    if not answer.strip():
        return
    text, dropped = condense(QUESTION, trace, [(begin, end)])
    assert answer.strip() in text and len(text) <= len(trace)
    assert bool(dropped) or text == trace
    remaining = iter(trace)
    assert all(character in remaining for character in text if not character.isspace())


def test_real_solutions_keep_their_answers_and_a_second_time_changes_nothing():
    records, _ = load_sources(f"gsm8k:{pathlib.Path(__file__).parents[1] / 'tasks' / 'gsm8k_sample.jsonl'}", FIELDS)
    for record in records:
        padded = f"Okay, let's see.\n{record.solution}\nWait, let me double-check this. Yes."
        text, dropped = condense(record.question, padded, last(padded, record.solution[slice(*record.spans[0])]))
        assert len(dropped) >= 2 and text == condense(record.question, record.solution, record.spans)[0]
        assert condense(record.question, text, last(text, record.solution[slice(*record.spans[0])])) == (text, [])
