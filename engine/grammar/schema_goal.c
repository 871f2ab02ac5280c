/* schema_goal.c - sets of schemas that hold together for one value. */
#include "grammar/schema_impl.h"

#include <string.h>

static const void *get_goal(const void *of, uint32_t i, size_t *bytes)
{
    const struct schema_maker *m = of;
    *bytes = (m->goal[i].n + (size_t)1) * sizeof(uint32_t);
    return m->goal[i].at - 1;
}

bool goal_add(struct schema_maker *m, struct ids *v, uint32_t literal, bool *never)
{
    const struct schema *s = &m->schema[literal >> 1];
    bool negated = literal & 1;
    uint32_t i = v->n;
    if (s->always || s->never) {
        *never |= s->always == negated;
        return true;
    }
    while (i > 0 && v->at[i - 1] >= literal)
        i--;
    if (i < v->n && v->at[i] == literal)
        return true;
    *never |= (i < v->n && v->at[i] == (literal ^ 1)) || (i > 0 && v->at[i - 1] == (literal ^ 1));
    if (!ids_push(m, v, literal))
        return false;
    memmove(v->at + i + 1, v->at + i, (v->n - 1 - i) * sizeof *v->at);
    v->at[i] = literal;
    return true;
}

uint32_t schema_goal(struct schema_maker *m, const struct ids *literals, bool exact)
{
    size_t bytes = (literals->n + (size_t)1) * sizeof(uint32_t);
    uint32_t *key = schema_alloc(m, bytes);
    if (!key)
        return 0;
    key[0] = exact;
    if (literals->n)
        memcpy(key + 1, literals->at, literals->n * sizeof *key);
    uint32_t known = table_find(&m->by_goal, get_goal, m, key, bytes);
    if (known != UINT32_MAX)
        return known;
    struct goal *at = schema_grow(m, m->goal, m->n_goals, &m->max_goals, sizeof *at);
    if (!at)
        return 0;
    m->goal = at;
    at[m->n_goals] = (struct goal){.at = key + 1, .n = literals->n, .exact = exact};
    if (!table_add(m, &m->by_goal, get_goal, m, m->n_goals, key, bytes))
        return 0;
    return m->n_goals++;
}

/* Whether strings that the formula allows can be found: exact where it has lists alone, else yes.
 */
static bool has_string(struct schema_maker *m, const struct goal *goal)
{
    struct formula f;
    if (!schema_formula(m, goal, J_STRING, &f))
        return true;
    enum op op = f.node[f.n - 1].op;
    if (op == F_FALSE || op == F_TRUE)
        return op == F_TRUE;
    for (uint32_t i = 0; i < f.n; i++)
        if (f.node[i].op == F_LEAF && m->assertion[f.node[i].leaf].kind != A_VALUES)
            return true;
    for (uint32_t i = 0; i < f.n; i++) {
        if (f.node[i].op != F_LEAF)
            continue;
        const struct assertion *a = &m->assertion[f.node[i].leaf];
        bool list = !strcmp(a->keyword, "enum");
        for (const cJSON *v = list ? a->json->child : a->json; v; v = list ? v->next : NULL)
            if (cJSON_IsString(v) && schema_goal_holds(m, goal->at, goal->n, v))
                return true;
    }
    /* one that is in no list: none of the values holds a control character of this kind */
    char other[] = "\x01\x02?";
    return schema_goal_holds(m, goal->at, goal->n,
                             &(cJSON){.type = cJSON_String, .valuestring = other});
}

static bool has_value(struct schema_maker *m, uint32_t goal, unsigned depth)
{
    struct goal g = m->goal[goal];
    const struct assertion *list = schema_listed(m, &g);
    struct forms forms = {.enough = 1};
    struct formula f;
    if (list) {
        bool array = !strcmp(list->keyword, "enum");
        for (const cJSON *v = array ? list->json->child : list->json; v; v = array ? v->next : NULL)
            if (schema_goal_holds(m, g.at, g.n, v))
                return true;
        return false;
    }
    for (int type = cJSON_False; type <= cJSON_NULL; type <<= 1)
        if (schema_goal_holds(m, g.at, g.n, &(cJSON){.type = type}))
            return true;
    if (has_string(m, &g) || !schema_formula(m, &g, J_NUMBER, &f))
        return true;
    if (f.node[f.n - 1].op == F_TRUE || schema_number(m, &g) != GB_NEVER)
        return true;
    return !schema_forms(m, goal, J_OBJECT, depth + 1, &forms) || forms.n ||
           !schema_forms(m, goal, J_ARRAY, depth + 1, &forms) || forms.n;
}

enum { MAX_DEPTH = 3 };

bool schema_goal_empty(struct schema_maker *m, uint32_t goal, unsigned depth)
{
    if (goal == 0 || m->goal[goal].empty == 1)
        return true;
    if (m->goal[goal].empty || depth > MAX_DEPTH || !schema_ok(m))
        return false;
    m->goal[goal].empty = -1; /* when it is asked for on its own way */
    bool empty = !has_value(m, goal, depth);
    m->goal[goal].empty = empty && schema_ok(m) ? 1 : -1;
    return m->goal[goal].empty == 1;
}

/* --- the order of names -------------------------------------------------------------------------
 */

static bool add_name(struct schema_maker *m, struct ids *out, uint32_t name)
{
    if (m->named[name] == m->order)
        return true;
    m->named[name] = m->order;
    return ids_push(m, out, name);
}

/* Which schemas are walked: those that hold in the form, or all; and which keywords name. */
struct walk {
    struct schema_maker *m;
    bool held, rest;
    struct ids *out;
};

static bool walk_names(struct walk *w, uint32_t schema, unsigned depth);

static bool walk_list(struct walk *w, const struct assertion *a, unsigned depth)
{
    struct schema_maker *m = w->m;
    bool all = a->kind == A_ALL || !w->held;
    uint32_t n = a->kind == A_IF ? 1 : a->n_list; /* the branches have places of their own */
    for (uint32_t j = 0; j < n; j++) {
        uint32_t x = m->list.at[a->list + j];
        if ((all || a->kind == A_IF || m->held[x] == m->order) && !walk_names(w, x, depth + 1))
            return false;
    }
    return true;
}

static bool walk_assertion(struct walk *w, const struct assertion *a, unsigned depth)
{
    struct schema_maker *m = w->m;
    uint8_t k = a->kind;
    if ((k == A_PROPERTY || (w->rest && (k == A_REQUIRED || k == A_NEEDS || k == A_DEPENDS))) &&
        !add_name(m, w->out, a->name))
        return false;
    for (uint32_t j = 0; w->rest && k == A_NEEDS && j < a->n_list; j++)
        if (!add_name(m, w->out, m->list.at[a->list + j]))
            return false;
    if (k == A_ALL || k == A_ANY || k == A_ONE || k == A_IF)
        return walk_list(w, a, depth);
    bool into = k == A_REF || k == A_BRANCH;
    if (k == A_NOT || k == A_DEPENDS)
        into = !w->held || (k == A_DEPENDS && m->held[a->value] == m->order);
    return !into || walk_names(w, a->value, depth + 1);
}

static bool walk_names(struct walk *w, uint32_t schema, unsigned depth)
{
    struct schema_maker *m = w->m;
    struct schema s = m->schema[schema];
    uint32_t mark = 2 * m->order + w->rest;
    if (!schema_step(m))
        return false;
    if (depth > SCHEMA_MAX_WALK || m->walked[schema] == mark)
        return true;
    m->walked[schema] = mark;
    for (int depending = 0; depending < 2;
         depending++) /* what hangs on a member comes behind all */
        for (uint32_t i = s.first; i < s.first + s.n; i++)
            if ((m->assertion[i].kind == A_DEPENDS) == depending &&
                !walk_assertion(w, &m->assertion[i], depth))
                return false;
    return true;
}

static uint32_t *marks(struct schema_maker *m, uint32_t n)
{
    uint32_t *at = schema_alloc(m, (n + (size_t)1) * sizeof *at);
    if (at)
        memset(at, 0, n * sizeof *at);
    return at;
}

bool schema_order(struct schema_maker *m, const struct goal *goal, const struct form *form,
                  struct ids *out, uint32_t *n_ordered)
{
    struct walk w = {.m = m, .held = form, .out = out};
    if (!m->named) {
        m->named = marks(m, m->n_names);
        m->walked = marks(m, m->n_schemas);
        m->held = marks(m, m->n_schemas);
        if (!schema_ok(m))
            return false;
    }
    m->order++;
    for (uint32_t i = 0; form && i < form->n; i++)
        if (form->at[i].kind == COND_SCHEMA)
            m->held[form->at[i].a] = m->order;
    for (int rest = 0; rest < 2; rest++) {
        w.rest = rest;
        w.held = form && !rest;
        for (uint32_t i = 0; i < goal->n; i++) {
            bool negated = goal->at[i] & 1;
            if ((rest || !negated) && !walk_names(&w, goal->at[i] >> 1, 0))
                return false;
        }
        if (!rest)
            *n_ordered = out->n;
    }
    return schema_ok(m);
}
