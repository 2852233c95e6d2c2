// The whole folded DIINN decoder in one launch: coordinates, nearest rows, all layers, pixels.
//
//   s_0 = relu(M_0[index]) * sin(w_0 p + b_0)                      p = (y, x, ratio)
//   s_i = relu(A_i s_(i-1) + M_i[index]) * sin(w_i s_(i-1) + b_i)  i = 1 .. layers - 1
//   rgb = W s_(layers-1) + b
//
// Queries of any number of segments (views, cameras); maps fp16 [pixels, K] each; operands fp16, sums and sines fp32.
// Paper: equations 2 to 6, folded (A_i z is in M_i). Reference: the bundle's ``decoder.onnx``; tolerance that of fp16.
//
// A warp decodes 32 queries through all layers. One lane a query finds its coordinates and stores its pixel; in between, four
// lanes share a query's units. Activations stay with the lane that made them (``tile.h``): registers while they are
// multiplied, its own 16 bytes of shared memory while a layer is being made. Products begin as what is added to them: the
// modulation, the bias. Weights are shared by the block: all of them in shared memory where that leaves room for as many
// warps (``resident``), else one group of 16 units at a time is streamed from L2, the next while this one is multiplied. All
// warps of a block then meet at each; other blocks go on meanwhile. Where there is room for one block alone (``GATED``), halves of
// a group are streamed, two ahead, and warps wait for them by gates: one may be two ahead of another, so that its sines take
// turns with the other's products.
//
// ``reduced``: sines of arguments of any size (``tile.h``), where the bundle does not say that they are small.
//
// A query: 2 K (3 + 2 K (layers - 1) + 3) FLOP, K layers sines, 2 K layers bytes of the maps, shared by the queries of one
// LR pixel, 3 or 12 bytes written. A block of W warps reads 4 K^2 (layers - 1) bytes of weights for its 32 W queries
// where they are streamed.
//
// One block: up to 8 warps; shared memory: ``weights`` + W * K * 64 bytes (``gpu/decoder.py`` on the host). A launch holds fewer
// than 2^30 queries, a view fewer than 2^32, and a map fewer than 2^32 pieces of 8 bytes.

#include "geometry.h"
#include "pixels.h"
#include "tile.h"

struct Network {
    int layers;
    const uint4 *hidden;     // (layers - 1) * words_of(K) / 4, in ``weight_at``'s order
    const float4 *first;     // [K]: what multiplies y, x, ratio; bias
    const float4 *bias;      // [layers - 1, K / 2], of the synthesis: two units', twice, as an MMA's C takes them
    const uint2 *last;       // in ``last_weight_at``'s order
    const float2 *last_bias; // [4]: red and green, blue, zeros
    const uint64_t *maps;    // [layers] addresses
};

// What the layers need of a query, 16 bytes.
struct alignas(16) Asked {
    uint32_t piece;  // which 8 bytes of a map are the first of its row
    float y, x, ratio;
};

// The four values that a lane makes of one row, and of the row 8 below, into an MMA's A operand.
__device__ __forceinline__ uint4 operand(const float (&row)[4], const float (&below)[4]) {
    return make_uint4(pack_halves(row[0], row[1]), pack_halves(below[0], below[1]), pack_halves(row[2], row[3]),
                      pack_halves(below[2], below[3]));
}

__device__ __forceinline__ Asked asked_of(const Segment &from, uint32_t id, int pieces) {
    const Sample sample = sample_at(from, id, 0, 0);
    return {(uint32_t)sample.index * pieces, sample.y, sample.x, ratio_at(from, id)};
}

template <int K, bool RESIDENT, bool REDUCED>
__device__ __forceinline__ void decode(int count, int segments, const Segment *segment, const Network &network,
                                       uint4 *shared) {
    constexpr int STEPS = K / GROUP, PIECE = STEPS * 2 * LANES;  // 16-byte words of one group's weights
    constexpr bool GATED = !RESIDENT && K == 256;
    constexpr int PARTS = GATED ? 2 : 1, PART = PIECE / PARTS;  // of a group's weights; streamed one by one
    constexpr uint32_t SLOTS = 2 * PARTS, AHEAD = PARTS;
    constexpr int AT_ONCE = STEPS <= 2 ? STEPS : RESIDENT ? 1 : 2;  // groups; more would need too many registers
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const int pieces = (network.layers - 1) * STEPS, unit_base = unit_of(lane);
    uint4 *weights = shared;
    uint4 *ours = shared + (RESIDENT ? pieces : 2) * PIECE + warp * STEPS * TILES * LANES, *mine = ours + lane;

    static __shared__ Gate filled[SLOTS], read[SLOTS];  // what is in a slot is there; is no longer read
    uint32_t part = 0;  // of all that are multiplied, whichever tile they are for
    const auto fetch = [&](int from, uint32_t number, uint32_t slot) {  // a part of the layers', and which of all it is
        if (from >= pieces * PARTS) from -= pieces * PARTS;  // the next tile's
        if (GATED && number >= SLOTS) {
            wait_for_readers(read[slot], (number / SLOTS - 1) % 2);
        }
        for (int i = threadIdx.x; i < PART; i += blockDim.x)
            copy_async(weights + slot * PART + i, network.hidden + from * PART + i);
        if (GATED) arrive_with_copies(filled[slot]);
    };
    if (RESIDENT) {
        for (int i = threadIdx.x; i < pieces * PIECE; i += blockDim.x) copy_async(weights + i, network.hidden + i);
        copies_done();
        __syncthreads();
    } else if (pieces) {
        if (GATED) {
            if (threadIdx.x == 0)
                for (uint32_t i = 0; i < SLOTS; ++i) open_for(filled[i], blockDim.x), open_for(read[i], warps);
            __syncthreads();
        }
        for (uint32_t number = 0; number < AHEAD; ++number) fetch(number, number, number % SLOTS);
    }

    const int rows_a_block = warps * TILE_ROWS;
    for (int base = blockIdx.x * rows_a_block; base < count; base += gridDim.x * rows_a_block) {
        const int top = base + warp * TILE_ROWS, own = top + lane;
        const Segment &to = segment_of(segment, segments, own < count ? own : count - 1);  // the last tile's rest asks again
        const uint32_t id = id_in(to, (uint32_t)(own < count ? own : count - 1));

        Asked asked[2 * TILES];  // of the lane's rows, 8 apart
        reinterpret_cast<Asked *>(ours)[lane] = asked_of(to, id, K / 4);
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 2 * TILES; ++r) {
            asked[r] = reinterpret_cast<const Asked *>(ours)[row_of(lane) + 8 * r];
            asked[r].piece += unit_base / 4;
        }
        __syncwarp();

        const uint2 *map = reinterpret_cast<const uint2 *>(network.maps[0]);
#pragma unroll(AT_ONCE)
        for (int group = 0; group < STEPS; ++group) {
            float made[2 * TILES][4];
            float4 first[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) first[e] = network.first[group * GROUP + unit_base + e];
#pragma unroll
            for (int r = 0; r < 2 * TILES; ++r) {
                const uint2 four = __ldg(map + (asked[r].piece + 4u * group));
                const float2 low = unpack_halves(relu_halves(four.x)), high = unpack_halves(relu_halves(four.y));
                const float modulation[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float4 w = first[e];
                    const float argument = fmaf(w.x, asked[r].y, fmaf(w.y, asked[r].x, fmaf(w.z, asked[r].ratio, w.w)));
                    made[r][e] = modulation[e] * sine<REDUCED>(argument);
                }
            }
#pragma unroll
            for (int m = 0; m < TILES; ++m) mine[(group * TILES + m) * LANES] = operand(made[2 * m], made[2 * m + 1]);
        }

#pragma unroll 1
        for (int layer = 1; layer < network.layers; ++layer) {
            uint4 activation[TILES][STEPS];
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int m = 0; m < TILES; ++m) activation[m][step] = mine[(step * TILES + m) * LANES];
            map = reinterpret_cast<const uint2 *>(network.maps[layer]);

#pragma unroll(AT_ONCE)
            for (int group = 0; group < STEPS; ++group) {
                const int piece = (layer - 1) * STEPS + group;
                uint2 modulation[2 * TILES];  // on its way while others are waited for
#pragma unroll
                for (int r = 0; r < 2 * TILES; ++r) modulation[r] = __ldg(map + (asked[r].piece + 4u * group));
                const float4 *const pairs = network.bias + (piece * GROUP + unit_base) / 2;
                const float4 bias[2] = {pairs[0], pairs[1]};

                float sums[TILES][2][2][4];  // [tile][modulation, synthesis][block][MMA's own]
                float biases[2][4] = {{bias[0].x, bias[0].y, bias[0].z, bias[0].w},
                                      {bias[1].x, bias[1].y, bias[1].z, bias[1].w}};
#pragma unroll
                for (int r = 0; r < 2 * TILES; ++r) {
                    const float2 low = unpack_halves(modulation[r].x), high = unpack_halves(modulation[r].y);
                    float(&to_sums)[2][4] = sums[r / 2][0];
                    to_sums[0][r % 2 * 2] = low.x, to_sums[0][r % 2 * 2 + 1] = low.y;
                    to_sums[1][r % 2 * 2] = high.x, to_sums[1][r % 2 * 2 + 1] = high.y;
                }
#pragma unroll
                for (int of_piece = 0; of_piece < PARTS; ++of_piece) {
                    // known to the compiler where a layer's parts fill all slots
                    const uint32_t known = STEPS * PARTS % SLOTS ? part : group * PARTS + of_piece, slot = known % SLOTS;
                    if (GATED) {
                        wait_for_copies(filled[slot], part / SLOTS % 2);
                    } else if (!RESIDENT) {
                        copies_done();
                        __syncthreads();  // this part is there, and the one before is no longer read
                    }
                    if (!RESIDENT) {
                        fetch(piece * PARTS + of_piece + AHEAD, part + AHEAD, (known + AHEAD) % SLOTS);
                    }
                    const uint4 *const here = weights + (RESIDENT ? piece * PIECE : (int)slot * PART) + lane;
#pragma unroll
                    for (int i = 0; i < STEPS / PARTS; ++i) {
                        const int step = of_piece * (STEPS / PARTS) + i;
#pragma unroll
                        for (int synthesis = 0; synthesis < 2; ++synthesis) {
                            const uint4 b = here[(i * 2 + synthesis) * LANES];
#pragma unroll
                            for (int m = 0; m < TILES; ++m) {
                                float(&d)[2][4] = sums[m][synthesis];
                                const bool begins = synthesis && !step;
                                mma_m16n8k16(d[0], begins ? biases[0] : d[0], activation[m][step], b.x, b.y);
                                mma_m16n8k16(d[1], begins ? biases[1] : d[1], activation[m][step], b.z, b.w);
                            }
                        }
                    }
                    if (GATED) {
                        __syncwarp();  // all its lanes have read
                        if (lane == 0) arrive(read[slot]);
                    }
                    ++part;
                }
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    float made[2][4];
#pragma unroll
                    for (int below = 0; below < 2; ++below)
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const int block = e / 2, column = below * 2 + e % 2;
                            made[below][e] = relu(sums[m][0][block][column]) * sine<REDUCED>(sums[m][1][block][column]);
                        }
                    mine[(group * TILES + m) * LANES] = operand(made[0], made[1]);
                }
            }
        }

        const float2 last_bias = network.last_bias[lane % 4];
        float rgb[TILES][4];  // lanes 0 of four hold red and green, lanes 1 blue
#pragma unroll
        for (int m = 0; m < TILES; ++m) rgb[m][0] = rgb[m][2] = last_bias.x, rgb[m][1] = rgb[m][3] = last_bias.y;
#pragma unroll(STEPS <= 4 ? STEPS : 2)
        for (int step = 0; step < STEPS; ++step) {
            const uint2 b = network.last[step * LANES + lane];
#pragma unroll
            for (int m = 0; m < TILES; ++m) mma_m16n8k16(rgb[m], rgb[m], mine[(step * TILES + m) * LANES], b.x, b.y);
        }
        __syncwarp();  // the activations are read: each row's RGB takes their place, 16 bytes
        if (lane % 4 < 2) {
#pragma unroll
            for (int r = 0; r < 2 * TILES; ++r)
                reinterpret_cast<float2 *>(ours)[2 * (row_of(lane) + 8 * r) + lane % 4] = {rgb[r / 2][r % 2 * 2],
                                                                                           rgb[r / 2][r % 2 * 2 + 1]};
        }
        __syncwarp();
        store_bgr(to, top, id, own < count, reinterpret_cast<const float4 *>(ours)[lane]);
        __syncwarp();
    }
    if (!RESIDENT && pieces) {  // the next tile's first parts, for which there is no tile
        if (GATED)
            for (uint32_t end = part + AHEAD; part < end; ++part) wait_for_copies(filled[part % SLOTS], part / SLOTS % 2);
        else
            copies_done();
    }
}

// WARPS of a block and BLOCKS of a multiprocessor at most: what ``WARPS`` of ``gpu/decoder.py`` says, too.
#define FUSED(K, WARPS, BLOCKS, NAME, RESIDENT, REDUCED)                                                               \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) fused_##K##_##NAME(                                \
        int count, int segments, const Segment *segment, int layers, const uint4 *hidden, const float4 *first,          \
        const float4 *bias, const uint2 *last, const float2 *last_bias, const uint64_t *maps) {                         \
        extern __shared__ uint4 shared[];                                                                               \
        decode<K, RESIDENT, REDUCED>(count, segments, segment, {layers, hidden, first, bias, last, last_bias, maps},    \
                                     shared);                                                                           \
    }
#define STREAMED(K, WARPS, BLOCKS)                          \
    FUSED(K, WARPS, BLOCKS, streamed, false, false)         \
    FUSED(K, WARPS, BLOCKS, streamed_reduced, false, true)
#define BOTH_FORMS(K, WARPS, BLOCKS)                        \
    FUSED(K, WARPS, BLOCKS, resident, true, false)          \
    FUSED(K, WARPS, BLOCKS, resident_reduced, true, true)   \
    STREAMED(K, WARPS, BLOCKS)

BOTH_FORMS(16, 8, 3)
BOTH_FORMS(32, 8, 2)
BOTH_FORMS(64, 8, 2)
BOTH_FORMS(128, 6, 2)
STREAMED(256, 8, 1)

// Weights as a bundle holds them, fp32 [layers - 1, 2, K, K] (modulation, synthesis; out, in), to ``hidden``; a thread a
// 32-bit word.
extern "C" __global__ void pack_hidden(long long words, int units, const float *weights, uint32_t *hidden) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= words) return;
    const float *const layer = weights + i / words_of(units) * 2 * units * units;
    float values[2];
    for (int high = 0; high < 2; ++high) {
        const Place from = weight_at(units, (int)(i % words_of(units)), high);
        values[high] = layer[(from.synthesis * units + from.out) * units + from.in];
    }
    hidden[i] = pack_halves(values[0], values[1]);
}

// fp32 [3, K] to ``last``; a thread a 32-bit word, of which there are K / 16 * 64.
extern "C" __global__ void pack_last(long long words, int units, const float *weights, uint32_t *last) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= words) return;
    float values[2];
    for (int high = 0; high < 2; ++high) {
        const Place from = last_weight_at((int)i, high);
        values[high] = from.out < 3 ? weights[from.out * units + from.in] : 0.0f;
    }
    last[i] = pack_halves(values[0], values[1]);
}
