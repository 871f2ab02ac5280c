/* linear_odd.cu - products of bf16 or e4m3 weights on the tensor cores where 16-byte copies do not
 * divide the width: value by value, rows as sums of two bf16 made on the way.
 *
 * Tile of 64 rows x 64 outputs, 4 warps with 16 rows each, K in steps of 32; a block's scale
 * multiplies the fp32 sum of each 128 of K.
 * Cost: 4 n n_out n_in flops; W is read once for 64 rows. No deployed model has such widths.
 */
#include "cuda/linear.cuh"

#include "tile/mma.cuh"

enum { TM = 64, TN = 64, TK = 32, PAD = 8 };
static_assert(BLOCK_K % TK == 0, "a scale belongs to whole steps of K");
static_assert((TK + PAD) % 8 == 0, "rows of a tile stay aligned to 16 bytes");

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

void linear_odd(cudaStream_t s, const struct product_args *a, bool fp8, uint32_t rows,
                uint32_t groups)
{
    dim3 grid(parts_of(a->n_out, TN), parts_of(rows, TM), groups);
    if (fp8)
        CUDA_LAUNCH((tensor_kernel<true>), grid, 128, 0, s, *a);
    else
        CUDA_LAUNCH((tensor_kernel<false>), grid, 128, 0, s, *a);
}
