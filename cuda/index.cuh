/* index.cuh - what the files of the indexer's selection share. */
#ifndef GAZE_CUDA_INDEX_CUH
#define GAZE_CUDA_INDEX_CUH

#include "cuda/backend.cuh"

struct index_args {
    struct row_view view;
    const float *cos, *sin;
    const unsigned char *plane;
    size_t page_bytes, ld; /* of a row of scores */
    float *query, *weight, *score;
    int32_t *sel;
    uint32_t row0, rows, heads, dim, half, width, run;
    bool interleaved, fp8;
};

static __device__ __forceinline__ bool row_selects(const struct index_args &a, uint32_t row)
{
    return a.view.pos[row] >= a.view.seq[a.view.seq_of[row]].top_k;
}

/* Queries and scores on Hopper, with FP8 keys of 128 values and at most 64 heads (index_wide.cu):
 * from q and w to a.score of rows [row0, row0 + rows). single: no two rows of the step are of one
 * sequence; it moves no bits. */
bool cuda_index_wide_fits(const struct cuda_backend *b);
MUST_CHECK enum err_code cuda_index_wide_init(struct err *e);
void cuda_index_wide(cudaStream_t s, const float *q, const float *w, const struct index_args &a,
                     uint32_t pages, bool single);

#endif
