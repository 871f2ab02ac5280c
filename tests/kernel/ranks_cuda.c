/* ranks_cuda.c - tests/golden/ranks_rig.h on GPUs: a GPU for each rank and NCCL where there are
 * enough, else several ranks on each. GAZE_TEST_COMM names another kind of communicator.
 *
 * Linked in front of the fakes' ranks_place.c.
 */
#include "tests/golden/ranks_rig.h"

#include "cuda/cuda_ops.h"
#include "tests/kernel/device_memory.h"

void ranks_rig_place(struct ranks_options *o)
{
    comm_environment();
    uint32_t n_gpus = cuda_device_count(), n_ranks = o->tp * o->dp;
    if (!n_gpus)
        TEST_SKIP("no GPU here");
    o->device = 0;
    o->ranks_per_gpu = (n_ranks + n_gpus - 1) / n_gpus;
    o->comm = o->ranks_per_gpu > 1 ? "device" : getenv("GAZE_TEST_COMM");
}

void ranks_rig_read(void *to, const void *from, size_t bytes)
{
    cuda_test_read(to, from, bytes);
}

void ranks_rig_write(void *to, const void *from, size_t bytes)
{
    cuda_test_write(to, from, bytes);
}
