"""Instructions that a warp issues on a path through machine code, by kind: read from what ``nvdisasm`` prints.

Loops count as often as the caller says. Where a path forks, the longer way counts, since a warp whose lanes part goes
both; calls (the slow 64-bit division) are on no path.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diinn.runtime.errors import DiinnError

# The first that fits an opcode; the rest is integers, addresses and moves.
KINDS = {
    "matrix": r"HMMA",
    "special": r"MUFU",
    "fp32": r"F(FMA|MUL|ADD|MNMX|SETP|SEL|RND)",
    "convert": r"F2|I2|H(ADD|MNMX|MUL|FMA|SETP)2?",
    "shared": r"LDS|STS|SHFL|VOTE|ATOMS|SYNCS",
    "global": r"LD|ST|RED|ATOM",
    "control": r"BRA|BRX|CALL|RET|EXIT|BSSY|BSYNC|BREAK|WARPSYNC|BAR|DEPBAR|LDGDEPBAR|ARRIVES|NOP|YIELD",
}
_ORDER = ("control", *(kind for kind in KINDS if kind != "control"))  # LDGDEPBAR is no load
INTEGER = "integer"
Count = Counter[str]  # instructions by opcode


def kind(opcode: str) -> str:
    """Of an opcode like "IMAD.WIDE"."""
    return next((name for name in _ORDER if re.match(KINDS[name], opcode)), INTEGER)


@dataclass
class Block:
    """Instructions that are issued together.

    opcodes: theirs; after: the blocks that may follow; calls: whether a function is called here
    """

    opcodes: Count = field(default_factory=Counter)
    after: list[int] = field(default_factory=list)
    calls: bool = False


def find_disassembler(nvcc: Path) -> Path | None:
    """``nvdisasm``: on PATH, beside the compiler, or of the package nvidia-cuda-nvdisasm."""
    packages = Path(sysconfig.get_paths()["purelib"], "nvidia")
    places = [shutil.which("nvdisasm"), nvcc.with_name("nvdisasm"), *packages.glob("*/bin/nvdisasm")]
    return next((Path(place) for place in places if place is not None and Path(place).is_file()), None)


def functions(disassembler: Path, code: bytes) -> dict[str, list[Block]]:
    """The kernels of a cubin as blocks in the order of their addresses; the first is where they begin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cubin")
        path.write_bytes(code)
        done = subprocess.run([disassembler, "-c", path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiinnError(f"{disassembler} does not read the kernels: {done.stderr.strip()[:200]}")
    parts = re.split(r"^\.text\.(\w+):\n", done.stdout, flags=re.MULTILINE)
    return {name: _blocks(text.splitlines()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _blocks(lines: Sequence[str]) -> list[Block]:
    found, labels, targets = [Block()], {}, []
    ended = False  # whether the last block goes nowhere by itself

    def begin() -> None:
        if found[-1].opcodes or ended:
            if not ended:
                found[-1].after.append(len(found))
            found.append(Block())

    for line in lines:
        label = re.match(r"(\.L_\w+):", line)
        if label:
            begin()
            ended = False
            labels[label[1]] = len(found) - 1
            continue
        instruction = re.match(r"\s+/\*\w+\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)\s*(.*)", line)
        if not instruction:
            continue
        if ended:
            begin()
            ended = False
        predicate, opcode, operands = instruction.groups()
        found[-1].opcodes[opcode] += 1
        target = re.search(r"`\((\.L_\w+)\)", operands)
        if opcode.startswith(("BRA", "CALL")) and target and not opcode.startswith(("BRA.DIV", "BRA.CONV")):
            targets.append((len(found) - 1, target[1]))
        elif opcode.startswith("CALL"):
            found[-1].calls = True
        elif not opcode.startswith(("EXIT", "RET")):
            continue
        if predicate is None and not found[-1].calls:
            ended = True
        else:
            begin()
    for block, name in targets:
        found[block].after.append(labels[name])
    if not ended:
        found[-1].after.clear()
    return found


@dataclass
class Loop:
    """A natural loop.

    head: where it begins; body: all its blocks
    """

    head: int
    body: set[int]


class Paths:
    """The longest paths through a function.

    trips: how often the body of a loop is issued, given the opcodes of one pass of it (those of inner loops as often as
    these are issued); 0 for a loop that is left at once
    """

    def __init__(self, blocks: Sequence[Block], trips: Callable[["Paths", Loop], float]) -> None:
        self.blocks, self._trips = blocks, trips
        self.loops = sorted(self._natural_loops(), key=lambda loop: len(loop.body))

    def opcodes(self, loop: Loop) -> Count:
        """Of a loop's body, inner loops included, each once."""
        return sum((self.blocks[block].opcodes for block in loop.body), Counter())

    def inner(self, loop: Loop) -> list[Loop]:
        """Loops within a loop, the largest first."""
        return [other for other in reversed(self.loops) if other.body < loop.body]

    def outermost(self, wanted: Callable[[Count], bool]) -> Loop:
        """The largest loop whose opcodes are ``wanted``. Raises DiinnError where there is none."""
        for loop in reversed(self.loops):
            if wanted(self.opcodes(loop)):
                return loop
        raise DiinnError("the machine code has no such loop")

    def one_pass(self, loop: Loop) -> dict[str, float]:
        """Instructions by opcode of one pass of a loop: from its head back to it, by the longest way."""
        return self._longest(loop, {loop.head})

    def _longest(self, loop: Loop, ends: set[int]) -> dict[str, float]:
        known: dict[int, dict[str, float] | None] = {}
        within = [other for other in self.inner(loop) if other.head != loop.head]
        outer = [other for other in within if not any(other.body < third.body for third in within)]
        loop_at = {other.head: other for other in outer}

        def from_block(block: int) -> dict[str, float] | None:
            if block in known:
                return known[block]
            known[block] = None  # a way that comes back here is none
            if self.blocks[block].calls:
                return None
            inner = loop_at.get(block)
            if inner is None:
                cost: dict[str, float] = dict(self.blocks[block].opcodes)
                after = self.blocks[block].after
            else:
                cost = self._repeated(inner)
                after = [n for b in inner.body for n in self.blocks[b].after if n not in inner.body]
            ways = [{} if n in ends else from_block(n) for n in after if n in loop.body]
            found = [way for way in ways if way is not None]
            best = max(found, key=lambda way: sum(way.values()), default=None)
            known[block] = None if best is None else _added(cost, best)
            return known[block]

        found = from_block(loop.head)
        if found is None:
            raise DiinnError("a loop of the machine code never comes back to where it began")
        return found

    def _repeated(self, loop: Loop) -> dict[str, float]:
        trips = self._trips(self, loop)
        if not trips:
            return self._shortest_out(loop)
        return {opcode: n * trips for opcode, n in self.one_pass(loop).items()}

    def _shortest_out(self, loop: Loop) -> dict[str, float]:
        """From the head of a loop to the first way out of it."""
        waiting: list[tuple[int, Count]] = [(loop.head, Counter())]
        for block, before in waiting:
            cost = before + self.blocks[block].opcodes
            if any(n not in loop.body for n in self.blocks[block].after):
                return dict(cost)
            waiting += [(n, cost) for n in self.blocks[block].after if n != loop.head]
        raise DiinnError("a loop of the machine code has no end")

    def _natural_loops(self) -> Iterator[Loop]:
        before: dict[int, set[int]] = {n: set() for n in range(len(self.blocks))}
        for n, block in enumerate(self.blocks):
            for after in block.after:
                before[after].add(n)
        dominators = self._dominators(before)
        bodies: dict[int, set[int]] = {}
        for n, block in enumerate(self.blocks):
            for head in block.after:
                if head in dominators[n]:
                    body, waiting = bodies.setdefault(head, {head}), [n]
                    while waiting:
                        at = waiting.pop()
                        if at not in body:
                            body.add(at)
                            waiting += before[at]
        yield from (Loop(head, body) for head, body in bodies.items())

    def _dominators(self, before: dict[int, set[int]]) -> list[set[int]]:
        every = set(range(len(self.blocks)))
        found = [{0}, *(set(every) for _ in range(1, len(self.blocks)))]
        changed = True
        while changed:
            changed = False
            for n in range(1, len(self.blocks)):
                known = [found[b] for b in before[n]]
                new = {n} | (set.intersection(*known) if known else set())
                changed |= new != found[n]
                found[n] = new
        return found


def _added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {opcode: one.get(opcode, 0) + other.get(opcode, 0) for opcode in {*one, *other}}


def by_kind(opcodes: dict[str, float]) -> dict[str, float]:
    """Instructions by kind, in the order of ``KINDS``, then integers."""
    found = dict.fromkeys((*KINDS, INTEGER), 0.0)
    for opcode, count in opcodes.items():
        found[kind(opcode)] += count
    return found
