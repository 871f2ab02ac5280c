/* guide.c - see guide.h. */
#include "sched/guide.h"

#include "base/err.h"
#include "text/guide_vocab.h"

#include <string.h>

static const char think_end[] = "</think>";
enum { THINK_END_BYTES = sizeof think_end - 1 };

static void begin(struct guide *gd)
{
    gd->state = gd->after_id == UINT32_MAX ? GUIDE_ON : GUIDE_FREE;
}

enum err_code guide_open(struct guide *gd, struct gen_request *r, struct err *e)
{
    *gd = (struct guide){0};
    if (!r->grammar)
        return ERR_OK;
    gd->v = r->guide_vocab;
    gd->after_id = r->grammar_after_id;
    gd->mask = arena_alloc(&r->arena, gd->v->n_words * sizeof *gd->mask);
    if (!gd->mask)
        return err_set(e, ERR_NOMEM, "no memory for a mask of %u tokens", gd->v->n_ids);
    if (grammar_matcher_open(&gd->matcher, r->grammar, e))
        return e->code;
    if (r->grammar_after_thinking)
        gd->state = GUIDE_THINKING;
    else
        begin(gd);
    return ERR_OK;
}

void guide_close(struct guide *gd)
{
    grammar_matcher_close(gd->matcher);
    *gd = (struct guide){0};
}

static enum err_code fail_bounds(struct err *e)
{
    return err_set(e, ERR_INVALID,
                   "structured output: the grammar needs more memory or search "
                   "than it may have");
}

/* How many bytes of "</think>" the text ends with, after one more; '<' is only its first. */
static unsigned spell(unsigned n, char c)
{
    if (c == think_end[n])
        return n + 1;
    return c == think_end[0];
}

static enum err_code take(struct guide *gd, const char *p, size_t n, struct err *e)
{
    size_t taken = 0;
    bool ok = n && grammar_matcher_accept(gd->matcher, p, n, &taken);
    if (grammar_matcher_failed(gd->matcher))
        return fail_bounds(e);
    if (!ok)
        return err_set(e, ERR_INVALID,
                       "structured output: a token does not fit the grammar at byte %zu", taken);
    return ERR_OK;
}

/* Reasoning can also be closed by plain tokens that spell its end: what the answer's reader does
 * not tell apart, the grammar must not either. */
static enum err_code put_thinking(struct guide *gd, uint32_t id, struct err *e)
{
    size_t n, i = 0;
    const char *p = guide_vocab_bytes(gd->v, id, &n);
    if (id == gd->v->think_end) {
        begin(gd);
        return ERR_OK;
    }
    while (i < n && gd->spelled < THINK_END_BYTES)
        gd->spelled = spell(gd->spelled, p[i++]);
    if (gd->spelled < THINK_END_BYTES)
        return ERR_OK;
    begin(gd);
    return i < n && gd->state == GUIDE_ON ? take(gd, p + i, n - i, e) : ERR_OK;
}

enum err_code guide_put(struct guide *gd, uint32_t id, struct err *e)
{
    size_t n;
    const char *p;
    switch (gd->state) {
    case GUIDE_OFF:
        break;
    case GUIDE_THINKING:
        return put_thinking(gd, id, e);
    case GUIDE_FREE:
        if (id == gd->after_id)
            gd->state = GUIDE_ON;
        break;
    case GUIDE_ON:
        p = guide_vocab_bytes(gd->v, id, &n);
        return take(gd, p, n, e);
    }
    return ERR_OK;
}

static inline void set_bit(uint32_t *mask, uint32_t id)
{
    mask[id / 32] |= (uint32_t)1 << id % 32;
}

static inline void clear_bit(uint32_t *mask, uint32_t id)
{
    mask[id / 32] &= ~((uint32_t)1 << id % 32);
}

static void fill_thinking(struct guide *gd)
{
    memcpy(gd->mask, gd->v->plain, gd->v->n_words * sizeof *gd->mask);
    if (gd->v->think_end != UINT32_MAX)
        set_bit(gd->mask, gd->v->think_end);
    if (gd->spelled) /* not with more behind it, which the grammar would have to take */
        grammar_vocab_without_longer(gd->v->vocab, think_end + gd->spelled,
                                     THINK_END_BYTES - gd->spelled, gd->mask);
}

/* Takes out what else rules; whether something is left. */
static bool restrict_mask(struct guide *gd, const struct guide_rules *rules)
{
    uint32_t n = gd->v->n_words, any = 0;
    for (uint32_t w = 0; rules->allowed && w < n; w++)
        gd->mask[w] &= rules->allowed[w];
    for (uint32_t i = 0; i < rules->n_banned; i++)
        if (rules->banned[i] < gd->v->n_ids)
            clear_bit(gd->mask, rules->banned[i]);
    for (uint32_t w = 0; w < n; w++)
        any |= gd->mask[w];
    return any;
}

static bool is_allowed(const struct guide_rules *rules, uint32_t id)
{
    return !rules->allowed || rules->allowed[id / 32] >> id % 32 & 1;
}

enum err_code guide_fill(struct guide *gd, const struct guide_rules *rules, bool *over,
                         struct err *e)
{
    *over = false;
    if (!guide_masks(gd))
        return ERR_OK;
    bool ends = false;
    if (gd->state == GUIDE_THINKING) {
        fill_thinking(gd);
        for (uint32_t i = 0; i < rules->n_end; i++)
            if (rules->end_id[i] < gd->v->n_ids)
                clear_bit(gd->mask, rules->end_id[i]);
    } else {
        grammar_matcher_mask(gd->matcher, gd->mask);
        ends = grammar_matcher_may_end(gd->matcher);
        if (grammar_matcher_failed(gd->matcher))
            return fail_bounds(e);
    }
    bool left = restrict_mask(gd, rules);
    *over = !left && ends;
    for (uint32_t i = 0; ends && rules->may_end && i < rules->n_end; i++)
        if (rules->end_id[i] < gd->v->n_ids && is_allowed(rules, rules->end_id[i]))
            set_bit(gd->mask, rules->end_id[i]);
    if (!left && !ends)
        return err_set(e, ERR_INVALID,
                       "structured output: no token is left that the grammar, allowed_token_ids "
                       "and bad_words all let come");
    return ERR_OK;
}

enum { FEW = 128, FORCED_BYTES = 256 };

/* Where so many may come, there is a choice of texts. */
static bool are_few(const struct guide *gd)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < gd->v->n_words && n <= FEW; w++)
        n += (uint32_t)__builtin_popcount(gd->mask[w]);
    return n <= FEW;
}

/* The added token whose spelling these bytes begin with; UINT32_MAX: not whole, or none. */
static uint32_t find_added(const struct guide_vocab *v, const char *p, size_t bytes, size_t *n)
{
    for (uint32_t id = 0; id < v->n_ids; id++) {
        size_t k = v->added[id] ? strlen(v->added[id]) : 0;
        if (k && k <= bytes && !memcmp(v->added[id], p, k)) {
            *n = k;
            return id;
        }
    }
    return UINT32_MAX;
}

/* How much of a text keeps its tokens, whatever follows: from there on, some token is longer. */
static size_t sure_bytes(const struct guide_vocab *v, const char *p, size_t bytes)
{
    size_t at = 0;
    while (at < bytes && !grammar_vocab_has_longer(v->vocab, p + at, bytes - at))
        at++;
    return at;
}

/* The tokens of a plain text; closed: a marker follows it. */
static enum err_code add_plain(const struct guide *gd, const char *p, size_t bytes, bool closed,
                               uint32_t *id, uint32_t *n, bool *whole, struct err *e)
{
    struct text_part part = {p, bytes, false};
    struct token_vec ids = {0};
    size_t sure = closed ? bytes : sure_bytes(gd->v, p, bytes), end = 0;
    *whole = false;
    if (!sure)
        return ERR_OK;
    if (tokenizer_encode(gd->v->tok, &part, 1, &ids, e)) {
        token_vec_free(&ids);
        return e->code;
    }
    size_t i = 0;
    for (; i < ids.n && *n < GUIDE_MAX_FORCED; i++) {
        size_t k;
        guide_vocab_bytes(gd->v, ids.id[i], &k);
        end += k;
        if (!k || end > sure)
            break;
        id[(*n)++] = ids.id[i];
    }
    *whole = i == ids.n;
    token_vec_free(&ids);
    return ERR_OK;
}

enum err_code guide_forced(struct guide *gd, uint32_t *id, uint32_t *n, struct err *e)
{
    char text[FORCED_BYTES];
    *n = 0;
    if (gd->state != GUIDE_ON || !are_few(gd))
        return ERR_OK;
    size_t bytes = grammar_matcher_forced(gd->matcher, text, sizeof text), at = 0;
    if (grammar_matcher_failed(gd->matcher))
        return fail_bounds(e);
    while (at < bytes && *n < GUIDE_MAX_FORCED) {
        size_t k = 0;
        if ((unsigned char)text[at] == GUIDE_MARK) {
            uint32_t added = find_added(gd->v, text + at, bytes - at, &k);
            if (added == UINT32_MAX)
                break;
            id[(*n)++] = added;
            at += k;
            continue;
        }
        const char *mark = memchr(text + at, GUIDE_MARK, bytes - at);
        bool whole;
        k = mark ? (size_t)(mark - text) - at : bytes - at;
        if (add_plain(gd, text + at, k, mark != NULL, id, n, &whole, e))
            return e->code;
        if (!whole)
            break;
        at += k;
    }
    return ERR_OK;
}
