// A recipe (kernels/recipe.py) over a batch of pictures of any sizes, in one launch: resize, crop, order of channels,
// arithmetic, element type, layout. A block makes TILE_W x TILE_H pixels of one picture's result; blocks are counted
// along x alone, row of tiles after row of tiles, since a grid's y ends at 65,535 and a result may be higher than that.
//
// Rows first, then columns, as the reference does it: the block resamples the rows that its pixels need into shared
// memory, CHUNK numbers at a time, and every thread adds what its pixel takes of them. So no picture is too wide, a
// number is read from memory about once a row of blocks, and sums run from the first tap to the last. Rows are read
// four bytes at a time: pitch and start are multiples of 4, and what lies between a row's end and its pitch is read,
// never used.
//
// Resampling is in float32 with fused multiply-adds; it differs from the reference by the order of a sum at most.
// The arithmetic behind it rounds after each step, as the reference does.
//
// Macros: CHANNELS 1 to 4, ELEMENT (0 uint8, 1 float32, 2 float16, 3 bfloat16), PLANAR, TILE_W, TILE_H,
// CHUNK (a multiple of 12).

struct Picture {                 // PICTURE in layout.py
    const unsigned char* pixels; // the window that is read
    const int* first_row;        // (kept_height,): of the window
    const float* row_weights;    // (kept_height, row_taps)
    const int* first_column;
    const float* column_weights;
    long long pitch;             // bytes from row to row
    int height, width;           // of the window
    int row_taps, column_taps;
    int kept_height, kept_width; // of what becomes of it
    int top, left;               // where the result has that
};

struct Operation {               // OPERATION in layout.py
    int kind;                    // 0 multiply, 1 subtract, 2 divide
    float numbers[4];            // of the channels of the result
};

#if ELEMENT == 0
typedef unsigned char Element;
__device__ inline Element narrowed(float value) { return (unsigned char)value; }
#elif ELEMENT == 1
typedef float Element;
__device__ inline Element narrowed(float value) { return value; }
#elif ELEMENT == 2
typedef unsigned short Element;
__device__ inline Element narrowed(float value) { return half_bits(value); }
#else
typedef unsigned short Element;
__device__ inline Element narrowed(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (Element)((bits + ((bits >> 16 & 1u) + 0x7fffu)) >> 16);
}
#endif

extern "C" __global__ void __launch_bounds__(TILE_W * TILE_H) resample(
    const Picture* __restrict__ pictures, const Operation* __restrict__ operations, int operation_count,
    const int* __restrict__ order, // for each channel of the result, the channel of the picture
    float fill, Element* __restrict__ result, int result_height, int result_width) {
    __shared__ float lines[TILE_H][CHUNK];
    const Picture picture = pictures[blockIdx.z];
    const int thread = threadIdx.y * TILE_W + threadIdx.x;
    const int tiles_across = (result_width - 1) / TILE_W + 1;
    const int tile_left = blockIdx.x % tiles_across * TILE_W, tile_top = blockIdx.x / tiles_across * TILE_H;
    const int result_x = tile_left + threadIdx.x, result_y = tile_top + threadIdx.y;
    const int x = result_x - picture.left, y = result_y - picture.top;
    const int tile_x = tile_left - picture.left, tile_y = tile_top - picture.top;
    const bool inside = x >= 0 && x < picture.kept_width && y >= 0 && y < picture.kept_height;
    const int x_from = max(tile_x, 0), x_to = min(tile_x + TILE_W, picture.kept_width);
    const int y_from = max(tile_y, 0), y_to = min(tile_y + TILE_H, picture.kept_height);

    float sums[CHANNELS];
    for (int c = 0; c < CHANNELS; ++c) sums[c] = 0.0f;

    if (x_from < x_to && y_from < y_to) { // the same for the whole block, so that all reach the barriers
        const int from = (picture.first_column[x_from] & ~3) * CHANNELS;
        const int to = min(picture.first_column[x_to - 1] + picture.column_taps, picture.width) * CHANNELS;
        for (int chunk = from; chunk < to; chunk += CHUNK) {
            const int groups = (min(CHUNK, to - chunk) + 3) / 4;
            for (int i = thread; i < groups * (y_to - y_from); i += TILE_W * TILE_H) {
                const int line = y_from + i / groups, at = i % groups * 4;
                const int first = picture.first_row[line];
                const int taps = min(picture.row_taps, picture.height - first);
                const float* weights = picture.row_weights + (long long)line * picture.row_taps;
                const unsigned char* pixels = picture.pixels + first * picture.pitch + chunk + at;
                float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
                for (int tap = 0; tap < taps; ++tap, pixels += picture.pitch) {
                    const unsigned four = *(const unsigned*)pixels;
                    const float weight = weights[tap];
                    a = fmaf(weight, (float)(four & 255u), a);
                    b = fmaf(weight, (float)(four >> 8 & 255u), b);
                    c = fmaf(weight, (float)(four >> 16 & 255u), c);
                    d = fmaf(weight, (float)(four >> 24), d);
                }
                float* target = &lines[line - tile_y][at];
                target[0] = a, target[1] = b, target[2] = c, target[3] = d;
            }
            __syncthreads();
            if (inside) {
                const int first = picture.first_column[x], column = chunk / CHANNELS;
                const int end = min(min(column + CHUNK / CHANNELS, picture.width), first + picture.column_taps);
                const float* weights = picture.column_weights + (long long)x * picture.column_taps;
                for (int at = max(first, column); at < end; ++at) {
                    const float weight = weights[at - first];
                    for (int c = 0; c < CHANNELS; ++c)
                        sums[c] = fmaf(weight, lines[threadIdx.y][(at - column) * CHANNELS + order[c]], sums[c]);
                }
            }
            __syncthreads();
        }
    }
    if (result_x >= result_width || result_y >= result_height) return;

    for (int c = 0; c < CHANNELS; ++c) {
        float value = inside ? floorf(sums[c] + 0.5f) : fill;
        for (int i = 0; i < operation_count; ++i) {
            const float number = operations[i].numbers[c];
            if (operations[i].kind == 0) value = __fmul_rn(value, number);
            else if (operations[i].kind == 1) value = __fsub_rn(value, number);
            else value = __fdiv_rn(value, number);
        }
        const long long item = blockIdx.z;
#if PLANAR
        result[((item * CHANNELS + c) * result_height + result_y) * result_width + result_x] = narrowed(value);
#else
        result[((item * result_height + result_y) * result_width + result_x) * CHANNELS + c] = narrowed(value);
#endif
    }
}
