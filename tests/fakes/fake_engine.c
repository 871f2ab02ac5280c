/* fake_engine.c - see fake_engine.h. */
#include "fake_engine.h"

#include "base/clock.h"
#include "base/thread.h"
#include "test.h"

#include <unistd.h>

enum { FAKE_SLOTS = 4096 };

struct fake_run {
    struct gen_request *req;
    uint32_t gen, made;
    uint64_t next_us;
    bool used, ended, cancelled, prompt_told; /* ended: until its last event was taken */
};

struct fake_engine {
    struct engine_options options;
    struct model_config model;
    struct tokenizer *tok;
    struct engine_plan plan;
    struct mailbox out;
    pthread_t thread;
    pthread_mutex_t lock; /* guards run and the flags */
    pthread_cond_t more;
    struct fake_run run[FAKE_SLOTS];
    uint32_t n_used;
    bool stopping, draining;
};

struct fake_settings fake;
struct fake_counts fake_count;

static struct fake_engine *self(const struct engine *en)
{
    return (struct fake_engine *)(uintptr_t)en;
}

static void put(struct fake_engine *f, struct gen_event *ev)
{
    if (mailbox_put(&f->out, &ev->mail))
        f->options.wake(f->options.wake_arg);
}

static struct req_id id_of(const struct fake_engine *f, const struct fake_run *r)
{
    return (struct req_id){(uint32_t)(r - f->run), r->gen};
}

static struct gen_event *event(struct fake_engine *f, struct fake_run *r, enum gen_event_kind kind,
                               uint32_t tokens, const char *text, size_t bytes)
{
    struct gen_event *ev = gen_event_new(kind, id_of(f, r), tokens, bytes);
    assert(ev);
    if (bytes)
        memcpy(ev->text, text, bytes);
    return ev;
}

static void end_run(struct fake_engine *f, struct fake_run *r, struct gen_event *ev)
{
    ev->usage = (struct gen_usage){.prompt_tokens = r->req->n_prompt,
                                   .completion_tokens = r->made * r->req->n,
                                   .prefill_us = 1000,
                                   .decode_us = 1000,
                                   .total_us = 2000,
                                   .busy_us = 500};
    put(f, ev);
    gen_request_free(r->req);
    r->req = NULL;
    r->ended = true;
    f->n_used--;
    atomic_fetch_sub(&fake_count.running, 1);
    atomic_fetch_add(&fake_count.done, 1);
}

static void fill(struct sample_out *o, uint32_t token, uint32_t n_top)
{
    *o = (struct sample_out){.token = token, .logprob = -0.5f, .rank = 1, .n_top = n_top};
    for (uint32_t i = 0; i < n_top; i++)
        o->top[i] = (struct sample_top){i ? i + 10 : token, -0.5f - (float)i};
}

static void tell_prompt(struct fake_engine *f, struct fake_run *r)
{
    uint32_t n = r->req->n_prompt;
    struct gen_event *ev = event(f, r, GEN_PROGRESS, 0, NULL, 0);
    ev->prompt_done = n;
    put(f, ev);
    r->prompt_told = true;
    if (!r->req->prompt_logprobs)
        return;
    ev = event(f, r, GEN_PROMPT, n - 1, NULL, 0);
    for (uint32_t i = 1; i < n; i++)
        fill(&ev->out[i - 1], r->req->prompt[i], r->req->n_prompt_top);
    put(f, ev);
}

static void end_choices(struct fake_engine *f, struct fake_run *r, enum gen_finish finish)
{
    for (uint32_t i = 0; i < r->req->n; i++) {
        struct gen_event *ev = event(f, r, GEN_CHOICE, 0, NULL, 0);
        ev->choice = i;
        ev->finish = finish;
        put(f, ev);
    }
    end_run(f, r, event(f, r, GEN_DONE, 0, NULL, 0));
}

static void step(struct fake_engine *f, struct fake_run *r, uint64_t now_us)
{
    const char *text = fake.text ? fake.text : "tok ";
    uint32_t pace = atomic_load(&fake.piece_bytes), piece = pace ? pace : 4;
    size_t bytes = strlen(text), at = fake.text ? (size_t)r->made * piece : 0;
    if (r->cancelled) {
        end_choices(f, r, FINISH_CANCELLED);
        return;
    }
    if (!r->prompt_told)
        tell_prompt(f, r);
    if (at >= bytes || r->made >= r->req->max_tokens) {
        end_choices(f, r, at >= bytes ? FINISH_STOP : FINISH_LENGTH);
        return;
    }
    if (fake.fail_at && r->made + 1 == fake.fail_at) {
        struct gen_event *ev = event(f, r, GEN_ERROR, 0, NULL, 0);
        err_set(&ev->err, ERR_IO, "the device is gone");
        end_run(f, r, ev);
        return;
    }
    for (uint32_t i = 0; i < r->req->n; i++) {
        struct gen_event *ev =
            event(f, r, GEN_TOKENS, 1, text + at, bytes - at < piece ? bytes - at : piece);
        fill(ev->out, fake.token, r->req->sample.n_top);
        ev->out[0].logprob = -0.5f - (float)i; /* the first choice is the likeliest */
        ev->choice = r->req->n - 1 - i;
        put(f, ev);
    }
    r->made++;
    r->next_us = now_us + atomic_load(&fake.token_us);
}

static void *fake_main(void *arg)
{
    struct fake_engine *f = arg;
    mutex_lock(&f->lock);
    while (!f->stopping) {
        uint64_t now_us = clock_us(), next_us = now_us + 50000;
        for (uint32_t i = 0; i < FAKE_SLOTS && f->n_used; i++) {
            struct fake_run *r = &f->run[i];
            if (r->used && !r->ended && (r->cancelled || r->next_us <= now_us))
                step(f, r, now_us);
            if (r->used && !r->ended && r->next_us < next_us)
                next_us = r->next_us;
        }
        if (next_us > now_us)
            cond_wait_us(&f->more, &f->lock, (unsigned long)(next_us - now_us));
    }
    mutex_unlock(&f->lock);
    return NULL;
}

static enum err_code fake_open(struct engine **out, const struct engine_options *o, struct err *e)
{
    static struct fake_engine only;
    struct fake_engine *f = &only;
    if (fake.load_us)
        usleep(fake.load_us);
    if (fake.load_fails)
        return err_set(e, ERR_INVALID, "the fake model does not load");
    *f = (struct fake_engine){.options = *o}; /* one after the other may be opened */
    const char *model = fake.model ? fake.model : test_fixture("v32-bf16");
    if (model_config_read(&f->model, model, e) || tokenizer_open(&f->tok, model, e))
        return e->code;
    f->plan = (struct engine_plan){.max_context = fake.max_context ? fake.max_context : 8192,
                                   .max_seqs = 16};
    memcpy(f->plan.model_type, f->model.model_type, sizeof f->plan.model_type);
    mailbox_init(&f->out);
    pthread_mutex_init(&f->lock, NULL);
    cond_init_monotonic(&f->more);
    if (thread_start(&f->thread, "fake", fake_main, f, e))
        return e->code;
    *out = (struct engine *)f;
    return ERR_OK;
}

static void fake_close(struct engine *en)
{
    struct fake_engine *f = self(en);
    mutex_lock(&f->lock);
    f->stopping = true;
    pthread_cond_signal(&f->more);
    mutex_unlock(&f->lock);
    thread_join(f->thread);
    for (uint32_t i = 0; i < FAKE_SLOTS; i++)
        gen_request_free(f->run[i].req);
    for (struct mail *m = mailbox_take(&f->out), *next; m; m = next) {
        next = m->next;
        gen_event_free((struct gen_event *)m);
    }
    mailbox_destroy(&f->out);
    tokenizer_close(f->tok);
}

static void note(const struct gen_request *r)
{
    const struct sample_params *s = &r->sample;
    fake_count.priority = (uint32_t)r->priority;
    fake_count.tenant = r->tenant;
    fake_count.weight = r->weight;
    fake_count.seed = s->seed;
    fake_count.salt = r->cache_salt;
    fake_count.n_bias = s->n_bias;
    fake_count.n_bad_words = r->n_bad_words;
    fake_count.n_stop = r->n_stop;
    fake_count.n_stop_id = r->n_stop_id;
    fake_count.top_k_dsa = r->top_k_dsa;
    fake_count.max_tokens = r->max_tokens;
    fake_count.min_tokens = r->min_tokens;
    fake_count.n_prompt = r->n_prompt;
    fake_count.guided = !r->grammar                         ? GUIDED_NEVER
                        : r->grammar_after_thinking         ? GUIDED_BEHIND_THINKING
                        : r->grammar_after_id != UINT32_MAX ? GUIDED_BEHIND_MARKER
                                                            : GUIDED_AT_ONCE;
    fake_count.think_budget = r->limit_thinking ? r->max_thinking : UINT32_MAX;
    fake_count.n_never = r->n_never;
    fake_count.has_allowed = s->allowed != NULL;
    fake_count.keep_special = r->keep_special;
    fake_count.include_stop = r->include_stop;
    fake_count.ignore_eos = r->ignore_eos;
    fake_count.temperature = s->temperature;
    fake_count.top_p = s->top_p;
}

static enum err_code fake_submit(struct engine *en, struct gen_request *req, struct req_id *id,
                                 struct err *e)
{
    struct fake_engine *f = self(en);
    mutex_lock(&f->lock);
    uint32_t i = 0;
    while (i < FAKE_SLOTS && f->run[i].used)
        i++;
    bool closed = f->draining, busy = atomic_load(&fake.busy) || i == FAKE_SLOTS;
    if (closed || busy) {
        mutex_unlock(&f->lock);
        gen_request_free(req);
        return closed ? err_set(e, ERR_CLOSED, "draining")
                      : err_set(e, ERR_BUSY, "the queue is full");
    }
    struct fake_run *r = &f->run[i];
    *r = (struct fake_run){.req = req,
                           .gen = r->gen + 1,
                           .used = true,
                           .next_us = clock_us() + atomic_load(&fake.prefill_us)};
    *id = id_of(f, r);
    note(req);
    f->n_used++;
    atomic_fetch_add(&fake_count.submitted, 1);
    atomic_fetch_add(&fake_count.running, 1);
    pthread_cond_signal(&f->more);
    mutex_unlock(&f->lock);
    return ERR_OK;
}

static void fake_cancel(struct engine *en, struct req_id id)
{
    struct fake_engine *f = self(en);
    mutex_lock(&f->lock);
    struct fake_run *r = &f->run[id.slot];
    if (r->used && !r->ended && r->gen == id.gen && !r->cancelled) {
        r->cancelled = true;
        atomic_fetch_add(&fake_count.cancelled, 1);
        pthread_cond_signal(&f->more);
    }
    mutex_unlock(&f->lock);
}

static struct gen_event *fake_take(struct engine *en)
{
    struct fake_engine *f = self(en);
    struct mail *all = mailbox_take(&f->out);
    mutex_lock(&f->lock);
    for (struct mail *m = all; m; m = m->next) {
        const struct gen_event *ev = (const struct gen_event *)m;
        if (ev->kind == GEN_DONE || ev->kind == GEN_ERROR)
            f->run[ev->id.slot].used = false;
    }
    mutex_unlock(&f->lock);
    return (struct gen_event *)all;
}

static void fake_drain(struct engine *en)
{
    mutex_lock(&self(en)->lock);
    self(en)->draining = true;
    mutex_unlock(&self(en)->lock);
}

static bool fake_lost(struct engine *en, struct err *why)
{
    (void)en;
    bool lost = atomic_load(&fake.lost);
    if (lost)
        err_set(why, ERR_COMM, "rank 3 of 8 did not come");
    return lost;
}

static void fake_stats(struct engine *en, struct engine_stats *out)
{
    (void)en;
    bool stuck = atomic_load(&fake.stuck);
    *out = (struct engine_stats){.running = fake_count.running,
                                 .last_step_us = clock_us() - (stuck ? 60000000 : 0),
                                 .step_in_flight = stuck};
}

static const struct model_config *fake_model(const struct engine *en)
{
    return &self(en)->model;
}

static const struct tokenizer *fake_tokenizer(const struct engine *en)
{
    return self(en)->tok;
}

static const struct chat_format *fake_format(const struct engine *en)
{
    (void)en;
    return chat_format_by_name(fake.format ? fake.format : "deepseek-v3.1");
}

static const struct engine_plan *fake_plan(const struct engine *en)
{
    return &self(en)->plan;
}

/* Expert x of layer l had 10 l + x. */
static void fake_expert_rows(struct engine *en, uint64_t *rows)
{
    const struct model_config *m = fake_model(en);
    for (uint32_t l = 0; l < m->n_layers; l++)
        for (uint32_t x = 0; x < m->n_experts; x++)
            rows[(size_t)l * m->n_experts + x] = 10 * l + x;
}

/* Half of what the first layer selected, it had selected before. */
static void fake_reuse(struct engine *en, struct reuse_count *count)
{
    (void)en;
    memset(count, 0, REUSE_LAYERS * sizeof *count);
    count[0] = (struct reuse_count){.selected = 4096, .again = 2048};
}

static const char *fake_name(const struct engine *en)
{
    (void)en;
    return "fake";
}

const struct engine_api fake_engine_api = {.open = fake_open,
                                           .close = fake_close,
                                           .submit = fake_submit,
                                           .cancel = fake_cancel,
                                           .take_events = fake_take,
                                           .drain = fake_drain,
                                           .lost = fake_lost,
                                           .get_stats = fake_stats,
                                           .get_expert_rows = fake_expert_rows,
                                           .get_selection_reuse = fake_reuse,
                                           .model = fake_model,
                                           .tokenizer = fake_tokenizer,
                                           .chat_format = fake_format,
                                           .get_plan = fake_plan,
                                           .backend_name = fake_name,
                                           .fingerprint = fake_name};
