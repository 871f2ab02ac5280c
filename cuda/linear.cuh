/* linear.cuh - what the files of linear.cu share: arguments, workspace, and who launches what.
 *
 * Private to cuda/linear*.cu. linear.cu chooses and cuts; each kernel has a file:
 *   linear_stream.cu  bf16 and e4m3 weights in the fast precision
 *   linear_odd.cu     those of widths that 16-byte copies do not divide
 *   linear_fp32.cu    fp32 arithmetic
 *   linear_rows.cu    what rows become before they are multiplied: split, or rounded
 *
 * Functions queue one launch on s and return; cudaGetLastError() says how that went.
 */
#ifndef GAZE_CUDA_LINEAR_CUH
#define GAZE_CUDA_LINEAR_CUH

#include "cuda/backend.cuh"

enum { BLOCK_K = 128, OUTS = 128 /* of a stream's tile */, THREADS = 256 };
static_assert((int)OUTS == (int)BLOCK_K, "a tile has one row of scales");
/* K of a matrix of MAX_SPLIT_TILES tiles or fewer is cut in parts, for SPLIT_ROWS rows at once;
 * tiles times parts are at most FILL_BLOCKS. */
enum { SPLIT_ROWS = 512, FILL_BLOCKS = 264, MAX_SPLIT_TILES = FILL_BLOCKS / 2 };
enum { SPLIT_FORM_ROWS = 1024 }; /* that are in split form at once */

struct linear_scratch {
    float4 *part;      /* [parts][sums of a block], as its threads hold them */
    uint32_t *arrived; /* [tiles] blocks that have left their part; 0 between launches */
    uint4 *form;       /* rows in split form, of form_values values */
    float *factor;     /* [SPLIT_FORM_ROWS] */
    size_t form_values;
    /* What form holds now; NULL: nothing that may be used again. */
    const void *held;
    uint32_t held_rows, held_in;
    bool held_f16;
};

struct product_args {
    const struct matrix *group; /* NULL: `one` */
    struct matrix one;
    uint32_t w_step;
    const uint32_t *start, *row;
    const void *x;
    const float *factor; /* of rows in split form */
    void *y, *second;    /* second: of the group's next matrix, by the blocks behind the first's */
    uint32_t n, n_out, n_in;
    bool add;
    uint32_t n_splits, split_k; /* parts of K, and how much of it each has */
    /* Parts of one matrix as groups: group z has the outputs from z * part_outs + part_first on,
     * and of each row of x and y the z-th piece. 0: no parts. */
    uint32_t part_outs, part_first;
    uint32_t x_pieces, y_row; /* pieces of a row of x; values of a row of y */
    float4 *sums;
    uint32_t *arrived;
};

/* The rows of this block's group: first row of y and count. second: of the group's two matrices. */
static __device__ __forceinline__ struct matrix
block_matrix(const struct product_args &a, uint32_t *first, uint32_t *count, bool second = false)
{
    struct matrix w = a.one;
    *first = 0;
    *count = a.n;
    if (a.group) {
        *first = a.start[blockIdx.z];
        *count = a.start[blockIdx.z + 1] - *first;
        return a.group[(size_t)blockIdx.z * a.w_step + second];
    }
    if (a.part_outs) {
        uint32_t out = blockIdx.z * a.part_outs + a.part_first;
        w.data = (const unsigned char *)w.data + (size_t)out * w.n_in * (w.scale ? 1 : 2);
        if (w.scale)
            w.scale += (size_t)(out / BLOCK_K) * parts_of(w.n_in, BLOCK_K);
    }
    return w;
}

/* Takes rows in split form. rows: of all groups' largest, or of the matrix; likely: what most
 * groups have; groups: of matrices, or of parts of one. Init: once per device, before the first. */
void linear_stream(cudaStream_t s, const struct product_args *a, bool fp8, uint32_t rows,
                   uint32_t likely, uint32_t groups);
cudaError_t linear_stream_init(void);
/* The others take fp32 rows. */
void linear_odd(cudaStream_t s, const struct product_args *a, bool fp8, uint32_t rows,
                uint32_t groups);
void linear_plain(cudaStream_t s, const struct product_args *a, uint32_t rows, uint32_t groups);
/* No groups; four: W is bf16 and n_in a multiple of 4. */
void linear_thin(cudaStream_t s, const struct product_args *a, bool four, uint32_t rows);

/* y's values have been written: rows that lie there are held no longer. */
void linear_rows_written(struct cuda_lane *lane, const void *y, size_t values);

#endif
