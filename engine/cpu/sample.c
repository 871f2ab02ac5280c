/* sample.c - ops->sample: from a row of logits to a token. See sample.h. */
#include "cpu/sample.h"

#include "base/rng.h"
#include "cpu/topk.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { SLACK = 64, FIRST_PREFIX = 256, IN_OUTPUT = 1, IN_PROMPT = 1u << 31 };

/* NaN and +inf both fail the comparison. */
static bool all_usable(const float *x, uint32_t n)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < n; i++)
        bad |= !(x[i] <= FLT_MAX);
    return !bad;
}

static void penalise(struct sample_worker *w, const struct sample_row *row, uint32_t vocab)
{
    const struct sample_params *p = row->p;
    for (uint32_t i = 0; i < row->n_history; i++)
        if (row->history[i] < vocab) {
            if (i < row->n_prompt)
                w->count[row->history[i]] |= IN_PROMPT;
            else
                w->count[row->history[i]] += IN_OUTPUT;
        }
    for (uint32_t i = 0; i < row->n_history; i++) {
        uint32_t id = row->history[i], seen;
        if (id >= vocab || !(seen = w->count[id]))
            continue; /* done at its first mention, which also left its count zero again */
        w->count[id] = 0;
        float x = w->logit[id], n = (float)(seen & ~IN_PROMPT);
        if (p->repetition_penalty != 1.0f)
            x = x > 0.0f ? x / p->repetition_penalty : x * p->repetition_penalty;
        if (n > 0.0f)
            x -= p->frequency_penalty * n + p->presence_penalty;
        w->logit[id] = x;
    }
}

/* The logits that choosing starts from: raw itself when nothing changes it. */
static const float *adjusted(struct sample_worker *w, const float *raw, uint32_t vocab,
                             const struct sample_row *row)
{
    const struct sample_params *p = row->p;
    bool penalties = p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f ||
                     p->repetition_penalty != 1.0f;
    if (!p->n_bias && !row->n_banned && !p->allowed && !(penalties && row->n_history))
        return raw;
    memcpy(w->logit, raw, sizeof(float) * vocab);
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias[i].id < vocab)
            w->logit[p->bias[i].id] += p->bias[i].bias;
    if (penalties)
        penalise(w, row, vocab);
    for (uint32_t i = 0; i < row->n_banned; i++)
        if (row->banned[i] < vocab)
            w->logit[row->banned[i]] = -INFINITY;
    if (p->allowed)
        for (uint32_t i = 0; i < vocab; i++)
            if (!(p->allowed[i / 32] >> (i % 32) & 1u))
                w->logit[i] = -INFINITY;
    return w->logit;
}

static bool comes_first(struct sample_entry a, struct sample_entry b)
{
    return a.weight > b.weight || (a.weight == b.weight && a.at < b.at);
}

/* Heap sort: in place, without the memory that qsort() may ask for. */
static void sort_entries(struct sample_entry *x, uint32_t n)
{
    for (uint32_t end = n, start = n / 2; end > 1;) {
        if (start) {
            start--;
        } else {
            end--;
            struct sample_entry t = x[end];
            x[end] = x[0];
            x[0] = t;
        }
        struct sample_entry sink = x[start]; /* the root is what comes last */
        uint32_t at = start;
        for (uint32_t child; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && comes_first(x[child], x[child + 1]))
                child++;
            if (!comes_first(sink, x[child]))
                break;
            x[at] = x[child];
        }
        x[at] = sink;
    }
}

/* Keeps the entries at pick[0, n), ascending. */
static uint32_t keep_picked(struct sample_worker *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        w->value[i] = w->value[w->pick[i]];
        w->id[i] = w->id[w->pick[i]];
    }
    return n;
}

static uint32_t cut_top_p(const struct dsa_loops *loops, struct sample_worker *w, uint32_t n,
                          float top_p)
{
    double total = 0.0;
    for (uint32_t i = 0; i < n; i++)
        total += (double)w->value[i];
    /* Usually a short prefix is enough; a longer one starts with the same entries. */
    for (uint64_t m = FIRST_PREFIX;; m *= 8) {
        uint32_t len = topk_select(loops, w->value, n, m < n ? (uint32_t)m : n, w->pick, w->topk);
        for (uint32_t i = 0; i < len; i++)
            w->sorted[i] = (struct sample_entry){w->value[w->pick[i]], (uint32_t)w->pick[i]};
        sort_entries(w->sorted, len);
        double reached = 0.0;
        uint32_t n_kept = 0;
        while (n_kept < len && (!n_kept || reached < (double)top_p * total))
            reached += (double)w->sorted[n_kept++].weight;
        if (n_kept == len && len < n && reached < (double)top_p * total)
            continue;
        for (uint32_t i = 0; i < n_kept;
             i++) /* back to the order of ids: equal weights sort by it */
            w->sorted[i].weight = 0.0f;
        sort_entries(w->sorted, n_kept);
        for (uint32_t i = 0; i < n_kept; i++)
            w->pick[i] = (int32_t)w->sorted[i].at;
        return keep_picked(w, n_kept);
    }
}

static uint32_t cut_min_p(struct sample_worker *w, uint32_t n, float bound)
{
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (w->value[i] >= bound)
            w->pick[n_kept++] = (int32_t)i;
    return keep_picked(w, n_kept);
}

static uint32_t draw(struct sample_worker *w, uint32_t n, const struct sample_row *row)
{
    uint32_t noise[4];
    philox4x32(row->p->seed, row->position, row->stream, noise);
    double u = ((double)(noise[0] >> 5) * 67108864.0 + (double)(noise[1] >> 6)) * 0x1p-53;
    double total = 0.0, reached = 0.0;
    for (uint32_t i = 0; i < n; i++)
        total += (double)w->value[i];
    uint32_t last = 0;
    for (uint32_t i = 0; i < n; i++) {
        reached += (double)w->value[i];
        if (w->value[i] > 0.0f)
            last = i; /* where rounding leaves u * total at the very end */
        if (reached > u * total)
            break;
    }
    return w->id[last];
}

/* Whether there was anything to choose from. */
static bool choose(const struct kernels *k, const struct dsa_loops *loops, struct sample_worker *w,
                   const float *x, uint32_t vocab, const struct sample_row *row, uint32_t *token)
{
    const struct sample_params *p = row->p;
    if (p->temperature <= 0.0f) {
        float max = k->max_f32(x, vocab);
        if (!(max >= -FLT_MAX))
            return false;
        for (*token = 0; x[*token] != max;)
            ++*token;
        return true;
    }
    uint32_t n = loops->keep(x, vocab, -FLT_MAX, w->value, w->id);
    if (!n)
        return false;
    if (p->top_k && p->top_k < n)
        n = keep_picked(w, topk_select(loops, w->value, n, p->top_k, w->pick, w->topk));
    float max = k->max_f32(w->value, n);
    for (uint32_t i = 0; i < n; i++)
        w->value[i] = (w->value[i] - max) / p->temperature;
    (void)k->softmax_exp(w->value, 0.0f, n);
    if (p->top_p < 1.0f)
        n = cut_top_p(loops, w, n, p->top_p);
    if (p->min_p > 0.0f)
        n = cut_min_p(w, n, p->min_p * k->max_f32(w->value, n));
    *token = draw(w, n, row);
    return true;
}

static void log_probabilities(const struct kernels *k, const struct dsa_loops *loops,
                              struct sample_worker *w, const float *raw, uint32_t vocab,
                              const struct sample_params *p, struct sample_out *out)
{
    float max = k->max_f32(raw, vocab);
    memcpy(w->logit, raw, sizeof(float) * vocab);
    double log_sum = log((double)k->softmax_exp(w->logit, max, vocab));
    float x = raw[out->token];
    out->logprob = (float)((double)(x - max) - log_sum);
    uint32_t before = 0;
    for (uint32_t i = 0; i < vocab; i++)
        before += raw[i] > x;
    for (uint32_t i = 0; i < out->token; i++)
        before += raw[i] == x;
    out->rank = before + 1;
    out->n_top = topk_select(loops, raw, vocab, p->n_top, w->pick, w->topk);
    for (uint32_t i = 0; i < out->n_top; i++)
        w->sorted[i] = (struct sample_entry){raw[w->pick[i]], (uint32_t)w->pick[i]};
    sort_entries(w->sorted, out->n_top);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i] = (struct sample_top){w->sorted[i].at,
                                          (float)((double)(w->sorted[i].weight - max) - log_sum)};
}

void sample_choose(const struct kernels *k, const struct dsa_loops *loops, struct sample_worker *w,
                   const float *raw, uint32_t vocab, uint32_t end_id, const struct sample_row *row,
                   struct sample_out *out)
{
    *out = (struct sample_out){.token = end_id};
    debug_assert(row->p->n_top <= SAMPLE_MAX_TOP);
    if (!all_usable(raw, vocab) || !(k->max_f32(raw, vocab) >= -FLT_MAX)) {
        out->bad_logits = true;
        if (row->given)
            out->token = row->given_token;
        return;
    }
    if (row->given) {
        assert(row->given_token < vocab);
        out->token = row->given_token;
    } else if (!choose(k, loops, w, adjusted(w, raw, vocab, row), vocab, row, &out->token)) {
        out->token = end_id;
        out->bad_logits = true;
        return;
    }
    if (row->p->want_logprob)
        log_probabilities(k, loops, w, raw, vocab, row->p, out);
}

struct sample_job {
    struct cpu_backend *b;
    const struct cpu_lane *lane;
    const float *logits;
    uint32_t i0;
};

static void sample_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct sample_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    struct sample_worker *w = j->lane->sample_scratch;
    uint32_t i = j->i0 + chunk;
    sample_choose(j->b->k, dsa_loops_for(j->b->k->name), &w[worker],
                  j->logits + (size_t)chunk * c->vocab_size, c->vocab_size,
                  c->n_eos ? c->eos_id[0] : 0, &j->lane->step->sample[i], &j->lane->step->out[i]);
}

static void op_sample(struct ops *o, enum lane l, float *logits, uint32_t i0, uint32_t n)
{
    struct cpu_backend *b = cpu_of(o);
    struct sample_job j = {b, &b->lane[l], logits, i0};
    pool_run(b->pool, l, n, sample_chunk, &j);
}

enum err_code cpu_sample_init(struct cpu_backend *b, struct err *e)
{
    size_t n = (size_t)b->ops.cfg->vocab_size + SLACK;
    uint32_t n_workers = pool_n_workers(b->pool);
    struct sample_worker *w = cpu_reserve(b, n_workers * sizeof *w);
    for (uint32_t i = 0; w && i < n_workers; i++) {
        w[i].logit = cpu_reserve(b, sizeof(float) * n);
        w[i].value = cpu_reserve(b, sizeof(float) * n);
        w[i].id = cpu_reserve(b, sizeof(uint32_t) * n);
        w[i].pick = cpu_reserve(b, sizeof(int32_t) * n);
        w[i].count = cpu_reserve(b, sizeof(uint32_t) * n);
        w[i].sorted = cpu_reserve(b, sizeof(struct sample_entry) * n);
        w[i].topk = cpu_reserve(b, topk_scratch_bytes(b->ops.cfg->vocab_size));
        if (!w[i].logit || !w[i].value || !w[i].id || !w[i].pick || !w[i].count || !w[i].sorted ||
            !w[i].topk)
            w = NULL;
    }
    if (!w)
        return err_set(e, ERR_NOMEM, "sampling scratch of %u workers", n_workers);
    for (int l = 0; l < N_LANES; l++)
        b->lane[l].sample_scratch = w;
    b->ops.sample = op_sample;
    return ERR_OK;
}
