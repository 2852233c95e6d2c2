// Frames on their way to the encoder.
//
// planar_rgb   frames uint8 or float32 [B, H, W, 3] BGR -> float32 [B, 3, H, W] RGB in [0, 1]
//
// Reference: ``diinn.runtime.frames.planar_rgb`` (equal). One thread a pixel; bytes: 3 or 12 read and 12 written.

#include "portable.h"

extern "C" __global__ void planar_rgb(long long pixels, int each, int bytes, const void *bgr, float *rgb) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;  // each: pixels of one frame
    if (i >= pixels) return;
    const long long frame = i / each, at = i % each;
    for (int channel = 0; channel < 3; ++channel) {
        const long long from = 3 * i + 2 - channel;
        const float value = bytes ? (float)((const uint8_t *)bgr)[from] * (1.0f / 255.0f) : ((const float *)bgr)[from];
        rgb[(frame * 3 + channel) * each + at] = value;
    }
}
