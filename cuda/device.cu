/* device.cu - the device's memory, the lanes' errors, and what there is to run on. */
#include "cuda/backend.cuh"

#include <stdlib.h>
#include <string.h>

struct memory_block {
    struct memory_block *next;
    void *at;
    int kind; /* 0 device, 1 pinned, 2 host */
};

static void *keep(struct cuda_backend *b, void *at, int kind)
{
    struct memory_block *m = (struct memory_block *)malloc(sizeof *m);
    if (!m) {
        kind == 0 ? (void)cudaFree(at) : kind == 1 ? (void)cudaFreeHost(at) : free(at);
        return NULL;
    }
    *m = (struct memory_block){b->blocks, at, kind};
    b->blocks = m;
    return at;
}

void *cuda_reserve(struct cuda_backend *b, size_t bytes)
{
    void *at = NULL;
    bytes = (bytes + 511) / 512 * 512 + 512; /* vector loads may look past the end */
    b->reserved_bytes += bytes;
    if (b->dry)
        return b; /* any address: nobody reads it */
    if (cudaMalloc(&at, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    /* A filling is only begun when the call returns, and our streams do not wait for it: a first
     * step that came at once had its activations zeroed while another process had the device. */
    if (cudaMemset(at, 0, bytes) != cudaSuccess ||
        cudaStreamSynchronize((cudaStream_t)NULL) != cudaSuccess) {
        cudaFree(at);
        return NULL;
    }
    return keep(b, at, 0);
}

void *cuda_reserve_pinned(struct cuda_backend *b, size_t bytes)
{
    void *at = NULL;
    if (b->dry)
        return b;
    if (cudaHostAlloc(&at, bytes ? bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(at, 0, bytes);
    return keep(b, at, 1);
}

void *cuda_reserve_host(struct cuda_backend *b, size_t bytes)
{
    void *at = calloc(1, bytes ? bytes : 1);
    return at ? keep(b, at, 2) : NULL;
}

void cuda_free_blocks(struct cuda_backend *b)
{
    for (struct memory_block *m = b->blocks, *next; m; m = next) {
        next = m->next;
        m->kind == 0   ? (void)cudaFree(m->at)
        : m->kind == 1 ? (void)cudaFreeHost(m->at)
                       : free(m->at);
        free(m);
    }
    b->blocks = NULL;
}

void cuda_lane_check(struct cuda_lane *lane, cudaError_t code, const char *what)
{
    if (code != cudaSuccess && !lane->err.code)
        err_set(&lane->err, ERR_CUDA, "%s: %s", what, cudaGetErrorString(code));
}

/* Before the process' first call of CUDA: kernels that wait for other ranks' must not keep these
 * from starting, so no kernel is loaded at its first launch (which waits for those that run), and
 * streams have queues of their own. A user's own settings stay. */
static void prepare(void)
{
    static bool done; /* the process has one thread then */
    if (!done) {
        (void)setenv("CUDA_MODULE_LOADING", "EAGER", 0);
        (void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    }
    done = true;
}

uint32_t cuda_device_count(void)
{
    int n = 0;
    prepare();
    if (cudaGetDeviceCount(&n) != cudaSuccess)
        return 0;
    return n > 0 ? (uint32_t)n : 0;
}

bool cuda_devices_reach(uint32_t first, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++) {
            int can = 1;
            if (i != j && cudaDeviceCanAccessPeer(&can, (int)(first + i), (int)(first + j)) !=
                              cudaSuccess) {
                (void)cudaGetLastError();
                return false;
            }
            if (!can)
                return false;
        }
    return n <= COMM_DEVICE_RANKS;
}

static __global__ void probe_kernel(void)
{
}

/* Whether this build holds code for the device: it is compiled for the architectures that the
 * Makefile names, and the driver finds none of them on others. */
static bool has_code_for(uint32_t device)
{
    struct cudaFuncAttributes attributes;
    bool has = cudaSetDevice((int)device) == cudaSuccess &&
               cudaFuncGetAttributes(&attributes, (const void *)probe_kernel) == cudaSuccess;
    (void)cudaGetLastError();
    return has;
}

enum err_code cuda_device_check(uint32_t device, struct err *e)
{
    const char *instead = "--device cpu runs without a GPU";
    struct cudaDeviceProp prop;
    int n = 0, driver = 0;
    prepare();
    cudaError_t code = cudaGetDeviceCount(&n);
    (void)cudaDriverGetVersion(&driver);
    if (code == cudaErrorInsufficientDriver && driver)
        return err_set(e, ERR_CUDA, "the driver is for CUDA %d.%d, this build is of %d.%d; %s",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10, instead);
    if (code == cudaErrorInsufficientDriver)
        return err_set(e, ERR_CUDA, "there is no NVIDIA driver; %s", instead);
    if (code != cudaSuccess && code != cudaErrorNoDevice)
        return err_set(e, ERR_CUDA, "the driver says: %s; %s", cudaGetErrorString(code), instead);
    if (n < 1 || device >= (uint32_t)n)
        return err_set(e, ERR_CUDA, "cuda:%u: the driver offers %d GPUs; %s", device, n, instead);
    code = cudaGetDeviceProperties(&prop, (int)device);
    if (code != cudaSuccess)
        return err_set(e, ERR_CUDA, "cuda:%u: %s; %s", device, cudaGetErrorString(code), instead);
    if (prop.major < 8 || !has_code_for(device))
        return err_set(e, ERR_CUDA,
                       "cuda:%u: %s has compute capability %d.%d, this build's kernels do not run "
                       "on that; %s",
                       device, prop.name, prop.major, prop.minor, instead);
    return ERR_OK;
}

size_t cuda_device_free_bytes(uint32_t device)
{
    size_t left = 0, all = 0;
    if (cudaSetDevice((int)device) != cudaSuccess || cudaMemGetInfo(&left, &all) != cudaSuccess)
        return 0;
    return left;
}

static __global__ void copy_kernel(uint4 *to, const uint4 *from, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = from[i];
}

static cudaError_t time_copy(unsigned char *at, size_t half, cudaEvent_t *mark, float *ms)
{
    enum { TIMES = 20 };
    for (int i = -2; i < TIMES; i++) {
        if (i == 0)
            (void)cudaEventRecord(mark[0], (cudaStream_t)NULL);
        CUDA_LAUNCH(copy_kernel, 1024, 512, 0, (cudaStream_t)NULL, (uint4 *)at,
                    (const uint4 *)(at + half), half / 16);
    }
    (void)cudaEventRecord(mark[1], (cudaStream_t)NULL);
    cudaError_t code = cudaStreamSynchronize((cudaStream_t)NULL);
    if (code == cudaSuccess)
        code = cudaEventElapsedTime(ms, mark[0], mark[1]);
    *ms /= TIMES;
    return code;
}

enum err_code cuda_limits_measure(uint32_t device, double *bytes, double *flops, struct err *e)
{
    cudaEvent_t mark[2] = {};
    void *at = NULL;
    int clock_khz = 0, multiprocessors = 0, id = (int)device;
    size_t all = (size_t)512 << 20, left = cuda_device_free_bytes(device);
    float ms = 0.0f;
    all = all < left / 2 ? all : left / 2 / 4096 * 4096;
    cudaError_t code = cudaMalloc(&at, all);
    for (int i = 0; i < 2 && code == cudaSuccess; i++)
        code = cudaEventCreate(&mark[i]);
    if (code == cudaSuccess)
        code = cudaMemset(at, 1, all);
    if (code == cudaSuccess)
        code = time_copy((unsigned char *)at, all / 2, mark, &ms);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, id);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, id);
    for (int i = 0; i < 2; i++)
        if (mark[i])
            (void)cudaEventDestroy(mark[i]);
    (void)cudaFree(at);
    if (code != cudaSuccess || ms <= 0.0f)
        return err_set(e, ERR_CUDA, "cuda:%u: limits: %s", device, cudaGetErrorString(code));
    *bytes = (double)all / (double)ms * 1e3;
    *flops = 4096.0 * multiprocessors * clock_khz * 1e3; /* a multiprocessor's per cycle, sm_90 */
    return ERR_OK;
}
