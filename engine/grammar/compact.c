#include "grammar/automaton.h"

#include <stdlib.h>
#include <string.h>

/* Everything reached so far, about. */
static size_t automaton_bytes(const struct grammar *g)
{
    const struct scopes *s = &g->scopes;
    return (size_t)g->max_cells * (sizeof *g->cell + sizeof *g->info) +
           g->n_cell_table * (size_t)4 + g->max_states * sizeof *g->state +
           g->n_state_table * (size_t)4 + g->list.max * (size_t)4 +
           ((size_t)g->step.n_slots + g->live.n_slots + g->slack.n_slots + g->away.n_slots) * 12 +
           ((size_t)s->max_strings + s->max_sets) * sizeof *s->string +
           ((size_t)s->string_of.n_slots + s->set_of.n_slots) * 12 + g->n_tables * (size_t)1024;
}

bool automaton_large(struct grammar *g)
{
    size_t bytes = automaton_bytes(g);
    atomic_store_explicit(&g->bytes, g->graph_bytes + bytes, memory_order_relaxed);
    return bytes > g->max_bytes;
}

size_t grammar_bytes(const struct grammar *g)
{
    return atomic_load_explicit(&g->bytes, memory_order_relaxed);
}

/* From an old automaton into a new one; 0 in the maps: not there yet. */
struct move {
    struct grammar *to;
    const struct grammar *from;
    uint32_t *cell, *state, *string, *set;
};

/* A string or a set: links from the first to the last. */
static uint32_t move_string(struct move *m, uint32_t string);

static uint32_t move_links(struct move *m, uint32_t last, bool strings)
{
    const struct link *l = strings ? m->from->scopes.string : m->from->scopes.set;
    uint32_t *map = strings ? m->string : m->set;
    struct vec *chain = &m->to->chain;
    uint32_t base = chain->n, at = last;
    for (; at && !map[at]; at = l[at].rest)
        automaton_push(m->to, chain, at);
    uint32_t now = at ? map[at] : 0;
    while (chain->n > base && !m->to->failed) {
        at = chain->at[--chain->n];
        now = strings ? scope_string(m->to, now, l[at].added)
                      : scope_set(m->to, now, move_string(m, l[at].added));
        map[at] = now;
    }
    chain->n = base;
    return now;
}

static uint32_t move_string(struct move *m, uint32_t string)
{
    return string == ANY_STRING ? ANY_STRING : move_links(m, string, true);
}

static uint32_t move_state(struct move *m, uint32_t state);

/* A cell of which what follows has moved. */
static uint32_t move_one(struct move *m, uint32_t at)
{
    struct cell c = m->from->cell[at];
    uint8_t kind = m->from->node[c.expr].kind;
    if (kind == NODE_AND || kind == NODE_MINUS) {
        c.a = move_state(m, c.a);
        c.b = move_state(m, c.b);
    } else if (kind == NODE_ITEM && c.b) {
        c.a = move_string(m, c.a);
    } else if (kind == NODE_UNIQUE && c.b) {
        c.a = move_links(m, c.a, false);
    } else if (is_join(m->from, at)) {
        c.a = m->cell[c.a];
    }
    return automaton_cell(m->to, c.expr, c.a, c.b, m->cell[c.next]);
}

/* The stack from this cell down. */
static uint32_t move_cell(struct move *m, uint32_t cell)
{
    struct vec *chain = &m->to->chain;
    uint32_t base = chain->n;
    automaton_push(m->to, chain, cell);
    while (chain->n > base && !m->to->failed) {
        uint32_t at = chain->at[chain->n - 1], next = m->from->cell[at].next;
        uint32_t member = is_join(m->from, at) ? m->from->cell[at].a : 0;
        if (next && !m->cell[next]) {
            automaton_push(m->to, chain, next);
        } else if (member && !m->cell[member]) {
            automaton_push(m->to, chain, member);
        } else {
            if (at && !m->cell[at])
                m->cell[at] = move_one(m, at);
            chain->n--;
        }
    }
    chain->n = base;
    return m->cell[cell];
}

static uint32_t move_state(struct move *m, uint32_t state)
{
    if (state == 0 || m->state[state] || m->to->failed)
        return m->state[state];
    const struct state *s = &m->from->state[state];
    uint32_t *cells = malloc((s->n_cells + (size_t)1) * sizeof *cells);
    if (!cells) {
        m->to->failed = true;
        return 0;
    }
    for (uint32_t i = 0; i < s->n_cells; i++)
        cells[i] = move_cell(m, m->from->list.at[s->cell + i]);
    m->state[state] = automaton_cells_state(m->to, cells, s->n_cells, s->may_end);
    free(cells);
    return m->state[state];
}

void automaton_compact(struct grammar *g, uint32_t **state, size_t n)
{
    struct grammar old = *g;
    struct err e;
    automaton_forget(g);
    struct move m = {.to = g,
                     .from = &old,
                     .cell = calloc(old.n_cells, sizeof *m.cell),
                     .state = calloc(old.n_states, sizeof *m.state),
                     .string = calloc((size_t)old.scopes.n_strings + 1, sizeof *m.string),
                     .set = calloc((size_t)old.scopes.n_sets + 1, sizeof *m.set)};
    g->failed = automaton_open(g, &e) != ERR_OK || !m.cell || !m.state || !m.string || !m.set;
    if (!g->failed) {
        g->root = move_state(&m, g->root);
        for (uint32_t i = 0; i < g->n_nodes; i++) {
            g->start_a[i] = move_state(&m, g->start_a[i]);
            g->start_b[i] = move_state(&m, g->start_b[i]);
        }
        for (size_t i = 0; i < n; i++)
            *state[i] = move_state(&m, *state[i]);
    }
    g->broken = g->failed;
    if (g->failed) /* the old numbers mean nothing now: state 0 lets nothing come */
        for (size_t i = 0; i < n; i++)
            *state[i] = 0;
    free(m.cell);
    free(m.state);
    free(m.string);
    free(m.set);
    automaton_free(&old);
    while (g->max_bytes < 2 * automaton_bytes(g) && !g->failed) {
        g->max_bytes *= 2;
        g->broken = g->failed = g->max_bytes > MAX_AUTOMATON_BYTES;
    }
}
