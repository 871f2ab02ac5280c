#include "grammar/automaton.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

/* An item's mark holds the string it has read; a scope's mark holds the set of finished ones. */
static bool is_mark(const struct grammar *g, const struct cell *c, enum gb_kind kind)
{
    return g->node[c->expr].kind == kind && c->b == 1;
}

uint32_t scope_count_room(const struct grammar *g, const struct cell *c)
{
    const struct gb_node_data *d = &g->node[c->expr];
    if (d->kind != NODE_REPEAT || g->lexeme[c->expr] || d->c == GB_UNBOUNDED || c->b <= d->b)
        return 0;
    /* The round that is under way wants a byte, and each further one its least. */
    uint64_t room = d->c > c->b ? (uint64_t)(d->c - c->b - 1) * g->least[d->a] + 1 : 0;
    return room < FAR_BYTES ? 0 : room < UINT32_MAX ? (uint32_t)room : UINT32_MAX - 1;
}

uint8_t scope_flags(const struct grammar *g, const struct cell *c)
{
    uint8_t flags = c->next ? g->info[c->next].flags : 0;
    if (c->expr == g->n_nodes)
        return flags | g->info[c->a].flags;
    if (is_mark(g, c, NODE_ITEM) && c->a != ANY_STRING)
        flags |= IN_ITEM;
    gb_node few = is_mark(g, c, NODE_UNIQUE) ? g->few[g->node[c->expr].a] : GB_NEVER;
    if (few != GB_NEVER && few != SEVERAL)
        flags |= IN_SCOPE;
    if (scope_count_room(g, c))
        flags |= IN_COUNT;
    return flags;
}

static uint32_t link_of(struct grammar *g, struct link **links, uint32_t *n, uint32_t *max,
                        struct word_set *of, uint32_t rest, uint32_t added)
{
    uint64_t key = ((uint64_t)rest << 32 | added) + 1;
    const uint32_t *known = word_set_find(of, key);
    if (known)
        return *known;
    if (!automaton_grow(g, (void **)links, max, *n + 2, sizeof **links))
        return 0;
    if (*n == 0) {
        (*links)[0] = (struct link){0};
        *n = 1;
    }
    (*links)[*n] = (struct link){rest, added, rest ? (*links)[rest].n + 1 : 1,
                                 rest ? (*links)[rest].first : added};
    if (!word_set_add(g, of, key, *n))
        return 0;
    return (*n)++;
}

uint32_t scope_string(struct grammar *g, uint32_t string, uint32_t byte)
{
    struct scopes *s = &g->scopes;
    if (string == ANY_STRING || byte == ANY_STRING)
        return ANY_STRING;
    return link_of(g, &s->string, &s->n_strings, &s->max_strings, &s->string_of, string, byte);
}

uint32_t scope_set(struct grammar *g, uint32_t set, uint32_t string)
{
    struct scopes *s = &g->scopes;
    return link_of(g, &s->set, &s->n_sets, &s->max_sets, &s->set_of, set, string);
}

static bool set_has(const struct grammar *g, uint32_t set, uint32_t string)
{
    for (; set; set = g->scopes.set[set].rest)
        if (g->scopes.set[set].added == string)
            return string != ANY_STRING;
    return false;
}

/* Cells without items stay as they are. */
void scope_read(struct grammar *g, uint32_t *at, uint32_t n, uint32_t byte)
{
    struct change ch = {.what = CHANGE_READ, .with = byte};
    bool begun = false;
    for (uint32_t i = 0; i < n && !g->failed; i++) {
        if (!at[i] || !(g->info[at[i]].flags & IN_ITEM))
            continue;
        if (!begun)
            stacks_begin(g);
        begun = true;
        at[i] = stacks_change(g, &ch, at[i]);
    }
}

/* The innermost scope's mark at or below this cell; 0: none. */
static uint32_t scope_below(const struct grammar *g, uint32_t at)
{
    while (at && !is_mark(g, &g->cell[at], NODE_UNIQUE))
        at = g->cell[at].next;
    return at;
}

/* The string's bytes behind those of `begin`; NULL: it begins otherwise, or no memory. */
static unsigned char *end_of(struct grammar *g, uint32_t string, uint32_t begin, size_t *bytes)
{
    if (string == ANY_STRING || begin == ANY_STRING)
        return NULL;
    const struct link *l = g->scopes.string;
    uint32_t skip = begin ? l[begin].n : 0, n = string ? l[string].n : 0;
    if (n < skip)
        return NULL;
    uint32_t at = string;
    for (uint32_t i = n; i > skip; i--)
        at = l[at].rest;
    if (at != begin)
        return NULL;
    unsigned char *text = malloc(n - skip + 1);
    if (!text) {
        g->failed = true;
        return NULL;
    }
    at = string;
    for (uint32_t i = n; i > skip; i--, at = l[at].rest)
        text[i - skip - 1] = (unsigned char)l[at].added;
    *bytes = n - skip;
    return text;
}

/* The set with this string and those that are alike. */
static uint32_t with_orders(struct grammar *g, uint32_t set, uint32_t string)
{
    size_t bytes;
    unsigned char *text = end_of(g, string, 0, &bytes);
    set = scope_set(g, set, string);
    if (text)
        set = orders_add(g, set, string, text, bytes);
    free(text);
    return set;
}

bool scope_finish(struct grammar *g, uint32_t mark, uint32_t *next)
{
    struct cell c = g->cell[mark];
    uint32_t scope = scope_below(g, c.next);
    *next = c.next;
    if (!scope)
        return true;
    struct cell u = g->cell[scope];
    if (set_has(g, u.a, c.a))
        return false;
    struct change ch = {.what = CHANGE_FINISH, .with = with_orders(g, u.a, c.a)};
    stacks_begin(g);
    *next = stacks_change(g, &ch, c.next);
    return true;
}

void scope_ends_free(struct ends *e)
{
    for (uint32_t i = 0; i < e->n; i++)
        free(e->text[i]);
    free(e->text);
    free(e->bytes);
    free(e->read);
}

/* objects: those that begin with a brace, too. */
static struct ends ends_of(struct grammar *g, uint32_t set, uint32_t begin, bool objects)
{
    struct ends e = {0};
    uint32_t room = set ? g->scopes.set[set].n : 0;
    if (!room)
        return e;
    e.text = malloc(room * sizeof *e.text);
    e.bytes = malloc(room * sizeof *e.bytes);
    g->failed |= !e.text || !e.bytes;
    for (; set && !g->failed; set = g->scopes.set[set].rest) {
        uint32_t string = g->scopes.set[set].added;
        bool object = string && string != ANY_STRING && g->scopes.string[string].first == '{';
        e.objects |= object;
        if (object && !objects)
            continue;
        e.text[e.n] = end_of(g, string, begin, &e.bytes[e.n]);
        e.n += e.text[e.n] != NULL;
    }
    return e;
}

enum { MAX_LOOK = 2000 }; /* bytes that are looked ahead; then an item is taken to become new */

/* Whether from this state some text comes that is none of the first n, which agree up to depth. */
static bool avoids(struct grammar *g, uint32_t state, struct ends *e, uint32_t n, size_t depth)
{
    if (state == 0 || g->failed)
        return false;
    bool taken = false;
    for (uint32_t i = 0; i < n; i++)
        taken |= e->bytes[i] == depth;
    if (n == 0 || depth > MAX_LOOK || (!taken && g->state[state].may_end))
        return true;
    struct byte_set first = automaton_first(g, state);
    for (int with = 0; with < 2; with++) /* bytes that none of them has are quick: first */
        for (unsigned byte = 0; byte < 256; byte++) {
            if (!byte_set_has(&first, byte))
                continue;
            uint32_t k = 0;
            for (uint32_t i = 0; i < n; i++)
                if (e->bytes[i] > depth && e->text[i][depth] == byte) {
                    unsigned char *text = e->text[i];
                    size_t bytes = e->bytes[i];
                    e->text[i] = e->text[k];
                    e->bytes[i] = e->bytes[k];
                    e->text[k] = text;
                    e->bytes[k++] = bytes;
                }
            if ((k > 0) == with && avoids(g, automaton_step(g, state, byte), e, k, depth + 1))
                return true;
        }
    return false;
}

/* Whether the item of this mark, in which cell `at` is, can end unlike those of the set. */
static bool item_alive(struct grammar *g, uint32_t at, uint32_t mark, uint32_t set)
{
    struct ends e = ends_of(g, set, g->cell[mark].a, true);
    bool alive = e.n == 0 && !g->failed;
    if (!alive && !g->failed) { /* the cells above the mark, with nothing after them */
        struct change ch = {.what = CHANGE_CUT, .mark = g->info[mark].marks};
        stacks_begin(g);
        uint32_t alone = stacks_change(g, &ch, at);
        uint32_t state = g->failed ? 0 : automaton_some_cells(g, &alone, 1);
        alive = avoids(g, state, &e, e.n, 0);
    }
    scope_ends_free(&e);
    return alive;
}

/* The items that a cell below the first will still demand. */
static uint64_t demanded(const struct grammar *g, const struct cell *c)
{
    const struct gb_node_data *d = &g->node[c->expr];
    uint64_t sum = 0;
    if (d->kind == NODE_SEQ)
        for (uint32_t i = c->b; i < d->b; i++)
            sum += g->demand[g->part[d->a + i]];
    else if (d->kind == NODE_REPEAT && !g->lexeme[c->expr] && d->b > c->b)
        sum = (uint64_t)(d->b - c->b) * g->demand[d->a];
    else if (d->kind == NODE_ITEM)
        sum = g->demand[c->expr];
    return sum;
}

/* Strings of the set that node x has too. */
static uint32_t n_spent(struct grammar *g, uint32_t set, gb_node x)
{
    uint32_t n = 0;
    struct ends e = ends_of(g, set, 0, true);
    for (uint32_t i = 0; i < e.n && !g->failed; i++) {
        uint32_t state = automaton_start(g, x);
        for (size_t k = 0; k < e.bytes[i] && state; k++)
            state = automaton_step(g, state, e.text[i][k]);
        n += g->state[state].may_end;
    }
    scope_ends_free(&e);
    return n;
}

bool scope_alive(struct grammar *g, uint32_t at)
{
    uint64_t demand = 0;
    for (uint32_t c = at; c && g->info[c].flags & IN_MARK && !g->failed; c = g->cell[c].next) {
        struct cell k = g->cell[c];
        if (is_mark(g, &k, NODE_ITEM)) {
            uint32_t scope = scope_below(g, k.next);
            uint32_t set = scope ? g->cell[scope].a : 0;
            if (set && k.a != ANY_STRING && !item_alive(g, at, c, set))
                return false;
            demand = 0; /* what is above belongs to the item */
        }
        if (is_mark(g, &k, NODE_UNIQUE)) {
            gb_node few = g->few[g->node[k.expr].a];
            if (demand > 0 && few != GB_NEVER && few != SEVERAL &&
                demand + n_spent(g, k.a, g->node[few].a) > g->supply[few])
                return false;
            demand = 0;
        } else if (c != at) {
            demand += demanded(g, &k);
        }
    }
    return !g->failed;
}

enum { MAX_COUNTED_DEPTH = 300, MAX_COUNTED = 1 << 14 };

/* Texts from this state; PLENTY: more than it is worth counting. */
static uint32_t count_texts(struct grammar *g, uint32_t state, struct word_set *known, int depth)
{
    if (state == 0 || g->failed)
        return 0;
    const uint32_t *k = word_set_find(known, (uint64_t)state + 1);
    if (k)
        return *k;
    if (depth > MAX_COUNTED_DEPTH || known->n > MAX_COUNTED)
        return PLENTY;
    if (!word_set_add(g, known, (uint64_t)state + 1, PLENTY)) /* met again below: a circle */
        return PLENTY;
    uint64_t sum = g->state[state].may_end;
    struct byte_set first = automaton_first(g, state);
    for (unsigned byte = 0; byte < 256 && sum < PLENTY; byte++)
        if (byte_set_has(&first, byte))
            sum += count_texts(g, automaton_step(g, state, byte), known, depth + 1);
    uint32_t *slot = word_set_find(known, (uint64_t)state + 1);
    if (slot)
        *slot = sum < PLENTY ? (uint32_t)sum : PLENTY;
    return sum < PLENTY ? (uint32_t)sum : PLENTY;
}

uint32_t scope_supply(struct grammar *g, gb_node x)
{
    struct word_set known = {0};
    uint32_t n = count_texts(g, automaton_start(g, x), &known, 0);
    free(known.key);
    free(known.value);
    return n;
}

/* Whether the scope's items are of few texts, which are counted. */
static bool is_few(const struct grammar *g, uint32_t scope)
{
    return scope && g->info[scope].flags & IN_SCOPE && is_mark(g, &g->cell[scope], NODE_UNIQUE) &&
           g->few[g->node[g->cell[scope].expr].a] != GB_NEVER &&
           g->few[g->node[g->cell[scope].expr].a] != SEVERAL;
}

/* The lowest cell that is to be changed: the scope of the last such item. */
static uint32_t lowest_loose(const struct grammar *g, uint32_t at)
{
    uint32_t lowest = 0;
    for (uint32_t c = at; c && g->info[c].flags & IN_ITEM; c = g->cell[c].next) {
        uint32_t scope = is_mark(g, &g->cell[c], NODE_ITEM) ? scope_below(g, g->cell[c].next) : 0;
        if (scope && !is_few(g, scope))
            lowest = scope;
    }
    return lowest;
}

uint32_t scope_loosen(struct grammar *g, uint32_t at, uint32_t *mark, uint32_t *room)
{
    uint32_t low = lowest_loose(g, at);
    struct change ch = {.what = CHANGE_LOOSEN,
                        .mark = g->info[at].marks,
                        .lowest = low ? g->info[low].marks : 0,
                        .room = room};
    if (*mark != ch.mark) /* what it shares with the cell before may change otherwise */
        stacks_begin(g);
    *mark = ch.mark;
    return stacks_change(g, &ch, at);
}

/* Whether the stack is in an item of this scope. Between two its next one begins within a token. */
static bool in_item_of(const struct grammar *g, const struct change *ch, uint32_t scope)
{
    for (uint32_t mark = ch->mark; mark; mark = g->cell[mark].next)
        if (g->cell[mark].next == g->info[scope].marks)
            return is_mark(g, &g->cell[mark], NODE_ITEM);
    return false;
}

/* Whether the lowest scope that is to be loosened is here or below. */
static bool loosens(const struct grammar *g, const struct change *ch, uint32_t at)
{
    if (!ch->lowest)
        return false;
    for (uint32_t mark = ch->mark; mark; mark = g->cell[mark].next) {
        if (mark == g->info[at].marks)
            return true;
        if (mark == ch->lowest)
            break;
    }
    return false;
}

enum changes scope_changes(const struct grammar *g, const struct change *ch, uint32_t at)
{
    const struct cell *c = &g->cell[at];
    switch (ch->what) {
    case CHANGE_END:
        return CHANGED;
    case CHANGE_READ:
        return g->info[at].flags & IN_ITEM ? CHANGED : UNCHANGED;
    case CHANGE_FINISH:
        return is_mark(g, c, NODE_UNIQUE) ? CHANGED_ALONE : CHANGED;
    case CHANGE_CUT:
        return is_mark(g, c, NODE_ITEM) && g->info[at].marks == ch->mark ? CHANGED_ALONE : CHANGED;
    case CHANGE_LOOSEN:
        return loosens(g, ch, at) || g->info[at].flags & IN_COUNT ? CHANGED : UNCHANGED;
    }
    return UNCHANGED;
}

uint32_t scope_changed(struct grammar *g, const struct change *ch, uint32_t at, uint32_t next)
{
    struct cell c = g->cell[at];
    bool item = is_mark(g, &c, NODE_ITEM), loosen = ch->what == CHANGE_LOOSEN;
    if (ch->what == CHANGE_CUT && item && g->info[at].marks == ch->mark)
        return 0;
    if (ch->what == CHANGE_FINISH && is_mark(g, &c, NODE_UNIQUE)) {
        c.a = ch->with;
    } else if (ch->what == CHANGE_READ && item) {
        c.a = scope_string(g, c.a, ch->with);
    } else if (loosen && item && !is_few(g, scope_below(g, c.next))) {
        c.a = ANY_STRING;
    } else if (loosen && is_mark(g, &c, NODE_UNIQUE) && !is_few(g, at)) {
        c.a = in_item_of(g, ch, at) ? 0 : c.a;
    } else if (loosen && scope_count_room(g, &c)) {
        uint32_t bytes = scope_count_room(g, &c);
        *ch->room = bytes < *ch->room ? bytes : *ch->room;
        c.b = g->node[c.expr].b;
    }
    return automaton_cell(g, c.expr, c.a, c.b, next);
}

bool scope_item(const struct grammar *g, uint32_t at, uint32_t i, struct item *item)
{
    for (; at && g->info[at].flags & IN_ITEM; at = g->cell[at].next) {
        struct cell c = g->cell[at];
        uint32_t scope = is_mark(g, &c, NODE_ITEM) ? scope_below(g, c.next) : 0;
        if (!scope || is_few(g, scope) || i-- > 0)
            continue;
        *item = (struct item){.read = c.a, .finished = g->cell[scope].a};
        return true;
    }
    return false;
}

bool scope_ends(struct grammar *g, const struct item *item, struct ends *behind, struct ends *whole)
{
    *behind = ends_of(g, item->finished, item->read, true);
    *whole = ends_of(g, item->finished, 0, false);
    behind->read = end_of(g, item->read, 0, &behind->n_read);
    if (behind->read)
        return true;
    scope_ends_free(behind);
    scope_ends_free(whole);
    return false;
}
