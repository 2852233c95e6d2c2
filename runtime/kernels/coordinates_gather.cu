// Coordinates and gather: from a view's axes to the rows a decoder engine reads. The simplest form that is right.
//
// regular_queries  two axis tables (``grid.axis``, one pair of tables per shift of the layout) -> index and query
// gather_rows_N    rows of a map, N bytes a value, by index -> rows side by side
//
// Reference: ``diinn.runtime.grid.RegularQueries.fill`` (equal index, equal coordinates) and NumPy's take (equal bytes).
// Bytes a query, S samples of F numbers and C channels of b bytes: 4 S (1 + F) written, then 4 S read and 2 S C b moved.
// One thread a query in the first, one a value in the second; both end where the work ends.

#include <stdint.h>

// Queries first .. first + count of an output of ``width`` columns, row-major.
// rows, row_at [shifts, height], cols, col_at [shifts, width]: LR index and local coordinate of each output row, column
// constants [columns - 2 - weighted]: what follows the local coordinate, the same for every query
// weighted: the last column is the sample's share of the query's area (LIIF's local ensemble)
// index [count, shifts^2]: row of the map, ``offset`` added; query [count, shifts^2, columns]
extern "C" __global__ void regular_queries(long long first, int count, int height, int width, int source_width, int offset,
                                           int shifts, int columns, int weighted, const int *rows, const float *row_at,
                                           const int *cols, const float *col_at, const float *constants, int *index,
                                           float *query) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int row = (int)((first + i) / width), col = (int)((first + i) % width);
    const int samples = shifts * shifts;
    float *mine = query + (long long)i * samples * columns;
    for (int y = 0; y < shifts; ++y) {
        for (int x = 0; x < shifts; ++x) {
            float *sample = mine + (y * shifts + x) * columns;
            index[i * samples + y * shifts + x] = offset + rows[y * height + row] * source_width + cols[x * width + col];
            sample[0] = row_at[y * height + row];
            sample[1] = col_at[x * width + col];
            for (int c = 2; c < columns - weighted; ++c) sample[c] = constants[c - 2];
        }
    }
    if (!weighted) return;
    float total = 0.0f;
    for (int s = 0; s < samples; ++s) {
        const float *sample = mine + s * columns;
        total += fabsf(sample[0] * sample[1]) + 1e-9f;
    }
    for (int s = 0; s < samples; ++s) {
        const float *opposite = mine + (samples - 1 - s) * columns;
        mine[s * columns + columns - 1] = (fabsf(opposite[0] * opposite[1]) + 1e-9f) / total;
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
