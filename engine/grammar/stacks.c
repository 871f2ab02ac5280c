/* stacks.c - stacks that share what they have in common.
 *
 * Two readings of the same text are two cells, and where they go on with the same part but return
 * to different places, that part would stand on two stacks; a value inside it on four, and so on.
 * So cells that say the same are put together, and what follows them is a join. The members of a
 * join differ in what they say: those that agree are put together in turn, as deep as it goes. All
 * members have the same marks, so what a join is in does not depend on the way through it.
 */
#include "grammar/automaton.h"

#include <stdlib.h>

enum { MAX_DEPTH = 64 }; /* of stacks put together; below, members of a join may agree */

static int compare(uint32_t a, uint32_t b)
{
    return (a > b) - (a < b);
}

/* Cells that say the same lie side by side; the end comes last. */
static int by_content(const void *x, const void *y, void *arg)
{
    const struct grammar *g = arg;
    uint32_t at = *(const uint32_t *)x, bt = *(const uint32_t *)y;
    const struct cell *a = &g->cell[at], *b = &g->cell[bt];
    if (at == 0 || bt == 0)
        return (at == 0) - (bt == 0);
    int order = compare(a->expr, b->expr);
    order = order ? order : compare(a->a, b->a);
    order = order ? order : compare(a->b, b->b);
    order = order ? order : compare(g->info[at].marks, g->info[bt].marks);
    return order ? order : compare(at, bt);
}

static void sort_by_content(struct grammar *g, uint32_t *at, uint32_t n)
{
    if (n > 8) {
        qsort_r(at, n, sizeof *at, by_content, g);
        return;
    }
    for (uint32_t i = 1; i < n; i++) {
        uint32_t x = at[i], j = i;
        for (; j > 0 && by_content(&at[j - 1], &x, g) > 0; j--)
            at[j] = at[j - 1];
        at[j] = x;
    }
}

/* Whether two cells can be one. A scope whose items are counted is looked through cell by cell. */
static bool agree(const struct grammar *g, uint32_t at, uint32_t bt)
{
    if (at == 0 || bt == 0)
        return false;
    const struct cell *a = &g->cell[at], *b = &g->cell[bt];
    return a->expr == b->expr && a->a == b->a && a->b == b->b &&
           g->info[at].marks == g->info[bt].marks &&
           !((g->info[at].flags | g->info[bt].flags) & IN_SCOPE);
}

static uint32_t join_from(struct grammar *g, uint32_t from, unsigned depth);

/* Puts the cells of the join list from `from` on together; they stay there, by content. */
static void settle(struct grammar *g, uint32_t from, unsigned depth)
{
    uint32_t n = g->join.n, kept = from;
    if (n > from)
        sort_by_content(g, g->join.at + from, n - from);
    for (uint32_t i = from, k; i < n && !g->failed; i = k) {
        uint32_t x = g->join.at[i];
        bool more = false; /* cells that differ from x in what follows */
        for (k = i + 1;
             k < n && (g->join.at[k] == x || (depth < MAX_DEPTH && agree(g, x, g->join.at[k])));
             k++)
            more |= g->join.at[k] != x;
        for (uint32_t j = i; j < k && more; j++)
            automaton_push(g, &g->join, g->cell[g->join.at[j]].next);
        if (more) {
            struct cell c = g->cell[x];
            x = automaton_cell(g, c.expr, c.a, c.b, join_from(g, n, depth + 1));
        }
        g->join.at[kept++] = x;
    }
    g->join.n = kept;
}

/* The cells of the join list from `from` on become one. */
static uint32_t join_from(struct grammar *g, uint32_t from, unsigned depth)
{
    for (uint32_t i = from; i < g->join.n && !g->failed; i++)
        while (is_join(g, g->join.at[i]) && !g->failed) {
            struct cell c = g->cell[g->join.at[i]];
            g->join.at[i] = c.a;
            automaton_push(g, &g->join, c.next);
        }
    settle(g, from, depth);
    uint32_t n = g->join.n, at = n > from ? g->join.at[n - 1] : 0;
    for (uint32_t i = n; i-- > from + 1 && !g->failed;)
        at = automaton_cell(g, g->n_nodes, g->join.at[i - 1], 0, at);
    g->join.n = from;
    return g->failed ? 0 : at;
}

uint32_t stacks_merge(struct grammar *g, uint32_t n)
{
    bool twice = false;
    g->merges++;
    for (uint32_t i = g->list.n - n; i < g->list.n && n > 1; i++) {
        uint32_t *met = &g->met[g->cell[g->list.at[i]].expr];
        twice |= *met == g->merges; /* or merges have gone round: then it is looked at in vain */
        *met = g->merges;
    }
    if (!twice)
        return n;
    uint32_t from = g->join.n;
    for (uint32_t i = g->list.n - n; i < g->list.n; i++)
        automaton_push(g, &g->join, g->list.at[i]);
    settle(g, from, 0);
    g->list.n -= n;
    n = g->failed ? 0 : g->join.n - from;
    for (uint32_t i = 0; i < n; i++)
        automaton_push(g, &g->list, g->join.at[from + i]);
    g->join.n = from;
    return n;
}

void stacks_begin(struct grammar *g)
{
    if (++g->turn == 0) { /* the stamps have gone round */
        for (uint32_t i = 0; i < g->n_cells; i++)
            g->info[i].turn = 0;
        g->turn = 1;
    }
}

static bool has_image(const struct grammar *g, uint32_t at)
{
    return at == 0 || g->info[at].turn == g->turn;
}

static uint32_t image_of(const struct grammar *g, const struct change *ch, uint32_t at)
{
    if (at == 0)
        return ch->what == CHANGE_END ? ch->with : 0;
    return g->info[at].image;
}

/* Puts on the chain what a join's members are that have no image yet. */
static bool join_waits(struct grammar *g, uint32_t at)
{
    uint32_t n = g->chain.n;
    for (; is_join(g, at); at = g->cell[at].next)
        if (!has_image(g, g->cell[at].a))
            automaton_push(g, &g->chain, g->cell[at].a);
    if (!has_image(g, at))
        automaton_push(g, &g->chain, at);
    return g->chain.n > n;
}

static uint32_t join_image(struct grammar *g, const struct change *ch, uint32_t at)
{
    uint32_t from = g->join.n;
    for (; is_join(g, at); at = g->cell[at].next)
        automaton_push(g, &g->join, image_of(g, ch, g->cell[at].a));
    automaton_push(g, &g->join, image_of(g, ch, at));
    return join_from(g, from, 0);
}

uint32_t stacks_change(struct grammar *g, const struct change *ch, uint32_t at)
{
    uint32_t base = g->chain.n;
    if (at)
        automaton_push(g, &g->chain, at);
    while (g->chain.n > base && !g->failed) {
        uint32_t x = g->chain.at[g->chain.n - 1], next = g->cell[x].next, image = x;
        enum changes changes = has_image(g, x) ? UNCHANGED : scope_changes(g, ch, x);
        if (!has_image(g, x) && changes == CHANGED) {
            if (is_join(g, x)) {
                if (join_waits(g, x))
                    continue;
                image = join_image(g, ch, x);
            } else if (has_image(g, next)) {
                image = scope_changed(g, ch, x, image_of(g, ch, next));
            } else {
                automaton_push(g, &g->chain, next);
                continue;
            }
        } else if (changes == CHANGED_ALONE) {
            image = scope_changed(g, ch, x, next);
        }
        if (!has_image(g, x)) {
            g->info[x].turn = g->turn;
            g->info[x].image = image;
        }
        g->chain.n--;
    }
    g->chain.n = base;
    return g->failed ? 0 : image_of(g, ch, at);
}
