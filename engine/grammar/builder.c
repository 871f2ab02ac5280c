#include "grammar/builder_nodes.h"

#include "base/fault.h"
#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_TABLE = 1024, MAX_POOL = 1u << 28, FLATTEN_PARTS = 16 };

enum err_code gb_error(const struct grammar_builder *b, struct err *e)
{
    if (b->err.code != ERR_OK)
        *e = b->err;
    return b->err.code;
}

gb_node gb_fail(struct grammar_builder *b, enum err_code code, const char *what)
{
    if (b->err.code == ERR_OK)
        err_set(&b->err, code, "%s", what);
    return GB_NEVER;
}

/* Room for n more elements in one of the pools. */
static bool pool_reserve(struct grammar_builder *b, void **pool, uint32_t used, uint32_t *max,
                         size_t n, size_t element_bytes)
{
    if (n <= *max - used)
        return true;
    if (n > MAX_POOL - used) {
        gb_fail(b, ERR_INVALID, "the grammar is too large");
        return false;
    }
    uint32_t want = *max * 2 > used + (uint32_t)n ? *max * 2 : used + (uint32_t)n + 64;
    void *p = FAULT("grammar.builder") ? NULL : realloc(*pool, want * element_bytes);
    if (!p) {
        gb_fail(b, ERR_NOMEM, "no memory for a grammar");
        return false;
    }
    *pool = p;
    *max = want;
    return true;
}

/* What a node says, so that equal ones can be found: pools are compared by content. */
static uint64_t node_hash(const struct grammar_builder *b, const struct gb_node_data *n)
{
    uint64_t h = hash_mix(n->kind + 1);
    switch (n->kind) {
    case NODE_BYTES:
        return hash_bytes(h, b->text + n->a, n->b);
    case NODE_SET:
        return hash_bytes(h, &b->set[n->a], sizeof b->set[0]);
    case NODE_SEQ:
    case NODE_ALT:
        return hash_bytes(h, b->part + n->a, n->b * sizeof b->part[0]);
    default:
        return hash_mix(h ^ n->a ^ hash_mix(n->b + 0x51ed27u) ^ hash_mix(n->c + 0x9e3779b9u));
    }
}

static bool node_same(const struct grammar_builder *b, const struct gb_node_data *x,
                      const struct gb_node_data *y)
{
    if (x->kind != y->kind || (x->b != y->b && x->kind != NODE_SET))
        return false;
    switch (x->kind) {
    case NODE_BYTES:
        return memcmp(b->text + x->a, b->text + y->a, x->b) == 0;
    case NODE_SET:
        return memcmp(&b->set[x->a], &b->set[y->a], sizeof b->set[0]) == 0;
    case NODE_SEQ:
    case NODE_ALT:
        return memcmp(b->part + x->a, b->part + y->a, x->b * sizeof b->part[0]) == 0;
    default:
        return x->a == y->a && x->c == y->c;
    }
}

static bool table_grow(struct grammar_builder *b)
{
    uint32_t n = b->n_table ? b->n_table * 2 : FIRST_TABLE;
    uint32_t *t = FAULT("grammar.builder") ? NULL : calloc(n, sizeof *t);
    if (!t) {
        gb_fail(b, ERR_NOMEM, "no memory for a grammar");
        return false;
    }
    for (uint32_t i = 0; i < b->n_nodes; i++) {
        if (b->node[i].kind == NODE_RULE)
            continue; /* each rule is itself alone */
        uint32_t at = (uint32_t)node_hash(b, &b->node[i]) & (n - 1);
        while (t[at])
            at = (at + 1) & (n - 1);
        t[at] = i + 1;
    }
    free(b->table);
    b->table = t;
    b->n_table = n;
    return true;
}

static gb_node node_append(struct grammar_builder *b, const struct gb_node_data *n)
{
    if (b->n_nodes >= GB_MAX_NODES)
        return gb_fail(b, ERR_INVALID, "the grammar has more than 4194304 parts");
    if (!pool_reserve(b, (void **)&b->node, b->n_nodes, &b->max_nodes, 1, sizeof b->node[0]))
        return GB_NEVER;
    b->node[b->n_nodes] = *n;
    return b->n_nodes++;
}

/* The node that says the same, or a new one. *was_new tells whether the pools keep what n names. */
static gb_node node_find(struct grammar_builder *b, const struct gb_node_data *n, bool *was_new)
{
    *was_new = false;
    if (b->err.code != ERR_OK)
        return GB_NEVER;
    if (b->n_nodes * 2 >= b->n_table && !table_grow(b))
        return GB_NEVER;
    uint32_t at = (uint32_t)node_hash(b, n) & (b->n_table - 1);
    for (; b->table[at]; at = (at + 1) & (b->n_table - 1))
        if (node_same(b, &b->node[b->table[at] - 1], n))
            return b->table[at] - 1;
    gb_node id = node_append(b, n);
    if (b->err.code != ERR_OK)
        return GB_NEVER;
    b->table[at] = id + 1;
    *was_new = true;
    return id;
}

enum err_code gb_open(struct grammar_builder **out, struct err *e)
{
    struct grammar_builder *b = FAULT("grammar.builder") ? NULL : calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ERR_NOMEM, "no memory for a grammar");
    bool was_new;
    gb_node never = node_find(b, &(struct gb_node_data){.kind = NODE_NEVER}, &was_new);
    gb_node empty = node_find(b, &(struct gb_node_data){.kind = NODE_EMPTY}, &was_new);
    if (gb_error(b, e) != ERR_OK) {
        gb_close(b);
        return e->code;
    }
    assert(never == GB_NEVER);
    assert(empty == GB_EMPTY);
    *out = b;
    return ERR_OK;
}

void gb_close(struct grammar_builder *b)
{
    if (!b)
        return;
    free(b->node);
    free(b->part);
    free(b->text);
    free(b->set);
    free(b->placed);
    free(b->table);
    free(b);
}

gb_node gb_bytes(struct grammar_builder *b, const char *s, size_t bytes)
{
    if (bytes == 0)
        return GB_EMPTY;
    if (b->err.code != ERR_OK ||
        !pool_reserve(b, (void **)&b->text, b->n_text, &b->max_text, bytes, 1))
        return GB_NEVER;
    memcpy(b->text + b->n_text, s, bytes);
    struct gb_node_data n = {.kind = NODE_BYTES, .a = b->n_text, .b = (uint32_t)bytes};
    bool was_new;
    gb_node id = node_find(b, &n, &was_new);
    if (was_new)
        b->n_text += (uint32_t)bytes;
    return id;
}

gb_node gb_byte_set(struct grammar_builder *b, const uint64_t set[4])
{
    struct byte_set s;
    memcpy(&s, set, sizeof s);
    int count = 0, last = 0;
    for (int i = 0; i < 4; i++) {
        count += __builtin_popcountll(s.w[i]);
        if (s.w[i])
            last = 64 * i + 63 - __builtin_clzll(s.w[i]);
    }
    if (count == 0)
        return GB_NEVER;
    if (count == 1)
        return gb_bytes(b, &(char){(char)last}, 1);
    if (b->err.code != ERR_OK ||
        !pool_reserve(b, (void **)&b->set, b->n_sets, &b->max_sets, 1, sizeof s))
        return GB_NEVER;
    b->set[b->n_sets] = s;
    bool was_new;
    gb_node id = node_find(b, &(struct gb_node_data){.kind = NODE_SET, .a = b->n_sets}, &was_new);
    if (was_new)
        b->n_sets++;
    return id;
}

static gb_node byte_range(struct grammar_builder *b, unsigned lo, unsigned hi)
{
    struct byte_set s = {{0}};
    for (unsigned i = lo; i <= hi; i++)
        byte_set_add(&s, i);
    return gb_byte_set(b, s.w);
}

static unsigned utf8_encode(uint32_t c, unsigned char out[4])
{
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    unsigned n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (unsigned i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (unsigned char)(0x80 | (c & 0x3F));
    out[0] = (unsigned char)(lead[n] | c);
    return n;
}

enum { MAX_RANGES = 64 }; /* of bytes, in one range of characters: at most 2 * 3 + 1 per length */

/* Byte sequences of the characters [lo, hi], all of one encoded length: where the continuation
 * bytes of both ends do not span their whole range, the range is cut. */
static void utf8_ranges(struct grammar_builder *b, uint32_t lo, uint32_t hi, gb_node *out,
                        size_t *n_out)
{
    for (unsigned cont = 1; cont < 4; cont++) {
        uint32_t low = (1u << 6 * cont) - 1;
        if ((lo & ~low) == (hi & ~low))
            break;
        if (lo & low) {
            utf8_ranges(b, lo, lo | low, out, n_out);
            utf8_ranges(b, (lo | low) + 1, hi, out, n_out);
            return;
        }
        if ((hi & low) != low) {
            utf8_ranges(b, lo, (hi & ~low) - 1, out, n_out);
            utf8_ranges(b, hi & ~low, hi, out, n_out);
            return;
        }
    }
    unsigned char from[4], to[4];
    unsigned n = utf8_encode(lo, from);
    utf8_encode(hi, to);
    gb_node part[4];
    for (unsigned i = 0; i < n; i++)
        part[i] = byte_range(b, from[i], to[i]);
    assert(*n_out < MAX_RANGES);
    out[(*n_out)++] = gb_seq(b, part, n);
}

gb_node gb_code_points(struct grammar_builder *b, uint32_t lo, uint32_t hi)
{
    static const uint32_t cut[][2] = {
        {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}};
    gb_node part[MAX_RANGES];
    size_t n = 0;
    for (size_t i = 0; i < sizeof cut / sizeof cut[0]; i++) {
        uint32_t from = lo > cut[i][0] ? lo : cut[i][0];
        uint32_t to = hi < cut[i][1] ? hi : cut[i][1];
        if (from <= to)
            utf8_ranges(b, from, to, part, &n);
    }
    return gb_alt(b, part, n);
}

static uint8_t flags_of(const struct grammar_builder *b, gb_node x)
{
    return b->node[x].flags & (NODE_HAS_RULE | NODE_HAS_SCOPE);
}

/* Puts the n parts that lie at the end of the part pool into a node of their own. */
static gb_node list_node(struct grammar_builder *b, enum gb_kind kind, uint32_t n)
{
    struct gb_node_data d = {.kind = (uint8_t)kind, .a = b->n_parts, .b = n};
    for (uint32_t i = 0; i < n; i++)
        d.flags |= flags_of(b, b->part[b->n_parts + i]);
    bool was_new;
    gb_node id = node_find(b, &d, &was_new);
    if (was_new)
        b->n_parts += n;
    return id;
}

/* Two byte strings as one. */
static gb_node join_bytes(struct grammar_builder *b, gb_node x, gb_node y)
{
    uint32_t n = b->node[x].b, m = b->node[y].b;
    if (!pool_reserve(b, (void **)&b->text, b->n_text, &b->max_text, (size_t)n + m, 1))
        return GB_NEVER;
    char *to = b->text + b->n_text;
    memcpy(to, b->text + b->node[x].a, n);
    memcpy(to + n, b->text + b->node[y].a, m);
    bool was_new;
    struct gb_node_data d = {.kind = NODE_BYTES, .a = b->n_text, .b = n + m};
    gb_node id = node_find(b, &d, &was_new);
    if (was_new)
        b->n_text += n + m;
    return id;
}

gb_node gb_seq(struct grammar_builder *b, const gb_node *part, size_t n)
{
    if (n == 0)
        return GB_EMPTY;
    if (b->err.code != ERR_OK ||
        !pool_reserve(b, (void **)&b->part, b->n_parts, &b->max_parts, n, sizeof b->part[0]))
        return GB_NEVER;
    uint32_t k = 0, *to = b->part + b->n_parts;
    for (size_t i = 0; i < n; i++) {
        gb_node x = part[i];
        assert(x < b->n_nodes);
        if (x == GB_NEVER)
            return GB_NEVER;
        if (x == GB_EMPTY)
            continue;
        if (k > 0 && b->node[x].kind == NODE_BYTES && b->node[to[k - 1]].kind == NODE_BYTES)
            to[k - 1] = join_bytes(b, to[k - 1], x);
        else
            to[k++] = x;
    }
    if (k < 2)
        return k == 0 ? GB_EMPTY : to[0];
    return list_node(b, NODE_SEQ, k);
}

static int by_number(const void *x, const void *y)
{
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return (a > b) - (a < b);
}

gb_node gb_alt(struct grammar_builder *b, const gb_node *part, size_t n)
{
    size_t room = n + 1;
    for (size_t i = 0; i < n; i++)
        if (b->node[part[i]].kind == NODE_ALT && b->node[part[i]].b <= FLATTEN_PARTS)
            room += b->node[part[i]].b;
    if (b->err.code != ERR_OK ||
        !pool_reserve(b, (void **)&b->part, b->n_parts, &b->max_parts, room, sizeof b->part[0]))
        return GB_NEVER;
    uint32_t k = 0, *to = b->part + b->n_parts;
    for (size_t i = 0; i < n; i++) {
        const struct gb_node_data *d = &b->node[part[i]];
        if (d->kind == NODE_ALT && d->b <= FLATTEN_PARTS) {
            memcpy(to + k, b->part + d->a, d->b * sizeof *to);
            k += d->b;
        } else if (part[i] != GB_NEVER) {
            to[k++] = part[i];
        }
    }
    struct byte_set set = {{0}}; /* alternatives of one byte become one set */
    uint32_t kept = 0, n_single = 0;
    for (uint32_t i = 0; i < k; i++) {
        const struct gb_node_data *d = &b->node[to[i]];
        if (d->kind == NODE_SET) {
            for (unsigned w = 0; w < 4; w++)
                set.w[w] |= b->set[d->a].w[w];
            n_single++;
        } else if (d->kind == NODE_BYTES && d->b == 1) {
            byte_set_add(&set, (unsigned char)b->text[d->a]);
            n_single++;
        } else {
            to[kept++] = to[i];
        }
    }
    if (n_single)
        to[kept++] = gb_byte_set(b, set.w);
    if (kept > 1)
        qsort(to, kept, sizeof *to, by_number);
    k = 0;
    for (uint32_t i = 0; i < kept; i++)
        if (k == 0 || to[i] != to[k - 1])
            to[k++] = to[i];
    if (k < 2)
        return k == 0 ? GB_NEVER : to[0];
    return list_node(b, NODE_ALT, k);
}

static gb_node composed(struct grammar_builder *b, enum gb_kind kind, uint32_t x, uint32_t y,
                        uint32_t z, uint8_t flags)
{
    bool was_new;
    struct gb_node_data d = {.kind = (uint8_t)kind, .a = x, .b = y, .c = z, .flags = flags};
    return node_find(b, &d, &was_new);
}

gb_node gb_repeat(struct grammar_builder *b, gb_node x, uint32_t min, uint32_t max)
{
    if (min > max)
        return gb_fail(b, ERR_INVALID, "a repetition whose minimum is above its maximum");
    assert(x < b->n_nodes);
    if (max == 0 || x == GB_EMPTY)
        return GB_EMPTY;
    if (x == GB_NEVER)
        return min == 0 && b->err.code == ERR_OK ? GB_EMPTY : GB_NEVER;
    if (min == 1 && max == 1)
        return x;
    const struct gb_node_data *d = &b->node[x];
    if (d->kind == NODE_REPEAT && d->b <= 1 && d->c == GB_UNBOUNDED)
        return min == 0 && d->b == 1 ? gb_repeat(b, d->a, 0, GB_UNBOUNDED)
               : d->b == 0           ? x
                                     : gb_repeat(b, d->a, min, GB_UNBOUNDED);
    return composed(b, NODE_REPEAT, x, min, max, flags_of(b, x));
}

enum { UNSEEN, OPEN, CLEAN }; /* marks of a search through the graph */

/* Whether the search from x, over rules too, meets itself, a scope or an undefined rule. Goes deep
 * on a stack of its own: a graph may be as deep as it is large. */
static bool search_regular(struct grammar_builder *b, gb_node x, uint8_t *mark, uint32_t *stack)
{
    uint32_t n = 0;
    stack[n++] = x;
    while (n > 0) {
        gb_node at = stack[n - 1];
        const struct gb_node_data *d = &b->node[at];
        if (mark[at] != UNSEEN) { /* its parts are done, or it was reached twice */
            mark[at] = CLEAN;
            b->node[at].flags |= NODE_KNOWN_REGULAR;
            n--;
            continue;
        }
        mark[at] = OPEN;
        if (d->flags & NODE_HAS_SCOPE)
            return false;
        const uint32_t *part = &d->a;
        uint32_t n_part = 1;
        if (d->kind == NODE_SEQ || d->kind == NODE_ALT) {
            part = b->part + d->a;
            n_part = d->b;
        } else if (d->kind == NODE_AND || d->kind == NODE_MINUS) {
            n_part = 2; /* a and b lie side by side */
        } else if (d->kind == NODE_RULE && d->a == NODE_UNDEFINED) {
            return false;
        } else if (d->kind < NODE_REPEAT) {
            n_part = 0;
        }
        for (uint32_t i = 0; i < n_part; i++) {
            if (mark[part[i]] == OPEN)
                return false;
            if (mark[part[i]] == UNSEEN && b->node[part[i]].flags & NODE_HAS_RULE &&
                !(b->node[part[i]].flags & NODE_KNOWN_REGULAR))
                stack[n++] = part[i];
            else if (b->node[part[i]].flags & NODE_HAS_SCOPE)
                return false;
        }
    }
    return true;
}

bool gb_is_regular(const struct grammar_builder *b, gb_node x)
{
    struct grammar_builder *w = (struct grammar_builder *)b; /* marks what it learns */
    uint8_t flags = b->node[x].flags;
    if (b->err.code != ERR_OK || flags & NODE_HAS_SCOPE)
        return false;
    if (!(flags & NODE_HAS_RULE) || flags & NODE_KNOWN_REGULAR)
        return true;
    uint8_t *mark = FAULT("grammar.builder") ? NULL : calloc(b->n_nodes, 1);
    /* A node is pushed at most once per mention. */
    uint32_t *stack = malloc(((size_t)b->n_parts + 2 * (size_t)b->n_nodes + 1) * sizeof *stack);
    bool regular = false;
    if (!mark || !stack)
        gb_fail(w, ERR_NOMEM, "no memory for a grammar");
    else
        regular = search_regular(w, x, mark, stack);
    free(mark);
    free(stack);
    return regular;
}

static gb_node regular_pair(struct grammar_builder *b, enum gb_kind kind, gb_node x, gb_node y)
{
    if (b->err.code != ERR_OK)
        return GB_NEVER;
    if (!gb_is_regular(b, x) || !gb_is_regular(b, y))
        return gb_fail(b, ERR_INVALID, "an intersection or difference of languages that nest");
    return composed(b, kind, x, y, 0, flags_of(b, x) | flags_of(b, y));
}

static bool is_kind(const struct grammar_builder *b, gb_node x, enum gb_kind kind)
{
    return b->node[x].kind == kind;
}

static bool ends_in_length(const struct grammar_builder *b, gb_node x)
{
    return is_kind(b, x, NODE_AND) && is_kind(b, b->node[x].b, NODE_REPEAT);
}

/* A repetition, which is often there for its bounds of length alone, goes to the right and to the
 * outside, where masks look for it (mask.c). */
gb_node gb_and(struct grammar_builder *b, gb_node x, gb_node y)
{
    if (x == GB_NEVER || y == GB_NEVER)
        return GB_NEVER;
    if (x == y)
        return x;
    bool x_length = is_kind(b, x, NODE_REPEAT), y_length = is_kind(b, y, NODE_REPEAT);
    if (x_length && !y_length)
        return gb_and(b, y, x);
    if (!y_length && ends_in_length(b, x)) {
        struct gb_node_data d = b->node[x];
        return gb_and(b, gb_and(b, d.a, y), d.b);
    }
    if (!x_length && ends_in_length(b, y)) {
        struct gb_node_data d = b->node[y];
        return gb_and(b, gb_and(b, x, d.a), d.b);
    }
    bool swap = x > y && x_length == y_length;
    return swap ? regular_pair(b, NODE_AND, y, x) : regular_pair(b, NODE_AND, x, y);
}

gb_node gb_minus(struct grammar_builder *b, gb_node x, gb_node y)
{
    if (x == GB_NEVER || y == GB_NEVER)
        return x;
    if (x == y && gb_is_regular(b, x))
        return GB_NEVER;
    return regular_pair(b, NODE_MINUS, x, y);
}

gb_node gb_minus_keeping_length(struct grammar_builder *b, gb_node x, gb_node y)
{
    enum { NARROW = 8 };
    struct gb_node_data d = b->node[x];
    if (ends_in_length(b, x))
        return gb_and(b, gb_minus_keeping_length(b, d.a, y), d.b);
    if (d.kind == NODE_REPEAT && d.c != GB_UNBOUNDED && d.c - d.b > NARROW)
        return gb_and(b, gb_minus(b, gb_repeat(b, d.a, 0, GB_UNBOUNDED), y), x);
    return gb_minus(b, x, y);
}

gb_node gb_not(struct grammar_builder *b, gb_node x)
{
    return gb_minus(b, gb_repeat(b, byte_range(b, 0, 255), 0, GB_UNBOUNDED), x);
}

gb_node gb_rule(struct grammar_builder *b, const char *name)
{
    size_t n = strlen(name);
    if (b->err.code != ERR_OK || !pool_reserve(b, (void **)&b->text, b->n_text, &b->max_text, n, 1))
        return GB_NEVER;
    memcpy(b->text + b->n_text, name, n);
    gb_node id = node_append(b, &(struct gb_node_data){.kind = NODE_RULE,
                                                       .flags = NODE_HAS_RULE,
                                                       .a = NODE_UNDEFINED,
                                                       .b = b->n_text,
                                                       .c = (uint32_t)n});
    b->n_text += (uint32_t)n;
    return id;
}

void gb_define(struct grammar_builder *b, gb_node rule, gb_node body)
{
    if (b->err.code != ERR_OK)
        return;
    struct gb_node_data *d = &b->node[rule];
    assert(d->kind == NODE_RULE);
    assert(d->a == NODE_UNDEFINED);
    assert(body < b->n_nodes);
    d->a = body;
}

gb_node gb_unique(struct grammar_builder *b, gb_node body)
{
    if (body == GB_NEVER || b->err.code != ERR_OK)
        return GB_NEVER;
    return composed(b, NODE_UNIQUE, body, 0, 0, flags_of(b, body) | NODE_HAS_SCOPE);
}

gb_node gb_item(struct grammar_builder *b, gb_node x)
{
    if (x == GB_NEVER || b->err.code != ERR_OK)
        return GB_NEVER;
    return composed(b, NODE_ITEM, x, 0, 0, flags_of(b, x) | NODE_HAS_SCOPE);
}

void gb_placed(struct grammar_builder *b, const char *name, size_t bytes)
{
    if (b->err.code == ERR_OK &&
        pool_reserve(b, (void **)&b->placed, b->n_placed, &b->max_placed, 1, sizeof *b->placed))
        b->placed[b->n_placed++] = hash_bytes(0, name, bytes);
}
