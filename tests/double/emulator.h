// A CPU that plays a GPU, for the kernels' own sources: every thread of a block is a fiber, resumed in an order that
// changes, and what threads do together (barriers, matrix products, asynchronous copies) happens when all have come.
// Copies are held back until somebody waits, shared memory begins as NaN. It shows wrong indices, layouts and missing
// waits; it does not show speed, nor races between threads that no barrier parts.

#pragma once

#define DIINN_EMULATED

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define BOTH inline
#define BOTH_DEVICE inline

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct Index { int x; };
static Index threadIdx, blockIdx, blockDim, gridDim;
uint4 shared[16384];  // 256 KiB

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(96 * 1024);
    bool done = false;
    std::vector<std::pair<uint4 *, const uint4 *>> copies;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current, arrived, generation;

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

inline void __syncthreads() {
    const int mine = generation;
    if (++arrived == blockDim.x) arrived = 0, ++generation;
    while (generation == mine) yield();
}

inline void __syncwarp() {}
template <typename Value>
Value __ldg(const Value *from) { return *from; }

inline void copy_async(uint4 *to, const uint4 *from) { fibers[current].copies.push_back({to, from}); }

inline void copies_done() {
    for (const auto &copy : fibers[current].copies) *copy.first = *copy.second;
    fibers[current].copies.clear();
}

inline float sine_of_reduced(float x) { return sinf(x); }

inline float from_half_slowly(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    const float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                       : ldexpf((float)fraction, -24);
    return half & 0x8000 ? -value : value;
}

static const std::vector<float> half_values = [] {
    std::vector<float> values(65536);
    for (int half = 0; half < 65536; ++half) values[half] = from_half_slowly((uint16_t)half);
    return values;
}();
inline float from_half(uint32_t half) { return half_values[half]; }

inline uint32_t to_half(float value) {  // round to nearest even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;
    if (size < 0x38800000) return sign | (uint32_t)rintf(fabsf(value) * 16777216.0f);  // in steps of 2^-24
    return sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
}

inline uint32_t pack_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }
inline float2 unpack_halves(uint32_t both) { return {from_half(both & 0xffff), from_half(both >> 16)}; }

// One warp's product: the last lane to come computes it for all, from the fragment layouts of PTX's m16n8k16.
struct Product {
    float (*sums[32])[4];
    uint4 a[32];
    uint32_t b[32][2];
    int arrived = 0, generation = 0;
};
static Product products[32];

inline void multiply(Product &p) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const uint32_t regs[4] = {p.a[lane].x, p.a[lane].y, p.a[lane].z, p.a[lane].w};
        for (int r = 0; r < 4; ++r) {
            const float2 pair = unpack_halves(regs[r]);
            a[g + r % 2 * 8][2 * t + r / 2 * 8] = pair.x, a[g + r % 2 * 8][2 * t + r / 2 * 8 + 1] = pair.y;
        }
        for (int r = 0; r < 2; ++r) {
            const float2 pair = unpack_halves(p.b[lane][r]);
            b[2 * t + 8 * r][g] = pair.x, b[2 * t + 8 * r + 1][g] = pair.y;
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int c = 0; c < 4; ++c) {
            const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
            float sum = (*p.sums[lane])[c];
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            (*p.sums[lane])[c] = sum;
        }
}

inline void mma_m16n8k16(float (&d)[4], const uint4 &a, uint32_t b_low, uint32_t b_high) {
    const int lane = current % 32;
    Product &p = products[current / 32];
    p.sums[lane] = &d, p.a[lane] = a, p.b[lane][0] = b_low, p.b[lane][1] = b_high;
    const int mine = p.generation;
    if (++p.arrived == 32) {
        multiply(p);
        p.arrived = 0, ++p.generation;
    }
    while (p.generation == mine) yield();
}

static const std::function<void()> *work;
static void run_fiber() {
    (*work)();
    fibers[current].done = true;
    yield();
}

// All threads of all blocks, with barriers.
inline void launch_blocks(int grid, int block, const std::function<void()> &kernel) {
    std::mt19937 random(1);
    work = &kernel;
    gridDim = {grid}, blockDim = {block};
    for (int b = 0; b < grid; ++b) {
        memset(shared, 0xff, sizeof shared);
        arrived = 0;
        fibers.resize(block);
        std::vector<int> order(block);
        for (int i = 0; i < block; ++i) {
            Fiber &fiber = fibers[i];
            fiber.done = false, fiber.copies.clear(), order[i] = i;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, run_fiber, 0);
        }
        for (int left = block; left;) {
            std::shuffle(order.begin(), order.end(), random);
            for (const int i : order) {
                if (fibers[i].done) continue;
                current = i, threadIdx = {i}, blockIdx = {b};
                swapcontext(&scheduler, &fibers[i].context);
                left -= fibers[i].done;
            }
        }
    }
}

template <typename... Types, size_t... I>
void call(void (*kernel)(Types...), void **arguments, std::index_sequence<I...>) {
    kernel(*(Types *)arguments[I]...);
}

// As cuLaunchKernel takes its arguments. Without shared memory there are no barriers: threads run one after another.
template <typename... Types>
void launch(void (*kernel)(Types...), int grid, int block, int shared_bytes, void **arguments) {
    const auto one = [&] { call(kernel, arguments, std::index_sequence_for<Types...>()); };
    if (shared_bytes > (int)sizeof shared) fprintf(stderr, "%d bytes of shared memory\n", shared_bytes), abort();
    if (shared_bytes) return launch_blocks(grid, block, one);
    gridDim = {grid}, blockDim = {block};
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) one();
}

#define LAUNCH(name) \
    extern "C" void launch_##name(int grid, int block, int bytes, void **arguments) { launch(name, grid, block, bytes, arguments); }
