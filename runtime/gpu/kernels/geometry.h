// Where an output pixel's query comes from: the same for every kernel, and for the tests on a CPU.
//
// Reference: ``diinn.runtime.geometry.grid``. A regular grid's axis tables are made there, in exact integers, and looked up here;
// a map's positions are made there once and read here.

#pragma once

#include "portable.h"

// Queries of one view over one frame, as a launch takes them; several stand one after another. ``SEGMENT`` of
// geometry/segments.py is the same in NumPy.
struct Segment {
    long long start;         // its first query among those of the launch
    long long first;         // which query of its view that is, where ``ids`` is null
    const int *ids;          // which query of its view each one is; null if they follow one another
    const int *rows;         // regular: LR row of each output row, [shifts, height]. Map: row of the maps, [height * width]
    const float *row_at;     // regular: local coordinate of each output row, [shifts, height]. Map: (y, x), [height * width, 2]
    const int *cols;         // regular: LR column of each output column, [shifts, width]. Null for a map
    const float *col_at;     // regular: local coordinate of each output column, [shifts, width]
    const float *constants;  // regular: what follows the position in every query. Map: the area ratio, [height * width]
    const uint8_t *outside;  // which queries of the view take ``border``, [height * width]; null if none do
    void *out;               // [count, 3] BGR: uint8 if ``bytes``, else float32
    int height, width;       // of the view
    int source_width;        // of the frame
    int offset;              // the frame's first row in the maps
    float border;            // units of [0, 1]
    int bytes;
};

// Queries are numbered by ``Id``: long long, or where a launch and a view hold fewer what is cheaper on a GPU.

// The segment of query ``i`` of a launch.
template <typename Id>
BOTH const Segment &segment_of(const Segment *segments, int count, Id i) {
    int found = 0;
    while (found + 1 < count && (Id)segments[found + 1].start <= i) ++found;
    return segments[found];
}

// Which query of its view query ``i`` of the launch is.
template <typename Id>
BOTH Id id_in(const Segment &segment, Id i) {
    const Id at = i - (Id)segment.start;
    return segment.ids ? (Id)segment.ids[at] : (Id)segment.first + at;
}

struct Sample {
    int index;   // row of the maps
    float y, x;  // local coordinates
};

// Sample (along_y, along_x) of query ``id``; a map has but one.
template <typename Id>
BOTH Sample sample_at(const Segment &segment, Id id, int along_y, int along_x) {
    if (!segment.cols) return {segment.offset + segment.rows[id], segment.row_at[2 * id], segment.row_at[2 * id + 1]};
    const Id down = id / (Id)segment.width;
    const Id row = down + (Id)(along_y * segment.height);
    const Id col = id - down * (Id)segment.width + (Id)(along_x * segment.width);
    return {segment.offset + segment.rows[row] * segment.source_width + segment.cols[col], segment.row_at[row],
            segment.col_at[col]};
}

// The area ratio of query ``id`` (DIINN's layout).
template <typename Id>
BOTH float ratio_at(const Segment &segment, Id id) {
    return segment.cols ? segment.constants[0] : segment.constants[id];
}
