/* linear.cu - y[n, n_out] = or += x[n, n_in] W^T, for one matrix or a group of them.
 *
 * Four kernels, chosen by W's type and width and the precision alone, so a row's bits never depend
 * on n:
 * - stream: bf16 or e4m3 weights in the fast precision. W is the left operand of the tensor cores,
 * the rows the right one, so that few rows waste little: tile of 128 outputs x 8, 16, 32 or 64
 * rows, K in steps of 64 or 128 through three or four stages of asynchronous copies, 8 warps. Rows
 * come in split form, a kernel of their own that products of the same rows share: as sums of two
 * f16 under a power of two of the row's own for e4m3 weights, whose codes f16 holds exactly (22
 * bits of mantissa), of two bf16 for bf16 weights (16 bits). Steps of 16 of K hold the same 16 k in
 * an order of their own: lane t has k 4t .. 4t + 3, so that each operand is one load. A block's
 * scale multiplies the fp32 sum of each 128 of K.
 * - tensor: widths that 16-byte copies do not divide; rows as two bf16.
 * - thin: fp32 arithmetic for the router: a tile of 8 or 2 outputs x 8 rows or 1, 256 threads share
 * K.
 * - plain: fp32 arithmetic for everything else; tile of 32 x 32, K in steps of 32.
 *
 * Splits: K is cut into parts by the matrix's size alone, as many as fill a device with blocks of
 * one row tile. Each part has its block, and the last block of a tile adds them up in order.
 *
 * Cost: 4 n n_out n_in flops (2 for hi, 2 for lo); W is read once for up to 64 rows, from L2 for
 * the next ones. All the shared memory of a block is under 99 KiB, which sm_89 and sm_120 have too.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"
#include "tile/copy.cuh"
#include "tile/mma.cuh"
#include "tile/rounding.cuh"
#include "tile/split.cuh"
#include "tile/weight.cuh"

enum { BLOCK_K = 128, TM = 64, TN = 64, TK = 32, PAD = 8, PLAIN = 32, THIN = 8, THINNER = 2 };
static_assert(BLOCK_K % TK == 0, "a scale belongs to whole steps of K");
static_assert((TK + PAD) % 8 == 0, "rows of a tile stay aligned to 16 bytes");
enum { OUTS = 128, THREADS = 256, SPLITS = 16, SPLIT_ROWS = 512, FILL_BLOCKS = 264 };
static_assert((int)OUTS == (int)BLOCK_K, "a tile has one row of scales");
/* A matrix of so many tiles or fewer is split, and tiles times parts are at most FILL_BLOCKS. */
enum { MAX_SPLIT_TILES = FILL_BLOCKS / 2 };
enum { SPLIT_FORM_ROWS = 1024, LEAST_FORM = 1 << 20 };

struct linear_scratch {
    float4 *part;      /* [parts][sums of a block], as its threads hold them */
    uint32_t *arrived; /* [tiles] blocks that have left their part; 0 between launches */
    uint4 *form;       /* rows in split form, of form_values values */
    float *factor;     /* [SPLIT_FORM_ROWS] */
    size_t form_values;
    /* What form holds now; NULL: nothing that may be used again. */
    const void *held;
    uint32_t held_rows, held_in;
    bool held_f16;
};

struct product_args {
    const struct matrix *group; /* NULL: `one` */
    struct matrix one;
    uint32_t w_step;
    const uint32_t *start, *row;
    const void *x;
    const float *factor; /* of rows in split form */
    void *y, *second;    /* second: of the group's next matrix, by the blocks behind the first's */
    uint32_t n, n_out, n_in;
    bool add;
    uint32_t n_splits, split_k; /* parts of K, and how much of it each has */
    /* Parts of one matrix as groups: group z has the outputs from z * part_outs + part_first on,
     * and of each row of x and y the z-th piece. 0: no parts. */
    uint32_t part_outs, part_first;
    uint32_t x_pieces, y_row; /* pieces of a row of x; values of a row of y */
    float4 *sums;
    uint32_t *arrived;
};

/* The rows of this block's group: first row of y and count. second: of the group's two matrices. */
static __device__ __forceinline__ struct matrix
block_matrix(const struct product_args &a, uint32_t *first, uint32_t *count, bool second = false)
{
    struct matrix w = a.one;
    *first = 0;
    *count = a.n;
    if (a.group) {
        *first = a.start[blockIdx.z];
        *count = a.start[blockIdx.z + 1] - *first;
        return a.group[(size_t)blockIdx.z * a.w_step + second];
    }
    if (a.part_outs) {
        uint32_t out = blockIdx.z * a.part_outs + a.part_first;
        w.data = (const unsigned char *)w.data + (size_t)out * w.n_in * (w.scale ? 1 : 2);
        if (w.scale)
            w.scale += (size_t)(out / BLOCK_K) * parts_of(w.n_in, BLOCK_K);
    }
    return w;
}

/* ---- split form ---- */

/* A block a row: for each 4 values 16 bytes, 4 high parts and 4 low ones. f16: times a power of two
 * that brings the row's largest to [2^14, 2^15), whose inverse is the row's factor. ROUND: rounded
 * to the weights' type first, which makes the largest 2^15 at most. */
template <bool F16, bool ROUND>
static __global__ void __launch_bounds__(THREADS)
    split_kernel(const float *x, uint32_t n_in, uint4 *form, float *factor)
{
    const float4 *from = (const float4 *)(x + (size_t)blockIdx.x * n_in);
    uint4 *to = form + (size_t)blockIdx.x * (n_in / 4);
    float f = 1.0f;
    if (F16) {
        float most = 0.0f;
#pragma unroll 8
        for (uint32_t i = threadIdx.x; i < n_in / 4; i += THREADS) {
            float4 v = from[i];
            most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        f = f16_row_scale(block_max(most));
        if (threadIdx.x == 0)
            factor[blockIdx.x] = 1.0f / f;
    }
#pragma unroll 8
    for (uint32_t i0 = 0; i0 < n_in / 4; i0 += THREADS) { /* whole warps, for round_four() */
        uint32_t i = i0 + threadIdx.x;
        float4 v = i < n_in / 4 ? from[i] : float4{};
        if (ROUND)
            v = round_four<F16>(v);
        if (i < n_in / 4)
            to[i] = split_four<F16>(v, f);
    }
}

/* A block a row, a warp 128 values, of any width. y may be x. */
template <bool FP8>
static __global__ void __launch_bounds__(THREADS) round_kernel(const float *x, uint32_t n_in,
                                                               float *y)
{
    const float *from = x + (size_t)blockIdx.x * n_in;
    float *to = y + (size_t)blockIdx.x * n_in;
    for (uint32_t k0 = 0; k0 < n_in; k0 += 4 * THREADS) {
        uint32_t k = k0 + 4 * threadIdx.x;
        float v[4];
        for (uint32_t i = 0; i < 4; i++)
            v[i] = k + i < n_in ? from[k + i] : 0.0f;
        float4 r = round_four<FP8>(float4{v[0], v[1], v[2], v[3]});
        float w[4] = {r.x, r.y, r.z, r.w};
        for (uint32_t i = 0; i < 4; i++)
            if (k + i < n_in)
                to[k + i] = w[i];
    }
}

/* ---- stream ---- */

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

/* Four values of a row of W from k on. */
template <enum dtype T>
static __device__ __forceinline__ void weight_four(const struct matrix &w, uint32_t out, uint32_t k,
                                                   float v[4])
{
    if constexpr (T == DT_BF16) {
        uint2 two = *(const uint2 *)((const uint16_t *)w.data + (size_t)out * w.n_in + k);
        v[0] = __uint_as_float(two.x << 16);
        v[1] = __uint_as_float(two.x & 0xFFFF0000u);
        v[2] = __uint_as_float(two.y << 16);
        v[3] = __uint_as_float(two.y & 0xFFFF0000u);
    } else {
        for (uint32_t i = 0; i < 4; i++)
            v[i] = k + i < w.n_in ? weight_at(w, out, k + i) : 0.0f;
    }
}

/* Four values of a row of x from k on; bf16 matrices have whole ones. */
template <enum dtype T>
static __device__ __forceinline__ float4 row_four(const float *x, uint32_t k, uint32_t n_in)
{
    if (T == DT_BF16)
        return *(const float4 *)(x + k);
    return float4{x[k], k + 1 < n_in ? x[k + 1] : 0.0f, k + 2 < n_in ? x[k + 2] : 0.0f,
                  k + 3 < n_in ? x[k + 3] : 0.0f};
}

/* ROWS 1 or THIN, N THIN or THINNER: a sum is the same in all. A thread has every 256th four
 * values. */
template <enum dtype T, int ROWS, int N>
static __global__ void __launch_bounds__(256) thin_kernel(struct product_args a)
{
    __shared__ float part[256 / 32][N * ROWS];
    uint32_t out0 = blockIdx.x * N, row0 = blockIdx.y * ROWS, warp = threadIdx.x / 32;
    uint32_t n = a.n - row0 < ROWS ? a.n - row0 : ROWS;
    const float *x = (const float *)a.x + (size_t)row0 * a.n_in;
    float acc[N][ROWS] = {};
#pragma unroll 2
    for (uint32_t k = 4 * threadIdx.x; k < a.n_in; k += 4 * 256) {
        float v[ROWS][4], w[4];
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            float4 four = r < n ? row_four<T>(x + (size_t)r * a.n_in, k, a.n_in) : float4{};
            v[r][0] = four.x;
            v[r][1] = four.y;
            v[r][2] = four.z;
            v[r][3] = four.w;
        }
#pragma unroll
        for (uint32_t o = 0; o < N; o++) {
            if (out0 + o >= a.n_out)
                continue;
            weight_four<T>(a.one, out0 + o, k, w);
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++)
#pragma unroll
                for (uint32_t i = 0; i < 4; i++)
                    acc[o][r] = fmaf(v[r][i], w[i], acc[o][r]);
        }
    }
#pragma unroll
    for (uint32_t o = 0; o < N; o++)
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            float sum = warp_sum(acc[o][r]);
            if (threadIdx.x % 32 == 0)
                part[warp][o * ROWS + r] = sum;
        }
    __syncthreads();
    uint32_t o = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
    if (o >= N || r >= n || out0 + o >= a.n_out)
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

template <bool FP8, int ROWS>
static void launch_stream(cudaStream_t s, const struct product_args &a, uint32_t rows, uint32_t z)
{
    dim3 grid(parts_of(rows, ROWS), parts_of(a.n_out, OUTS) * (a.second ? 2 : 1), z);
    CUDA_LAUNCH((stream_kernel<FP8, ROWS>), grid, THREADS, (stream_shape<FP8, ROWS>::bytes), s, a);
}

/* rows: of all groups' largest, or of the matrix; likely: what most groups have. */
template <bool FP8>
static void stream_by_rows(cudaStream_t s, struct product_args &a, uint32_t rows, uint32_t likely,
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

bool cuda_takes_split(const struct cuda_backend *b, enum dtype t, uint32_t n_in)
{
    return b->fast && ((t == DT_BF16 && n_in % 8 == 0) || (t == DT_F8_E4M3 && n_in % 16 == 0));
}

bool cuda_rounds(const struct cuda_backend *b, enum dtype t)
{
    return b->deployed && (t == DT_BF16 || t == DT_F8_E4M3);
}

void cuda_round_rows(struct cuda_lane *lane, enum dtype t, const float *x, uint32_t n,
                     uint32_t n_in, float *y)
{
    if (t == DT_F8_E4M3)
        CUDA_LAUNCH((round_kernel<true>), n, THREADS, 0, lane->stream, x, n_in, y);
    else
        CUDA_LAUNCH((round_kernel<false>), n, THREADS, 0, lane->stream, x, n_in, y);
}

const float *cuda_plain_rows(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const float *x, uint32_t n, uint32_t n_in)
{
    if (!cuda_rounds(b, t))
        return x;
    assert((size_t)n * n_in <= lane->linear->form_values);
    lane->linear->held = NULL;
    cuda_round_rows(lane, t, x, n, n_in, (float *)lane->linear->form);
    return (const float *)lane->linear->form;
}

struct split_rows cuda_split(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const void *x, uint32_t n, uint32_t n_in)
{
    struct linear_scratch *l = lane->linear;
    bool f16 = t == DT_F8_E4M3;
    assert(n <= SPLIT_FORM_ROWS && (size_t)n * n_in <= l->form_values);
    if (!lane->step || l->held != x || l->held_rows != n || l->held_in != n_in ||
        l->held_f16 != f16) {
        bool round = cuda_rounds(b, t);
        const float *from = (const float *)x;
        if (f16 && round)
            CUDA_LAUNCH((split_kernel<true, true>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else if (f16)
            CUDA_LAUNCH((split_kernel<true, false>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else if (round)
            CUDA_LAUNCH((split_kernel<false, true>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else
            CUDA_LAUNCH((split_kernel<false, false>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        l->held = x;
        l->held_rows = n;
        l->held_in = n_in;
        l->held_f16 = f16;
    }
    return (struct split_rows){l->form, l->factor};
}

void cuda_forget_split(struct cuda_lane *lane)
{
    lane->linear->held = NULL;
    cuda_wide_forget(lane);
}

/* Rows that were held have been written. */
static void forget_written(struct cuda_lane *lane, const void *y, size_t values)
{
    struct linear_scratch *l = lane->linear;
    const float *held = (const float *)l->held, *to = (const float *)y;
    if (held && to < held + (size_t)l->held_rows * l->held_in && held < to + values)
        l->held = NULL;
    cuda_wide_written(lane, y, values);
}

template <enum dtype T>
static void launch_thin(cudaStream_t s, const struct product_args &a, uint32_t rows)
{
    dim3 grid(parts_of(a.n_out, THIN), rows == 1 ? 1 : parts_of(rows, THIN));
    dim3 many(parts_of(a.n_out, THINNER), grid.y);
    if (many.x * many.y > 2 * FILL_BLOCKS && rows == 1)
        CUDA_LAUNCH((thin_kernel<T, 1, THIN>), grid, 256, 0, s, a);
    else if (rows == 1)
        CUDA_LAUNCH((thin_kernel<T, 1, THINNER>), many, 256, 0, s, a);
    else if (many.x * many.y > 2 * FILL_BLOCKS)
        CUDA_LAUNCH((thin_kernel<T, THIN, THIN>), grid, 256, 0, s, a);
    else
        CUDA_LAUNCH((thin_kernel<T, THIN, THINNER>), many, 256, 0, s, a);
}

static void launch(struct cuda_backend *b, struct cuda_lane *lane, struct product_args &a,
                   enum dtype t, bool exact, uint32_t rows, uint32_t likely, uint32_t groups)
{
    bool tensor = b->fast && !exact && (t == DT_BF16 || t == DT_F8_E4M3);
    uint32_t tile = tensor ? (uint32_t)TM : (uint32_t)PLAIN, max_y = 32768;
    dim3 grid(parts_of(a.n_out, tile), parts_of(rows, tile), groups);
    cudaStream_t s = lane->stream;
    a.sums = lane->linear->part;
    a.arrived = lane->linear->arrived;
    assert(grid.y <= max_y);
    if (tensor && cuda_takes_split(b, t, a.n_in)) {
        if (t == DT_BF16)
            stream_by_rows<false>(s, a, rows, likely, groups);
        else
            stream_by_rows<true>(s, a, rows, likely, groups);
    } else if (tensor && t == DT_BF16) {
        CUDA_LAUNCH((tensor_kernel<false>), grid, 128, 0, s, a);
    } else if (tensor) {
        CUDA_LAUNCH((tensor_kernel<true>), grid, 128, 0, s, a);
    } else if (exact && t == DT_BF16 && a.n_in % 4 == 0) {
        launch_thin<DT_BF16>(s, a, rows);
    } else if (exact) {
        launch_thin<DT_F32>(s, a, rows);
    } else {
        CUDA_LAUNCH(plain_kernel, grid, 256, 0, s, a);
    }
    cuda_launched(lane, "linear");
}

void cuda_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p)
{
    uint32_t n_in = p->w->n_in, n_out = p->w->n_out, n = p->n, at_once = p->n;
    if (!p->exact && !p->factor && !p->rounded && cuda_takes_wide(b, p->w)) {
        cuda_wide_product(b, lane, p);
        forget_written(lane, p->y, (size_t)n * n_out);
        return;
    }
    cuda_meet_early(lane);
    bool split = !p->exact && cuda_takes_split(b, p->w->dtype, n_in);
    bool round = !p->exact && !split && !p->rounded && cuda_rounds(b, p->w->dtype);
    if ((split && !p->factor) || round) {
        size_t fit = lane->linear->form_values / n_in;
        at_once = fit < SPLIT_FORM_ROWS ? (uint32_t)fit : (uint32_t)SPLIT_FORM_ROWS;
    }
    if (split && at_once > SPLIT_ROWS && parts_of(n_out, OUTS) <= MAX_SPLIT_TILES)
        at_once = SPLIT_ROWS;
    for (uint32_t i = 0; i < n; i += at_once) {
        uint32_t k = n - i < at_once ? n - i : at_once;
        struct product_args a = {};
        a.one = *p->w;
        a.x = (const float *)p->x + (size_t)i * n_in;
        a.factor = p->factor ? p->factor + i : NULL;
        if (split && !p->factor) {
            struct split_rows rows = cuda_split(b, lane, p->w->dtype, a.x, k, n_in);
            a.x = rows.x;
            a.factor = rows.factor;
        } else if (round) {
            a.x = cuda_plain_rows(b, lane, p->w->dtype, (const float *)a.x, k, n_in);
        }
        a.y = (float *)p->y + (size_t)i * n_out;
        a.n = k;
        a.n_out = n_out;
        a.n_in = n_in;
        a.add = p->add;
        launch(b, lane, a, p->w->dtype, p->exact, k, k, 1);
    }
    forget_written(lane, p->y, (size_t)n * n_out);
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
    a.factor = p->factor;
    a.y = p->y;
    a.second = p->second;
    a.n_out = p->n_out;
    a.n_in = p->n_in;
    a.n_splits = 1;
    if (a.second && !cuda_takes_split(b, p->dtype, p->n_in)) { /* those have one matrix a launch */
        a.second = NULL;
        launch(b, lane, a, p->dtype, false, p->max_group, p->likely_group, p->n_groups);
        a.group = p->w + 1;
        a.y = p->second;
    }
    launch(b, lane, a, p->dtype, false, p->max_group, p->likely_group, p->n_groups);
}

void cuda_part_product(struct cuda_backend *b, struct cuda_lane *lane, const struct part_product *p)
{
    struct product_args a = {};
    a.one = *p->w;
    a.part_outs = p->part_outs;
    a.part_first = p->part_first;
    a.x_pieces = p->n_parts;
    a.y_row = p->n_parts * p->n_out;
    a.x = p->x;
    a.factor = p->factor;
    a.y = p->y;
    a.n = p->n;
    a.n_out = p->n_out;
    a.n_in = p->w->n_in;
    assert(cuda_takes_split(b, p->w->dtype, a.n_in));
    assert(!p->w->scale || (p->part_outs % BLOCK_K == 0 && p->part_first % BLOCK_K == 0));
    launch(b, lane, a, p->w->dtype, false, p->n, p->n, p->n_parts);
}

static void op_linear(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                      act *y, bool add)
{
    struct product p = {w, x, n, y, add, false, NULL, false};
    assert(n <= o->limits.max_rows[l]);
    cuda_product(cuda_of(o), &cuda_of(o)->lane[l], &p);
}

template <bool FP8, int ROWS> static cudaError_t allow_stream(void)
{
    return cudaFuncSetAttribute(stream_kernel<FP8, ROWS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                stream_shape<FP8, ROWS>::bytes);
}

static enum err_code reserve_linear(struct cuda_backend *b, int l, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    struct linear_scratch *x = (struct linear_scratch *)cuda_reserve_host(b, sizeof *x);
    if (!x)
        return err_set(e, ERR_NOMEM, "products' workspace");
    b->lane[l].linear = x;
    uint32_t max = b->ops.limits.max_rows[l], rows = max < 32 ? 32 : 64 * parts_of(max, 64);
    rows = rows < SPLIT_ROWS ? rows : (uint32_t)SPLIT_ROWS;
    x->part = (float4 *)cuda_reserve(b, sizeof(float) * FILL_BLOCKS * OUTS * rows);
    x->arrived =
        (uint32_t *)cuda_reserve(b, sizeof(uint32_t) * MAX_SPLIT_TILES * parts_of(SPLIT_ROWS, 64));
    size_t widest = c->hidden_size, values = (size_t)c->n_heads * c->v_dim;
    widest = values > widest ? values : widest;
    widest = c->q_lora_rank > widest ? c->q_lora_rank : widest;
    uint32_t most = cuda_most_rows(b, l);
    x->form_values = widest * (most < SPLIT_FORM_ROWS ? most : SPLIT_FORM_ROWS);
    if (x->form_values < LEAST_FORM)
        x->form_values = LEAST_FORM;
    if (b->fast) {
        x->form = (uint4 *)cuda_reserve(b, x->form_values * 4);
        x->factor = (float *)cuda_reserve(b, SPLIT_FORM_ROWS * sizeof(float));
    }
    if (!x->part || !x->arrived || (b->fast && (!x->form || !x->factor)))
        return err_set(e, ERR_NOMEM, "products' workspace of %u rows", max);
    return ERR_OK;
}

enum err_code cuda_linear_init(struct cuda_backend *b, struct err *e)
{
    b->ops.linear = op_linear;
    if (reserve_linear(b, LANE_PREFILL, e) || reserve_linear(b, LANE_DECODE, e))
        return e->code;
    if (b->dry)
        return ERR_OK;
    cudaError_t code[] = {allow_stream<true, 8>(),   allow_stream<true, 16>(),
                          allow_stream<true, 32>(),  allow_stream<true, 64>(),
                          allow_stream<false, 8>(),  allow_stream<false, 16>(),
                          allow_stream<false, 32>(), allow_stream<false, 64>()};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (code[i] != cudaSuccess)
            return err_set(e, ERR_CUDA, "products: %s", cudaGetErrorString(code[i]));
    return ERR_OK;
}
