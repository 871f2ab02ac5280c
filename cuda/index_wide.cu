/* index_wide.cu - the indexer's queries and scores with Hopper's FP8 products of a warpgroup, for
 * FP8 keys of 128 values and at most 64 heads.
 *
 * - queries: a warp per row and four heads: rotation, Hadamard, e4m3; the codes stay where other
 * forms have their fp32 values.
 * - scores: A is a page, 64 keys of 128 codes; B the queries of one row (steps of single rows) or
 *   of four neighbouring rows, all heads side by side. So a key's heads lie in four lanes: each
 *   takes max(0, .) times the head's weight of its columns, and the four meet in a fixed order. One
 *   warpgroup (single rows, four blocks share a multiprocessor) or two of them with pages in turn,
 *   whose products and sums then run side by side. Pages arrive ahead in a ring.
 * The products add up 128 codes in fewer bits than fp32 has (Hopper's FP8 sums keep some 13 bits
 * below the largest term), so scores are exact to about 1e-4 of their terms, the same for a row
 * whoever shares its block.
 * Cost: 2 Hi 128 flops per (row, position) at the FP8 rate; 132 bytes a key per block of rows.
 */
#include "cuda/index.cuh"

#include "tile/copy.cuh"
#include "tile/index_form.cuh"
#include "tile/wgmma.cuh"

enum { DIM = 128, MOST_HEADS = 64, QUERY_WARPS = 8, EACH = 4, TOGETHER = 4 };
enum { STEP = 32 };
enum { BLOCKS_SINGLE = 1320, BLOCKS_TOGETHER = 792, MOST_RUN_SINGLE = 512, MOST_RUN = 64 };
static_assert((int)DIM == (int)WGMMA_ROW, "a key is a row of a tile");
static_assert((int)KV_PAGE_TOKENS == 64, "a page is a tile");

/* A row's heads as codes: [rows, heads, 128]; a warp has four of them. */
static __global__ void __launch_bounds__(32 * QUERY_WARPS)
    query_kernel(const float *q, const float *w, struct index_args a)
{
    uint32_t fours = (a.heads + EACH - 1) / EACH, lane = threadIdx.x % 32;
    uint32_t at = blockIdx.x * QUERY_WARPS + threadIdx.x / 32, i = at / fours;
    if (i >= a.rows)
        return;
    uint32_t row = a.row0 + i, h0 = at % fours * EACH,
             n = a.heads - h0 < EACH ? a.heads - h0 : EACH;
    size_t first = (size_t)row * a.heads + h0, pos = a.view.pos[row];
    float4 four[EACH];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        float4 none = {0.0f, 0.0f, 0.0f, 0.0f};
        four[j] = j < n ? *(const float4 *)(q + (first + j) * DIM + 4 * lane) : none;
    }
    float weight = lane < n ? w[first + lane] : 0.0f;
    if (!row_selects(a, row))
        return;
    const float *cos = a.cos + pos * a.half, *sin = a.sin + pos * a.half;
    /* Side by side: a lane has two pairs. Else value i's other half is in the lane half / 4 away.
     */
    uint32_t apart = a.half / 4, pairs = a.interleaved ? 2 * lane : 4 * (lane & (apart - 1u));
    bool turns = lane < 2 * apart, upper = lane & apart;
    float c[4], s[4];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
        bool there = turns && (k < 2 || !a.interleaved);
        c[k] = there ? cos[pairs + k] : 1.0f;
        s[k] = there ? sin[pairs + k] : 0.0f;
    }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        float v[4] = {four[j].x, four[j].y, four[j].z, four[j].w};
        uint32_t codes;
        if (a.interleaved) {
            float x = v[0], y = v[2];
            v[0] = turns ? x * c[0] - v[1] * s[0] : x;
            v[1] = turns ? x * s[0] + v[1] * c[0] : v[1];
            v[2] = turns ? y * c[1] - v[3] * s[1] : y;
            v[3] = turns ? y * s[1] + v[3] * c[1] : v[3];
        } else {
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                float other = __shfl_xor_sync(WARP_ALL, v[k], (int)apart);
                float turned = upper ? other * s[k] + v[k] * c[k] : v[k] * c[k] - other * s[k];
                v[k] = turns ? turned : v[k];
            }
        }
        float scale = cuda_index_quantise_128(v, &codes);
        if (j < n)
            ((uint32_t *)a.query)[((size_t)i * a.heads + h0 + j) * (DIM / 4) + lane] = codes;
        if (lane == j)
            weight *= scale;
    }
    float constant = (float)(1.0 / sqrt((double)a.heads) / sqrt((double)DIM));
    if (lane < n)
        a.weight[(size_t)i * a.heads + h0 + lane] = weight * constant;
}

/* Q rows of H heads (or fewer; the rest are zeros of weight zero). */
template <uint32_t Q, uint32_t H> struct wide_shape {
    static const uint32_t columns = Q * H, groups = Q == 1 ? 1 : 2, stages = Q == 1 ? 4 : 3;
    static const uint32_t threads = groups * WARPGROUP, blocks = Q == 1 ? 5 : 1;
    unsigned char query[columns * WGMMA_ROW];
    unsigned char key[groups][stages][WGMMA_BLOCK];
    float scale[groups][stages][KV_PAGE_TOKENS];
};

#if WGMMA_HERE

template <uint32_t Q, uint32_t H>
static __device__ __forceinline__ void load_queries(const struct index_args &a, uint32_t i0,
                                                    uint32_t n, wide_shape<Q, H> &x)
{
    for (uint32_t c = threadIdx.x; c < Q * H * 8; c += wide_shape<Q, H>::threads) {
        uint32_t column = c / 8, q = column / H, h = column % H;
        uint4 codes = {0, 0, 0, 0};
        if (q < n && h < a.heads)
            codes = ((const uint4 *)a.query)[((size_t)(i0 + q) * a.heads + h) * 8 + c % 8];
        *(uint4 *)(x.query + wgmma_at(column, c % 8 * 16)) = codes;
    }
    shared_written();
}

static __device__ __forceinline__ void start_page(const unsigned char *from, unsigned char *key,
                                                  float *scale)
{
    uint32_t i = threadIdx.x % WARPGROUP;
#pragma unroll
    for (uint32_t c = 0; c < WGMMA_BLOCK / 16 / WARPGROUP; c++) {
        uint32_t chunk = c * WARPGROUP + i;
        copy_start(key + wgmma_at(chunk / 8, chunk % 8 * 16), from + 16 * chunk, true);
    }
    if (i < KV_PAGE_TOKENS / 4)
        copy_start(scale + 4 * i, from + WGMMA_BLOCK + 16 * i, true);
}

/* Pages [begin, end) of one sequence for rows [first, last) of the block's. */
template <uint32_t Q, uint32_t H>
static __device__ __forceinline__ void
score_pages(const struct index_args &a, const uint32_t *page, uint32_t i0, uint32_t first,
            uint32_t last, uint32_t begin, uint32_t end, const float (&weight)[Q][H / 4],
            wide_shape<Q, H> &x)
{
    typedef wide_shape<Q, H> S;
    uint32_t group = threadIdx.x / WARPGROUP, lane = threadIdx.x % 32, t = lane % 4;
    uint32_t slot = threadIdx.x / 32 % 4 * 16 + lane / 4; /* and slot + 8 */
    uint64_t query = wgmma_tile(shared_address(x.query), 0);
    float c[Q * H / 2];
    begin += group;
    uint32_t ids[S::stages]; /* of the pages in the ring, and of the one behind them */
#pragma unroll
    for (uint32_t k = 0; k < S::stages; k++)
        ids[k] = begin + k * S::groups < end ? page[begin + k * S::groups] : 0;
    uint32_t next = ids[S::stages - 1];
#pragma unroll
    for (uint32_t k = 0; k + 1 < S::stages; k++) {
        if (begin + k * S::groups < end)
            start_page(a.plane + (size_t)ids[k] * a.page_bytes, x.key[group][k], x.scale[group][k]);
        copy_close_group();
    }
    for (uint32_t p = begin, k = 0; p < end; p += S::groups, k = k + 1 == S::stages ? 0 : k + 1) {
        copy_wait<(int)S::stages - 2>();
        shared_written();
        meet_wait(1 + group, WARPGROUP); /* the page is there; the one before has been used */
        uint32_t ahead = p + (S::stages - 1) * S::groups, into = k ? k - 1 : S::stages - 1;
        if (ahead < end)
            start_page(a.plane + (size_t)next * a.page_bytes, x.key[group][into],
                       x.scale[group][into]);
        copy_close_group();
        next = ahead + S::groups < end ? page[ahead + S::groups] : 0; /* long before it is used */
        uint64_t key = wgmma_tile(shared_address(x.key[group][k]), 0);
        wgmma_pin(c);
        wgmma_open();
#pragma unroll
        for (uint32_t s = 0; s < DIM / STEP; s++)
            if (s > 0)
                wgmma<WGMMA_E4M3, WGMMA_ADD>(c, key + 2 * s, query + 2 * s);
            else
                wgmma<WGMMA_E4M3, WGMMA_SET>(c, key + 2 * s, query + 2 * s);
        wgmma_close();
        wgmma_wait<0>();
        wgmma_pin(c);
        float v[Q][2];
#pragma unroll
        for (uint32_t q = 0; q < Q; q++) {
            v[q][0] = v[q][1] = 0.0f;
#pragma unroll
            for (uint32_t j = 0; j < H / 4; j++) /* columns 8 (j / 2) + 2 t + j % 2 */
#pragma unroll
                for (uint32_t r = 0; r < 2; r++)
                    v[q][r] = fmaf(fmaxf(c[(q * H / 8 + j / 2) * 4 + 2 * r + j % 2], 0.0f),
                                   weight[q][j], v[q][r]);
        }
        /* Lane t ends with row t's sums; all meet as (t + (t ^ 2)) + ((t ^ 1) + (t ^ 3)). */
        float sum[2];
        if (Q == 1) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                sum[r] = v[0][r] + __shfl_xor_sync(WARP_ALL, v[0][r], 2);
                sum[r] += __shfl_xor_sync(WARP_ALL, sum[r], 1);
            }
        } else {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                float pair[2];
#pragma unroll
                for (uint32_t q = 0; q < 2; q++) {
                    float mine = t & 2 ? v[(q + 2) % Q][r] : v[q % Q][r];
                    float other = t & 2 ? v[q % Q][r] : v[(q + 2) % Q][r];
                    pair[q] = mine + __shfl_xor_sync(WARP_ALL, other, 2);
                }
                sum[r] = t & 1 ? pair[1] : pair[0];
                sum[r] += __shfl_xor_sync(WARP_ALL, t & 1 ? pair[0] : pair[1], 1);
            }
        }
        uint32_t q = Q == 1 ? 0 : t;
        if (Q == 1 ? t == 0 : q >= first && q < last) {
            float *to = a.score + (size_t)(i0 + q) * a.ld + (size_t)p * KV_PAGE_TOKENS + slot;
            to[0] = sum[0] * x.scale[group][k][slot];
            to[8] = sum[1] * x.scale[group][k][slot + 8];
        }
    }
    copy_wait<0>();
}

template <uint32_t Q, uint32_t H>
static __device__ __forceinline__ void score_block(const struct index_args &a,
                                                   unsigned char *shared)
{
    wide_shape<Q, H> &x = *(wide_shape<Q, H> *)(shared + (-shared_address(shared) & 1023u));
    uint32_t i0 = blockIdx.y * Q, n = a.rows - i0 < Q ? a.rows - i0 : Q;
    uint32_t begin = blockIdx.x * a.run, t = threadIdx.x % 4;
    float weight[Q][H / 4];
    bool loaded = false;
    for (uint32_t first = 0, last; first < n; first = last) { /* rows of one sequence */
        uint32_t row = a.row0 + i0 + first, seq = a.view.seq_of[row];
        for (last = first + 1; last < n && a.view.seq_of[a.row0 + i0 + last] == seq; last++)
            ;
        uint32_t longest = a.row0 + i0 + last - 1;
        uint32_t end = parts_of(a.view.pos[longest] + 1, KV_PAGE_TOKENS);
        end = end < begin + a.run ? end : begin + a.run;
        if (begin >= end || !row_selects(a, longest))
            continue;
        if (!loaded) {
            load_queries(a, i0, n, x);
#pragma unroll
            for (uint32_t q = 0; q < Q; q++)
#pragma unroll
                for (uint32_t j = 0; j < H / 4; j++) {
                    uint32_t h = j / 2 * 8 + 2 * t + j % 2;
                    weight[q][j] =
                        q < n && h < a.heads ? a.weight[(size_t)(i0 + q) * a.heads + h] : 0.0f;
                }
            loaded = true;
        }
        __syncthreads(); /* queries are there; pages of the rows before have been used */
        score_pages<Q, H>(a, a.view.page + a.view.seq[seq].page0, i0, first, last, begin, end,
                          weight, x);
    }
}
#endif

template <uint32_t Q, uint32_t H>
static __global__ void __launch_bounds__((wide_shape<Q, H>::threads), (wide_shape<Q, H>::blocks))
    score_kernel(struct index_args a)
{
#if WGMMA_HERE
    DYNAMIC_SHARED(unsigned char, shared);
    score_block<Q, H>(a, shared);
#endif
}

bool cuda_index_wide_fits(const struct cuda_backend *b)
{
    const struct model_config *c = b->ops.cfg;
    return b->fast && b->hopper && b->ops.limits.index == INDEX_FP8 && c->index_dim == DIM &&
           c->index_heads <= MOST_HEADS && c->rope_dim == DIM / 2;
}

template <uint32_t Q, uint32_t H> static cudaError_t allow_shared(void)
{
    return cudaFuncSetAttribute(score_kernel<Q, H>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(wide_shape<Q, H>) + 1024);
}

enum err_code cuda_index_wide_init(struct err *e)
{
    cudaError_t code[] = {allow_shared<1, 32>(), allow_shared<1, 64>(),
                          allow_shared<TOGETHER, 32>(), allow_shared<TOGETHER, 64>()};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++)
        if (code[i] != cudaSuccess)
            return err_set(e, ERR_CUDA, "indexer: %s", cudaGetErrorString(code[i]));
    return ERR_OK;
}

/* Runs as long as there are blocks for every multiprocessor: of single rows five at once, two
 * waves, of others six waves. How long runs are moves no bits. */
template <uint32_t Q, uint32_t H>
static void launch(cudaStream_t s, struct index_args a, uint32_t pages)
{
    uint32_t groups = parts_of(a.rows, Q), wanted = Q == 1 ? BLOCKS_SINGLE : BLOCKS_TOGETHER;
    uint32_t most = Q == 1 ? MOST_RUN_SINGLE : MOST_RUN, least = Q == 1 ? 1 : 4;
    uint32_t runs = wanted / groups;
    a.run = parts_of(pages, runs ? runs : 1);
    a.run = a.run < least ? least : a.run > most ? most : a.run;
    dim3 grid(parts_of(pages, a.run), groups);
    CUDA_LAUNCH((score_kernel<Q, H>), grid, (wide_shape<Q, H>::threads),
                (sizeof(wide_shape<Q, H>) + 1024), s, a);
}

void cuda_index_wide(cudaStream_t s, const float *q, const float *w, const struct index_args &a,
                     uint32_t pages, bool single)
{
    uint32_t warps = a.rows * parts_of(a.heads, EACH);
    CUDA_LAUNCH(query_kernel, parts_of(warps, QUERY_WARPS), 32 * QUERY_WARPS, 0, s, q, w, a);
    if (single)
        a.heads <= 32 ? launch<1, 32>(s, a, pages) : launch<1, 64>(s, a, pages);
    else
        a.heads <= 32 ? launch<TOGETHER, 32>(s, a, pages) : launch<TOGETHER, 64>(s, a, pages);
}
