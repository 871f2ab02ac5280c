/* gemm_store.cuh - what a warpgroup's products of gemm.cuh become: scaled sums, and outputs in
 * memory.
 *
 * Private to gemm.cu. Products lie in a thread's registers as wgmma.cuh says: four for each 8
 * columns of the right operand, j counts these; g and q are its row and pair of columns. Where W is
 * on the left, rows of x are columns here (store_outs(), store_gated()), where x is, its rows are
 * rows (store_rows()). Whoever is outside of the matrix or the group writes nothing.
 */
#ifndef GAZE_CUDA_GEMM_STORE_CUH
#define GAZE_CUDA_GEMM_STORE_CUH

#include "cuda/gemm_tiles.cuh"

#include "tile/gated.cuh"
#include "tile/mma.cuh"

#if WGMMA_HERE

/* part[4 j ..] times the scales of W (w) and of two rows each, onto sum. */
template <int N>
static __device__ __forceinline__ void add_scaled(float (&sum)[N], const float (&part)[N],
                                                  const float *row_scale, float w)
{
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        float s0 = row_scale[8 * j] * w, s1 = row_scale[8 * j + 1] * w;
        sum[4 * j] = fmaf(part[4 * j], s0, sum[4 * j]);
        sum[4 * j + 1] = fmaf(part[4 * j + 1], s1, sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(part[4 * j + 2], s0, sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(part[4 * j + 3], s1, sum[4 * j + 3]);
    }
}

/* The same where rows are on the left: the scales of rows g and g + 8. */
template <int N>
static __device__ __forceinline__ void add_scaled_rows(float (&sum)[N], const float (&part)[N],
                                                       float s0, float s1)
{
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        sum[4 * j] = fmaf(part[4 * j], s0, sum[4 * j]);
        sum[4 * j + 1] = fmaf(part[4 * j + 1], s0, sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(part[4 * j + 2], s1, sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(part[4 * j + 3], s1, sum[4 * j + 3]);
    }
}

/* silu(sum[0]) * sum[1] as codes: the largest of each row over the block's 128 columns, scale,
 * codes by way of shared memory. turn: which of the three sets of maxima is this tile's. */
template <int WGS, int N>
static __device__ __forceinline__ void
store_gated(const struct gemm_args &a, float (&gate)[N], const float (&up)[N],
            const struct tiles &t, uint32_t column0, uint32_t tile_rows, unsigned char *room,
            uint32_t *most, uint32_t turn)
{
    uint32_t thread = threadIdx.x, lane = thread % 32, g = lane / 4, q = lane % 4;
    uint32_t column = thread / 32 * 16 + g;
    uint32_t *now = most + turn * tile_rows, *later = most + (turn + 2) % 3 * tile_rows;
    uint32_t left = t.count - t.row0 < tile_rows ? t.count - t.row0 : tile_rows;
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        float m[2];
#pragma unroll
        for (int i = 0; i < 4; i++)
            gate[4 * j + i] = gated(gate[4 * j + i], up[4 * j + i]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            m[i] = fmaxf(fabsf(gate[4 * j + i]), fabsf(gate[4 * j + 2 + i]));
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                m[i] = fmaxf(m[i], __shfl_xor_sync(WARP_ALL, m[i], d));
            if (g == 0)
                atomicMax(&now[8 * j + 2 * q + i], __float_as_uint(m[i]));
        }
    }
    meet_wait(1, WGS * WARPGROUP);
    for (uint32_t i = thread; i < tile_rows; i += WGS * WARPGROUP) {
        later[i] = 0;
        if (i < left)
            a.mid_scale[(size_t)(column0 / GEMM_SCALE_K) * a.mid_stride + t.first + t.row0 + i] =
                ue8m0_scale(__uint_as_float(now[i]));
    }
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t row = 8 * j + 2 * q + i;
            float inverse = 1.0f / ue8m0_scale(__uint_as_float(now[row])); /* a power of two */
            uint32_t two = e4m3_two(gate[4 * j + i] * inverse, gate[4 * j + 2 + i] * inverse);
            room[row * 144 + column] = (unsigned char)two;
            room[row * 144 + column + 8] = (unsigned char)(two >> 8);
        }
    meet_wait(1, WGS * WARPGROUP);
    for (uint32_t i = thread; i < left * 8; i += WGS * WARPGROUP) {
        uint32_t row = i / 8, chunk = i % 8 * 16;
        *(uint4 *)(a.mid + (size_t)(t.first + t.row0 + row) * a.n_out + column0 + chunk) =
            *(const uint4 *)(room + row * 144 + chunk);
    }
}

/* sum[4 j ..]: outputs out + g and out + g + 8 of rows 8 j + 2 q and the next. */
template <bool ADD, int N>
static __device__ __forceinline__ void store_outs(const struct gemm_args &a, const float (&sum)[N],
                                                  const struct tiles &t, float *y, uint32_t out)
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    uint32_t left = t.count - t.row0;
    float *to = y + (size_t)(t.first + t.row0 + 2 * q) * a.n_out + out + g;
    bool there[2] = {out + g < a.n_out, out + g + 8 < a.n_out};
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float *at = to + (size_t)(8 * j + i % 2) * a.n_out + i / 2 * 8;
            if (there[i / 2] && 8 * j + 2 * q + i % 2 < left)
                *at = ADD ? *at + sum[4 * j + i] : sum[4 * j + i];
        }
}

/* sum[4 j ..]: outputs out + 8 j + 2 q and the next of the group's rows row + g and row + g + 8. */
template <bool ADD, int N>
static __device__ __forceinline__ void store_rows(const struct gemm_args &a, const float (&sum)[N],
                                                  const struct tiles &t, float *y, uint32_t out,
                                                  uint32_t row)
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    out += 2 * q;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (row + g + 8 * i >= t.count)
            continue;
        float *to = y + (size_t)(t.first + row + g + 8 * i) * a.n_out + out;
        if (a.n_out % 2 == 0) {
#pragma unroll
            for (int j = 0; j < N / 4; j++)
                if (out + 8 * j < a.n_out) {
                    float2 v = {sum[4 * j + 2 * i], sum[4 * j + 2 * i + 1]};
                    if (ADD) {
                        float2 old = *(const float2 *)(to + 8 * j);
                        v.x += old.x;
                        v.y += old.y;
                    }
                    *(float2 *)(to + 8 * j) = v;
                }
            continue;
        }
#pragma unroll
        for (int j = 0; j < N / 4; j++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                if (out + 8 * j + k < a.n_out)
                    to[8 * j + k] = (ADD ? to[8 * j + k] : 0.0f) + sum[4 * j + 2 * i + k];
    }
}

#endif

#endif
