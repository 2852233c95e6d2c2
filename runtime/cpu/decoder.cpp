// The folded DIINN decoder on a CPU: coordinates, the gather of modulation rows, all layers, sine and pixel in one pass.
//
// For each query (a nearest LR pixel, local y and x, an area ratio), with M_i the modulation maps of the encoder:
//
//     s_0 = relu(M_0[pixel]) * sin(F (y, x, ratio, 1))            F: [K, 4]
//     s_i = relu(A_i s + M_i[pixel]) * sin(S_i s + b_i)           A_i, S_i: [K, K], i = 1 .. N - 1
//     rgb = L s + l                                               L: [3, K]
//
// Reference: ``decoder.onnx`` of the same bundle, which ONNX Runtime runs. fp32 throughout; sums are in another order.
//
// A *vector* is LANES queries that follow one another in a row of the output; a *tile* is TILE vectors, whose activations
// stay in the first-level cache. Output pixels above one another that share an LR row share their modulation rows, so
// vectors are taken down such rows first. Each LR pixel's rows are read once a vector and spread over the lanes in registers.
// A query costs 4 K + 2 (N - 1) K^2 + 3 K multiply-adds and N K sines.
//
// Vectors are GCC's and Clang's extension: one source for AVX-512, AVX2, SSE and NEON.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define DIINN_HOST
#define BOTH static inline
#include "geometry.h"

#define ALWAYS __attribute__((always_inline)) inline

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 4;
constexpr const char *NAME = "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, TILE = 2;  // 16 registers: 8 sums, 2 activations, 4 weights
constexpr const char *NAME = "avx2";
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 4;
constexpr const char *NAME = "neon";
#else
constexpr int LANES = 4, TILE = 2;
constexpr const char *NAME = "128 bit";
#endif
constexpr int WIDEST = 64;  // K

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

struct Decoder {
    int width, depth;     // K, N
    const float *first;   // [K, 4]
    const float *hidden;  // [N - 1, K / 2, K, 2, 2]: of two outputs, for each input, (A, S) of the one and of the other
    const float *bias;    // [N - 1, K]
    const float *last;    // [3, K]
    const float *last_bias;
};

ALWAYS Floats relu(Floats x) { return x < 0.0f ? Floats{} : x; }  // NaN where x is, as on a GPU

// sin(x). |error| <= 1e-6 for |x| <= 100 (1.1e-7 in fact); NaN where x is not finite. Odd powers up to the ninth over half a
// period; which one comes from adding a number so large that the sum has no fraction.
ALWAYS Floats sine(Floats x) {
    const float large = 12582912.0f;  // 1.5 * 2^23
    const Floats shifted = x * 0.31830987334251404f + large;
    const Floats count = shifted - large;
#if defined(__FMA__) || defined(__aarch64__)  // the product is exact
    Floats r = x - count * 3.1415927410125732f;
    r = r + count * 8.742277657347586e-08f;
#else  // short factors, so that it is too
    Floats r = x - count * 3.14111328125f;
    r = r - count * 0.0004793405532836914f;
    r = r - count * 3.1786509424591713e-08f;
#endif
    const Floats z = r * r;
    Floats p = z * 2.5994479528890224e-06f - 0.00019806342606898397f;
    p = p * z + 0.008333013392984867f;
    p = p * z - 0.16666656732559204f;
    const Floats half_wave = r + r * z * p;
    return (Floats)((Words)half_wave ^ (Words)shifted << 31);
}

// Lane i of the result is lane ``lanes[i]`` of ``from``.
ALWAYS Floats spread(Floats from, Ints lanes) {
#if defined(__clang__)
    Floats to;
    for (int i = 0; i < LANES; ++i) to[i] = from[lanes[i]];
    return to;
#else
    return __builtin_shuffle(from, lanes);
#endif
}

struct Tile {
    int filled;                   // vectors
    Floats y[TILE], x[TILE], ratio[TILE];
    Ints lanes[TILE];             // which of its rows each query takes
    int rows[TILE];               // how many; 0: those of the vector before
    int row[TILE][LANES];         // of the maps
    const Segment *segment[TILE];
    long long begin[TILE];        // first query, among those of the launch
    int count[TILE];              // queries; the lanes beyond repeat the last one
};

class Work {
  public:
    Work(const Decoder &decoder, const float *const *maps) : decoder(decoder), maps(maps) { tile.filled = 0; }

    // Queries [begin, end) of the launch, all of one segment.
    void decode(const Segment &segment, long long begin, long long end) {
        if (!segment.cols || segment.ids) {
            for (long long i = begin; i < end; i += LANES) add(segment, i, least(end - i));
            return;
        }
        const long long shift = segment.start - segment.first, width = segment.width;
        for (long long i = begin; i < end;) {
            const long long row = (i - shift) / width, column = (i - shift) % width;
            long long across = width - column, down = 1;
            if (column || i + across > end)
                across = across < end - i ? across : end - i;
            else
                while (down < TILE && i + (down + 1) * width <= end && segment.rows[row + down] == segment.rows[row]) ++down;
            for (long long c = 0; c < across; c += LANES)
                for (long long r = 0; r < down; ++r)
                    add_in_row(segment, i + r * width + c, row + r, column + c, least(across - c), r > 0);
            i += down > 1 ? down * width : across;
        }
    }

    // Decode what is left.
    void finish() {
        if (!tile.filled) return;
        for (int t = tile.filled; t < TILE; ++t) {
            tile.y[t] = tile.y[0], tile.x[t] = tile.x[0], tile.ratio[t] = tile.ratio[0], tile.lanes[t] = tile.lanes[0];
            tile.rows[t] = tile.count[t] = 0;
        }
        run();
    }

  private:
    static int least(long long count) { return count < LANES ? (int)count : LANES; }

    // A vector of queries in a row of a regular grid.
    void add_in_row(const Segment &segment, long long begin, long long row, long long column, int count, bool shares) {
        const int t = tile.filled;
        const int *cols = segment.cols + column;
        const float *at = segment.col_at + column;
        tile.y[t] = segment.row_at[row] - Floats{};
        tile.ratio[t] = segment.constants[0] - Floats{};
        if (shares && t) {
            tile.x[t] = tile.x[t - 1], tile.lanes[t] = tile.lanes[t - 1], tile.rows[t] = 0;
        } else {
            const int base = segment.offset + segment.rows[row] * segment.source_width;
            int index[LANES];
            for (int i = 0; i < LANES; ++i) {
                const int from = i < count ? i : count - 1;
                index[i] = base + cols[from];
                tile.x[t][i] = at[from];
            }
            take_rows(index);
        }
        added(segment, begin, count);
    }

    // A vector of any queries.
    void add(const Segment &segment, long long begin, int count) {
        const int t = tile.filled;
        int index[LANES];
        for (int i = 0; i < LANES; ++i) {
            const long long id = id_in(segment, begin + (i < count ? i : count - 1));
            const Sample sample = sample_at(segment, id, 0, 0);
            index[i] = sample.index;
            tile.y[t][i] = sample.y, tile.x[t][i] = sample.x, tile.ratio[t][i] = ratio_at(segment, id);
        }
        take_rows(index);
        added(segment, begin, count);
    }

    // The different rows among those of LANES queries; neighbours often share one.
    void take_rows(const int *index) {
        const int t = tile.filled;
        int rows = 0;
        for (int i = 0; i < LANES; ++i) {
            if (!i || index[i] != index[i - 1]) tile.row[t][rows++] = index[i];
            tile.lanes[t][i] = rows - 1;
        }
        tile.rows[t] = rows;
    }

    void added(const Segment &segment, long long begin, int count) {
        const int t = tile.filled++;
        tile.segment[t] = &segment, tile.begin[t] = begin, tile.count[t] = count;
        if (tile.filled == TILE) run();
    }

    // The rows of one map, channel by channel.
    ALWAYS void gather(const float *map) {
        const int width = decoder.width;
        for (int t = 0; t < TILE; ++t) {
            for (int n = 0; n < tile.rows[t]; ++n) {
                const float *row = map + (size_t)tile.row[t][n] * width;
                float *to = (float *)gathered[t] + n;
                for (int k = 0; k < width; ++k) to[k * LANES] = row[k];
            }
            source[t] = tile.rows[t] ? t : t ? source[t - 1] : 0;
        }
    }

    ALWAYS Floats modulation(int t, int k) const { return spread(gathered[source[t]][k], tile.lanes[t]); }

    __attribute__((noinline)) void run() {
        const int width = decoder.width;
        Floats(*from)[TILE] = activations[0], (*to)[TILE] = activations[1];
        gather(maps[0]);
        for (int k = 0; k < width; ++k) {
            const float *f = decoder.first + 4 * k;
            for (int t = 0; t < TILE; ++t) {
                const Floats wave = tile.y[t] * f[0] + (tile.x[t] * f[1] + (tile.ratio[t] * f[2] + f[3]));
                from[k][t] = relu(modulation(t, k)) * sine(wave);
            }
        }
        const float *weights = decoder.hidden, *bias = decoder.bias;
        for (int layer = 1; layer < decoder.depth; ++layer, bias += width) {
            gather(maps[layer]);
            for (int j = 0; j < width; j += 2, weights += 4 * width) {
                Floats a0[TILE], a1[TILE], q0[TILE], q1[TILE];
                for (int t = 0; t < TILE; ++t) {
                    a0[t] = modulation(t, j), a1[t] = modulation(t, j + 1);
                    q0[t] = bias[j] - Floats{}, q1[t] = bias[j + 1] - Floats{};
                }
                for (int k = 0; k < width; ++k) {
                    const float *w = weights + 4 * k;
                    for (int t = 0; t < TILE; ++t) {
                        const Floats s = from[k][t];
                        a0[t] += s * w[0], q0[t] += s * w[1], a1[t] += s * w[2], q1[t] += s * w[3];
                    }
                }
                for (int t = 0; t < TILE; ++t) {
                    to[j][t] = relu(a0[t]) * sine(q0[t]);
                    to[j + 1][t] = relu(a1[t]) * sine(q1[t]);
                }
            }
            Floats(*swap)[TILE] = from;
            from = to, to = swap;
        }
        Floats rgb[3][TILE];
        for (int c = 0; c < 3; ++c)
            for (int t = 0; t < TILE; ++t) rgb[c][t] = decoder.last_bias[c] - Floats{};
        for (int k = 0; k < width; ++k)
            for (int c = 0; c < 3; ++c)
                for (int t = 0; t < TILE; ++t) rgb[c][t] += from[k][t] * decoder.last[c * width + k];
        for (int t = 0; t < tile.filled; ++t) store(t, rgb[0][t], rgb[1][t], rgb[2][t]);
        tile.filled = 0;
    }

    ALWAYS void store(int t, Floats red, Floats green, Floats blue) const {
        const Segment &segment = *tile.segment[t];
        const int count = tile.count[t];
        if (segment.outside)
            for (int i = 0; i < count; ++i)
                if (segment.outside[id_in(segment, tile.begin[t] + i)]) red[i] = green[i] = blue[i] = segment.border;
        if (!segment.bytes) {
            for (int i = 0; i < count; ++i) {
                float *to = (float *)segment.out + 3 * id_in(segment, tile.begin[t] + i);
                to[0] = blue[i], to[1] = green[i], to[2] = red[i];
            }
            return;
        }
        const Words pixels = byte(blue) | byte(green) << 8 | byte(red) << 16;
        uint8_t *to = (uint8_t *)segment.out;
        if (segment.ids) {
            for (int i = 0; i < count; ++i)
                memcpy(to + 3 * id_in(segment, tile.begin[t] + i), (const uint32_t *)&pixels + i, 3);
            return;
        }
        to += 3 * id_in(segment, tile.begin[t]);
        for (int i = 0; i < count - 1; ++i, to += 3)
            memcpy(to, (const uint32_t *)&pixels + i, 4);  // the next one covers the fourth
        memcpy(to, (const uint32_t *)&pixels + count - 1, 3);
    }

    // 255 x, clamped and rounded to even; 0 for NaN.
    static ALWAYS Words byte(Floats x) {
        x = x * 255.0f;
        x = x > 0.0f ? x : Floats{};
        x = x < 255.0f ? x : 255.0f - Floats{};
        return (Words)(x + 12582912.0f) & 255u;
    }

    const Decoder &decoder;
    const float *const *maps;
    Tile tile;
    int source[TILE];
    Floats gathered[TILE][WIDEST], activations[2][WIDEST][TILE];
};

}  // namespace

extern "C" {

// The instructions it was compiled for.
const char *diinn_instructions() { return NAME; }

// Queries [begin, end) of a launch of ``count`` segments; maps: float32 [rows, K] each, N of them.
void diinn_decode(const Decoder *decoder, const float *const *maps, const Segment *segments, int count, long long begin,
                  long long end) {
    Work work(*decoder, maps);
    for (int n = 0; n < count && segments[n].start < end; ++n) {
        const long long stop = n + 1 < count && segments[n + 1].start < end ? segments[n + 1].start : end;
        const long long start = segments[n].start > begin ? segments[n].start : begin;
        if (start < stop) work.decode(segments[n], start, stop);
    }
    work.finish();
}

void diinn_sine(const float *x, float *y, long long count) {
    for (long long i = 0; i < count; i += LANES) {
        const int n = count - i < LANES ? (int)(count - i) : LANES;
        Floats v = {};
        memcpy(&v, x + i, n * 4);
        v = sine(v);
        memcpy(y + i, &v, n * 4);
    }
}
}
