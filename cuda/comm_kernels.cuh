/* comm_kernels.cuh - kernels of the collectives: launches of comm_device.cu and comm_nccl.cu.
 *
 * Private to cuda/. A call is filled as struct peer_call says; all ranks launch the same with the
 * same n, each on its own device, which is the caller's current one. `most`: blocks of a grid at
 * most, the same on all ranks, up to PEER_BLOCKS. What went wrong comes in the call's report.
 */
#ifndef GAZE_CUDA_COMM_KERNELS_CUH
#define GAZE_CUDA_COMM_KERNELS_CUH

#include "tile/peer.cuh"

/* all_reduce: c->n elements; scatter: c->n elements of each rank's part. */
void peer_launch_sum(const struct peer_call *c, bool bf16_values, bool scatter, uint32_t most,
                     cudaStream_t s);
/* c->n bytes of each rank */
void peer_launch_gather(const struct peer_call *c, uint32_t most, cudaStream_t s);

struct peer_parts { /* bytes for and of each rank, and where they lie in in and out */
    unsigned long long send_at[PEER_RANKS], send[PEER_RANKS], recv_at[PEER_RANKS], recv[PEER_RANKS];
};
void peer_launch_exchange(const struct peer_call *c, const struct peer_parts *p, uint32_t blocks,
                          cudaStream_t s);
/* c->n bytes from root's in to the others' out; c->n == 0: a barrier */
void peer_launch_broadcast(const struct peer_call *c, uint32_t root, uint32_t most, cudaStream_t s);

/* out[n] = in[n] + in[stride + n] + ..., n_parts of them in that order, in fp32, rounded once. */
void sum_parts(const void *in, size_t stride, uint32_t n_parts, void *out, size_t n,
               bool bf16_values, cudaStream_t s);

#endif
