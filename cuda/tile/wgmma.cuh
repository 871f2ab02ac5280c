/* wgmma.cuh - Hopper's products of a warpgroup (4 warps, 128 threads): C[64, N] (+)= A[64, k] B[k,
 * N], both operands in shared memory, fp32 sums in registers; k is 32 bytes: 16 values of f16 or
 * bf16, or 32 of e4m3.
 *
 * Tiles are blocks of rows of 128 bytes whose 16-byte chunks change places by the row's low three
 * bits (wgmma_at(); a tensor copy's 128-byte swizzle); a block begins at a multiple of 1024 bytes.
 *   along rows    A and B: rows are the 64 rows of A, the N columns of B; 128 bytes of the sum's
 *                 index; 32 bytes, a step, further is an address 32 bytes further, which is 2 more
 *                 in a tile's name.
 *   across (B)    rows are the sum's index, 128 bytes are 64 columns; more columns are further
 *                 blocks.
 *
 * Sums of thread i of the group, with w = i / 32, g = i % 32 / 4, t = i % 4:
 *   - c[4 j + 0, 1]: C[16 w + g][8 j + 2 t, + 1]
 *   - c[4 j + 2, 3]: C[16 w + g + 8][the same]
 *
 * Order: what ordinary stores left in shared memory is seen after shared_written() by each writer
 * and a barrier; wgmma_open(), products, wgmma_close(); sums are there after wgmma_wait<0>().
 * The emulated device multiplies at once, by the same names; it knows f16 and e4m3.
 */
#ifndef GAZE_CUDA_TILE_WGMMA_CUH
#define GAZE_CUDA_TILE_WGMMA_CUH

#include "tile/group.cuh"
#include "tile/shared.cuh"

/* Whether the code that is being compiled may use them. */
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_HERE 1
#else
#define WGMMA_HERE 0
#endif

enum { WGMMA_ROW = 128, WGMMA_BLOCK = 64 * WGMMA_ROW };

/* Where byte `at` of row `row` of a block lies. */
static __host__ __device__ __forceinline__ uint32_t wgmma_at(uint32_t row, uint32_t at)
{
    return row * WGMMA_ROW + (((at >> 4) ^ (row & 7u)) << 4) + (at & 15u);
}

/* The name of a tile from address on; `further`: bytes from one block of 64 columns to the next
 * (across; along rows it is not read). */
static __device__ __forceinline__ uint64_t wgmma_tile(uint32_t address, uint32_t further)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(further >> 4) << 16 |
           (address >> 4 & 0x3FFFu);
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

enum wgmma_type { WGMMA_E4M3, WGMMA_BF16, WGMMA_F16 };
/* The sums become the product, in what registers seem best to the compiler; or in those that they
 * are in; or it is added to them. */
enum wgmma_how { WGMMA_SET, WGMMA_OVER, WGMMA_ADD };

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* clang-format off */
#define SUMS_4(how, i) how(c[i]), how(c[(i) + 1]), how(c[(i) + 2]), how(c[(i) + 3])
#define SUMS_8(how, i) SUMS_4(how, i), SUMS_4(how, (i) + 4)
#define SUMS_16(how, i) SUMS_8(how, i), SUMS_8(how, (i) + 8)
#define SUMS_32(how, i) SUMS_16(how, i), SUMS_16(how, (i) + 16)
#define SUMS_64(how, i) SUMS_32(how, i), SUMS_32(how, (i) + 32)
#define SUMS_128(how, i) SUMS_64(how, i), SUMS_64(how, (i) + 64)
#define REGS_8 \
    "%0, %1, %2, %3, %4, %5, %6, %7"
#define REGS_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
    "%15"
#define REGS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
    "%28, %29, %30, %31"
#define REGS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
    "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
    "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, " \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
    "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
    "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, " \
    "%67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, " \
    "%93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, " \
    "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
    "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
    "%127"
#define WRITTEN "=f"
#define IN_PLACE "+f"
/* N columns, whose sums are `half`; a_at and b_at are the first operands behind these. */
#define WGMMA_ASM(shape, how, more, half, a_at, b_at, flags)                                       \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " more ", 0;\n\t"                           \
                 "wgmma.mma_async.sync.aligned." shape " {" REGS_##half "}, %" #a_at ", %" #b_at   \
                 ", p, 1, 1" flags ";\n\t}"                                                        \
                 : SUMS_##half(how, FROM)                                                          \
                 : "l"(a), "l"(b))
#define WGMMA_TYPES(how, more, n, half, a_at, b_at)                                                \
    if constexpr (TYPE == WGMMA_E4M3)                                                              \
        WGMMA_ASM("m64n" #n "k32.f32.e4m3.e4m3", how, more, half, a_at, b_at, "");                 \
    else if constexpr (TYPE == WGMMA_BF16)                                                         \
        WGMMA_ASM("m64n" #n "k16.f32.bf16.bf16", how, more, half, a_at, b_at, ", 0, 0");           \
    else if constexpr (!ACROSS)                                                                    \
        WGMMA_ASM("m64n" #n "k16.f32.f16.f16", how, more, half, a_at, b_at, ", 0, 0");             \
    else                                                                                           \
        WGMMA_ASM("m64n" #n "k16.f32.f16.f16", how, more, half, a_at, b_at, ", 0, 1")
#define WGMMA_COLUMNS(n, half, a_at, b_at)                                                         \
    if constexpr (N == n && HOW == WGMMA_SET) {                                                    \
        WGMMA_TYPES(WRITTEN, "0", n, half, a_at, b_at);                                            \
    } else if constexpr (N == n && HOW == WGMMA_OVER) {                                            \
        WGMMA_TYPES(IN_PLACE, "0", n, half, a_at, b_at);                                           \
    } else if constexpr (N == n) {                                                                 \
        WGMMA_TYPES(IN_PLACE, "1", n, half, a_at, b_at);                                           \
    }
/* clang-format on */
#endif

template <enum wgmma_type TYPE, enum wgmma_how HOW, int N, bool ACROSS, int FROM, int SIZE>
static __device__ __forceinline__ void wgmma_any(float (&c)[SIZE], uint64_t a, uint64_t b)
{
    static_assert(FROM + N / 2 <= SIZE, "the sums are there");
    static_assert(TYPE == WGMMA_F16 || !ACROSS, "what is used");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 256, "what is used");
    WGMMA_COLUMNS(16, 8, 8, 9)
    WGMMA_COLUMNS(32, 16, 16, 17)
    WGMMA_COLUMNS(64, 32, 32, 33)
    WGMMA_COLUMNS(128, 64, 64, 65)
    WGMMA_COLUMNS(256, 128, 128, 129)
#elif !defined(__CUDACC__)
    static_assert(TYPE != WGMMA_BF16, "what is emulated");
    emulated_wgmma(c + FROM, N, a, b, HOW == WGMMA_ADD, TYPE == WGMMA_F16, ACROSS);
#endif
}

/* Both tiles along rows; as many columns as there are sums for. */
template <enum wgmma_type TYPE, enum wgmma_how HOW, int SIZE>
static __device__ __forceinline__ void wgmma(float (&c)[SIZE], uint64_t a, uint64_t b)
{
    wgmma_any<TYPE, HOW, 2 * SIZE, false, 0>(c, a, b);
}
/* B across, added to the sums of N columns from c[FROM] on. */
template <int N, int FROM, int SIZE>
static __device__ __forceinline__ void wgmma_across(float (&c)[SIZE], uint64_t a, uint64_t b)
{
    wgmma_any<WGMMA_F16, WGMMA_ADD, N, true, FROM>(c, a, b);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#undef WGMMA_COLUMNS
#undef WGMMA_TYPES
#undef WGMMA_ASM
#undef WRITTEN
#undef IN_PLACE
#undef REGS_8
#undef REGS_16
#undef REGS_32
#undef REGS_64
#undef REGS_128
#undef SUMS_4
#undef SUMS_8
#undef SUMS_16
#undef SUMS_32
#undef SUMS_64
#undef SUMS_128
#endif

#endif
