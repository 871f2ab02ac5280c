/* orders.c - an item is like another one whose members stand in another order.
 *
 * Items are told apart by their texts. Members that a schema names come in its order, so their
 * objects have one text; further members come in any. So with each finished item all texts go into
 * the set that say the same: its objects' members in every order, but that those whose names have a
 * place of their own keep it. Two things are not seen: more than MAX_ORDERS texts; and other orders
 * where a further member has a place in another object of the items, but for objects of FEW_MEMBERS
 * as long as the item has no more than FEW_ORDERS texts.
 */
#include "grammar/automaton.h"

#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_ORDERS = 120, FEW_ORDERS = 16, FEW_MEMBERS = 2, MAX_MEMBERS = 64, MAX_DEPTH = 32 };

struct spelling {
    char *s;
    size_t n;
};
struct spellings {
    struct spelling at[MAX_ORDERS];
    uint32_t n;
};

struct reader {
    struct grammar *g;
    const char *p, *end;
    uint32_t most;    /* texts */
    uint32_t members; /* of an object, that no place is kept for */
    bool many;        /* more than that, or no JSON */
};

static void spellings_free(struct spellings *x)
{
    for (uint32_t i = 0; x && i < x->n; i++)
        free(x->at[i].s);
    free(x);
}

static struct spellings *spellings_new(struct reader *r)
{
    struct spellings *x = calloc(1, sizeof *x);
    r->g->failed |= !x;
    return x;
}

/* One more: a and then b. */
static void put(struct reader *r, struct spellings *x, const char *a, size_t n_a, const char *b,
                size_t n_b)
{
    if (x->n == r->most) {
        r->many = true;
        return;
    }
    char *s = malloc(n_a + n_b + 1);
    if (!s) {
        r->g->failed = true;
        return;
    }
    memcpy(s, a, n_a);
    memcpy(s + n_a, b, n_b);
    x->at[x->n++] = (struct spelling){s, n_a + n_b};
}

static bool ok(const struct reader *r)
{
    return !r->many && !r->g->failed;
}

/* Each of x with each of y behind it; takes x. */
static struct spellings *product(struct reader *r, struct spellings *x, const struct spellings *y)
{
    struct spellings *out = ok(r) ? spellings_new(r) : NULL;
    for (uint32_t i = 0; out && i < x->n && ok(r); i++)
        for (uint32_t k = 0; k < y->n && ok(r); k++)
            put(r, out, x->at[i].s, x->at[i].n, y->at[k].s, y->at[k].n);
    spellings_free(x);
    return out;
}

static struct spellings *just(struct reader *r, const char *s, size_t n)
{
    struct spellings *x = spellings_new(r);
    if (x)
        put(r, x, s, n, "", 0);
    return x;
}

/* x and then these bytes; takes x. */
static struct spellings *then(struct reader *r, struct spellings *x, const char *s, size_t n)
{
    struct spellings *y = x ? just(r, s, n) : NULL;
    x = y ? product(r, x, y) : x;
    spellings_free(y);
    return x;
}

static const char *scalar_end(const struct reader *r)
{
    const char *p = r->p;
    if (p < r->end && *p == '"') {
        for (p++; p < r->end && *p != '"'; p++)
            p += *p == '\\';
        return p < r->end ? p + 1 : r->end;
    }
    while (p < r->end && !strchr(",:]}", *p))
        p++;
    return p;
}

static int by_value(const void *x, const void *y)
{
    uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return (a > b) - (a < b);
}

void orders_sort(struct grammar *g)
{
    qsort(g->placed, g->n_placed, sizeof *g->placed, by_value);
}

/* Whether the name, in quotes, is one that some object has a place for. */
static bool has_place(const struct grammar *g, const char *name, size_t n)
{
    uint64_t hash = hash_bytes(0, name, n);
    return bsearch(&hash, g->placed, g->n_placed, sizeof hash, by_value);
}

struct member {
    struct spellings *x; /* name and value */
    bool placed, used;
};

/* What stands so far and then the members that are left, in every order that may be. */
static void arrange(struct reader *r, struct member *m, uint32_t n, uint32_t left,
                    struct spellings *so_far, struct spellings *out)
{
    if (left == 0) {
        for (uint32_t i = 0; i < so_far->n && ok(r); i++)
            put(r, out, so_far->at[i].s, so_far->at[i].n, "}", 1);
        return;
    }
    uint32_t first = 0; /* those with places come before all others */
    while (first < n && (m[first].used || !m[first].placed))
        first++;
    for (uint32_t i = 0; i < n && ok(r); i++) {
        if (m[i].used || (first < n && i != first))
            continue;
        m[i].used = true;
        struct spellings *x = just(r, left == n ? "{" : ",", 1), *all = NULL;
        x = x ? product(r, x, m[i].x) : NULL;
        if (x && (all = spellings_new(r))) {
            for (uint32_t k = 0; k < so_far->n && ok(r); k++)
                put(r, all, so_far->at[k].s, so_far->at[k].n, "", 0);
            all = product(r, all, x);
        }
        if (all)
            arrange(r, m, n, left - 1, all, out);
        spellings_free(all);
        spellings_free(x);
        m[i].used = false;
    }
}

static struct spellings *value(struct reader *r, unsigned depth);

static struct spellings *object(struct reader *r, unsigned depth)
{
    struct member m[MAX_MEMBERS];
    struct spellings *out = spellings_new(r), *none = just(r, "", 0);
    uint32_t n = 0;
    while (ok(r) && r->p < r->end && *r->p != '}') {
        r->p++; /* { or , */
        if (*r->p == '}')
            break;
        const char *name = r->p, *end = scalar_end(r);
        if (end >= r->end || *end != ':' || n == MAX_MEMBERS) {
            r->many = true;
            break;
        }
        r->p = end + 1;
        struct spellings *v = value(r, depth);
        struct spellings *key = v ? just(r, name, (size_t)(end + 1 - name)) : NULL;
        m[n] = (struct member){.x = key ? product(r, key, v) : NULL,
                               .placed = has_place(r->g, name, (size_t)(end - name))};
        spellings_free(v);
        if (!m[n].x) {
            r->many |= ok(r);
            break;
        }
        n++;
    }
    for (uint32_t i = 0; i < n && n <= r->members; i++)
        m[i].placed = false;
    r->p++;
    if (ok(r) && out && none && n)
        arrange(r, m, n, n, none, out);
    else if (ok(r) && out)
        put(r, out, "{}", 2, "", 0);
    for (uint32_t i = 0; i < n; i++)
        spellings_free(m[i].x);
    spellings_free(none);
    return out;
}

static struct spellings *array(struct reader *r, unsigned depth)
{
    struct spellings *out = just(r, "", 0);
    while (ok(r) && out && r->p < r->end && *r->p != ']') {
        out = then(r, out, r->p++, 1); /* [ or , */
        if (r->p < r->end && *r->p == ']')
            break;
        struct spellings *v = out ? value(r, depth) : NULL;
        out = v ? product(r, out, v) : out;
        spellings_free(v);
    }
    r->p++;
    return out ? then(r, out, "]", 1) : NULL;
}

static struct spellings *value(struct reader *r, unsigned depth)
{
    if (depth == 0 || r->p >= r->end) {
        r->many = true;
        return NULL;
    }
    if (*r->p == '{')
        return object(r, depth - 1);
    if (*r->p == '[')
        return array(r, depth - 1);
    const char *from = r->p;
    r->p = scalar_end(r);
    r->many |= r->p == from;
    return just(r, from, (size_t)(r->p - from));
}

uint32_t orders_add(struct grammar *g, uint32_t set, uint32_t string, const unsigned char *text,
                    size_t bytes)
{
    if (bytes < 2 || (text[0] != '{' && text[0] != '[') || !memchr(text, '{', bytes))
        return set;
    struct reader r = {.g = g,
                       .p = (const char *)text,
                       .end = (const char *)text + bytes,
                       .most = FEW_ORDERS,
                       .members = FEW_MEMBERS};
    struct spellings *x = value(&r, MAX_DEPTH);
    if (r.many) {
        spellings_free(x);
        r = (struct reader){.g = g, .p = (const char *)text, .end = r.end, .most = MAX_ORDERS};
        x = value(&r, MAX_DEPTH);
    }
    for (uint32_t i = 0; x && i < x->n && ok(&r); i++) {
        uint32_t other = 0;
        for (size_t k = 0; k < x->at[i].n; k++)
            other = scope_string(g, other, (unsigned char)x->at[i].s[k]);
        if (other != string && !g->failed)
            set = scope_set(g, set, other);
    }
    spellings_free(x);
    return set;
}
