// Frames on their way to the encoder.
//
// planar_rgb   frames uint8 or float32 [B, H, W, 3] BGR, levels float32 [B, L]
//              -> float32 [B, 3 + L, H, W]: RGB in [0, 1], then a constant plane for each level
//
// Reference: ``diinn.runtime.images.arrays.planar_rgb`` (equal). One thread a pixel; bytes: 3 or 12 read, 12 + 4 L written.

#include "pixels.h"

extern "C" __global__ void planar_rgb(long long pixels, int each, int bytes, int levels, const void *bgr,
                                      const float *strengths, float *planes) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;  // each: pixels of one frame
    const uint32_t mine = bytes ? load_bgr((const uint8_t *)bgr, i - threadIdx.x % LANES, pixels) : 0;
    if (i >= pixels) return;
    const long long frame = i / each, at = i % each;
    for (int channel = 0; channel < 3; ++channel) {
        const int from = 2 - channel;
        const float value = bytes ? (float)(mine >> 8 * from & 0xff) * (1.0f / 255.0f) : ((const float *)bgr)[3 * i + from];
        planes[(frame * (3 + levels) + channel) * each + at] = value;
    }
    for (int level = 0; level < levels; ++level)
        planes[(frame * (3 + levels) + 3 + level) * each + at] = strengths[frame * levels + level];
}
