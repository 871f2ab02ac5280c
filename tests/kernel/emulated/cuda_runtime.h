/* cuda_runtime.h - a device made of fibres, for testing kernels where there is no GPU.
 *
 * Stands in for the toolkit's header when the sources of cuda/ are built by the host's C++
 * compiler. The threads of a block are fibres of the calling thread and change places only at
 * barriers, shuffles and tensor-core products; blocks run one after the other, launches at once.
 * Each host thread has a device of its own, and all see one memory: ranks are host threads. So
 * indexing, arithmetic and missing barriers at exchanges are tested; races inside a phase, timing
 * and the hardware's own rounding are not. A block whose threads wait for ones that never come
 * stops the program with a message.
 */
#ifndef GAZE_TEST_EMULATED_CUDA_RUNTIME_H
#define GAZE_TEST_EMULATED_CUDA_RUNTIME_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};
extern constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct ulonglong2 {
    unsigned long long x, y;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};

typedef struct emulated_stream *cudaStream_t;
void emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t s,
                     const std::function<void()> &body);
void *emulated_shared(void);
void emulated_exchange(const void *mine, size_t bytes, void *all); /* all[32 * bytes] */
void emulated_mma(float c[4], const uint32_t a[4], const uint32_t b[2], bool f16);
uint16_t emulated_f16(float x);
void emulated_ldmatrix(uint32_t r[4], const void *row, bool transposed);
/* c[n / 2] of this thread of a warpgroup, by the descriptors of tile/wgmma.cuh. */
void emulated_wgmma(float *c, unsigned n, uint64_t a, uint64_t b, bool add, bool f16, bool across);
void emulated_meet(unsigned id, unsigned threads, bool wait);
void __syncthreads(void);
void __syncwarp(unsigned mask = 0xFFFFFFFFu);
int __syncthreads_or(int flag);
void __nanosleep(unsigned); /* lets other host threads run */
unsigned long long emulated_clock_ns(void);

template <typename T> static inline T __shfl_sync(unsigned, T x, int lane)
{
    T all[32];
    emulated_exchange(&x, sizeof x, all);
    return all[lane & 31];
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T x, int mask)
{
    T all[32];
    emulated_exchange(&x, sizeof x, all);
    return all[(threadIdx.x % 32) ^ (unsigned)mask];
}
template <typename T> static inline T __shfl_up_sync(unsigned, T x, unsigned by)
{
    T all[32];
    emulated_exchange(&x, sizeof x, all);
    return threadIdx.x % 32 >= by ? all[threadIdx.x % 32 - by] : x;
}
static inline unsigned __match_any_sync(unsigned, unsigned x)
{
    unsigned all[32], bits = 0;
    emulated_exchange(&x, sizeof x, all);
    for (int i = 0; i < 32; i++)
        bits |= (unsigned)(all[i] == x) << i;
    return bits;
}
static inline unsigned __ballot_sync(unsigned, int flag)
{
    int all[32];
    unsigned bits = 0;
    emulated_exchange(&flag, sizeof flag, all);
    for (int i = 0; i < 32; i++)
        bits |= (unsigned)(all[i] != 0) << i;
    return bits;
}
static inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}
static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, 4);
    return u;
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline void __threadfence(void)
{
}
template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <typename T> static inline T atomicAdd(T *p, T x)
{
    T old = *p;
    *p += x;
    return old;
}
template <typename T> static inline T atomicOr(T *p, T x)
{
    T old = *p;
    *p |= x;
    return old;
}
template <typename T> static inline T atomicExch(T *p, T x)
{
    return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);
}

/* ---- the runtime: device memory is the heap, poisoned ---- */
typedef enum {
    cudaSuccess,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600,
    cudaErrorNotSupported = 801,
    cudaErrorPeerAccessAlreadyEnabled = 704
} cudaError_t;
#define CUDART_VERSION 13000
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking = 1, cudaHostAllocDefault = 0, cudaHostAllocPortable = 1 };
enum { cudaHostAllocMapped = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaDeviceProp {
    char name[256];
    int major, minor;
    size_t sharedMemPerBlockOptin;
};
static inline cudaError_t cudaMalloc(void **p, size_t n)
{
    *p = aligned_alloc(256, (n + 255) / 256 * 256);
    if (*p)
        memset(*p, 0xFF, n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaHostAlloc(void **p, size_t n, unsigned)
{
    return cudaMalloc(p, n);
}
static inline cudaError_t cudaFree(void *p)
{
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                                          cudaStream_t)
{
    memcpy(to, from, n);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind)
{
    memcpy(to, from, n);
    return cudaSuccess;
}
static inline cudaError_t cudaMemset(void *p, int v, size_t n)
{
    memset(p, v, n);
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t)
{
    memset(p, v, n);
    return cudaSuccess;
}
static inline cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}
static inline const char *cudaGetErrorString(cudaError_t)
{
    return "emulated";
}
static inline cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated");
    p->major = 9;
    p->sharedMemPerBlockOptin = 227 << 10;
    return cudaSuccess;
}
static inline cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrClockRate = 13, cudaDevAttrMultiProcessorCount = 16 };
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int)
{
    *value = 1;
    return cudaSuccess;
}
struct cudaFuncAttributes {
    int numRegs;
};
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *)
{
    a->numRegs = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *a, size_t *b)
{
    *a = *b = (size_t)1 << 40;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b)
{
    *a = *b = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int)
{
    *s = NULL;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceCanAccessPeer(int *can, int, int)
{
    *can = 1;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceEnablePeerAccess(int, unsigned)
{
    return cudaSuccess;
}
static inline cudaError_t cudaStreamQuery(cudaStream_t)
{
    return cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceSynchronize(void)
{
    return cudaSuccess;
}
template <typename F> static inline cudaError_t cudaFuncSetAttribute(F, int, int)
{
    return cudaSuccess;
}

/* A launch is over when it returns, so there is nothing to wait for. */
typedef struct emulated_event *cudaEvent_t;
enum { cudaEventDisableTiming = 2 };
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = NULL;
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    *e = NULL;
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t)
{
    *ms = 0.0f;
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned)
{
    return cudaSuccess;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}

#endif
