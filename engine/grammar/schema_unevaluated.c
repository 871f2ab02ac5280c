/* schema_unevaluated.c - members and items that no other keyword has looked at.
 *
 * What the schema and those that hold beside it evaluate is known once they are read: names and
 * patterns of members, or how many items from the first on, or all. What holds under a condition
 * (anyOf, oneOf, if, dependentSchemas) makes several *ways*: what is evaluated where these schemas
 * hold. A way that leaves some of them out, though they hold, evaluates less, and so demands more:
 * the value is as it should be iff some way has it so. Only that `if` fails must be said, for then
 * `else` evaluates in its place. unevaluatedProperties becomes additionalProperties of one way, or
 * anyOf over the ways; unevaluatedItems likewise.
 */
#include "grammar/schema_impl.h"

#include <string.h>

enum { MAX_WAYS = 64 };

struct way {
    struct ids holds;    /* literals: schema << 1 | negated */
    struct ids required; /* names that are there */
    struct ids name, pattern;
    uint32_t n_items;
    bool all;
};
struct ways {
    struct way at[MAX_WAYS];
    uint32_t n;
};

/* One keyword while it is worked out. */
struct unevaluated {
    struct schema_maker *m;
    uint32_t schema;
    const char *keyword;
    bool items;
};

static bool add_ids(struct schema_maker *m, struct ids *to, const struct ids *from)
{
    for (uint32_t i = 0; i < from->n; i++) {
        bool known = false;
        for (uint32_t k = 0; k < to->n && !known; k++)
            known = to->at[k] == from->at[i];
        if (!known && !ids_push(m, to, from->at[i]))
            return false;
    }
    return true;
}

static bool both(struct unevaluated *u, const struct way *x, const struct way *y, struct way *out)
{
    *out = (struct way){.n_items = x->n_items > y->n_items ? x->n_items : y->n_items,
                        .all = x->all || y->all};
    return add_ids(u->m, &out->holds, &x->holds) && add_ids(u->m, &out->holds, &y->holds) &&
           add_ids(u->m, &out->required, &x->required) &&
           add_ids(u->m, &out->required, &y->required) && add_ids(u->m, &out->name, &x->name) &&
           add_ids(u->m, &out->name, &y->name) && add_ids(u->m, &out->pattern, &x->pattern) &&
           add_ids(u->m, &out->pattern, &y->pattern);
}

static bool too_many(struct unevaluated *u)
{
    return schema_fail(u->m, u->schema, u->keyword,
                       "more than %d ways to evaluate what it is about cannot be kept", MAX_WAYS);
}

/* One of the ways of x and one of y. */
static bool combine(struct unevaluated *u, struct ways *x, const struct ways *y)
{
    struct ways *out = schema_alloc(u->m, sizeof *out);
    if (!out)
        return false;
    out->n = 0;
    for (uint32_t i = 0; i < x->n; i++)
        for (uint32_t k = 0; k < y->n; k++)
            if (out->n == MAX_WAYS)
                return too_many(u);
            else if (!schema_step(u->m) || !both(u, &x->at[i], &y->at[k], &out->at[out->n++]))
                return false;
    *x = *out;
    return true;
}

static bool evaluates(const struct ways *x)
{
    for (uint32_t i = 0; i < x->n; i++)
        if (x->at[i].all || x->at[i].n_items || x->at[i].name.n || x->at[i].pattern.n)
            return true;
    return false;
}

static bool ways_of(struct unevaluated *u, uint32_t schema, struct ways *out);

/* More ways: those of a schema, where it holds and `literal` does, and where the member is there.
 */
static bool more_ways(struct unevaluated *u, struct ways *to, uint32_t schema, uint32_t literal,
                      uint32_t required)
{
    struct ways *x = schema_alloc(u->m, sizeof *x);
    if (!x || !ways_of(u, schema, x))
        return false;
    for (uint32_t i = 0; i < x->n; i++) {
        struct way *w = &x->at[i];
        if (to->n == MAX_WAYS)
            return too_many(u);
        if ((literal != UINT32_MAX && !ids_push(u->m, &w->holds, literal)) ||
            (required != UINT32_MAX && !ids_push(u->m, &w->required, required)))
            return false;
        to->at[to->n++] = *w;
    }
    return true;
}

static bool ways_of_if(struct unevaluated *u, const uint32_t part[3], struct ways *out)
{
    uint32_t n;
    out->n = 0;
    if (!more_ways(u, out, part[0], part[0] << 1, UINT32_MAX))
        return false;
    n = out->n;
    if (part[1] != UINT32_MAX) {
        struct ways *then = schema_alloc(u->m, sizeof *then);
        if (!then || !ways_of(u, part[1], then) || !combine(u, out, then))
            return false;
        n = out->n;
    }
    if (part[2] != UINT32_MAX)
        return more_ways(u, out, part[2], part[0] << 1 | 1, UINT32_MAX) && out->n > n;
    if (out->n == MAX_WAYS)
        return too_many(u);
    out->at[out->n] = (struct way){0};
    return ids_push(u->m, &out->at[out->n++].holds, part[0] << 1 | 1);
}

/* What one assertion evaluates. */
static bool ways_of_assertion(struct unevaluated *u, const struct assertion *a, struct ways *out)
{
    struct schema_maker *m = u->m;
    struct way none = {0}, *w = &out->at[0];
    uint32_t list = a->list;
    *out = (struct ways){.n = 1};
    *w = none;
    if (!strncmp(a->keyword, "unevaluated", 11)) { /* if it holds, nothing is left */
        w->all = !strcmp(a->keyword, u->keyword);
        return true;
    }
    switch ((enum kind)a->kind) {
    case A_PROPERTY:
        return u->items || ids_push(m, &w->name, a->name);
    case A_MATCHING:
        return u->items || ids_push(m, &w->pattern, a->pattern);
    case A_ADDITIONAL:
        w->all = !u->items;
        return true;
    case A_ITEM:
        w->n_items = u->items ? a->least + 1 : 0;
        return true;
    case A_ITEMS:
        w->all = u->items;
        return true;
    case A_CONTAINS:
        return !u->items ||
               schema_fail(m, u->schema, u->keyword, "beside contains this keyword cannot be kept");
    case A_REF:
        return ways_of(u, a->value, out);
    case A_ALL:
        for (uint32_t i = 0; i < a->n_list; i++) {
            struct ways *x = schema_alloc(m, sizeof *x);
            if (!x || !ways_of(u, m->list.at[list + i], x) || !combine(u, out, x))
                return false;
        }
        return true;
    case A_ANY:
        for (uint32_t i = 0; i < a->n_list; i++) { /* it holds, or it is left out */
            struct ways *x = schema_alloc(m, sizeof *x);
            uint32_t s = m->list.at[list + i];
            if (!x)
                return false;
            *x = (struct ways){.n = 1};
            if (!more_ways(u, x, s, s << 1, UINT32_MAX) || (evaluates(x) && !combine(u, out, x)))
                return false;
        }
        return true;
    case A_ONE:
        for (uint32_t i = 0; i < a->n_list; i++)
            if (!more_ways(u, out, m->list.at[list + i], m->list.at[list + i] << 1, UINT32_MAX))
                return false;
        return true;
    case A_IF:
        return ways_of_if(
            u, (uint32_t[3]){m->list.at[list], m->list.at[list + 1], m->list.at[list + 2]}, out);
    case A_DEPENDS: /* of objects, which have no items */
        return u->items || more_ways(u, out, a->value, UINT32_MAX, a->name);
    default:
        return true;
    }
}

static bool ways_of(struct unevaluated *u, uint32_t schema, struct ways *out)
{
    struct schema_maker *m = u->m;
    struct ways *x = schema_alloc(m, sizeof *x);
    *out = (struct ways){.n = 1};
    for (uint32_t i = 0; x && i < m->schema[schema].n; i++) {
        struct assertion a = m->assertion[m->schema[schema].first + i];
        bool own = schema == u->schema && !strcmp(a.keyword, u->keyword);
        if (!schema_step(m) ||
            (!own && (!ways_of_assertion(u, &a, x) || (evaluates(x) && !combine(u, out, x)))))
            return false;
    }
    return x;
}

/* What one way leaves is of the keyword's schema. */
static bool demand(struct unevaluated *u, const struct way *w, struct assertion *a)
{
    struct schema_maker *m = u->m;
    a->kind = u->items ? A_ITEMS : A_ADDITIONAL;
    a->type = u->items ? J_ARRAY : J_OBJECT;
    a->least = w->n_items;
    a->list = m->list.n;
    a->n_list = w->name.n;
    a->list2 = m->list.n + w->name.n;
    a->n_list2 = w->pattern.n;
    for (uint32_t i = 0; i < w->name.n; i++)
        if (!ids_push(m, &m->list, w->name.at[i]))
            return false;
    for (uint32_t i = 0; i < w->pattern.n; i++)
        if (!ids_push(m, &m->list, w->pattern.at[i]))
            return false;
    return true;
}

static struct assertion *new_assertion(struct unevaluated *u, uint32_t schema, uint32_t of)
{
    struct assertion like = u->m->assertion[of];
    like.schema = schema;
    return schema_add_assertion(u->m, like);
}

/* A schema of what one way demands; UINT32_MAX: an error. `of`: the keyword's assertion. */
static uint32_t way_schema(struct unevaluated *u, const struct way *w, uint32_t of)
{
    struct schema_maker *m = u->m;
    struct schema *s = schema_grow(m, m->schema, m->n_schemas, &m->max_schemas, sizeof *s);
    struct assertion *a;
    if (!s)
        return UINT32_MAX;
    m->schema = s;
    uint32_t x = m->n_schemas++;
    s[x] = (struct schema){.json = m->assertion[of].json,
                           .parent = u->schema,
                           .step = {u->keyword, NULL},
                           .resource = s[u->schema].resource,
                           .base = s[u->schema].base,
                           .first = m->n_assertions};
    for (uint32_t i = 0; i < w->holds.n; i++) {
        if (!(a = new_assertion(u, x, of)))
            return UINT32_MAX;
        a->kind = w->holds.at[i] & 1 ? A_NOT : A_REF;
        a->type = J_ANY;
        a->value = w->holds.at[i] >> 1;
    }
    for (uint32_t i = 0; i < w->required.n; i++) {
        if (!(a = new_assertion(u, x, of)))
            return UINT32_MAX;
        a->kind = A_REQUIRED;
        a->type = J_OBJECT;
        a->name = w->required.at[i];
    }
    if (!w->all && (!(a = new_assertion(u, x, of)) || !demand(u, w, a)))
        return UINT32_MAX;
    m->schema[x].n = m->n_assertions - m->schema[x].first;
    return x;
}

static bool work_out(struct unevaluated *u, uint32_t of)
{
    struct schema_maker *m = u->m;
    struct ways *w = schema_alloc(m, sizeof *w);
    struct ids schemas = {0};
    if (!w || !ways_of(u, u->schema, w))
        return false;
    if (w->n == 1) /* under no condition; all: it says nothing, and stays as it was read */
        return w->at[0].all || demand(u, &w->at[0], &m->assertion[of]);
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t s = way_schema(u, &w->at[i], of);
        if (s == UINT32_MAX || !ids_push(m, &schemas, s))
            return false;
    }
    struct assertion *a = &m->assertion[of];
    a->kind = A_ANY;
    a->list = m->list.n;
    a->n_list = schemas.n;
    for (uint32_t i = 0; i < schemas.n; i++)
        if (!ids_push(m, &m->list, schemas.at[i]))
            return false;
    return true;
}

bool schema_unevaluated(struct schema_maker *m)
{
    uint32_t n = m->n_assertions;
    for (uint32_t i = 0; i < n; i++) {
        struct unevaluated u = {m, m->assertion[i].schema, m->assertion[i].keyword, false};
        u.items = !strcmp(u.keyword, "unevaluatedItems");
        if ((u.items || !strcmp(u.keyword, "unevaluatedProperties")) &&
            !m->schema[m->assertion[i].value].always && !work_out(&u, i))
            return false;
    }
    return true;
}
