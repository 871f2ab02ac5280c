#include "grammar/automaton.h"

#include "base/fault.h"
#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

enum { ASKED_FOR_TABLE = 24, MANY_CELLS = 64 };

bool automaton_grow(struct grammar *g, void **p, uint32_t *max, uint32_t want, size_t element_bytes)
{
    if (want <= *max)
        return true;
    uint32_t n = *max ? *max * 2 : 64;
    while (n < want)
        n *= 2;
    void *q = FAULT("grammar.automaton") ? NULL : realloc(*p, n * element_bytes);
    if (!q) {
        g->failed = true;
        return false;
    }
    *p = q;
    *max = n;
    return true;
}

bool automaton_push(struct grammar *g, struct vec *v, uint32_t x)
{
    if (!automaton_grow(g, (void **)&v->at, &v->max, v->n + 1, sizeof *v->at))
        return false;
    v->at[v->n++] = x;
    return true;
}

uint32_t *word_set_find(const struct word_set *s, uint64_t key)
{
    if (!s->n_slots)
        return NULL;
    for (uint64_t at = hash_mix(key);; at++) {
        at &= s->n_slots - 1;
        if (s->key[at] == key)
            return &s->value[at];
        if (!s->key[at])
            return NULL;
    }
}

static void set_place(struct word_set *s, uint64_t key, uint32_t value)
{
    uint64_t at = hash_mix(key) & (s->n_slots - 1);
    while (s->key[at])
        at = (at + 1) & (s->n_slots - 1);
    s->key[at] = key;
    s->value[at] = value;
}

/* key is not in the set. */
bool word_set_add(struct grammar *g, struct word_set *s, uint64_t key, uint32_t value)
{
    if (s->n * 2 >= s->n_slots) {
        struct word_set bigger = {.n = s->n, .n_slots = s->n_slots ? s->n_slots * 2 : 256};
        bigger.key = FAULT("grammar.automaton") ? NULL : calloc(bigger.n_slots, sizeof *s->key);
        bigger.value = malloc(bigger.n_slots * sizeof *s->value);
        if (!bigger.key || !bigger.value) {
            free(bigger.key);
            free(bigger.value);
            g->failed = true;
            return false;
        }
        for (uint32_t i = 0; i < s->n_slots; i++)
            if (s->key[i])
                set_place(&bigger, s->key[i], s->value[i]);
        free(s->key);
        free(s->value);
        *s = bigger;
    }
    set_place(s, key, value);
    s->n++;
    return true;
}

static uint64_t cell_hash(const struct cell *c)
{
    return hash_mix(((uint64_t)c->expr << 32 | c->next) ^
                    hash_mix(((uint64_t)c->a << 32 | c->b) + 0x9E3779B97F4A7C15u));
}

static bool cell_table_grow(struct grammar *g)
{
    uint32_t n = g->n_cell_table ? g->n_cell_table * 2 : 256;
    uint32_t *t = FAULT("grammar.automaton") ? NULL : calloc(n, sizeof *t);
    if (!t) {
        g->failed = true;
        return false;
    }
    for (uint32_t i = 1; i < g->n_cells; i++) {
        uint32_t at = (uint32_t)cell_hash(&g->cell[i]) & (n - 1);
        while (t[at])
            at = (at + 1) & (n - 1);
        t[at] = i;
    }
    free(g->cell_table);
    g->cell_table = t;
    g->n_cell_table = n;
    return true;
}

/* The cell that says this; 0: there is none yet, and *at is its place in the table. */
static uint32_t cell_find(struct grammar *g, const struct cell *c, uint32_t *at)
{
    if (g->n_cells * 2 >= g->n_cell_table && !cell_table_grow(g))
        return 0;
    *at = (uint32_t)cell_hash(c) & (g->n_cell_table - 1);
    for (; g->cell_table[*at]; *at = (*at + 1) & (g->n_cell_table - 1))
        if (memcmp(&g->cell[g->cell_table[*at]], c, sizeof *c) == 0)
            return g->cell_table[*at];
    return 0;
}

uint32_t automaton_cell(struct grammar *g, uint32_t expr, uint32_t a, uint32_t b, uint32_t next)
{
    struct cell c = {expr, a, b, next};
    uint32_t marks = 0, at, known = cell_find(g, &c, &at);
    if (known || g->failed)
        return known;
    bool mark = b == 1 && (g->node[expr].kind == NODE_UNIQUE || g->node[expr].kind == NODE_ITEM);
    if (mark && next && g->info[next].marks != next) {
        marks = automaton_cell(g, expr, a, b, g->info[next].marks);
        if (!marks || cell_find(g, &c, &at) || g->failed)
            return 0;
    }
    if (g->n_cells >= MAX_CELLS) {
        g->failed = true;
        return 0;
    }
    uint32_t max = g->max_cells;
    if (!automaton_grow(g, (void **)&g->cell, &g->max_cells, g->n_cells + 1, sizeof *g->cell))
        return 0;
    if (g->max_cells != max) {
        struct cell_info *info = realloc(g->info, g->max_cells * sizeof *info);
        if (!info) {
            g->max_cells = max;
            g->failed = true;
            return 0;
        }
        g->info = info;
    }
    uint32_t below = next ? g->info[next].marks : 0;
    g->info[g->n_cells] = (struct cell_info){.marks = !mark           ? below
                                                      : below == next ? g->n_cells
                                                                      : marks,
                                             .flags = scope_flags(g, &c)};
    g->cell[g->n_cells] = c;
    g->cell_table[at] = g->n_cells;
    return g->n_cells++;
}

static uint64_t state_hash(const uint32_t *cells, uint32_t n, bool may_end)
{
    return n ? hash_bytes(may_end, cells, n * sizeof *cells) : may_end;
}

static bool state_table_grow(struct grammar *g)
{
    uint32_t n = g->n_state_table ? g->n_state_table * 2 : 256;
    uint32_t *t = FAULT("grammar.automaton") ? NULL : calloc(n, sizeof *t);
    if (!t) {
        g->failed = true;
        return false;
    }
    for (uint32_t i = 1; i < g->n_states; i++) {
        const struct state *s = &g->state[i];
        uint32_t at = (uint32_t)state_hash(g->list.at + s->cell, s->n_cells, s->may_end) & (n - 1);
        while (t[at])
            at = (at + 1) & (n - 1);
        t[at] = i;
    }
    free(g->state_table);
    g->state_table = t;
    g->n_state_table = n;
    return true;
}

static int by_number(const void *x, const void *y)
{
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return (a > b) - (a < b);
}

static void sort_cells(uint32_t *at, uint32_t n)
{
    if (n > 16) {
        qsort(at, n, sizeof *at, by_number);
        return;
    }
    for (uint32_t i = 1; i < n; i++) {
        uint32_t x = at[i], j = i;
        for (; j > 0 && at[j - 1] > x; j--)
            at[j] = at[j - 1];
        at[j] = x;
    }
}

/* The state of the n cells at the end of the list pool. They stay there when it is new. */
static uint32_t state_of(struct grammar *g, uint32_t n, bool may_end)
{
    g->list.n -= n;
    if ((n == 0 && !may_end) || g->failed)
        return 0;
    if (g->n_states * 2 >= g->n_state_table && !state_table_grow(g))
        return 0;
    uint32_t *cells = g->list.at ? g->list.at + g->list.n : NULL;
    if (n > 1)
        sort_cells(cells, n);
    uint32_t at = (uint32_t)state_hash(cells, n, may_end) & (g->n_state_table - 1);
    for (; g->state_table[at]; at = (at + 1) & (g->n_state_table - 1)) {
        const struct state *s = &g->state[g->state_table[at]];
        if (s->n_cells == n && s->may_end == may_end &&
            (n == 0 || memcmp(g->list.at + s->cell, cells, n * sizeof *cells) == 0))
            return g->state_table[at];
    }
    if (g->n_states >= MAX_STATES) {
        g->failed = true;
        return 0;
    }
    if (!automaton_grow(g, (void **)&g->state, &g->max_states, g->n_states + 1, sizeof *g->state))
        return 0;
    g->state[g->n_states] = (struct state){.cell = g->list.n, .n_cells = n, .may_end = may_end};
    g->list.n += n;
    g->state_table[at] = g->n_states;
    return g->n_states++;
}

static bool is_pair(const struct grammar *g, gb_node x)
{
    return g->node[x].kind == NODE_AND || g->node[x].kind == NODE_MINUS;
}

bool automaton_pair_ends(const struct grammar *g, gb_node x, uint32_t a, uint32_t b)
{
    bool end_b = g->state[b].may_end;
    return g->state[a].may_end && (g->node[x].kind == NODE_AND ? end_b : !end_b);
}

/* Node x and then `next`, to be met by the closure that runs. */
static void work_node(struct grammar *g, gb_node x, uint32_t next)
{
    if (!(g->known[x] & PRODUCTIVE))
        return;
    uint32_t a = 0, b = 0;
    if (is_pair(g, x)) {
        a = g->start_a[x];
        b = g->start_b[x];
    } else if (g->lexeme[x]) {
        a = LEXEME_START;
    }
    uint32_t c = automaton_cell(g, x, a, b, next);
    if (c)
        automaton_push(g, &g->work, c);
}

void automaton_limits(const struct grammar *g, gb_node x, uint32_t *min, uint32_t *max)
{
    bool repeat = g->node[x].kind == NODE_REPEAT;
    *min = repeat ? g->node[x].b : 1;
    *max = repeat ? g->node[x].c : 1;
}

void automaton_left(const struct grammar *g, const struct cell *c, uint32_t *least, uint32_t *most)
{
    uint32_t min, max;
    automaton_limits(g, c->expr, &min, &max);
    *least = min > c->b ? min - c->b : 0;
    *most = max == GB_UNBOUNDED || c->b == FAR ? GB_UNBOUNDED : max - c->b;
}

/* A cell of a lexeme may be left between two bodies, once there are enough. */
static void close_lexeme(struct grammar *g, const struct cell *c)
{
    uint32_t min, max;
    automaton_limits(g, c->expr, &min, &max);
    if (c->a == LEXEME_START && c->b >= min) /* FAR is */
        automaton_push(g, &g->work, c->next);
}

static void close_repeat(struct grammar *g, uint32_t at)
{
    struct cell c = g->cell[at];
    const struct gb_node_data *d = &g->node[c.expr];
    bool nullable = g->known[d->a] & NULLABLE; /* then a round may be skipped: min does not bind */
    if (nullable || c.b >= d->b)
        automaton_push(g, &g->work, c.next);
    if (d->c != GB_UNBOUNDED && c.b >= d->c)
        return;
    uint32_t done = c.b + 1; /* without a limit, counting ends at the minimum */
    if (d->c == GB_UNBOUNDED && done > (nullable ? 0 : d->b))
        done = nullable ? 0 : d->b;
    uint32_t after =
        d->c != GB_UNBOUNDED && done == d->c ? c.next : automaton_cell(g, c.expr, 0, done, c.next);
    if (nullable && after && after != c.next) /* an empty round brings nothing new */
        g->info[after].seen = g->closure;
    work_node(g, d->a, after);
}

/* The beginning of a scope or an item, or its mark, where it ends. */
static void close_scope(struct grammar *g, uint32_t at)
{
    struct cell c = g->cell[at];
    uint32_t next = c.next;
    if (!c.b)
        work_node(g, g->node[c.expr].a, automaton_cell(g, c.expr, 0, 1, c.next));
    else if (g->node[c.expr].kind == NODE_UNIQUE || scope_finish(g, at, &next))
        automaton_push(g, &g->work, next);
}

/* Of the n cells at the end of the list pool, those whose items can still become new ones. */
static uint32_t keep_alive(struct grammar *g, uint32_t n)
{
    if (n == 0)
        return 0;
    uint8_t flags = 0;
    uint32_t *cells = g->list.at + g->list.n - n, kept = 0;
    for (uint32_t i = 0; i < n; i++)
        flags |= g->info[cells[i]].flags & IN_MARK;
    if (!flags)
        return n;
    uint32_t *copy = malloc(n * sizeof *copy); /* to look ahead makes states, and moves the list */
    if (!copy) {
        g->failed = true;
        return n;
    }
    memcpy(copy, cells, n * sizeof *copy);
    g->list.n -= n;
    for (uint32_t i = 0; i < n && !g->failed; i++)
        if (!(g->info[copy[i]].flags & IN_MARK) || scope_alive(g, copy[i]))
            copy[kept++] = copy[i];
    for (uint32_t i = 0; i < kept; i++)
        automaton_push(g, &g->list, copy[i]);
    free(copy);
    return g->failed ? 0 : kept;
}

/* Replaces the cells on the work list from `from` on by the state of all first bytes they have. */
static uint32_t close_work(struct grammar *g, uint32_t from)
{
    bool may_end = false;
    uint32_t n = 0;
    if (++g->closure == 0) { /* the stamps have gone round */
        for (uint32_t i = 0; i < g->n_cells; i++)
            g->info[i].seen = 0;
        g->closure = 1;
    }
    while (g->work.n > from && !g->failed) {
        uint32_t at = g->work.at[--g->work.n];
        if (at == 0) {
            may_end = true;
            continue;
        }
        if (g->info[at].seen == g->closure)
            continue;
        g->info[at].seen = g->closure;
        struct cell c = g->cell[at];
        if (is_join(g, at)) {
            automaton_push(g, &g->work, c.a);
            automaton_push(g, &g->work, c.next);
            continue;
        }
        const struct gb_node_data *d = &g->node[c.expr];
        if (g->lexeme[c.expr]) {
            n += automaton_push(g, &g->list, at);
            close_lexeme(g, &c);
            continue;
        }
        switch ((enum gb_kind)d->kind) {
        case NODE_NEVER:
            break;
        case NODE_EMPTY:
            automaton_push(g, &g->work, c.next);
            break;
        case NODE_BYTES:
        case NODE_SET:
            n += automaton_push(g, &g->list, at);
            break;
        case NODE_AND:
        case NODE_MINUS:
            n += automaton_push(g, &g->list, at);
            if (automaton_pair_ends(g, c.expr, c.a, c.b))
                automaton_push(g, &g->work, c.next);
            break;
        case NODE_SEQ:
            work_node(g, g->part[d->a + c.b],
                      c.b + 1 < d->b ? automaton_cell(g, c.expr, 0, c.b + 1, c.next) : c.next);
            break;
        case NODE_ALT:
            for (uint32_t i = 0; i < d->b; i++)
                work_node(g, g->part[d->a + i], c.next);
            break;
        case NODE_REPEAT:
            close_repeat(g, at);
            break;
        case NODE_RULE:
            work_node(g, d->a, c.next);
            break;
        case NODE_UNIQUE:
        case NODE_ITEM:
            close_scope(g, at);
            break;
        }
    }
    g->work.n = from;
    if (g->failed)
        n = 0;
    return state_of(g, keep_alive(g, stacks_merge(g, texts_absorb(g, n))), may_end);
}

uint32_t automaton_start(struct grammar *g, gb_node x)
{
    uint32_t from = g->work.n;
    work_node(g, x, 0);
    return close_work(g, from);
}

/* Splits the classes of bytes so that within one all of the state's cells do the same. */
struct classes {
    uint8_t of[256];
    unsigned n;
};

static void split(struct classes *k, const struct byte_set *s)
{
    int16_t inside[256];
    for (unsigned i = 0; i < k->n; i++)
        inside[i] = -1;
    uint8_t outside[256] = {0};
    for (unsigned i = 0; i < 256; i++)
        outside[k->of[i]] |= !byte_set_has(s, i);
    for (unsigned i = 0; i < 256; i++) {
        unsigned c = k->of[i];
        if (!byte_set_has(s, i))
            continue;
        if (inside[c] < 0)
            inside[c] = (int16_t)(outside[c] ? k->n++ : c);
        k->of[i] = (uint8_t)inside[c];
    }
}

/* By what a lexeme's state does. */
static void split_by_row(struct classes *k, const uint8_t row[256])
{
    struct byte_set by_value[256];
    bool used[256] = {false};
    for (unsigned i = 0; i < 256; i++) {
        if (!used[row[i]])
            by_value[row[i]] = (struct byte_set){{0}};
        used[row[i]] = true;
        byte_set_add(&by_value[row[i]], i);
    }
    for (unsigned v = 1; v < 256; v++)
        if (used[v])
            split(k, &by_value[v]);
}

static void split_by_cells(const struct grammar *g, uint32_t state, struct classes *k)
{
    const struct state *s = &g->state[state];
    struct byte_set single = {{0}};
    uint32_t last_set = UNKNOWN;
    const uint8_t *last_row = NULL; /* counts differ, but the next bytes are the same */
    for (uint32_t i = 0; i < s->n_cells; i++) {
        const struct cell *c = &g->cell[g->list.at[s->cell + i]];
        const struct gb_node_data *d = &g->node[c->expr];
        if (d->kind == NODE_BYTES) {
            byte_set_add(&single, (unsigned char)g->text[d->a + c->b]);
        } else if (d->kind == NODE_SET) {
            if (d->a != last_set)
                split(k, &g->set[d->a]);
            last_set = d->a;
        } else if (g->lexeme[c->expr]) {
            const uint8_t *row = g->lexeme[c->expr]->to[c->a];
            if (row != last_row)
                split_by_row(k, row);
            last_row = row;
        } else {
            split_by_cells(g, c->a, k);
            split_by_cells(g, c->b, k);
        }
    }
    for (unsigned i = 0; i < 256; i++)
        if (byte_set_has(&single, i)) {
            struct byte_set one = {{0}};
            byte_set_add(&one, i);
            split(k, &one);
        }
}

/* Each byte's class: bytes of one class lead to the same state. Kept with the state. NULL: no
 * memory. */
static const uint8_t *classes_of(struct grammar *g, uint32_t state)
{
    if (!g->state[state].classes) {
        struct classes k = {.n = 1};
        split_by_cells(g, state, &k);
        uint8_t *of = malloc(sizeof k.of);
        if (!of) {
            g->failed = true;
            return NULL;
        }
        memcpy(of, k.of, sizeof k.of);
        g->n_tables++;
        g->state[state].classes = of;
    }
    return g->state[state].classes;
}

/* One byte of each class, for a pair of states. */
static unsigned representatives(struct grammar *g, uint32_t a, uint32_t b, uint8_t out[256])
{
    const uint8_t *ca = classes_of(g, a), *cb = classes_of(g, b);
    uint32_t met[512] = {0}; /* a small hash table of pairs of classes, + 1 */
    unsigned n = 0;
    for (unsigned i = 0; i < 256 && ca && cb; i++) {
        uint32_t both = (uint32_t)ca[i] << 8 | cb[i], at = (both * 0x9E3779B1u) >> 23;
        while (met[at] && met[at] != both + 1)
            at = (at + 1) & 511;
        if (!met[at])
            out[n++] = (uint8_t)i;
        met[at] = both + 1;
    }
    return n;
}

enum { PAIR_COST = 8, STATE_COST = 150 };

/* A look at n bytes of a pair, and the states that were made since the last one. */
static void spend(struct grammar *g, unsigned n)
{
    uint64_t made = g->n_states > g->charged ? g->n_states - g->charged : 0;
    uint64_t cost = PAIR_COST + n + made * STATE_COST;
    g->charged = g->n_states;
    g->failed |= cost > g->search;
    g->search -= cost > g->search ? g->search : (uint32_t)cost;
}

/* A pair is live iff some bytes lead it to an end. The search goes breadth first over pairs until
 * it meets an end or a pair known to be live; then the way there is live. If it meets none, all
 * that it met are dead. Pairs are kept as cells with nothing after them. */
bool automaton_live(struct grammar *g, gb_node x, uint32_t a, uint32_t b)
{
    bool minus = g->node[x].kind == NODE_MINUS;
    if (a == 0 || (b == 0 && !minus))
        return false;
    if (b == 0 || automaton_pair_ends(g, x, a, b))
        return true;
    uint32_t first = automaton_cell(g, x, a, b, 0);
    const uint32_t *known = first ? word_set_find(&g->live, (uint64_t)first + 1) : NULL;
    if (known)
        return *known == 1;
    struct vec queue = {0}, parent = {0};
    struct word_set met = {0};
    bool live = false;
    uint32_t way = 0; /* the queue's entry from which an end was seen */
    if (!first || !automaton_push(g, &queue, first) || !automaton_push(g, &parent, UNKNOWN) ||
        !word_set_add(g, &met, (uint64_t)first + 1, 0))
        goto done;
    for (uint32_t i = 0; i < queue.n && !live && !g->failed; i++) {
        uint8_t byte[256];
        uint32_t pa = g->cell[queue.at[i]].a, pb = g->cell[queue.at[i]].b;
        unsigned n = representatives(g, pa, pb, byte);
        spend(g, n);
        way = i;
        for (unsigned k = 0; k < n && !live && !g->failed; k++) {
            uint32_t na = automaton_step(g, pa, byte[k]);
            uint32_t nb = na ? automaton_step(g, pb, byte[k]) : 0;
            if (na == 0 || (nb == 0 && !minus))
                continue;
            live = nb == 0 || automaton_pair_ends(g, x, na, nb);
            uint32_t c = live ? 0 : automaton_cell(g, x, na, nb, 0);
            if (!c || word_set_find(&met, (uint64_t)c + 1))
                continue;
            known = word_set_find(&g->live, (uint64_t)c + 1);
            if (known) {
                live = *known == 1;
                continue;
            }
            if (automaton_push(g, &queue, c) && automaton_push(g, &parent, i))
                word_set_add(g, &met, (uint64_t)c + 1, 0);
        }
    }
    if (g->failed)
        live = false;
    else if (live)
        for (uint32_t i = way; i != UNKNOWN; i = parent.at[i])
            word_set_add(g, &g->live, (uint64_t)queue.at[i] + 1, 1);
    else
        for (uint32_t i = 0; i < queue.n; i++)
            word_set_add(g, &g->live, (uint64_t)queue.at[i] + 1, 0);
done:
    free(queue.at);
    free(parent.at);
    free(met.key);
    free(met.value);
    return live;
}

enum { MAX_SLACK_PAIRS = 600, NO_SLACK = UINT32_MAX - 1 };

/* Whether a lexeme's state is between two bodies. */
static bool between_bodies(const struct grammar *g, uint32_t state)
{
    return g->cell[g->list.at[g->state[state].cell]].a == LEXEME_START;
}

uint32_t automaton_loosen(struct grammar *g, uint32_t state, uint32_t *room)
{
    uint32_t n = g->state[state].n_cells, from = g->list.n, mark = UNKNOWN;
    for (uint32_t i = 0; i < n && !g->failed; i++)
        automaton_push(g, &g->list,
                       scope_loosen(g, g->list.at[g->state[state].cell + i], &mark, room));
    if (g->failed) {
        g->list.n = from;
        return 0;
    }
    return state_of(g, stacks_merge(g, n), g->state[state].may_end);
}

static uint32_t without_counts(struct grammar *g, uint32_t state)
{
    uint32_t room;
    for (uint32_t i = 0; i < g->state[state].n_cells; i++)
        if (g->info[g->list.at[g->state[state].cell + i]].flags & IN_COUNT)
            return automaton_loosen(g, state, &room);
    return state;
}

/* Bodies on the shortest way to an end, at most, from any live pair that `first` leads to. Its
 * right side is one lexeme. */
static uint32_t slack_of(struct grammar *g, gb_node x, uint32_t first, bool plain)
{
    const uint32_t *known = word_set_find(&g->slack, (uint64_t)first + 1);
    if (known)
        return *known;
    struct vec pair = {0}, from = {0}, to = {0}; /* edges: numbers of pairs */
    struct vec length = {0};
    struct word_set met = {0};
    uint32_t far[MAX_SLACK_PAIRS], most = 0;
    automaton_push(g, &pair, first);
    word_set_add(g, &met, (uint64_t)first + 1, 0);
    for (uint32_t i = 0; i < pair.n && pair.n < MAX_SLACK_PAIRS && !g->failed; i++) {
        uint8_t byte[256];
        struct cell c = g->cell[pair.at[i]];
        unsigned n = representatives(g, c.a, c.b, byte);
        spend(g, n);
        for (unsigned k = 0; k < n && pair.n < MAX_SLACK_PAIRS && !g->failed; k++) {
            uint32_t a = automaton_step(g, c.a, byte[k]), b = automaton_step(g, c.b, byte[k]);
            a = plain ? without_counts(g, a) : a;
            uint32_t next = automaton_live(g, x, a, b) ? automaton_cell(g, x, a, b, 0) : 0;
            if (!next)
                continue;
            known = word_set_find(&met, (uint64_t)next + 1);
            uint32_t at = known ? *known : pair.n;
            if (!known && automaton_push(g, &pair, next))
                word_set_add(g, &met, (uint64_t)next + 1, at);
            automaton_push(g, &from, i);
            automaton_push(g, &to, at);
            automaton_push(g, &length, between_bodies(g, b));
        }
    }
    if (g->failed || pair.n >= MAX_SLACK_PAIRS) {
        most = NO_SLACK;
    } else {
        for (uint32_t i = 0; i < pair.n; i++) {
            struct cell c = g->cell[pair.at[i]];
            far[i] = automaton_pair_ends(g, x, c.a, c.b) ? 0 : NO_SLACK;
        }
        for (bool more = true; more;) {
            more = false;
            for (uint32_t k = from.n; k-- > 0;)
                if (far[to.at[k]] != NO_SLACK && far[to.at[k]] + length.at[k] < far[from.at[k]]) {
                    far[from.at[k]] = far[to.at[k]] + length.at[k];
                    more = true;
                }
        }
        for (uint32_t i = 0; i < pair.n; i++)
            most = far[i] > most ? far[i] : most;
    }
    for (uint32_t i = 0; i < pair.n && !g->failed; i++) { /* it holds for those it leads to, too */
        if (!word_set_find(&g->slack, (uint64_t)pair.at[i] + 1))
            word_set_add(g, &g->slack, (uint64_t)pair.at[i] + 1, most);
        if (most != NO_SLACK && !word_set_find(&g->away, (uint64_t)pair.at[i] + 1))
            word_set_add(g, &g->away, (uint64_t)pair.at[i] + 1, far[i]);
    }
    free(length.at);
    free(pair.at);
    free(from.at);
    free(to.at);
    free(met.key);
    free(met.value);
    return most;
}

uint32_t automaton_away(struct grammar *g, gb_node x, uint32_t a, uint32_t b)
{
    uint32_t pair = a && b ? automaton_cell(g, x, without_counts(g, a), b, 0) : 0;
    const uint32_t *known = pair ? word_set_find(&g->away, (uint64_t)pair + 1) : NULL;
    return known ? *known : UINT32_MAX;
}

uint32_t automaton_far(struct grammar *g, gb_node x, uint32_t a, uint32_t b, uint32_t need,
                       bool length, uint32_t *most, uint32_t *slack)
{
    const struct state *right = &g->state[b];
    uint32_t least;
    if (g->node[x].kind != NODE_AND || right->n_cells != 1)
        return 0;
    struct cell c = g->cell[g->list.at[right->cell]];
    if (!g->lexeme[c.expr] || c.next != 0)
        return 0;
    automaton_left(g, &c, &least, most);
    if (least > need)
        return 0;
    uint32_t cell = automaton_cell(g, c.expr, c.a, FAR, 0);
    uint32_t far = cell ? automaton_cells_state(g, &cell, 1, c.a == LEXEME_START) : 0;
    a = length ? without_counts(g, a) : a;
    uint32_t pair = far ? automaton_cell(g, x, a, far, 0) : 0;
    if (*most == GB_UNBOUNDED)
        *slack = 0;
    else
        *slack = pair && automaton_live(g, x, a, far) ? slack_of(g, x, pair, length) : NO_SLACK;
    return *slack == NO_SLACK || g->failed ? 0 : far;
}

uint32_t automaton_then(struct grammar *g, uint32_t state, uint32_t next)
{
    uint32_t from = g->work.n;
    struct change ch = {.what = CHANGE_END, .with = next};
    stacks_begin(g);
    for (uint32_t i = 0; i < g->state[state].n_cells; i++)
        automaton_push(g, &g->work, stacks_change(g, &ch, g->list.at[g->state[state].cell + i]));
    if (g->state[state].may_end)
        automaton_push(g, &g->work, next);
    return close_work(g, from);
}

bool automaton_pair_live(struct grammar *g, gb_node x)
{
    return automaton_live(g, x, g->start_a[x], g->start_b[x]);
}

static void step_lexeme(struct grammar *g, const struct cell *c, unsigned byte)
{
    uint32_t min, max, to = g->lexeme[c->expr]->to[c->a][byte], done = c->b;
    automaton_limits(g, c->expr, &min, &max);
    if (to == LEXEME_DEAD)
        return;
    if (to == LEXEME_DONE) {
        to = LEXEME_START;
        if (done != FAR && (max != GB_UNBOUNDED || done < min))
            done++;
        if (done != FAR && done == max) {
            automaton_push(g, &g->work, c->next);
            return;
        }
    }
    uint32_t at = automaton_cell(g, c->expr, to, done, c->next);
    if (at)
        automaton_push(g, &g->work, at);
}

/* What cell `at` becomes on this byte, onto the work list. */
static void step_cell(struct grammar *g, uint32_t at, unsigned byte)
{
    struct cell c = g->cell[at];
    const struct gb_node_data *d = &g->node[c.expr];
    if (g->lexeme[c.expr]) {
        step_lexeme(g, &c, byte);
    } else if (d->kind == NODE_BYTES) {
        if ((unsigned char)g->text[d->a + c.b] != byte)
            return;
        uint32_t to = c.b + 1 < d->b ? automaton_cell(g, c.expr, 0, c.b + 1, c.next) : c.next;
        automaton_push(g, &g->work, to);
    } else if (d->kind == NODE_SET) {
        if (byte_set_has(&g->set[d->a], byte))
            automaton_push(g, &g->work, c.next);
    } else {
        assert(is_pair(g, c.expr));
        uint32_t a = automaton_step(g, c.a, byte);
        uint32_t b = a ? automaton_step(g, c.b, byte) : 0;
        uint32_t to = automaton_live(g, c.expr, a, b) ? automaton_cell(g, c.expr, a, b, c.next) : 0;
        if (to)
            automaton_push(g, &g->work, to);
    }
}

/* Without looking ahead; *sure: no pair or item can make a byte lead nowhere. */
static struct byte_set first_bytes(const struct grammar *g, const struct state *s, bool *sure)
{
    struct byte_set first = {{0}};
    *sure = true;
    for (uint32_t i = 0; i < s->n_cells; i++) {
        uint32_t at = g->list.at[s->cell + i];
        const struct cell *c = &g->cell[at];
        const struct gb_node_data *d = &g->node[c->expr];
        *sure &= !(g->info[at].flags & IN_MARK);
        if (d->kind == NODE_BYTES) {
            byte_set_add(&first, (unsigned char)g->text[d->a + c->b]);
        } else if (d->kind == NODE_SET) {
            for (unsigned w = 0; w < 4; w++)
                first.w[w] |= g->set[d->a].w[w];
        } else if (g->lexeme[c->expr]) {
            const uint8_t *row = g->lexeme[c->expr]->to[c->a];
            for (unsigned byte = 0; byte < 256; byte++)
                if (row[byte])
                    byte_set_add(&first, byte);
        } else { /* a pair: any */
            *sure = false;
            memset(&first, 0xFF, sizeof first);
            return first;
        }
    }
    return first;
}

/* A state's own table: bytes that no cell begins with need not be tried one by one. */
static void table_begin(const struct grammar *g, struct state *s)
{
    bool sure;
    struct byte_set first = first_bytes(g, s, &sure);
    for (unsigned byte = 0; byte < 256; byte++)
        s->to[byte] = byte_set_has(&first, byte) ? UNKNOWN : 0;
}

uint32_t automaton_step(struct grammar *g, uint32_t state, unsigned byte)
{
    if (state == 0 || g->failed)
        return 0;
    struct state *s = &g->state[state];
    if (s->to && s->to[byte] != UNKNOWN)
        return s->to[byte];
    uint64_t key = ((uint64_t)state << 8 | byte) + 1;
    const uint32_t *known = s->to ? NULL : word_set_find(&g->step, key);
    if (known)
        return *known;
    uint32_t from = g->work.n;
    for (uint32_t i = 0; i < g->state[state].n_cells; i++)
        step_cell(g, g->list.at[g->state[state].cell + i], byte);
    if (g->work.n > from) /* items' bytes are kept */
        scope_read(g, g->work.at + from, g->work.n - from, byte);
    uint32_t to = close_work(g, from);
    if (g->failed)
        return 0;
    s = &g->state[state]; /* the states may have moved */
    if (!s->to && (++s->n_asked >= ASKED_FOR_TABLE || s->n_cells >= MANY_CELLS)) {
        s->to = malloc(256 * sizeof *s->to);
        if (!s->to) {
            g->failed = true;
            return 0;
        }
        g->n_tables++;
        table_begin(g, s);
    }
    if (s->to)
        s->to[byte] = to;
    else
        word_set_add(g, &g->step, key, to);
    return to;
}

struct byte_set automaton_first(struct grammar *g, uint32_t state)
{
    bool sure;
    struct byte_set first = first_bytes(g, &g->state[state], &sure), out = {{0}};
    if (sure)
        return first;
    for (unsigned byte = 0; byte < 256; byte++)
        if (byte_set_has(&first, byte) && automaton_step(g, state, byte))
            byte_set_add(&out, byte);
    return out;
}

uint32_t automaton_some_cells(struct grammar *g, const uint32_t *at, uint32_t n)
{
    return automaton_cells_state(g, at, n, false);
}

uint32_t automaton_cells_state(struct grammar *g, const uint32_t *at, uint32_t n, bool may_end)
{
    for (uint32_t i = 0; i < n; i++)
        if (!automaton_push(g, &g->list, at[i]))
            return 0;
    return state_of(g, n, may_end);
}

uint32_t automaton_next_state(struct grammar *g, uint32_t at)
{
    uint32_t from = g->work.n, next = g->cell[at].next;
    scope_read(g, &next, 1, ANY_STRING);
    automaton_push(g, &g->work, next);
    return close_work(g, from);
}

/* The states that x's matches pass, numbered as they are met: a table if there are few, and if no
 * byte can follow a match. */
const struct lexeme *automaton_lexeme(struct grammar *g, gb_node x)
{
    uint32_t state[MAX_LEXEME_STATES] = {0, 0, automaton_start(g, x)}, n = LEXEME_START + 1;
    uint8_t(*to)[256] = calloc(MAX_LEXEME_STATES, sizeof *to);
    const struct lexeme *found = NULL;
    if (!to) {
        g->failed = true;
        return NULL;
    }
    if (g->state[state[LEXEME_START]].may_end)
        goto done;
    for (uint32_t i = LEXEME_START; i < n; i++) {
        const uint8_t *class = classes_of(g, state[i]);
        uint8_t of_class[256] = {0};
        bool known[256] = {false};
        if (!class)
            goto done;
        for (unsigned byte = 0; byte < 256; byte++) {
            if (known[class[byte]]) {
                to[i][byte] = of_class[class[byte]];
                continue;
            }
            uint32_t s = automaton_step(g, state[i], byte), j = LEXEME_DEAD;
            if (s && g->state[s].may_end) {
                if (g->state[s].n_cells)
                    goto done; /* the match could go on */
                j = LEXEME_DONE;
            } else if (s) {
                for (j = LEXEME_START; j < n && state[j] != s;)
                    j++;
                if (j == MAX_LEXEME_STATES)
                    goto done;
                if (j == n)
                    state[n++] = s;
            }
            to[i][byte] = (uint8_t)j;
            known[class[byte]] = true;
            of_class[class[byte]] = (uint8_t)j;
        }
    }
    if (!g->failed)
        found = lexicon_find(g->vocab, to, n);
done:
    free(to);
    return found;
}

enum err_code automaton_open(struct grammar *g, struct err *e)
{
    if (!g->max_bytes)
        g->max_bytes = AUTOMATON_BYTES;
    g->n_cells = 1; /* cell 0 is the end */
    g->n_states = 1;
    if (!automaton_grow(g, (void **)&g->cell, &g->max_cells, 1, sizeof *g->cell) ||
        !automaton_grow(g, (void **)&g->state, &g->max_states, 1, sizeof *g->state))
        return err_set(e, ERR_NOMEM, "no memory for a grammar's automaton");
    g->info = calloc(g->max_cells, sizeof *g->info);
    if (!g->info)
        return err_set(e, ERR_NOMEM, "no memory for a grammar's automaton");
    g->cell[0] = (struct cell){0};
    g->state[0] = (struct state){0};
    return ERR_OK;
}

void automaton_forget(struct grammar *g)
{
    g->cell = NULL;
    g->n_cells = g->max_cells = 0;
    g->cell_table = NULL;
    g->n_cell_table = 0;
    g->info = NULL;
    g->closure = g->turn = 0;
    g->state = NULL;
    g->n_states = g->max_states = 0;
    g->n_tables = 0;
    g->state_table = NULL;
    g->n_state_table = 0;
    g->list = g->work = g->narrow = g->chain = g->join = (struct vec){0};
    g->scopes = (struct scopes){0};
    g->step = g->slack = g->away = g->live = (struct word_set){0};
    memset(g->kept, 0, sizeof g->kept);
}

void automaton_free(struct grammar *g)
{
    for (unsigned i = 0; i < N_KEPT_MASKS; i++)
        free(g->kept[i].mask);
    for (uint32_t i = 0; i < g->n_states && g->state; i++) {
        free(g->state[i].to);
        free(g->state[i].classes);
    }
    free(g->cell);
    free(g->cell_table);
    free(g->info);
    free(g->chain.at);
    free(g->join.at);
    free(g->scopes.string);
    free(g->scopes.set);
    free(g->scopes.string_of.key);
    free(g->scopes.string_of.value);
    free(g->scopes.set_of.key);
    free(g->scopes.set_of.value);
    free(g->state);
    free(g->state_table);
    free(g->list.at);
    free(g->work.at);
    free(g->narrow.at);
    free(g->step.key);
    free(g->step.value);
    free(g->slack.key);
    free(g->slack.value);
    free(g->away.key);
    free(g->away.value);
    free(g->live.key);
    free(g->live.value);
}
