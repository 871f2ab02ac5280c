/* linear.cu - y[n, n_out] = or += x[n, n_in] W^T, for one matrix or a group of them.
 *
 * Two kernels, chosen by W's type and the precision alone, so a row's bits never depend on n:
 * - tensor: activations as the sum of two bf16, hi and lo, split as they are read; bf16 or e4m3
 * weights. Tile of 64 rows x 64 outputs, K in steps of 32 through shared memory, 4 warps of 16 rows
 * x 64 outputs each; each step of 16 multiplies hi first, then lo. e4m3 codes are exact in bf16;
 * their block scale multiplies the fp32 sum of each 128 of K.
 * - plain: fp32 arithmetic for everything else; tile of 32 x 32, K in steps of 32.
 * Sums run over K in rising order. Cost: 2 n n_out n_in flops (tensor: twice that, for hi and lo);
 * W is read once per 64 rows.
 */
#include "cuda/backend.cuh"

#include "tile/mma.cuh"
#include "tile/weight.cuh"

enum { TM = 64, TN = 64, TK = 32, PAD = 8, BLOCK_K = 128, PLAIN = 32 };
static_assert(BLOCK_K % TK == 0, "a scale belongs to whole steps of K");
static_assert((TK + PAD) % 8 == 0, "rows of a tile stay aligned to 16 bytes");

struct product_args {
    const struct matrix *group; /* NULL: `one` */
    struct matrix one;
    uint32_t w_step;
    const uint32_t *start, *row;
    const void *x;
    void *y;
    uint32_t n, n_out, n_in;
    bool add;
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

static void launch(struct cuda_backend *b, struct cuda_lane *lane, const struct product_args &a,
                   enum dtype t, bool exact, uint32_t rows, uint32_t groups)
{
    bool tensor = b->fast && !exact && (t == DT_BF16 || t == DT_F8_E4M3);
    uint32_t tile = tensor ? (uint32_t)TM : (uint32_t)PLAIN, max_y = 32768;
    dim3 grid(parts_of(a.n_out, tile), parts_of(rows, tile), groups);
    cudaStream_t s = lane->stream;
    assert(grid.y <= max_y);
    if (tensor && t == DT_BF16)
        CUDA_LAUNCH((tensor_kernel<false>), grid, 128, 0, s, a);
    else if (tensor)
        CUDA_LAUNCH((tensor_kernel<true>), grid, 128, 0, s, a);
    else
        CUDA_LAUNCH(plain_kernel, grid, 256, 0, s, a);
    cuda_launched(lane, "linear");
}

void cuda_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p)
{
    if (!p->n)
        return;
    struct product_args a = {NULL, *p->w, 0,           NULL,       NULL,  p->x,
                             p->y, p->n,  p->w->n_out, p->w->n_in, p->add};
    launch(b, lane, a, p->w->dtype, p->exact, p->n, 1);
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
    launch(b, lane, a, p->dtype, false, p->max_group, p->n_groups);
}

static void op_linear(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                      act *y, bool add)
{
    struct product p = {w, x, n, y, add, false};
    cuda_product(cuda_of(o), &cuda_of(o)->lane[l], &p);
}

enum err_code cuda_linear_init(struct cuda_backend *b, struct err *e)
{
    (void)e;
    b->ops.linear = op_linear;
    return ERR_OK;
}
