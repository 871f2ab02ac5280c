/* barrier.cuh - barriers in shared memory that count arrivals and bytes, the copies of tiles that
 * arrive on them, and the blocks of a cluster (sm_90 on).
 *
 * A barrier's phase is over when its arrivals have come and all bytes that were announced; phases
 * alternate in parity, the first has 0. barrier_wait(b, parity) waits until the phase of that
 * parity is over: with 1 it returns at once on a fresh barrier, so that who fills stages begins
 * with 1 and who empties them with 0.
 *
 * One thread starts a copy, of the box that the host's map describes; what lies outside of the
 * tensor arrives as zeros and counts as bytes. With the 128-byte swizzle a box lands as wgmma.cuh
 * wants its tiles.
 */
#ifndef GAZE_CUDA_TILE_BARRIER_CUH
#define GAZE_CUDA_TILE_BARRIER_CUH

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "tile/shared.cuh"

/* ---- barriers ---- */

static __device__ __forceinline__ void barrier_init(uint64_t *b, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
                 : "memory");
}
/* After barrier_init(), before anyone else's use: seen by the copy engine and the cluster. */
static __device__ __forceinline__ void barrier_init_done(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    shared_written();
}
/* One arrival, and so many bytes to come. */
static __device__ __forceinline__ void barrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/* At the same barrier of another block of the cluster. */
static __device__ __forceinline__ void barrier_arrive_at(uint64_t *b, uint32_t rank)
{
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(
                     shared_address(b)),
                 "r"(rank)
                 : "memory");
}
static __device__ __forceinline__ void barrier_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{\n\t.reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(shared_address(b)),
                 "r"(parity)
                 : "memory");
}

/* ---- clusters ---- */

static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
static __device__ __forceinline__ void cluster_meet(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* ---- tensor copies ---- */

static __device__ __forceinline__ void tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
static __device__ __forceinline__ void tensor_load_2d(void *to, const CUtensorMap *map, uint32_t x,
                                                      uint32_t y, uint64_t *arrives)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_address(arrives))
                 : "memory");
}
/* To the same place in each block of the cluster that the mask names. */
static __device__ __forceinline__ void tensor_load_2d_all(void *to, const CUtensorMap *map,
                                                          uint32_t x, uint32_t y,
                                                          uint64_t *arrives, uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_address(arrives)), "h"(blocks)
                 : "memory");
}
static __device__ __forceinline__ void tensor_load_3d(void *to, const CUtensorMap *map, uint32_t x,
                                                      uint32_t y, uint32_t z, uint64_t *arrives)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(arrives))
                 : "memory");
}

#endif
