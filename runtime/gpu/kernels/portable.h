// What the kernels ask of the machine, each thing under one name: on a GPU here; on a CPU what is needed is defined before
// this file is included, with DIINN_HOST: by the tests' emulator, or by cpu/decoder.cpp, which takes the geometry alone.
//
// mma_m16n8k16  one warp: D[16, 8] = C[16, 8] + A[16, 16] B[16, 8], operands fp16, accumulated in fp32; fragments as PTX
//               lays them out; D and C may be the same
// copy_async    16 bytes from device to shared memory, done when copies_done returns (and for other threads at a barrier)
// Gate          in shared memory: opens each time that so many have come, and closes again; ``turn``: 0 for the first time, 1
//               for the second, 0 for the third. wait_for_copies waits for those whose threads came by arrive_with_copies,
//               wait_for_readers for those who came by ``arrive``. sm_75 has none: there all of a block meet in
//               wait_for_copies, after which nobody still reads what was waited for before
// of_lane       what another lane of the warp gives; all_of_warp: whether all its lanes say so. Every lane has to come

#pragma once

#ifdef __CUDACC_RTC__  // it has no C library's headers
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#ifndef DIINN_HOST

#define BOTH __host__ __device__ __forceinline__
#define BOTH_DEVICE __device__ __forceinline__

// As cuda_fp16.h does them, which NVRTC's wheel leaves out: kernels need no header of the toolkit's.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    uint32_t both;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else  // sm_75 converts one at a time
    asm("{.reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high};}"
        : "=r"(both)
        : "f"(low), "f"(high));
#endif
    return both;
}

__device__ __forceinline__ float2 unpack_halves(uint32_t both) {
    float2 values;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(values.x), "=f"(values.y)
        : "r"(both));
    return values;
}

__device__ __forceinline__ float fast_sine(float x) { return __sinf(x); }

// max(x, 0), and NaN where x is: what is wrong with a map must not come out as black.
__device__ __forceinline__ float relu(float x) {
#if __CUDA_ARCH__ >= 800
    float positive;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));
    return positive;
#else  // sm_75 has no such instruction
    return x < 0.0f ? 0.0f : x;
#endif
}

// ``relu`` of two halves.
__device__ __forceinline__ uint32_t relu_halves(uint32_t both) {
#if __CUDA_ARCH__ >= 800
    uint32_t positive;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(positive) : "r"(both), "r"(0u));
    return positive;
#else
    const float2 values = unpack_halves(both);
    return pack_halves(relu(values.x), relu(values.y));
#endif
}

// Rounded to even and clamped to 0 .. 255; 0 where x is NaN.
__device__ __forceinline__ uint32_t byte_of(float x) {
    uint32_t byte;
    asm("cvt.rni.u8.f32 %0, %1;" : "=r"(byte) : "f"(x));
    return byte;
}

__device__ __forceinline__ uint32_t of_lane(uint32_t value, int lane) { return __shfl_sync(~0u, value, lane); }
__device__ __forceinline__ bool all_of_warp(bool says) { return __all_sync(~0u, says); }

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const float (&c)[4], const uint4 &a, uint32_t b_low,
                                             uint32_t b_high) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_low), "r"(b_high), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else  // sm_75 has half of it
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(b_low), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.z), "r"(a.w), "r"(b_high));
#endif
}

__device__ __forceinline__ void copy_async(uint4 *shared, const uint4 *global) {
#if __CUDA_ARCH__ >= 800
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global));
#else
    *shared = *global;
#endif
}

__device__ __forceinline__ void copies_done() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

struct Gate {
    uint64_t state;
};

__device__ __forceinline__ uint32_t address_of(const Gate &gate) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(&gate));
}

// By one thread, before a barrier.
__device__ __forceinline__ void open_for(Gate &gate, int count) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_of(gate)), "r"(count) : "memory");
#endif
}

__device__ __forceinline__ void arrive(Gate &gate) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(address_of(gate)) : "memory");
#endif
}

// Once the thread's copies so far are done; it does not wait for them.
__device__ __forceinline__ void arrive_with_copies(Gate &gate) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address_of(gate)) : "memory");
#endif
}

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void wait_for(const Gate &gate, uint32_t turn) {
    uint32_t open;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#else
        asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
#endif
                     : "=r"(open)
                     : "r"(address_of(gate)), "r"(turn)
                     : "memory");
    } while (!open);
}
#endif

__device__ __forceinline__ void wait_for_copies(const Gate &gate, uint32_t turn) {
#if __CUDA_ARCH__ >= 800
    wait_for(gate, turn);
#else
    __syncthreads();
#endif
}

__device__ __forceinline__ void wait_for_readers(const Gate &gate, uint32_t turn) {
#if __CUDA_ARCH__ >= 800
    wait_for(gate, turn);
#endif
}

#endif
