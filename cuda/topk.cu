/* topk.cu - see topk.h and tile/topk.cuh. */
#include "cuda/topk.h"

#include "cuda/backend.cuh"

#include "tile/topk.cuh"

template <bool FEW>
static __global__ void __launch_bounds__(TOPK_THREADS, (FEW ? 1 : 2))
    rows_kernel(const float *score, size_t ld, uint32_t n, uint32_t k, int32_t *out)
{
    DYNAMIC_SHARED(struct topk_shared, s);
    topk_row<(FEW ? TOPK_DEEP_FEW : TOPK_DEEP_MANY)>(*s, score + blockIdx.x * ld, n, k,
                                                     out + (size_t)blockIdx.x * k);
}

enum err_code cuda_topk_rows(const float *score, size_t ld, uint32_t rows, uint32_t n, uint32_t k,
                             int32_t *out, struct err *e)
{
    if (!rows || k < 1 || k > n || n > ld || ld % 4)
        return err_set(e, ERR_INVALID, "top-k: %u of %u in %u rows of %zu", k, n, rows, ld);
    auto kernel = rows <= TOPK_FEW_ROWS ? rows_kernel<true> : rows_kernel<false>;
    cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            (int)sizeof(struct topk_shared));
    if (code == cudaSuccess) {
        CUDA_LAUNCH(kernel, rows, TOPK_THREADS, sizeof(struct topk_shared), (cudaStream_t)NULL,
                    score, ld, n, k, out);
        code = cudaGetLastError();
    }
    return code == cudaSuccess ? ERR_OK
                               : err_set(e, ERR_CUDA, "top-k: %s", cudaGetErrorString(code));
}
