/* wire.c - see wire.h. */
#include "exec/wire.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 8 };

struct step_head {
    uint32_t n_rows, most_rows, n_seqs, n_out, samples, spare;
};
struct seq_head {
    uint32_t row0, n_rows, pos0, top_k, expand_below, run, n_pages, spare;
};
struct row_head { /* behind its sample_params, whose pointers mean nothing */
    uint32_t position, stream, n_prompt, n_history, n_banned, given, given_token, allowed;
};

/* ---- bytes ---- */

void wire_clear(struct wire *w)
{
    w->n = w->pos = 0;
    w->failed = false;
}

bool wire_reserve(struct wire *w, size_t n)
{
    if (n > w->room) {
        unsigned char *at = FAULT("wire.grow") ? NULL : realloc(w->at, n + n / 2);
        if (!at)
            return false;
        w->at = at;
        w->room = n + n / 2;
    }
    w->n = n;
    w->pos = 0;
    w->failed = false;
    return true;
}

void wire_free(struct wire *w)
{
    free(w->at);
    *w = (struct wire){0};
}

static void put(struct wire *w, const void *bytes, size_t n)
{
    size_t padded = (n + ALIGN - 1) / ALIGN * ALIGN, was = w->n;
    if (w->failed || !wire_reserve(w, was + padded)) {
        w->failed = true;
        return;
    }
    if (n)
        memcpy(w->at + was, bytes, n);
    memset(w->at + was + n, 0, padded - n);
}

/* n elements of `size` bytes where they lie; NULL, and failed, where the message ends before. */
static const void *get(struct wire *w, size_t n, size_t size)
{
    size_t bytes = (n * size + ALIGN - 1) / ALIGN * ALIGN; /* 32-bit counts: no overflow */
    if (w->failed || bytes > w->n - w->pos) {
        w->failed = true;
        return NULL;
    }
    w->pos += bytes;
    return w->at + w->pos - bytes;
}

static size_t words_of(uint32_t vocab)
{
    return ((size_t)vocab + 31) / 32;
}

/* ---- steps ---- */

enum err_code wire_room_create(struct wire_room *out, const struct wire_limits *l, struct err *e)
{
    struct wire_room r = {
        .seq = FAULT("wire.room") ? NULL : calloc(l->max_seqs, sizeof *r.seq),
        .sample = calloc(l->max_out, sizeof *r.sample),
        .params = calloc(l->max_out, sizeof *r.params),
        .out = calloc(l->max_out, sizeof *r.out),
    };
    if (!r.seq || !r.sample || !r.params || !r.out) {
        wire_room_free(&r);
        return err_set(e, ERR_NOMEM, "steps of %u sequences", l->max_seqs);
    }
    *out = r;
    return ERR_OK;
}

void wire_room_free(struct wire_room *r)
{
    free(r->seq);
    free(r->sample);
    free(r->params);
    free(r->out);
    *r = (struct wire_room){0};
}

static void put_sample(struct wire *w, const struct sample_row *r, uint32_t vocab)
{
    struct sample_params p = *r->p;
    bool penalties =
        p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f || p.repetition_penalty != 1.0f;
    struct row_head h = {.position = r->position,
                         .stream = r->stream,
                         .n_prompt = r->n_prompt,
                         .n_history = penalties ? r->n_history : 0, /* nothing else asks for it */
                         .n_banned = r->n_banned,
                         .given = r->given,
                         .given_token = r->given_token,
                         .allowed = p.allowed != NULL};
    p.bias = NULL;
    p.allowed = NULL;
    put(w, &p, sizeof p);
    put(w, &h, sizeof h);
    put(w, r->p->bias, p.n_bias * sizeof *p.bias);
    put(w, r->history, h.n_history * sizeof *r->history);
    put(w, r->banned, h.n_banned * sizeof *r->banned);
    if (h.allowed)
        put(w, r->p->allowed, words_of(vocab) * sizeof *r->p->allowed);
}

void wire_put_step(struct wire *w, const struct step *s, bool samples, uint32_t vocab)
{
    struct step_head h = {.n_rows = s->n_rows,
                          .most_rows = s->most_rows,
                          .n_seqs = s->n_seqs,
                          .n_out = s->n_out,
                          .samples = samples};
    assert(!s->n_more);
    put(w, &h, sizeof h);
    put(w, s->token, h.n_rows * sizeof *s->token);
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        struct seq_head k = {.row0 = q->row0,
                             .n_rows = q->n_rows,
                             .pos0 = q->pos0,
                             .top_k = q->top_k,
                             .expand_below = q->expand_below,
                             .run = q->run};
        k.n_pages = (q->pos0 + q->n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
        put(w, &k, sizeof k);
        put(w, q->page, k.n_pages * sizeof *q->page);
    }
    put(w, s->out_row, h.n_out * sizeof *s->out_row);
    for (uint32_t i = 0; samples && i < s->n_out; i++)
        put_sample(w, &s->sample[i], vocab);
}

static bool get_sample(struct wire *w, struct sample_row *out, struct sample_params *p,
                       uint32_t vocab)
{
    const struct sample_params *params = get(w, 1, sizeof *params);
    const struct row_head *h = get(w, 1, sizeof *h);
    if (!params || !h)
        return false;
    *p = *params;
    *out = (struct sample_row){.p = p,
                               .position = h->position,
                               .stream = h->stream,
                               .n_prompt = h->n_prompt,
                               .n_history = h->n_history,
                               .n_banned = h->n_banned,
                               .given = h->given != 0,
                               .given_token = h->given_token};
    p->bias = get(w, p->n_bias, sizeof *p->bias);
    out->history = get(w, h->n_history, sizeof *out->history);
    out->banned = get(w, h->n_banned, sizeof *out->banned);
    p->allowed = h->allowed ? get(w, words_of(vocab), sizeof *p->allowed) : NULL;
    return !w->failed && p->n_top <= SAMPLE_MAX_TOP && (!out->given || out->given_token < vocab);
}

/* Sequences' rows follow each other, and every position has its page. */
static bool get_seqs(struct wire *w, const struct step_head *h, struct step_seq *seq,
                     const struct wire_limits *l)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const struct seq_head *k = get(w, 1, sizeof *k);
        const uint32_t *page = k ? get(w, k->n_pages, sizeof *page) : NULL;
        if (!page || k->row0 != rows || !k->n_rows || k->n_rows > h->n_rows - rows ||
            k->pos0 > l->max_context || k->n_rows > l->max_context - k->pos0 ||
            k->n_pages != (k->pos0 + k->n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS)
            return false;
        for (uint32_t p = 0; p < k->n_pages; p++)
            if (page[p] >= l->n_pages)
                return false;
        seq[i] = (struct step_seq){.row0 = k->row0,
                                   .n_rows = k->n_rows,
                                   .pos0 = k->pos0,
                                   .page = page,
                                   .top_k = k->top_k,
                                   .expand_below = k->expand_below,
                                   .run = k->run};
        rows += k->n_rows;
    }
    return rows == h->n_rows;
}

static bool get_out_rows(const uint32_t *row, const struct step_head *h)
{
    for (uint32_t i = 0; i < h->n_out; i++)
        if (row[i] >= h->n_rows || (i && row[i] <= row[i - 1]))
            return false;
    return true;
}

static bool get_tokens(const uint32_t *token, uint32_t n, uint32_t vocab)
{
    for (uint32_t i = 0; i < n; i++)
        if (token[i] >= vocab)
            return false;
    return true;
}

enum err_code wire_get_step(struct wire *w, struct step *out, const struct wire_room *room,
                            const struct wire_limits *l, struct err *e)
{
    static const struct sample_params likeliest = {.top_p = 1.0f, .repetition_penalty = 1.0f};
    const struct step_head *h = get(w, 1, sizeof *h);
    bool fits = h && h->n_rows <= l->max_rows && h->n_seqs <= l->max_seqs && h->n_out <= l->max_out;
    const uint32_t *token = fits ? get(w, h->n_rows, sizeof *token) : NULL;
    fits = token && get_tokens(token, h->n_rows, l->vocab) && get_seqs(w, h, room->seq, l);
    const uint32_t *out_row = fits ? get(w, h->n_out, sizeof *out_row) : NULL;
    fits = out_row && get_out_rows(out_row, h);
    for (uint32_t i = 0; fits && i < h->n_out; i++) {
        if (h->samples)
            fits = get_sample(w, &room->sample[i], &room->params[i], l->vocab);
        else
            room->sample[i] = (struct sample_row){.p = &likeliest};
    }
    if (!fits)
        return err_set(e, ERR_COMM,
                       "a step of %u rows, %u sequences and %u results is none that this process "
                       "can run",
                       h ? h->n_rows : 0, h ? h->n_seqs : 0, h ? h->n_out : 0);
    *out = (struct step){.n_rows = h->n_rows,
                         .most_rows = h->most_rows,
                         .n_seqs = h->n_seqs,
                         .token = token,
                         .seq = room->seq,
                         .n_out = h->n_out,
                         .out_row = out_row,
                         .sample = room->sample,
                         .out = room->out};
    return ERR_OK;
}

/* ---- results ---- */

void wire_put_result(struct wire *w, const struct step *s, bool samples, const struct err *why)
{
    put(w, why, sizeof *why);
    if (samples && !why->code)
        put(w, s->out, s->n_out * sizeof *s->out);
}

bool wire_get_result(struct wire *w, const struct step *s, bool samples, struct err *why)
{
    const struct err *sent = get(w, 1, sizeof *sent);
    if (!sent)
        return false;
    *why = *sent;
    why->file = ""; /* the other process's pointer */
    why->msg[sizeof why->msg - 1] = '\0';
    const struct sample_out *out = samples && !why->code ? get(w, s->n_out, sizeof *out) : NULL;
    if (out && s->n_out)
        memcpy(s->out, out, s->n_out * sizeof *out);
    return !w->failed;
}
