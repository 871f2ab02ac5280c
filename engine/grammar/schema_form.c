/* schema_form.c - the ways to satisfy a goal as an array or an object.
 *
 * What must hold is taken apart until only conditions are left and *choices* between several lists
 * of them. What is known so far decides most choices: of alternatives of an object with a `kind`
 * of their own, one is left once `kind` is chosen, and that the others do not hold needs no more
 * words. The rest is tried one by one; each complete list of conditions is a form.
 */
#include "grammar/schema_impl.h"

#include <string.h>

enum { MAX_FORMS = 1000, MAX_CHOICES = 4000 };

/* A literal: something to hold or not. */
enum { LIT_SCHEMA, LIT_ASSERTION, LIT_HAS, LIT_VALUE, LIT_EXTRA };
struct literal {
    uint8_t kind;
    bool negated;
    uint32_t a, b; /* as of conditions */
};

struct choice { /* of alternatives, which begin at first[i] and end at first[i + 1] */
    struct literal *at;
    uint32_t n, max;
    uint32_t *first;
    uint32_t n_alternatives, max_alternatives;
};

struct solving {
    struct schema_maker *m;
    uint32_t goal;
    enum json_type type;
    unsigned depth;
    struct form form; /* the conditions so far */
    uint32_t max_conditions;
    struct literal *todo;
    uint32_t n_todo, max_todo;
    struct choice *choice;
    uint32_t n_choices, max_choices;
    struct ids order; /* names, once they are wanted */
    bool has_order;
    struct forms *out;
};

int form_has(const struct form *form, uint32_t name)
{
    for (uint32_t i = 0; i < form->n; i++)
        if (form->at[i].kind == COND_HAS && form->at[i].a == name)
            return form->at[i].negated ? -1 : 1;
    return 0;
}

static bool has_id(const uint32_t *at, uint32_t n, uint32_t x)
{
    for (uint32_t i = 0; i < n; i++)
        if (at[i] == x)
            return true;
    return false;
}

/* Whether an assertion about members by their names is about this one. */
static bool is_about(struct schema_maker *m, const struct assertion *a, uint32_t name)
{
    const uint32_t *list = m->list.at;
    if (a->kind == A_MATCHING)
        return schema_matches(m, a->pattern, m->name[name]);
    if (a->kind != A_ADDITIONAL || has_id(list + a->list, a->n_list, name))
        return false;
    for (uint32_t i = 0; i < a->n_list2; i++)
        if (schema_matches(m, list[a->list2 + i], m->name[name]))
            return false;
    return true;
}

static bool name_allowed(struct schema_maker *m, const struct assertion *a, uint32_t name)
{
    cJSON text = {.type = cJSON_String, .valuestring = (char *)(uintptr_t)m->name[name]};
    return schema_holds(m, a->value, &text);
}

bool form_name(struct schema_maker *m, const struct form *form, uint32_t name, struct ids *out,
               bool *never)
{
    for (uint32_t i = 0; i < form->n; i++) {
        const struct condition *c = &form->at[i];
        const struct assertion *a = c->kind == COND_ASSERTION ? &m->assertion[c->a] : NULL;
        if (c->kind == COND_HAS && c->a == name)
            *never |= c->negated;
        else if (c->kind == COND_VALUE && c->a == name) {
            if (!goal_add(m, out, c->b << 1 | c->negated, never))
                return false;
        } else if (a && !c->negated && is_about(m, a, name)) {
            if (!goal_add(m, out, a->value << 1, never))
                return false;
        } else if (a && !c->negated && a->kind == A_NAMES) {
            *never |= !name_allowed(m, a, name);
        }
    }
    return schema_ok(m);
}

/* The goal of a member, with one more literal if it is not UINT32_MAX; 0: there can be none. */
static uint32_t member_goal(struct solving *v, uint32_t name, uint32_t literal)
{
    struct ids all = {0};
    bool never = false;
    if (!form_name(v->m, &v->form, name, &all, &never) ||
        (literal != UINT32_MAX && !goal_add(v->m, &all, literal, &never)) || never)
        return 0;
    return schema_goal(v->m, &all, v->m->goal[v->goal].exact);
}

static bool member_empty(struct solving *v, uint32_t name, uint32_t literal)
{
    return schema_goal_empty(v->m, member_goal(v, name, literal), v->depth + 1);
}

/* --- what is known ------------------------------------------------------------------------------
 */

/* 1: holds in all forms that come of these conditions; -1: in none; 0: that is open. */
static int verdict_schema(struct solving *v, uint32_t schema);

static int verdict_property(struct solving *v, uint32_t name, uint32_t schema)
{
    int has = form_has(&v->form, name);
    if (has < 0 || v->m->schema[schema].always)
        return 1;
    if (has > 0 && member_empty(v, name, schema << 1))
        return -1;
    if (member_empty(v, name, schema << 1 | 1))
        return 1;
    return 0;
}

static int verdict_has(struct solving *v, uint32_t name)
{
    int has = form_has(&v->form, name);
    if (has)
        return has;
    return member_empty(v, name, UINT32_MAX) ? -1 : 0;
}

static int verdict_members(struct solving *v, const struct assertion *a)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->form.n; i++)
        n += v->form.at[i].kind == COND_HAS && !v->form.at[i].negated;
    if (n > a->most)
        return -1;
    return a->most == UINT32_MAX && n >= a->least ? 1 : 0;
}

/* Members that are there for sure, and must not be. */
static int verdict_closed(struct solving *v, const struct assertion *a)
{
    if (v->m->schema[a->value].always)
        return 1;
    for (uint32_t i = 0; i < v->form.n; i++) {
        const struct condition *c = &v->form.at[i];
        bool about = c->kind == COND_HAS && !c->negated && is_about(v->m, a, c->a);
        if (about && member_empty(v, c->a, a->value << 1))
            return -1;
    }
    return 0;
}

static int verdict_list(struct solving *v, const struct assertion *a)
{
    uint32_t yes = 0, no = 0;
    for (uint32_t i = 0; i < a->n_list; i++) {
        int x = verdict_schema(v, v->m->list.at[a->list + i]);
        yes += x > 0;
        no += x < 0;
    }
    if (a->kind == A_ALL)
        return no ? -1 : yes == a->n_list;
    if (a->kind == A_ANY)
        return yes ? 1 : no == a->n_list ? -1 : 0;
    if (yes > 1 || no == a->n_list)
        return -1;
    return yes == 1 && no == a->n_list - 1;
}

static int verdict_assertion(struct solving *v, uint32_t assertion)
{
    const struct assertion *a = &v->m->assertion[assertion];
    if (!schema_step(v->m))
        return 0;
    if (a->type != J_ANY && a->type != (uint8_t)v->type)
        return 1;
    for (uint32_t i = 0; i < v->form.n; i++)
        if (v->form.at[i].kind == COND_ASSERTION && v->form.at[i].a == assertion)
            return v->form.at[i].negated ? -1 : 1;
    switch ((enum kind)a->kind) {
    case A_TYPE:
        return a->types & BIT(v->type) ? 1 : -1;
    case A_REF:
        return verdict_schema(v, a->value);
    case A_NOT:
        return -verdict_schema(v, a->value);
    case A_ALL:
    case A_ANY:
    case A_ONE:
        return verdict_list(v, a);
    case A_REQUIRED:
        return verdict_has(v, a->name);
    case A_PROPERTY:
        return verdict_property(v, a->name, a->value);
    case A_ADDITIONAL:
    case A_MATCHING:
        return verdict_closed(v, a);
    case A_MEMBERS:
        return verdict_members(v, a);
    case A_ITEMS:
    case A_ITEM:
    case A_NAMES:
        return v->m->schema[a->value].always ? 1 : 0;
    case A_BRANCH:
        return 1;
    case A_DEPENDS:
    case A_NEEDS:
        return form_has(&v->form, a->name) < 0 ? 1 : 0;
    default:
        return 0;
    }
}

static int verdict_schema(struct solving *v, uint32_t schema)
{
    struct schema s = v->m->schema[schema];
    int all = 1;
    if (s.always || s.never)
        return s.always ? 1 : -1;
    for (uint32_t i = 0; i < v->form.n; i++)
        if (v->form.at[i].kind == COND_SCHEMA && v->form.at[i].a == schema)
            return 1;
    for (uint32_t i = s.first; i < s.first + s.n && schema_ok(v->m); i++) {
        int x = verdict_assertion(v, i);
        if (x < 0)
            return -1;
        all &= x > 0;
    }
    return all;
}

static int verdict(struct solving *v, const struct literal *l)
{
    int x = 0;
    switch (l->kind) {
    case LIT_SCHEMA:
        x = verdict_schema(v, l->a);
        break;
    case LIT_ASSERTION:
        x = verdict_assertion(v, l->a);
        break;
    case LIT_HAS:
        x = verdict_has(v, l->a);
        break;
    case LIT_VALUE: /* conditions of it are not turned by `negated`, which is the schema's */
        if (form_has(&v->form, l->a) < 0)
            return 1;
        return member_empty(v, l->a, l->b << 1 | l->negated)    ? -1
               : member_empty(v, l->a, l->b << 1 | !l->negated) ? 1
                                                                : 0;
    default:
        return 0;
    }
    return l->negated ? -x : x;
}

/* --- taking apart -------------------------------------------------------------------------------
 */

static bool todo(struct solving *v, struct literal l)
{
    struct literal *at = schema_grow(v->m, v->todo, v->n_todo, &v->max_todo, sizeof *at);
    if (!at)
        return false;
    v->todo = at;
    v->todo[v->n_todo++] = l;
    return true;
}

static bool todo_schema(struct solving *v, uint32_t schema, bool negated)
{
    return todo(v, (struct literal){.kind = LIT_SCHEMA, .negated = negated, .a = schema});
}

/* False: it is there the other way round, or there is no memory. */
static bool hold(struct solving *v, struct condition c)
{
    struct form *f = &v->form;
    for (uint32_t i = 0; i < f->n; i++)
        if (f->at[i].kind == c.kind && f->at[i].a == c.a && f->at[i].b == c.b)
            if (f->at[i].negated == c.negated || c.kind != COND_VALUE)
                return f->at[i].negated == c.negated;
    struct condition *at = schema_grow(v->m, f->at, f->n, &v->max_conditions, sizeof *at);
    if (!at)
        return false;
    f->at = at;
    f->at[f->n++] = c;
    return true;
}

static bool hold_assertion(struct solving *v, uint32_t a, bool negated)
{
    return hold(v, (struct condition){.kind = COND_ASSERTION, .negated = negated, .a = a});
}

static struct choice *choose(struct solving *v)
{
    struct choice *at = schema_grow(v->m, v->choice, v->n_choices, &v->max_choices, sizeof *at);
    if (!at)
        return NULL;
    if (v->n_choices >= MAX_CHOICES) {
        v->m->steps = 0;
        (void)schema_step(v->m);
        return NULL;
    }
    v->choice = at;
    at += v->n_choices++;
    *at = (struct choice){0};
    return at;
}

/* One more alternative, or one more literal of the last. */
static bool alternative(struct solving *v, struct choice *c)
{
    uint32_t *at =
        schema_grow(v->m, c->first, c->n_alternatives + 1, &c->max_alternatives, sizeof *at);
    if (!at)
        return false;
    c->first = at;
    c->first[c->n_alternatives++] = c->n;
    c->first[c->n_alternatives] = c->n;
    return true;
}

static bool also(struct solving *v, struct choice *c, uint8_t kind, bool negated, uint32_t a,
                 uint32_t b)
{
    struct literal *at = schema_grow(v->m, c->at, c->n, &c->max, sizeof *at);
    if (!at)
        return false;
    c->at = at;
    c->at[c->n++] = (struct literal){.kind = kind, .negated = negated, .a = a, .b = b};
    c->first[c->n_alternatives] = c->n;
    return true;
}

static bool one(struct solving *v, struct choice *c, uint8_t kind, bool negated, uint32_t a)
{
    return alternative(v, c) && also(v, c, kind, negated, a, 0);
}

/* Any of the list holds; with `alone`, no other does. */
static bool any_of(struct solving *v, const struct assertion *a, bool alone)
{
    struct choice *c = choose(v);
    for (uint32_t i = 0; c && i < a->n_list; i++) {
        const uint32_t *s = v->m->list.at + a->list;
        if (!one(v, c, LIT_SCHEMA, false, s[i]))
            return false;
        for (uint32_t k = 0; alone && k < a->n_list; k++)
            if (k != i && !also(v, c, LIT_SCHEMA, true, s[k], 0))
                return false;
    }
    return c;
}

/* Not exactly one: none, or some two. */
static bool not_one(struct solving *v, const struct assertion *a)
{
    struct choice *c = choose(v);
    const uint32_t *s = v->m->list.at + a->list;
    if (!c || !alternative(v, c))
        return false;
    for (uint32_t i = 0; i < a->n_list; i++)
        if (!also(v, c, LIT_SCHEMA, true, s[i], 0))
            return false;
    for (uint32_t i = 0; i < a->n_list; i++)
        for (uint32_t k = i + 1; k < a->n_list; k++)
            if (!schema_step(v->m) || !one(v, c, LIT_SCHEMA, false, s[i]) ||
                !also(v, c, LIT_SCHEMA, false, s[k], 0))
                return false;
    return true;
}

static bool branches(struct solving *v, const struct assertion *a, bool negated)
{
    struct choice *c = choose(v);
    const uint32_t *s = v->m->list.at + a->list;
    for (uint32_t i = 0; c && i < 2; i++) {
        bool nothing = s[1 + i] == UINT32_MAX;
        if (negated && nothing)
            continue;
        if (!one(v, c, LIT_SCHEMA, i == 1, s[0]) ||
            (!nothing && !also(v, c, LIT_SCHEMA, negated, s[1 + i], 0)))
            return false;
    }
    return c;
}

static bool needs(struct solving *v, const struct assertion *a, bool negated)
{
    struct choice *c = choose(v);
    const uint32_t *name = v->m->list.at + a->list;
    if (!c)
        return false;
    if (negated) {
        for (uint32_t i = 0; i < a->n_list; i++)
            if (!one(v, c, LIT_HAS, false, a->name) || !also(v, c, LIT_HAS, true, name[i], 0))
                return false;
        return true;
    }
    if (!one(v, c, LIT_HAS, true, a->name) || !one(v, c, LIT_HAS, false, a->name))
        return false;
    for (uint32_t i = 0; i < a->n_list; i++)
        if (!also(v, c, LIT_HAS, false, name[i], 0))
            return false;
    return true;
}

/* Some member violates an assertion about members by their names. */
static bool some_member(struct solving *v, uint32_t assertion)
{
    struct schema_maker *m = v->m;
    const struct assertion *a = &m->assertion[assertion];
    struct choice *c = choose(v);
    uint32_t n;
    if (!c || (!v->has_order && !schema_order(m, &m->goal[v->goal], NULL, &v->order, &n)))
        return false;
    v->has_order = true;
    for (uint32_t i = 0; i < v->order.n; i++) {
        uint32_t name = v->order.at[i];
        bool names = a->kind == A_NAMES;
        if (names ? name_allowed(m, a, name) : !is_about(m, a, name))
            continue;
        if (!one(v, c, LIT_HAS, false, name) ||
            (!names && !also(v, c, LIT_VALUE, true, name, a->value)))
            return false;
    }
    return schema_ok(m) && one(v, c, LIT_EXTRA, false, assertion);
}

static bool take_assertion(struct solving *v, uint32_t assertion)
{
    const struct assertion *a = &v->m->assertion[assertion];
    struct choice *c;
    if (a->type != J_ANY && a->type != (uint8_t)v->type)
        return true;
    switch ((enum kind)a->kind) {
    case A_TYPE:
        return a->types & BIT(v->type);
    case A_REF:
        return todo_schema(v, a->value, false);
    case A_ALL:
        for (uint32_t i = a->n_list; i-- > 0;)
            if (!todo_schema(v, v->m->list.at[a->list + i], false))
                return false;
        return true;
    case A_ANY:
    case A_ONE:
        return any_of(v, a, a->kind == A_ONE);
    case A_NOT:
        return todo_schema(v, a->value, true);
    case A_IF:
        return branches(v, a, false);
    case A_BRANCH:
        return true;
    case A_REQUIRED:
        return hold(v, (struct condition){.kind = COND_HAS, .a = a->name});
    case A_PROPERTY:
        return hold(v, (struct condition){.kind = COND_VALUE, .a = a->name, .b = a->value});
    case A_NEEDS:
        return needs(v, a, false);
    case A_DEPENDS:
        c = choose(v);
        return c && one(v, c, LIT_HAS, true, a->name) && one(v, c, LIT_HAS, false, a->name) &&
               also(v, c, LIT_SCHEMA, false, a->value, 0);
    default:
        return hold_assertion(v, assertion, false);
    }
}

/* That an assertion is violated. */
static bool refute_assertion(struct solving *v, uint32_t assertion)
{
    const struct assertion *a = &v->m->assertion[assertion];
    const uint32_t *list = v->m->list.at + a->list;
    struct choice *c;
    if (a->type != J_ANY && a->type != (uint8_t)v->type)
        return false;
    switch ((enum kind)a->kind) {
    case A_TYPE:
        return !(a->types & BIT(v->type));
    case A_REF:
        return todo_schema(v, a->value, true);
    case A_NOT:
        return todo_schema(v, a->value, false);
    case A_ALL:
        c = choose(v);
        for (uint32_t i = 0; c && i < a->n_list; i++)
            if (!one(v, c, LIT_SCHEMA, true, list[i]))
                return false;
        return c;
    case A_ANY:
        for (uint32_t i = 0; i < a->n_list; i++)
            if (!todo_schema(v, list[i], true))
                return false;
        return true;
    case A_ONE:
        return not_one(v, a);
    case A_IF:
        return branches(v, a, true);
    case A_BRANCH:
        return false;
    case A_REQUIRED:
        return hold(v, (struct condition){.kind = COND_HAS, .negated = true, .a = a->name});
    case A_PROPERTY:
        return hold(v, (struct condition){.kind = COND_HAS, .a = a->name}) &&
               hold(v, (struct condition){COND_VALUE, true, a->name, a->value});
    case A_NEEDS:
        return needs(v, a, true);
    case A_DEPENDS:
        return hold(v, (struct condition){.kind = COND_HAS, .a = a->name}) &&
               todo_schema(v, a->value, true);
    case A_MATCHING:
    case A_ADDITIONAL:
    case A_NAMES:
        return some_member(v, assertion);
    case A_UNIQUE:
        return schema_fail(v->m, a->schema, a->keyword, "that items are alike cannot be kept");
    case A_VALUES:
        for (const cJSON *x = !strcmp(a->keyword, "enum") ? a->json->child : a->json; x;
             x = x == a->json ? NULL : x->next)
            if (json_type_of(x) == v->type)
                return schema_fail(v->m, a->schema, a->keyword,
                                   "that an object or array is another one cannot be kept");
        return true;
    default:
        return hold_assertion(v, assertion, true);
    }
}

static bool take_schema(struct solving *v, uint32_t schema, bool negated)
{
    struct schema s = v->m->schema[schema];
    if (s.always || s.never)
        return s.always != negated;
    if (!negated) {
        uint32_t known = v->form.n;
        if (!hold(v, (struct condition){.kind = COND_SCHEMA, .a = schema}))
            return false;
        if (v->form.n == known) /* it is held already */
            return true;
        for (uint32_t i = s.first; i < s.first + s.n; i++)
            if (!take_assertion(v, i))
                return false;
        return true;
    }
    struct choice *c = choose(v);
    for (uint32_t i = s.first; c && i < s.first + s.n; i++)
        if (!one(v, c, LIT_ASSERTION, true, i))
            return false;
    return c;
}

static bool take(struct solving *v, const struct literal *l)
{
    switch (l->kind) {
    case LIT_SCHEMA:
        return take_schema(v, l->a, l->negated);
    case LIT_ASSERTION:
        return l->negated ? refute_assertion(v, l->a) : take_assertion(v, l->a);
    case LIT_HAS:
        return hold(v, (struct condition){.kind = COND_HAS, .negated = l->negated, .a = l->a});
    case LIT_VALUE:
        return hold(v, (struct condition){COND_VALUE, l->negated, l->a, l->b});
    default:
        return hold(v, (struct condition){.kind = COND_EXTRA, .a = l->a});
    }
}

/* --- forms --------------------------------------------------------------------------------------
 */

static bool emit(struct solving *v)
{
    struct schema_maker *m = v->m;
    struct forms *out = v->out;
    struct form form = v->form;
    for (uint32_t i = 0; i < form.n; i++) {
        const struct condition *c = &form.at[i];
        if (c->kind == COND_HAS && !c->negated && member_empty(v, c->a, UINT32_MAX))
            return schema_ok(m);
        if (c->kind == COND_ASSERTION && m->assertion[c->a].kind == A_VALUES)
            form.listed = true;
    }
    struct form *at = schema_grow(m, out->at, out->n, &out->max, sizeof *at);
    struct condition *copy = at ? schema_alloc(m, (form.n + (size_t)1) * sizeof *copy) : NULL;
    if (!copy)
        return false;
    if (form.n)
        memcpy(copy, form.at, form.n * sizeof *copy);
    form.at = copy;
    out->at = at;
    out->at[out->n++] = form;
    if (out->n > MAX_FORMS) {
        m->steps = 0;
        return schema_step(m);
    }
    return true;
}

static bool empty_todo(struct solving *v)
{
    while (v->n_todo) {
        struct literal l = v->todo[--v->n_todo];
        if (!schema_step(v->m) || !take(v, &l))
            return false;
    }
    return true;
}

/* Of one choice: the alternatives that are open, moved to its beginning. 1: it is decided, or none
 * is left to decide; 0: open; -1: none can hold. */
static int narrow(struct solving *v, struct choice *c)
{
    uint32_t kept = 0, *first = schema_alloc(v->m, (c->n_alternatives + (size_t)1) * sizeof *first);
    struct choice now = {.first = first, .max_alternatives = c->n_alternatives + 1};
    if (!first)
        return -1;
    for (uint32_t i = 0; i < c->n_alternatives; i++) {
        bool dead = false, all = true;
        uint32_t begin = now.n;
        for (uint32_t k = c->first[i]; k < c->first[i + 1] && !dead; k++) {
            int x = verdict(v, &c->at[k]);
            dead = x < 0;
            all &= x > 0;
        }
        if (!schema_ok(v->m))
            return -1;
        if (dead)
            continue;
        for (uint32_t k = c->first[i]; all && k < c->first[i + 1]; k++)
            if (c->at[k].kind == LIT_SCHEMA && !c->at[k].negated &&
                !hold(v, (struct condition){.kind = COND_SCHEMA, .a = c->at[k].a}))
                return -1;
        if (all)
            return 1;
        first[kept++] = begin;
        for (uint32_t k = c->first[i]; k < c->first[i + 1]; k++) {
            struct literal *at = schema_grow(v->m, now.at, now.n, &now.max, sizeof *at);
            if (!at)
                return -1;
            now.at = at;
            now.at[now.n++] = c->at[k];
        }
        first[kept] = now.n;
    }
    now.n_alternatives = kept;
    *c = now;
    return kept ? 0 : -1;
}

static bool todo_alternative(struct solving *v, const struct choice *c, uint32_t i)
{
    for (uint32_t k = c->first[i + 1]; k-- > c->first[i];)
        if (!todo(v, c->at[k]))
            return false;
    return true;
}

/* Decides what is plain. False: nothing can come of it. */
static bool settle(struct solving *v)
{
    for (bool more = true; more;) {
        more = false;
        if (!empty_todo(v))
            return false;
        for (uint32_t i = 0; i < v->n_choices; i++) {
            int x = narrow(v, &v->choice[i]);
            if (x < 0)
                return false;
            if (x == 0 && v->choice[i].n_alternatives > 1)
                continue;
            struct choice c = v->choice[i];
            v->choice[i--] = v->choice[--v->n_choices];
            if (x > 0)
                continue;
            more = true;
            if (!todo_alternative(v, &c, 0))
                return false;
            break;
        }
    }
    return true;
}

/* False: an error, or enough were found. */
static bool solve(struct solving *v, unsigned level)
{
    enum { MAX_LEVEL = 200 };
    if (!settle(v))
        return schema_ok(v->m);
    if (v->n_choices == 0)
        return emit(v) && v->out->n < v->out->enough;
    if (level > MAX_LEVEL) {
        v->m->steps = 0;
        return schema_step(v->m);
    }
    uint32_t best = 0;
    for (uint32_t i = 1; i < v->n_choices; i++)
        if (v->choice[i].n_alternatives < v->choice[best].n_alternatives)
            best = i;
    struct choice c = v->choice[best];
    v->choice[best] = v->choice[--v->n_choices];
    uint32_t n_choices = v->n_choices, n_conditions = v->form.n;
    struct choice *kept = schema_alloc(v->m, (n_choices + (size_t)1) * sizeof *kept);
    if (!kept)
        return false;
    if (n_choices)
        memcpy(kept, v->choice, n_choices * sizeof *kept);
    for (uint32_t i = 0; i < c.n_alternatives; i++) {
        v->n_todo = 0;
        v->form.n = n_conditions;
        v->n_choices = n_choices;
        if (n_choices)
            memcpy(v->choice, kept, n_choices * sizeof *kept);
        if (!todo_alternative(v, &c, i) || !solve(v, level + 1))
            return false;
    }
    return true;
}

bool schema_forms(struct schema_maker *m, uint32_t goal, enum json_type type, unsigned depth,
                  struct forms *out)
{
    struct solving v = {.m = m, .goal = goal, .type = type, .depth = depth, .out = out};
    for (uint32_t i = m->goal[goal].n; i-- > 0;)
        if (!todo_schema(&v, m->goal[goal].at[i] >> 1, m->goal[goal].at[i] & 1))
            return false;
    (void)solve(&v, 0);
    return schema_ok(m);
}
