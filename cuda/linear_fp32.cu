/* linear_fp32.cu - products in fp32 arithmetic: what the router wants, and weights of any type.
 *
 * - thin: a tile of 8 or 2 outputs x 8 rows or 1, 256 threads share K; for sums that are fp32
 *   in the fast precision as well (the router).
 * - plain: for everything else; tile of 32 x 32, K in steps of 32, ascending.
 *
 * Cost: 2 n n_out n_in flops; W is read once for 8 rows (thin) or 32.
 */
#include "cuda/linear.cuh"

#include "tile/block.cuh"
#include "tile/weight.cuh"

enum { PLAIN = 32, THIN = 8, THINNER = 2 };

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

void linear_thin(cudaStream_t s, const struct product_args *a, bool four, uint32_t rows)
{
    if (four)
        launch_thin<DT_BF16>(s, *a, rows);
    else
        launch_thin<DT_F32>(s, *a, rows);
}

void linear_plain(cudaStream_t s, const struct product_args *a, uint32_t rows, uint32_t groups)
{
    dim3 grid(parts_of(a->n_out, PLAIN), parts_of(rows, PLAIN), groups);
    CUDA_LAUNCH(plain_kernel, grid, 256, 0, s, *a);
}
