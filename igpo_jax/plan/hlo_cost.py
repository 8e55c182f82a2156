"""Computes the cost of one execution of a compiled program on one device, from the program's HLO text.

XLA's own cost analysis counts the body of a loop only once. This module multiplies the cost of the body by the number of
iterations, or by the maximum number of iterations if the loop may end early. The cost consists of the FLOPs of matrix products,
the HBM traffic of fusions, and the bytes received through collectives. The HLO text may be of XLA's CPU, TPU or GPU compiler."""

import collections
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128} | {f"{kind}{n}": n for kind in "suf" for n in (4, 8, 16, 32, 64)}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no data by themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"while", "conditional", "call", "iota", "copy-done", "async-done", "slice-done", "opt-barrier"}
FREE |= {f"{kind}-done" for kind in ("recv", "send", *COLLECTIVES)}
PASSED_ON = {"tuple", "custom-call", *COLLECTIVES}  # opcodes that use a fusion's parameter without reading its data
SLICES = ("dynamic-slice", "slice", "gather")
# Instructions whose elements each depend on one element of the operand. A fusion computes only the elements that it needs.
VIEWS = ("bitcast", "reshape", "transpose", "copy", "convert")


@dataclasses.dataclass
class Cost:
    flops: float = 0.0  # of matrix products
    bytes: float = 0.0  # read from and written to HBM
    # Bytes from other devices, by (kind of collective, whether they come from another TPU slice or another GPU host).
    received: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Cost", times: int = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.received.update({key: times * value for key, value in other.received.items()})


@dataclasses.dataclass(eq=False)  # hashable by identity
class Instruction:
    name: str
    shape: str  # as written, with layouts; tuples in parentheses
    opcode: str
    operands: "list[Instruction]"
    attributes: str
    root: bool


def program_cost(text: str, hosts: Sequence[int] = ()) -> Cost:
    """Returns the cost of running a compiled program once on one device. `text` is the program's HLO text from
    `compiled.as_text()`. For GPUs, `hosts` contains the host number of every device, in the order of the mesh, so that traffic
    between hosts is counted separately. An empty `hosts` means that all devices are on one host. TPUs need no `hosts`, because
    their HLO text marks the traffic between slices. Raises ValueError if the number of iterations of a loop cannot be found in
    the text, or if a device has no entry in `hosts`."""
    program = _Program(text, hosts)
    return program.cost(program.entry)


class _Program:
    def __init__(self, text: str, hosts: Sequence[int]):
        self._hosts = hosts
        self._computations: dict[str, list[Instruction]] = {}
        current, known = None, {}
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line):
                current, known = [], {}
                self._computations[header[2]] = current
                if header[1]:
                    self.entry = header[2]
            elif line == "}":  # a kernel's metadata may hold line breaks
                current = None
            elif current is not None and " = " in line:
                instruction = _parse_instruction(line, known)
                known[instruction.name] = instruction
                current.append(instruction)
        # Maps each parameter inside a fusion to the fusion's operand, and each fusion to the root instruction inside it.
        self._same: dict[Instruction, Instruction] = {}
        instructions = itertools.chain.from_iterable(self._computations.values())
        for fusion in (i for i in instructions if i.opcode == "fusion"):
            for inner in self._fused(fusion):
                if inner.opcode == "parameter":
                    self._same[inner] = fusion.operands[int(inner.attributes)]
                if inner.root:
                    self._same[fusion] = inner

    def _fused(self, fusion: Instruction) -> list[Instruction]:
        (callee,) = _called(fusion, "calls")
        return self._computations[callee]

    def _with_fused(self, instructions: list[Instruction]) -> Iterator[Instruction]:
        """Yields the given instructions. After each fusion, also yields the instructions inside this fusion and inside the
        fusions that it contains."""
        for instruction in instructions:
            yield instruction
            if instruction.opcode == "fusion":
                yield from self._with_fused(self._fused(instruction))

    def cost(self, computation: str) -> Cost:
        total, collectives = Cost(), {}
        for instruction in self._computations[computation]:
            opcode = instruction.opcode
            if opcode == "while":
                trips = self._trips(instruction)
                for part in ("body", "condition"):
                    total.add(self.cost(_called(instruction, part)[0]), trips)
            elif opcode == "conditional":
                total.add(max(map(self.cost, _branches(instruction)), key=lambda cost: cost.flops))
            elif opcode in ("call", "async-start"):
                for callee in _called(instruction, "to_apply") + _called(instruction, "calls"):
                    total.add(self.cost(callee))
            elif opcode == "fusion":
                total.bytes += self._fusion_bytes(instruction)
                # To overlap a collective with computation, the TPU compiler copies it into several fusions. The copies have the
                # same channel and therefore the same key, so that they count once.
                for inner in self._with_fused(self._fused(instruction)):
                    total.flops += _flops(inner)
                    collectives |= _collective(inner, self._hosts)
            else:
                total.flops += _flops(instruction)
                total.bytes += 0 if opcode in FREE else _border_bytes(instruction)
                collectives |= _collective(instruction, self._hosts)
        for (kind, far, *_), received in collectives.items():
            total.received[kind, far] += received
        return total

    def _results(self, fusion: Instruction) -> list[Instruction]:
        root = self._same[fusion]
        return root.operands if root.opcode == "tuple" else [root]

    def _elements_read(self, fusion: Instruction) -> dict[Instruction, int]:
        """Returns {parameter: number of elements that the fusion reads} for the parameters of a fusion. If the fusion only
        slices a parameter, only the elements of the slice count. If the fusion only updates a parameter in place, the number is
        0."""
        instructions, results = self._fused(fusion), self._results(fusion)
        outputs = {_behind_bitcasts(value) for value in results} | set(results)
        users = collections.defaultdict(list)
        for instruction in instructions:
            for operand in instruction.operands:
                users[operand].append(instruction)

        def elements_read(value: Instruction) -> int:
            if value in outputs and value.opcode != "parameter":
                return _elements(value)
            return min(_elements(value), sum(elements_read_by(user, value) for user in users[value]))

        def elements_read_by(user: Instruction, value: Instruction) -> int:
            if user.opcode in PASSED_ON and value.opcode == "parameter":
                return 0
            if user.opcode in SLICES and value is user.operands[0]:
                return _elements(user)
            if user.opcode == "fusion":  # for example a slice of the weights of all layers inside a product's fusion
                inside = [i for i in self._fused(user) if i.opcode == "parameter" and self._same[i] is value]
                return sum(self._elements_read(user)[parameter] for parameter in inside)
            if user in outputs and _in_place(user) and value is user.operands[0]:
                return 0
            if user.opcode in VIEWS and _elements(user) == _elements(value):
                return elements_read(user)
            return _elements(value)

        return {i: elements_read(i) for i in instructions if i.opcode == "parameter"}

    def _fusion_bytes(self, fusion: Instruction) -> float:
        """Returns the HBM traffic of a fusion in bytes: what it reads (see `_elements_read`) and what it writes. An in-place
        update writes only the updated slice."""

        def read(parameter: Instruction, elements: int) -> float:
            size = _bytes(parameter.shape, everywhere=True)
            return size * elements / _elements(parameter) if size and _bytes(self._same[parameter].shape) else 0

        def written(value: Instruction) -> float:
            source = _behind_bitcasts(value)
            if _in_place(source):
                return _bytes(source.operands[1].shape, everywhere=True)
            return 0 if value.opcode in ("parameter", "custom-call", *COLLECTIVES) else _bytes(value.shape)

        reads = sum(read(parameter, elements) for parameter, elements in self._elements_read(fusion).items())
        return reads + sum(map(written, self._results(fusion)))

    def _trips(self, loop: Instruction) -> int:
        """Returns the number of iterations of a loop whose counter starts at 0. Uses the trip count that the compiler has
        stored. If there is no stored trip count, divides the limit in the loop's condition by the step in the loop's body and
        rounds up."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        condition, body = (self._computations[_called(loop, part)[0]] for part in ("condition", "body"))
        following = self._resolve(next(i for i in body if i.root))
        for compare in self._with_fused(condition):
            if compare.opcode == "compare" and "direction=LT" in compare.attributes:
                counter, limit = map(self._resolve, compare.operands)
                if limit.opcode == "constant" and counter.opcode == "get-tuple-element":
                    increment = self._resolve(following.operands[_index(counter)])
                    steps = [i for i in map(self._resolve, increment.operands) if i.opcode == "constant"]
                    if increment.opcode == "add" and steps:
                        return -(-int(limit.attributes) // int(steps[0].attributes))
        raise ValueError(f"cannot tell how often the loop {loop.name} runs")

    def _resolve(self, instruction: Instruction) -> Instruction:
        """Follows copies, fusions and tuple elements to the instruction that computes the value of the given instruction."""
        while True:
            if instruction in self._same:
                instruction = self._same[instruction]
            elif instruction.opcode in ("copy", "bitcast"):
                instruction = instruction.operands[0]
            elif instruction.opcode == "get-tuple-element":
                source = self._resolve(instruction.operands[0])
                if source.opcode != "tuple":
                    return instruction
                instruction = source.operands[_index(instruction)]
            else:
                return instruction


def _matched(pattern: str, text: str) -> tuple[str, ...]:
    """Returns the groups of a pattern's first match in `text`, which is a part of the HLO text. Raises ValueError if there is
    no match, which means that the HLO text has an unknown form."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{pattern!r} does not occur in {text[:200]!r}")
    return match.groups()


def _in_place(value: Instruction) -> bool:
    """Returns whether `value`, a result of a fusion, is an in-place update of a slice of one of the fusion's parameters."""
    return value.opcode == "dynamic-update-slice" and _behind_bitcasts(value.operands[0]).opcode == "parameter"


def _behind_bitcasts(instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = instruction.operands[0]
    return instruction


def _index(element: Instruction) -> int:
    """Returns the index of the tuple element that a get-tuple-element instruction reads."""
    return int(_matched(r"index=(\d+)", element.attributes)[0])


def _parse_instruction(line: str, known: dict[str, Instruction]) -> Instruction:
    """Returns the `Instruction` in one line of HLO text. `known` maps names to the earlier instructions of the same
    computation."""
    left, _, right = line.partition(" = ")
    shape, rest = (_until_closed(right) if right.startswith("(") else right.split(" ", 1)) if right else ("", "")
    opcode, _, rest = rest.strip().partition("(")
    inside, attributes = _until_closed("(" + rest)
    name = left.split()[-1].removeprefix("%")
    if opcode in ("parameter", "constant"):
        return Instruction(name, shape, opcode, [], inside[1:-1], "ROOT" in left)
    operands = [known[operand] for operand in re.findall(r"%([^\s,()]+)", inside) if operand in known]
    return Instruction(name, shape, opcode, operands, attributes, "ROOT" in left)


def _until_closed(text: str) -> tuple[str, str]:
    """Returns two parts of a text that begins with a parenthesis: all up to the matching closing parenthesis, and all after
    it."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: position + 1], text[position + 1 :]
    return text, ""


def _collective(instruction: Instruction, hosts: Sequence[int]) -> dict:
    """Returns {key: bytes received by one device} for a collective operation, or {} for other instructions. The key consists of
    the kind of collective, whether the bytes come from another TPU slice or GPU host, and values that identify the
    collective."""
    if instruction.opcode == "recv":
        return _between_slices(instruction)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return {}
    given = sum(_bytes(operand.shape, everywhere=True) for operand in instruction.operands)
    groups = _groups(instruction)
    size = len(groups[0])
    # An all-gather receives the shares of all other devices; an all-reduce is a reduce-scatter and an all-gather.
    received = {"all-gather": (size - 1) * given, "all-reduce": 2 * (size - 1) / size * given, "collective-permute": given}
    received = received.get(kind, (size - 1) / size * given)  # reduce-scatter, all-to-all
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    unique = (channel[1], re.sub(r"\{.*?\}", "", instruction.shape)) if channel else (instruction.name,)
    far = received * max(_share_between_hosts(kind, group, hosts) for group in groups) if hosts else 0
    parts = {(kind, False, *unique): received - far, (kind, True, *unique): far}
    return {key: part for key, part in parts.items() if part} if size > 1 else {}


def _share_between_hosts(kind: str, group: list[int], hosts: Sequence[int]) -> float:
    """Returns how large a share, from 0 to 1, of the bytes that a GPU receives in a collective operation comes from other
    hosts. `group` contains the devices that exchange data. NCCL passes data around in rings that enter every host once (see
    "bus bandwidth" in github.com/NVIDIA/nccl-tests). If a host has m devices of the group, only one of them receives from
    another host in each ring. The rings alternate between the m devices, so the share is 1/m. In an all-to-all, all devices
    exchange equal parts directly, so the share is the fraction of the other devices that are on other hosts. In a permutation,
    all devices wait for the pairs on different hosts, so the share is 1."""
    if max(group) >= len(hosts):
        raise ValueError(f"the program runs on device {max(group)}, but the hosts of only {len(hosts)} devices are given")
    devices, number = len(group), len({hosts[device] for device in group})
    if number == 1:
        return 0.0
    if kind == "collective-permute":
        return 1.0
    return (devices - devices / number) / (devices - 1) if kind == "all-to-all" else number / devices


def _between_slices(instruction: Instruction) -> dict:
    """Returns {(kind of collective, True, name): bytes received} if the instruction receives an array from another TPU slice
    over the hosts' network, otherwise {}. True means that the bytes come from another slice."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if kind is None:
        return {}
    kind = kind[1].lower().replace("_", "-")
    numbers = _matched(r'_xla_megascale_target="\{([^}]*)\}', instruction.attributes)[0].split(",")
    ends = [list(map(int, number.split(":"))) for number in numbers]  # such as 1,2 or 1:4
    slices = sum(end[-1] - end[0] + 1 for end in ends)
    share = 2 * (slices - 1) / slices if kind == "all-reduce" else 1
    return {(kind, True, instruction.name): share * _arrays(instruction.shape)[0][1]}


def _called(instruction: Instruction, attribute: str) -> list[str]:
    return re.findall(rf"\b{attribute}=%?([^\s,}}]+)", instruction.attributes)


def _branches(instruction: Instruction) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        return re.findall(r"%([^\s,]+)", listed[1])
    return _called(instruction, "true_computation") + _called(instruction, "false_computation")


def _arrays(shape: str) -> list[tuple[list[int], float, bool]]:
    """Returns (dimensions, size in bytes, whether the array is in HBM) for every array in an HLO shape."""
    found = []
    for dtype, listed, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?", shape):
        if dtype in BITS:
            dims = [int(d) for d in listed.split(",") if d]
            found.append((dims, math.prod(dims) * BITS[dtype] / 8, not re.search(r"S\([1-9]\)", layout)))
    return found


def _bytes(shape: str, everywhere: bool = False) -> float:
    """Returns the total size in bytes of the arrays in an HLO shape. Arrays outside of HBM count only if `everywhere` is
    true."""
    return sum(size for _, size, in_hbm in _arrays(shape) if in_hbm or everywhere)


def _elements(instruction: Instruction) -> int:
    """Returns the total number of elements of the arrays in an instruction's result."""
    return sum(math.prod(dims) for dims, *_ in _arrays(instruction.shape))


def _border_bytes(instruction: Instruction) -> float:
    """Returns the number of bytes that an instruction outside of fusions reads from and writes to HBM. Leaves out the scratch
    memory of NVIDIA's libraries, which is the last array in the results of a library call."""
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _bytes(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _bytes(instruction.operands[1].shape)
    if instruction.opcode in ("copy-start", "slice-start"):  # their results also list the source, as an alias
        _, size, in_hbm = _arrays(instruction.shape)[0 if instruction.opcode == "copy-start" else 1]
        return size * (in_hbm + _arrays(instruction.operands[0].shape)[0][2])
    if instruction.opcode in (f"{kind}-start" for kind in COLLECTIVES if kind != "all-reduce"):
        return _bytes(instruction.shape)  # which lists the operands and the results
    results = instruction.shape
    if re.search(r'custom_call_target="__(cublas|cudnn)\$', instruction.attributes):
        results = re.sub(r", [su]8\[\d+\]\{0\}\)$", ")", results)
    return _bytes(results) + sum(_bytes(operand.shape) for operand in instruction.operands)


def _flops(instruction: Instruction) -> float:
    """Returns the FLOPs of a matrix product, a convolution or a custom kernel, and 0 for other instructions. A multiply-add
    counts as two FLOPs. For a custom kernel that is not from NVIDIA's libraries, returns the number that the kernel reports, or
    0 if it reports no number. Splash attention reports none."""
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    if instruction.opcode == "custom-call" and target:
        if target[1].startswith("__cudnn$fmha"):
            return _cudnn_attention_flops(instruction)
        if not target[1].startswith("__cublas$"):
            estimate = re.search(r'"cost_estimate":\s*(\{[^{}]*\})', instruction.attributes)
            return float(json.loads(estimate[1])["flops"]) if estimate else 0.0
    if instruction.opcode not in ("dot", "convolution", "custom-call"):
        return 0.0
    out, lhs, rhs = (_arrays(i.shape)[0][0] for i in (instruction, *instruction.operands[:2]))
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction.attributes, lhs, rhs, out)
    name = r"lhs_contracting_dims=\{([^}]*)\}" if target is None else r'"lhs_contracting_dimensions":\[([^\]]*)\]'
    contracted = re.findall(r"\d+", _matched(name, instruction.attributes)[0])
    return 2.0 * math.prod(out) * math.prod(lhs[int(d)] for d in contracted)


def _cudnn_attention_flops(instruction: Instruction) -> float:
    """Returns the FLOPs of cuDNN's fused attention, without savings from masks. The forward pass has two products, q k^T and
    p v. The backward pass has four, for the gradients of p, v, q and k. With flash attention it also recomputes q k^T, because
    the forward pass keeps only the softmax statistics."""
    scores = _matched(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]', instruction.attributes)[0]
    head_size = _arrays(instruction.operands[0].shape)[0][0][-1]
    products = 2
    if re.search(r'custom_call_target="[^"]*Backward', instruction.attributes):
        products = 5 if re.search(r'"is_flash_attention":\s*true', instruction.attributes) else 4
    return products * 2.0 * head_size * math.prod(map(int, re.findall(r"\d+", scores)))


def _convolution_flops(attributes: str, lhs: list[int], rhs: list[int], out: list[int]) -> float:
    """Returns the FLOPs of a convolution. Multiplications by zeros from padding and dilation do not count. The TPU compiler
    writes batched matrix products as convolutions, and most of their multiplications are by such zeros."""
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
    """Returns the groups of a collective as lists of device ids. Devices exchange data only within their group. Supports all of
    HLO's notations for groups."""
    attributes = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return [list(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs[1])]
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(tiled[2]).reshape([int(n) for n in tiled[1].split(",")]).tolist()
    if of_mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? *device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", of_mesh[1])}
        ids = (_iota(of_mesh[2]) if of_mesh[2] else np.arange(math.prod(axes.values()))).reshape(tuple(axes.values()))
        chosen = [list(axes).index(name) for name in re.findall(r"'(\w+)'", of_mesh[3])]
        others = [d for d in range(len(axes)) if d not in chosen]
        return ids.transpose(others + chosen).reshape(-1, math.prod(ids.shape[d] for d in chosen)).tolist()
    raise ValueError(f"cannot read who takes part in {instruction.name}: {attributes[:200]}")


def _iota(text: str) -> np.ndarray:
    """Returns the array of device ids that a text in HLO's iota notation describes. For example, "[4,2]T(1,0)" describes the
    ids 0 to 7 in an array of shape [4, 2], which is then transposed."""
    sizes, order = _matched(r"^\[([\d,]+)\](?:T\(([\d,]+)\))?$", text.strip())
    ids = np.arange(math.prod(shape := [int(n) for n in sizes.split(",")])).reshape(shape)
    return ids if order is None else ids.transpose([int(n) for n in order.split(",")])
