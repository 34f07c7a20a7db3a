"""Predicts, from machine code alone, what limits the kernels that read rows. Nothing is measured.

Usage: kernel_costs.py LIBRARY ARCHITECTURE... (90, 100-real). Disassembles LIBRARY, libedlm_cuda.a,
with cuobjdump and nvdisasm, counts the instructions on the paths that a row takes, and puts them
into the model of `Machine` and `predicted`. Fails where a prediction falls below `FLOORS`.

A path is the cheapest way through a kernel that meets certain instructions: a chunk of an aligned
row is a way around the loop with as many 16-byte loads as hold it, one of an unaligned row takes
twice as many. Loops besides the chunk's go round twice, as for 50258 tokens; the draws' loop once
for each candidate of a warp.
"""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

VOCAB, CHUNK, WARPS, TRIPS = 50258, 1024, 8, 2
ROWS = (64, 312, 1024)
KINDS = {
    "load": r"LD[GS]|LDC",
    "store": r"ST[GS]",
    "exp": r"MUFU\.EX2",
    "shift, select": r"SHF|SEL|FSEL|PRMT|MOV|LOP3|IMAD\.(MOV|U32|SHL)|USHF|ULOP3|UMOV|USEL|SGXT",
    "max": r"FMNMX|HMNMX2|REDUX|VHMNMX|CREDUX",
    "fp32": r"F(ADD|MUL|FMA)|HADD2|FFMA2|FADD2",
    "fp64": r"D(ADD|MUL|FMA|SETP)|F2F|MUFU\..*64H",
    "shuffle, vote": r"SHFL|VOTE",
}


@dataclass(frozen=True)
class Machine:
    """What the model takes for granted. Copy rates are estimates: about 90 % of the peak."""

    name: str
    arch: str
    multiprocessors: int
    gigahertz: float
    copy_gigabytes: float
    shared_kilobytes: int


MACHINES = (
    Machine("A100", "sm_80", 108, 1.41, 1800, 164),
    Machine("H100", "sm_90", 132, 1.755, 3000, 227),
    Machine("H200", "sm_90", 132, 1.755, 4300, 227),
    Machine("B200", "sm_100", 148, 1.85, 7000, 227),
)
MEMORY_CYCLES = 800
"""From a load to its data under traffic."""
CHAIN_CYCLES = 6
"""From one instruction to the next that needs it, on the average of a row's tail."""
LAUNCH_SECONDS = 1.0e-6
"""Between dependent kernels of a CUDA graph."""
ISSUE_SHARE = 0.9
"""Of the schedulers' slots that a mix of instructions fills, and of the exp2 unit's."""
EXPS_PER_CYCLE = 16
"""Of one multiprocessor."""
SUMS = r"NS\d*_7RowSumsE"
"""Kernels without statistics, as their names have it."""
CASES = (
    ("sample_candidates", "edlm_sample_candidates_args", rf"Lb0E{SUMS}", (1, 8, 16)),
    ("token_log_probs", "edlm_token_log_probs_args", "", (0,)),
)
"""Ops, their arguments, the template flags that are the same for all, and numbers of candidates."""
FLOORS = {
    ("A100", "sample_candidates bf16 K=8"): (42, 86, 89),
    ("A100", "sample_candidates bf16 K=16"): (38, 81, 85),
    ("A100", "token_log_probs bf16"): (50, 91, 95),
    ("A100", "sample_candidates fp32 K=8"): (60, 88, 91),
    ("A100", "sample_candidates fp32 K=16"): (55, 83, 88),
    ("A100", "token_log_probs fp32"): (67, 93, 96),
    ("H100", "sample_candidates bf16 K=8"): (33, 80, 89),
    ("H100", "sample_candidates bf16 K=16"): (29, 75, 85),
    ("H100", "token_log_probs bf16"): (39, 87, 94),
    ("H100", "sample_candidates fp32 K=8"): (49, 78, 90),
    ("H100", "sample_candidates fp32 K=16"): (45, 74, 86),
    ("H100", "token_log_probs fp32"): (56, 84, 95),
    ("H200", "sample_candidates bf16 K=8"): (25, 74, 85),
    ("H200", "sample_candidates bf16 K=16"): (22, 68, 80),
    ("H200", "token_log_probs bf16"): (31, 82, 92),
    ("H200", "sample_candidates fp32 K=8"): (41, 73, 87),
    ("H200", "sample_candidates fp32 K=16"): (36, 67, 82),
    ("H200", "token_log_probs fp32"): (48, 79, 93),
    ("B200", "sample_candidates bf16 K=8"): (17, 63, 77),
    ("B200", "sample_candidates bf16 K=16"): (15, 53, 64),
    ("B200", "token_log_probs bf16"): (22, 72, 88),
    ("B200", "sample_candidates fp32 K=8"): (30, 64, 80),
    ("B200", "sample_candidates fp32 K=16"): (26, 58, 74),
    ("B200", "token_log_probs fp32"): (37, 72, 89),
}
"""Percent of copy for 64, 312 and 1024 rows, a point below what is predicted today."""
SKIPPED = 77
ROW_LAUNCH = (Path(__file__).parent.parent / "cuda" / "row_launch.cuh").read_text()
FEW_BYTES = int(re.search(r"kFewBytes = (\d+) << 20;", ROW_LAUNCH)[1]) << 20
MANY_WAVES = int(re.search(r"kManyWaves = (\d+);", ROW_LAUNCH)[1])


@dataclass(frozen=True)
class Instruction:
    address: int
    conditional: bool
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes. BRA.DIV, the way of diverged warps, is not looked at; a call on a
        condition is how sm_80 leaves a loop."""
        jumps = self.opcode.startswith("BRA") and self.opcode != "BRA.DIV"
        if not jumps and not (self.conditional and self.opcode.startswith("CALL")):
            return None
        return int(re.findall(r"0x[0-9a-f]+", self.operands)[-1], 16)

    @property
    def ends(self) -> bool:
        """No lane goes on behind it."""
        if self.opcode in ("BRA.DIV", "BRA.CONV"):  # the latter jumps where no lane has diverged
            return self.opcode == "BRA.CONV"
        conditional = self.conditional or re.search(r"\bU?P\d", self.operands)
        return not conditional and self.opcode.split(".")[0] in ("EXIT", "BRA", "RET")


def features(instruction: Instruction) -> str | None:
    """What paths are told apart by."""
    opcode = instruction.opcode
    if opcode.startswith("LDG"):
        return "wide" if ".128" in opcode else "key" if ".64" in opcode else "narrow"
    if opcode.startswith("MUFU.EX2"):
        return "exp"
    if opcode.startswith(("REDUX", "CREDUX")):
        return "redux"
    if opcode.startswith("MUFU.RCP64H"):
        return "division"
    return "stored" if opcode.startswith("STG") else None


@dataclass(frozen=True)
class Way:
    """Instructions by opcode on one way through a kernel."""

    opcodes: Counter

    @property
    def length(self) -> int:
        return self.opcodes.total()

    def by_kind(self) -> dict[str, int]:
        kinds = Counter()
        for opcode, count in self.opcodes.items():
            kind = next((k for k, form in KINDS.items() if re.match(form, opcode)), "other")
            kinds[kind] += count
        return dict(kinds)


class Kernel:
    def __init__(self, instructions: list[Instruction]):
        self.instructions = instructions
        starts = {instructions[0].address} | {
            i.target for i in instructions if i.target is not None
        }
        after = {
            b.address
            for a, b in itertools.pairwise(instructions)
            if a.target is not None or a.ends or a.opcode.startswith("EXIT")
        }
        self.blocks: dict[int, list[Instruction]] = {}
        for instruction in instructions:
            if instruction.address in starts | after:
                current = self.blocks[instruction.address] = []
            current.append(instruction)

    @cached_property
    def edges(self) -> dict[int, list[int]]:
        edges = {}
        starts = list(self.blocks)
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            last = self.blocks[start][-1]
            edges[start] = [] if last.target is None else [last.target]
            if not last.ends and following is not None:
                edges[start].append(following)
        return edges

    @cached_property
    def order(self) -> list[int]:
        """Blocks that can be reached, each before those it leads to, but for branches back."""
        done: list[int] = []
        seen = {min(self.blocks)}
        stack = [(min(self.blocks), iter(self.edges[min(self.blocks)]))]
        while stack:
            block, targets = stack[-1]
            target = next((t for t in targets if t not in seen), None)
            if target is None:
                done.append(block)
                stack.pop()
            else:
                seen.add(target)
                stack.append((target, iter(self.edges[target])))
        return done[::-1]

    @cached_property
    def loops(self) -> dict[int, set[int]]:
        """The blocks of each loop by its header: where a branch leads to a block that is on every
        way to the branch."""
        backward: dict[int, list[int]] = {b: [] for b in self.order}
        for block in self.order:
            for target in self.edges[block]:
                backward[target].append(block)
        over = {b: set(self.order) for b in self.order}
        over[self.order[0]] = {self.order[0]}
        changed = True
        while changed:
            before = {b: len(over[b]) for b in self.order}
            for block in self.order[1:]:
                over[block] = set.intersection(*(over[b] for b in backward[block])) | {block}
            changed = any(before[b] != len(over[b]) for b in self.order)
        loops: dict[int, set[int]] = {}
        for block in self.order:
            for header in (t for t in self.edges[block] if t in over[block]):
                body, todo = {header}, [block]
                while todo:
                    at = todo.pop()
                    if at not in body:
                        body.add(at)
                        todo += backward[at]
                loops.setdefault(header, set()).update(body)
        return loops

    def has(self, blocks: set[int], feature: str) -> int:
        return sum(features(i) == feature for b in blocks for i in self.blocks[b])

    @cached_property
    def chunk_loop(self) -> int:
        """The loop that reads 1024 tokens: the smallest with all their exponentials."""
        fitting = [h for h, body in self.loops.items() if self.has(body, "exp") >= 32]
        return min(fitting, key=lambda h: len(self.loops[h]))

    def paths(
        self, start: int, within: set[int], end: int | None, trips: dict[int, int]
    ) -> dict[tuple, Way]:
        """The shortest way from `start` to a branch back to `end`, or out of the kernel where None,
        for each set of features that it may meet (counted up to 64, narrow loads up to 1)."""
        best: dict[int, dict[tuple, Counter]] = {start: {(): Counter()}}
        found: dict[tuple, Counter] = {}

        def offer(to: dict, key: tuple, opcodes: Counter) -> None:
            if key not in to or opcodes.total() < to[key].total():
                to[key] = opcodes

        place = {b: i for i, b in enumerate(self.order)}
        for block in (b for b in self.order if b in within):
            for key, opcodes in best.pop(block, {}).items():
                seen, opcodes = Counter(dict(key)), Counter(opcodes)
                if block != start and block in self.loops:
                    for _ in range(trips.get(block, TRIPS) - 1):
                        opcodes.update(self.around(block).opcodes)
                for instruction in self.blocks[block]:
                    opcodes[instruction.opcode] += 1
                    if feature := features(instruction):
                        seen[feature] = min(seen[feature] + 1, 1 if feature == "narrow" else 64)
                key = tuple(sorted(seen.items()))
                for target in self.edges[block]:
                    if target == end:
                        offer(found, key, opcodes)
                    elif target in within and place[target] > place[block]:
                        offer(best.setdefault(target, {}), key, opcodes)
                if end is None and self.blocks[block][-1].opcode.startswith("EXIT"):
                    offer(found, key, opcodes)
        return {key: Way(opcodes) for key, opcodes in found.items()}

    def around(self, header: int) -> Way:
        """The shortest way around a loop, with the divisions on it."""
        ways = self.paths(header, self.loops[header], header, {})
        key = min(ways, key=lambda key: (-dict(key).get("division", 0), ways[key].length))
        return ways[key]

    def chunk(self, wide_loads: int) -> Way:
        ways = self.paths(self.chunk_loop, self.loops[self.chunk_loop], self.chunk_loop, {})
        wanted = {"wide": wide_loads, "exp": 32}
        fitting = [
            path
            for key, path in ways.items()
            if {k: v for k, v in key if k in ("wide", "exp")} == wanted
            and "narrow" not in dict(key)
        ]
        return min(fitting, key=lambda path: path.length)

    def before(self, key_read: bool) -> Way:
        within = set(self.order[: self.order.index(self.chunk_loop)])
        ways = self.paths(self.order[0], within, self.chunk_loop, {})
        fitting = [p for key, p in ways.items() if ("key" in dict(key)) == key_read]
        return min(fitting or ways.values(), key=lambda path: path.length)

    def after(self, leads: bool, draws: int) -> Way:
        """From the last chunk to the end, for a warp that adds the row's chunks or does not."""
        body = self.loops[self.chunk_loop]
        within = set(self.order[self.order.index(self.chunk_loop) :]) - body
        start = next(t for b in body for t in self.edges[b] if t in within)
        return self.to_the_end(start, within, leads, draws)

    def whole(self, leads: bool, draws: int) -> Way:
        """The same of a kernel that reads no chunks."""
        return self.to_the_end(self.order[0], set(self.order), leads, draws)

    def one_chunk(self, wide_loads: int) -> Way:
        """All of a kernel of which a warp reads one chunk."""
        ways = self.paths(self.order[0], set(self.order), None, {})
        fitting = [
            way
            for key, way in ways.items()
            if dict(key).get("wide") == wide_loads and "narrow" not in dict(key)
        ]
        return min(fitting, key=lambda way: way.length)

    def to_the_end(self, start: int, within: set[int], leads: bool, draws: int) -> Way:
        drawing = {h: max(draws, 1) for h, loop in self.loops.items() if self.has(loop, "stored")}
        ways = {
            key: way
            for key, way in self.paths(start, within, None, drawing).items()
            if ("redux" in dict(key)) == leads and ("stored" in dict(key)) == bool(draws)
        }
        # A division is no shortcut: good rows have a logarithm, and draws their shares.
        key = min(ways, key=lambda key: (-dict(key).get("division", 0), ways[key].length))
        return ways[key]


def tools() -> str:
    """The PATH, with the folder of the packages that bring NVIDIA's tools."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    return f"{os.environ['PATH']}:{packaged}"


def cuobjdump(*arguments: str) -> str:
    command = [shutil.which("cuobjdump", path=tools()), *arguments]
    env = os.environ | {"PATH": tools()}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


@cache
def kernels_of(library: Path, arch: str) -> dict[str, Kernel]:
    listing = cuobjdump("-sass", "-arch", arch, str(library))
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        name = part.split("\n", 1)[0].strip()
        if (
            "sample_candidates" not in name
            and "token_log_probs" not in name
            and "sum_rows" not in name
        ):
            continue
        found = re.findall(
            r"^\s+/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+ )?\s*([\w.]+)([^;]*);", part, re.M
        )
        kernels[name] = Kernel([Instruction(int(a, 16), bool(p), o, r) for a, p, o, r in found])
    return kernels


@cache
def registers_of(library: Path, arch: str) -> dict[str, int]:
    said = cuobjdump("-res-usage", "-arch", arch, str(library))
    return {n: int(r) for n, r in re.findall(r"Function (\w+):\s+REG:(\d+)", said)}


@dataclass(frozen=True)
class Cost:
    """What one row of VOCAB tokens takes of one kernel."""

    instructions: int
    tail: int
    """On the way of the slowest warp from its last chunk to the end."""
    reads: int
    """Instructions between the loads of two chunks of a warp; 0 where it reads none."""


def cost_of(kernel: Kernel, itemsize: int, candidates: int) -> Cost:
    """Of a row that is read and drawn from by one block."""
    chunk = kernel.chunk(2 * 32 * itemsize // 16)
    total = math.ceil(VOCAB / CHUNK) * chunk.length
    tails = []
    for warp in range(WARPS):
        draws = draws_of(warp, candidates)
        tails.append(kernel.after(warp == 0, draws).length)
        total += kernel.before(draws > 0).length
    return Cost(total + sum(tails), max(tails), chunk.length)


def cut_costs(first: Kernel, second: Kernel, itemsize: int, candidates: int) -> tuple[Cost, Cost]:
    """Of a row cut at its chunks, and of its draws."""
    chunk = first.one_chunk(2 * 32 * itemsize // 16)
    warps = [second.whole(w == 0, draws_of(w, candidates)).length for w in range(WARPS)]
    return (
        Cost(math.ceil(VOCAB / CHUNK) * chunk.length, 0, chunk.length),
        Cost(sum(warps), max(warps), 0),
    )


def draws_of(warp: int, candidates: int) -> int:
    """How often a warp stores a result; a row without candidates has one, its leader's."""
    return len(range(warp, candidates, WARPS)) if candidates else int(warp == 0)


def blocks_of(registers: int, machine: Machine) -> int:
    """Blocks of a row kernel that a multiprocessor holds."""
    chunks = math.ceil(VOCAB / CHUNK)
    shared = 8 * (5 + 2 * chunks + chunks / 2 + chunks * 16) + 1024
    return min(
        65536 // (WARPS * 32 * math.ceil(registers / 8) * 8),
        int(machine.shared_kilobytes * 1024 // shared),
        8,
    )


def cut(itemsize: int, rows: int, machine: Machine, blocks: int) -> bool:
    """As row_plan() in row_launch.cuh decides."""
    wave = machine.multiprocessors * blocks
    return rows < MANY_WAVES * wave and rows % wave * VOCAB * itemsize < FEW_BYTES


def bounds(cost: Cost, itemsize: int, rows: int, machine: Machine) -> dict[str, float]:
    """Seconds that a kernel takes for rows at least, by what sets the bound; its tail apart."""
    cycles = machine.multiprocessors * ISSUE_SHARE * machine.gigahertz * 1e9
    exps = math.ceil(VOCAB / CHUNK) * CHUNK / EXPS_PER_CYCLE
    return {
        "memory": rows * VOCAB * itemsize / (machine.copy_gigabytes * 1e9) if cost.reads else 0.0,
        "issue": rows * cost.instructions / 4 / cycles,
        "exp2": rows * exps / cycles if cost.reads else 0.0,
    }


def predicted(
    whole: Cost, parts: tuple[Cost, Cost], itemsize: int, rows: int, machine: Machine, blocks: int
) -> tuple[float, str]:
    """Percent of a copy's rate, and where the time goes.

    Blocks run in waves, a wave's in step: its rows take as long as their bytes, their instructions
    or the loads of a single warp, whichever is longest, and then every block has its tail. Rows cut
    at their chunks are read by one wave of single chunks; a second kernel waits for it.
    """
    hertz = machine.gigahertz * 1e9
    spent: Counter[str] = Counter()

    def spend(terms: dict[str, float], tail: int) -> None:
        limit = max(terms, key=lambda name: terms[name])
        spent[limit] += terms[limit]
        spent["tail"] += CHAIN_CYCLES * tail / hertz

    if cut(itemsize, rows, machine, blocks):
        for cost in parts:
            terms = bounds(cost, itemsize, rows, machine)
            terms["memory"] *= 1 + 4 / 32 / itemsize  # the cells, written
            spend(terms | {"latency": (MEMORY_CYCLES + 2 * cost.reads) / hertz}, cost.tail)
        spent["launch"] = 2 * LAUNCH_SECONDS
    else:
        slots = machine.multiprocessors * blocks
        chunks = math.ceil(math.ceil(VOCAB / CHUNK) / WARPS)
        alone = chunks * (MEMORY_CYCLES + 2 * whole.reads) / hertz
        for begin in range(0, rows, slots):
            wave = min(slots, rows - begin)
            spend(bounds(whole, itemsize, wave, machine) | {"latency": alone}, whole.tail)
        spent["launch"] = LAUNCH_SECONDS
    seconds = sum(spent.values())
    shares = ", ".join(f"{k} {100 * s / seconds:.0f}" for k, s in spent.most_common(3))
    return 100 * bounds(whole, itemsize, rows, machine)["memory"] / seconds, shares


def report(machine: Machine, library: Path) -> list[str]:
    """Prints what is predicted for a machine; what of it is below its floor."""
    kernels = kernels_of(library, machine.arch)
    registers = registers_of(library, machine.arch)
    below = []
    print(f"\n{machine.name} ({machine.arch}), copy taken as {machine.copy_gigabytes} GB/s")

    def named(form: str) -> str:
        return next(name for name in kernels if re.search(form, name))

    for dtype, mangled, itemsize in (("bf16", "NS_8BFloat16E", 2), ("fp32", "f", 4)):
        for op, args, flags, ks in CASES:
            name = named(rf"{op}_kernelI{mangled}Li{WARPS}E{flags}Lb0E")
            second = kernels[named(rf"{op}_kernelI{mangled}Li{WARPS}E{flags}Lb1E")]
            first = kernels[named(rf"sum_rows_kernelI{mangled}\d+{args}{SUMS}")]
            kernel, blocks = kernels[name], blocks_of(registers[name], machine)
            loads = 32 * itemsize // 16
            flight = blocks * WARPS * CHUNK * itemsize / 1024
            seconds = MEMORY_CYCLES / (machine.gigahertz * 1e9)
            needed = machine.copy_gigabytes * 1e9 * seconds / machine.multiprocessors / 1024
            kinds = ", ".join(
                f"{count} {kind}"
                for kind, count in sorted(kernel.chunk(2 * loads).by_kind().items())
            )
            print(
                f"  {op} {dtype}: {registers[name]} registers, {blocks} blocks a multiprocessor; "
                f"in flight up to {flight:.0f} kB, {needed:.0f} needed\n"
                f"    a chunk of 1024 tokens: {kernel.chunk(loads).length} instructions aligned, "
                f"{kernel.chunk(2 * loads).length} not ({kinds})"
            )
            for k in ks:
                label = f"{op} {dtype}" + (f" K={k}" if k else "")
                whole = cost_of(kernel, itemsize, k)
                parts = cut_costs(first, second, itemsize, k)
                print(
                    f"    {f'K={k}: ' if k else ''}{whole.instructions} instructions a row, "
                    f"{whole.tail} on its tail"
                )
                floors = FLOORS.get((machine.name, label), (0, 0, 0))
                for rows, floor in zip(ROWS, floors, strict=True):
                    percent, shares = predicted(whole, parts, itemsize, rows, machine, blocks)
                    waves = rows / (machine.multiprocessors * blocks)
                    how = "cut" if cut(itemsize, rows, machine, blocks) else f"{waves:.2f} waves"
                    print(f"      {rows:4} rows, {how}: {percent:3.0f} % of copy (time: {shares})")
                    if percent < floor:
                        below.append(
                            f"{machine.name}, {label}, {rows} rows: {percent:.1f} % of copy "
                            f"predicted, the floor is {floor} %"
                        )
    return below


def main(library: Path, architectures: list[str]) -> int:
    if not all(shutil.which(tool, path=tools()) for tool in ("cuobjdump", "nvdisasm")):
        print("SKIPPED: wants cuobjdump and nvdisasm, of the CUDA toolkit or of requirements.txt")
        return SKIPPED
    print(
        f"PREDICTED from machine code for {VOCAB} tokens in unaligned rows; nothing was measured."
    )
    built = {f"sm_{a.split('-')[0]}" for a in architectures}
    below = [line for m in MACHINES if m.arch in built for line in report(m, library)]
    for line in below:
        print(f"FAILED: {line}")
    return int(bool(below))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
