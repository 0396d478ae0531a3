// CUDA on the host, as far as the kernels need it: a thread for each of a block's, a barrier for __syncthreads, and one
// block after the other. What is included below is the source that devices get, unchanged.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Three { unsigned x, y, z; };
static thread_local Three threadIdx, blockIdx;
static std::barrier<>* all;
static void __syncthreads() { all->arrive_and_wait(); }

using std::max;
using std::min;
static float __fmul_rn(float a, float b) { return a * b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }

// To nearest, halves to even; subnormals by way of a sum that rounds where they end.
static unsigned short half_bits(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x477ff000u) return sign | 0x7c00u;
    if (size < 0x38800000u) return sign | (__float_as_uint(std::fabs(value) + 0.5f) - 0x3f000000u);
    return sign | ((size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}

#include SOURCE

template <typename Kernel> static void launch(const int* grid, int width, int height, Kernel kernel) {
    std::barrier<> barrier(width * height);
    all = &barrier;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < width * height; ++thread)
        threads.emplace_back([=] {
            threadIdx = {unsigned(thread % width), unsigned(thread / width), 0};
            for (unsigned z = 0; z < unsigned(grid[2]); ++z)
                for (unsigned y = 0; y < unsigned(grid[1]); ++y)
                    for (unsigned x = 0; x < unsigned(grid[0]); ++x) {
                        blockIdx = {x, y, z};
                        kernel();
                        __syncthreads();
                    }
        });
    for (auto& thread : threads) thread.join();
}

#ifdef CHANNELS
extern "C" void host_resample(
    const int* grid, const Picture* pictures, const Operation* operations, int operation_count, const int* order,
    float fill, Element* result, int result_height, int result_width) {
    launch(grid, TILE_W, TILE_H, [=] {
        resample(pictures, operations, operation_count, order, fill, result, result_height, result_width);
    });
}
#else
extern "C" void host_softmax_top_k(
    const int* grid, const float* scores, int classes, double temperature, int k, float* probabilities, float* best,
    long long* indices) {
    launch(grid, THREADS, 1, [=] { softmax_top_k(scores, classes, temperature, k, probabilities, best, indices); });
}
#endif
