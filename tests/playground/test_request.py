"""Requests that are rejected before they queue for the device, and animations."""

import io
import json
from concurrent.futures import CancelledError

import pytest
from PIL import Image

from igpo_jax import config as configuration
from igpo_jax.playground import animation
from igpo_jax.playground.animation import gif, parse_animation
from igpo_jax.playground.fields import begin_with
from igpo_jax.playground.request import LIMITS, parse_request
from igpo_jax.tasks import countdown

LENGTHS = {"completion_length": 16, "block_length": 8}
CELLS = [["The", 0, "#000000", True], ["an\n", 1, "#fde725", False], ["<b>", 2, "#440154", False]]


@pytest.mark.parametrize("asked, message", [
    ([], "not a JSON object"),
    ({"prompt": "a"}, "completion_length and block_length must be given"),
    (LENGTHS | {"prompts": "a"}, "'prompts' is none of prompt, chat,"),
    (LENGTHS | {"prompt": 5}, "prompt='5' is not text"),
    (LENGTHS | {"chat": 1}, "chat='1' is not true or false"),
    (LENGTHS | {"steps": True}, "steps='True' is not a whole number"),
    (LENGTHS | {"temperature": float("nan")}, "temperature=nan must be a number"),
    (LENGTHS | {"temperature": 10**400}, "temperature=1000.* must be a number"),
    (LENGTHS | {"temperature": -1}, "must not be negative"),
    (LENGTHS | {"cfg_scale": 1e-46}, "cfg_scale=1e-46 must be 0 or positive, from 1e-15 to"),
    (LENGTHS | {"seed": -1}, "seed=-1 must not be negative"),
    (LENGTHS | {"prompt": "\ud800"}, "prompt has half of a surrogate pair"),
    (LENGTHS | {"prompt": "four " * 5000}, f"prompt_tokens=.* takes at most {LIMITS['prompt_tokens']}"),
    (LENGTHS | {"hint": "x" * 40}, "hint has .* tokens, completion_length=16"),
    (LENGTHS | {"steps": 5000}, "steps=5000; the playground takes at most 1024"),
    (LENGTHS | {"steps": 3}, "steps=3 is not a multiple of the number of blocks"),
    (LENGTHS | {"commit": "all"}, "commit='all' is none of schedule"),
    ({"completion_length": 4096, "block_length": 8}, "completion_length=4096; the playground takes at most 1024"),
    ({"template": "no blank"}, "'no blank' has no blank"),
    ({"template": "[MASK:999999999999]"}, "completion_length=999999999999; the playground takes at most"),
    ({"template": "[MASK:4]", "steps": 0}, "steps=0"),
    (LENGTHS | {"template": "[MASK:4]"}, "a template has its own length"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(asked, message, model):
    with pytest.raises(ValueError, match=message):
        parse_request(asked, model)


@pytest.mark.parametrize("asked", [
    None,
    {"frames": 2},
    {"frames": -1, "cells": CELLS},
    {"frames": 10**6, "cells": CELLS},
    {"frames": 2, "cells": []},
    {"frames": 2, "cells": CELLS * 1000},
    {"frames": 2, "cells": [["a", 1, "red", False]]},
    {"frames": 2, "cells": [["a" * 100, 1, "#000000", False]]},
    {"frames": 2, "cells": [["a", 1.5, "#000000", False]]},
    {"frames": 2, "cells": ["abcd"]},
])  # fmt: skip
def test_what_is_no_animation_is_refused(asked):
    with pytest.raises(ValueError, match="an animation|a cell is"):
        parse_animation(asked)


@pytest.mark.parametrize("problems", ["nowhere.jsonl", "x" * 5000])
def test_a_run_whose_problems_cannot_be_read_has_no_example(problems, tmp_path, model):
    (tmp_path / "checkpoints").mkdir()
    values = configuration.to_json(configuration.base_config(**countdown.defaults(test=problems)))
    (tmp_path / "config.json").write_text(json.dumps(values))
    fields = begin_with(str(tmp_path), model, [])
    assert (fields["prompt"], fields["template"]) == ("", "[MASK:8]")


def test_an_animation_has_a_frame_for_the_canvas_and_for_every_step():
    image = Image.open(io.BytesIO(gif(*parse_animation({"frames": 2, "cells": CELLS}))))
    assert image.format == "GIF" and image.n_frames == 3
    frames = []
    for number in range(3):
        image.seek(number)
        frames.append(image.convert("RGB").tobytes())
    assert len(set(frames)) == 3


def test_long_animations_leave_out_frames_and_odd_characters_are_drawn():
    cells = [[text, frame, "#31688e", False] for frame, text in enumerate(["\ud800", "\x00", "漢", "​", "a\tb"] * 100, 1)]
    assert Image.open(io.BytesIO(gif(*parse_animation({"frames": 500, "cells": cells})))).n_frames <= 151


@pytest.mark.parametrize("text", ["\n", "W" * 64], ids=["lines", "wide"])
def test_the_pixels_of_an_animation_are_limited(text, monkeypatch):
    """Also shows that the first and the last picture are kept."""
    monkeypatch.setattr(animation, "MOST_PIXELS", 10 * animation.WIDTH * 1000)
    cells = [[text, frame, "#31688e", False] for frame in range(1, 61)]
    image = Image.open(io.BytesIO(gif(*parse_animation({"frames": 60, "cells": cells}))))
    assert 2 < image.n_frames and image.n_frames * image.width * image.height <= animation.MOST_PIXELS
    assert image.convert("RGB").getpixel((30, 20)) == (230, 234, 239)
    image.seek(image.n_frames - 1)
    assert image.convert("RGB").getpixel((23, 20)) != (230, 234, 239)


def test_the_highest_picture_fits_the_limit_twice():
    height = animation.MOST_CELLS * (animation.HEIGHT + animation.GAP) + 2 * animation.MARGIN
    assert 3 * animation.WIDTH * height <= animation.MOST_PIXELS


def test_an_animation_that_is_stopped_is_not_finished():
    asked = iter([False, False, True])
    with pytest.raises(CancelledError):
        gif(*parse_animation({"frames": 2, "cells": CELLS}), lambda: next(asked))
