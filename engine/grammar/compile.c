#include "grammar/automaton.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

static void *copy(const void *p, size_t bytes)
{
    void *q = FAULT("grammar.compile") ? NULL : malloc(bytes + 1);
    if (q && bytes)
        memcpy(q, p, bytes);
    return q;
}

/* The parts a node is made of. */
static uint32_t parts_of(const struct grammar *g, gb_node x, const uint32_t **part)
{
    static_assert(offsetof(struct gb_node_data, b) == offsetof(struct gb_node_data, a) + 4,
                  "a pair's a and b are a list of two");
    const struct gb_node_data *d = &g->node[x];
    *part = &d->a;
    switch ((enum gb_kind)d->kind) {
    case NODE_NEVER:
    case NODE_EMPTY:
    case NODE_BYTES:
    case NODE_SET:
        return 0;
    case NODE_SEQ:
    case NODE_ALT:
        *part = g->part + d->a;
        return d->b;
    case NODE_AND:
    case NODE_MINUS:
        return 2;
    case NODE_RULE:
        return d->a == NODE_UNDEFINED ? 0 : 1;
    case NODE_REPEAT:
    case NODE_UNIQUE:
    case NODE_ITEM:
        return 1;
    }
    return 0;
}

struct visit {
    gb_node x;
    uint32_t i; /* the part to go to next */
};

/* All nodes under root, each after its parts except where rules go round. */
static enum err_code postorder(struct grammar *g, gb_node root, struct vec *order, struct err *e)
{
    struct visit *stack = malloc(((size_t)g->n_nodes + 1) * sizeof *stack);
    order->at = malloc(((size_t)g->n_nodes + 1) * sizeof *order->at);
    if (!stack || !order->at) {
        free(stack);
        return err_set(e, ERR_NOMEM, "no memory for a grammar of %u parts", g->n_nodes);
    }
    uint32_t n = 0;
    g->known[root] |= REACHED;
    stack[n++] = (struct visit){root, 0};
    const struct gb_node_data *undefined = NULL;
    while (n > 0) {
        struct visit *v = &stack[n - 1];
        const uint32_t *part;
        uint32_t n_part = parts_of(g, v->x, &part);
        if (g->node[v->x].kind == NODE_RULE && n_part == 0)
            undefined = &g->node[v->x];
        if (v->i == n_part) {
            order->at[order->n++] = v->x;
            n--;
            continue;
        }
        gb_node y = part[v->i++];
        if (g->known[y] & REACHED)
            continue;
        g->known[y] |= REACHED;
        stack[n++] = (struct visit){y, 0};
    }
    free(stack);
    if (undefined)
        return err_set(e, ERR_INVALID, "rule '%.*s' is used but not defined",
                       (int)(undefined->c < 100 ? undefined->c : 100), g->text + undefined->b);
    return ERR_OK;
}

/* What is known of x once its parts are. */
static uint8_t judge(struct grammar *g, gb_node x)
{
    const struct gb_node_data *d = &g->node[x];
    const uint32_t *part;
    uint32_t n = parts_of(g, x, &part);
    uint8_t all = PRODUCTIVE | NULLABLE, any = 0;
    for (uint32_t i = 0; i < n; i++) {
        all &= g->known[part[i]];
        any |= g->known[part[i]];
    }
    switch ((enum gb_kind)d->kind) {
    case NODE_NEVER:
        return 0;
    case NODE_EMPTY:
        return PRODUCTIVE | NULLABLE;
    case NODE_BYTES:
    case NODE_SET:
        return PRODUCTIVE;
    case NODE_SEQ:
    case NODE_RULE:
    case NODE_ITEM:
        return all;
    case NODE_UNIQUE: /* more items demanded than there are: none */
        if (g->few[d->a] != GB_NEVER && g->few[d->a] != SEVERAL &&
            g->demand[d->a] > g->supply[g->few[d->a]])
            return 0;
        return all;
    case NODE_ALT:
        return any & (PRODUCTIVE | NULLABLE);
    case NODE_REPEAT:
        return d->b == 0 ? PRODUCTIVE | NULLABLE : all;
    case NODE_AND:
    case NODE_MINUS:
        break;
    }
    g->start_a[x] = automaton_start(g, d->a);
    g->start_b[x] = automaton_start(g, d->b);
    if (!automaton_pair_live(g, x))
        return 0;
    bool ends = automaton_pair_ends(g, x, g->start_a[x], g->start_b[x]);
    return ends ? PRODUCTIVE | NULLABLE : PRODUCTIVE;
}

enum { LONG = 255, MAX_LEXEME_BYTES = 16, MAX_CLASS_BYTES = 6 };

/* An upper bound of the bytes of x's longest match, up to LONG; parts' bounds are known, but for
 * rules that go round, which are LONG. */
static uint8_t longest(const struct grammar *g, const uint8_t *bound, gb_node x)
{
    const struct gb_node_data *d = &g->node[x];
    const uint32_t *part;
    uint32_t n = parts_of(g, x, &part);
    uint64_t sum = 0, max = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += bound[part[i]];
        if (bound[part[i]] > max)
            max = bound[part[i]];
    }
    uint64_t out = max;
    switch ((enum gb_kind)d->kind) {
    case NODE_NEVER:
    case NODE_EMPTY:
        return 0;
    case NODE_BYTES:
        out = d->b;
        break;
    case NODE_SET:
        return 1;
    case NODE_SEQ:
        out = sum;
        break;
    case NODE_REPEAT:
        out = max == LONG ? LONG : max * d->c;
        break;
    case NODE_AND:
        out = bound[d->a] < bound[d->b] ? bound[d->a] : bound[d->b];
        break;
    case NODE_MINUS:
        out = bound[d->a];
        break;
    case NODE_UNIQUE:
    case NODE_ITEM:
        return LONG; /* no lexeme */
    case NODE_ALT:
    case NODE_RULE:
        break;
    }
    return out < LONG ? (uint8_t)out : LONG;
}

/* A lower bound of the bytes of x's shortest match, up to LONG; 0 for rules that go round. */
static uint8_t shortest(const struct grammar *g, gb_node x)
{
    const struct gb_node_data *d = &g->node[x];
    const uint32_t *part;
    uint32_t n = parts_of(g, x, &part);
    uint64_t sum = 0, min = LONG;
    for (uint32_t i = 0; i < n; i++) {
        sum += g->least[part[i]];
        min = g->least[part[i]] < min ? g->least[part[i]] : min;
    }
    switch ((enum gb_kind)d->kind) {
    case NODE_NEVER:
    case NODE_EMPTY:
        return 0;
    case NODE_SET:
        return 1;
    case NODE_BYTES:
        min = d->b;
        break;
    case NODE_SEQ:
        min = sum;
        break;
    case NODE_REPEAT:
        min *= d->b;
        break;
    case NODE_MINUS:
        min = g->least[d->a];
        break;
    case NODE_AND:
    case NODE_UNIQUE:
    case NODE_ITEM:
    case NODE_ALT:
    case NODE_RULE:
        break;
    }
    return min < LONG ? (uint8_t)min : LONG;
}

/* A class of characters of several bytes: an alternative that is no list of words. */
static bool is_class(const struct grammar *g, const uint8_t *bound, gb_node x)
{
    const struct gb_node_data *d = &g->node[x];
    if (d->kind != NODE_ALT || bound[x] > MAX_CLASS_BYTES)
        return false;
    for (uint32_t i = 0; i < d->b; i++)
        if (g->node[g->part[d->a + i]].kind == NODE_SET ||
            g->node[g->part[d->a + i]].kind == NODE_SEQ)
            return true;
    return false;
}

/* What compiling learns of each node on its way, for a while. */
struct learnt {
    uint8_t *bound; /* of bytes */
    bool *tried;    /* whether it is a lexeme */
    const struct lexeme **lexeme;
};

/* Whether x is a class or goes round in one: then one cell will do for it. Its parts are judged. */
static void find_lexeme(struct grammar *g, gb_node x, struct learnt *l)
{
    gb_node body = x;
    l->bound[x] = longest(g, l->bound, x);
    g->least[x] = shortest(g, x);
    if (!(g->known[x] & PRODUCTIVE) || g->node[x].flags & NODE_HAS_SCOPE)
        return;
    if (g->node[x].kind == NODE_REPEAT)
        body = g->node[x].a;
    else if (!is_class(g, l->bound, x))
        return;
    if (l->bound[body] > MAX_LEXEME_BYTES || !(g->known[body] & PRODUCTIVE) ||
        g->known[body] & NULLABLE)
        return;
    if (!l->tried[body])
        l->lexeme[body] = automaton_lexeme(g, body);
    l->tried[body] = true;
    g->lexeme[x] = l->lexeme[body];
}

/* Counts the items of few texts that x must have, where they are all of one node. */
static void count_items(struct grammar *g, gb_node x, const struct learnt *l)
{
    const struct gb_node_data *d = &g->node[x];
    if (d->kind == NODE_ITEM) {
        bool few = l->bound[d->a] < LONG && g->known[d->a] & PRODUCTIVE;
        g->supply[x] = few ? scope_supply(g, d->a) : PLENTY;
        g->few[x] = g->supply[x] == PLENTY ? GB_NEVER : x;
        g->demand[x] = g->few[x] == x;
        return;
    }
    if (d->kind == NODE_UNIQUE || d->kind == NODE_AND || d->kind == NODE_MINUS)
        return;
    const uint32_t *part;
    uint32_t n = parts_of(g, x, &part);
    uint64_t sum = 0, least = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        gb_node few = g->few[part[i]];
        if (few != GB_NEVER)
            g->few[x] = g->few[x] == GB_NEVER || g->few[x] == few ? few : SEVERAL;
        sum += g->demand[part[i]];
        if (g->known[part[i]] & PRODUCTIVE && g->demand[part[i]] < least)
            least = g->demand[part[i]];
    }
    if (d->kind == NODE_REPEAT)
        sum *= d->b;
    else if (d->kind == NODE_ALT)
        sum = least == UINT32_MAX ? 0 : least;
    g->demand[x] = sum < UINT32_MAX ? (uint32_t)sum : UINT32_MAX - 1;
}

/* The least solution: rules that go round are judged again until nothing is learnt. Pairs and
 * lexemes are above no such rule, so their parts are final when they are first met. */
static void judge_all(struct grammar *g, const struct vec *order, struct learnt *l)
{
    for (uint32_t i = 0; i < order->n && !g->failed; i++) {
        g->known[order->at[i]] |= judge(g, order->at[i]);
        find_lexeme(g, order->at[i], l);
        texts_learn(g, order->at[i], l->bound[order->at[i]]);
        count_items(g, order->at[i], l);
    }
    for (bool more = true; more && !g->failed;) {
        more = false;
        for (uint32_t i = 0; i < order->n; i++) {
            gb_node x = order->at[i];
            if (g->node[x].kind == NODE_AND || g->node[x].kind == NODE_MINUS)
                continue;
            uint8_t now = g->known[x] | judge(g, x);
            more |= now != g->known[x];
            g->known[x] = now;
        }
    }
}

static enum err_code learn(struct grammar *g, const struct vec *order, struct err *e)
{
    struct learnt l = {.bound = malloc(g->n_nodes),
                       .tried = calloc(g->n_nodes, sizeof *l.tried),
                       .lexeme = calloc(g->n_nodes, sizeof *l.lexeme)};
    if (l.bound && l.tried && l.lexeme) {
        memset(l.bound, LONG, g->n_nodes);
        judge_all(g, order, &l);
        e->code = ERR_OK;
    } else {
        err_set(e, ERR_NOMEM, "no memory for a grammar of %u parts", g->n_nodes);
    }
    free(l.bound);
    free(l.tried);
    free(l.lexeme);
    return e->code;
}

/* Whether part i of x can come at x's very beginning. */
static bool leftmost(const struct grammar *g, gb_node x, const uint32_t *part, uint32_t i)
{
    if (!(g->known[part[i]] & PRODUCTIVE))
        return false;
    return g->node[x].kind != NODE_SEQ || i == 0 || g->known[part[i - 1]] & NULLABLE;
}

/* A rule that begins with itself would pile up cells without reading a byte. */
static enum err_code refuse_left_recursion(const struct grammar *g, gb_node root,
                                           const struct vec *order, struct err *e)
{
    enum { OPEN = 1, DONE = 2 };
    uint8_t *mark = calloc(g->n_nodes, 1);
    struct visit *stack = malloc(((size_t)order->n + 1) * sizeof *stack);
    if (!mark || !stack) {
        free(mark);
        free(stack);
        return err_set(e, ERR_NOMEM, "no memory for a grammar of %u parts", g->n_nodes);
    }
    gb_node turn = root; /* where the circle closes */
    bool found = false;
    for (uint32_t k = 0; k < order->n && !found; k++) {
        if (mark[order->at[k]] || !(g->known[order->at[k]] & PRODUCTIVE))
            continue;
        uint32_t n = 0;
        mark[order->at[k]] = OPEN;
        stack[n++] = (struct visit){order->at[k], 0};
        while (n > 0 && !found) {
            struct visit *v = &stack[n - 1];
            const uint32_t *part;
            uint32_t n_part = parts_of(g, v->x, &part);
            if (v->i == n_part || !leftmost(g, v->x, part, v->i)) {
                if (v->i < n_part && g->node[v->x].kind != NODE_SEQ) {
                    v->i++;
                    continue;
                }
                mark[v->x] = DONE;
                n--;
                continue;
            }
            gb_node y = part[v->i++];
            if (mark[y] == OPEN) {
                found = true;
                for (turn = y; n > 0 && g->node[turn].kind != NODE_RULE; n--)
                    turn = stack[n - 1].x;
            } else if (!mark[y]) {
                mark[y] = OPEN;
                stack[n++] = (struct visit){y, 0};
            }
        }
    }
    free(mark);
    free(stack);
    if (!found)
        return ERR_OK;
    const struct gb_node_data *d = &g->node[turn];
    return err_set(e, ERR_INVALID, "rule '%.*s' begins with itself (left recursion)",
                   (int)(d->c < 100 ? d->c : 100), g->text + d->b);
}

static enum err_code compile(struct grammar *g, gb_node root, struct err *e)
{
    struct vec order = {0};
    if (postorder(g, root, &order, e) != ERR_OK)
        goto done;
    if (learn(g, &order, e) != ERR_OK)
        goto done;
    if (!g->failed && !(g->known[root] & PRODUCTIVE)) {
        err_set(e, ERR_INVALID, "no text can satisfy the grammar");
        goto done;
    }
    if (refuse_left_recursion(g, root, &order, e) != ERR_OK)
        goto done;
    g->root = automaton_start(g, root);
    if (g->failed)
        err_set(e, ERR_INVALID, "the grammar needs more than %d states, or too long a search",
                MAX_STATES);
    else
        e->code = ERR_OK;
done:
    free(order.at);
    return e->code;
}

enum err_code grammar_compile(struct grammar **out, const struct grammar_vocab *vocab,
                              const struct grammar_builder *b, gb_node root, struct err *e)
{
    if (gb_error(b, e) != ERR_OK)
        return e->code;
    assert(root < b->n_nodes);
    struct grammar *g = FAULT("grammar.compile") ? NULL : calloc(1, sizeof *g);
    if (!g)
        return err_set(e, ERR_NOMEM, "no memory for a grammar");
    atomic_init(&g->holders, 1);
    pthread_mutex_init(&g->lock, NULL);
    g->vocab = vocab;
    g->n_nodes = b->n_nodes;
    g->search = COMPILE_SEARCH;
    g->node = FAULT("grammar.compile") ? NULL : calloc(b->n_nodes + (size_t)1, sizeof *b->node);
    if (g->node) /* the one behind the last is that of joins */
        memcpy(g->node, b->node, b->n_nodes * sizeof *b->node);
    g->met = calloc(b->n_nodes + (size_t)1, sizeof *g->met);
    g->part = copy(b->part, b->n_parts * sizeof *b->part);
    g->text = copy(b->text, b->n_text);
    g->set = copy(b->set, b->n_sets * sizeof *b->set);
    g->placed = copy(b->placed, b->n_placed * sizeof *b->placed);
    g->n_placed = b->n_placed;
    g->known = calloc(b->n_nodes + (size_t)1, 1);
    g->start_a = calloc(b->n_nodes, sizeof *g->start_a);
    g->start_b = calloc(b->n_nodes, sizeof *g->start_b);
    g->lexeme = calloc(b->n_nodes + (size_t)1, sizeof *g->lexeme);
    g->demand = calloc(b->n_nodes, sizeof *g->demand);
    g->few = calloc(b->n_nodes, sizeof *g->few);
    g->supply = calloc(b->n_nodes, sizeof *g->supply);
    g->least = calloc(b->n_nodes, 1);
    if (g->placed)
        orders_sort(g);
    if (!g->placed || !g->met || !g->least || !g->demand || !g->few || !g->supply || !g->lexeme ||
        !g->node || !g->part || !g->text || !g->set || !g->known || !g->start_a || !g->start_b)
        err_set(e, ERR_NOMEM, "no memory for a grammar of %u parts", b->n_nodes);
    else if (automaton_open(g, e) == ERR_OK && compile(g, root, e) == ERR_OK) {
        g->graph_bytes = sizeof *g + b->n_nodes * (sizeof *b->node + 34) +
                         b->n_parts * sizeof *b->part + b->n_text + b->n_sets * sizeof *b->set;
        (void)automaton_large(g);
        *out = g;
        return ERR_OK;
    }
    grammar_close(g);
    return e->code;
}

struct grammar *grammar_ref(struct grammar *g)
{
    atomic_fetch_add_explicit(&g->holders, 1, memory_order_relaxed);
    return g;
}

void grammar_close(struct grammar *g)
{
    if (!g || atomic_fetch_sub_explicit(&g->holders, 1, memory_order_acq_rel) != 1)
        return;
    automaton_free(g);
    pthread_mutex_destroy(&g->lock);
    free(g->node);
    free(g->part);
    free(g->text);
    free(g->set);
    free(g->placed);
    free(g->known);
    free(g->start_a);
    free(g->start_b);
    free(g->lexeme);
    free(g->demand);
    free(g->few);
    free(g->supply);
    free(g->least);
    free(g->met);
    free(g);
}
