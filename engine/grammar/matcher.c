#include "grammar/automaton.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

struct grammar_matcher {
    struct grammar *g; /* held */
    uint32_t state;
    bool failed;
    struct grammar_matcher *next, **link; /* in the grammar's list */
};

/* Into the list; the lock is held. */
static void enlist(struct grammar_matcher *m)
{
    m->next = m->g->matchers;
    m->link = &m->g->matchers;
    if (m->next)
        m->next->link = &m->next;
    m->g->matchers = m;
}

/* At the beginning of a call that may make states: its share of searching; and once the automaton
 * is too large, only what matchers need is kept. */
static void make_room(struct grammar *g)
{
    g->search = CALL_SEARCH;
    g->charged = g->n_states;
    g->failed = g->broken; /* a call that failed is its matcher's matter alone */
    if (!automaton_large(g) || g->failed)
        return;
    size_t n = 0;
    for (struct grammar_matcher *m = g->matchers; m; m = m->next)
        n++;
    uint32_t **state = malloc((n + 1) * sizeof *state);
    if (!state)
        return; /* tried again the next time */
    n = 0;
    for (struct grammar_matcher *m = g->matchers; m; m = m->next)
        state[n++] = &m->state;
    automaton_compact(g, state, n);
    free(state);
}

enum err_code grammar_matcher_open(struct grammar_matcher **out, struct grammar *g, struct err *e)
{
    struct grammar_matcher *m = FAULT("grammar.matcher") ? NULL : calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ERR_NOMEM, "no memory for a matcher");
    m->g = grammar_ref(g);
    pthread_mutex_lock(&g->lock);
    m->state = g->root;
    m->failed = g->broken;
    enlist(m);
    pthread_mutex_unlock(&g->lock);
    *out = m;
    return ERR_OK;
}

enum err_code grammar_matcher_copy(struct grammar_matcher **out, const struct grammar_matcher *m,
                                   struct err *e)
{
    struct grammar_matcher *c = FAULT("grammar.matcher") ? NULL : malloc(sizeof *c);
    if (!c)
        return err_set(e, ERR_NOMEM, "no memory for a matcher");
    pthread_mutex_lock(&m->g->lock);
    *c = *m;
    enlist(c);
    pthread_mutex_unlock(&m->g->lock);
    grammar_ref(m->g);
    *out = c;
    return ERR_OK;
}

void grammar_matcher_close(struct grammar_matcher *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->g->lock);
    *m->link = m->next;
    if (m->next)
        m->next->link = m->link;
    pthread_mutex_unlock(&m->g->lock);
    grammar_close(m->g);
    free(m);
}

bool grammar_matcher_accept(struct grammar_matcher *m, const char *p, size_t bytes, size_t *taken)
{
    pthread_mutex_lock(&m->g->lock);
    make_room(m->g);
    uint32_t s = m->state;
    size_t i = 0;
    for (; i < bytes; i++) {
        uint32_t to = automaton_step(m->g, s, (unsigned char)p[i]);
        if (to == 0)
            break;
        s = to;
    }
    m->failed |= m->g->failed;
    pthread_mutex_unlock(&m->g->lock);
    *taken = i;
    if (i < bytes)
        return false;
    m->state = s;
    return true;
}

bool grammar_matcher_may_end(const struct grammar_matcher *m)
{
    pthread_mutex_lock(&m->g->lock); /* another matcher's step may move the states */
    bool may_end = m->g->state[m->state].may_end;
    pthread_mutex_unlock(&m->g->lock);
    return may_end;
}

bool grammar_matcher_must_end(const struct grammar_matcher *m)
{
    pthread_mutex_lock(&m->g->lock);
    const struct state *s = &m->g->state[m->state];
    bool must_end = s->may_end && s->n_cells == 0;
    if (s->may_end && !must_end) { /* a pair that ends may have nothing left but the end */
        struct byte_set f = automaton_first(m->g, m->state);
        must_end = !(f.w[0] | f.w[1] | f.w[2] | f.w[3]);
    }
    pthread_mutex_unlock(&m->g->lock);
    return must_end;
}

bool grammar_matcher_failed(const struct grammar_matcher *m)
{
    return m->failed;
}

void grammar_matcher_mask(struct grammar_matcher *m, uint32_t *mask)
{
    pthread_mutex_lock(&m->g->lock);
    make_room(m->g);
    automaton_mask(m->g, m->state, mask);
    m->failed |= m->g->failed;
    pthread_mutex_unlock(&m->g->lock);
}

size_t grammar_matcher_forced(struct grammar_matcher *m, char *out, size_t max)
{
    pthread_mutex_lock(&m->g->lock);
    make_room(m->g);
    uint32_t s = m->state;
    size_t n = 0;
    while (n < max && !m->g->state[s].may_end) {
        struct byte_set f = automaton_first(m->g, s);
        unsigned count = 0, byte = 0;
        for (unsigned w = 0; w < 4; w++) {
            count += (unsigned)__builtin_popcountll(f.w[w]);
            if (f.w[w])
                byte = 64 * w + (unsigned)__builtin_ctzll(f.w[w]);
        }
        if (count != 1)
            break;
        out[n++] = (char)byte;
        s = automaton_step(m->g, s, byte);
    }
    m->failed |= m->g->failed;
    pthread_mutex_unlock(&m->g->lock);
    return m->failed ? 0 : n;
}
