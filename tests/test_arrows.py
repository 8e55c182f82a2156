"""Imports point down: from commands to runs to the algorithm to problems and the runtime."""

import ast

from arrows import FLOOR, PACKAGE, imported_rooms, room_of, upward_imports_and_cycles


def test_no_import_runs_upwards_and_no_rooms_import_each_other_in_a_cycle():
    assert upward_imports_and_cycles() == []


def test_every_room_has_a_floor():
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == FLOOR.keys()


def test_an_import_is_seen_wherever_it_is_written(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import igpo_jax.run.export\n\ndef f():\n    from igpo_jax import api\n    from igpo_jax.rl.hints import inpaint\n"
    )
    assert ast.parse(file.read_text()) and imported_rooms(file) == {"run", "api", "rl"}
