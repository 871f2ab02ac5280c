/* sample.cu - ops->sample and ops->advance: a step's wishes go up, tokens come down.
 *
 * Wishes of varying length (bias, history, bans, allowed set) go up in a pool of words. A step
 * whose wishes all fit sends them when it begins, so that sampling is kernels alone, which a graph
 * can hold, and further passes can follow on the device; others go up in as many pieces as it
 * takes. The kernel is sample_kernel.cu's.
 */
#include "cuda/sample.cuh"

#include <string.h>

enum { POOL_WORDS = 2 << 20 };

struct sample_scratch {
    struct wish *wish, *dev_wish;       /* [max_rows] */
    struct sample_out *out, *dev_out;   /* [max_rows] */
    struct sample_out *kept, *dev_kept; /* [OPS_MAX_MORE * max_rows] of passes before the last */
    uint32_t *pool, *dev_pool;
    size_t pool_words, used;
    bool up;         /* the whole step's wishes went up when it began */
    float *work;     /* [max_out_rows, vocab] */
    uint32_t *count; /* [max_out_rows, vocab] */
};

/* Each row's token becomes its input, one position further. */
static __global__ void advance_kernel(struct sample_out *out, struct sample_out *kept,
                                      struct wish *wish, struct step_arrays a, uint32_t n)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    kept[i] = out[i];
    a.token[i] = out[i].token;
    a.pos[i]++;
    wish[i].position++;
}

static size_t words_of(const struct sample_row *r, uint32_t vocab)
{
    return 2 * (size_t)r->p->n_bias + r->n_history + r->n_banned +
           (r->p->allowed ? (vocab + 31) / 32 : 0);
}

static uint32_t put_words(struct sample_scratch *s, const void *from, size_t words)
{
    uint32_t at = (uint32_t)s->used;
    if (words)
        memcpy(s->pool + at, from, words * 4);
    s->used += words;
    return at;
}

static void fill(struct sample_scratch *s, struct wish *w, const struct sample_row *r,
                 uint32_t vocab)
{
    const struct sample_params *p = r->p;
    static_assert(sizeof(struct sample_bias) == 8, "a bias is two words of the pool");
    memset(w, 0, sizeof *w);
    w->temperature = p->temperature;
    w->top_p = p->top_p;
    w->min_p = p->min_p;
    w->presence = p->presence_penalty;
    w->frequency = p->frequency_penalty;
    w->repetition = p->repetition_penalty;
    w->top_k = p->top_k;
    w->n_top = p->n_top;
    w->position = r->position;
    w->stream = r->stream;
    w->given = r->given;
    w->given_token = r->given_token;
    w->want_logprob = p->want_logprob;
    w->key[0] = (uint32_t)p->seed;
    w->key[1] = (uint32_t)(p->seed >> 32);
    w->n_bias = p->n_bias;
    w->bias = put_words(s, p->bias, 2 * (size_t)p->n_bias);
    if (w->presence != 0.0f || w->frequency != 0.0f || w->repetition != 1.0f) {
        w->n_history = r->n_history;
        w->n_prompt = r->n_prompt;
        w->history = put_words(s, r->history, r->n_history);
    }
    w->n_banned = r->n_banned;
    w->banned = put_words(s, r->banned, r->n_banned);
    w->has_allowed = p->allowed != NULL;
    w->allowed = put_words(s, p->allowed, p->allowed ? (vocab + 31) / 32 : 0);
}

static void op_sample(struct ops *o, enum lane l, float *logits, uint32_t i0, uint32_t n)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    struct sample_scratch *s = lane->sample;
    uint32_t vocab = o->cfg->vocab_size;
    struct sample_args a = {};
    a.pool = s->dev_pool;
    a.work = s->work;
    a.count = s->count;
    a.vocab = vocab;
    a.end_id = o->cfg->n_eos ? o->cfg->eos_id[0] : 0;
    if (s->up) {
        a.logits = logits;
        a.wish = s->dev_wish + i0;
        a.out = s->dev_out + i0;
        sample_launch(lane->stream, &a, n);
        cudaMemcpyAsync(s->out + i0, s->dev_out + i0, n * sizeof *s->out, cudaMemcpyDeviceToHost,
                        lane->stream);
        cuda_launched(lane, "sample");
        lane->n_sampled = i0 + n;
        return;
    }
    for (uint32_t done = 0, k; done < n; done += k) {
        const struct sample_row *row = lane->step->sample + i0 + done;
        for (k = 0; done + k < n; k++) {
            size_t words = words_of(&row[k], vocab);
            if (s->used + words > s->pool_words) {
                if (k)
                    break; /* these first */
                if (words > s->pool_words) {
                    if (!lane->err.code)
                        err_set(&lane->err, ERR_INVALID, "a row of %zu words of sampling wishes",
                                words);
                    return;
                }
                cuda_lane_check(lane, cudaStreamSynchronize(lane->stream), "sample");
                s->used = 0;
            }
            fill(s, &s->wish[i0 + done + k], &row[k], vocab);
        }
        a.logits = logits + (size_t)done * vocab;
        a.wish = s->dev_wish + i0 + done;
        a.out = s->dev_out + i0 + done;
        cudaMemcpyAsync(s->dev_wish + i0 + done, s->wish + i0 + done, k * sizeof *s->wish,
                        cudaMemcpyHostToDevice, lane->stream);
        if (s->used)
            cudaMemcpyAsync(s->dev_pool, s->pool, s->used * 4, cudaMemcpyHostToDevice,
                            lane->stream);
        sample_launch(lane->stream, &a, k);
        cudaMemcpyAsync(s->out + i0 + done, s->dev_out + i0 + done, k * sizeof *s->out,
                        cudaMemcpyDeviceToHost, lane->stream);
        cuda_launched(lane, "sample");
        if (done + k < n) { /* the pool is full: its words must be read before the next ones */
            cuda_lane_check(lane, cudaStreamSynchronize(lane->stream), "sample");
            s->used = 0;
        }
    }
    lane->n_sampled = i0 + n;
}

void cuda_sample_begin(struct cuda_lane *lane, uint32_t vocab)
{
    struct sample_scratch *s = lane->sample;
    const struct step *step = lane->step;
    size_t words = 0;
    lane->n_sampled = lane->n_passes = 0;
    s->used = 0;
    for (uint32_t i = 0; step->sample && i < step->n_out; i++)
        words += words_of(&step->sample[i], vocab);
    s->up = step->sample && step->n_out && words <= s->pool_words;
    if (!s->up)
        return;
    for (uint32_t i = 0; i < step->n_out; i++)
        fill(s, &s->wish[i], &step->sample[i], vocab);
    cuda_lane_check(lane,
                    cudaMemcpyAsync(s->dev_wish, s->wish, step->n_out * sizeof *s->wish,
                                    cudaMemcpyHostToDevice, lane->stream),
                    "sampling wishes");
    if (s->used)
        cuda_lane_check(lane,
                        cudaMemcpyAsync(s->dev_pool, s->pool, s->used * 4, cudaMemcpyHostToDevice,
                                        lane->stream),
                        "sampling wishes");
}

bool cuda_sample_is_up(const struct cuda_lane *lane)
{
    return lane->sample->up;
}

static void op_advance(struct ops *o, enum lane l)
{
    struct cuda_lane *lane = &cuda_of(o)->lane[l];
    struct sample_scratch *s = lane->sample;
    uint32_t n = lane->step->n_out;
    assert(s->up && lane->n_passes < OPS_MAX_MORE);
    cuda_graph_finish(lane);
    CUDA_LAUNCH(advance_kernel, parts_of(n, 128), 128, 0, lane->stream, s->dev_out,
                s->dev_kept + (size_t)lane->n_passes * n, s->dev_wish, lane->dev, n);
    cuda_launched(lane, "advance");
    lane->n_passes++;
}

void cuda_sample_last(struct cuda_lane *lane)
{
    struct sample_scratch *s = lane->sample;
    size_t n = (size_t)lane->n_passes * lane->step->n_out;
    if (n)
        cuda_lane_check(lane,
                        cudaMemcpyAsync(s->kept, s->dev_kept, n * sizeof *s->kept,
                                        cudaMemcpyDeviceToHost, lane->stream),
                        "tokens");
}

void cuda_sample_finish(struct cuda_lane *lane)
{
    size_t before = (size_t)lane->n_passes * lane->step->n_out;
    for (size_t i = 0; i < before; i++)
        lane->step->out[i] = lane->sample->kept[i];
    for (uint32_t i = 0; i < lane->n_sampled; i++)
        lane->step->out[before + i] = lane->sample->out[i];
}

enum err_code cuda_sample_init(struct cuda_backend *b, struct err *e)
{
    size_t vocab = b->ops.cfg->vocab_size, rows = b->ops.limits.max_out_rows;
    b->ops.sample = op_sample;
    b->ops.advance = op_advance;
    for (int l = 0; l < N_LANES; l++) {
        struct sample_scratch *s = (struct sample_scratch *)cuda_reserve_host(b, sizeof *s);
        if (!s)
            return err_set(e, ERR_NOMEM, "sampling workspace");
        b->lane[l].sample = s;
        size_t max = b->ops.limits.max_rows[l];
        size_t one = b->ops.limits.max_context + 4 * vocab;
        s->pool_words = one > POOL_WORDS ? one : (size_t)POOL_WORDS;
        s->wish = (struct wish *)cuda_reserve_pinned(b, max * sizeof *s->wish);
        s->out = (struct sample_out *)cuda_reserve_pinned(b, max * sizeof *s->out);
        s->pool = (uint32_t *)cuda_reserve_pinned(b, s->pool_words * 4);
        size_t kept = OPS_MAX_MORE * max * sizeof *s->kept;
        s->kept = (struct sample_out *)cuda_reserve_pinned(b, l == LANE_DECODE ? kept : 1);
        s->dev_kept = (struct sample_out *)cuda_reserve(b, l == LANE_DECODE ? kept : 1);
        s->dev_wish = (struct wish *)cuda_reserve(b, max * sizeof *s->wish);
        s->dev_out = (struct sample_out *)cuda_reserve(b, max * sizeof *s->out);
        s->dev_pool = (uint32_t *)cuda_reserve(b, s->pool_words * 4);
        s->work = (float *)cuda_reserve(b, rows * vocab * 4);
        s->count = (uint32_t *)cuda_reserve(b, rows * vocab * 4);
        if (!s->kept || !s->dev_kept || !s->wish || !s->out || !s->pool || !s->dev_wish ||
            !s->dev_out || !s->dev_pool || !s->work || !s->count)
            return err_set(e, ERR_NOMEM, "sampling workspace of %zu rows", rows);
    }
    return ERR_OK;
}
