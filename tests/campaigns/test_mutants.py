"""Each mutant replaces exactly one place in the code, and its tests exist."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE))
from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_the_text_of_a_mutant_occurs_once(number):
    mutant = MUTANTS[number]
    text = (ROOT / "igpo_jax" / mutant.file).read_text()
    assert text.count(mutant.before) == 1 and mutant.after != mutant.before, mutant.before
    assert all((ROOT / file).is_file() for file in mutant.tests.split())
