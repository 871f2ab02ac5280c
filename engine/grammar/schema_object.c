/* schema_object.c - the objects of a form.
 *
 * The members that `properties` names come first, in its order, each once or not at all; then any
 * number of others, which fall into classes by the patterns that their names match, and among them,
 * anywhere, those that other keywords name. Where the number of members counts, what is left to
 * come is made once for each number there may be so far.
 */
#include "grammar/schema_impl.h"

#include <string.h>

enum { MAX_CLASS_PATTERNS = 7, MAX_COUNTED = 200000, MAX_LOOSE = 6 };

/* Names of one kind, and what their values must be. */
struct class
{
    gb_node name;
    uint32_t goal;
};

struct object {
    struct schema_maker *m;
    uint32_t goal;
    const struct form *form;
    struct ids order; /* names; the first n_ordered in this order, then those that come anywhere */
    struct ids value; /* per name: goal, 0 where it cannot be there */
    uint32_t n_ordered;
    uint32_t least, most;
    struct ids patterns; /* that tell classes */
    struct class class[1 << MAX_CLASS_PATTERNS];
    uint32_t n_classes;
    bool differ;         /* names of further members must */
    gb_node extra, must; /* a further member; one that must come (GB_EMPTY: none must) */
};

static gb_node seq(struct object *o, const gb_node *part, size_t n)
{
    return gb_seq(o->m->b, part, n);
}

static gb_node text(struct object *o, const char *s)
{
    return gb_bytes(o->m->b, s, strlen(s));
}

/* An A_MEMBERS that holds or is violated, as bounds. */
static void count(struct object *o, const struct assertion *a, bool violated)
{
    uint32_t least = a->least, most = a->most;
    if (violated && a->most != UINT32_MAX) {
        least = a->most + 1;
        most = UINT32_MAX;
    } else if (violated) {
        most = a->least - 1; /* to be less than 0 is more than there can be */
        least = a->least ? 0 : UINT32_MAX;
    }
    o->least = least > o->least ? least : o->least;
    o->most = most < o->most ? most : o->most;
}

static bool has_pattern(const struct ids *v, uint32_t p)
{
    for (uint32_t i = 0; i < v->n; i++)
        if (v->at[i] == p)
            return true;
    return false;
}

static bool add_pattern(struct object *o, const struct assertion *a, uint32_t p)
{
    if (has_pattern(&o->patterns, p))
        return true;
    if (o->patterns.n == MAX_CLASS_PATTERNS)
        return schema_fail(o->m, a->schema, a->keyword,
                           "more than %d patterns for names cannot be kept", MAX_CLASS_PATTERNS);
    return ids_push(o->m, &o->patterns, p);
}

/* Bounds and patterns of all conditions. */
static bool survey(struct object *o)
{
    for (uint32_t i = 0; i < o->form->n; i++) {
        const struct condition *c = &o->form->at[i];
        const struct assertion *a = &o->m->assertion[c->a];
        if (c->kind != COND_ASSERTION && c->kind != COND_EXTRA)
            continue;
        if (a->kind == A_MEMBERS)
            count(o, a, c->negated);
        else if (a->kind == A_MATCHING && !add_pattern(o, a, a->pattern))
            return false;
        for (uint32_t k = 0; a->kind == A_ADDITIONAL && k < a->n_list2; k++)
            if (!add_pattern(o, a, o->m->list.at[a->list2 + k]))
                return false;
    }
    return true;
}

/* Whether an assertion is about further members whose names match just these patterns. */
static bool about_class(const struct object *o, const struct assertion *a, const struct ids *match)
{
    if (a->kind == A_MATCHING)
        return has_pattern(match, a->pattern);
    if (a->kind != A_ADDITIONAL)
        return false;
    for (uint32_t i = 0; i < a->n_list2; i++)
        if (has_pattern(match, o->m->list.at[a->list2 + i]))
            return false;
    return true;
}

static bool matches_all(struct object *o, const struct ids *match, uint32_t name)
{
    for (uint32_t i = 0; i < o->patterns.n; i++) {
        uint32_t p = o->patterns.at[i];
        if (schema_matches(o->m, p, o->m->name[name]) != has_pattern(match, p))
            return false;
    }
    return schema_ok(o->m);
}

/* The names that match just these patterns and are none of those that the schema names. */
static gb_node class_names(struct object *o, const struct ids *match)
{
    struct grammar_builder *b = o->m->b;
    gb_node any = schema_any_text(o->m), x = any;
    struct ids no = {0}, named = {0};
    for (uint32_t i = 0; i < match->n; i++) {
        gb_node p = schema_pattern_node(o->m, match->at[i]);
        x = x == any ? p : gb_and(b, x, p);
    }
    for (uint32_t i = 0; i < o->patterns.n; i++)
        if (!has_pattern(match, o->patterns.at[i]) &&
            !ids_push(o->m, &no, schema_pattern_node(o->m, o->patterns.at[i])))
            return GB_NEVER;
    for (uint32_t i = 0; i < o->order.n; i++)
        if (matches_all(o, match, o->order.at[i]) &&
            !ids_push(o->m, &named, schema_text(o->m, o->m->name[o->order.at[i]])))
            return GB_NEVER;
    x = gb_minus(b, x, gb_alt(b, no.at, no.n));
    return gb_minus(b, x, gb_alt(b, named.at, named.n));
}

/* The goal of the values of a class, with one more literal unless it is UINT32_MAX. */
static uint32_t class_goal(struct object *o, const struct ids *match, uint32_t literal)
{
    struct ids all = {0};
    bool never = false;
    for (uint32_t i = 0; i < o->form->n; i++) {
        const struct condition *c = &o->form->at[i];
        const struct assertion *a = &o->m->assertion[c->a];
        if (c->kind == COND_ASSERTION && !c->negated && about_class(o, a, match) &&
            !goal_add(o->m, &all, a->value << 1, &never))
            return 0;
    }
    if (literal != UINT32_MAX && !goal_add(o->m, &all, literal, &never))
        return 0;
    return never ? 0 : schema_goal(o->m, &all, o->m->goal[o->goal].exact);
}

static bool match_of(struct object *o, unsigned set, struct ids *out)
{
    for (uint32_t i = 0; i < o->patterns.n; i++)
        if (set >> i & 1 && !ids_push(o->m, out, o->patterns.at[i]))
            return false;
    return true;
}

/* The further members there may be, in classes of alike values. violated: an assertion that each
 * must violate, or NULL. */
static bool find_classes(struct object *o, const struct assertion *violated)
{
    unsigned n_sets = 1u << o->patterns.n, n_in = 0;
    o->n_classes = 0;
    for (unsigned set = 0; set < n_sets; set++) {
        struct ids match = {0};
        bool value = violated && violated->kind != A_NAMES;
        if (!schema_step(o->m) || !match_of(o, set, &match))
            return false;
        if (value && !about_class(o, violated, &match))
            continue;
        uint32_t goal = class_goal(o, &match, value ? violated->value << 1 | 1 : UINT32_MAX);
        if (goal == 0)
            continue;
        gb_node name = class_names(o, &match);
        uint32_t i = 0;
        while (i < o->n_classes && o->class[i].goal != goal)
            i++;
        if (i == o->n_classes)
            o->class[o->n_classes++] = (struct class){GB_NEVER, goal};
        o->class[i].name = gb_alt(o->m->b, (gb_node[]){o->class[i].name, name}, 2);
        n_in++;
    }
    if (n_in == n_sets && o->n_classes == 1 && o->patterns.n) { /* the patterns do not matter */
        struct ids patterns = o->patterns, none = {0};
        o->patterns = none;
        o->class[0].name = class_names(o, &none);
        o->patterns = patterns;
    }
    return schema_ok(o->m);
}

/* What propertyNames demands: all its schemas, and that `violated`'s does not hold. */
static gb_node names_language(struct object *o, const struct assertion *violated)
{
    struct ids all = {0};
    bool never = false;
    for (uint32_t i = 0; i < o->form->n; i++) {
        const struct condition *c = &o->form->at[i];
        const struct assertion *a = &o->m->assertion[c->a];
        if (c->kind == COND_ASSERTION && !c->negated && a->kind == A_NAMES &&
            !goal_add(o->m, &all, a->value << 1, &never))
            return GB_NEVER;
    }
    if (violated && violated->kind == A_NAMES &&
        !goal_add(o->m, &all, violated->value << 1 | 1, &never))
        return GB_NEVER;
    if (never)
        return GB_NEVER;
    return schema_string(o->m, &(struct goal){.at = all.at, .n = all.n});
}

static gb_node further(struct object *o, const struct assertion *violated)
{
    struct grammar_builder *b = o->m->b;
    gb_node any = schema_any_text(o->m), names = names_language(o, violated), part[128];
    uint32_t n = 0;
    static_assert(sizeof part / sizeof *part >= 1 << MAX_CLASS_PATTERNS, "all classes fit");
    if (names == GB_NEVER || !find_classes(o, violated))
        return GB_NEVER;
    for (uint32_t i = 0; i < o->n_classes; i++) {
        gb_node name = o->class[i].name, quote = text(o, "\"");
        if (names != any)
            name = name == any ? names : gb_and(b, name, names);
        if (name == GB_NEVER)
            continue;
        gb_node key = seq(o, (gb_node[]){quote, name, quote}, 3);
        if (o->differ)
            key = gb_item(b, key);
        part[n++] = seq(o, (gb_node[]){key, text(o, ":"), schema_value(o->m, o->class[i].goal)}, 3);
    }
    return gb_alt(b, part, n);
}

/* Of least to most members that follow another one. */
static gb_node more(struct object *o, uint32_t least, uint32_t most)
{
    gb_node x = seq(o, (gb_node[]){text(o, ","), o->extra}, 2);
    return gb_repeat(o->m->b, x, least, most);
}

static gb_node member(struct object *o, uint32_t i, bool first)
{
    const struct schema_markup *markup = o->m->markup;
    uint32_t goal = o->value.at[i];
    if (markup)
        return markup->member(markup->arg, o->m->b, o->m->name[o->order.at[i]],
                              schema_other_than_strings(o->m, goal),
                              schema_plain_strings(o->m, goal));
    gb_node name = schema_text(o->m, o->m->name[o->order.at[i]]);
    return seq(
        o,
        (gb_node[]){text(o, first ? "\"" : ",\""), name, text(o, "\":"), schema_value(o->m, goal)},
        4);
}

/* The further members and loose ones where some of these, a bit each, are there already; comma: a
 * member is. made[] holds what was made of larger sets, with a comma. */
static gb_node with_loose(struct object *o, uint32_t there, bool comma, const gb_node *made)
{
    struct grammar_builder *b = o->m->b;
    uint32_t n = o->order.n - o->n_ordered, k = 0;
    gb_node part[MAX_LOOSE + 2];
    bool ends = true;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t name = o->n_ordered + i;
        if (there >> i & 1 || o->value.at[name] == 0)
            continue;
        ends &= form_has(o->form, o->order.at[name]) <= 0;
        part[k++] = seq(o, (gb_node[]){member(o, name, !comma), made[there | 1u << i]}, 2);
    }
    if (ends)
        part[k++] = GB_EMPTY;
    if (comma)
        return seq(o, (gb_node[]){more(o, 0, GB_UNBOUNDED), gb_alt(b, part, k)}, 2);
    part[k++] = seq(o, (gb_node[]){o->extra, made[there]}, 2);
    return gb_alt(b, part, k);
}

static gb_node loose_tail(struct object *o, bool comma)
{
    gb_node made[1 << MAX_LOOSE];
    for (uint32_t there = 1u << (o->order.n - o->n_ordered); there-- > 0;)
        made[there] = with_loose(o, there, true, made);
    gb_node x = comma ? made[0] : with_loose(o, 0, false, made);
    return o->differ ? gb_unique(o->m->b, x) : x;
}

/* The further members when so many are there; all of them when none is. */
static gb_node tail(struct object *o, uint32_t n)
{
    struct grammar_builder *b = o->m->b;
    uint32_t least = o->least > n ? o->least - n : 0;
    uint32_t most = o->most == UINT32_MAX ? UINT32_MAX : o->most - n;
    gb_node x, comma = text(o, ",");
    if (o->n_ordered < o->order.n)
        return loose_tail(o, n > 0);
    if (o->must != GB_EMPTY) { /* somewhere among them */
        gb_node any = more(o, 0, GB_UNBOUNDED);
        if (n)
            x = seq(o, (gb_node[]){any, comma, o->must, any}, 4);
        else
            x = gb_alt(b,
                       (gb_node[]){seq(o, (gb_node[]){o->must, any}, 2),
                                   seq(o, (gb_node[]){o->extra, any, comma, o->must, any}, 5)},
                       2);
        return gb_unique(b, x);
    }
    if (least > most)
        return GB_NEVER;
    if (n > 0) {
        x = more(o, least, most);
    } else if (most == 0) {
        x = GB_EMPTY;
    } else {
        uint32_t rest = most == UINT32_MAX ? most : most - 1;
        x = seq(o, (gb_node[]){o->extra, more(o, least ? least - 1 : 0, rest)}, 2);
        if (least == 0)
            x = gb_alt(b, (gb_node[]){GB_EMPTY, x}, 2);
    }
    return o->differ ? gb_unique(b, x) : x;
}

/* From the last name to the first: what may come once n members are there, n up to `cap`. */
static gb_node chain(struct object *o, uint32_t cap)
{
    gb_node *after = schema_alloc(o->m, 2 * (cap + (size_t)1) * sizeof *after);
    if (!after)
        return GB_NEVER;
    gb_node *here = after + cap + 1;
    for (uint32_t n = 0; n <= cap; n++)
        after[n] = tail(o, n);
    for (uint32_t i = o->n_ordered; i-- > 0 && schema_ok(o->m);) {
        bool needed = form_has(o->form, o->order.at[i]) > 0;
        bool allowed = o->value.at[i] != 0;
        gb_node comma = allowed ? member(o, i, false) : GB_NEVER;
        for (uint32_t n = 0; n <= cap; n++) {
            gb_node with = GB_NEVER, without = needed ? GB_NEVER : after[n];
            uint32_t next = n < cap ? n + 1 : cap;
            if (allowed && (n < cap || o->most == UINT32_MAX)) {
                gb_node one = n ? comma : member(o, i, true);
                with = seq(o, (gb_node[]){one, after[next]}, 2);
            }
            here[n] = gb_alt(o->m->b, (gb_node[]){with, without}, 2);
        }
        gb_node *t = here;
        here = after;
        after = t;
    }
    return after[0];
}

static uint32_t n_needed(const struct object *o)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->form->n; i++)
        n += o->form->at[i].kind == COND_HAS && !o->form->at[i].negated;
    return n;
}

/* Whether a further member that must violate an assertion may not have this name: it is one that
 * additionalProperties is not about. */
static bool is_spared(const struct object *o, uint32_t name)
{
    for (uint32_t i = 0; i < o->form->n; i++) {
        const struct assertion *a = &o->m->assertion[o->form->at[i].a];
        if (o->form->at[i].kind != COND_EXTRA || a->kind != A_ADDITIONAL)
            continue;
        for (uint32_t k = 0; k < a->n_list; k++)
            if (o->m->list.at[a->list + k] == name)
                return true;
    }
    return false;
}

/* Items whose further members come in another order are alike, but this one comes in its place. */
static bool add_place(struct object *o, uint32_t name)
{
    cJSON text = {.type = cJSON_String, .valuestring = (char *)(uintptr_t)o->m->name[name]};
    const char *spelled = schema_spell(o->m, &text);
    if (spelled)
        gb_placed(o->m->b, spelled, strlen(spelled));
    return spelled;
}

/* Names and the goals of their values. Names that say no more than any other would are let go. */
static bool find_members(struct object *o)
{
    struct ids order = {0};
    uint32_t n_ordered;
    if (!schema_order(o->m, &o->m->goal[o->goal], o->form, &order, &n_ordered))
        return false;
    for (uint32_t i = 0; i < order.n; i++) {
        struct ids all = {0}, match = {0};
        bool never = false;
        if (!form_name(o->m, o->form, order.at[i], &all, &never))
            return false;
        uint32_t goal = never ? 0 : schema_goal(o->m, &all, o->m->goal[o->goal].exact);
        if (i >= n_ordered && goal && form_has(o->form, order.at[i]) == 0 &&
            !is_spared(o, order.at[i])) {
            for (uint32_t k = 0; k < o->patterns.n; k++)
                if (schema_matches(o->m, o->patterns.at[k], o->m->name[order.at[i]]) &&
                    !ids_push(o->m, &match, o->patterns.at[k]))
                    return false;
            if (class_goal(o, &match, UINT32_MAX) == goal)
                continue;
        }
        if (!ids_push(o->m, &o->order, order.at[i]) || !ids_push(o->m, &o->value, goal))
            return false;
        o->n_ordered += i < n_ordered;
        if (i < n_ordered && o->m->goal[o->goal].exact && !add_place(o, order.at[i]))
            return false;
    }
    return schema_ok(o->m);
}

gb_node schema_object(struct schema_maker *m, uint32_t goal, const struct form *form)
{
    struct object o = {.m = m, .goal = goal, .form = form, .most = UINT32_MAX, .must = GB_EMPTY};
    uint32_t n_must = 0, n_allowed = 0, needed = n_needed(&o);
    if (!survey(&o) || !find_members(&o))
        return GB_NEVER;
    for (uint32_t i = 0; i < o.order.n; i++)
        n_allowed += o.value.at[i] != 0;
    for (uint32_t i = 0; i < form->n; i++)
        n_must += form->at[i].kind == COND_EXTRA;
    o.differ = n_must || o.least > needed || m->goal[goal].exact;
    o.extra = m->markup ? GB_NEVER : further(&o, NULL);
    if (o.least <= needed)
        o.least = 0;
    if (o.extra == GB_NEVER && o.most >= n_allowed)
        o.most = UINT32_MAX;
    for (uint32_t i = 0; i < form->n; i++) {
        const struct assertion *a = &m->assertion[form->at[i].a];
        if (form->at[i].kind != COND_EXTRA)
            continue;
        if (n_must > 1 || o.least || o.most != UINT32_MAX) {
            schema_fail(m, a->schema, a->keyword, "that it does not hold cannot be kept here");
            return GB_NEVER;
        }
        o.must = m->markup ? GB_NEVER : further(&o, a);
    }
    bool counts = o.least || o.most != UINT32_MAX;
    if (n_must || counts || o.order.n - o.n_ordered > MAX_LOOSE)
        o.n_ordered = o.order.n;
    uint32_t cap = o.least > 1 ? o.least : 1; /* more need not be told apart */
    if (o.most != UINT32_MAX)
        cap = o.most < o.order.n ? o.most : o.order.n ? o.order.n : 1;
    if ((uint64_t)(o.order.n + 1) * (cap + 1) > MAX_COUNTED) {
        schema_fail(m, m->goal[goal].at[0] >> 1, "minProperties",
                    "counting %u of %u names takes too much", cap, o.order.n);
        return GB_NEVER;
    }
    gb_node body = o.most == 0 ? (needed || o.least ? GB_NEVER : GB_EMPTY) : chain(&o, cap);
    if (m->markup)
        return body;
    return seq(&o, (gb_node[]){text(&o, "{"), body, text(&o, "}")}, 3);
}
