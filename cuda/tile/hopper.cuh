/* hopper.cuh - what sm_90a has beyond its forerunners: barriers in shared memory that count bytes,
 * tensor copies that arrive on them, and products of a whole warpgroup.
 *
 * Tiles in shared memory are rows of 128 bytes whose 16-byte chunks change places within groups of
 * 8 rows (the copy engine's 128-byte swizzle); they start at multiples of 1024 bytes. wgmma_tile()
 * names one to the tensor cores, and 32 bytes further along K is 2 more in the name.
 *
 * Accumulators of a product of 64 x N: warp w of the group has rows 16 w .., lane l = 4 g + t:
 *   d[4 j]  row g, column 8 j + 2 t    d[4 j + 1]  the next column    d[4 j + 2 ..]  row g + 8
 */
#ifndef GAZE_CUDA_TILE_HOPPER_CUH
#define GAZE_CUDA_TILE_HOPPER_CUH

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

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
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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
/* Some of the block's warps: n threads. Barrier 0 is __syncthreads(). */
static __device__ __forceinline__ void threads_meet(uint32_t barrier, uint32_t n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(n) : "memory");
}

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

/* ---- products of a warpgroup ---- */

static __device__ __forceinline__ uint64_t wgmma_tile(const void *tile)
{
    uint64_t at = shared_address(tile) >> 4; /* 8 rows are 1024 bytes; 128-byte swizzle */
    return (at & 0x3FFF) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
static __device__ __forceinline__ void wgmma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_end(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> static __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from moving uses of d across. */
template <int N> static __device__ __forceinline__ void wgmma_pin(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i]));
}

#define D4(how, i) how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3])
#define D16(how, i) D4(how, i), D4(how, i + 4), D4(how, i + 8), D4(how, i + 12)
#define D8_ALL(how) D4(how, 0), D4(how, 4)
#define D16_ALL(how) D16(how, 0)
#define D32_ALL(how) D16(how, 0), D16(how, 16)
#define D64_ALL(how) D32_ALL(how), D16(how, 32), D16(how, 48)
#define SET "=f"
#define ADD_TO "+f"
#define NAMES_8 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define NAMES_16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define NAMES_32                                                                                   \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "  \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define NAMES_64                                                                                   \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "  \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "   \
    "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "   \
    "%56, %57, %58, %59, %60, %61, %62, %63}"
/* d = A B^T over 32 bytes of K: 32 e4m3 or 16 bf16 (wgmma_first), or d += that (wgmma_more). */
#define WGMMA_ONE(name, how, more, n, values, names, a_arg, b_arg)                                 \
    template <bool FP8>                                                                            \
    static __device__ __forceinline__ void name(float (&d)[values], uint64_t a, uint64_t b)        \
    {                                                                                              \
        if (FP8)                                                                                   \
            asm volatile("{\n\t.reg .pred p;\n\t"                                                  \
                         "setp.ne.b32 p, " more ", 0;\n\t"                                         \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 " names         \
                         ", " a_arg ", " b_arg ", p, 1, 1;\n\t}"                                   \
                         : D##values##_ALL(how)                                                    \
                         : "l"(a), "l"(b));                                                        \
        else                                                                                       \
            asm volatile("{\n\t.reg .pred p;\n\t"                                                  \
                         "setp.ne.b32 p, " more ", 0;\n\t"                                         \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 " names         \
                         ", " a_arg ", " b_arg ", p, 1, 1, 0, 0;\n\t}"                             \
                         : D##values##_ALL(how)                                                    \
                         : "l"(a), "l"(b));                                                        \
    }
#define WGMMA(...)                                                                                 \
    WGMMA_ONE(wgmma_first, SET, "0", __VA_ARGS__)                                                  \
    WGMMA_ONE(wgmma_more, ADD_TO, "1", __VA_ARGS__)
WGMMA(16, 8, NAMES_8, "%8", "%9")
WGMMA(32, 16, NAMES_16, "%16", "%17")
WGMMA(64, 32, NAMES_32, "%32", "%33")
WGMMA(128, 64, NAMES_64, "%64", "%65")
#undef WGMMA
#undef WGMMA_ONE
#undef NAMES_8
#undef NAMES_16
#undef NAMES_32
#undef NAMES_64
#undef D64_ALL
#undef D32_ALL
#undef D16_ALL
#undef D8_ALL
#undef D16
#undef D4
#undef SET
#undef ADD_TO

#endif
