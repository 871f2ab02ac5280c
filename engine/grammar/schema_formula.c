/* schema_formula.c - what a goal says about values of one scalar type, as a formula.
 *
 * The parts that say nothing about the type fall away at once. A schema that is used twice is one
 * node, so the formula is no larger than the schema.
 */
#include "grammar/schema_impl.h"

#include <string.h>

struct making {
    struct schema_maker *m;
    struct formula *f;
    enum json_type type;
    uint32_t yes, no;
};

static uint32_t node(struct making *k, enum op op, uint32_t leaf, const struct ids *part)
{
    struct formula *f = k->f;
    struct formula_node *at = schema_grow(k->m, f->node, f->n, &f->max, sizeof *at);
    if (!at)
        return 0;
    f->node = at;
    at[f->n] = (struct formula_node){.op = op, .leaf = leaf, .list = f->part.n};
    for (uint32_t i = 0; part && i < part->n; i++)
        if (!ids_push(k->m, &f->part, part->at[i]))
            return 0;
    at[f->n].n_list = part ? part->n : 0;
    return f->n++;
}

static uint32_t negate(struct making *k, uint32_t x)
{
    if (x == k->yes || x == k->no)
        return x == k->yes ? k->no : k->yes;
    if (k->f->node[x].op == F_NOT)
        return k->f->part.at[k->f->node[x].list];
    return node(k, F_NOT, 0, &(struct ids){.at = &x, .n = 1});
}

/* AND or OR of the parts; those that change nothing are dropped. */
static uint32_t join(struct making *k, enum op op, struct ids *part)
{
    uint32_t neutral = op == F_AND ? k->yes : k->no, n = 0;
    for (uint32_t i = 0; i < part->n; i++) {
        uint32_t x = part->at[i];
        if (x == (op == F_AND ? k->no : k->yes))
            return x;
        bool known = x == neutral;
        for (uint32_t j = 0; j < n && !known && n < 32; j++)
            known = part->at[j] == x;
        if (!known)
            part->at[n++] = x;
    }
    part->n = n;
    return n == 0 ? neutral : n == 1 ? part->at[0] : node(k, op, 0, part);
}

/* Exactly one of the parts. Those that never hold are dropped; one that always does forbids all
 * others. */
static uint32_t just_one(struct making *k, struct ids *part)
{
    uint32_t n = 0, sure = 0;
    for (uint32_t i = 0; i < part->n; i++) {
        sure += part->at[i] == k->yes;
        if (part->at[i] != k->yes && part->at[i] != k->no)
            part->at[n++] = part->at[i];
    }
    part->n = n;
    if (sure > 1)
        return k->no;
    if (sure == 1 || n == 0) {
        uint32_t any = join(k, F_OR, part);
        return sure ? negate(k, any) : k->no;
    }
    return n == 1 ? part->at[0] : node(k, F_ONE, 0, part);
}

static uint32_t of_schema(struct making *k, uint32_t schema);

/* The formulas of a list of schemas. */
static struct ids of_list(struct making *k, const struct assertion *a)
{
    struct ids out = {0};
    for (uint32_t i = 0; i < a->n_list && schema_ok(k->m); i++)
        (void)ids_push(k->m, &out, of_schema(k, k->m->list.at[a->list + i]));
    return out;
}

static uint32_t of_if(struct making *k, const struct assertion *a)
{
    const uint32_t *s = k->m->list.at + a->list;
    uint32_t yes = s[0], then = s[1], otherwise = s[2], x = of_schema(k, yes);
    uint32_t a_then = then == UINT32_MAX ? k->yes : of_schema(k, then);
    uint32_t a_else = otherwise == UINT32_MAX ? k->yes : of_schema(k, otherwise);
    struct ids both = {0}, other = {0}, all = {0};
    (void)(ids_push(k->m, &both, x) && ids_push(k->m, &both, a_then) &&
           ids_push(k->m, &other, negate(k, x)) && ids_push(k->m, &other, a_else));
    if (!schema_ok(k->m))
        return k->no;
    (void)(ids_push(k->m, &all, join(k, F_AND, &both)) &&
           ids_push(k->m, &all, join(k, F_AND, &other)));
    return schema_ok(k->m) ? join(k, F_OR, &all) : k->no;
}

/* Whether a value of the type is in the list: then the list decides, else it is none of them. */
static uint32_t of_values(struct making *k, uint32_t i)
{
    const struct assertion *a = &k->m->assertion[i];
    bool list = !strcmp(a->keyword, "enum");
    for (const cJSON *v = list ? a->json->child : a->json; v; v = list ? v->next : NULL)
        if (json_type_of(v) == k->type)
            return node(k, F_LEAF, i, NULL);
    return k->no;
}

static uint32_t of_assertion(struct making *k, uint32_t i)
{
    const struct assertion *a = &k->m->assertion[i];
    struct ids part;
    if (a->type != J_ANY && a->type != (uint8_t)k->type)
        return k->yes;
    switch ((enum kind)a->kind) {
    case A_TYPE:
        if (!(a->types & BIT(k->type)))
            return k->no;
        return a->whole && k->type == J_NUMBER ? node(k, F_LEAF, i, NULL) : k->yes;
    case A_VALUES:
        return of_values(k, i);
    case A_REF:
        return of_schema(k, a->value);
    case A_ALL:
        part = of_list(k, a);
        return join(k, F_AND, &part);
    case A_ANY:
        part = of_list(k, a);
        return join(k, F_OR, &part);
    case A_ONE:
        part = of_list(k, a);
        return just_one(k, &part);
    case A_NOT:
        return negate(k, of_schema(k, a->value));
    case A_IF:
        return of_if(k, a);
    case A_BRANCH:
        return k->yes;
    default:
        return node(k, F_LEAF, i, NULL);
    }
}

static uint32_t of_schema(struct making *k, uint32_t schema)
{
    struct schema s = k->m->schema[schema];
    if (s.always || s.never || !schema_step(k->m))
        return s.always ? k->yes : k->no;
    uint64_t turn = (uint64_t)k->m->formulas << 32; /* each formula has its own nodes */
    if (k->m->formula_of[schema] > turn)
        return (uint32_t)k->m->formula_of[schema] - 1;
    struct ids part = {0};
    for (uint32_t i = s.first; i < s.first + s.n && schema_ok(k->m); i++)
        (void)ids_push(k->m, &part, of_assertion(k, i));
    uint32_t x = schema_ok(k->m) ? join(k, F_AND, &part) : k->no;
    k->m->formula_of[schema] = turn | (x + 1);
    return x;
}

bool schema_formula(struct schema_maker *m, const struct goal *goal, enum json_type type,
                    struct formula *out)
{
    struct making k = {.m = m, .f = out, .type = type};
    struct ids part = {0};
    *out = (struct formula){0};
    size_t bytes = m->n_schemas * sizeof *m->formula_of;
    if (!m->formula_of && !(m->formula_of = schema_alloc(m, bytes)))
        return false;
    if (m->formulas++ == 0)
        memset(m->formula_of, 0, bytes);
    k.yes = node(&k, F_TRUE, 0, NULL);
    k.no = node(&k, F_FALSE, 0, NULL);
    for (uint32_t i = 0; i < goal->n && schema_ok(m); i++) {
        uint32_t x = of_schema(&k, goal->at[i] >> 1);
        (void)ids_push(m, &part, goal->at[i] & 1 ? negate(&k, x) : x);
    }
    if (!schema_ok(m))
        return false;
    uint32_t x = join(&k, F_AND, &part);
    if (schema_ok(m) && x != out->n - 1) /* the whole comes last */
        (void)node(&k, F_AND, 0, &(struct ids){.at = &x, .n = 1});
    if (x == k.yes || x == k.no)
        out->node[out->n - 1].op = out->node[x].op;
    else if (out->node[out->n - 1].op == F_AND && out->node[out->n - 1].n_list == 1 &&
             out->node[x].op == F_LEAF)
        out->node[out->n - 1] = out->node[x];
    return schema_ok(m);
}
