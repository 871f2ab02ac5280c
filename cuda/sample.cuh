/* sample.cuh - rows' wishes, which sample.cu brings to the device, and the kernel that makes tokens
 * of them (sample_kernel.cu). Private to cuda/.
 */
#ifndef GAZE_CUDA_SAMPLE_CUH
#define GAZE_CUDA_SAMPLE_CUH

#include "cuda/backend.cuh"

/* A row's wishes; offsets count words of the pool. */
struct wish {
    float temperature, top_p, min_p, presence, frequency, repetition;
    uint32_t top_k, n_top, n_bias, n_history, n_prompt, n_banned, position, stream, given_token;
    uint32_t bias, history, banned, allowed; /* offsets */
    uint32_t key[2];                         /* the seed */
    bool has_allowed, given, want_logprob;
};

struct sample_args {
    const float *logits;
    const struct wish *wish;
    const uint32_t *pool;
    float *work;
    uint32_t *count;
    struct sample_out *out;
    uint32_t vocab, end_id;
};

/* n rows' tokens: logits, work and count are [n, vocab], wish and out [n]; work and count are
 * scratch. Queued on s; cudaGetLastError() says how that went. */
void sample_launch(cudaStream_t s, const struct sample_args *a, uint32_t n);

#endif
