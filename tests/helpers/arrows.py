"""python tests/helpers/arrows.py

Prints every import of igpo_jax from a lower layer ("floor") to a higher one, and every import cycle between units ("rooms":
folders and top-level modules). Exits with 1 if there is one. Units of one layer may import each other without cycles.
"""

import ast
import graphlib
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).parents[2] / "igpo_jax"
FLOORS = (
    "runtime",
    # problems and verdicts
    "families tokenizer_growth tokenizers chat grading tasks data",
    # the algorithm
    "model",
    "weights diffusion",
    "training",
    "rl",
    # a run
    "config",
    "run",
    "stages",
    # commands and the Python API
    "api cli command_help key_help",
    "report",
    "compare evaluate lm_eval plan rewrite playground train generate convert inspect_data doctor",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def room_of(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(file: pathlib.Path) -> set[str]:
    """Returns the folders and top-level modules ("rooms") that a module imports from, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = names if node.module == "igpo_jax" else [node.module]
        found |= {module.split(".")[1] for module in modules if module.startswith("igpo_jax.")}
    return found & FLOOR.keys()


def upward_imports_and_cycles() -> list[str]:
    found, graph = [], {room: set() for room in FLOOR}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file)
        if room in ("__init__", "__main__"):  # they export the Python API and the commands
            continue
        for other in imported_rooms(file) - {room}:
            graph[room].add(other)
            if FLOOR[other] > FLOOR[room]:
                found.append(f"{file.relative_to(PACKAGE)} imports {other}, which is on a higher floor")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"rooms import each other in a cycle: {' <- '.join(error.args[1])}")
    return found


if __name__ == "__main__":
    print("\n".join(upward_imports_and_cycles()))
    sys.exit(bool(upward_imports_and_cycles()))
