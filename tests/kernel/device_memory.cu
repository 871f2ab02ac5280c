/* device_memory.cu - see device_memory.h. */
#include "tests/kernel/device_memory.h"

#include <cuda_runtime.h>
#ifdef __CUDACC__
#include <cuda_profiler_api.h>
#endif

#include <stdio.h>
#include <stdlib.h>

static void must(cudaError_t code, const char *what)
{
    if (code == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    exit(1);
}

void cuda_test_read(void *to, const void *device, size_t bytes)
{
    must(cudaDeviceSynchronize(), "wait");
    must(cudaMemcpy(to, device, bytes, cudaMemcpyDeviceToHost), "read");
}

/* A copy may still be on its way from a staging buffer when the call returns, a filling only begun,
 * and the back end's streams wait for neither. */
void cuda_test_write(void *device, const void *from, size_t bytes)
{
    must(cudaDeviceSynchronize(), "wait");
    must(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice), "write");
    must(cudaDeviceSynchronize(), "arrival");
}

void *cuda_test_alloc(size_t bytes)
{
    void *at = NULL;
    must(cudaMalloc(&at, bytes ? bytes : 1), "alloc");
    must(cudaMemset(at, 0xFF, bytes), "poison");
    must(cudaDeviceSynchronize(), "poisoned");
    return at;
}

void cuda_test_free(void *device)
{
    must(cudaFree(device), "free");
}

struct device_rank {
    int device;
    unsigned char *area;
    cudaStream_t stream;
#ifdef __CUDACC__
    cudaGraphExec_t graph;
    cudaEvent_t begin, end;
#endif
};

static struct device_rank *of(void *self)
{
    return (struct device_rank *)self;
}

void *device_rank_open(uint32_t device, size_t bytes)
{
    struct device_rank *r = (struct device_rank *)calloc(1, sizeof *r);
    if (!r)
        must(cudaErrorMemoryAllocation, "a rank");
    r->device = (int)device;
    must(cudaSetDevice(r->device), "device");
    must(cudaMalloc((void **)&r->area, bytes), "alloc");
    must(cudaMemset(r->area, 0xFF, bytes), "poison");
    must(cudaDeviceSynchronize(), "wait");
    must(cudaStreamCreateWithPriority(&r->stream, cudaStreamNonBlocking, 0), "stream");
#ifdef __CUDACC__
    must(cudaEventCreate(&r->begin), "event");
    must(cudaEventCreate(&r->end), "event");
#endif
    return r;
}

unsigned char *device_rank_area(void *self)
{
    return of(self)->area;
}

void *device_rank_stream(void *self)
{
    return of(self)->stream;
}

void device_rank_put(void *self, void *to, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(self)->stream), "put");
    must(cudaStreamSynchronize(of(self)->stream), "put");
}

void device_rank_get(void *self, void *to, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(self)->stream), "get");
    must(cudaStreamSynchronize(of(self)->stream), "get");
}

void device_rank_close(void *self)
{
    struct device_rank *r = of(self);
    must(cudaSetDevice(r->device), "device");
#ifdef __CUDACC__
    device_rank_forget(self);
    must(cudaEventDestroy(r->begin), "event");
    must(cudaEventDestroy(r->end), "event");
#endif
    must(cudaStreamDestroy(r->stream), "stream");
    must(cudaFree(r->area), "free");
    free(r);
}

#ifdef __CUDACC__

bool device_rank_record(void *self)
{
    must(cudaStreamBeginCapture(of(self)->stream, cudaStreamCaptureModeThreadLocal), "record");
    return true;
}

void device_rank_recorded(void *self)
{
    cudaGraph_t graph = NULL;
    must(cudaStreamEndCapture(of(self)->stream, &graph), "record");
    device_rank_forget(self);
    must(cudaGraphInstantiate(&of(self)->graph, graph, 0), "graph");
    must(cudaGraphDestroy(graph), "graph");
}

void device_rank_forget(void *self)
{
    if (of(self)->graph)
        must(cudaGraphExecDestroy(of(self)->graph), "graph");
    of(self)->graph = NULL;
}

void device_rank_launch(void *self)
{
    must(cudaGraphLaunch(of(self)->graph, of(self)->stream), "launch");
}

double device_rank_time_us(void *self, void (*run)(void *arg), void *arg)
{
    struct device_rank *r = of(self);
    float ms = 0.0f;
    must(cudaEventRecord(r->begin, r->stream), "begin");
    run(arg);
    must(cudaEventRecord(r->end, r->stream), "end");
    must(cudaEventSynchronize(r->end), "time");
    must(cudaEventElapsedTime(&ms, r->begin, r->end), "time");
    return 1000.0 * (double)ms;
}

void cuda_test_profile(bool on)
{
    must(on ? cudaProfilerStart() : cudaProfilerStop(), "profiler");
}

void device_rank_name(char *text, size_t room)
{
    struct cudaDeviceProp prop;
    int driver = 0;
    must(cudaGetDeviceProperties(&prop, 0), "device");
    must(cudaDriverGetVersion(&driver), "driver");
    snprintf(text, room, "%s, CUDA driver %d.%d", prop.name, driver / 1000, driver % 1000 / 10);
}

static void *on_device(uint32_t device, size_t bytes)
{
    void *at = NULL;
    must(cudaSetDevice((int)device), "device");
    must(cudaMalloc(&at, bytes), "alloc");
    return at;
}

double device_link_rate(uint32_t from, uint32_t to, size_t bytes)
{
    cudaStream_t s;
    cudaEvent_t begin, end;
    int n = 0;
    float best = 0.0f;
    if (cudaGetDeviceCount(&n) != cudaSuccess || (int)from >= n || (int)to >= n)
        return 0.0;
    void *b = on_device(to, bytes), *a = on_device(from, bytes);
    cudaError_t peer = cudaDeviceEnablePeerAccess((int)to, 0);
    if (peer != cudaErrorPeerAccessAlreadyEnabled)
        must(peer, "peer access");
    must(cudaStreamCreate(&s), "stream");
    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    for (int i = 0; i < 6; i++) { /* the first is not counted */
        float ms = 0.0f;
        must(cudaEventRecord(begin, s), "begin");
        must(cudaMemcpyPeerAsync(b, (int)to, a, (int)from, bytes, s), "copy");
        must(cudaEventRecord(end, s), "end");
        must(cudaEventSynchronize(end), "time");
        must(cudaEventElapsedTime(&ms, begin, end), "time");
        if (i && (best == 0.0f || ms < best))
            best = ms;
    }
    must(cudaEventDestroy(begin), "event");
    must(cudaEventDestroy(end), "event");
    must(cudaStreamDestroy(s), "stream");
    must(cudaFree(a), "free");
    must(cudaFree(b), "free");
    return (double)bytes / ((double)best * 1e-3);
}

#else /* the emulated device has no graphs and no time */

void cuda_test_profile(bool)
{
}

void device_rank_name(char *text, size_t room)
{
    snprintf(text, room, "emulated");
}
double device_link_rate(uint32_t, uint32_t, size_t)
{
    return 0.0;
}

bool device_rank_record(void *)
{
    return false;
}
void device_rank_recorded(void *)
{
}
void device_rank_launch(void *)
{
}
void device_rank_forget(void *)
{
}
double device_rank_time_us(void *, void (*)(void *), void *)
{
    return 0.0;
}

#endif
