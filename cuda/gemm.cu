/* gemm.cu - see gemm.cuh.
 *
 * W is the left operand (64 outputs an instruction), rows the right one (16 to 128 of them), so
 * that few rows waste nothing. A block is one warp that keeps the stages full and one or two
 * warpgroups that multiply; stages of 128 bytes of K come by tensor copies, as many as fit. Blocks
 * stay and take one tile after the other, while the copies run ahead into the next tile. In a
 * cluster, blocks have neighbouring outputs and the same rows: each brings a part of these for all.
 *
 * A warpgroup has `blocks` times 64 outputs. For e4m3 the products of 128 of K land in registers of
 * their own (part) and are added to the sums with the scales while the other warpgroup's products
 * run: the tensor cores' own sums keep some 14 bits only.
 */
#include "cuda/gemm.cuh"

#include "tile/block.cuh"
#include "tile/launch.cuh"
#include "tile/mma.cuh"

#include <assert.h>

#include <type_traits>

enum { STEP_BYTES = 128, SCALE_K = 128, BOX = 64, BAND = 8, MAX_GROUPS = 1024 };
enum { MAX_STAGES = 16, STAGE_ROOM = 218 * 1024 };

static __host__ __device__ inline uint32_t parts(size_t n, size_t part)
{
    return (uint32_t)((n + part - 1) / part);
}

static __device__ __forceinline__ float gated(float gate, float up)
{
    return gate / (1.0f + expf(-gate)) * up;
}

static __device__ __forceinline__ uint32_t e4m3_two(float x, float y)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(y), "f"(x));
    return two;
#else
    return e4m3_round(x) | (uint32_t)e4m3_round(y) << 8;
#endif
}

#ifdef __CUDACC__
#include "tile/barrier.cuh"
#include "tile/wgmma.cuh"

struct gemm_args {
    const float *w_scale[2];
    size_t scale_step;
    const uint32_t *start;
    uint32_t n_groups, n_rows, n_out, n_in;
    uint32_t n_steps, scale_columns, out_tiles; /* out_tiles: of a cluster, both matrices' */
    float *y, *second;
    uint8_t *mid;
    float *mid_scale;
    uint32_t mid_stride;
    bool add;
};
struct gemm_maps {
    CUtensorMap w[2], x, scale;
};

/* Which operand is the left one, of 64 an instruction: OUTS, for few rows; GATED, of two matrices
 * for one gated output; or ROWS, for many, where a thread has two rows' scales alone. */
enum { OUTS, GATED, ROWS };

template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND> struct tile_shape {
    static_assert(BLOCKS == 1 || BLOCKS == 2, "");
    static const int left = 64 * WGS * BLOCKS;
    static const int outs = KIND == ROWS ? RIGHT : left; /* rows of W in a stage */
    static const int rows = KIND == ROWS ? left : RIGHT;
    static const int columns = KIND == GATED ? outs / 2 : outs;
    static const int w_bytes = outs * STEP_BYTES, x_bytes = rows * STEP_BYTES;
    static const int w_at = KIND == ROWS ? x_bytes : 0, x_at = KIND == ROWS ? 0 : w_bytes;
    static const int scale_at = w_bytes + x_bytes;
    /* Copies begin at multiples of 16 bytes, so that there may be 3 scales before a tile's own; and
     * they have 256 values at most. */
    static const int scale_box = (rows > 128 ? 128 : rows) + 4, scale_boxes = rows > 128 ? 2 : 1;
    static const int scale_bytes = FP8 ? scale_boxes * scale_box * 4 : 0;
    static const int scale_room = FP8 ? ((rows + 4) * 4 + 127) / 128 * 128 : 0;
    static const int stage_bytes = w_bytes + x_bytes + scale_room;
    static const int extra = KIND == GATED ? rows * (128 + 16) + 3 * rows * 4 : 0;
    static const int fit = (STAGE_ROOM - extra) / stage_bytes;
    static const int stages = fit > MAX_STAGES ? (int)MAX_STAGES : fit;
    static const int bytes = stages * stage_bytes + extra + 1024;
    static const int threads = (WGS + 1) * WARPGROUP;
    /* Registers for products that are not scaled yet. */
    static const int parts = FP8 && (BLOCKS + 2) * RIGHT / 2 <= 192 ? 2 : 1;
    /* Threads that keep stages full, each in a warp of its own: W, rows, scales, second W. */
    static const int producers = KIND == GATED ? 4 : FP8 ? 3 : 2;
    static_assert(outs <= 256 && (KIND != GATED || FP8), "");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Where the groups' rows begin, and how many row tiles lie before each. */
struct group_table {
    uint32_t start[MAX_GROUPS + 1];
    uint16_t tiles[MAX_GROUPS + 1];
};

static __device__ __forceinline__ void fill_table(struct group_table &g, const struct gemm_args &a,
                                                  uint32_t rows)
{
    for (uint32_t i = threadIdx.x; i <= a.n_groups; i += blockDim.x)
        g.start[i] = a.start ? a.start[i] : i * a.n_rows;
    __syncthreads();
    if (threadIdx.x < 32)
        for (uint32_t g0 = 0, before = 0; g0 < a.n_groups; g0 += 32) {
            uint32_t i = g0 + threadIdx.x;
            uint32_t mine = i < a.n_groups ? parts(g.start[i + 1] - g.start[i], rows) : 0;
            uint32_t upto = before + warp_upto(mine);
            if (i < a.n_groups)
                g.tiles[i + 1] = (uint16_t)upto;
            if (i == 0)
                g.tiles[0] = 0;
            before = __shfl_sync(WARP_ALL, upto, 31);
        }
    __syncthreads();
}

/* Tiles in the order blocks take them: bands of some row tiles, in a band all outputs, rows first,
 * so that what runs at the same time shares W and rows in L2. */
struct tiles {
    uint32_t next, stride, group, first, count;
    uint32_t out_tile, row0; /* of the current one */
};

static __device__ __forceinline__ bool tiles_next(struct tiles &t, const struct gemm_args &a,
                                                  const struct group_table &g, uint32_t rows)
{
    uint32_t tile = t.next / a.out_tiles; /* of rows, were there one of outputs */
    if (tile >= g.tiles[a.n_groups])
        return false;
    if (tile >= g.tiles[t.group + 1]) { /* the last group that begins at or before it */
        uint32_t low = t.group + 1, high = a.n_groups;
        while (high - low > 1) {
            uint32_t mid = (low + high) / 2;
            if (g.tiles[mid] <= tile)
                low = mid;
            else
                high = mid;
        }
        t.group = low;
    }
    t.first = g.start[t.group];
    t.count = g.start[t.group + 1] - t.first;
    uint32_t row_tiles = g.tiles[t.group + 1] - g.tiles[t.group];
    uint32_t i = t.next - g.tiles[t.group] * a.out_tiles, band = i / (BAND * a.out_tiles);
    uint32_t height = row_tiles - band * BAND < BAND ? row_tiles - band * BAND : (uint32_t)BAND;
    i -= band * BAND * a.out_tiles;
    t.out_tile = i / height;
    t.row0 = (band * BAND + i % height) * rows;
    t.next += t.stride;
    return true;
}

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

/* The warps beside each other each bring one part of every stage: see `producers`. */
template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND>
static __device__ __forceinline__ void
produce(const struct gemm_args &a, const struct gemm_maps &maps, const struct group_table &groups,
        struct tiles t, unsigned char *stage, uint64_t *full, uint64_t *empty, uint32_t who)
{
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    const uint32_t step_k = FP8 ? 128 : 64, slice = S::rows / CLUSTER;
    const uint32_t w_bytes = KIND == GATED ? S::w_bytes / 2 : S::w_bytes;
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0, at = 0, parity = 1;
    uint32_t plain_tiles = parts(a.n_out, S::outs); /* of one matrix */
    while (tiles_next(t, a, groups, S::rows)) {
        uint32_t tile = t.out_tile * CLUSTER + rank, row = t.first + t.row0;
        bool second = KIND != GATED && tile >= plain_tiles && a.second;
        uint32_t out0 = (second ? tile - plain_tiles : tile) * S::columns;
        const CUtensorMap *w = &maps.w[KIND == GATED ? who == 3 : second];
        for (uint32_t i = 0; i < a.n_steps; i++) {
            unsigned char *to = stage + at * S::stage_bytes;
            barrier_wait(&empty[at], parity);
            if (who == 0 || who == 3) {
                barrier_expect(&full[at], w_bytes);
                tensor_load_3d(to + S::w_at + (who == 3 ? w_bytes : 0), w, i * step_k, out0,
                               t.group, &full[at]);
            } else if (who == 1) {
                barrier_expect(&full[at], S::x_bytes);
                if (CLUSTER == 1)
                    tensor_load_2d(to + S::x_at, &maps.x, i * step_k, row, &full[at]);
                else
                    tensor_load_2d_all(to + S::x_at + rank * slice * STEP_BYTES, &maps.x,
                                       i * step_k, row + rank * slice, &full[at],
                                       (uint16_t)((1u << CLUSTER) - 1));
            } else {
                barrier_expect(&full[at], S::scale_bytes);
#pragma unroll
                for (int k = 0; k < S::scale_boxes; k++)
                    tensor_load_2d(to + S::scale_at + k * 512, &maps.scale,
                                   (row & ~3u) + k * 128, i, &full[at]);
            }
            if (++at == S::stages) {
                at = 0;
                parity ^= 1;
            }
        }
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
            a.mid_scale[(size_t)(column0 / SCALE_K) * a.mid_stride + t.first + t.row0 + i] =
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

/* Where a warpgroup stands among the stages. */
struct position {
    unsigned char *stage;
    uint64_t *full, *empty;
    uint32_t at, parity;
};

/* Products of 64 outputs and 128 bytes of K. FIRST: to has no sums yet. */
template <bool FP8, bool FIRST, int N>
static __device__ __forceinline__ void products(float (&to)[N], const unsigned char *w,
                                                const unsigned char *x)
{
    const enum wgmma_type TYPE = FP8 ? WGMMA_E4M3 : WGMMA_BF16;
    uint64_t left = wgmma_tile(shared_address(w), 16), right = wgmma_tile(shared_address(x), 16);
#pragma unroll
    for (int k = 0; k < STEP_BYTES / 32; k++)
        if (FIRST && !k)
            wgmma<TYPE, WGMMA_SET>(to, left, right);
        else
            wgmma<TYPE, WGMMA_ADD>(to, left + 2 * k, right + 2 * k);
}

template <int CLUSTER> static __device__ __forceinline__ void release(uint64_t *empty)
{
    uint32_t lane = threadIdx.x % 32;
    __syncwarp();
    if (CLUSTER == 1) {
        if (lane == 0)
            barrier_arrive(empty);
    } else if (lane < CLUSTER) {
        barrier_arrive_at(empty, lane);
    }
}

/* A tile's sums. part: where e4m3 products land before they are scaled; with two sets of registers
 * for that, those of the next 64 outputs or stage run while the last ones are added up. Loops have
 * no branches around products: the compiler would put all of them in a row. */
template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND>
static __device__ __forceinline__ void multiply(float (&sum)[BLOCKS][RIGHT / 2],
                                                const struct gemm_args &a,
                                                const float *const *w_scale, uint32_t skew,
                                                struct position &p)
{
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    const int N = RIGHT / 2, SCALES = KIND == GATED ? 2 : 1;
    const uint32_t group = threadIdx.x / WARPGROUP, n = a.n_steps;
    /* Where a warpgroup's blocks of 64 begin on the left; gated: the second behind all first. */
    const uint32_t left0 = group * (KIND == GATED ? 1 : BLOCKS) * BOX * STEP_BYTES;
    const uint32_t block_step = (KIND == GATED ? WGS : 1) * BOX * STEP_BYTES;
    const uint32_t right0 = S::left * STEP_BYTES;
    const uint32_t mine = KIND == ROWS ? group * BLOCKS * BOX + threadIdx.x % WARPGROUP / 32 * 16 +
                                             threadIdx.x % 32 / 4
                                       : threadIdx.x % 4 * 2;
    const uint32_t scale0 = S::scale_at + 4 * (skew + mine);
    float part[S::parts][N], w[SCALES], next[SCALES];
    uint32_t last = 0, step = 0; /* last: the stage before; step: that of next[] */
#pragma unroll
    for (int b = 0; b < SCALES; b++)
        next[b] = FP8 ? __ldg(w_scale[b]) : 1.0f;
    /* Waits for the next stage and makes it the current one, last the one that was. */
    uint32_t now = p.at;
    auto enter = [&]() {
        last = now;
        now = p.at;
        barrier_wait(&p.full[now], p.parity);
        if (++p.at == S::stages) {
            p.at = 0;
            p.parity ^= 1;
        }
    };
    auto scales = [&]() { /* of the current stage to w */
        step++;
#pragma unroll
        for (int b = 0; b < SCALES; b++) {
            w[b] = next[b];
            next[b] = FP8 && step < n ? __ldg(w_scale[b] + step) : 1.0f;
        }
    };
    auto start = [&](float(&to)[N], int b) {
        const unsigned char *from = p.stage + now * S::stage_bytes;
        wgmma_open();
        products<true, true>(to, from + left0 + b * block_step, from + right0);
        wgmma_close();
    };
    auto start_all = [&](auto first) { /* bf16 */
        const unsigned char *from = p.stage + now * S::stage_bytes;
        wgmma_open();
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            products<false, decltype(first)::value>(sum[b], from + left0 + b * block_step,
                                                    from + right0);
        wgmma_close();
    };
    auto add = [&](float(&from)[N], int b, uint32_t stage, float by) {
        const float *scale = (const float *)(p.stage + stage * S::stage_bytes + scale0);
        wgmma_pin(from);
        if (KIND == ROWS)
            add_scaled_rows(sum[b], from, scale[b * BOX] * by, scale[b * BOX + 8] * by);
        else
            add_scaled(sum[b], from, scale, by);
    };
    if constexpr (!FP8) {
        enter();
        start_all(std::true_type{});
        for (uint32_t i = 1; i < n; i++) {
            enter();
            start_all(std::false_type{});
            wgmma_wait<1>();
            release<CLUSTER>(&p.empty[last]);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            wgmma_pin(sum[b]);
        release<CLUSTER>(&p.empty[now]);
    } else if constexpr (S::parts == 1) {
        for (uint32_t i = 0; i < n; i++) {
            scales();
            enter();
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                start(part[0], b);
                wgmma_wait<0>();
                add(part[0], b, now, w[KIND == GATED ? b : 0]);
            }
            release<CLUSTER>(&p.empty[now]);
        }
    } else if constexpr (BLOCKS == 2) {
        for (uint32_t i = 0; i < n; i++) {
            scales();
            enter();
            start(part[0], 0);
            start(part[1], 1);
            wgmma_wait<1>();
            add(part[0], 0, now, w[0]);
            wgmma_wait<0>();
            add(part[1], 1, now, w[SCALES - 1]);
            release<CLUSTER>(&p.empty[now]);
        }
    } else {
        auto turn = [&](float(&next_part)[N], float(&part_now)[N]) {
            float by = w[0];
            enter();
            scales();
            start(next_part, 0);
            wgmma_wait<1>();
            add(part_now, 0, last, by);
            release<CLUSTER>(&p.empty[last]);
        };
        uint32_t i = 0;
        enter();
        scales();
        start(part[0], 0);
        for (; i + 2 < n; i += 2) {
            turn(part[1], part[0]);
            turn(part[0], part[1]);
        }
        if (i + 1 < n) {
            turn(part[1], part[0]);
            wgmma_wait<0>();
            add(part[1], 0, now, w[0]);
        } else {
            wgmma_wait<0>();
            add(part[0], 0, now, w[0]);
        }
        release<CLUSTER>(&p.empty[now]);
    }
}

template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND>
static __device__ __forceinline__ void
consume(const struct gemm_args &a, const struct group_table &groups, struct tiles t,
        unsigned char *stage, uint64_t *full, uint64_t *empty)
{
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    const int N = RIGHT / 2;
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0, turn = 0;
    uint32_t plain_tiles = parts(a.n_out, S::outs), group = threadIdx.x / WARPGROUP;
    unsigned char *room = stage + S::stages * S::stage_bytes;
    struct position p = {stage, full, empty, 0, 0};
    while (tiles_next(t, a, groups, S::rows)) {
        uint32_t tile = t.out_tile * CLUSTER + rank;
        bool second = KIND != GATED && tile >= plain_tiles && a.second;
        uint32_t out0 = (second ? tile - plain_tiles : tile) * S::columns;
        /* A warpgroup's outputs lie in one block of 128; gated: in one of each matrix. */
        const int SCALES = KIND == GATED ? 2 : 1;
        const float *w_scale[SCALES];
        float sum[BLOCKS][N];
        uint32_t first = group * (KIND == GATED ? 1 : BLOCKS) * BOX;
        first += threadIdx.x % WARPGROUP / 32 * 16;
        uint32_t out = KIND == ROWS ? out0 : out0 + first;
        out = out < a.n_out ? out : 0; /* beyond the end: any scale */
#pragma unroll
        for (int b = 0; b < SCALES; b++)
            w_scale[b] = a.w_scale[KIND == GATED ? b : second] + t.group * a.scale_step +
                         (size_t)(out / SCALE_K) * a.scale_columns;
#pragma unroll
        for (int b = 0; FP8 && b < BLOCKS; b++)
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[b][i] = 0.0f;
        multiply<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>(sum, a, w_scale, (t.first + t.row0) % 4,
                                                         p);
        float *y = second ? a.second : a.y;
        if constexpr (KIND == GATED) {
            if (out0 < a.n_out)
                store_gated<WGS>(a, sum[0], sum[1], t, out0, S::rows, room,
                                 (uint32_t *)(room + S::rows * 144), turn);
            turn = (turn + 1) % 3;
        } else if constexpr (KIND == ROWS) {
            if (a.add) {
                store_rows<true>(a, sum[0], t, y, out0, t.row0 + first);
                if constexpr (BLOCKS > 1)
                    store_rows<true>(a, sum[1], t, y, out0, t.row0 + first + BOX);
            } else {
                store_rows<false>(a, sum[0], t, y, out0, t.row0 + first);
                if constexpr (BLOCKS > 1)
                    store_rows<false>(a, sum[1], t, y, out0, t.row0 + first + BOX);
            }
        } else {
            if (a.add) {
                store_outs<true>(a, sum[0], t, y, out0 + first);
                if constexpr (BLOCKS > 1)
                    store_outs<true>(a, sum[1], t, y, out0 + first + BOX);
            } else {
                store_outs<false>(a, sum[0], t, y, out0 + first);
                if constexpr (BLOCKS > 1)
                    store_outs<false>(a, sum[1], t, y, out0 + first + BOX);
            }
        }
    }
}

#endif

template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND>
static __global__ void __launch_bounds__((WGS + 1) * WARPGROUP, 1)
    gemm_kernel(const __grid_constant__ struct gemm_args a,
                const __grid_constant__ struct gemm_maps maps)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ uint64_t full[S::stages], empty[S::stages];
    __shared__ struct group_table groups;
    unsigned char *stage = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::stages; i++) {
            barrier_init(&full[i], S::producers);
            barrier_init(&empty[i], WGS * 4 * CLUSTER);
        }
        barrier_init_done();
    }
    if (KIND == GATED)
        for (uint32_t i = threadIdx.x; i < 3 * S::rows; i += blockDim.x)
            ((uint32_t *)(stage + S::stages * S::stage_bytes + S::rows * 144))[i] = 0;
    fill_table(groups, a, S::rows);
    if (CLUSTER > 1)
        cluster_meet();
    struct tiles t = {};
    t.next = blockIdx.x / CLUSTER;
    t.stride = gridDim.x / CLUSTER;
    if (threadIdx.x >= WGS * WARPGROUP) {
        if (WGS > 1)
            registers_lower<40>();
        uint32_t who = (threadIdx.x - WGS * WARPGROUP) / 32;
        if (threadIdx.x % 32 == 0 && who < S::producers)
            produce<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>(a, maps, groups, t, stage, full, empty,
                                                            who);
    } else {
        if (WGS > 1)
            registers_raise<232>();
        consume<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>(a, groups, t, stage, full, empty);
    }
    if (CLUSTER > 1) { /* nobody leaves while others copy to it or arrive at its barriers */
        __syncwarp();
        cluster_meet();
    }
#endif
}

/* ---- launching ---- */

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
static encode_fn *encode;
static int multiprocessors;

/* Rows of `inner` values, `stride` bytes apart, and groups of them. */
static bool make_map(CUtensorMap *map, CUtensorMapDataType type, const void *at, uint32_t dims,
                     uint64_t inner, uint64_t rows, uint64_t stride, uint64_t groups, uint64_t step,
                     uint32_t box_inner, uint32_t box_rows, bool swizzle)
{
    cuuint64_t size[3] = {inner, rows, groups}, strides[2] = {stride, step};
    cuuint32_t box[3] = {box_inner, box_rows, 1}, one[3] = {1, 1, 1};
    return encode(map, type, dims, (void *)(uintptr_t)at, size, strides, box, one,
                  CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND> struct kernel_of {
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    static cudaError_t allow(void)
    {
        return cudaFuncSetAttribute(gemm_kernel<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, S::bytes);
    }
    static cudaError_t launch(cudaStream_t s, const struct gemm *g)
    {
        struct gemm_args a = {};
        struct gemm_maps maps;
        uint32_t value = FP8 ? 1 : 2, box_k = STEP_BYTES / value;
        CUtensorMapDataType type =
            FP8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        uint64_t row = (uint64_t)g->n_in * value, step = g->step ? g->step : row * g->n_out;
        bool good = true;
        for (int i = 0; i < 2; i++)
            good = good && make_map(&maps.w[i], type, g->w[i] ? g->w[i] : g->w[0], 3, g->n_in,
                                    g->n_out, row, g->n_groups, step, box_k, S::columns, true);
        good = good && make_map(&maps.x, type, g->x.value, 2, g->n_in, g->x.n, row, 1, 0, box_k,
                                S::rows / CLUSTER, true);
        maps.scale = maps.x;
        if (FP8)
            good = good && make_map(&maps.scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, g->x.scale, 2,
                                    g->x.scale_stride, parts(g->n_in, SCALE_K),
                                    (uint64_t)g->x.scale_stride * 4, 1, 0, S::scale_box, 1,
                                    false);
        if (!good)
            return cudaErrorInvalidValue;
        a.w_scale[0] = g->w_scale[0];
        a.w_scale[1] = g->w_scale[1];
        a.scale_step = g->scale_step;
        a.start = g->start;
        a.n_groups = g->n_groups;
        a.n_rows = g->x.n;
        a.n_out = g->n_out;
        a.n_in = g->n_in;
        a.n_steps = parts(g->n_in, box_k);
        a.scale_columns = parts(g->n_in, SCALE_K);
        uint32_t tiles = parts(g->n_out, S::columns) * (g->second && KIND != GATED ? 2 : 1);
        a.out_tiles = parts(tiles, CLUSTER);
        a.y = g->y;
        a.second = g->second;
        a.mid = g->mid;
        a.mid_scale = g->mid_scale;
        a.mid_stride = g->mid_stride;
        a.add = g->add;
        /* As many tiles as there can be, at most. */
        size_t most = g->start ? g->busy + g->x.n / S::rows : parts(g->x.n, S::rows);
        size_t clusters = multiprocessors / CLUSTER, needed = most * a.out_tiles;
        clusters = clusters < needed ? clusters : needed;
        cudaLaunchConfig_t config = {};
        cudaLaunchAttribute attribute[1];
        config.gridDim = dim3((unsigned)clusters * CLUSTER);
        config.blockDim = dim3(S::threads);
        config.dynamicSmemBytes = S::bytes;
        config.stream = s;
        attribute[0].id = cudaLaunchAttributeClusterDimension;
        attribute[0].val.clusterDim.x = CLUSTER;
        attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
        config.attrs = attribute;
        config.numAttrs = CLUSTER > 1;
        return cudaLaunchKernelEx(&config, gemm_kernel<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>, a,
                                  maps);
    }
};

/* Shapes: warpgroups, blocks of 64 on the left each, right, cluster, kind; as gemm_shapes. */
#define SHAPES(X)                                                                                  \
    X(0, 1, 1, 16, 1, OUTS)                                                                        \
    X(1, 1, 1, 32, 1, OUTS)                                                                        \
    X(2, 1, 1, 64, 2, OUTS)                                                                        \
    X(3, 1, 1, 128, 4, OUTS)                                                                       \
    X(4, 2, 1, 128, 1, ROWS)                                                                       \
    X(5, 2, 1, 128, 2, ROWS)                                                                       \
    X(6, 2, 2, 16, 1, OUTS)                                                                        \
    X(7, 2, 2, 32, 1, OUTS)                                                                        \
    X(8, 2, 2, 64, 1, OUTS)                                                                        \
    X(9, 2, 2, 16, 1, GATED)                                                                       \
    X(10, 2, 2, 32, 1, GATED)                                                                      \
    X(11, 2, 2, 64, 1, GATED)

cudaError_t gemm_init(void)
{
    cudaDriverEntryPointQueryResult found;
    void *fn = NULL;
    int device;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (code == cudaSuccess)
        code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000,
                                                cudaEnableDefault, &found);
    if (code != cudaSuccess || !fn)
        return code == cudaSuccess ? cudaErrorNotSupported : code;
    encode = (encode_fn *)fn;
#define ALLOW(i, w, b, r, c, kind)                                                                 \
    if (code == cudaSuccess)                                                                       \
        code = kernel_of<true, w, b, r, c, kind>::allow();                                         \
    if (code == cudaSuccess && kind != GATED)                                                      \
        code = kernel_of<false, w, b, r, c, kind == GATED ? OUTS : kind>::allow();
    SHAPES(ALLOW)
#undef ALLOW
    return code;
}

bool gemm_runs_here(void)
{
#ifdef GAZE_SM_90A
    int device, major, minor;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
#else
    return false;
#endif
}

/* How many tiles of a shape one block takes, at most. */
static uint32_t rounds(const struct gemm *g, const struct gemm_shape *s)
{
    uint32_t tiles = parts(g->n_out, s->outs) * (g->second ? 2 : 1);
    size_t all = (size_t)parts(tiles, s->cluster) * s->cluster * parts(g->likely, s->rows);
    /* Clusters of 4 do not fill the last processors of each group. */
    uint32_t blocks = (uint32_t)multiprocessors;
    return parts(all, s->cluster == 4 ? blocks - blocks / 11 : blocks);
}

/* By measurements on an H200 (tests/bench/results). Few rows: the fewest outputs a block that keep
 * all busy. Groups vary around what is likely. */
static int choose(const struct gemm *g)
{
    uint32_t n = g->likely;
    if (g->mid)
        return n <= 12 ? 9 : n <= 24 ? 10 : 11;
    if (g->start && n <= 16 && g->busy * parts(g->n_out, 256) < (uint32_t)multiprocessors / 2)
        return 0; /* a block reads its weights no faster for having more */
    if (g->start)
        return n <= 12 ? 6 : n <= 24 ? 7 : n <= 44 ? 8 : 5;
    if (n <= 16)
        return 0;
    if (n <= 32 || (n <= 128 && rounds(g, &gemm_shapes[1]) == 1))
        return 1;
    if (n <= 64 || (n <= 128 && rounds(g, &gemm_shapes[2]) == 1))
        return 2;
    if (n <= 128 && rounds(g, &gemm_shapes[3]) <= rounds(g, &gemm_shapes[4]))
        return 3;
    return n < 512 || rounds(g, &gemm_shapes[4]) < 2 ? 4 : 5;
}

cudaError_t gemm_launch(cudaStream_t s, const struct gemm *g)
{
    assert(g->n_groups >= 1 && g->n_groups <= MAX_GROUPS && (g->start || g->n_groups == 1));
    assert(g->n_groups + parts(g->x.n, 16) <= UINT16_MAX); /* of row tiles, see group_table */
    assert(g->n_in % (g->fp8 ? 16 : 8) == 0 && (!g->mid || (g->fp8 && g->n_out % SCALE_K == 0)));
    if (!g->x.n)
        return cudaSuccess;
    switch (g->shape >= 0 ? g->shape : choose(g)) {
#define CASE(i, w, b, r, c, kind)                                                                  \
    case i:                                                                                        \
        return g->fp8 ? kernel_of<true, w, b, r, c, kind>::launch(s, g)                            \
                      : kernel_of<false, w, b, r, c, kind == GATED ? OUTS : kind>::launch(s, g);
        SHAPES(CASE)
#undef CASE
    }
    return cudaErrorInvalidValue;
}

#else

cudaError_t gemm_init(void)
{
    return cudaSuccess;
}
bool gemm_runs_here(void)
{
    return false;
}
cudaError_t gemm_launch(cudaStream_t s, const struct gemm *g)
{
    (void)s;
    (void)g;
    return cudaErrorNotSupported;
}

#endif

const struct gemm_shape gemm_shapes[GEMM_SHAPES] = {
    {64, 16, 1, false, "64x16"},        {64, 32, 1, false, "64x32"},
    {64, 64, 2, false, "64x64 c2"},     {64, 128, 4, false, "64x128 c4"},
    {128, 128, 1, false, "128x128"},    {128, 128, 2, false, "128x128 c2"},
    {256, 16, 1, false, "256x16"},      {256, 32, 1, false, "256x32"},
    {256, 64, 1, false, "256x64"},      {256, 16, 1, true, "gated 128x16"},
    {256, 32, 1, true, "gated 128x32"}, {256, 64, 1, true, "gated 128x64"}};

/* ---- rows ---- */

/* A warp has 128 values of a row. GATED: of silu(x) * up. */
template <bool FP8, bool GATED>
static __global__ void __launch_bounds__(256)
    rows_kernel(const float *x, const float *up, uint32_t n_in, const uint32_t *row, void *value,
                float *scale, uint32_t stride)
{
    uint32_t block = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t k = block * SCALE_K + 4 * lane;
    if (block * SCALE_K >= n_in)
        return;
    float4 v = {};
    size_t to = blockIdx.x, at = (row ? row[to] : to) * (size_t)n_in + k;
    if (k < n_in) {
        v = *(const float4 *)(x + at);
        if (GATED) {
            float4 u = *(const float4 *)(up + at);
            v.x = gated(v.x, u.x);
            v.y = gated(v.y, u.y);
            v.z = gated(v.z, u.z);
            v.w = gated(v.w, u.w);
        }
    }
    float s = 0.0f;
    uint2 out = {};
    if (FP8) {
        float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
        s = ue8m0_scale(warp_max(most));
        float inverse = 1.0f / s; /* exact: a power of two */
        out.x = e4m3_two(v.x * inverse, v.y * inverse) |
                e4m3_two(v.z * inverse, v.w * inverse) << 16;
    } else {
        out = uint2{bf16_two(v.x, v.y), bf16_two(v.z, v.w)};
    }
    if (k < n_in && FP8)
        *(uint32_t *)((uint8_t *)value + to * n_in + k) = out.x;
    else if (k < n_in)
        *(uint2 *)((uint16_t *)value + to * n_in + k) = out;
    if (FP8 && lane == 0)
        scale[(size_t)block * stride + to] = s;
}

cudaError_t gemm_make_rows(cudaStream_t s, const struct gemm_source *from, struct gemm_rows *to)
{
    uint32_t n_in = from->n_in;
    dim3 grid(from->n, parts(n_in, 8 * SCALE_K));
    void *value = (void *)(uintptr_t)to->value;
    float *scale = (float *)(uintptr_t)to->scale;
    assert(n_in % 4 == 0 && from->n <= to->n);
    if (!from->n)
        return cudaSuccess;
    if (from->fp8 && from->up)
        CUDA_LAUNCH((rows_kernel<true, true>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else if (from->fp8)
        CUDA_LAUNCH((rows_kernel<true, false>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else if (from->up)
        CUDA_LAUNCH((rows_kernel<false, true>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else
        CUDA_LAUNCH((rows_kernel<false, false>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    return cudaGetLastError();
}
