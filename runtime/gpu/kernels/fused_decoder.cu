// The whole folded DIINN decoder in one launch: coordinates, nearest rows, all layers, pixels.
//
//   s_0 = relu(M_0[index]) * sin(w_0 p + b_0)                      p = (y, x, ratio)
//   s_i = relu(A_i s_(i-1) + M_i[index]) * sin(w_i s_(i-1) + b_i)  i = 1 .. layers - 1
//   rgb = W s_(layers-1) + b
//
// Queries of any number of segments (views, cameras); maps fp16 [pixels, K] each; operands fp16, sums and sines fp32.
// Paper: equations 2 to 6, folded (A_i z is in M_i). Reference: the bundle's ``decoder.onnx``; tolerance that of fp16.
//
// A warp decodes 32 queries through all layers. Its activations stay with the lane that made them (``tile.h``): registers
// while they are multiplied, its own 16 bytes of shared memory while a layer is being made. Weights are shared by the
// block: all of them in shared memory where they fit (``resident``), else one group of 16 units at a time is streamed from
// L2, the next while this one is multiplied.
//
// A query: 2 K (3 + 2 K (layers - 1) + 3) FLOP, K layers sines, 2 K layers bytes of the maps, shared by the queries of one
// LR pixel, 3 or 12 bytes written. A block of W warps reads 4 K^2 (layers - 1) bytes of weights for its 32 W queries
// where they are streamed.
//
// One block: up to 8 warps; shared memory: ``weights`` + W * K * 64 bytes (``fused.Plan`` on the host).

#include "geometry.h"
#include "tile.h"

struct Network {
    int layers;
    const uint4 *hidden;       // (layers - 1) * words_of(K) / 4, in ``weight_at``'s order
    const float4 *first;       // [K]: what multiplies y, x, ratio; bias
    const float *bias;         // [layers - 1, K], of the synthesis
    const uint2 *last;         // in ``last_weight_at``'s order
    const float *last_bias;    // [3]
    const uint64_t *maps;      // [layers] addresses
};

// The four values that a lane makes of one row, and of the row 8 below, into an MMA's A operand.
__device__ __forceinline__ uint4 operand(const float (&row)[4], const float (&below)[4]) {
    return make_uint4(pack_halves(row[0], row[1]), pack_halves(below[0], below[1]), pack_halves(row[2], row[3]),
                      pack_halves(below[2], below[3]));
}

// Four values of a map's row, from ``at`` on.
__device__ __forceinline__ void modulation_at(uint64_t map, long long at, float (&values)[4]) {
    const uint2 four = __ldg(reinterpret_cast<const uint2 *>(map) + at / 4);
    const float2 low = unpack_halves(four.x), high = unpack_halves(four.y);
    values[0] = low.x, values[1] = low.y, values[2] = high.x, values[3] = high.y;
}

template <int K, bool RESIDENT>
__device__ __forceinline__ void decode(long long count, int segments, const Segment *segment, const Network &network,
                                       uint4 *shared) {
    constexpr int STEPS = K / GROUP, PIECE = STEPS * 2 * LANES;  // 16-byte words of one group's weights
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const int pieces = (network.layers - 1) * STEPS, unit_base = unit_of(lane);
    uint4 *weights = shared;
    uint4 *mine = shared + (RESIDENT ? pieces : 2) * PIECE + warp * STEPS * TILES * LANES + lane;

    const auto fetch = [&](int piece, int slot) {
        for (int i = threadIdx.x; i < PIECE; i += blockDim.x)
            copy_async(weights + slot * PIECE + i, network.hidden + (long long)piece * PIECE + i);
    };
    int slot = 0;
    if (RESIDENT) {
        for (int piece = 0; piece < pieces; ++piece) fetch(piece, piece);
        copies_done();
        __syncthreads();
    } else if (pieces) {
        fetch(0, 0);
    }

    const long long rows_a_block = (long long)warps * TILE_ROWS;
    for (long long base = blockIdx.x * rows_a_block; base < count; base += gridDim.x * rows_a_block) {
        const long long top = base + warp * TILE_ROWS + row_of(lane);
        Sample asked[2 * TILES];  // of the lane's rows, 8 apart
        float ratio[2 * TILES];
#pragma unroll
        for (int r = 0; r < 2 * TILES; ++r) {
            const long long i = top + 8 * r < count ? top + 8 * r : count - 1;  // the last tile's rest asks again
            const Segment &from = segment_of(segment, segments, i);
            const long long id = id_in(from, i);
            asked[r] = sample_at(from, id, 0, 0);
            ratio[r] = ratio_at(from, id);
        }
        __syncwarp();  // an MMA wants its warp together

#pragma unroll 1
        for (int group = 0; group < STEPS; ++group) {
            const int at = group * GROUP + unit_base;
            float made[2 * TILES][4];
            float4 first[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) first[e] = network.first[at + e];
#pragma unroll
            for (int r = 0; r < 2 * TILES; ++r) {
                float modulation[4];
                modulation_at(network.maps[0], (long long)asked[r].index * K + at, modulation);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float4 w = first[e];
                    made[r][e] = unit(modulation[e], fmaf(w.x, asked[r].y, fmaf(w.y, asked[r].x, fmaf(w.z, ratio[r], w.w))));
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
            const uint64_t map = network.maps[layer];

#pragma unroll 1
            for (int group = 0; group < STEPS; ++group) {
                const int piece = (layer - 1) * STEPS + group, at = group * GROUP + unit_base;
                float modulation[2 * TILES][4];  // on its way while others are waited for
#pragma unroll
                for (int r = 0; r < 2 * TILES; ++r) modulation_at(map, (long long)asked[r].index * K + at, modulation[r]);
                const float4 bias = *reinterpret_cast<const float4 *>(network.bias + (layer - 1) * K + at);
                if (!RESIDENT) {
                    copies_done();
                    __syncthreads();  // this piece is there, and the one before is no longer read
                    fetch(piece + 1 < pieces ? piece + 1 : 0, slot ^ 1);
                }
                const uint4 *const here = weights + (RESIDENT ? piece : slot) * PIECE + lane;

                float sums[TILES][2][2][4] = {};  // [tile][modulation, synthesis][block][MMA's own]
#pragma unroll
                for (int step = 0; step < STEPS; ++step) {
#pragma unroll
                    for (int synthesis = 0; synthesis < 2; ++synthesis) {
                        const uint4 b = here[(step * 2 + synthesis) * LANES];
#pragma unroll
                        for (int m = 0; m < TILES; ++m) {
                            mma_m16n8k16(sums[m][synthesis][0], activation[m][step], b.x, b.y);
                            mma_m16n8k16(sums[m][synthesis][1], activation[m][step], b.z, b.w);
                        }
                    }
                }
                const float biases[4] = {bias.x, bias.y, bias.z, bias.w};
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    float made[2][4];
#pragma unroll
                    for (int below = 0; below < 2; ++below)
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const int block = e / 2, column = below * 2 + e % 2;
                            made[below][e] = unit(sums[m][0][block][column] + modulation[2 * m + below][e],
                                                  sums[m][1][block][column] + biases[e]);
                        }
                    mine[(group * TILES + m) * LANES] = operand(made[0], made[1]);
                }
                if (!RESIDENT) slot ^= 1;
            }
        }

        float rgb[TILES][4] = {};  // lanes 0 of four hold red and green, lanes 1 blue
#pragma unroll 1
        for (int step = 0; step < STEPS; ++step) {
            const uint2 b = network.last[step * LANES + lane];
#pragma unroll
            for (int m = 0; m < TILES; ++m) mma_m16n8k16(rgb[m], mine[(step * TILES + m) * LANES], b.x, b.y);
        }
        __syncwarp();
        const int holds = lane % 4 == 0 ? 2 : lane % 4 == 1 ? 1 : 0;  // channels
#pragma unroll
        for (int r = 0; r < 2 * TILES; ++r) {
            const long long i = top + 8 * r;
            if (i >= count) continue;
            const Segment &to = segment_of(segment, segments, i);
            const long long id = id_in(to, i);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                if (c >= holds) continue;
                const int channel = lane % 4 * 2 + c;
                store(to, i, id, channel, rgb[r / 2][r % 2 * 2 + c] + network.last_bias[channel]);
            }
        }
    }
    if (!RESIDENT) copies_done();  // the next tile's first piece, for which there is no tile
}

#define FUSED(K, BLOCKS, NAME, RESIDENT)                                                                               \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) fused_##K##_##NAME(                                       \
        long long count, int segments, const Segment *segment, int layers, const uint4 *hidden, const float4 *first,    \
        const float *bias, const uint2 *last, const float *last_bias, const uint64_t *maps) {                           \
        extern __shared__ uint4 shared[];                                                                               \
        decode<K, RESIDENT>(count, segments, segment, {layers, hidden, first, bias, last, last_bias, maps}, shared);    \
    }

FUSED(16, 3, resident, true)
FUSED(16, 3, streamed, false)
FUSED(32, 2, resident, true)
FUSED(32, 2, streamed, false)
FUSED(64, 2, resident, true)
FUSED(64, 2, streamed, false)
FUSED(128, 1, resident, true)
FUSED(128, 1, streamed, false)
FUSED(256, 1, streamed, false)

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
