// A CPU that plays a GPU, for the kernels' own sources: every thread of a block is a fiber, and what threads do together
// (barriers, matrix products) happens when all have come. Shared memory begins as NaN. Two modes, since a GPU may do either:
//
// even     all threads go on in turns, in an order that changes; asynchronous copies are held back until somebody waits.
//          Shows what is read before it was waited for.
// skewed   one warp at a time runs ahead, as far as a barrier lets it; asynchronous copies are done at once. Shows what is
//          overwritten while another warp still reads it.
//
// Neither shows speed. What a lane reads of another one before it was written shows where lanes meet too late, in either.

#pragma once

#define DIINN_HOST

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#ifdef DIINN_SHOW_BOUNDS  // for whoever reads the preprocessed source
#define __launch_bounds__(threads, ...) launch_bounds[threads]
#else
#define __launch_bounds__(...)
#endif
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
static bool skewed, together;  // together: threads are fibers
static long progress;  // grows whenever a thread comes somewhere

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

inline void __syncthreads() {
    const int mine = generation;
    ++progress;
    if (++arrived == blockDim.x) arrived = 0, ++generation;
    while (generation == mine) yield();
}

// What lanes of one warp give each other: all of it is there once the last has come.
struct Meeting {
    uint32_t given[32], met[32];
    int arrived = 0, generation = 0;
};
static Meeting meetings[32];

struct Alone {};  // thrown where a thread meets others that do not run beside it

inline const uint32_t *meet(uint32_t given) {
    if (!together) throw Alone();
    Meeting &m = meetings[current / 32];
    m.given[current % 32] = given;
    const int mine = m.generation;
    ++progress;
    if (++m.arrived == 32) {
        memcpy(m.met, m.given, sizeof m.met);
        m.arrived = 0, ++m.generation;
    }
    while (m.generation == mine) yield();
    return m.met;
}

inline void __syncwarp() { meet(0); }
inline uint32_t of_lane(uint32_t value, int lane) { return meet(value)[lane & 31]; }  // it wraps
inline bool all_of_warp(bool says) {
    const uint32_t *const given = meet(says);
    return std::all_of(given, given + 32, [](uint32_t one) { return one; });
}

template <typename Value>
Value __ldg(const Value *from) { return *from; }

inline void copy_async(uint4 *to, const uint4 *from) {
    if (skewed) *to = *from;
    else fibers[current].copies.push_back({to, from});
}

inline void copies_done() {
    for (const auto &copy : fibers[current].copies) *copy.first = *copy.second;
    fibers[current].copies.clear();
}

struct Gate {
    uint64_t state;
};
struct Awaited {
    int count = 0, left = 0, coming = 0;  // coming: with copies that are held back
    uint32_t opened = 0;
    std::vector<std::pair<uint4 *, const uint4 *>> copies;

    void come() {
        if (--left == 0) left = count, ++opened;
        ++progress;
    }
    void copy() {
        for (const auto &one : copies) *one.first = *one.second;
        for (copies.clear(); coming; --coming) come();
    }
};
static std::map<const Gate *, Awaited> gates;

inline void open_for(Gate &gate, int count) { gates[&gate] = {count, count}; }
inline void arrive(Gate &gate) { gates.at(&gate).come(); }
inline void arrive_with_copies(Gate &gate) {
    Awaited &its = gates.at(&gate);
    auto &copies = fibers[current].copies;
    its.copies.insert(its.copies.end(), copies.begin(), copies.end());
    copies.clear();
    ++its.coming, ++progress;
    if (skewed) its.copy();
}
inline void wait_for_readers(const Gate &gate, uint32_t turn) {
    Awaited &its = gates.at(&gate);
    while (its.opened % 2 == turn) its.copy(), its.opened % 2 == turn ? yield() : (void)0;
}
inline void wait_for_copies(const Gate &gate, uint32_t turn) { wait_for_readers(gate, turn); }

inline float fast_sine(float x) { return sinf(x); }
inline float relu(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays

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

inline uint32_t byte_of(float x) { return (uint32_t)rintf(fminf(fmaxf(x, 0.0f), 255.0f)); }
inline uint32_t pack_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }
inline float2 unpack_halves(uint32_t both) { return {from_half(both & 0xffff), from_half(both >> 16)}; }

inline uint32_t relu_halves(uint32_t both) {
    const float2 values = unpack_halves(both);
    return pack_halves(relu(values.x), relu(values.y));
}

// One warp's product: the last lane to come computes it for all, from the fragment layouts of PTX's m16n8k16.
struct Product {
    float (*sums[32])[4];
    float added[32][4];
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
    for (int row = 0; row < 16; ++row) {
        float sums[8];  // by column: four lanes hold two each
        const auto lane = [&](int column) { return row % 8 * 4 + column / 2; };
        const auto at = [&](int column) { return row / 8 * 2 + column % 2; };
        for (int column = 0; column < 8; ++column) sums[column] = p.added[lane(column)][at(column)];
        for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
        for (int column = 0; column < 8; ++column) (*p.sums[lane(column)])[at(column)] = sums[column];
    }
}

inline void mma_m16n8k16(float (&d)[4], const float (&c)[4], const uint4 &a, uint32_t b_low, uint32_t b_high) {
    const int lane = current % 32;
    Product &p = products[current / 32];
    memcpy(p.added[lane], c, sizeof c);
    p.sums[lane] = &d, p.a[lane] = a, p.b[lane][0] = b_low, p.b[lane][1] = b_high;
    const int mine = p.generation;
    ++progress;
    if (++p.arrived == 32) {
        multiply(p);
        p.arrived = 0, ++p.generation;
    }
    while (p.generation == mine) yield();
}

static const std::function<void()> *work;
static void run_fiber() {
    (*work)();
    fibers[current].done = true, ++progress;
    yield();
}

static void resume(int thread) {
    if (fibers[thread].done) return;
    current = thread, threadIdx = {thread};
    swapcontext(&scheduler, &fibers[thread].context);
}

// One turn of some threads; whether any came further.
template <typename Threads>
bool turn(const Threads &threads) {
    const long before = progress;
    for (const int thread : threads) resume(thread);
    return progress != before;
}

static bool all_done() {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber &fiber) { return fiber.done; });
}

// Threads of a block until all are done; false where none comes further.
inline bool run_even(int block, std::mt19937 &random) {
    std::vector<int> order(block);
    for (int i = 0; i < block; ++i) order[i] = i;
    while (!all_done()) {
        std::shuffle(order.begin(), order.end(), random);
        if (!turn(order)) return false;
    }
    return true;
}

inline bool run_skewed(int block, std::mt19937 &random) {
    std::vector<std::vector<int>> warps((block + 31) / 32);
    for (int i = 0; i < block; ++i) warps[i / 32].push_back(i);
    while (!all_done()) {
        const auto &ahead = warps[random() % warps.size()];
        bool came = false;
        for (int turns = 1 + random() % 400; turns && turn(ahead); --turns) came = true;
        if (!came && std::none_of(warps.begin(), warps.end(), turn<std::vector<int>>)) return false;
    }
    return true;
}

// All threads of all blocks, with barriers; null, or what is wrong.
inline const char *launch_blocks(int grid, int block, int shared_bytes, const std::function<void()> &kernel) {
    std::mt19937 random(1);
    together = true;
    work = &kernel;
    gridDim = {grid}, blockDim = {block};
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
        memset(shared, 0xff, sizeof shared);
        arrived = 0;
        gates.clear();
        for (Product &product : products) product.arrived = 0;
        for (Meeting &meeting : meetings) meeting.arrived = 0;
        fibers.resize(block);
        for (Fiber &fiber : fibers) {
            fiber.done = false, fiber.copies.clear();
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, run_fiber, 0);
        }
        if (!(skewed ? run_skewed : run_even)(block, random)) return "threads wait at a barrier that others never reach";
        const char *const end = (const char *)shared + sizeof shared;
        if (std::any_of((const char *)shared + shared_bytes, end, [](char byte) { return byte != (char)0xff; }))
            return "written beyond the shared memory of the launch";
    }
    return nullptr;
}

template <typename... Types, size_t... I>
void call(void (*kernel)(Types...), void **arguments, std::index_sequence<I...>) {
    kernel(*(Types *)arguments[I]...);
}

// As cuLaunchKernel takes its arguments; null, or what is wrong. Without shared memory there are no barriers: threads run
// one after another; those of a kernel whose lanes meet all the same begin again as fibers.
template <typename... Types>
const char *launch(void (*kernel)(Types...), int grid, int block, int shared_bytes, void **arguments) {
    const auto one = [&] { call(kernel, arguments, std::index_sequence_for<Types...>()); };
    if (shared_bytes > (int)sizeof shared) return "more shared memory than the emulator has";
    if (shared_bytes) return launch_blocks(grid, block, shared_bytes, one);
    gridDim = {grid}, blockDim = {block}, together = false;
    try {
        for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) one();
    } catch (const Alone &) {
        return launch_blocks(grid, block, 0, one);
    }
    return nullptr;
}

// Bytes of each of a kernel's arguments, then 0.
template <typename... Types>
const int *argument_sizes(void (*)(Types...)) {
    static const int sizes[] = {(int)sizeof(Types)..., 0};
    return sizes;
}

extern "C" void emulator_skew(int wanted) { skewed = wanted; }

#define LAUNCH(name)                                                                           \
    extern "C" const char *launch_##name(int grid, int block, int bytes, void **arguments) {   \
        return launch(name, grid, block, bytes, arguments);                                    \
    }                                                                                          \
    extern "C" const int *arguments_##name() { return argument_sizes(name); }
