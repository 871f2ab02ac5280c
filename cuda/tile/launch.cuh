/* launch.cuh - how a kernel is started and how it gets its shared memory.
 *
 * Two macros, so that the same source also builds for the emulated device of tests/kernel, where a
 * block's threads are fibres of one host thread: kernels can then be tested on any machine.
 */
#ifndef GAZE_CUDA_TILE_LAUNCH_CUH
#define GAZE_CUDA_TILE_LAUNCH_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef __CUDACC__
/* Templates with commas go in parentheses: CUDA_LAUNCH((k<a, b>), grid, block, 0, stream, ...). */
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                \
    type *name = (type *)dynamic_shared
#else
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
    emulated_launch((grid), (block), (shared_bytes), (stream), [=] { (kernel)(__VA_ARGS__); })
#define DYNAMIC_SHARED(type, name) type *name = (type *)emulated_shared()
#endif

#endif
