/* schema_array.c - the arrays of a form: items one by one as long as they have schemas of their
 * own, then the rest; where items of some kind are counted, one state per place and count. */
#include "grammar/schema_impl.h"

#include <string.h>

enum { MAX_COUNTS = 3, MAX_PLACES = 2000 };

/* Items that are counted: from `from` on, those of `schema` (or not of it). */
struct counted {
    uint32_t from, literal, least, most;
    const struct assertion *of;
};

struct array {
    struct schema_maker *m;
    uint32_t goal;
    const struct form *form;
    uint32_t least, most;
    uint32_t n_own; /* places with schemas of their own */
    bool unique;
    struct counted counted[MAX_COUNTS];
    uint32_t n_counted;
};

static gb_node seq(struct array *x, const gb_node *part, size_t n)
{
    return gb_seq(x->m->b, part, n);
}

static gb_node text(struct array *x, const char *s)
{
    return gb_bytes(x->m->b, s, strlen(s));
}

static bool add_counted(struct array *x, const struct assertion *a, struct counted c)
{
    if (x->n_counted == MAX_COUNTS)
        return schema_fail(x->m, a->schema, a->keyword,
                           "more than %d counts of items cannot be kept", MAX_COUNTS);
    c.of = a;
    x->counted[x->n_counted++] = c;
    return true;
}

static void at_least(struct array *x, uint32_t n)
{
    x->least = n > x->least ? n : x->least;
}

static void at_most(struct array *x, uint32_t n)
{
    x->most = n < x->most ? n : x->most;
}

static void own(struct array *x, uint32_t n)
{
    x->n_own = n > x->n_own ? n : x->n_own;
}

static bool survey_one(struct array *x, const struct assertion *a, bool violated)
{
    uint32_t literal = a->value << 1;
    switch ((enum kind)a->kind) {
    case A_COUNT:
        if (!violated) {
            at_least(x, a->least);
            at_most(x, a->most);
        } else if (a->most != UINT32_MAX) {
            at_least(x, a->most + 1);
        } else if (a->least) {
            at_most(x, a->least - 1);
        } else {
            at_least(x, UINT32_MAX);
        }
        return true;
    case A_UNIQUE:
        x->unique = true;
        return true;
    case A_ITEM:
        own(x, a->least + 1);
        if (violated)
            at_least(x, a->least + 1);
        return true;
    case A_ITEMS:
        own(x, a->least);
        return !violated || add_counted(x, a,
                                        (struct counted){.from = a->least,
                                                         .literal = literal | 1,
                                                         .least = 1,
                                                         .most = UINT32_MAX});
    case A_CONTAINS:
        if (!violated)
            return add_counted(
                x, a, (struct counted){.literal = literal, .least = a->least, .most = a->most});
        if (a->most != UINT32_MAX && a->least > 0)
            return schema_fail(x->m, a->schema, a->keyword,
                               "that a count is on neither side of two bounds cannot be kept");
        if (a->most != UINT32_MAX)
            return add_counted(
                x, a,
                (struct counted){.literal = literal, .least = a->most + 1, .most = UINT32_MAX});
        if (a->least == 0)
            at_least(x, UINT32_MAX);
        return add_counted(
            x, a, (struct counted){.literal = literal, .most = a->least ? a->least - 1 : 0});
    default:
        return true;
    }
}

/* The literals that all items at a place have. */
static bool item_literals(struct array *x, uint32_t place, struct ids *out, bool *never)
{
    for (uint32_t i = 0; i < x->form->n; i++) {
        const struct condition *c = &x->form->at[i];
        const struct assertion *a = &x->m->assertion[c->a];
        if (c->kind != COND_ASSERTION)
            continue;
        bool about = a->kind == A_ITEM ? a->least == place
                                       : a->kind == A_ITEMS && !c->negated && a->least <= place;
        if (about && !goal_add(x->m, out, a->value << 1 | c->negated, never))
            return false;
    }
    return schema_ok(x->m);
}

static gb_node value(struct array *x, const struct ids *literals, bool never)
{
    uint32_t goal = never ? 0 : schema_goal(x->m, literals, x->unique || x->m->goal[x->goal].exact);
    gb_node v = schema_value(x->m, goal);
    return x->unique ? gb_item(x->m->b, v) : v;
}

static gb_node item(struct array *x, uint32_t place)
{
    struct ids all = {0};
    bool never = false;
    if (!item_literals(x, place, &all, &never))
        return GB_NEVER;
    return value(x, &all, never);
}

static gb_node after_comma(struct array *x, gb_node item)
{
    return seq(x, (gb_node[]){text(x, ","), item}, 2);
}

/* Without counts: places of their own from the last to the first, behind them the rest. */
static gb_node plain(struct array *x)
{
    struct grammar_builder *b = x->m->b;
    uint32_t n = x->n_own, least = x->least > n ? x->least - n : 0;
    uint32_t most = x->most == UINT32_MAX ? UINT32_MAX : x->most > n ? x->most - n : 0;
    gb_node rest = item(x, n), one;
    if (n == 0) {
        gb_node all = gb_repeat(b, after_comma(x, rest), least ? least - 1 : 0,
                                most == UINT32_MAX ? most
                                : most             ? most - 1
                                                   : 0);
        one = seq(x, (gb_node[]){rest, all}, 2);
        return most == 0 ? GB_EMPTY : least == 0 ? gb_alt(b, (gb_node[]){GB_EMPTY, one}, 2) : one;
    }
    gb_node after = gb_repeat(b, after_comma(x, rest), least, most);
    for (uint32_t i = n; i-- > 0 && schema_ok(x->m);) {
        one = item(x, i);
        one = seq(x, (gb_node[]){i ? after_comma(x, one) : one, after}, 2);
        if (i >= x->most)
            after = GB_EMPTY;
        else
            after = i >= x->least ? gb_alt(b, (gb_node[]){GB_EMPTY, one}, 2) : one;
    }
    return after;
}

/* --- with counts --------------------------------------------------------------------------------
 */

struct places {
    struct array *x;
    uint32_t n_places; /* the last stands for all behind it */
    uint32_t width[MAX_COUNTS];
    uint32_t n_states;
    gb_node *rule; /* per place and counts */
};

static uint32_t state_of(const struct places *p, uint32_t place, const uint32_t *count)
{
    uint32_t s = place;
    for (uint32_t i = 0; i < p->x->n_counted; i++)
        s = s * p->width[i] + count[i];
    return s;
}

/* An item, some of the counted kinds, and what may follow. */
static gb_node counted_item(struct places *p, uint32_t place, const uint32_t *count, unsigned kinds)
{
    struct array *x = p->x;
    struct ids all = {0};
    bool never = false;
    uint32_t next[MAX_COUNTS];
    if (!item_literals(x, place, &all, &never))
        return GB_NEVER;
    for (uint32_t i = 0; i < x->n_counted; i++) {
        const struct counted *c = &x->counted[i];
        bool is = kinds >> i & 1;
        next[i] = count[i];
        if (place < c->from) {
            if (is)
                return GB_NEVER;
            continue;
        }
        if (!goal_add(x->m, &all, c->literal ^ !is, &never))
            return GB_NEVER;
        if (is && ++next[i] == p->width[i]) { /* beyond the most, or enough */
            if (c->most != UINT32_MAX)
                return GB_NEVER;
            next[i]--;
        }
    }
    uint32_t after = place + 1 < p->n_places ? place + 1 : place;
    if (x->most != UINT32_MAX && place >= x->most)
        return GB_NEVER;
    gb_node v = value(x, &all, never);
    return seq(x, (gb_node[]){place ? after_comma(x, v) : v, p->rule[state_of(p, after, next)]}, 2);
}

static bool make_state(struct places *p, uint32_t s)
{
    struct array *x = p->x;
    uint32_t count[MAX_COUNTS], rest = s;
    gb_node part[(1 << MAX_COUNTS) + 1];
    unsigned n = 0;
    for (uint32_t i = x->n_counted; i-- > 0; rest /= p->width[i])
        count[i] = rest % p->width[i];
    bool ends = rest >= x->least;
    for (uint32_t i = 0; i < x->n_counted; i++)
        ends &= count[i] >= x->counted[i].least;
    if (ends)
        part[n++] = GB_EMPTY;
    for (unsigned kinds = 0; kinds < 1u << x->n_counted; kinds++)
        part[n++] = counted_item(p, rest, count, kinds);
    gb_define(x->m->b, p->rule[s], gb_alt(x->m->b, part, n));
    return schema_ok(x->m);
}

static gb_node counted(struct array *x)
{
    struct places p = {.x = x, .n_places = x->n_own + 1};
    uint32_t last = x->most != UINT32_MAX ? x->most : x->least;
    const struct counted *c = x->counted;
    if (last >= p.n_places)
        p.n_places = last + 1;
    for (uint32_t i = 0; i < x->n_counted; i++)
        if (c[i].from >= p.n_places)
            p.n_places = c[i].from + 1;
    if (p.n_places < 2)
        p.n_places = 2; /* the first has no comma */
    uint64_t n = p.n_places;
    for (uint32_t i = 0; i < x->n_counted && n <= MAX_PLACES; i++) {
        p.width[i] = (c[i].most != UINT32_MAX ? c[i].most : c[i].least) + 1;
        n *= p.width[i];
    }
    if (n > MAX_PLACES) {
        schema_fail(x->m, c->of->schema, c->of->keyword,
                    "counting items over more than %d places and counts cannot be kept",
                    MAX_PLACES);
        return GB_NEVER;
    }
    p.n_states = (uint32_t)n;
    p.rule = schema_alloc(x->m, p.n_states * sizeof *p.rule);
    for (uint32_t s = 0; p.rule && s < p.n_states; s++)
        p.rule[s] = gb_rule(x->m->b, "items");
    for (uint32_t s = 0; p.rule && s < p.n_states; s++)
        if (!make_state(&p, s))
            return GB_NEVER;
    uint32_t none[MAX_COUNTS] = {0};
    return p.rule ? p.rule[state_of(&p, 0, none)] : GB_NEVER;
}

gb_node schema_array(struct schema_maker *m, uint32_t goal, const struct form *form)
{
    struct array x = {.m = m, .goal = goal, .form = form, .most = UINT32_MAX};
    for (uint32_t i = 0; i < form->n; i++)
        if (form->at[i].kind == COND_ASSERTION &&
            !survey_one(&x, &m->assertion[form->at[i].a], form->at[i].negated))
            return GB_NEVER;
    if (x.least > x.most || x.least == UINT32_MAX)
        return GB_NEVER;
    gb_node body = x.n_counted ? counted(&x) : plain(&x);
    if (x.unique)
        body = gb_unique(m->b, body);
    return seq(&x, (gb_node[]){text(&x, "["), body, text(&x, "]")}, 3);
}
