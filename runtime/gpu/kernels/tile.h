// Who holds what of a tile, and what a unit computes: shared by the kernel, its packing, and the tests on a CPU.
//
// A warp decodes TILE_ROWS queries as two MMA tiles of 16 rows. Units (channels of a layer) come in groups of 16. A lane
// holds, of each tile, rows ``row_of(lane)`` and 8 more, and of each group the four units from ``unit_of(lane)`` on: what
// it needs of a modulation row is then 8 bytes in one piece. Which MMA column a unit takes is ours to choose, since the
// weights are laid out for it; with ``unit_at`` a layer's result is the next one's operand in the same lane, and
// activations never leave it.

#pragma once

#include "portable.h"

constexpr int GROUP = 16;        // units
constexpr int TILES = 2;         // MMA tiles of 16 rows a warp
constexpr int TILE_ROWS = 16 * TILES;
constexpr int LANES = 32;

BOTH int row_of(int lane) { return lane / 4; }
BOTH int unit_of(int lane) { return lane % 4 * 4; }

// Unit within its group of column ``column`` of block ``block``; also of position 8 * block + column along K.
BOTH int unit_at(int block, int column) { return column / 2 * 4 + block * 2 + column % 2; }

// Weights of one layer, fp16, in the order in which lanes read them: [group of outputs][step along K][modulation,
// synthesis][lane][block][half of the step][2 values]. 16 bytes a lane feed two MMAs' B operands.
BOTH int words_of(int units) { return units / GROUP * (units / GROUP) * 2 * LANES * 4; }  // 32-bit, a layer

struct Place {
    int synthesis;  // 0: of the modulation's matrix, 1: of the synthesis'
    int out, in;    // units
};

// What half ``high`` of 32-bit word ``word`` of a layer holds.
BOTH Place weight_at(int units, int word, int high) {
    const int steps = units / GROUP;
    const int half_of_step = word % 2, block = word / 2 % 2, lane = word / 4 % LANES, synthesis = word / 4 / LANES % 2;
    const int step = word / 8 / LANES % steps, group = word / 8 / LANES / steps;
    return {synthesis, group * GROUP + unit_at(block, lane / 4), step * GROUP + unit_at(half_of_step, lane % 4 * 2 + high)};
}

// The last layer's, [step][lane][half of the step][2 values]; outputs beyond RGB are zero.
BOTH Place last_weight_at(int word, int high) {
    const int half_of_step = word % 2, lane = word / 2 % LANES, step = word / 2 / LANES;
    return {0, lane / 4, step * GROUP + unit_at(half_of_step, lane % 4 * 2 + high)};
}

// sin(x), fp32, by the special function unit. ``REDUCED``: x less the nearest multiple of 2 pi in two parts first, so that
// the unit sees [-pi, pi], for |x| below 1e7; turns are rounded by adding what leaves no bits for a fraction: rintf would be
// a special function, too. Without that the unit's own reduction has to do, for |x| below ``LARGEST_UNREDUCED`` of ``gpu/decoder.py``.
template <bool REDUCED>
BOTH_DEVICE float sine(float x) {
    if (!REDUCED) return fast_sine(x);
    const float whole = 12582912.0f;  // 1.5 * 2^23
    const float turns = fmaf(x, 0.15915494309f, whole) - whole;
    return fast_sine(fmaf(turns, 1.7484555e-7f, fmaf(turns, -6.2831854820f, x)));
}
