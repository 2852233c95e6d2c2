// Pixels of a warp, one a lane: 32 that follow one another are 96 bytes of BGR, which are read and written as 24 words. What
// lies in the host's memory is not cached on a GPU that shares it, so that every byte would be an access of its own.

#pragma once

#include "geometry.h"
#include "tile.h"

// BGR bytes of each lane's pixel, those of a warp following one another from ``top`` on, a multiple of 4; ``count`` in all.
__device__ __forceinline__ uint32_t load_bgr(const uint8_t *bgr, long long top, long long count) {
    const int lane = threadIdx.x % LANES, byte = 3 * lane;
    if (top + LANES <= count) {
        const uint32_t word = lane < 24 ? ((const uint32_t *)(bgr + 3 * top))[lane] : 0;
        const uint32_t low = of_lane(word, byte / 4), high = of_lane(word, byte / 4 + 1);
        return (uint32_t)(((uint64_t)high << 32 | low) >> 8 * (byte % 4));
    }
    if (top + lane >= count) return 0;
    const uint8_t *const pixel = bgr + 3 * top + byte;
    return pixel[0] | pixel[1] << 8 | pixel[2] << 16;
}

// Store the pixel of each lane's query, those of a warp following one another from query ``top`` of the launch on: its RGB in
// units of [0, 1]; uint8 rounded to even and clamped, or float32. 96 bytes of one segment are written as 24 words.
__device__ __forceinline__ void store_bgr(const Segment &to, uint32_t top, uint32_t id, bool wanted, float4 rgb) {
    const int lane = threadIdx.x % LANES;
    if (to.outside && to.outside[id]) rgb.x = rgb.y = rgb.z = to.border;
    const uint32_t start = (uint32_t)to.start, at = 3 * (top + lane - start);
    if (!to.bytes) {
        float *const pixel = (float *)to.out + at;
        if (wanted) pixel[0] = rgb.z, pixel[1] = rgb.y, pixel[2] = rgb.x;
    }
    const uint32_t bgr = byte_of(rgb.z * 255.0f) | byte_of(rgb.y * 255.0f) << 8 | byte_of(rgb.x * 255.0f) << 16;
    if (all_of_warp(wanted && to.bytes && start <= top && (top - start) % 4 == 0)) {  // then it is one segment
        const int byte = 4 * lane, query = byte / 3, within = byte % 3;
        const uint32_t low = of_lane(bgr, query), high = of_lane(bgr, query + 1);
        if (lane < 24) ((uint32_t *)to.out)[(at - 3 * lane) / 4 + lane] = low >> 8 * within | high << (24 - 8 * within);
    } else if (wanted && to.bytes) {
        uint8_t *const pixel = (uint8_t *)to.out + at;
        pixel[0] = (uint8_t)bgr, pixel[1] = (uint8_t)(bgr >> 8), pixel[2] = (uint8_t)(bgr >> 16);
    }
}
