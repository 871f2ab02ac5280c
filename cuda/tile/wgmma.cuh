/* wgmma.cuh - Hopper's products of a warpgroup (4 warps, 128 threads): C[64, N] (+)= A[64, k] B[k,
 * N], both operands in shared memory, fp32 sums in registers; k is 16 values of f16 or 32 of e4m3.
 *
 * Tiles are blocks of rows of 128 bytes whose 16-byte chunks change places by the row's low three
 * bits (wgmma_at()); a block begins at a multiple of 1024 bytes.
 *   along rows    A and B: rows are the 64 rows of A, the N columns of B; 128 bytes of the sum's
 *                 index; 32 bytes, a step, further is an address 32 bytes further.
 *   across (B)    rows are the sum's index, 128 bytes are 64 columns; more columns are further
 *                 blocks.
 *
 * Sums of thread i of the group, with w = i / 32, g = i % 32 / 4, t = i % 4:
 *   - c[4 j + 0, 1]: C[16 w + g][8 j + 2 t, + 1]
 *   - c[4 j + 2, 3]: C[16 w + g + 8][the same]
 *
 * Order: what ordinary stores left in shared memory is seen after wgmma_written() by each writer
 * and a barrier; wgmma_open(), products, wgmma_close(); sums are there after wgmma_wait<0>().
 * The emulated device multiplies at once, by the same descriptors.
 */
#ifndef GAZE_CUDA_TILE_WGMMA_CUH
#define GAZE_CUDA_TILE_WGMMA_CUH

#include "tile/mma.cuh"

/* Whether the code that is being compiled may use them. */
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_HERE 1
#else
#define WGMMA_HERE 0
#endif

enum { WGMMA_ROW = 128, WGMMA_BLOCK = 64 * WGMMA_ROW, WGMMA_GROUP = 128 };

/* Where byte `at` of row `row` of a block lies. */
static __host__ __device__ __forceinline__ uint32_t wgmma_at(uint32_t row, uint32_t at)
{
    return row * WGMMA_ROW + (((at >> 4) ^ (row & 7u)) << 4) + (at & 15u);
}

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
#ifdef __CUDACC__
    return (uint32_t)__cvta_generic_to_shared(p);
#else
    return (uint32_t)((const unsigned char *)p - (const unsigned char *)emulated_shared());
#endif
}

/* A tile from address on; `further`: bytes from one block of 64 columns to the next (across). */
static __device__ __forceinline__ uint64_t wgmma_tile(uint32_t address, uint32_t further)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(further >> 4) << 16 |
           (address & 0x3FFFFu) >> 4;
}

/* Of two groups of threads, one says that it is here and goes on, one waits until `threads` have
 * said so or wait. Ids 1 .. 15; whole warps. */
static __device__ __forceinline__ void meet_wait(uint32_t id, uint32_t threads)
{
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulated_meet(id, threads, true);
#endif
}
static __device__ __forceinline__ void meet_tell(uint32_t id, uint32_t threads)
{
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulated_meet(id, threads, false);
#endif
}

static __device__ __forceinline__ void wgmma_written(void)
{
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#endif
}
static __device__ __forceinline__ void wgmma_open(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wgmma_close(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/* Until at most N closed groups of products are under way. */
template <int N> static __device__ __forceinline__ void wgmma_wait(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
/* Keeps the compiler from using sums before a wait that stands in front of it. */
template <int N> static __device__ __forceinline__ void wgmma_pin(float (&c)[N])
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(c[i])::"memory");
#endif
}
/* A whole warpgroup says how many registers each of its threads needs from now on. */
template <int N> static __device__ __forceinline__ void registers_raise(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> static __device__ __forceinline__ void registers_lower(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* clang-format off */
#define REGS_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, " \
    "%12, %13, %14, %15"
#define SUMS_4(c, i) "+f"(c[i]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3])
#define SUMS_16(c, i) SUMS_4(c, i), SUMS_4(c, (i) + 4), SUMS_4(c, (i) + 8), SUMS_4(c, (i) + 12)
#define REGS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, " \
    "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_32(c, i) SUMS_16(c, i), SUMS_16(c, (i) + 16)
#define REGS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, " \
    "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
    "%60, %61, %62, %63"
#define SUMS_64(c, i) SUMS_32(c, i), SUMS_32(c, (i) + 32)
#define REGS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, " \
    "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
    "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, " \
    "%72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, " \
    "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
    "%120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_128(c, i) SUMS_64(c, i), SUMS_64(c, (i) + 64)
#define WGMMA_ASM(shape, regs, sums, a_at, b_at, add_at, flags)                                    \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #add_at ", 0;\n\t"                       \
                 "wgmma.mma_async.sync.aligned." shape " {" regs "}, %" #a_at ", %" #b_at          \
                 ", p, 1, 1" flags ";\n\t}"                                                      \
                 : sums                                                                            \
                 : "l"(a), "l"(b), "r"((int)add))
/* clang-format on */
#endif

/* f16; ACROSS: B lies across. add: to what is there, otherwise c is written. */
template <int N, bool ACROSS, int FROM = 0, int SIZE>
static __device__ __forceinline__ void wgmma_f16(float (&c)[SIZE], uint64_t a, uint64_t b, bool add)
{
    static_assert(FROM + N / 2 <= SIZE, "the sums are there");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert((N == 64 && !ACROSS && !FROM) || (N == 128 && ACROSS), "what is used");
    if constexpr (N == 64)
        WGMMA_ASM("m64n64k16.f32.f16.f16", REGS_32, SUMS_32(c, 0), 32, 33, 34, ", 0, 0");
    else
        WGMMA_ASM("m64n128k16.f32.f16.f16", REGS_64, SUMS_64(c, FROM), 64, 65, 66, ", 0, 1");
#elif !defined(__CUDACC__)
    emulated_wgmma(c + FROM, N, a, b, add, true, ACROSS);
#endif
}
/* e4m3, both along rows. */
template <int N>
static __device__ __forceinline__ void wgmma_e4m3(float (&c)[N / 2], uint64_t a, uint64_t b,
                                                  bool add)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(N == 32 || N == 64 || N == 128 || N == 256, "what is used");
    if constexpr (N == 32)
        WGMMA_ASM("m64n32k32.f32.e4m3.e4m3", REGS_16, SUMS_16(c, 0), 16, 17, 18, "");
    else if constexpr (N == 64)
        WGMMA_ASM("m64n64k32.f32.e4m3.e4m3", REGS_32, SUMS_32(c, 0), 32, 33, 34, "");
    else if constexpr (N == 128)
        WGMMA_ASM("m64n128k32.f32.e4m3.e4m3", REGS_64, SUMS_64(c, 0), 64, 65, 66, "");
    else
        WGMMA_ASM("m64n256k32.f32.e4m3.e4m3", REGS_128, SUMS_128(c, 0), 128, 129, 130, "");
#elif !defined(__CUDACC__)
    emulated_wgmma(c, N, a, b, add, false, false);
#endif
}

#endif
