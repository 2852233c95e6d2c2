"""The fused decoder's path through one tile of 32 queries: how often each of its loops runs, and what a warp issues.

The loops are known by what is in them: products and sines are of the layers, products alone of the last one, sines
alone of the first; asynchronous copies bring weights. That all products and sines of a tile are found is checked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diinn.benchmarks.sass import Block, Loop, Paths
from diinn.runtime.errors import DiinnError

GROUP, TILES, LANES = 16, 2, 32  # of tile.h


@dataclass(frozen=True)
class Tile:
    """What one warp has to do for a tile of ``width`` = K and ``depth`` = N, in a block of so many warps."""

    width: int
    depth: int
    warps: int

    @property
    def steps(self) -> int:
        return self.width // GROUP

    @property
    def hidden_products(self) -> int:
        """Of one hidden layer: two matrices, each group 2 blocks of 8 columns."""
        return self.steps * self.steps * 2 * TILES * 2

    @property
    def products(self) -> int:
        return (self.depth - 1) * self.hidden_products + self.steps * TILES

    @property
    def layer_sines(self) -> int:
        """Of one lane and layer."""
        return self.steps * TILES * 2 * 4

    def copies(self, paths: Paths, loop: Loop) -> float:
        """Passes of a loop that copies weights, which shares a group's with others like it."""
        around = next(other for other in paths.loops if loop.body < other.body and _marks(paths.opcodes(other))[0])
        groups = _marks(paths.opcodes(around))[0] / (self.hidden_products / self.steps)
        alike = [other for other in paths.loops if other.body < around.body and _marks(paths.opcodes(other))[2]]
        passes = -(-self.steps * 2 * LANES // (self.warps * LANES)) * groups / len(alike)
        return passes / _marks(paths.opcodes(loop))[2]

    def trips(self, paths: Paths, loop: Loop) -> float:
        """How often a loop within the tile's runs."""
        products, sines, copies = _marks(paths.opcodes(loop))
        inner = [_marks(paths.opcodes(other)) for other in paths.inner(loop)]
        if products and sines:
            if any(p and s for p, s, _ in inner):  # the loop over layers, around that over groups
                return self.depth - 1
            around = [other for other in paths.loops if loop.body < other.body and _is_layers(paths, other, self)]
            return self.hidden_products / products * (1 if around else self.depth - 1)
        if products:
            return self.steps * TILES / products
        if sines:
            return self.layer_sines / sines
        return self.copies(paths, loop) if copies else 0


def _is_layers(paths: Paths, loop: Loop, tile: Tile) -> bool:
    """Whether a loop goes over the hidden layers: one within the tile's."""
    return any(loop.body < other.body for other in paths.loops) and _marks(paths.opcodes(loop))[0] > 0


def _marks(opcodes: Mapping[str, float]) -> tuple[float, float, float]:
    """Products, sines and asynchronous copies."""

    def count(mark: str) -> float:
        return sum(n for opcode, n in opcodes.items() if opcode.startswith(mark))

    return count("HMMA"), count("MUFU.SIN"), count("LDGSTS")


def instructions(kernel: str, blocks: list[Block], depth: int, warps: int) -> dict[str, float]:
    """By opcode, of one tile of a kernel ``fused_K_…``. Raises DiinnError where its loops are not as known."""
    found = re.match(r"fused_(\d+)_", kernel)
    assert found
    tile = Tile(int(found[1]), depth, warps)
    paths = Paths(blocks, tile.trips)
    outermost = paths.outermost(lambda opcodes: _marks(opcodes)[0] > 0 and _marks(opcodes)[1] > 0)
    issued = paths.one_pass(outermost)
    products, sines, _ = _marks(issued)
    wanted: tuple[float, float] = (tile.products, tile.depth * tile.layer_sines)
    if (products, sines) != wanted:
        raise DiinnError(f"{kernel}: {products:g} products and {sines:g} sines on the path of a tile, not {wanted}")
    return issued
