/* linear_stream.cu - products of bf16 or e4m3 weights on the tensor cores, rows in split form.
 *
 * W is the left operand, the rows the right one, so that few rows waste little: tile of 128 outputs
 * x 8, 16, 32 or 64 rows, K in steps of 64 or 128 through three or four stages of asynchronous
 * copies, 8 warps. Steps of 16 of K hold the same 16 k in an order of their own: lane t has
 * k 4t .. 4t + 3, so that each operand is one load. A block's scale multiplies the fp32 sum of each
 * 128 of K.
 *
 * Splits: K is cut into parts by the matrix's size alone, as many as fill a device with blocks of
 * one row tile. Each part has its block, and the last block of a tile adds them up in order.
 *
 * Cost: 4 n n_out n_in flops (2 for hi, 2 for lo); W is read once for up to 64 rows, from L2 for
 * the next ones. All the shared memory of a block is under 99 KiB, which sm_89 and sm_120 have too.
 */
#include "cuda/linear.cuh"

#include "tile/copy.cuh"
#include "tile/mma.cuh"

enum { SPLITS = 16 };

template <bool FP8, int ROWS> struct stream_shape {
    static const int columns = ROWS > 16 ? 2 : 1;             /* warps side by side over the rows */
    static const int m = 128 / 16 / (THREADS / 32 / columns); /* tiles of 16 outputs a warp */
    static const int tiles = ROWS / columns / 8;              /* tiles of 8 rows a warp */
    /* Of K: W comes in pieces of 128 bytes, but where rows would leave room for two stages. */
    static const int step = FP8 && ROWS <= 32 ? 128 : 64;
    static const int w_bytes = step * (FP8 ? 1 : 2), x_bytes = step * 4; /* of one row */
    static const int stage_bytes = OUTS * w_bytes + ROWS * x_bytes;
    static const int stages = ROWS > 32 ? (FP8 ? 4 : 3) : ROWS > 16 ? (FP8 ? 3 : 4) : 4;
    static const int bytes = stages * stage_bytes;
};

/* Chunks of 16 bytes change places within a row so that a warp's loads meet all banks. */
template <bool FP8, int STEP>
static __device__ __forceinline__ uint32_t w_place(uint32_t row, uint32_t chunk)
{
    if (!FP8)
        return row * STEP * 2 + 16 * (chunk ^ (row & 3u) << 1);
    return row * STEP + 16 * (chunk ^ (STEP == 128 ? row & 7u : row >> 1 & 3u));
}
template <int STEP> static __device__ __forceinline__ uint32_t x_place(uint32_t row, uint32_t chunk)
{
    return row * STEP * 4 + 16 * (chunk ^ (row & 1u) << 2);
}

static const size_t NO_ROW = ~(size_t)0;

template <bool FP8, int ROWS>
static __device__ __forceinline__ void
stream_load(unsigned char *stage, const struct matrix &w, const unsigned char *x,
            const size_t *from, uint32_t out0, uint32_t n_out, uint32_t n_in, uint32_t k0)
{
    typedef stream_shape<FP8, ROWS> S;
    const uint32_t per_row = S::w_bytes / 16, chunks = S::x_bytes / 16;
    const uint32_t values = FP8 ? 16 : 8; /* of a chunk */
    const unsigned char *data = (const unsigned char *)w.data;
#pragma unroll
    for (uint32_t j = 0; j < OUTS * per_row / THREADS; j++) {
        uint32_t i = j * THREADS + threadIdx.x;
        uint32_t r = i / per_row, c = i % per_row, k = k0 + c * values;
        bool there = out0 + r < n_out && k < n_in;
        size_t at = there ? ((size_t)(out0 + r) * n_in + k) * (FP8 ? 1 : 2) : 0;
        copy_start(stage + w_place<FP8, S::step>(r, c), data + at, there);
    }
    stage += OUTS * S::w_bytes;
#pragma unroll
    for (uint32_t j = 0; j < (ROWS * chunks + THREADS - 1) / THREADS; j++) {
        uint32_t i = j * THREADS + threadIdx.x;
        uint32_t r = i / chunks, c = i % chunks, k = k0 + c * 4;
        if (ROWS * chunks < THREADS && r >= ROWS)
            continue;
        bool there = from[r] != NO_ROW && k < n_in;
        copy_start(stage + x_place<S::step>(r, c), x + (there ? from[r] + 4 * (size_t)k : 0),
                   there);
    }
}

template <bool FP8, int ROWS>
static __device__ __forceinline__ void stream_multiply(const unsigned char *stage, float (*c)[4])
{
    typedef stream_shape<FP8, ROWS> S;
    const uint32_t over = THREADS / 32 / S::columns; /* warps over the outputs */
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t out = warp % over * (16 * S::m), row = warp / over * (8 * S::tiles);
    const unsigned char *x = stage + OUTS * S::w_bytes;
#pragma unroll
    for (uint32_t k = 0; k < S::step / 16; k++) {
        uint32_t a[S::m][4];
#pragma unroll
        for (uint32_t i = 0; i < 2 * S::m; i++) { /* i: tiles of 16 outputs, their halves */
            uint32_t r = out + i * 8 + g, *to = a[i / 2] + i % 2;
            if (FP8) {
                uint32_t two[2];
                e4m3_four_f16(two,
                              *(const uint32_t *)(stage + w_place<true, S::step>(r, k) + 4 * t));
                to[0] = two[0];
                to[2] = two[1];
            } else {
                const unsigned char *at =
                    stage + w_place<false, S::step>(r, 2 * k + t / 2) + t % 2 * 8;
                uint2 two = *(const uint2 *)at;
                to[0] = two.x;
                to[2] = two.y;
            }
        }
        uint4 v[S::tiles];
#pragma unroll
        for (uint32_t j = 0; j < S::tiles; j++)
            v[j] = *(const uint4 *)(x + x_place<S::step>(row + j * 8 + g, 4 * k + t));
#pragma unroll
        for (uint32_t part = 0; part < 2; part++) /* hi, lo */
#pragma unroll
            for (uint32_t j = 0; j < S::tiles; j++) {
                uint32_t b[2] = {part ? v[j].z : v[j].x, part ? v[j].w : v[j].y};
#pragma unroll
                for (uint32_t i = 0; i < S::m; i++) {
                    if (FP8)
                        mma_f16(c[S::m * j + i], a[i], b);
                    else
                        mma_bf16(c[S::m * j + i], a[i], b);
                }
            }
    }
}

/* Leaves this block's part, and in the tile's last block takes all of them, added in order. */
template <int N> static __device__ bool stream_join(const struct product_args &a, float (*sum)[4])
{
    __shared__ uint32_t before;
    uint32_t tile = blockIdx.y * gridDim.x + blockIdx.x;
    float4 *part = a.sums + (size_t)tile * a.n_splits * N * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++)
        part[((size_t)blockIdx.z * N + i) * THREADS] =
            float4{sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        before = atomicAdd(&a.arrived[tile], 1u);
    __syncthreads();
    if (before + 1 < a.n_splits)
        return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < N; i++)
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
#pragma unroll 4
    for (uint32_t s = 0; s < a.n_splits; s++)
#pragma unroll
        for (int i = 0; i < N; i++) {
            float4 p = __ldcg(&part[((size_t)s * N + i) * THREADS]);
            sum[i][0] += p.x;
            sum[i][1] += p.y;
            sum[i][2] += p.z;
            sum[i][3] += p.w;
        }
    if (threadIdx.x == 0)
        a.arrived[tile] = 0;
    return true;
}

/* A block has all of K, or of several parts the one of blockIdx.z. */
template <bool FP8, int ROWS>
static __global__ void __launch_bounds__(THREADS, 2) stream_kernel(struct product_args a)
{
    typedef stream_shape<FP8, ROWS> S;
    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ size_t from[ROWS];
    __shared__ float factor[ROWS];
    const int N = S::m * S::tiles;
    uint32_t tiles = parts_of(a.n_out, OUTS), tile = blockIdx.y % tiles;
    bool second = blockIdx.y >= tiles;
    uint32_t first, count, row0 = blockIdx.x * ROWS, out0 = tile * OUTS;
    struct matrix w = block_matrix(a, &first, &count, second);
    if (row0 >= count)
        return;
    if (threadIdx.x < ROWS) {
        size_t at = first + row0 + threadIdx.x;
        bool there = row0 + threadIdx.x < count;
        if (there) {
            at = a.row ? a.row[at] : at;
            at = a.part_outs ? at * a.x_pieces + blockIdx.z : at;
        }
        from[threadIdx.x] = there ? at * a.n_in * 4 : NO_ROW;
        factor[threadIdx.x] = FP8 && there ? a.factor[at] : 1.0f;
    }
    __syncthreads();
    bool alone = a.group || a.part_outs || a.n_splits == 1;
    uint32_t begin = alone ? 0 : blockIdx.z * a.split_k, k_blocks = parts_of(a.n_in, BLOCK_K);
    uint32_t end = alone || begin + a.split_k > a.n_in ? a.n_in : begin + a.split_k;
    uint32_t n_steps = (end - begin + S::step - 1) / S::step;
    const float *scale = FP8 ? w.scale + (size_t)tile * k_blocks : NULL;
    const unsigned char *x = (const unsigned char *)a.x;
    float acc[N][4] = {}, block[N][4] = {};
    float s = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < S::stages - 1; i++) {
        if (i < n_steps)
            stream_load<FP8, ROWS>(shared + i * S::stage_bytes, w, x, from, out0, a.n_out, a.n_in,
                                   begin + i * S::step);
        copy_close_group();
    }
    for (uint32_t i = 0; i < n_steps; i++) {
        uint32_t k = begin + i * S::step, next = i + S::stages - 1;
        if (FP8 && k % BLOCK_K == 0)
            s = scale[k / BLOCK_K];
        copy_wait<S::stages - 2>();
        __syncthreads();
        if (next < n_steps)
            stream_load<FP8, ROWS>(shared + next % S::stages * S::stage_bytes, w, x, from, out0,
                                   a.n_out, a.n_in, begin + next * S::step);
        copy_close_group();
        stream_multiply<FP8, ROWS>(shared + i % S::stages * S::stage_bytes, FP8 ? block : acc);
        bool last = i + 1 == n_steps;
        if (FP8 && (last || (k + S::step) % BLOCK_K == 0)) {
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    acc[j][q] = fmaf(block[j][q], s, acc[j][q]);
                    block[j][q] = 0.0f;
                }
        }
    }
    if (!alone && !stream_join<N>(a, acc))
        return;
    const uint32_t over = THREADS / 32 / S::columns;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t out = warp % over * (16 * S::m) + g, row = warp / over * (8 * S::tiles) + 2 * t;
    float *to = (float *)(second ? a.second : a.y);
    size_t y_row = a.part_outs ? a.y_row : a.n_out;
    to += a.part_outs ? (size_t)blockIdx.z * a.n_out : 0;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int q = 0; q < 4; q++) {
            uint32_t o = out0 + out + j % S::m * 16 + q / 2 * 8, r = row + j / S::m * 8 + q % 2;
            if (row0 + r >= count || o >= a.n_out)
                continue;
            float *y = to + (first + row0 + r) * y_row + o,
                  v = (acc[j][q] + 0.0f) * factor[r]; /* -0 as sums of parts */
            *y = a.add ? *y + v : v;
        }
}

template <bool FP8, int ROWS>
static void launch_stream(cudaStream_t s, const struct product_args &a, uint32_t rows, uint32_t z)
{
    dim3 grid(parts_of(rows, ROWS), parts_of(a.n_out, OUTS) * (a.second ? 2 : 1), z);
    CUDA_LAUNCH((stream_kernel<FP8, ROWS>), grid, THREADS, (stream_shape<FP8, ROWS>::bytes), s, a);
}

template <bool FP8>
static void by_rows(cudaStream_t s, struct product_args a, uint32_t rows, uint32_t likely,
                    uint32_t groups)
{
    bool whole = !a.group && !a.part_outs;
    a.n_splits = 1;
    if (whole) { /* how many parts: see above */
        uint32_t tiles = parts_of(a.n_out, OUTS), blocks = parts_of(a.n_in, BLOCK_K);
        uint32_t want = FILL_BLOCKS / tiles, most = blocks / 2;
        want = want > most ? most : want;
        want = want < 1 ? 1 : want > SPLITS ? (uint32_t)SPLITS : want;
        a.split_k = parts_of(blocks, want) * BLOCK_K;
        a.n_splits = parts_of(a.n_in, a.split_k);
    }
    uint32_t z = whole ? a.n_splits : groups;
    if (likely <= 8)
        launch_stream<FP8, 8>(s, a, rows, z);
    else if (likely <= 16)
        launch_stream<FP8, 16>(s, a, rows, z);
    else if (likely <= 32)
        launch_stream<FP8, 32>(s, a, rows, z);
    else
        launch_stream<FP8, 64>(s, a, rows, z);
}

void linear_stream(cudaStream_t s, const struct product_args *a, bool fp8, uint32_t rows,
                   uint32_t likely, uint32_t groups)
{
    if (fp8)
        by_rows<true>(s, *a, rows, likely, groups);
    else
        by_rows<false>(s, *a, rows, likely, groups);
}

template <bool FP8, int ROWS> static cudaError_t allow_stream(void)
{
    return cudaFuncSetAttribute(stream_kernel<FP8, ROWS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                stream_shape<FP8, ROWS>::bytes);
}

cudaError_t linear_stream_init(void)
{
    cudaError_t code[] = {allow_stream<true, 8>(),   allow_stream<true, 16>(),
                          allow_stream<true, 32>(),  allow_stream<true, 64>(),
                          allow_stream<false, 8>(),  allow_stream<false, 16>(),
                          allow_stream<false, 32>(), allow_stream<false, 64>()};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (code[i] != cudaSuccess)
            return code[i];
    return cudaSuccess;
}
