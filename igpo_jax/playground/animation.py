"""Animated GIFs of a canvas being filled."""

import io
import re
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MOST_CELLS, MOST_FRAMES, CELL_CHARACTERS = 1024, 1024, 64
SHOWN_FRAMES = 150  # longer animations skip frames
WIDTH, MARGIN, GAP, HEIGHT, PADDING = 760, 16, 4, 28, 7  # pixels; HEIGHT of a cell
COLOR = re.compile(r"#[0-9a-f]{6}")
PAPER, EMPTY, DASH, GIVEN, GIVEN_INK, BORDER = "#ffffff", "#e6eaef", "#a7b1bd", "#fff4e8", "#8a3f00", "#e8710a"


def gif(animation: Any) -> bytes:
    """Draws an animation.

    Args:
        animation: {"frames": n, "cells": [[text, frame, color, given], ...]}. A cell shows its text from its frame on, 1..n, on
            a color #rrggbb; a given cell shows it from the start.

    Raises:
        ValueError: the structure is invalid, or there are too many frames, cells or characters.
    """
    cells, frames = parse_animation(animation)
    font = ImageFont.load_default(size=15)
    boxes, height = place([font.getlength(text) for text, *_ in cells], [text.endswith("\\n") for text, *_ in cells])
    image = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(image)

    def write(number: int) -> None:
        (text, _, color, given), (x, y, width) = cells[number], boxes[number]
        box = (x, y, x + width, y + HEIGHT)
        if given:
            draw.rounded_rectangle(box, 5, GIVEN, BORDER, 2)
        else:
            draw.rounded_rectangle(box, 5, color)
        ink = GIVEN_INK if given else "#ffffff" if is_dark(color) else "#000000"
        draw.text((x + width / 2, y + HEIGHT / 2), text, ink, font, anchor="mm")

    for number, (_, _, _, given) in enumerate(cells):
        x, y, width = boxes[number]
        draw.rounded_rectangle((x, y, x + width, y + HEIGHT), 5, EMPTY)
        draw.line((x + width / 2 - 4, y + 20, x + width / 2 + 4, y + 20), DASH)
        if given:
            write(number)
    shots, stride = [image.quantize(128)], -(-frames // SHOWN_FRAMES)
    for frame in range(1, frames + 1):
        for number, cell in enumerate(cells):
            if cell[1] == frame and not cell[3]:
                write(number)
        if frame % stride == 0 or frame == frames:
            shots.append(image.quantize(128))
    each = min(500, max(40, 8000 // len(shots)))
    stored = io.BytesIO()
    durations = [each] * (len(shots) - 1) + [2500]
    shots[0].save(stored, "GIF", save_all=True, append_images=shots[1:], duration=durations, loop=0)
    return stored.getvalue()


def parse_animation(animation: Any) -> tuple[list[tuple[str, int, str, bool]], int]:
    """Returns the cells, with visible line breaks, and the number of frames."""
    if not isinstance(animation, dict) or set(animation) != {"frames", "cells"}:
        raise ValueError("an animation is an object with frames and cells")
    frames, cells = animation["frames"], animation["cells"]
    if type(frames) is not int or not 0 <= frames <= MOST_FRAMES:
        raise ValueError(f"an animation has at most {MOST_FRAMES} frames")
    if not isinstance(cells, list) or not 0 < len(cells) <= MOST_CELLS:
        raise ValueError(f"an animation has 1 to {MOST_CELLS} cells")
    for cell in cells:
        kinds = [type(part) for part in cell] if isinstance(cell, list) else []
        if kinds != [str, int, str, bool] or not COLOR.fullmatch(cell[2]) or len(cell[0]) > CELL_CHARACTERS:
            raise ValueError(f"a cell is [text of at most {CELL_CHARACTERS} characters, frame, #rrggbb, given]")
    return [("".join(map(visible, text)), frame, color, given) for text, frame, color, given in cells], frames


def visible(character: str) -> str:
    return "\\n" if character == "\n" else character if character.isprintable() else "\ufffd"


def place(lengths: list[float], breaks: list[bool]) -> tuple[list[tuple[float, int, float]], int]:
    """Returns x, y and width of each cell, and the total height, in pixels."""
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
    last = boxes[-1][1]
    return boxes, last + HEIGHT + MARGIN


def is_dark(color: str) -> bool:
    """Returns whether white has more contrast than black, by the relative luminance of WCAG 2.2, as in shared.js."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179
