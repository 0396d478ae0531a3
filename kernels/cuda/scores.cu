// Scores to probabilities and the k most probable classes, in one launch: a block does one row.
//
// As outputs.softmax and outputs.top_k: float64 inside, float32 outside; of equal probabilities the lower index comes
// first; a row with NaN, infinity or only -infinity gives NaN everywhere and indices of -1.
//
// Macros: THREADS (a power of two).

__device__ inline bool is_before(float value, int index, float other, int other_index) {
    return value > other || (value == other && index < other_index);
}

extern "C" __global__ void __launch_bounds__(THREADS) softmax_top_k(
    const float* __restrict__ scores, int classes, double temperature, int k, float* __restrict__ probabilities,
    float* __restrict__ best, long long* __restrict__ indices) {
    __shared__ double partial[THREADS];
    __shared__ float values[THREADS];
    __shared__ int places[THREADS];
    const int thread = threadIdx.x;
    const float* row = scores + (long long)blockIdx.x * classes;
    float* given = probabilities + (long long)blockIdx.x * classes;

    double highest = -INFINITY; // NaN as soon as one is seen
    for (int i = thread; i < classes; i += THREADS) {
        const double score = row[i];
        if (score > highest || score != score) highest = score;
        if (highest != highest) break;
    }
    partial[thread] = highest;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (thread < step) {
            const double other = partial[thread + step];
            if (other > partial[thread] || other != other) partial[thread] = other;
        }
        __syncthreads();
    }
    highest = partial[0];
    __syncthreads();

    double sum = 0.0;
    for (int i = thread; i < classes; i += THREADS) sum += exp((row[i] - highest) / temperature);
    partial[thread] = sum;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (thread < step) partial[thread] += partial[thread + step];
        __syncthreads();
    }
    sum = partial[0];
    for (int i = thread; i < classes; i += THREADS)
        given[i] = (float)(exp((row[i] - highest) / temperature) / sum);
    const bool sure = sum == sum;
    __syncthreads(); // a thread reads below only what it has written, but the next rounds share `places`

    float last = INFINITY;
    int last_place = -1;
    for (int rank = 0; rank < k; ++rank) {
        float value = -1.0f;
        int place = classes;
        for (int i = thread; sure && i < classes; i += THREADS)
            if (is_before(last, last_place, given[i], i) && is_before(given[i], i, value, place)) {
                value = given[i];
                place = i;
            }
        values[thread] = value;
        places[thread] = place;
        __syncthreads();
        for (int step = THREADS / 2; step > 0; step /= 2) {
            if (thread < step && is_before(values[thread + step], places[thread + step], values[thread], places[thread])) {
                values[thread] = values[thread + step];
                places[thread] = places[thread + step];
            }
            __syncthreads();
        }
        last = values[0];
        last_place = places[0];
        __syncthreads();
        if (thread == 0) {
            best[(long long)blockIdx.x * k + rank] = sure ? last : NAN;
            indices[(long long)blockIdx.x * k + rank] = sure ? last_place : -1;
        }
    }
}
