/* attend_tensor.cu - attention over latents on tensor cores: the fast precision, records that bf16
 * holds exactly (FP8 and BF16 forms).
 *
 * A block of 8 or 16 warps has a row, 16 or 32 heads (M 1 or 2 tiles of 16) and a split. Tiles of
 * 64 positions stand in shared memory as bf16; the next one is on its way while this one is used.
 * - scores: the warps share the width: each has 16 heads, every KGROUPSth step of 16 of the width
 * and its part of the queries in registers, hi and lo. Their parts of the scores meet in shared
 * memory and are added in order.
 * - weights: a warp per 1, 2 or 4 heads, a running maximum, weights as hi + lo of two bf16.
 * - sums: each warp has every 8th or 16th group of 16 columns.
 * Queries and weights are sums of two bf16 as all activations of this precision.
 * Cost: 4 (2 kv_lora + rope) flops per (row, head, position); a record is read once per 32 heads.
 */
#include "cuda/attend.cuh"

#include "tile/block.cuh"
#include "tile/copy.cuh"
#include "tile/mma.cuh"

enum { TILE = 64, WIDTH = 576, STEPS = WIDTH / 16, PITCH = WIDTH + 8, SCORE_PITCH = TILE + 8 };
static_assert((int)SPLIT_STEP == (int)TILE, "a split is whole tiles");
static_assert(PITCH * 2 % 32 == 16 && SCORE_PITCH * 2 % 32 == 16, "8 rows meet all banks");

struct tile_row {
    uint16_t value[PITCH];
};

/* FP8 records leave room for the scores of 16 warps, two tiles of bf16 ones for those of 8. */
template <int M, bool FP8> struct tensor_shape {
    static const int warps = FP8 ? 16 : 8, threads = 32 * warps;
    static const int heads = 16 * M, groups = warps / M, steps = (STEPS + groups - 1) / groups;
    static const int per_warp = heads / warps;             /* heads whose weights a warp makes */
    static const int pairs = CUDA_MAX_LATENT / 16 / warps; /* of 8 columns, whose sums it has */
    float score[groups][heads][SCORE_PITCH];
    uint16_t hi[heads][SCORE_PITCH], lo[heads][SCORE_PITCH];
    const unsigned char *record[2][TILE]; /* NULL: no position */
    float shrink[heads];
};

static __device__ __forceinline__ uint32_t record_bytes(const struct attend_args &a)
{
    return (uint32_t)(a.page_bytes / KV_PAGE_TOKENS);
}
static __host__ __device__ inline uint32_t raw_pitch(size_t page_bytes)
{
    return (uint32_t)((page_bytes / KV_PAGE_TOKENS + 15) / 16 * 16);
}

/* Where the records of [t, t + TILE) lie, one a thread of the first TILE; in two halves, since each
 * is a load that waits for the one before. */
static __device__ __forceinline__ int32_t find_position(const int32_t *list, uint32_t t,
                                                        uint32_t end)
{
    t += threadIdx.x;
    if (threadIdx.x >= TILE || t >= end)
        return -1;
    return list ? list[t] : (int32_t)t;
}
static __device__ __forceinline__ const unsigned char *find_record(const struct attend_args &a,
                                                                   uint32_t row, int32_t pos)
{
    if (pos < 0)
        return NULL;
    return a.plane + (size_t)page_of(a.view, row, (uint32_t)pos) * a.page_bytes +
           record_bytes(a) * ((uint32_t)pos % KV_PAGE_TOKENS);
}

/* Starts copies of a tile's records: as they are. */
template <int WARPS>
static __device__ __forceinline__ void load_records(const struct attend_args &a,
                                                    const unsigned char *const *record,
                                                    unsigned char *to, uint32_t pitch)
{
    uint32_t bytes = record_bytes(a), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 4
    for (uint32_t p = warp; p < TILE; p += WARPS) {
        const unsigned char *from = record[p];
        unsigned char *at = to + p * pitch;
        if (bytes % 16 == 0)
            for (uint32_t c = 16 * lane; c < bytes; c += 16 * 32)
                copy_start(at + c, from ? from + c : a.plane, from != NULL);
        else
            for (uint32_t c = 4 * lane; c < bytes; c += 4 * 32)
                *(uint32_t *)(at + c) = from ? *(const uint32_t *)(from + c) : 0u;
    }
}

/* FP8 records as bf16: codes times their group's scale, a power of two, then the rope values. A
 * warp's 32 words are a group. */
template <int WARPS>
static __device__ __forceinline__ void widen_records(const struct attend_args &a,
                                                     const unsigned char *raw, uint32_t pitch,
                                                     struct tile_row *tile)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, scales = (a.r + GROUP - 1) / GROUP;
    static_assert((int)GROUP == 4 * 32, "a group is a word of each lane");
#pragma unroll 2
    for (uint32_t p = warp; p < TILE; p += WARPS) {
        const unsigned char *at = raw + p * pitch;
#pragma unroll
        for (uint32_t k = 0; k < CUDA_MAX_LATENT / GROUP; k++) {
            uint32_t c = k * GROUP + 4 * lane, two[2];
            if (c >= a.r)
                continue;
            float s = *(const float *)(at + a.r + 4 * k);
            uint32_t f = __float_as_uint(s) >> 16;
            f |= f << 16;
            e4m3_four(two, *(const uint32_t *)(at + c));
            uint2 wide = {bf16_times(two[0], f), bf16_times(two[1], f)};
            *(uint2 *)&tile[p].value[c] = wide;
        }
        for (uint32_t c = 2 * lane; c < a.d; c += 2 * 32)
            *(uint32_t *)&tile[p].value[a.r + c] =
                *(const uint32_t *)(at + a.r + 4 * scales + 2 * c);
    }
}

/* This warp's queries: 16 heads from head on, steps group, group + GROUPS ... of the width. */
template <int GROUPS, int STEPS_HERE>
static __device__ __forceinline__ void load_queries(const struct attend_args &a, uint32_t i,
                                                    uint32_t head, uint32_t group,
                                                    uint32_t (*hi)[4], uint32_t (*lo)[4])
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t s = 0; s < STEPS_HERE; s++) {
        uint32_t k0 = 16 * (group + GROUPS * s);
#pragma unroll
        for (uint32_t q = 0; q < 4; q++) {
            uint32_t h = head + g + q % 2 * 8, k = k0 + 2 * t + q / 2 * 8;
            bool there = h < a.heads && k < a.width;
            const float *from = a.q + ((size_t)i * a.heads + (there ? h : 0)) * a.width;
            struct bf16_twos two =
                bf16_split_two(there ? from[k] : 0.0f, there ? from[k + 1] : 0.0f);
            hi[s][q] = two.hi;
            lo[s][q] = two.lo;
        }
    }
}

template <int M, bool FP8>
static __global__ void __launch_bounds__((tensor_shape<M, FP8>::threads), 1)
    tensor_kernel(struct attend_args a)
{
    typedef tensor_shape<M, FP8> S;
    DYNAMIC_SHARED(unsigned char, shared);
    struct tile_row *tiles = (struct tile_row *)shared; /* one, or two for bf16 records */
    unsigned char *raw = shared + sizeof(struct tile_row) * TILE;
    uint32_t pitch = FP8 ? raw_pitch(a.page_bytes) : (uint32_t)sizeof(struct tile_row);
    S &x = *(S *)(raw + TILE * pitch);
    const int32_t *list;
    uint32_t i = blockIdx.z, row = a.row0 + i, split = blockIdx.x;
    uint32_t n = row_length(a, row, &list), each = split_length(a, n), begin = split * each;
    uint32_t end = begin + each < n ? begin + each : n;
    if (begin >= n)
        return;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t head0 = blockIdx.y * S::heads, m = warp % M, group = warp / M;
    uint32_t corner = lane % 8, quarter = lane / 8; /* whose row of which matrix it names */
    uint32_t n_tiles = (end - begin + TILE - 1) / TILE, n_pairs = a.r / 16;
    uint32_t q_hi[S::steps][4], q_lo[S::steps][4];
    float z[M][S::pairs][2][4] = {}, max[S::per_warp], sum[S::per_warp];
#pragma unroll
    for (int h = 0; h < S::per_warp; h++) {
        max[h] = -INFINITY;
        sum[h] = 0.0f;
    }
    int32_t pos = find_position(list, begin, end), after = find_position(list, begin + TILE, end);
    const unsigned char *record = find_record(a, row, pos), *next = find_record(a, row, after);
    load_queries<S::groups, S::steps>(a, i, head0 + 16 * m, group, q_hi, q_lo);
    if (threadIdx.x < TILE) {
        x.record[0][threadIdx.x] = record;
        x.record[1][threadIdx.x] = next;
    }
    __syncthreads();
    load_records<S::warps>(a, x.record[0], FP8 ? raw : (unsigned char *)tiles, pitch);
    copy_close_group();
    for (uint32_t j = 0; j < n_tiles; j++) {
        uint32_t t0 = begin + j * TILE, n_tile = end - t0 < TILE ? end - t0 : TILE;
        struct tile_row *tile = FP8 ? tiles : tiles + j % 2 * TILE;
        pos = find_position(list, t0 + 2 * TILE, end);
        copy_wait<0>();
        __syncthreads();
        if (FP8) {
            widen_records<S::warps>(a, raw, pitch, tile);
            __syncthreads();
        }
        if (j + 1 < n_tiles)
            load_records<S::warps>(a, x.record[(j + 1) % 2],
                                   FP8 ? raw : (unsigned char *)(tiles + (j + 1) % 2 * TILE),
                                   pitch);
        copy_close_group();
        record = find_record(a, row, pos);
        { /* scores */
            float s[TILE / 8][4] = {};
#pragma unroll
            for (uint32_t k = 0; k < S::steps; k++) {
                uint32_t k0 = 16 * (group + S::groups * k);
                if (k0 >= a.width)
                    continue;
#pragma unroll
                for (uint32_t p = 0; p < TILE / 16; p++) {
                    uint32_t b[4];
                    ldmatrix(b,
                             &tile[16 * p + quarter / 2 * 8 + corner].value[k0 + quarter % 2 * 8]);
                    mma_bf16(s[2 * p], q_hi[k], b);
                    mma_bf16(s[2 * p + 1], q_hi[k], b + 2);
                    mma_bf16(s[2 * p], q_lo[k], b);
                    mma_bf16(s[2 * p + 1], q_lo[k], b + 2);
                }
            }
#pragma unroll
            for (uint32_t p = 0; p < TILE / 8; p++) {
                float2 top = {s[p][0], s[p][1]}, low = {s[p][2], s[p][3]};
                *(float2 *)&x.score[group][16 * m + g][8 * p + 2 * t] = top;
                *(float2 *)&x.score[group][16 * m + g + 8][8 * p + 2 * t] = low;
            }
        }
        __syncthreads();
        if (threadIdx.x < TILE)
            x.record[j % 2][threadIdx.x] = record;
#pragma unroll
        for (uint32_t h0 = 0; h0 < S::per_warp; h0++) { /* weights */
            uint32_t h = warp * S::per_warp + h0;
            float v[2];
#pragma unroll
            for (uint32_t c = 0; c < 2; c++) {
                v[c] = x.score[0][h][lane + 32 * c];
#pragma unroll
                for (uint32_t k = 1; k < S::groups; k++)
                    v[c] += x.score[k][h][lane + 32 * c];
                v[c] = lane + 32 * c < n_tile ? v[c] * a.scale : -INFINITY;
            }
            float top = warp_max(v[0] > v[1] ? v[0] : v[1]);
            top = top > max[h0] ? top : max[h0];
            float shrink = max[h0] == top ? 1.0f : expf(max[h0] - top), w[2];
            max[h0] = top;
#pragma unroll
            for (uint32_t c = 0; c < 2; c++) {
                w[c] = expf(v[c] - top);
                struct bf16_twos two = bf16_split_two(w[c], 0.0f);
                x.hi[h][lane + 32 * c] = (uint16_t)two.hi;
                x.lo[h][lane + 32 * c] = (uint16_t)two.lo;
            }
            sum[h0] = fmaf(sum[h0], shrink, warp_sum(w[0] + w[1]));
            if (lane == 0)
                x.shrink[h] = shrink;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t h = 0; h < M; h++) { /* sums */
            float top = x.shrink[16 * h + g], low = x.shrink[16 * h + g + 8];
#pragma unroll
            for (uint32_t p = 0; p < S::pairs; p++)
#pragma unroll
                for (uint32_t c = 0; c < 2; c++) {
                    z[h][p][c][0] *= top;
                    z[h][p][c][1] *= top;
                    z[h][p][c][2] *= low;
                    z[h][p][c][3] *= low;
                }
        }
#pragma unroll
        for (uint32_t k0 = 0; k0 < TILE; k0 += 16) {
            uint32_t hi[M][4], lo[M][4];
#pragma unroll
            for (uint32_t h = 0; h < M; h++) {
                uint32_t r = 16 * h + quarter % 2 * 8 + corner, c = k0 + quarter / 2 * 8;
                ldmatrix(hi[h], &x.hi[r][c]);
                ldmatrix(lo[h], &x.lo[r][c]);
            }
#pragma unroll
            for (uint32_t p = 0; p < S::pairs; p++) {
                uint32_t pair = warp + S::warps * p, b[4];
                if (pair >= n_pairs)
                    continue;
                ldmatrix_transposed(
                    b, &tile[k0 + quarter % 2 * 8 + corner].value[16 * pair + quarter / 2 * 8]);
#pragma unroll
                for (uint32_t h = 0; h < M; h++) {
                    mma_bf16(z[h][p][0], hi[h], b);
                    mma_bf16(z[h][p][1], hi[h], b + 2);
                    mma_bf16(z[h][p][0], lo[h], b);
                    mma_bf16(z[h][p][1], lo[h], b + 2);
                }
            }
        }
    }
#pragma unroll
    for (uint32_t h = 0; h < M; h++)
#pragma unroll
        for (uint32_t p = 0; p < S::pairs; p++)
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) { /* rows g and g + 8 of two groups of 8 columns */
                uint32_t head = head0 + 16 * h + g + c % 2 * 8, pair = warp + S::warps * p;
                if (head >= a.heads || pair >= n_pairs)
                    continue;
                size_t at = ((size_t)i * a.heads + head) * SPLITS + split;
                float2 two = {z[h][p][c / 2][c % 2 * 2], z[h][p][c / 2][c % 2 * 2 + 1]};
                *(float2 *)&a.z[at * a.r + 16 * pair + c / 2 * 8 + 2 * t] = two;
            }
#pragma unroll
    for (uint32_t h = 0; h < S::per_warp; h++) {
        uint32_t head = head0 + warp * S::per_warp + h;
        if (head >= a.heads || lane)
            continue;
        size_t at = ((size_t)i * a.heads + head) * SPLITS + split;
        a.max[at] = max[h];
        a.sum[at] = sum[h];
    }
}

template <int M, bool FP8> static size_t shared_bytes(size_t page_bytes)
{
    size_t second = FP8 ? raw_pitch(page_bytes) : sizeof(struct tile_row);
    return TILE * (sizeof(struct tile_row) + second) + sizeof(struct tensor_shape<M, FP8>);
}

/* Small models have their heads in one tile. The choice is the model's alone. */
static bool one_tile(uint32_t heads)
{
    return heads <= 16;
}

bool cuda_attend_tensor_fits(const struct cuda_backend *b)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank, d = c->rope_dim;
    if (!b->fast || b->ops.limits.latent == LATENT_F32 || r % 16 || d % 16 || r + d > WIDTH)
        return false;
    if (b->ops.limits.latent == LATENT_FP8 && r > GROUP && r % GROUP)
        return false;
    size_t most = b->ops.limits.latent == LATENT_FP8 ? shared_bytes<2, true>(b->latent_page_bytes)
                                                     : shared_bytes<2, false>(0);
    return b->dry || most <= b->shared_bytes;
}

enum err_code cuda_attend_tensor_init(struct err *e)
{
    const cudaFuncAttribute what = cudaFuncAttributeMaxDynamicSharedMemorySize;
    size_t longest = KV_PAGE_TOKENS * 656;
    cudaError_t code[] = {
        cudaFuncSetAttribute(tensor_kernel<1, false>, what, (int)shared_bytes<1, false>(0)),
        cudaFuncSetAttribute(tensor_kernel<2, false>, what, (int)shared_bytes<2, false>(0)),
        cudaFuncSetAttribute(tensor_kernel<1, true>, what, (int)shared_bytes<1, true>(longest)),
        cudaFuncSetAttribute(tensor_kernel<2, true>, what, (int)shared_bytes<2, true>(longest))};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (code[i] != cudaSuccess)
            return err_set(e, ERR_CUDA, "attention: %s", cudaGetErrorString(code[i]));
    return ERR_OK;
}

void cuda_attend_tensor(cudaStream_t s, const struct attend_args &a, uint32_t n_splits)
{
    bool fp8 = a.form == LATENT_FP8, one = one_tile(a.heads);
    dim3 grid(n_splits, parts_of(a.heads, one ? 16 : 32), a.n);
    if (fp8 && one)
        CUDA_LAUNCH((tensor_kernel<1, true>), grid, (tensor_shape<1, true>::threads),
                    (shared_bytes<1, true>(a.page_bytes)), s, a);
    else if (fp8)
        CUDA_LAUNCH((tensor_kernel<2, true>), grid, (tensor_shape<2, true>::threads),
                    (shared_bytes<2, true>(a.page_bytes)), s, a);
    else if (one)
        CUDA_LAUNCH((tensor_kernel<1, false>), grid, (tensor_shape<1, false>::threads),
                    (shared_bytes<1, false>(0)), s, a);
    else
        CUDA_LAUNCH((tensor_kernel<2, false>), grid, (tensor_shape<2, false>::threads),
                    (shared_bytes<2, false>(0)), s, a);
}
