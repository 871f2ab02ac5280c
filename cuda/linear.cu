/* linear.cu - y[n, n_out] = or += x[n, n_in] W^T, for one matrix or a group of them.
 *
 * Four kernels, chosen by W's type and width and the precision alone, so a row's bits never depend
 * on n:
 * - stream: bf16 or e4m3 weights in the fast precision. W is the left operand of the tensor cores,
 * the rows the right one, so that few rows waste little: tile of 128 outputs x 8, 16, 32 or 64
 * rows, K in steps of 64 through three to six stages of asynchronous copies, warps of 32 outputs x
 * at most 32 rows. Rows are split into bf16 hi + lo as they leave shared memory, hi multiplied
 * first. Steps of 16 of K hold the same 16 k in an order of their own: lane t has k 4t .. 4t + 3,
 * so that each operand is one load. e4m3 codes are exact in bf16; their block's scale multiplies
 * the fp32 sum of each 128 of K.
 * - tensor: the same for widths that 16-byte copies do not divide.
 * - thin: fp32 arithmetic for the router: tile of 8 x 8, 256 threads share K.
 * - plain: fp32 arithmetic for everything else; tile of 32 x 32, K in steps of 32.
 *
 * Splits: K is cut into parts by the matrix's size alone, as many as fill a device with blocks of
 * one row tile. For few rows each part has its block and the last block of a tile adds them up in
 * order; for many rows a block runs all parts and adds the same sums in the same order.
 *
 * Cost: 4 n n_out n_in flops (2 for hi, 2 for lo); W is read once for up to 64 rows, from L2 for
 * the next ones. All the shared memory of a block is under 99 KiB, which sm_89 and sm_120 have too.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"
#include "tile/copy.cuh"
#include "tile/mma.cuh"
#include "tile/weight.cuh"

enum { BLOCK_K = 128, TM = 64, TN = 64, TK = 32, PAD = 8, PLAIN = 32, THIN = 8 };
static_assert(BLOCK_K % TK == 0, "a scale belongs to whole steps of K");
static_assert((TK + PAD) % 8 == 0, "rows of a tile stay aligned to 16 bytes");
enum { OUTS = 128, STEP = 64, SPLITS = 16, SPLIT_ROWS = 128, FILL_BLOCKS = 264 };
static_assert((int)OUTS == (int)BLOCK_K && BLOCK_K % STEP == 0, "a tile's step has one scale");
/* Most tiles times parts of a matrix that is split: splits_of() is under (264 + t / 2) / t, and 1
 * from 176 tiles on. */
enum { MAX_SPLIT_TILES = 176, MAX_PARTS = 264 + MAX_SPLIT_TILES / 2 };

struct linear_scratch {
    float4 *part;      /* [parts][sums of a block], as its threads hold them */
    uint32_t *arrived; /* [tiles] blocks that have left their part; 0 between launches */
};

struct product_args {
    const struct matrix *group; /* NULL: `one` */
    struct matrix one;
    uint32_t w_step;
    const uint32_t *start, *row;
    const void *x;
    void *y;
    uint32_t n, n_out, n_in;
    bool add;
    uint32_t n_splits, split_k; /* parts of K, and how much of it each has */
    struct linear_scratch scratch;
};

/* The rows of this block's group: first row of y and count. */
static __device__ __forceinline__ struct matrix block_matrix(const struct product_args &a,
                                                             uint32_t *first, uint32_t *count)
{
    if (!a.group) {
        *first = 0;
        *count = a.n;
        return a.one;
    }
    *first = a.start[blockIdx.z];
    *count = a.start[blockIdx.z + 1] - *first;
    return a.group[(size_t)blockIdx.z * a.w_step];
}

/* ---- stream ---- */

template <bool FP8, int ROWS> struct stream_shape {
    static const int columns = ROWS > 32 ? 2 : 1; /* warps side by side over the rows */
    static const int threads = 128 * columns, tiles = ROWS / columns / 8;
    static const int w_bytes = STEP * (FP8 ? 1 : 2), x_bytes = STEP * 4; /* of one row */
    static const int stage_bytes = OUTS * w_bytes + ROWS * x_bytes;
    static const int stages = ROWS > 32 ? (FP8 ? 4 : 3) : (FP8 ? 6 : 4);
    static const int bytes = stages * stage_bytes;
};

/* Chunks of 16 bytes change places within a row so that a warp's loads meet all banks. */
template <bool FP8> static __device__ __forceinline__ uint32_t w_place(uint32_t row, uint32_t chunk)
{
    return FP8 ? row * STEP + 16 * (chunk ^ (row >> 1 & 3u))
               : row * STEP * 2 + 16 * (chunk ^ (row & 3u) << 1);
}
static __device__ __forceinline__ uint32_t x_place(uint32_t row, uint32_t chunk)
{
    return row * STEP * 4 + 16 * (chunk ^ (row & 1u) << 2);
}

static const size_t NO_ROW = ~(size_t)0;

template <bool FP8, int ROWS>
static __device__ __forceinline__ void
stream_load(unsigned char *stage, const struct matrix &w, const float *x, const size_t *from,
            uint32_t out0, uint32_t n_out, uint32_t n_in, uint32_t k0)
{
    typedef stream_shape<FP8, ROWS> S;
    const uint32_t per_row = S::w_bytes / 16, values = FP8 ? 16 : 8; /* of a chunk */
    const unsigned char *data = (const unsigned char *)w.data;
    static_assert(OUTS * per_row % S::threads == 0 && ROWS * 16 % S::threads == 0, "whole rounds");
#pragma unroll
    for (uint32_t j = 0; j < OUTS * per_row / S::threads; j++) {
        uint32_t i = j * S::threads + threadIdx.x;
        uint32_t r = i / per_row, c = i % per_row, k = k0 + c * values;
        bool there = out0 + r < n_out && k < n_in;
        size_t at = there ? ((size_t)(out0 + r) * n_in + k) * (FP8 ? 1 : 2) : 0;
        copy_start(stage + w_place<FP8>(r, c), data + at, there);
    }
    stage += OUTS * S::w_bytes;
#pragma unroll
    for (uint32_t j = 0; j < ROWS * 16 / S::threads; j++) {
        uint32_t i = j * S::threads + threadIdx.x;
        uint32_t r = i / 16, c = i % 16, k = k0 + c * 4;
        bool there = from[r] != NO_ROW && k < n_in;
        copy_start(stage + x_place(r, c), x + (there ? from[r] + k : 0), there);
    }
}

template <bool FP8, int ROWS>
static __device__ __forceinline__ void stream_multiply(const unsigned char *stage, float (*c)[4])
{
    typedef stream_shape<FP8, ROWS> S;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t out = warp % 4 * 32, row = warp / 4 * (ROWS / S::columns);
    const unsigned char *x = stage + OUTS * S::w_bytes;
#pragma unroll
    for (uint32_t k = 0; k < STEP / 16; k++) {
        uint32_t a[2][4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) { /* i: two tiles of 16 outputs, their halves */
            uint32_t r = out + i * 8 + g, *to = a[i / 2] + i % 2;
            if (FP8) {
                uint32_t two[2];
                e4m3_four(two, *(const uint32_t *)(stage + w_place<true>(r, k) + 4 * t));
                to[0] = two[0];
                to[2] = two[1];
            } else {
                const unsigned char *at = stage + w_place<false>(r, 2 * k + t / 2) + t % 2 * 8;
                uint2 two = *(const uint2 *)at;
                to[0] = two.x;
                to[2] = two.y;
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < S::tiles; j++) {
            float4 v = *(const float4 *)(x + x_place(row + j * 8 + g, 4 * k + t));
            struct bf16_twos p = bf16_split_two(v.x, v.y), q = bf16_split_two(v.z, v.w);
            uint32_t hi[2] = {p.hi, q.hi}, lo[2] = {p.lo, q.lo};
            mma_bf16(c[2 * j], a[0], hi);
            mma_bf16(c[2 * j + 1], a[1], hi);
            mma_bf16(c[2 * j], a[0], lo);
            mma_bf16(c[2 * j + 1], a[1], lo);
        }
    }
}

/* Leaves this block's part, and in the tile's last block takes all of them, added in order. */
template <int N, int THREADS>
static __device__ bool stream_join(const struct product_args &a, float (*sum)[4])
{
    __shared__ uint32_t before;
    uint32_t tile = blockIdx.y * gridDim.x + blockIdx.x;
    float4 *part = a.scratch.part + (size_t)tile * a.n_splits * N * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++)
        part[((size_t)blockIdx.z * N + i) * THREADS] =
            float4{sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        before = atomicAdd(&a.scratch.arrived[tile], 1u);
    __syncthreads();
    if (before + 1 < a.n_splits)
        return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < N; i++)
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
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
        a.scratch.arrived[tile] = 0;
    return true;
}

/* FOLD: the block runs all parts of K; otherwise one, blockIdx.z if there are several. */
template <bool FP8, int ROWS, bool FOLD>
static __global__ void __launch_bounds__(stream_shape<FP8, ROWS>::threads)
    stream_kernel(struct product_args a)
{
    typedef stream_shape<FP8, ROWS> S;
    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ size_t from[ROWS];
    const int N = 2 * S::tiles;
    uint32_t first, count, row0 = blockIdx.x * ROWS, out0 = blockIdx.y * OUTS;
    struct matrix w = block_matrix(a, &first, &count);
    if (row0 >= count)
        return;
    if (threadIdx.x < ROWS) {
        size_t at = first + row0 + threadIdx.x;
        bool there = row0 + threadIdx.x < count;
        from[threadIdx.x] = there ? (a.row ? a.row[at] : at) * a.n_in : NO_ROW;
    }
    __syncthreads();
    bool alone = FOLD || a.group || a.n_splits == 1;
    uint32_t begin = alone ? 0 : blockIdx.z * a.split_k, k_blocks = parts_of(a.n_in, BLOCK_K);
    uint32_t end = alone || begin + a.split_k > a.n_in ? a.n_in : begin + a.split_k;
    uint32_t n_steps = (end - begin + STEP - 1) / STEP;
    const float *scale = FP8 ? w.scale + (size_t)blockIdx.y * k_blocks : NULL;
    const float *x = (const float *)a.x;
    float acc[N][4] = {}, block[N][4] = {}, total[N][4] = {};
    float s = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < S::stages - 1; i++) {
        if (i < n_steps)
            stream_load<FP8, ROWS>(shared + i * S::stage_bytes, w, x, from, out0, a.n_out, a.n_in,
                                   begin + i * STEP);
        copy_close_group();
    }
    for (uint32_t i = 0; i < n_steps; i++) {
        uint32_t k = begin + i * STEP, next = i + S::stages - 1;
        if (FP8 && k % BLOCK_K == 0)
            s = scale[k / BLOCK_K];
        copy_wait<S::stages - 2>();
        __syncthreads();
        if (next < n_steps)
            stream_load<FP8, ROWS>(shared + next % S::stages * S::stage_bytes, w, x, from, out0,
                                   a.n_out, a.n_in, begin + next * STEP);
        copy_close_group();
        stream_multiply<FP8, ROWS>(shared + i % S::stages * S::stage_bytes, FP8 ? block : acc);
        bool last = i + 1 == n_steps;
        if (FP8 && (last || (k + STEP) % BLOCK_K == 0)) {
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    acc[j][q] = fmaf(block[j][q], s, acc[j][q]);
                    block[j][q] = 0.0f;
                }
        }
        if (FOLD && (last || (k + STEP) % a.split_k == 0)) {
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    total[j][q] += acc[j][q];
                    acc[j][q] = 0.0f;
                }
        }
    }
    if (!FOLD) {
        if (!alone && !stream_join<N, S::threads>(a, acc))
            return;
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int q = 0; q < 4; q++)
                total[j][q] = acc[j][q] + 0.0f; /* -0 as the sums of parts have it */
    }
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t out = out0 + warp % 4 * 32 + g, row = row0 + warp / 4 * (ROWS / S::columns) + 2 * t;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int q = 0; q < 4; q++) {
            uint32_t o = out + j % 2 * 16 + q / 2 * 8, r = row + j / 2 * 8 + q % 2;
            if (r >= count || o >= a.n_out)
                continue;
            float *y = (float *)a.y + (size_t)(first + r) * a.n_out + o;
            *y = a.add ? *y + total[j][q] : total[j][q];
        }
}

/* ---- odd widths ---- */

template <bool FP8>
static __global__ void __launch_bounds__(128) tensor_kernel(struct product_args a)
{
    __shared__ uint16_t xs[TM][TK + PAD], xl[TM][TK + PAD], ws[TN][TK + PAD];
    uint32_t first, count, row0 = blockIdx.y * TM, out0 = blockIdx.x * TN;
    struct matrix w = block_matrix(a, &first, &count);
    if (row0 >= count)
        return;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float acc[TN / 8][4] = {}, part[TN / 8][4] = {};
    for (uint32_t k0 = 0; k0 < a.n_in; k0 += TK) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < TM * TK; i += 128) {
            uint32_t r = i / TK, k = k0 + i % TK;
            struct bf16_pair v = {0, 0};
            if (row0 + r < count && k < a.n_in) {
                size_t at = first + row0 + r;
                at = a.row ? a.row[at] : at;
                v = bf16_split(((const float *)a.x)[at * a.n_in + k]);
            }
            xs[r][i % TK] = v.hi;
            xl[r][i % TK] = v.lo;
        }
        for (uint32_t i = threadIdx.x; i < TN * TK; i += 128) {
            uint32_t o = out0 + i / TK, k = k0 + i % TK;
            uint16_t v = 0;
            if (o < a.n_out && k < a.n_in) {
                size_t at = (size_t)o * a.n_in + k;
                v = FP8 ? (uint16_t)(__float_as_uint(e4m3_value(((const uint8_t *)w.data)[at])) >>
                                     16)
                        : ((const uint16_t *)w.data)[at];
            }
            ws[i / TK][i % TK] = v;
        }
        __syncthreads();
        for (uint32_t k = 0; k < TK; k += 16) {
            uint32_t fa[4], fl[4], r = warp * 16 + g;
            fa[0] = *(const uint32_t *)&xs[r][k + 2 * t];
            fa[1] = *(const uint32_t *)&xs[r + 8][k + 2 * t];
            fa[2] = *(const uint32_t *)&xs[r][k + 2 * t + 8];
            fa[3] = *(const uint32_t *)&xs[r + 8][k + 2 * t + 8];
            fl[0] = *(const uint32_t *)&xl[r][k + 2 * t];
            fl[1] = *(const uint32_t *)&xl[r + 8][k + 2 * t];
            fl[2] = *(const uint32_t *)&xl[r][k + 2 * t + 8];
            fl[3] = *(const uint32_t *)&xl[r + 8][k + 2 * t + 8];
            for (uint32_t j = 0; j < TN / 8; j++) {
                uint32_t fb[2];
                fb[0] = *(const uint32_t *)&ws[j * 8 + g][k + 2 * t];
                fb[1] = *(const uint32_t *)&ws[j * 8 + g][k + 2 * t + 8];
                mma_bf16(FP8 ? part[j] : acc[j], fa, fb);
                mma_bf16(FP8 ? part[j] : acc[j], fl, fb);
            }
        }
        if (FP8 && ((k0 + TK) % BLOCK_K == 0 || k0 + TK >= a.n_in)) {
            float s = w.scale[(size_t)(out0 / 128) * ((a.n_in + 127) / 128) + k0 / BLOCK_K];
            for (uint32_t j = 0; j < TN / 8; j++)
                for (int i = 0; i < 4; i++) {
                    acc[j][i] = fmaf(part[j][i], s, acc[j][i]);
                    part[j][i] = 0.0f;
                }
        }
    }
    for (uint32_t j = 0; j < TN / 8; j++)
        for (int i = 0; i < 4; i++) {
            uint32_t r = row0 + warp * 16 + g + 8 * (i / 2), o = out0 + j * 8 + 2 * t + i % 2;
            if (r >= count || o >= a.n_out)
                continue;
            float *y = (float *)a.y + (size_t)(first + r) * a.n_out + o;
            *y = a.add ? *y + acc[j][i] : acc[j][i];
        }
}

/* ---- fp32 ---- */

/* ROWS 1 or THIN: a row's sum is the same in both. */
template <int ROWS> static __global__ void __launch_bounds__(256) thin_kernel(struct product_args a)
{
    __shared__ float part[256 / 32][THIN * ROWS];
    uint32_t out0 = blockIdx.x * THIN, row0 = blockIdx.y * ROWS, warp = threadIdx.x / 32;
    uint32_t n = a.n - row0 < ROWS ? a.n - row0 : ROWS;
    const float *x = (const float *)a.x + (size_t)row0 * a.n_in;
    float acc[THIN][ROWS] = {};
#pragma unroll 2
    for (uint32_t k = threadIdx.x; k < a.n_in; k += 256) {
        float v[ROWS];
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++)
            v[r] = r < n ? x[(size_t)r * a.n_in + k] : 0.0f;
#pragma unroll
        for (uint32_t o = 0; o < THIN; o++) {
            float w = out0 + o < a.n_out ? weight_at(a.one, out0 + o, k) : 0.0f;
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++)
                acc[o][r] = fmaf(v[r], w, acc[o][r]);
        }
    }
#pragma unroll
    for (uint32_t o = 0; o < THIN; o++)
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            float sum = warp_sum(acc[o][r]);
            if (threadIdx.x % 32 == 0)
                part[warp][o * ROWS + r] = sum;
        }
    __syncthreads();
    uint32_t o = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
    if (o >= THIN || r >= n || out0 + o >= a.n_out)
        return;
    float sum = part[0][threadIdx.x];
    for (uint32_t i = 1; i < 256 / 32; i++)
        sum += part[i][threadIdx.x];
    float *y = (float *)a.y + (size_t)(row0 + r) * a.n_out + out0 + o;
    *y = a.add ? *y + sum : sum;
}

static __global__ void __launch_bounds__(256) plain_kernel(struct product_args a)
{
    __shared__ float xs[PLAIN][PLAIN + 1], ws[PLAIN][PLAIN + 1];
    uint32_t first, count, row0 = blockIdx.y * PLAIN, out0 = blockIdx.x * PLAIN;
    struct matrix w = block_matrix(a, &first, &count);
    if (row0 >= count)
        return;
    uint32_t tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t k0 = 0; k0 < a.n_in; k0 += PLAIN) {
        uint32_t k = k0 + tx;
        __syncthreads();
        for (uint32_t i = ty; i < PLAIN; i += 8) {
            float xv = 0.0f, wv = 0.0f;
            if (row0 + i < count && k < a.n_in) {
                size_t at = first + row0 + i;
                at = a.row ? a.row[at] : at;
                xv = get((const float *)a.x + at * a.n_in + k);
            }
            if (out0 + i < a.n_out && k < a.n_in)
                wv = weight_at(w, out0 + i, k);
            xs[i][tx] = xv;
            ws[i][tx] = wv;
        }
        __syncthreads();
        for (uint32_t i = 0; i < PLAIN; i++)
            for (int j = 0; j < 4; j++)
                acc[j] = fmaf(xs[ty + 8 * j][i], ws[tx][i], acc[j]);
    }
    for (int j = 0; j < 4; j++) {
        uint32_t r = row0 + ty + 8 * j, o = out0 + tx;
        if (r >= count || o >= a.n_out)
            continue;
        float *y = (float *)a.y + (size_t)(first + r) * a.n_out + o;
        *y = a.add ? *y + acc[j] : acc[j];
    }
}

/* ---- launching ---- */

template <bool FP8, int ROWS, bool FOLD>
static void launch_stream(cudaStream_t s, const struct product_args &a, uint32_t rows, uint32_t z)
{
    typedef stream_shape<FP8, ROWS> S;
    dim3 grid(parts_of(rows, ROWS), parts_of(a.n_out, OUTS), z);
    CUDA_LAUNCH((stream_kernel<FP8, ROWS, FOLD>), grid, S::threads, S::bytes, s, a);
}

/* rows: of all groups' largest, or of the matrix; likely: what most groups have. */
template <bool FP8>
static void stream_by_rows(cudaStream_t s, struct product_args &a, uint32_t rows, uint32_t likely,
                           uint32_t groups)
{
    if (!a.group) { /* how many parts: see above */
        uint32_t tiles = parts_of(a.n_out, OUTS), blocks = parts_of(a.n_in, BLOCK_K);
        uint32_t want = (FILL_BLOCKS + tiles / 2) / tiles, most = blocks / 2;
        want = want > most ? most : want;
        want = want < 1 ? 1 : want > SPLITS ? (uint32_t)SPLITS : want;
        a.split_k = parts_of(blocks, want) * BLOCK_K;
        a.n_splits = parts_of(a.n_in, a.split_k);
    }
    uint32_t z = a.group ? groups : a.n_splits;
    if (!a.group && a.n_splits > 1 && rows > SPLIT_ROWS)
        launch_stream<FP8, 64, true>(s, a, rows, 1);
    else if (likely <= 8)
        launch_stream<FP8, 8, false>(s, a, rows, z);
    else if (likely <= 16)
        launch_stream<FP8, 16, false>(s, a, rows, z);
    else if (likely <= 32)
        launch_stream<FP8, 32, false>(s, a, rows, z);
    else
        launch_stream<FP8, 64, false>(s, a, rows, z);
}

static void launch(struct cuda_backend *b, struct cuda_lane *lane, struct product_args &a,
                   enum dtype t, bool exact, uint32_t rows, uint32_t likely, uint32_t groups)
{
    bool tensor = b->fast && !exact && (t == DT_BF16 || t == DT_F8_E4M3);
    bool whole = a.n_in % (t == DT_BF16 ? 8 : 16) == 0;
    uint32_t tile = tensor ? (uint32_t)TM : (uint32_t)PLAIN, max_y = 32768;
    dim3 grid(parts_of(a.n_out, tile), parts_of(rows, tile), groups);
    cudaStream_t s = lane->stream;
    a.scratch = *lane->linear;
    assert(grid.y <= max_y);
    if (tensor && whole && t == DT_BF16)
        stream_by_rows<false>(s, a, rows, likely, groups);
    else if (tensor && whole)
        stream_by_rows<true>(s, a, rows, likely, groups);
    else if (tensor && t == DT_BF16)
        CUDA_LAUNCH((tensor_kernel<false>), grid, 128, 0, s, a);
    else if (tensor)
        CUDA_LAUNCH((tensor_kernel<true>), grid, 128, 0, s, a);
    else if (exact && rows == 1)
        CUDA_LAUNCH((thin_kernel<1>), parts_of(a.n_out, THIN), 256, 0, s, a);
    else if (exact)
        CUDA_LAUNCH((thin_kernel<THIN>), dim3(parts_of(a.n_out, THIN), parts_of(rows, THIN)), 256,
                    0, s, a);
    else
        CUDA_LAUNCH(plain_kernel, grid, 256, 0, s, a);
    cuda_launched(lane, "linear");
}

void cuda_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p)
{
    if (!p->n)
        return;
    struct product_args a = {};
    a.one = *p->w;
    a.x = p->x;
    a.y = p->y;
    a.n = p->n;
    a.n_out = p->w->n_out;
    a.n_in = p->w->n_in;
    a.add = p->add;
    launch(b, lane, a, p->w->dtype, p->exact, p->n, p->n, 1);
}

void cuda_grouped_product(struct cuda_backend *b, struct cuda_lane *lane,
                          const struct grouped_product *p)
{
    struct product_args a = {};
    a.group = p->w;
    a.w_step = p->w_step;
    a.start = p->start;
    a.row = p->row;
    a.x = p->x;
    a.y = p->y;
    a.n_out = p->n_out;
    a.n_in = p->n_in;
    a.n_splits = 1;
    launch(b, lane, a, p->dtype, false, p->max_group, p->likely_group, p->n_groups);
}

static void op_linear(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                      act *y, bool add)
{
    struct product p = {w, x, n, y, add, false};
    cuda_product(cuda_of(o), &cuda_of(o)->lane[l], &p);
}

template <bool FP8, int ROWS, bool FOLD> static cudaError_t allow_stream(void)
{
    return cudaFuncSetAttribute(stream_kernel<FP8, ROWS, FOLD>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                stream_shape<FP8, ROWS>::bytes);
}

enum err_code cuda_linear_init(struct cuda_backend *b, struct err *e)
{
    b->ops.linear = op_linear;
    for (int l = 0; l < N_LANES; l++) {
        struct linear_scratch *x = (struct linear_scratch *)cuda_reserve_host(b, sizeof *x);
        if (!x)
            return err_set(e, ERR_NOMEM, "products' workspace");
        b->lane[l].linear = x;
        uint32_t max = b->ops.limits.max_rows[l], rows = max < 32 ? 32 : 64 * parts_of(max, 64);
        rows = rows < SPLIT_ROWS ? rows : (uint32_t)SPLIT_ROWS;
        x->part = (float4 *)cuda_reserve(b, sizeof(float) * MAX_PARTS * OUTS * rows);
        x->arrived = (uint32_t *)cuda_reserve(b, sizeof(uint32_t) * MAX_SPLIT_TILES *
                                                     parts_of(SPLIT_ROWS, 8));
        if (!x->part || !x->arrived)
            return err_set(e, ERR_NOMEM, "products' workspace of %u rows", rows);
    }
    if (b->dry)
        return ERR_OK;
    cudaError_t code[] = {allow_stream<true, 8, false>(),   allow_stream<true, 16, false>(),
                          allow_stream<true, 32, false>(),  allow_stream<true, 64, false>(),
                          allow_stream<true, 64, true>(),   allow_stream<false, 8, false>(),
                          allow_stream<false, 16, false>(), allow_stream<false, 32, false>(),
                          allow_stream<false, 64, false>(), allow_stream<false, 64, true>()};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (code[i] != cudaSuccess)
            return err_set(e, ERR_CUDA, "products: %s", cudaGetErrorString(code[i]));
    return ERR_OK;
}
