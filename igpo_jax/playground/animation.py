"""Draws animated GIFs that show how the tokens of a completion are filled in."""

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from igpo_jax.runtime.checks import require

MOST_CELLS, MOST_FRAMES, CELL_CHARACTERS = 1024, 1024, 64
SHOWN_FRAMES = 150  # longer animations skip frames
MOST_PIXELS = 100_000_000  # of all pictures; one picture with MOST_CELLS lines has 25 million
COLORS = 128
WIDTH, MARGIN, GAP, HEIGHT, PADDING = 760, 16, 4, 28, 7  # pixels; HEIGHT of a cell
COLOR = re.compile(r"#[0-9a-f]{6}")
Cell = tuple[str, int, str, bool]
PAPER, EMPTY, DASH, GIVEN, GIVEN_INK, BORDER = "#ffffff", "#e6eaef", "#a7b1bd", "#fff4e8", "#8a3f00", "#e8710a"


def gif(cells: list[Cell], frames: int, is_stopped: Callable[[], bool] = lambda: False) -> bytes:
    """Returns an animated GIF of `cells`, each (text, frame, color, given). A cell is blank before its frame. From this frame
    on, the cell shows its text on a background of its color, which has the form #rrggbb. `given` is True for tokens that were
    not sampled. `cells` and `frames` are the results of `parse_animation`. An animation skips frames if it has more than
    `SHOWN_FRAMES`, or if its pictures would have more than `MOST_PIXELS` pixels in total. Raises CancelledError soon after
    `is_stopped` returns True."""
    font = ImageFont.load_default(size=15)
    boxes = place([font.getlength(text) for text, *_ in cells], [text.endswith("\\n") for text, *_ in cells])
    height = boxes[-1][1] + HEIGHT + MARGIN
    empty, full = _draw(cells, boxes, height, font)
    shown = min(SHOWN_FRAMES, MOST_PIXELS // (WIDTH * height) - 2)  # besides the first and the last
    stride = max(1, -(-frames // shown))
    kept = [frame for frame in range(frames + 1) if frame % stride == 0 or frame == frames]
    order = sorted((frame, number) for number, (_, frame, *_) in enumerate(cells) if 0 <= frame <= frames)

    def pictures() -> Iterator[Image.Image]:
        canvas, drawn = empty, 0
        for frame in kept:
            if is_stopped():
                raise CancelledError
            canvas = canvas.copy()
            while drawn < len(order) and order[drawn][0] <= frame:
                x, y, width = boxes[order[drawn][1]]
                box = (int(x), y, int(x + width) + 2, y + HEIGHT + 1)
                canvas.paste(full.crop(box), box)
                drawn += 1
            yield canvas

    durations = [min(500, max(40, 8000 // len(kept)))] * (len(kept) - 1) + [2500]  # ms
    shots, stored = pictures(), io.BytesIO()
    next(shots).save(stored, "GIF", save_all=True, append_images=shots, duration=durations, loop=0)
    return stored.getvalue()


def _draw(cells: list[Cell], boxes: list[tuple[float, int, float]], height: int, font: Any) -> tuple[Image.Image, Image.Image]:
    """Returns two images with the same palette. The first image shows all cells as blanks, and the second image shows all cells
    with their texts."""
    image = Image.new("RGB", (WIDTH, 2 * height), PAPER)
    draw = ImageDraw.Draw(image)
    for x, y, width in boxes:
        draw.rounded_rectangle((x, y, x + width, y + HEIGHT), 5, EMPTY)
        draw.line((x + width / 2 - 4, y + 20, x + width / 2 + 4, y + 20), DASH)
    image.paste(image.crop((0, 0, WIDTH, height)), (0, height))
    for (text, _, color, given), (x, y, width) in zip(cells, boxes, strict=True):
        ink = "#ffffff" if is_dark(color) else "#000000"
        fill, border, ink = (GIVEN, BORDER, GIVEN_INK) if given else (color, None, ink)
        draw.rounded_rectangle((x, y + height, x + width, y + height + HEIGHT), 5, fill, border, 2)
        draw.text((x + width / 2, y + height + HEIGHT / 2), text, ink, font, anchor="mm")
    few = image.quantize(COLORS)
    palette, paper = few.getpalette() or [], few.getpixel((0, 0))
    assert isinstance(paper, int)
    palette[3 * paper : 3 * paper + 3] = ImageColor.getrgb(PAPER)  # quantization mixes it with similar colors
    few.putpalette(palette)
    return few.crop((0, 0, WIDTH, height)), few.crop((0, height, WIDTH, 2 * height))


def parse_animation(animation: Any) -> tuple[list[Cell], int]:
    """Checks an animation {"frames": n, "cells": [[text, frame, color, given], ...]}. Returns the list of cells and the number
    of frames. In the texts of the returned cells, line breaks are written as \\n. Cells of given tokens get frame 0. Other
    cells with frame 0 get frame -1 and are never drawn. Raises ValueError if the structure is invalid, or if there are too many
    frames, cells or characters."""
    valid = isinstance(animation, dict) and set(animation) == {"frames", "cells"}
    require(valid, "an animation is an object with frames and cells")
    frames, cells = animation["frames"], animation["cells"]
    require(type(frames) is int and 0 <= frames <= MOST_FRAMES, f"an animation has at most {MOST_FRAMES} frames")
    require(isinstance(cells, list) and 0 < len(cells) <= MOST_CELLS, f"an animation has 1 to {MOST_CELLS} cells")
    for cell in cells:
        kinds = [type(part) for part in cell] if isinstance(cell, list) else []
        works = kinds == [str, int, str, bool] and COLOR.fullmatch(cell[2]) and len(cell[0]) <= CELL_CHARACTERS
        require(works, f"a cell is [text of at most {CELL_CHARACTERS} characters, frame, #rrggbb, given]")
    return [("".join(map(visible, text)), 0 if given else at or -1, color, given) for text, at, color, given in cells], frames


def visible(character: str) -> str:
    return "\\n" if character == "\n" else character if character.isprintable() else "\ufffd"


def place(lengths: list[float], breaks: list[bool]) -> list[tuple[float, int, float]]:
    """Returns the position and width of each cell, (x, y, width), in pixels. `lengths` are the widths of the cells' texts in
    pixels, and `breaks` says for each cell whether a line ends after the cell."""
    boxes: list[tuple[float, int, float]] = []
    x: float = MARGIN
    y = MARGIN
    for length, ends in zip(lengths, breaks, strict=True):
        width = min(max(22, length + 2 * PADDING), WIDTH - 2 * MARGIN)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + HEIGHT + GAP
        boxes.append((x, y, width))
        x += width + GAP
        if ends:
            x, y = MARGIN, y + HEIGHT + GAP
    return boxes


def is_dark(color: str) -> bool:
    """Returns whether white text has more contrast than black text on a background of the given color, #rrggbb. The contrast is
    computed from the luminance that WCAG 2.2 defines."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179
