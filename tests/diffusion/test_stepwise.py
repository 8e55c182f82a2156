"""Stepwise decoding, for display, writes the same tokens as compiled blocks."""

import numpy as np
import pytest

from igpo_jax.diffusion.sampler import HINT
from igpo_jax.diffusion.stepwise import ALTERNATIVES

PROMPTS = ["What is 17 + 25?", "Hello", "two and two are"]
LENGTHS = {"completion_length": 16, "block_length": 8, "steps": 8}


def watched(call, *arguments, **options):
    """Returns the completions and the reported steps."""
    steps = []
    return call(*arguments, watch=steps.append, **options), steps


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [
    {},
    {"temperature": 0.7, "remasking": "random", "cfg_scale": 0.5},
    {"commit": "threshold", "threshold": 0.02, "cache": "dual", "refresh": 2},
    {"temperature": 0.7, "commit": "threshold", "threshold": 0.02, "remasking": "position_first"},
], ids=lambda decoding: ",".join(map(str, decoding.values())) or "greedy")  # fmt: skip
def test_steps_and_compiled_blocks_write_the_same_tokens_in_the_same_steps(model, decoding):
    options = LENGTHS | decoding | {"seed": 3, "hint": "The"}
    done, _ = watched(model.generate, PROMPTS, **options)
    for one, other in zip(done, model.generate(PROMPTS, **options), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.unmask_step, other.unmask_step)
        assert one.text == other.text


@pytest.mark.slow
def test_a_template_is_filled_with_the_same_tokens(model):
    template, options = "The answer is [MASK:6] because", {"temperature": 0.7, "steps": 3, "seed": 1}
    [done], steps = watched(model.infill, [template], prompts=["Hello"], **options)
    [expected] = model.infill([template], prompts=["Hello"], **options)
    np.testing.assert_array_equal(done.tokens, expected.tokens)
    np.testing.assert_array_equal(done.unmask_step, expected.unmask_step)
    given = expected.unmask_step == HINT
    assert [step.number for step in steps] == [HINT, 0, 1, 2]
    for step in steps:
        np.testing.assert_array_equal(step.tokens[0, given], expected.tokens[given])


@pytest.mark.slow
def test_every_step_shows_what_it_has_written_and_what_it_thought(model):
    [done], steps = watched(model.generate, ["Hello"], temperature=0.7, **LENGTHS)
    first, *others = steps
    assert first.number == HINT and (first.tokens == model.config.mask_id).all()
    for before, step in zip(steps, others, strict=False):
        written = before.tokens[0] != step.tokens[0]
        assert (before.tokens[0, written] == model.config.mask_id).all()
        assert (step.tokens[0, written] == done.tokens[written]).all()
        inside = [i - step.start for i in np.flatnonzero(written) if done.unmask_step[i] == step.number]
        assert set(inside) <= set(range(8))
        for i in inside:
            token, likeliest = done.tokens[step.start + i], step.likeliest[0, i].tolist()
            if token in likeliest:
                assert step.probability[0, i] == pytest.approx(step.likelihood[0, i, likeliest.index(token)])
            else:
                assert step.probability[0, i] <= step.likelihood[0, i].min()
    assert others[0].likelihood.shape == (1, 8, ALTERNATIVES) and (np.diff(others[0].likelihood) <= 0).all()


def test_a_row_of_end_of_text_ends_as_in_compiled_blocks(model):
    """After a first block of EOS, fills the rest with EOS and runs no further step."""
    hint = [model.config.eos_id] * 8
    done, steps = watched(model.generate, ["Hello"], hint=hint, **LENGTHS)
    assert (done[0].tokens == model.config.eos_id).all() and len(steps) == 1
    [expected] = model.generate(["Hello"], hint=hint, **LENGTHS)
    np.testing.assert_array_equal(done[0].unmask_step, expected.unmask_step)


def test_what_the_watcher_raises_ends_the_work(model):
    seen = []

    def watch(step):
        seen.append(step.number)
        if len(seen) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model.generate(["Hello"], watch=watch, **LENGTHS)
    assert seen == [HINT, 0, 1]
