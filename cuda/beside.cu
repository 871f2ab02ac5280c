/* beside.cu - branches of a step: streams that run beside the lane's own until attention, where all
 * meet.
 *
 * A branch begins behind what the lane's own stream has been given so far; cuda_meet() makes that
 * one wait for all branches. While a step is being recorded the branches become parts of its graph.
 * Each branch has rows of its own for products (wide.cu); a product that would need the lane's
 * other scratch ends the branches (cuda_meet_early()), and what follows runs in order. The shared
 * expert of a layer runs so beside its router, too (moe.cu).
 *
 * Thread: the lane's. Errors are kept as the lane's first one.
 */
#include "cuda/backend.cuh"

static void follow(struct cuda_lane *lane, cudaStream_t later, cudaEvent_t e, cudaStream_t earlier)
{
    cuda_lane_check(lane, cudaEventRecord(e, earlier), "a branch's event");
    cuda_lane_check(lane, cudaStreamWaitEvent(later, e, 0), "a branch's wait");
}

static void op_beside(struct ops *o, enum lane l, uint32_t branch, bool after_all)
{
    struct cuda_lane *lane = &cuda_of(o)->lane[l];
    assert(branch < OPS_BRANCHES);
    if (lane->in_order)
        return;
    lane->at = branch;
    lane->stream = lane->branch[branch];
    if (!branch)
        return;
    follow(lane, lane->stream, lane->passed[0], lane->branch[0]);
    lane->open[branch] = true;
    for (uint32_t i = 1; after_all && i < OPS_BRANCHES; i++)
        if (i != branch && lane->open[i])
            follow(lane, lane->stream, lane->passed[i], lane->branch[i]);
}

static void meet(struct cuda_lane *lane)
{
    for (uint32_t i = 1; i < OPS_BRANCHES; i++) {
        if (lane->open[i])
            follow(lane, lane->branch[0], lane->passed[i], lane->branch[i]);
        lane->open[i] = false;
    }
    lane->at = 0;
    lane->stream = lane->branch[0];
}

void cuda_meet(struct cuda_lane *lane)
{
    meet(lane);
    lane->in_order = false;
}

void cuda_meet_early(struct cuda_lane *lane)
{
    if (!lane->at)
        return;
    meet(lane);
    lane->in_order = true;
}

enum err_code cuda_beside_open(struct cuda_backend *b, struct cuda_lane *lane, int priority,
                               struct err *e)
{
    cudaError_t code = cudaSuccess;
    uint32_t n = b->wide ? OPS_BRANCHES : 1;
    for (uint32_t i = 0; i < n && code == cudaSuccess; i++) {
        code = cudaStreamCreateWithPriority(&lane->branch[i], cudaStreamNonBlocking, priority);
        if (code == cudaSuccess)
            code = cudaEventCreateWithFlags(&lane->passed[i], cudaEventDisableTiming);
    }
    lane->stream = lane->branch[0];
    if (code != cudaSuccess)
        return err_set(e, ERR_CUDA, "cuda:%d: streams: %s", b->device, cudaGetErrorString(code));
    if (b->wide)
        b->ops.beside = op_beside;
    return ERR_OK;
}

void cuda_beside_close(struct cuda_lane *lane)
{
    for (uint32_t i = 0; i < OPS_BRANCHES; i++) {
        if (lane->branch[i]) {
            (void)cudaStreamSynchronize(lane->branch[i]);
            (void)cudaStreamDestroy(lane->branch[i]);
        }
        if (lane->passed[i])
            (void)cudaEventDestroy(lane->passed[i]);
    }
    lane->stream = NULL;
}
