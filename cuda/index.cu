/* index.cu - index_store's counterpart: the scores of all past positions, and the top_k of each
 * row.
 *
 * Rows go in chunks that the score buffer holds; a chunk is three launches:
 * - index_wide.cu's two where it takes the sizes, otherwise prepare: a block per (row, head)
 * rotates, (turns, quantises) and leaves the query as fp32, which holds e4m3 values exactly, and
 * the head's weight times Hi^-1/2 Di^-1/2 and the query's scale;
 * - and scores: on tensor cores in the fast precision with FP8 keys, which f16 holds exactly: a
 * block of 4 warps per row and run of pages, warp w has heads [16 w, 16 w + 16) and their queries
 * in registers; a page's codes arrive while the one before is used. Otherwise a block of 128
 * threads per (page, row); thread = key + 64 * (even or odd heads); the page's keys stand in shared
 * memory, padded by one word so that 64 threads read 32 banks.
 * - choose: a block of 1024 threads per row (tile/topk.cuh).
 * Cost: 2 Hi Di flops per (row, position) in fp32 lanes; keys are read once per row, from L2.
 */
#include "cuda/index.cuh"

#include "tile/copy.cuh"
#include "tile/index_form.cuh"
#include "tile/mma.cuh"
#include "tile/topk.cuh"

enum { MAX_INDEX_DIM = 1024, SCORE_THREADS = 128, CHUNK_ROWS = 2048 };
static const size_t SCORE_BYTES = (size_t)256 << 20;
static_assert(SCORE_THREADS == 2 * KV_PAGE_TOKENS, "two threads share a key's heads");

struct index_scratch {
    bool wide;
    uint32_t rows; /* of a chunk */
    float *query;  /* [rows, heads, dim] */
    float *weight; /* [rows, heads] */
    float *score;  /* [rows, padded context] */
};

template <typename T>
static __global__ void prepare_kernel(const T *q, const T *w, struct index_args a)
{
    __shared__ float x[MAX_INDEX_DIM];
    __shared__ uint8_t code[MAX_INDEX_DIM];
    uint32_t row = a.row0 + blockIdx.x, h = blockIdx.y;
    if (!row_selects(a, row))
        return;
    size_t pos = a.view.pos[row];
    q += ((size_t)row * a.heads + h) * a.dim;
    for (uint32_t i = threadIdx.x; i < a.dim; i += blockDim.x)
        x[i] = get(q + i);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.half; i += blockDim.x) {
        uint32_t u = a.interleaved ? 2 * i : i, v = a.interleaved ? 2 * i + 1 : i + a.half;
        float c = a.cos[pos * a.half + i], s = a.sin[pos * a.half + i], p = x[u], r = x[v];
        x[u] = p * c - r * s;
        x[v] = p * s + r * c;
    }
    __syncthreads();
    float scale = a.fp8 ? cuda_index_quantise(x, a.dim, code) : 1.0f;
    float *to = a.query + ((size_t)blockIdx.x * a.heads + h) * a.dim;
    for (uint32_t i = threadIdx.x; i < a.dim; i += blockDim.x)
        to[i] = a.fp8 ? e4m3_value(code[i]) : x[i];
    if (threadIdx.x == 0) {
        float constant = (float)(1.0 / sqrt((double)a.heads) / sqrt((double)a.dim));
        a.weight[(size_t)blockIdx.x * a.heads + h] =
            get(w + (size_t)row * a.heads + h) * constant * scale;
    }
}

static __global__ void score_kernel(struct index_args a)
{
    DYNAMIC_SHARED(float, key); /* [64][dim + 1], then 64 sums of odd heads */
    uint32_t row = a.row0 + blockIdx.y, page = blockIdx.x, n_keys = a.view.pos[row] + 1;
    if (!row_selects(a, row) || page * KV_PAGE_TOKENS >= n_keys)
        return;
    uint32_t n = n_keys - page * KV_PAGE_TOKENS;
    n = n < KV_PAGE_TOKENS ? n : KV_PAGE_TOKENS;
    const unsigned char *at =
        a.plane + (size_t)page_of(a.view, row, page * KV_PAGE_TOKENS) * a.page_bytes;
    for (uint32_t i = threadIdx.x; i < n * a.dim; i += SCORE_THREADS)
        key[i / a.dim * (a.dim + 1) + i % a.dim] =
            a.fp8 ? e4m3_value(at[i]) : ((const float *)at)[i];
    float *odd = key + KV_PAGE_TOKENS * (a.dim + 1);
    __syncthreads();
    uint32_t slot = threadIdx.x % KV_PAGE_TOKENS, part = threadIdx.x / KV_PAGE_TOKENS;
    const float *k = key + slot * (a.dim + 1);
    const float *q = a.query + (size_t)blockIdx.y * a.heads * a.dim;
    const float *w = a.weight + (size_t)blockIdx.y * a.heads;
    float sum = 0.0f;
    for (uint32_t h = part; slot < n && h < a.heads; h += 2) {
        float dot = 0.0f;
        for (uint32_t d = 0; d < a.dim; d++)
            dot = fmaf(q[(size_t)h * a.dim + d], k[d], dot);
        sum = fmaf(dot > 0.0f ? dot : 0.0f, w[h], sum);
    }
    if (part)
        odd[slot] = sum;
    __syncthreads();
    if (part || slot >= n)
        return;
    float scale = a.fp8 ? ((const float *)(at + (size_t)KV_PAGE_TOKENS * a.dim))[slot] : 1.0f;
    a.score[blockIdx.y * a.ld + page * KV_PAGE_TOKENS + slot] = (sum + odd[slot]) * scale;
}

enum { TENSOR_DIM = 128, TENSOR_HEADS = 64, TENSOR_WARPS = TENSOR_HEADS / 16, MAX_RUN = 16 };
enum { BLOCKS_WANTED = 1056 }; /* 8 for each of 132 multiprocessors */

struct score_tile {
    uint16_t key[KV_PAGE_TOKENS][TENSOR_DIM + 8];
    unsigned char raw[KV_PAGE_TOKENS * TENSOR_DIM];
    float sum[TENSOR_WARPS][KV_PAGE_TOKENS];
};
static_assert(sizeof(struct score_tile) <= 48 << 10, "fits in what every device gives a block");

static __device__ __forceinline__ void start_page(const struct index_args &a, uint32_t row,
                                                  uint32_t page, unsigned char *raw)
{
    const unsigned char *at =
        a.plane + (size_t)page_of(a.view, row, page * KV_PAGE_TOKENS) * a.page_bytes;
    for (uint32_t i = threadIdx.x; i < KV_PAGE_TOKENS * a.dim / 16; i += SCORE_THREADS)
        copy_start(raw + 16 * i, at + 16 * i, true);
}

/* Of two lanes, d apart, each keeps HALF of the sums that both have. */
template <int HALF> static __device__ __forceinline__ void fold_keys(float *v, uint32_t d)
{
    bool upper = threadIdx.x & d;
#pragma unroll
    for (uint32_t j = 0; j < HALF; j++) {
        float mine = upper ? v[j + HALF] : v[j], other = upper ? v[j] : v[j + HALF];
        v[j] = mine + __shfl_xor_sync(WARP_ALL, other, (int)d);
    }
}

/* Runs of a.run pages. A slot behind the row's end gets a score that nobody reads. */
static __global__ void __launch_bounds__(SCORE_THREADS) tensor_score_kernel(struct index_args a)
{
    __shared__ __align__(16) struct score_tile x;
    uint32_t i = blockIdx.y, row = a.row0 + i, n_keys = a.view.pos[row] + 1;
    uint32_t begin = blockIdx.x * a.run, end = parts_of(n_keys, KV_PAGE_TOKENS);
    end = end < begin + a.run ? end : begin + a.run;
    if (!row_selects(a, row) || begin >= end)
        return;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t corner = lane % 8, quarter = lane / 8, head = warp * 16 + g;
    uint32_t words = 31 - __clz((int)(a.dim / 4)); /* of a key, a power of two */
    uint32_t q[TENSOR_DIM / 16][4];
    float weight[2];
    start_page(a, row, begin, x.raw);
    copy_close_group();
#pragma unroll
    for (uint32_t s = 0; s < TENSOR_DIM / 16; s++)
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t h = head + j % 2 * 8, k = 16 * s + 2 * t + j / 2 * 8;
            bool there = h < a.heads && k < a.dim;
            const float *from = a.query + ((size_t)i * a.heads + (there ? h : 0)) * a.dim;
            q[s][j] = f16_two(there ? from[k] : 0.0f, there ? from[k + 1] : 0.0f);
        }
#pragma unroll
    for (uint32_t j = 0; j < 2; j++)
        weight[j] = head + 8 * j < a.heads ? a.weight[(size_t)i * a.heads + head + 8 * j] : 0.0f;
    for (uint32_t page = begin; page < end; page++) {
        copy_wait<0>();
        __syncthreads();
#pragma unroll 4
        for (uint32_t c = threadIdx.x; c < KV_PAGE_TOKENS << words; c += SCORE_THREADS) {
            uint32_t two[2];
            e4m3_four_f16(two, ((const uint32_t *)x.raw)[c]);
            *(uint2 *)&x.key[c >> words][(c & ((1u << words) - 1u)) * 4] = uint2{two[0], two[1]};
        }
        __syncthreads();
        if (page + 1 < end)
            start_page(a, row, page + 1, x.raw);
        copy_close_group();
        float v[KV_PAGE_TOKENS / 4];
#pragma unroll
        for (uint32_t p = 0; p < KV_PAGE_TOKENS / 16; p++) { /* 16 keys */
            float c[2][4] = {};
#pragma unroll
            for (uint32_t s = 0; s < TENSOR_DIM / 16; s++) {
                uint32_t b[4];
                if (16 * s >= a.dim)
                    continue;
                ldmatrix(b, &x.key[16 * p + quarter / 2 * 8 + corner][16 * s + quarter % 2 * 8]);
                mma_f16(c[0], q[s], b);
                mma_f16(c[1], q[s], b + 2);
            }
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) { /* keys 2t, 2t + 1, 8 + 2t, 8 + 2t + 1 */
                float top = c[j / 2][j % 2], low = c[j / 2][j % 2 + 2];
                v[4 * p + j] =
                    fmaf(top > 0.0f ? top : 0.0f, weight[0], (low > 0.0f ? low : 0.0f) * weight[1]);
            }
        }
        fold_keys<8>(v, 4); /* sums over g */
        fold_keys<4>(v, 8);
        fold_keys<2>(v, 16);
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t at = (lane & 4 ? 8 : 0) + (lane & 8 ? 4 : 0) + (lane & 16 ? 2 : 0) + j;
            x.sum[warp][at / 4 * 16 + at % 4 / 2 * 8 + 2 * t + at % 2] = v[j];
        }
        __syncthreads();
        if (threadIdx.x < KV_PAGE_TOKENS) {
            const unsigned char *at =
                a.plane + (size_t)page_of(a.view, row, page * KV_PAGE_TOKENS) * a.page_bytes;
            float scale = ((const float *)(at + (size_t)KV_PAGE_TOKENS * a.dim))[threadIdx.x];
            float sum = x.sum[0][threadIdx.x];
            for (uint32_t w = 1; w < TENSOR_WARPS; w++)
                sum += x.sum[w][threadIdx.x];
            a.score[i * a.ld + page * KV_PAGE_TOKENS + threadIdx.x] = sum * scale;
        }
    }
}

template <bool FEW>
static __global__ void __launch_bounds__(TOPK_THREADS, (FEW ? 1 : 2))
    choose_kernel(struct index_args a)
{
    DYNAMIC_SHARED(struct topk_shared, s);
    uint32_t row = a.row0 + blockIdx.x, n = a.view.pos[row] + 1;
    uint32_t k = a.view.seq[a.view.seq_of[row]].top_k;
    if (!row_selects(a, row))
        return;
    k = k < a.width ? k : a.width;
    int32_t *out = a.sel + (size_t)row * a.width;
    if (k)
        topk_row<(FEW ? TOPK_DEEP_FEW : TOPK_DEEP_MANY)>(*s, a.score + blockIdx.x * a.ld, n, k,
                                                         out);
    for (uint32_t i = k + threadIdx.x; i < a.width; i += TOPK_THREADS)
        out[i] = -1;
}

static void op_index_select(struct ops *o, enum lane l, uint32_t layer, act *q_raw,
                            const act *w_raw, int32_t *sel)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    const struct model_config *c = o->cfg;
    struct index_scratch *x = lane->index;
    uint32_t n = lane->step->n_rows, threads = (c->index_dim + 31) / 32 * 32;
    struct index_args a = {};
    assert(b->index[layer]);
    a.view = view_of(lane);
    a.cos = b->rope_cos;
    a.sin = b->rope_sin;
    a.plane = b->index[layer];
    a.page_bytes = b->index_page_bytes;
    a.ld = (size_t)parts_of(o->limits.max_context, KV_PAGE_TOKENS) * KV_PAGE_TOKENS;
    a.query = x->query;
    a.weight = x->weight;
    a.score = x->score;
    a.sel = sel;
    a.heads = c->index_heads;
    a.dim = c->index_dim;
    a.half = c->rope_dim / 2;
    a.width = c->index_topk;
    a.interleaved = c->index_rope_interleaved;
    a.fp8 = o->limits.index == INDEX_FP8;
    bool tensor =
        b->fast && a.fp8 && a.dim % 16 == 0 && a.dim <= TENSOR_DIM && a.heads <= TENSOR_HEADS;
    size_t shared = sizeof(float) * (KV_PAGE_TOKENS * (c->index_dim + 1) + KV_PAGE_TOKENS);
    for (a.row0 = 0; a.row0 < n; a.row0 += x->rows) {
        uint32_t rows = a.rows = n - a.row0 < x->rows ? n - a.row0 : x->rows;
        uint32_t pages = parts_of(lane->longest, KV_PAGE_TOKENS);
        dim3 per_head(rows, c->index_heads), per_page(pages, rows);
        if (!x->wide)
            CUDA_LAUNCH((prepare_kernel<float>), per_head, threads < 128 ? threads : 128, 0,
                        lane->stream, (const float *)q_raw, (const float *)w_raw, a);
        if (x->wide) {
            cuda_index_wide(lane->stream, (const float *)q_raw, (const float *)w_raw, a, pages,
                            lane->step->n_seqs == n);
        } else if (tensor) { /* a run has its row's queries once; how long it is moves no bits */
            a.run = per_page.x * rows / BLOCKS_WANTED;
            a.run = a.run < 1 ? 1 : a.run > MAX_RUN ? (uint32_t)MAX_RUN : a.run;
            per_page.x = parts_of(per_page.x, a.run);
            CUDA_LAUNCH(tensor_score_kernel, per_page, SCORE_THREADS, 0, lane->stream, a);
        } else {
            CUDA_LAUNCH(score_kernel, per_page, SCORE_THREADS, shared, lane->stream, a);
        }
        auto choose = rows <= TOPK_FEW_ROWS ? choose_kernel<true> : choose_kernel<false>;
        CUDA_LAUNCH(choose, rows, TOPK_THREADS, sizeof(struct topk_shared), lane->stream, a);
        cuda_launched(lane, "index_select");
    }
}

static int32_t *op_alloc_sel(struct ops *o, enum lane l)
{
    return (int32_t *)cuda_reserve(cuda_of(o),
                                   sizeof(int32_t) * o->limits.max_rows[l] * o->cfg->index_topk);
}

enum err_code cuda_index_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    const struct ops_limits *lim = &b->ops.limits;
    b->ops.alloc_sel = op_alloc_sel;
    if (!c->has_indexer)
        return ERR_OK;
    size_t shared = sizeof(float) * (KV_PAGE_TOKENS * (c->index_dim + 1) + KV_PAGE_TOKENS);
    if (shared > 48 << 10)
        return err_set(e, ERR_INVALID, "index_head_dim=%u: a page of keys is over 48 KiB",
                       c->index_dim);
    for (int l = 0; l < N_LANES; l++) {
        struct index_scratch *x = (struct index_scratch *)cuda_reserve_host(b, sizeof *x);
        if (!x)
            return err_set(e, ERR_NOMEM, "indexer workspace");
        b->lane[l].index = x;
        x->wide = cuda_index_wide_fits(b);
        size_t row = sizeof(float) * KV_PAGE_TOKENS * parts_of(lim->max_context, KV_PAGE_TOKENS);
        size_t rows = SCORE_BYTES / row;
        rows = rows < 1 ? 1 : rows < CHUNK_ROWS ? rows : CHUNK_ROWS;
        x->rows = (uint32_t)(rows < lim->max_rows[l] ? rows : lim->max_rows[l]);
        x->query =
            (float *)cuda_reserve(b, sizeof(float) * x->rows * c->index_heads * c->index_dim);
        x->weight = (float *)cuda_reserve(b, sizeof(float) * x->rows * c->index_heads);
        x->score = (float *)cuda_reserve(b, row * x->rows);
        if (!x->query || !x->weight || !x->score)
            return err_set(e, ERR_NOMEM, "indexer workspace of %u rows", x->rows);
    }
    b->ops.index_select = op_index_select;
    if (b->dry)
        return ERR_OK;
    const cudaFuncAttribute what = cudaFuncAttributeMaxDynamicSharedMemorySize;
    int bytes = (int)sizeof(struct topk_shared);
    cudaError_t code = cudaFuncSetAttribute(choose_kernel<true>, what, bytes);
    if (code == cudaSuccess)
        code = cudaFuncSetAttribute(choose_kernel<false>, what, bytes);
    if (code != cudaSuccess)
        return err_set(e, ERR_CUDA, "indexer: %s", cudaGetErrorString(code));
    return b->lane[0].index->wide ? cuda_index_wide_init(e) : ERR_OK;
}
