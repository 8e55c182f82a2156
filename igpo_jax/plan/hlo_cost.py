"""Cost of one execution of a compiled program on one device, read from its HLO text.

XLA's own cost analysis counts the body of a loop once; here a body counts as often as it runs (at most, if a loop may end
early). The cost covers matrix products, HBM traffic at the borders of fusions, and bytes received through collectives.
"""

import collections
import dataclasses
import json
import math
import re

import numpy as np

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128} | {f"{kind}{n}": n for kind in "suf" for n in (4, 8, 16, 32, 64)}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no data by themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"while", "conditional", "call", "iota", "copy-done", "async-done", "slice-done", "opt-barrier"}
FREE |= {f"{kind}-done" for kind in ("recv", "send", "all-gather", "all-reduce", "collective-permute")}
PASSED_ON = {"tuple", "custom-call", *COLLECTIVES}  # users of a fusion's parameter that do not read it


@dataclasses.dataclass
class Cost:
    """flops: of matrix products. bytes: read from and written to HBM. received: bytes from other devices, by (kind of
    collective, whether they come from another slice)."""

    flops: float = 0.0
    bytes: float = 0.0
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Cost", times: int = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for key, value in other.received.items():
            self.received[key] += times * value


@dataclasses.dataclass
class Instruction:
    name: str
    shape: str  # as written, with layouts; tuples in parentheses
    opcode: str
    operands: list[str]
    attributes: str
    root: bool


def program_cost(text: str) -> Cost:
    """Cost of one run of a module on one device.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: a loop's number of rounds cannot be read from its condition.
    """
    return _Program(text).cost()


class _Program:
    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        current = None
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line)
            if header:
                current = self._computations[header[2]] = []
                if header[1]:
                    self._entry = header[2]
            elif line == "}":  # a kernel's metadata may hold line breaks
                current = None
            elif current is not None and " = " in line:
                current.append(_parse_instruction(line))

    def cost(self) -> Cost:
        return self._computation_cost(self._entry)

    def _computation_cost(self, name: str) -> Cost:
        total, collectives = Cost(), {}
        instructions = self._computations[name]
        shapes = {i.name: i.shape for i in instructions}
        for instruction in instructions:
            opcode = instruction.opcode
            if opcode == "while":
                trips = self._trips(instruction)
                total.add(self._computation_cost(_called(instruction, "body")[0]), trips)
                total.add(self._computation_cost(_called(instruction, "condition")[0]), trips)
            elif opcode == "conditional":
                branches = [self._computation_cost(branch) for branch in _branches(instruction)]
                total.add(max(branches, key=lambda cost: cost.flops))
            elif opcode in ("call", "async-start"):
                for callee in _called(instruction, "to_apply") + _called(instruction, "calls"):
                    total.add(self._computation_cost(callee))
            elif opcode == "fusion":
                (callee,) = _called(instruction, "calls")
                total.flops += self._products(callee)
                total.bytes += self._fusion_bytes(instruction, callee, shapes)
                collectives |= self._collectives(callee)
            else:
                total.flops += _flops(instruction, shapes)
                if opcode not in FREE:
                    total.bytes += _border_bytes(instruction, shapes)
                collectives |= self._collective(instruction, shapes)
        for (kind, far, *_), received in collectives.items():
            total.received[kind, far] += received
        return total

    def _products(self, name: str) -> float:
        """FLOPs inside a fusion, including nested fusions."""
        instructions = self._computations[name]
        shapes = {i.name: i.shape for i in instructions}
        nested = [callee for i in instructions if i.opcode == "fusion" for callee in _called(i, "calls")]
        return sum(_flops(i, shapes) for i in instructions) + sum(map(self._products, nested))

    def _collectives(self, name: str) -> dict:
        """Collectives inside a fusion, as in `_collective`. The TPU compiler spreads one collective over several fusions, to
        overlap it with computation; the clones share a channel and are one entry here."""
        instructions = self._computations[name]
        shapes = {i.name: i.shape for i in instructions}
        found = {}
        for instruction in instructions:
            found |= self._collective(instruction, shapes)
            if instruction.opcode == "fusion":
                found |= self._collectives(_called(instruction, "calls")[0])
        return found

    def _collective(self, instruction: Instruction, shapes: dict[str, str]) -> dict:
        """{(kind, from other slices, channel, shape): bytes received by one device}, at most one entry."""
        if instruction.opcode == "recv":
            return _between_slices(instruction)
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return {}
        given = sum(_bytes(shapes[name], everywhere=True) for name in instruction.operands)
        size = len(_groups(instruction)[0])
        # An all-gather receives the shares of all other devices; an all-reduce is a reduce-scatter and an all-gather.
        received = {
            "all-gather": (size - 1) * given,
            "all-reduce": 2 * (size - 1) / size * given,
            "reduce-scatter": (size - 1) / size * given,
            "all-to-all": (size - 1) / size * given,
            "collective-permute": given,
        }[kind]
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        unique = (channel[1], re.sub(r"\{.*?\}", "", instruction.shape)) if channel else (instruction.name,)
        return {(kind, False, *unique): received} if size > 1 else {}

    def _fusion_bytes(self, fusion: Instruction, name: str, shapes: dict[str, str]) -> float:
        """Bytes that a fusion reads and writes. If it slices an array or updates it in place, only that part counts."""
        instructions = self._computations[name]
        inner = {i.name: i for i in instructions}
        users = collections.defaultdict(list)
        for instruction in instructions:
            for operand in instruction.operands:
                users[operand].append(instruction)

        def read(parameter: Instruction) -> float:
            by = users[parameter.name]
            if all(user.opcode in PASSED_ON for user in by):
                return 0
            if all(user.opcode in ("dynamic-slice", "gather") for user in by):
                return sum(_bytes(user.shape, everywhere=True) for user in by)
            if all(user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name for user in by):
                return 0
            return _bytes(parameter.shape, everywhere=True)

        def written(value: Instruction) -> float:
            if value.opcode == "tuple":
                return sum(written(inner[element]) for element in value.operands)
            if value.opcode == "dynamic-update-slice":
                return _bytes(inner[value.operands[1]].shape, everywhere=True)
            return 0 if value.opcode in ("parameter", "custom-call", *COLLECTIVES) else _bytes(value.shape)

        parameters = {int(i.attributes): i for i in instructions if i.opcode == "parameter"}
        operands = enumerate(fusion.operands)
        reads = sum(read(parameters[number]) for number, operand in operands if _bytes(shapes[operand]))
        return reads + written(next(i for i in instructions if i.root))

    def _trips(self, loop: Instruction) -> int:
        """Number of rounds of a loop whose counter starts at 0: known to the compiler, or (limit in the condition) / (step in
        the body)."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition, body = (self._inlined(_called(loop, which)[0]) for which in ("condition", "body"))
        following = body.resolve(next(i.name for i in self._computations[_called(loop, "body")[0]] if i.root))
        for compare in condition.instructions.values():
            if compare.opcode == "compare" and "direction=LT" in compare.attributes:
                counter, limit = map(condition.resolve, compare.operands)
                if limit.opcode == "constant" and counter.opcode == "get-tuple-element":
                    increment = body.resolve(following.operands[_index(counter)])
                    steps = [i for i in map(body.resolve, increment.operands) if i.opcode == "constant"]
                    if increment.opcode == "add" and steps:
                        return -(-int(limit.attributes) // int(steps[0].attributes))
        raise ValueError(f"cannot tell how often the loop {loop.name} runs")

    def _inlined(self, name: str) -> "_Inlined":
        """Returns a computation with its fusions inlined."""
        found = _Inlined({}, {})
        for instruction in self._computations[name]:
            found.instructions[instruction.name] = instruction
            if instruction.opcode == "fusion":
                (callee,) = _called(instruction, "calls")
                inner = self._inlined(callee)
                found.instructions |= inner.instructions
                found.same |= inner.same
                for i in self._computations[callee]:
                    if i.opcode == "parameter":
                        found.same[i.name] = instruction.operands[int(i.attributes)]
                    if i.root:
                        found.same[instruction.name] = i.name
        return found


@dataclasses.dataclass
class _Inlined:
    """Instructions by name, and aliases (name -> name)."""

    instructions: dict[str, Instruction]
    same: dict[str, str]

    def resolve(self, name: str) -> Instruction:
        """Returns the instruction that computes the value of `name`."""
        while True:
            instruction = self.instructions[name]
            if name in self.same:
                name = self.same[name]
            elif instruction.opcode in ("copy", "bitcast"):
                name = instruction.operands[0]
            elif instruction.opcode == "get-tuple-element":
                of = self.resolve(instruction.operands[0])
                if of.opcode != "tuple":
                    return instruction
                name = of.operands[_index(instruction)]
            else:
                return instruction


def _matched(pattern: str, text: str) -> tuple[str, ...]:
    """Returns the groups of the first match.

    Raises:
        ValueError: there is no match, since the text has an unknown form.
    """
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{pattern!r} does not occur in {text[:200]!r}")
    return match.groups()


def _index(element: Instruction) -> int:
    """Index of a get-tuple-element."""
    return int(_matched(r"index=(\d+)", element.attributes)[0])


def _parse_instruction(line: str) -> Instruction:
    left, _, right = line.partition(" = ")
    shape, rest = (_until_closed(right) if right.startswith("(") else right.split(" ", 1)) if right else ("", "")
    opcode, _, rest = rest.strip().partition("(")
    inside, attributes = _until_closed("(" + rest)
    name = left.split()[-1].removeprefix("%")
    if opcode in ("parameter", "constant"):
        return Instruction(name, shape, opcode, [], inside[1:-1], "ROOT" in left)
    return Instruction(name, shape, opcode, re.findall(r"%([^\s,()]+)", inside), attributes, "ROOT" in left)


def _until_closed(text: str) -> tuple[str, str]:
    """Splits a text after the parenthesis that closes the first one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: position + 1], text[position + 1 :]
    return text, ""


def _between_slices(instruction: Instruction) -> dict:
    """Like `_collective`, for arrays that the TPU compiler hands to the hosts, which exchange them over their network."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if kind is None:
        return {}
    kind = kind[1].lower().replace("_", "-")
    numbers = _matched(r'_xla_megascale_target="\{([^}]*)\}', instruction.attributes)[0].split(",")
    ends = [list(map(int, number.split(":"))) for number in numbers]  # such as 1,2 or 1:4
    slices = sum(end[-1] - end[0] + 1 for end in ends)
    share = 2 * (slices - 1) / slices if kind == "all-reduce" else 1
    dtype, dims, _ = _arrays(instruction.shape)[0]
    return {(kind, True, instruction.name): share * math.prod(dims) * BITS[dtype] / 8}


def _called(instruction: Instruction, attribute: str) -> list[str]:
    return re.findall(rf"\b{attribute}=%?([^\s,}}]+)", instruction.attributes)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%([^\s,]+)", listed[1])
    return _called(instruction, "true_computation") + _called(instruction, "false_computation")


def _arrays(shape: str) -> list[tuple[str, list[int], bool]]:
    """Lists (type, dimensions, is in HBM) of every array in a shape."""
    found = []
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?", shape):
        if dtype in BITS:
            found.append((dtype, [int(d) for d in dims.split(",") if d], not re.search(r"S\([1-9]\)", layout)))
    return found


def _bytes(shape: str, everywhere: bool = False) -> float:
    """Bytes of a shape's arrays in HBM, or of all its arrays if `everywhere`."""
    return sum(math.prod(dims) * BITS[dtype] / 8 for dtype, dims, hbm in _arrays(shape) if hbm or everywhere)


def _border_bytes(instruction: Instruction, shapes: dict[str, str]) -> float:
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _bytes(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _bytes(shapes[instruction.operands[1]])
    if instruction.opcode in ("copy-start", "slice-start"):  # their results also list the source, as an alias
        source, arrays = _arrays(shapes[instruction.operands[0]])[0], _arrays(instruction.shape)
        dtype, dims, in_hbm = arrays[0 if instruction.opcode == "copy-start" else 1]
        return math.prod(dims) * BITS[dtype] / 8 * (in_hbm + source[2])
    return _bytes(instruction.shape) + sum(_bytes(shapes[operand]) for operand in instruction.operands)


def _flops(instruction: Instruction, shapes: dict[str, str]) -> float:
    """FLOPs of a matrix product, two per multiplication, or a kernel's own estimate; splash has none and counts 0."""
    library = 'custom_call_target="__cublas$' in instruction.attributes
    if instruction.opcode == "custom-call" and not library:
        estimate = re.search(r'"cost_estimate":\s*(\{[^{}]*\})', instruction.attributes)
        return float(json.loads(estimate[1])["flops"]) if estimate else 0.0
    if instruction.opcode not in ("dot", "convolution", "custom-call"):
        return 0.0
    (_, out, _) = _arrays(instruction.shape)[0]
    (_, lhs, _), (_, rhs, _) = (_arrays(shapes[operand])[0] for operand in instruction.operands[:2])
    if instruction.opcode != "convolution":
        name = r'"lhs_contracting_dimensions":\[([^\]]*)\]' if library else r"lhs_contracting_dims=\{([^}]*)\}"
        contracted = re.findall(r"\d+", _matched(name, instruction.attributes)[0])
        return 2.0 * math.prod(out) * math.prod(lhs[int(d)] for d in contracted)
    return _convolution_flops(instruction.attributes, lhs, rhs, out)


def _convolution_flops(attributes: str, lhs: list[int], rhs: list[int], out: list[int]) -> float:
    """FLOPs of a convolution, without multiplications by padding and by the holes of dilation: the TPU compiler writes batched
    matrix products as convolutions that consist mostly of these."""
    lhs_labels, rhs_labels, out_labels = _matched(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    groups = int((re.search(r"batch_group_count=(\d+)", attributes) or [0, 1])[1])
    found = re.search(r"window=\{([^}]*)\}", attributes)
    window = dict(re.findall(r"(\w+)=([-\w]+)", found[1] if found else ""))
    spatial = sorted(label for label in lhs_labels if label.isdigit())

    def per_dimension(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(spatial)

    strides, paddings = per_dimension("stride", "1"), per_dimension("pad", "0_0")
    lhs_dilations, rhs_dilations = per_dimension("lhs_dilate", "1"), per_dimension("rhs_dilate", "1")
    pairs = 1
    for d, label in enumerate(spatial):
        low = int(paddings[d].split("_")[0])
        outputs = np.arange(out[out_labels.index(label)])[:, None] * int(strides[d])
        kernel = np.arange(rhs[rhs_labels.index(label)])[None] * int(rhs_dilations[d])
        position, dilation = outputs + kernel - low, int(lhs_dilations[d])
        inside = (position >= 0) & (position <= (lhs[lhs_labels.index(label)] - 1) * dilation)
        pairs *= int(np.sum(inside & (position % dilation == 0)))
    return 2.0 * pairs * out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")] / groups


def _groups(instruction: Instruction) -> list[list[int]]:
    """Groups of devices that communicate with each other, read from any of HLO's notations."""
    attributes = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return [list(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if tiled:
        return _iota(tiled[2]).reshape([int(n) for n in tiled[1].split(",")]).tolist()
    of_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? *device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes)
    if of_mesh:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", of_mesh[1])}
        ids = np.arange(math.prod(axes.values()))
        if of_mesh[2]:
            ids = _iota(of_mesh[2])
        ids = ids.reshape(tuple(axes.values()))
        chosen = [list(axes).index(name) for name in re.findall(r"'(\w+)'", of_mesh[3])]
        others = [d for d in range(len(axes)) if d not in chosen]
        return ids.transpose(others + chosen).reshape(-1, math.prod(ids.shape[d] for d in chosen)).tolist()
    raise ValueError(f"cannot read who takes part in {instruction.name}: {attributes[:200]}")


def _iota(text: str) -> np.ndarray:
    """Device ids of a notation such as "[4,2]T(1,0)": 0, 1, ... in that shape, then transposed."""
    shape, order = _matched(r"^\[([\d,]+)\](?:T\(([\d,]+)\))?$", text.strip())
    shape = [int(n) for n in shape.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids if order is None else ids.transpose([int(n) for n in order.split(",")])
