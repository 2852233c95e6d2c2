// Coordinates and gather: from views to the rows a decoder engine reads, and from its RGB to pixels.
//
// make_queries     segments of several views and cameras -> index and query
// gather_rows_N    rows of a map, N bytes a value, by index -> rows side by side
// store_pixels     RGB of the queries -> each segment's BGR pixels
//
// Reference: ``diinn.runtime.geometry.grid``'s ``fill`` (equal index, equal coordinates), NumPy's take (equal bytes),
// ``backends.base.Segment.write`` (equal pixels).
// Bytes a query, S samples of F numbers and C channels of b bytes: 4 S (1 + F) written, then 4 S read and 2 S C b moved,
// then 12 read and 3 or 12 written.
// One thread a query in the first and last, one a 32-bit word in the second; all end where the work ends.

#include "geometry.h"

// index [count, shifts^2]: row of the maps; query [count, shifts^2, columns]
// weighted: the last column is the sample's share of the query's area (LIIF's local ensemble)
extern "C" __global__ void make_queries(int count, int segments, const Segment *segment, int shifts, int columns,
                                        int weighted, int *index, float *query) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Segment &mine = segment_of(segment, segments, i);
    const long long id = id_in(mine, i);
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

// map [pixels, channels], index [count], rows [count, channels]; values = count * channels
template <typename Value>
__device__ void gather(long long values, int channels, const Value *map, const int *index, Value *rows) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= values) return;
    rows[i] = map[(long long)index[i / channels] * channels + i % channels];
}

extern "C" __global__ void gather_rows_4(long long values, int channels, const uint32_t *map, const int *index,
                                         uint32_t *rows) {
    gather(values, channels, map, index, rows);
}

extern "C" __global__ void gather_rows_2(long long values, int channels, const uint16_t *map, const int *index,
                                         uint16_t *rows) {
    gather(values, channels, map, index, rows);
}

// rgb [count, 3] in units of [0, 1]
extern "C" __global__ void store_pixels(int count, int segments, const Segment *segment, const float *rgb) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Segment &mine = segment_of(segment, segments, i);
    const long long id = id_in(mine, i);
    for (int channel = 0; channel < 3; ++channel) store(mine, i, id, channel, rgb[3 * i + channel]);
}
