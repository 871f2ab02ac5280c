/* device_memory.cu - see device_memory.h. */
#include "tests/kernel/device_memory.h"

#include <cuda_runtime.h>

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

void cuda_test_write(void *device, const void *from, size_t bytes)
{
    must(cudaDeviceSynchronize(), "wait");
    must(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice), "write");
}

void *cuda_test_alloc(size_t bytes)
{
    void *at = NULL;
    must(cudaMalloc(&at, bytes ? bytes : 1), "alloc");
    must(cudaMemset(at, 0xFF, bytes), "poison");
    return at;
}

void cuda_test_free(void *device)
{
    must(cudaFree(device), "free");
}
