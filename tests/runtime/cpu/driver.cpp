// Runs decoder.cpp on a case from a file: under sanitizers, or under QEMU for another processor. test_decoder.py writes the
// case, as blobs (length, bytes) that are allocated one by one, so that a step beyond any of them is seen.

#include "decoder.cpp"

#include <stdio.h>
#include <stdlib.h>

static void *blob(FILE *file, long long *size = nullptr) {
    long long length;
    if (fread(&length, 8, 1, file) != 1) exit(2);
    void *data = length ? malloc(length) : nullptr;
    if (length && fread(data, 1, length, file) != (size_t)length) exit(2);
    if (size) *size = length;
    return data;
}

int main(int, char **names) {
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    if (!in || !out) return 2;
    int *facts = (int *)blob(in);  // K, N, segments, size of a piece
    const float *weights[5];
    for (const float *&w : weights) w = (const float *)blob(in);
    const Decoder decoder = {facts[0], facts[1], weights[0], weights[1], weights[2], weights[3], weights[4]};
    const float **maps = (const float **)malloc(facts[1] * sizeof(float *));
    for (int n = 0; n < facts[1]; ++n) maps[n] = (const float *)blob(in);
    Segment *segments = (Segment *)malloc(facts[2] * sizeof(Segment));
    long long *sizes = (long long *)malloc(facts[2] * 8), count = 0;
    for (int n = 0; n < facts[2]; ++n) {
        Segment *record = (Segment *)blob(in);
        Segment &s = segments[n] = *record;
        const long long *queries = (const long long *)blob(in);
        count = s.start + *queries;
        s.ids = (const int *)blob(in), s.rows = (const int *)blob(in), s.row_at = (const float *)blob(in);
        s.cols = (const int *)blob(in), s.col_at = (const float *)blob(in), s.constants = (const float *)blob(in);
        s.outside = (const uint8_t *)blob(in), s.out = blob(in, sizes + n);
    }
    for (long long begin = 0; begin < count; begin += facts[3])
        diinn_decode(&decoder, maps, segments, facts[2], begin, begin + facts[3] < count ? begin + facts[3] : count);
    for (int n = 0; n < facts[2]; ++n) fwrite(segments[n].out, 1, sizes[n], out);
    fclose(out);
    return 0;
}
