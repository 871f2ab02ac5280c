/* gemm_kernel.cuh - the kernel of gemm.cuh's products.
 *
 * Private to gemm.cu. W is the left operand (64 outputs an instruction), rows the right one (16 to
 * 128 of them), so that few rows waste nothing; for many rows they change places. A block is one
 * warpgroup that keeps the stages full (produce(), a thread of each warp) and one or two that
 * multiply (consume()); stages of 128 bytes of K come by tensor copies, as many as fit. Each stage
 * has two barriers: full, when its bytes have come, and empty, when all warps of the cluster that
 * multiply have read it.
 * Blocks stay and take one tile after the other, while the copies run ahead into the next tile. In
 * a cluster, blocks have neighbouring outputs and the same rows: each brings a part of these for
 * all.
 *
 * A warpgroup has `blocks` times 64 on the left. For e4m3 the products of 128 of K land in
 * registers of their own (part) and are added to the sums with the scales while the other
 * warpgroup's products run: the tensor cores' own sums keep some 14 bits only.
 */
#ifndef GAZE_CUDA_GEMM_KERNEL_CUH
#define GAZE_CUDA_GEMM_KERNEL_CUH

#include "cuda/gemm_store.cuh"
#include "cuda/gemm_tiles.cuh"

#include "tile/barrier.cuh"
#include "tile/launch.cuh"
#include "tile/wgmma.cuh"

#include <type_traits>

#if WGMMA_HERE

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
    uint32_t plain_tiles = parts_of(a.n_out, S::outs); /* of one matrix */
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
    uint32_t plain_tiles = parts_of(a.n_out, S::outs), group = threadIdx.x / WARPGROUP;
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
                         (size_t)(out / GEMM_SCALE_K) * a.scale_columns;
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
#if WGMMA_HERE
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

#endif
