/* gemm_tiles.cuh - the tiles of a product of gemm.cuh: their sizes and what they take of shared
 * memory, and the order in which blocks take them.
 *
 * Private to gemm.cu. A tile is `columns` outputs of one group (of one of its matrices, or of both
 * for a gated output) by `rows` of the group's rows. Stages of 128 bytes of K lie one behind the
 * other, each: the left operand, the right one, the rows' scales; behind all of them what a gated
 * output is gathered in. Copies and products want operands at multiples of 1024 bytes.
 */
#ifndef GAZE_CUDA_GEMM_TILES_CUH
#define GAZE_CUDA_GEMM_TILES_CUH

#include "cuda/gemm.cuh"

#include "tile/barrier.cuh"
#include "tile/block.cuh"
#include "tile/numbers.cuh"
#include "tile/wgmma.cuh"

enum { STEP_BYTES = 128, BOX = 64, BAND = 8, MAX_GROUPS = 1024 };
enum { MAX_STAGES = 16, STAGE_ROOM = 218 * 1024 };
static_assert((int)STEP_BYTES == (int)WGMMA_ROW, "a stage has rows of a tile of wgmma.cuh");

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

#if WGMMA_HERE

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
            uint32_t mine = i < a.n_groups ? parts_of(g.start[i + 1] - g.start[i], rows) : 0;
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

#endif

#endif
