// The least time the CPU's decoder can take: its multiply-adds and sines alone, each at the rate that this processor
// reaches where operands are in registers and nothing waits for anything. No loads, no gather, no pixels.

#include "decoder.cpp"

// Loops whose results nobody needs are not to be removed.
#define KEPT(x) __asm__ volatile("" : "+m"(x))

extern "C" void diinn_floor(int width, int depth, long long queries) {
    constexpr int CHAINS = LANES == 8 ? 12 : 16;  // AVX2 has 16 registers
    const long long vectors = (queries + LANES - 1) / LANES;
    const long long products = vectors * (4 * width + 2 * (depth - 1) * (long long)width * width + 3 * width);
    Floats sums[CHAINS] = {}, by = 0.999f - Floats{}, plus = 0.5f - Floats{};
    KEPT(by);
    KEPT(plus);
    for (long long n = 0; n < products / CHAINS; ++n)
        for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * by + plus;
    KEPT(sums);
    Floats waves[CHAINS] = {};
    for (int c = 0; c < CHAINS; ++c) waves[c] = (float)c - Floats{};
    KEPT(waves);
    for (long long n = 0; n < vectors * width * depth / 4; ++n) {
        for (int c = 0; c < 4; ++c) waves[c] = sine(waves[c]);
        __asm__ volatile("");
    }
    KEPT(waves);
}
