// Coordinates and gather: from views to the rows a decoder engine reads, and from its RGB to pixels.
//
// make_queries     segments of several views and cameras -> index and query
// gather_rows_N    rows of all maps by index -> rows side by side, N bytes at once
// store_pixels     RGB of the queries -> each segment's BGR pixels
//
// Reference: ``diinn.runtime.geometry.grid``'s ``fill`` (equal index, equal coordinates), NumPy's take (equal bytes),
// ``backends.base.Segment.write`` (equal pixels).
// Bytes a query, S samples of F numbers and C channels of b bytes: 4 S (1 + F) written, then 4 S read and 2 S C b moved,
// then 12 read and 3 or 12 written.
// One thread a query in the first and last, one a piece of N bytes in the second; all end where the work ends. A launch holds
// fewer than 2^30 queries and 2^32 pieces, a view fewer than 2^32 queries.

#include "geometry.h"
#include "pixels.h"

// index [count, shifts^2]: row of the maps; query [count, shifts^2, columns]
// weighted: the last column is the sample's share of the query's area (LIIF's local ensemble)
extern "C" __global__ void make_queries(int count, int segments, const Segment *segment, int shifts, int columns,
                                        int weighted, int *index, float *query) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Segment &mine = segment_of(segment, segments, i);
    const uint32_t id = id_in(mine, (uint32_t)i);
    const int samples = shifts * shifts;
    float *asked = query + (long long)i * samples * columns;
    for (int s = 0; s < samples; ++s) {
        const Sample sample = sample_at(mine, id, s / shifts, s % shifts);
        index[i * samples + s] = sample.index;
        asked[s * columns] = sample.y;
        asked[s * columns + 1] = sample.x;
        for (int c = 2; c < columns - weighted; ++c)
            asked[s * columns + c] = mine.cols ? mine.constants[c - 2] : ratio_at(mine, id);
    }
    if (!weighted) return;
    float total = 0.0f;
    for (int s = 0; s < samples; ++s) total += fabsf(asked[s * columns] * asked[s * columns + 1]) + 1e-9f;
    for (int s = 0; s < samples; ++s) {
        const float *opposite = asked + (samples - 1 - s) * columns;
        asked[s * columns + columns - 1] = (fabsf(opposite[0] * opposite[1]) + 1e-9f) / total;
    }
}

// Where the gathered rows of a map go. ``ROWS`` of backends/tensorrt.py is the same in NumPy.
struct Rows {
    void *rows;  // [samples, pieces]
    int pieces;  // of a row
    int unused;
};

// maps: addresses of [pixels, pieces] each; index [samples]; each: pieces of a sample, of all maps; total: of all samples
template <typename Piece>
__device__ __forceinline__ void gather(uint32_t total, uint32_t each, const Rows *to, const uint64_t *maps, const int *index) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const uint32_t sample = i / each;
    uint32_t piece = i - sample * each;
    for (; piece >= (uint32_t)to->pieces; ++to, ++maps) piece -= to->pieces;
    const uint64_t row = (uint32_t)to->pieces;
    static_cast<Piece *>(to->rows)[sample * row + piece] =
        reinterpret_cast<const Piece *>(*maps)[(uint32_t)index[sample] * row + piece];
}

#define GATHER(BYTES, PIECE)                                                                                          \
    extern "C" __global__ void gather_rows_##BYTES(uint32_t total, uint32_t each, const Rows *to, const uint64_t *maps, \
                                                   const int *index) {                                                \
        gather<PIECE>(total, each, to, maps, index);                                                                  \
    }

GATHER(16, uint4)
GATHER(4, uint32_t)
GATHER(2, uint16_t)

// rgb [count, 3] in units of [0, 1]
extern "C" __global__ void store_pixels(int count, int segments, const Segment *segment, const float *rgb) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, own = i < count ? i : count - 1;  // every lane comes to the store
    const Segment &mine = segment_of(segment, segments, own);
    const float *const from = rgb + 3 * own;
    store_bgr(mine, (uint32_t)(i - threadIdx.x % LANES), id_in(mine, (uint32_t)own), i < count,
              {from[0], from[1], from[2], 0.0f});
}
