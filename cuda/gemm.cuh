/* gemm.cuh - products on Hopper's warpgroups: y[rows, n_out] = or += x[rows, n_in] W^T for one
 * matrix or a group of them, e4m3 with block scales or bf16.
 *
 * Weights stay as in a checkpoint: row-major, e4m3 with a scale for each 128 x 128 (n_in a multiple
 * of 16), or bf16 (of 8). Rows of x are e4m3 with a scale for each 128 values, or bf16. An e4m3
 * product sums 128 values of K on the tensor cores, multiplies by both scales and adds to an fp32
 * sum, K ascending: each output is the same chain of roundings whatever tile it is computed in, so
 * a row's bits depend on nothing but itself and W.
 *
 * Cost: W is read once from memory; 2 rows n_out n_in operations.
 * Thread: any; returns once queued.
 */
#ifndef GAZE_CUDA_GEMM_CUH
#define GAZE_CUDA_GEMM_CUH

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GEMM_SCALE_K = 128 }; /* values of K that share a scale */

/* Rows as products take them: codes [n, n_in] and, for e4m3, scale[k / 128][row] with rows
 * scale_stride apart (a multiple of 4). */
struct gemm_rows {
    const void *value;
    const float *scale;
    uint32_t scale_stride;
    uint32_t n; /* all of value's rows */
};

struct gemm {
    bool fp8;
    /* Matrices of group 0; the next group's lie step bytes (scales: scale_step values) behind. The
     * second may be NULL: with it the product with the second matrix goes to second, or both
     * become one gated output (mid). */
    const void *w[2];
    const float *w_scale[2];
    size_t step, scale_step;
    uint32_t n_out, n_in;
    uint32_t n_groups;
    const uint32_t *start; /* on the device, [n_groups + 1]: group g has the rows [start[g],
                              start[g + 1]) of x and y; NULL: one group of all rows */
    uint32_t likely;       /* rows that most groups stay under */
    uint32_t busy;         /* groups that have rows, at most */
    struct gemm_rows x;
    float *y, *second; /* [rows, n_out] */
    bool add;
    /* Not NULL: instead of y, silu(x w[0]) * (x w[1]) as e4m3 rows [rows, n_out] with their scales;
     * n_out a multiple of 128, fp8. */
    uint8_t *mid;
    float *mid_scale;
    uint32_t mid_stride;
    int shape; /* which tile, of gemm_shapes; -1: the one that seems best for the sizes */
};

/* Whether the current device runs these products. */
bool gemm_runs_here(void);
cudaError_t gemm_init(void);
cudaError_t gemm_launch(cudaStream_t s, const struct gemm *g);

/* Tiles: outputs x rows, in a cluster of so many blocks. */
struct gemm_shape {
    uint32_t outs, rows, cluster;
    bool gated;
    const char *name;
};
enum { GEMM_SHAPES = 12, GEMM_GATED_ROWS = 44 /* in one pass no faster for more */ };
extern const struct gemm_shape gemm_shapes[GEMM_SHAPES];

/* Rows for products from fp32 ones: e4m3 with power-of-two scales (the smallest that holds the
 * largest of 128 values; ue8m0 form), or bf16. */
struct gemm_source {
    bool fp8;
    const float *x;        /* [n, n_in] */
    const float *up;       /* not NULL: rows are silu(x) * up */
    uint32_t n, n_in;    /* of the result; n_in a multiple of 4 */
    const uint32_t *row; /* on the device; not NULL: row i is x's row[i] */
};
/* to: its value and scale are written, in spite of their const. */
cudaError_t gemm_make_rows(cudaStream_t s, const struct gemm_source *from, struct gemm_rows *to);

#endif
