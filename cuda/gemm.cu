/* gemm.cu - see gemm.cuh: which tile a product is cut in, and its launch.
 *
 * A tile's shape is a kernel of its own (gemm_kernel.cuh): SHAPES has them all, gemm_shapes says
 * what they are. Which is best follows from the sizes alone, by measurement (choose()); it moves no
 * bits. The copies' maps are made anew for each launch and travel as the kernel's argument, so that
 * a recorded launch has them.
 */
#include "cuda/gemm.cuh"

#include <assert.h>

#ifdef __CUDACC__
#include "cuda/gemm_kernel.cuh"

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
static encode_fn *encode;
static int multiprocessors;

/* Rows of `inner` values, `stride` bytes apart, and groups of them. */
static bool make_map(CUtensorMap *map, CUtensorMapDataType type, const void *at, uint32_t dims,
                     uint64_t inner, uint64_t rows, uint64_t stride, uint64_t groups, uint64_t step,
                     uint32_t box_inner, uint32_t box_rows, bool swizzle)
{
    cuuint64_t size[3] = {inner, rows, groups}, strides[2] = {stride, step};
    cuuint32_t box[3] = {box_inner, box_rows, 1}, one[3] = {1, 1, 1};
    return encode(map, type, dims, (void *)(uintptr_t)at, size, strides, box, one,
                  CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <bool FP8, int WGS, int BLOCKS, int RIGHT, int CLUSTER, int KIND> struct kernel_of {
    typedef tile_shape<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND> S;
    static cudaError_t allow(void)
    {
        return cudaFuncSetAttribute(gemm_kernel<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, S::bytes);
    }
    static cudaError_t launch(cudaStream_t s, const struct gemm *g)
    {
        struct gemm_args a = {};
        struct gemm_maps maps;
        uint32_t value = FP8 ? 1 : 2, box_k = STEP_BYTES / value;
        CUtensorMapDataType type =
            FP8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        uint64_t row = (uint64_t)g->n_in * value, step = g->step ? g->step : row * g->n_out;
        bool good = true;
        for (int i = 0; i < 2; i++)
            good = good && make_map(&maps.w[i], type, g->w[i] ? g->w[i] : g->w[0], 3, g->n_in,
                                    g->n_out, row, g->n_groups, step, box_k, S::columns, true);
        good = good && make_map(&maps.x, type, g->x.value, 2, g->n_in, g->x.n, row, 1, 0, box_k,
                                S::rows / CLUSTER, true);
        maps.scale = maps.x;
        if (FP8)
            good = good && make_map(&maps.scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, g->x.scale, 2,
                                    g->x.scale_stride, parts_of(g->n_in, GEMM_SCALE_K),
                                    (uint64_t)g->x.scale_stride * 4, 1, 0, S::scale_box, 1,
                                    false);
        if (!good)
            return cudaErrorInvalidValue;
        a.w_scale[0] = g->w_scale[0];
        a.w_scale[1] = g->w_scale[1];
        a.scale_step = g->scale_step;
        a.start = g->start;
        a.n_groups = g->n_groups;
        a.n_rows = g->x.n;
        a.n_out = g->n_out;
        a.n_in = g->n_in;
        a.n_steps = parts_of(g->n_in, box_k);
        a.scale_columns = parts_of(g->n_in, GEMM_SCALE_K);
        uint32_t tiles = parts_of(g->n_out, S::columns) * (g->second && KIND != GATED ? 2 : 1);
        a.out_tiles = parts_of(tiles, CLUSTER);
        a.y = g->y;
        a.second = g->second;
        a.mid = g->mid;
        a.mid_scale = g->mid_scale;
        a.mid_stride = g->mid_stride;
        a.add = g->add;
        /* As many tiles as there can be, at most. */
        size_t most = g->start ? g->busy + g->x.n / S::rows : parts_of(g->x.n, S::rows);
        size_t clusters = multiprocessors / CLUSTER, needed = most * a.out_tiles;
        clusters = clusters < needed ? clusters : needed;
        cudaLaunchConfig_t config = {};
        cudaLaunchAttribute attribute[1];
        config.gridDim = dim3((unsigned)clusters * CLUSTER);
        config.blockDim = dim3(S::threads);
        config.dynamicSmemBytes = S::bytes;
        config.stream = s;
        attribute[0].id = cudaLaunchAttributeClusterDimension;
        attribute[0].val.clusterDim.x = CLUSTER;
        attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
        config.attrs = attribute;
        config.numAttrs = CLUSTER > 1;
        return cudaLaunchKernelEx(&config, gemm_kernel<FP8, WGS, BLOCKS, RIGHT, CLUSTER, KIND>, a,
                                  maps);
    }
};

/* Shapes: warpgroups, blocks of 64 on the left each, right, cluster, kind; as gemm_shapes. */
#define SHAPES(X)                                                                                  \
    X(0, 1, 1, 16, 1, OUTS)                                                                        \
    X(1, 1, 1, 32, 1, OUTS)                                                                        \
    X(2, 1, 1, 64, 2, OUTS)                                                                        \
    X(3, 1, 1, 128, 4, OUTS)                                                                       \
    X(4, 2, 1, 128, 1, ROWS)                                                                       \
    X(5, 2, 1, 128, 2, ROWS)                                                                       \
    X(6, 2, 2, 16, 1, OUTS)                                                                        \
    X(7, 2, 2, 32, 1, OUTS)                                                                        \
    X(8, 2, 2, 64, 1, OUTS)                                                                        \
    X(9, 2, 2, 16, 1, GATED)                                                                       \
    X(10, 2, 2, 32, 1, GATED)                                                                      \
    X(11, 2, 2, 64, 1, GATED)

cudaError_t gemm_init(void)
{
    cudaDriverEntryPointQueryResult found;
    void *fn = NULL;
    int device;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess)
        code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (code == cudaSuccess)
        code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000,
                                                cudaEnableDefault, &found);
    if (code != cudaSuccess || !fn)
        return code == cudaSuccess ? cudaErrorNotSupported : code;
    encode = (encode_fn *)fn;
#define ALLOW(i, w, b, r, c, kind)                                                                 \
    if (code == cudaSuccess)                                                                       \
        code = kernel_of<true, w, b, r, c, kind>::allow();                                         \
    if (code == cudaSuccess && kind != GATED)                                                      \
        code = kernel_of<false, w, b, r, c, kind == GATED ? OUTS : kind>::allow();
    SHAPES(ALLOW)
#undef ALLOW
    return code;
}

bool gemm_runs_here(void)
{
#ifdef GAZE_SM_90A
    int device, major, minor;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
#else
    return false;
#endif
}

/* How many tiles of a shape one block takes, at most. */
static uint32_t rounds(const struct gemm *g, const struct gemm_shape *s)
{
    uint32_t tiles = parts_of(g->n_out, s->outs) * (g->second ? 2 : 1);
    size_t all = (size_t)parts_of(tiles, s->cluster) * s->cluster * parts_of(g->likely, s->rows);
    /* Clusters of 4 do not fill the last processors of each group. */
    uint32_t blocks = (uint32_t)multiprocessors;
    return parts_of(all, s->cluster == 4 ? blocks - blocks / 11 : blocks);
}

/* By measurements on an H200 (tests/bench/results). Few rows: the fewest outputs a block that keep
 * all busy. Groups vary around what is likely. */
static int choose(const struct gemm *g)
{
    uint32_t n = g->likely;
    if (g->mid)
        return n <= 12 ? 9 : n <= 24 ? 10 : 11;
    if (g->start && n <= 16 && g->busy * parts_of(g->n_out, 256) < (uint32_t)multiprocessors / 2)
        return 0; /* a block reads its weights no faster for having more */
    if (g->start)
        return n <= 12 ? 6 : n <= 24 ? 7 : n <= 44 ? 8 : 5;
    if (n <= 16)
        return 0;
    if (n <= 32 || (n <= 128 && rounds(g, &gemm_shapes[1]) == 1))
        return 1;
    if (n <= 64 || (n <= 128 && rounds(g, &gemm_shapes[2]) == 1))
        return 2;
    if (n <= 128 && rounds(g, &gemm_shapes[3]) <= rounds(g, &gemm_shapes[4]))
        return 3;
    return n < 512 || rounds(g, &gemm_shapes[4]) < 2 ? 4 : 5;
}

cudaError_t gemm_launch(cudaStream_t s, const struct gemm *g)
{
    assert(g->n_groups >= 1 && g->n_groups <= MAX_GROUPS && (g->start || g->n_groups == 1));
    assert(g->n_groups + parts_of(g->x.n, 16) <= UINT16_MAX); /* of row tiles, see group_table */
    assert(g->n_in % (g->fp8 ? 16 : 8) == 0);
    assert(!g->mid || (g->fp8 && g->n_out % GEMM_SCALE_K == 0));
    if (!g->x.n)
        return cudaSuccess;
    switch (g->shape >= 0 ? g->shape : choose(g)) {
#define CASE(i, w, b, r, c, kind)                                                                  \
    case i:                                                                                        \
        return g->fp8 ? kernel_of<true, w, b, r, c, kind>::launch(s, g)                            \
                      : kernel_of<false, w, b, r, c, kind == GATED ? OUTS : kind>::launch(s, g);
        SHAPES(CASE)
#undef CASE
    }
    return cudaErrorInvalidValue;
}

#else

cudaError_t gemm_init(void)
{
    return cudaSuccess;
}
bool gemm_runs_here(void)
{
    return false;
}
cudaError_t gemm_launch(cudaStream_t s, const struct gemm *g)
{
    (void)s;
    (void)g;
    return cudaErrorNotSupported;
}

#endif

const struct gemm_shape gemm_shapes[GEMM_SHAPES] = {
    {64, 16, 1, false, "64x16"},        {64, 32, 1, false, "64x32"},
    {64, 64, 2, false, "64x64 c2"},     {64, 128, 4, false, "64x128 c4"},
    {128, 128, 1, false, "128x128"},    {128, 128, 2, false, "128x128 c2"},
    {256, 16, 1, false, "256x16"},      {256, 32, 1, false, "256x32"},
    {256, 64, 1, false, "256x64"},      {256, 16, 1, true, "gated 128x16"},
    {256, 32, 1, true, "gated 128x32"}, {256, 64, 1, true, "gated 128x64"}};
