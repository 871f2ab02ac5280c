/* attend.cuh - what the two bodies of attention share: its arguments, and how a row's past is cut.
 */
#ifndef GAZE_CUDA_ATTEND_CUH
#define GAZE_CUDA_ATTEND_CUH

#include "cuda/backend.cuh"

/* A row's past is cut into at most SPLITS parts of at least so many positions. */
enum { SPLITS = 16, CUDA_SPLIT_MIN = 64, CUDA_TENSOR_SPLIT_MIN = 256, SPLIT_STEP = 64 };
enum { CUDA_WIDE_SPLIT_MIN = 512, WIDE_SPLIT_STEP = 128 };
enum { GROUP = LATENT_GROUP };
enum { ATTEND_FILL_BLOCKS = 128 }; /* nearly as many as a Hopper GPU has processors */

struct attend_args {
    struct row_view view;
    struct matrix kv_b;
    const unsigned char *plane;
    size_t page_bytes;
    const int32_t *sel; /* NULL: all rows see everything */
    float *q, *z, *max, *sum;
    float scale;
    uint32_t row0, n, heads, nope, r, d, v, width, topk;
    uint32_t split_min, split_step; /* the least positions of a part, and what they are whole of */
    uint32_t splits; /* that a block of attend_wide.cu takes */
    enum latent_form form;
    bool means; /* z holds a split's mean, f16, in the order of mean_place(), in place of its sum */
};

/* Where a mean of 512 values has column c: as a thread of attend_wide.cu has them side by side. */
static __device__ __forceinline__ uint32_t mean_place(uint32_t c)
{
    return c / 32 * 32 + c % 8 / 2 * 8 + c % 32 / 8 * 2 + c % 2;
}

/* How many positions a row attends to, and which: NULL for [0, length). */
static __device__ __forceinline__ uint32_t row_length(const struct attend_args &a, uint32_t row,
                                                      const int32_t **list)
{
    uint32_t pos = a.view.pos[row], k = a.view.seq[a.view.seq_of[row]].top_k;
    *list = NULL;
    if (!a.sel || pos < k)
        return pos + 1;
    *list = a.sel + (size_t)row * a.topk;
    return k < a.topk ? k : a.topk;
}

static __device__ __forceinline__ uint32_t split_length(const struct attend_args &a, uint32_t n)
{
    uint32_t step = a.split_step, each = ((n + SPLITS - 1) / SPLITS + step - 1) / step * step;
    return each > a.split_min ? each : a.split_min;
}
/* How many parts rows of at most n positions have, at most. */
static inline uint32_t most_splits(uint32_t n, uint32_t split_min)
{
    uint32_t parts = parts_of(n, split_min);
    return parts < SPLITS ? parts : (uint32_t)SPLITS;
}

/* Attention's middle part on tensor cores (attend_tensor.cu): from a.q to a.z, a.max and a.sum. */
bool cuda_attend_tensor_fits(const struct cuda_backend *b); /* whether the back end takes it */
MUST_CHECK enum err_code cuda_attend_tensor_init(struct err *e);
void cuda_attend_tensor(cudaStream_t s, const struct attend_args &a, uint32_t n_splits);
/* The same for models of many heads on Hopper (attend_wide.cu). */
bool cuda_attend_wide_fits(const struct cuda_backend *b); /* a plan: whether it may */
MUST_CHECK enum err_code cuda_attend_wide_init(struct err *e);
void cuda_attend_wide(cudaStream_t s, const struct attend_args &a, uint32_t n_splits);

/* The products before and after it on tensor cores (attend_heads.cu): from q[rows, heads, nope +
 * rope] to a.q; from a.z, a.max and a.sum to out[rows, heads, v], by way of a.q and factor[rows,
 * heads]. */
bool cuda_attend_heads_fit(const struct cuda_backend *b, const struct matrix *kv_b);
MUST_CHECK enum err_code cuda_attend_heads_init(const struct cuda_backend *b, struct err *e);
void cuda_attend_absorb(const struct cuda_backend *b, cudaStream_t s, const float *q,
                        const struct attend_args &a);
void cuda_attend_values(struct cuda_backend *b, struct cuda_lane *lane, const struct attend_args &a,
                        float *factor, float *out);

#endif
