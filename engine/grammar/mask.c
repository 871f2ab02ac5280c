#include "grammar/automaton.h"

#include <stdlib.h>
#include <string.h>

/* A mask is the union of what each cell of the state allows. Cells of lexemes take the tokens
 * inside from their profile, and let the rests of the others follow whatever comes next; all other
 * cells walk the trie together. */

static inline uint32_t step(struct grammar *g, uint32_t state, unsigned byte)
{
    const uint32_t *to = g->state[state].to;
    return to && to[byte] != UNKNOWN ? to[byte] : automaton_step(g, state, byte);
}

/* Walks return how many nodes they met. */
static uint32_t walk(struct grammar *g, uint32_t state, uint32_t *mask)
{
    const struct trie *t = &g->vocab->trie;
    uint32_t at[MAX_TOKEN_BYTES + 1], met = 0;
    at[0] = state;
    for (uint32_t i = 1; i < t->n_nodes;) {
        const struct trie_node *n = &t->node[i];
        met++;
        uint32_t s = step(g, at[n->depth - 1], n->byte);
        if (s == 0) {
            i = n->after;
            continue;
        }
        for (uint32_t k = n->token; k < n[1].token; k++)
            mask_set(mask, t->token[k]);
        at[n->depth] = s;
        i++;
    }
    return met;
}

/* Whether the bytes may come, one by one. */
static bool may_come(struct grammar *g, uint32_t state, const char *p, size_t n)
{
    for (size_t i = 0; i < n && state; i++)
        state = automaton_step(g, state, (unsigned char)p[i]);
    return state;
}

/* The tokens that leave a lexeme after `least` to `most` bodies. */
static uint32_t walk_rests(struct grammar *g, const struct profile *p, uint32_t state,
                           uint32_t least, uint32_t most, uint32_t *mask)
{
    const struct trie *t = &p->rest;
    uint32_t at[MAX_TOKEN_BYTES + 1], met = 0;
    at[0] = state;
    for (uint32_t i = 1; i < t->n_nodes;) {
        const struct trie_node *n = &t->node[i];
        met++;
        uint32_t s = step(g, at[n->depth - 1], n->byte);
        if (s == 0) {
            i = n->after;
            continue;
        }
        for (uint32_t k = n->token; k < n[1].token; k++)
            if (p->done[k] >= least && p->done[k] <= most)
                mask_set(mask, t->token[k]);
        at[n->depth] = s;
        i++;
    }
    return met;
}

/* Whether some byte both goes on with the lexeme and begins what follows it. Then a token that lies
 * inside but needs too many bodies might still come by leaving early. */
static bool overlaps(struct grammar *g, const struct lexeme *x, uint32_t next)
{
    struct byte_set first = automaton_first(g, next);
    for (unsigned byte = 0; byte < 256; byte++)
        if (x->to[LEXEME_START][byte] && byte_set_has(&first, byte))
            return true;
    return false;
}

/* False: this cell must walk. */
static bool mask_lexeme(struct grammar *g, uint32_t at, uint32_t *mask, uint32_t *met)
{
    struct cell c = g->cell[at];
    const struct lexeme *x = g->lexeme[c.expr];
    const struct profile *p =
        x && !(g->info[at].flags & IN_ITEM) ? lexeme_profile(g->vocab, x, c.a) : NULL;
    if (!p)
        return false;
    uint32_t least, most;
    automaton_left(g, &c, &least, &most);
    bool leaves = p->rest.n_tokens > 0 && least <= p->max_done;
    if (!leaves && most >= p->max_need) {
        profile_inside(g->vocab, p, most, mask);
        return true;
    }
    uint32_t next = automaton_next_state(g, at);
    if (most < p->max_need && overlaps(g, x, next))
        return false;
    profile_inside(g->vocab, p, most, mask);
    if (leaves)
        *met += walk_rests(g, p, next, least, most, mask);
    return true;
}

/* Takes back what x without y may not do. mask holds what x, a lexeme that goes round, may do with
 * what follows; as long as a token's bytes keep y alive, it must not end up as one of y. */
static void take_back(struct grammar *g, const struct cell *pair, uint32_t *mask, uint32_t *met)
{
    const struct trie *t = &g->vocab->trie;
    uint32_t a[MAX_TOKEN_BYTES + 1], b[MAX_TOKEN_BYTES + 1];
    a[0] = pair->a;
    b[0] = pair->b;
    for (uint32_t i = 1; i < t->n_nodes && !g->failed;) {
        const struct trie_node *n = &t->node[i];
        uint32_t above = n->depth - 1u, from = n->token, to = n[1].token;
        a[n->depth] = step(g, a[above], n->byte);
        (*met)++;
        if (a[n->depth] == 0) { /* x is left here, where y ends too */
            if (above > 0 && !automaton_pair_ends(g, pair->expr, a[above], b[above]))
                to = t->node[n->after].token;
            else
                to = from;
            i = n->after;
        } else {
            b[n->depth] = step(g, b[above], n->byte);
            if (b[n->depth] == 0 || automaton_live(g, pair->expr, a[n->depth], b[n->depth]))
                to = from;
            i = b[n->depth] ? i + 1 : n->after;
        }
        for (uint32_t k = from; k < to; k++)
            mask[t->token[k] >> 5] &= ~((uint32_t)1 << (t->token[k] & 31));
    }
}

/* A difference whose left side is a lexeme that goes round, and perhaps some bytes that close it:
 * strings but for some names. False: this cell must walk. */
static bool mask_minus(struct grammar *g, uint32_t at, uint32_t *mask, uint32_t *met)
{
    struct cell c = g->cell[at];
    const struct state *left = &g->state[c.a];
    if (g->node[c.expr].kind != NODE_MINUS || left->n_cells != 1 || g->info[at].flags & IN_ITEM)
        return false;
    struct cell x = g->cell[g->list.at[left->cell]];
    if (!g->lexeme[x.expr])
        return false;
    uint32_t after = c.next;
    if (x.next) { /* a closing quote may belong to the difference */
        struct cell quote = g->cell[x.next];
        if (quote.next || g->node[quote.expr].kind != NODE_BYTES)
            return false;
        after = automaton_cell(g, quote.expr, quote.a, quote.b, c.next);
    }
    uint32_t alone = automaton_cell(g, x.expr, x.a, x.b, after);
    if (!alone || overlaps(g, g->lexeme[x.expr], automaton_next_state(g, alone)))
        return false;
    size_t words = g->vocab->n_words;
    uint32_t *own = calloc(words, sizeof *own);
    bool done = own && mask_lexeme(g, alone, own, met);
    if (done) {
        take_back(g, &c, own, met);
        for (size_t w = 0; w < words; w++)
            mask[w] |= own[w];
    }
    free(own);
    return done;
}

enum { SHORT_TOKEN = 12 }; /* bytes: nine tenths of a vocabulary are not longer */

/* Whether a state is inside "any characters, as many as you like", and goes on from there. */
static bool is_boundless(const struct grammar *g, uint32_t state)
{
    for (uint32_t i = 0; i < g->state[state].n_cells; i++)
        if (g->known[g->cell[g->list.at[g->state[state].cell + i]].expr] & ANY_TEXT)
            return true;
    return false;
}

/* The right side of an intersection holds any text of which the left side is a part: but for its
 * length it says nothing. */
static bool is_about_length(const struct grammar *g, const struct cell *pair)
{
    const struct state *right = &g->state[pair->b];
    if (right->n_cells != 1)
        return false;
    uint8_t known = g->known[g->cell[g->list.at[right->cell]].expr];
    return known & ANY_CHARS && known & g->known[g->node[pair->expr].a] & (TEXT_PLAIN | TEXT_JSON);
}

static inline bool mask_has(const uint32_t *mask, uint32_t id)
{
    return mask[id >> 5] >> (id & 31) & 1;
}

/* An intersection that is about length, and how it looks without its bounds. */
struct bounds {
    gb_node x;
    uint32_t a, far;         /* the left side; the right without bounds */
    uint32_t most;           /* bodies that are left */
    uint32_t room;           /* tokens of so many bytes stay away from the maximum */
    uint32_t alone;          /* the state of this cell */
    bool apart;              /* no byte both goes on with the text and follows it */
    const struct profile *p; /* of the right side's lexeme, where the minimum may bind; or NULL */
};

/* Whether a long token may come, of which is known that it may without bounds. */
static bool long_may_come(struct grammar *g, const struct bounds *d, const char *p, size_t n)
{
    uint32_t a = d->a, b = d->far, bodies = 0;
    for (size_t i = 0; d->apart && i < n && a && b; i++) {
        a = automaton_step(g, a, (unsigned char)p[i]);
        b = a ? automaton_step(g, b, (unsigned char)p[i]) : 0;
        bodies += b && g->cell[g->list.at[g->state[b].cell]].a == LEXEME_START;
    }
    if (!d->apart || !a || !b)
        return may_come(g, d->alone, p, n);
    uint32_t away = automaton_away(g, d->x, a, b);
    if (away == UINT32_MAX) /* not met on the way there: near the end of a count */
        return may_come(g, d->alone, p, n);
    return away <= d->most && bodies <= d->most - away;
}

/* Takes out the tokens that may come without the bounds of length, but not with them. Where the
 * minimum is near, that can only be those that leave the text; where the maximum is, long ones. */
static uint32_t try_near(struct grammar *g, const struct bounds *d, uint32_t *own)
{
    const struct grammar_vocab *v = g->vocab;
    uint32_t met = 0;
    for (uint32_t w = 0; d->p && w < v->n_words; w++)
        for (uint32_t left = own[w] & ~d->p->inside[w]; left; left &= left - 1) {
            uint32_t id = 32 * w + (uint32_t)__builtin_ctz(left), i = v->place[id];
            if (!may_come(g, d->alone, v->text + v->at[i], v->at[i + 1] - v->at[i]))
                own[w] &= ~(left & -left);
            met++;
        }
    for (uint32_t k = 0; k < v->trie.n_tokens; k++) { /* the longest first */
        uint32_t i = v->by_length[k], id = v->trie.token[i], n = v->at[i + 1] - v->at[i];
        if (n <= d->room)
            break;
        if (mask_has(own, id) && !long_may_come(g, d, v->text + v->at[i], n))
            own[id >> 5] &= ~((uint32_t)1 << (id & 31));
        met++;
    }
    return met;
}

/* A text whose bounds of length are far away: its mask is that of the text without, but for tokens
 * that may come near, which are tried. So one mask serves many places; and where the right side
 * says nothing but the length, that mask is the left side's own. */
static bool mask_far(struct grammar *g, uint32_t at, uint32_t *mask, uint32_t *met)
{
    struct cell c = g->cell[at];
    const struct grammar_vocab *v = g->vocab;
    uint32_t most, slack, loose;
    if (g->node[c.expr].kind != NODE_AND || g->info[at].flags & IN_ITEM)
        return false;
    bool length = is_about_length(g, &c), boundless = length && is_boundless(g, c.a);
    uint32_t near = automaton_far(g, c.expr, c.a, c.b, 1, length, &most, &slack), far = near;
    if (!near && boundless) /* as long as the text goes on it can become long enough */
        far = automaton_far(g, c.expr, c.a, c.b, GB_UNBOUNDED, length, &most, &slack);
    if (!far || most < slack + SHORT_TOKEN)
        return false;
    struct bounds d = {.x = c.expr,
                       .a = c.a,
                       .far = far,
                       .most = most,
                       .room = most == GB_UNBOUNDED ? MAX_TOKEN_BYTES : most - slack,
                       .alone = automaton_some_cells(g, &at, 1)};
    struct cell right = g->cell[g->list.at[g->state[far].cell]];
    d.apart = length && !overlaps(g, g->lexeme[right.expr], automaton_next_state(g, at));
    if (!near) {
        d.p = lexeme_profile(v, g->lexeme[right.expr], right.a);
        if (!d.p)
            return false;
    }
    if (length) {
        loose = automaton_then(g, c.a, c.next);
    } else {
        uint32_t cell = automaton_cell(g, c.expr, c.a, far, c.next);
        loose = cell ? automaton_some_cells(g, &cell, 1) : 0;
    }
    if (!loose || !d.alone || loose == d.alone) /* nothing was loosened */
        return false;
    uint32_t *own = malloc(v->n_words * sizeof *own);
    if (!own)
        return false;
    automaton_mask(g, loose, own);
    *met += v->n_words / 16 + try_near(g, &d, own);
    for (size_t w = 0; w < v->n_words; w++)
        mask[w] |= own[w];
    free(own);
    return true;
}

enum { KEEP_FROM = 2000 }; /* nodes met: some 20 us */

/* A mask that took long is kept for the next time: places in a loop come again. */
static void keep(struct grammar *g, uint32_t state, const uint32_t *mask)
{
    struct kept_mask *k = &g->kept[state % N_KEPT_MASKS];
    size_t bytes = g->vocab->n_words * sizeof *mask;
    if (!k->mask)
        k->mask = malloc(bytes);
    if (!k->mask) /* then it is found again */
        return;
    memcpy(k->mask, mask, bytes);
    k->state = state;
}

/* Tries the token at a place of the trie's order. */
static void retry(struct grammar *g, uint32_t state, uint32_t place, uint32_t *mask, uint32_t *met)
{
    const struct grammar_vocab *v = g->vocab;
    uint32_t id = v->trie.token[place];
    ++*met;
    if (mask_has(mask, id) &&
        !may_come(g, state, v->text + v->at[place], v->at[place + 1] - v->at[place]))
        mask[id >> 5] &= ~((uint32_t)1 << (id & 31));
}

/* Takes back those tokens after which an item is one of the finished ones, or can but become one:
 * tokens with which a finished one goes on, and those that go on behind it. */
static void take_back_finished(struct grammar *g, uint32_t state, const struct ends *e,
                               uint32_t *mask, uint32_t *met)
{
    const struct trie *t = &g->vocab->trie;
    for (uint32_t i = 0; i < e->n && !g->failed; i++) {
        uint32_t at = 0, end = t->n_nodes; /* the node of the bytes so far, and what is behind it */
        for (size_t n = 0; n < e->bytes[i]; n++) {
            uint32_t k = at + 1;
            while (k < end && t->node[k].byte != e->text[i][n])
                k = t->node[k].after;
            if (k >= end)
                break;
            at = k;
            end = t->node[k].after;
            uint32_t last = t->node[n + 1 == e->bytes[i] ? end : k + 1].token;
            for (uint32_t j = t->node[k].token; j < last; j++)
                retry(g, state, j, mask, met);
        }
    }
}

enum { FEW_TOKENS = 4000 };

/* Tries all tokens that hold these bytes. */
static void retry_holding(struct grammar *g, uint32_t state, const unsigned char *s, size_t bytes,
                          uint32_t n_set, uint32_t *mask, uint32_t *met)
{
    const struct grammar_vocab *v = g->vocab;
    uint32_t n = v->trie.n_tokens, k = 0;
    if (bytes > SHORT_TOKEN) { /* the longest first */
        for (; k < n; k++) {
            uint32_t i = v->by_length[k], length = v->at[i + 1] - v->at[i];
            if (length < bytes)
                return;
            if (mask_has(mask, v->trie.token[i]) && memmem(v->text + v->at[i], length, s, bytes))
                retry(g, state, i, mask, met);
        }
        return;
    }
    if (n_set <= FEW_TOKENS) {
        for (uint32_t w = 0; w < v->n_words; w++)
            for (uint32_t left = mask[w]; left; left &= left - 1) {
                uint32_t i = v->place[32 * w + (uint32_t)__builtin_ctz(left)];
                if (memmem(v->text + v->at[i], v->at[i + 1] - v->at[i], s, bytes))
                    retry(g, state, i, mask, met);
            }
        return;
    }
    const uint32_t *list = lexicon_with_byte(v, s[0], &n);
    for (; k < n; k++) {
        uint32_t i = list ? list[k] : k;
        if (mask_has(mask, v->trie.token[i]) &&
            memmem(v->text + v->at[i], v->at[i + 1] - v->at[i], s, bytes))
            retry(g, state, i, mask, met);
    }
    *met += n / 16;
}

/* Tries all tokens in which an object ends and another one begins, which may be like this one, or
 * like a finished one. */
static void retry_objects(struct grammar *g, uint32_t state, uint32_t *mask, uint32_t *met)
{
    const struct grammar_vocab *v = g->vocab;
    uint32_t n = v->trie.n_tokens;
    const uint32_t *list = lexicon_with_byte(v, '}', &n);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t i = list ? list[k] : k, bytes = v->at[i + 1] - v->at[i];
        const char *p = v->text + v->at[i], *end = memchr(p, '}', bytes);
        if (end && memchr(end, '{', bytes - (size_t)(end - p)))
            retry(g, state, i, mask, met);
    }
}

/* Takes back those tokens that end this item and hold another one like it, or like a finished one:
 * what it has read so far comes in them once more, or the whole of that one. */
static void take_back_repeated(struct grammar *g, uint32_t state, const struct ends *own,
                               const struct ends *whole, uint32_t *mask, uint32_t *met)
{
    const struct grammar_vocab *v = g->vocab;
    uint32_t n_set = 0;
    for (uint32_t w = 0; w < v->n_words; w++)
        n_set += (uint32_t)__builtin_popcount(mask[w]);
    bool objects = whole->objects || (own->n_read && strchr("{[", own->read[0]));
    for (uint32_t i = 0; i < whole->n && !g->failed; i++) {
        objects |= whole->bytes[i] && whole->text[i][0] == '[';
        if (whole->bytes[i] && whole->bytes[i] <= MAX_TOKEN_BYTES)
            retry_holding(g, state, whole->text[i], whole->bytes[i], n_set, mask, met);
    }
    if (objects)
        retry_objects(g, state, mask, met);
    if (own->n_read > MAX_TOKEN_BYTES)
        return;
    if (own->n_read) {
        retry_holding(g, state, own->read, own->n_read, n_set, mask, met);
        return;
    }
    for (uint32_t w = 0; w < v->n_words; w++) /* not begun: any text that comes twice */
        for (uint32_t left = mask[w]; left; left &= left - 1) {
            uint32_t i = v->place[32 * w + (uint32_t)__builtin_ctz(left)];
            const char *p = v->text + v->at[i];
            size_t bytes = v->at[i + 1] - v->at[i];
            if (bytes > 1 && memchr(p + 1, p[0], bytes - 1))
                retry(g, state, i, mask, met);
        }
}

/* Tokens that could go round more often than is left. */
static void take_back_long(struct grammar *g, uint32_t state, uint32_t room, uint32_t *mask,
                           uint32_t *met)
{
    const struct grammar_vocab *v = g->vocab;
    for (uint32_t k = 0; k < v->trie.n_tokens; k++) {
        uint32_t i = v->by_length[k];
        if (v->at[i + 1] - v->at[i] <= room)
            return;
        retry(g, state, i, mask, met);
    }
}

/* Whether an item is among the n pairs of numbers in `narrow` from there on; else it is put there.
 */
static bool met_before(struct grammar *g, uint32_t from, const struct item *item)
{
    for (uint32_t i = from; i + 1 < g->narrow.n; i += 2)
        if (g->narrow.at[i] == item->read && g->narrow.at[i + 1] == item->finished)
            return true;
    automaton_push(g, &g->narrow, item->read);
    automaton_push(g, &g->narrow, item->finished);
    return false;
}

/* Takes back the tokens that the items of the state's cells could tell. A choice of many texts is
 * many cells, all in the same few items. */
static void take_back_items(struct grammar *g, uint32_t state, uint32_t *mask, uint32_t *met)
{
    uint32_t n = g->state[state].n_cells, from = g->narrow.n;
    for (uint32_t i = 0; i < n && !g->failed; i++) {
        struct item item;
        for (uint32_t k = 0;
             scope_item(g, g->list.at[g->state[state].cell + i], k, &item) && !g->failed; k++) {
            struct ends behind, whole;
            if (met_before(g, from, &item) || !scope_ends(g, &item, &behind, &whole))
                continue;
            take_back_finished(g, state, &behind, mask, met);
            take_back_repeated(g, state, &behind, &whole, mask, met);
            scope_ends_free(&behind);
            scope_ends_free(&whole);
        }
    }
    g->narrow.n = from;
}

/* Inside items of many texts and counts that are far from their end: the mask of the same place
 * without those, which is the same for whatever was read, but for the few tokens that could tell.
 */
static bool mask_loosened(struct grammar *g, uint32_t state, uint32_t *mask, uint32_t *met)
{
    uint32_t n = g->state[state].n_cells, loose, room = UINT32_MAX;
    uint8_t flags = 0;
    for (uint32_t i = 0; i < n; i++)
        flags |= g->info[g->list.at[g->state[state].cell + i]].flags;
    if (!(flags & (IN_ITEM | IN_COUNT)))
        return false;
    loose = automaton_loosen(g, state, &room);
    if (!loose || loose == state)
        return false;
    automaton_mask(g, loose, mask);
    if (room != UINT32_MAX)
        take_back_long(g, state, room, mask, met);
    if (flags & IN_ITEM)
        take_back_items(g, state, mask, met);
    return true;
}

void automaton_mask(struct grammar *g, uint32_t state, uint32_t *mask)
{
    const struct kept_mask *k = &g->kept[state % N_KEPT_MASKS];
    size_t bytes = g->vocab->n_words * sizeof *mask;
    if (state && k->state == state) {
        memcpy(mask, k->mask, bytes);
        return;
    }
    memset(mask, 0, bytes);
    uint32_t from = g->narrow.n, met = 0;
    if (mask_loosened(g, state, mask, &met)) {
        if (met >= KEEP_FROM && !g->failed)
            keep(g, state, mask);
        return;
    }
    for (uint32_t i = 0; i < g->state[state].n_cells && !g->failed; i++) {
        uint32_t at = g->list.at[g->state[state].cell + i];
        if (!mask_lexeme(g, at, mask, &met) && !mask_minus(g, at, mask, &met) &&
            !mask_far(g, at, mask, &met))
            automaton_push(g, &g->narrow, at);
    }
    uint32_t n = g->narrow.n - from;
    if (n == g->state[state].n_cells)
        met += walk(g, state, mask);
    else if (n > 0)
        met += walk(g, automaton_some_cells(g, g->narrow.at + from, n), mask);
    g->narrow.n = from;
    if (met >= KEEP_FROM && !g->failed)
        keep(g, state, mask);
}
