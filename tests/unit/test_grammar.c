/* test_grammar.c - the automaton against a plain matcher that tries all ways. */
#include "grammar/automaton.h"
#include "grammar/grammar.h"
#include "grammar/regex.h"
#include "test.h"

/* A language as a tree of the test's own. */
enum tree_kind { T_BYTES, T_SET, T_SEQ, T_ALT, T_REPEAT, T_AND, T_NOT, T_MINUS, T_RULE };
struct tree {
    enum tree_kind kind;
    char bytes[4];
    struct tree *kid[3];
    uint32_t n, min, max;
    gb_node rule; /* T_RULE: kid[0] may hold the rule itself */
    bool made;
};

enum { MAX_TEXT = 9 };

/* The ends of the matches of t in s that begin at i, a bit each. */
static uint32_t ends(const struct tree *t, const char *s, uint32_t n, uint32_t i);

static uint32_t ends_from_all(const struct tree *t, const char *s, uint32_t n, uint32_t from)
{
    uint32_t out = 0;
    for (uint32_t i = 0; i <= n; i++)
        if (from >> i & 1)
            out |= ends(t, s, n, i);
    return out;
}

static uint32_t ends(const struct tree *t, const char *s, uint32_t n, uint32_t i)
{
    uint32_t out = 0, cur;
    switch (t->kind) {
    case T_BYTES:
        return n - i >= t->n && memcmp(s + i, t->bytes, t->n) == 0 ? 1u << (i + t->n) : 0;
    case T_SET:
        return i < n && s[i] && memchr(t->bytes, s[i], t->n) ? 1u << (i + 1) : 0;
    case T_SEQ:
        out = 1u << i;
        for (uint32_t k = 0; k < t->n; k++)
            out = ends_from_all(t->kid[k], s, n, out);
        return out;
    case T_ALT:
        for (uint32_t k = 0; k < t->n; k++)
            out |= ends(t->kid[k], s, n, i);
        return out;
    case T_REPEAT:
        cur = 1u << i;
        for (uint32_t k = 0;; k++) {
            if (k >= t->min)
                out |= cur;
            if (k == t->max || k > t->min + n || !cur)
                return out;
            cur = ends_from_all(t->kid[0], s, n, cur);
        }
    case T_AND:
        return ends(t->kid[0], s, n, i) & ends(t->kid[1], s, n, i);
    case T_NOT:
        for (uint32_t j = i; j <= n; j++)
            out |= 1u << j;
        return out & ~ends(t->kid[0], s, n, i);
    case T_MINUS:
        return ends(t->kid[0], s, n, i) & ~ends(t->kid[1], s, n, i);
    case T_RULE:
        return ends(t->kid[0], s, n, i);
    }
    return 0;
}

static struct tree pool[4096];
static uint32_t n_pool;

static struct tree *tree_new(enum tree_kind kind)
{
    CHECK(n_pool < 4096);
    pool[n_pool] = (struct tree){.kind = kind};
    return &pool[n_pool++];
}

static struct tree *random_tree(struct rng *r, int depth, struct tree *rule)
{
    uint32_t pick = depth == 0 ? rng_below(r, 2) : rng_below(r, rule ? 6 : 9);
    struct tree *t;
    if (pick < 1) {
        t = tree_new(T_BYTES);
        t->n = rng_below(r, 4);
        for (uint32_t i = 0; i < t->n; i++)
            t->bytes[i] = "abc"[rng_below(r, 3)];
    } else if (pick < 2) {
        t = tree_new(T_SET);
        t->n = 1 + rng_below(r, 3);
        for (uint32_t i = 0; i < t->n; i++)
            t->bytes[i] = "abc"[rng_below(r, 3)];
    } else if (pick < 5) {
        t = tree_new(pick == 2 ? T_SEQ : pick == 3 ? T_ALT : T_REPEAT);
        t->n = t->kind == T_REPEAT ? 1 : rng_below(r, 4);
        for (uint32_t i = 0; i < t->n; i++)
            t->kid[i] = random_tree(r, depth - 1, rule);
        if (t->kind == T_REPEAT) {
            t->min = rng_below(r, 4);
            t->max = rng_below(r, 2) ? GB_UNBOUNDED : t->min + rng_below(r, 4);
        }
    } else if (rule) { /* a byte before the rule, so that it is no left recursion */
        t = tree_new(T_SEQ);
        t->n = 2 + rng_below(r, 2);
        t->kid[0] = tree_new(T_BYTES);
        t->kid[0]->n = 1;
        t->kid[0]->bytes[0] = "abc"[rng_below(r, 3)];
        t->kid[1] = rule;
        if (t->n == 3)
            t->kid[2] = random_tree(r, depth - 1, rule);
    } else {
        t = tree_new(pick < 7 ? T_AND : pick < 8 ? T_NOT : T_MINUS);
        t->n = t->kind == T_NOT ? 1 : 2;
        for (uint32_t i = 0; i < t->n; i++)
            t->kid[i] = random_tree(r, depth - 1, NULL);
    }
    return t;
}

static gb_node tree_node(struct grammar_builder *b, struct tree *t)
{
    gb_node k[3];
    uint64_t set[4] = {0};
    if (t->kind == T_RULE) {
        if (!t->made) {
            t->made = true;
            t->rule = gb_rule(b, "again");
            gb_define(b, t->rule, tree_node(b, t->kid[0]));
        }
        return t->rule;
    }
    for (uint32_t i = 0; t->kind > T_SET && i < t->n; i++)
        k[i] = tree_node(b, t->kid[i]);
    switch (t->kind) {
    case T_BYTES:
        return gb_bytes(b, t->bytes, t->n);
    case T_SET:
        for (uint32_t i = 0; i < t->n; i++)
            set[t->bytes[i] >> 6] |= (uint64_t)1 << (t->bytes[i] & 63);
        return gb_byte_set(b, set);
    case T_SEQ:
        return gb_seq(b, k, t->n);
    case T_ALT:
        return gb_alt(b, k, t->n);
    case T_REPEAT:
        return gb_repeat(b, k[0], t->min, t->max);
    case T_AND:
        return gb_and(b, k[0], k[1]);
    case T_NOT:
        return gb_not(b, k[0]);
    default:
        return gb_minus(b, k[0], k[1]);
    }
}

/* Tokens: all of 1 to 3 letters, some longer, two that are alike, one that is never allowed. */
enum { N_TOKENS = 3 + 9 + 27 + 20 + 2 };
static char token[N_TOKENS][64];

static const char *token_bytes(const void *arg, uint32_t id, size_t *n)
{
    (void)arg;
    *n = strlen(token[id]);
    return token[id];
}

static struct grammar_vocab *open_vocab(struct rng *r)
{
    uint32_t n = 0;
    for (uint32_t len = 1, all = 3; len <= 3; len++, all *= 3)
        for (uint32_t i = 0; i < all; i++, n++)
            for (uint32_t k = 0, rest = i; k < len; k++, rest /= 3)
                token[n][k] = "abc"[rest % 3];
    for (uint32_t i = 0; i < 20; i++, n++)
        for (uint32_t k = 0, len = 4 + rng_below(r, 3); k < len; k++)
            token[n][k] = "abcd"[rng_below(r, 4)];
    strcpy(token[n++], "ab");
    token[n++][0] = 0;
    CHECK(n == N_TOKENS);
    struct grammar_vocab *v;
    struct err e;
    CHECK_OK(grammar_vocab_open(&v, N_TOKENS, token_bytes, NULL, &e), e);
    return v;
}

static struct grammar *crowded; /* is made to forget all that it can, again and again */

static void crowd(void)
{
    if (crowded)
        crowded->max_bytes = 1;
}

static bool accepts(struct grammar *g, const char *s, size_t n, bool *complete)
{
    struct grammar_matcher *m;
    struct err e;
    size_t taken;
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    crowd();
    bool ok = grammar_matcher_accept(m, s, n, &taken);
    CHECK(!grammar_matcher_failed(m));
    CHECK(ok == (taken == n));
    *complete = ok && grammar_matcher_may_end(m);
    grammar_matcher_close(m);
    return ok;
}

static uint32_t text_number(uint32_t k, uint32_t n, char *s)
{
    for (uint32_t i = 0; i < n; i++, k /= 3)
        s[i] = "abc"[k % 3];
    return k;
}

/* From here, shortest first: does the matcher reach an end within so many bytes? */
static bool reaches_end(const struct grammar_matcher *m, int bytes)
{
    if (grammar_matcher_may_end(m))
        return true;
    if (bytes == 0)
        return false;
    for (const char *c = "abcd"; *c; c++) {
        struct grammar_matcher *k;
        struct err e;
        size_t taken;
        CHECK_OK(grammar_matcher_copy(&k, m, &e), e);
        bool found = grammar_matcher_accept(k, c, 1, &taken) && reaches_end(k, bytes - 1);
        grammar_matcher_close(k);
        if (found)
            return true;
    }
    return false;
}

/* The mask token by token, the forced bytes against single bytes, and no dead end. */
static void check_place(struct grammar_matcher *m)
{
    uint32_t mask[(N_TOKENS + 31) / 32];
    grammar_matcher_mask(m, mask);
    struct grammar_matcher *c;
    struct err e;
    size_t taken;
    for (uint32_t id = 0; id < N_TOKENS; id++) {
        CHECK_OK(grammar_matcher_copy(&c, m, &e), e);
        if (id % 16 == 0)
            crowd();
        bool want = token[id][0] && grammar_matcher_accept(c, token[id], strlen(token[id]), &taken);
        CHECK_MSG((mask[id / 32] >> id % 32 & 1) == want, "token %u '%s': %d", id, token[id], want);
        grammar_matcher_close(c);
    }
    char forced[8];
    crowd();
    size_t n = grammar_matcher_forced(m, forced, sizeof forced);
    CHECK_OK(grammar_matcher_copy(&c, m, &e), e);
    for (size_t i = 0; i <= n; i++) {
        unsigned can = 0;
        for (unsigned byte = 0; byte < 256; byte++) {
            struct grammar_matcher *d;
            CHECK_OK(grammar_matcher_copy(&d, c, &e), e);
            can += grammar_matcher_accept(d, &(char){(char)byte}, 1, &taken);
            grammar_matcher_close(d);
        }
        bool may_end = grammar_matcher_may_end(c);
        CHECK(can > 0 || may_end);
        CHECK(grammar_matcher_must_end(c) == (can == 0));
        if (i < n) {
            CHECK(can == 1 && !may_end);
            CHECK(grammar_matcher_accept(c, forced + i, 1, &taken));
        } else if (n < sizeof forced) {
            CHECK(can != 1 || may_end);
        }
    }
    grammar_matcher_close(c);
}

static void check_language(struct rng *r, struct grammar_vocab *v, struct tree *t, uint64_t *counts)
{
    struct grammar_builder *b;
    struct grammar *g;
    struct err e;
    CHECK_OK(gb_open(&b, &e), e);
    gb_node root = tree_node(b, t);
    CHECK_OK(gb_error(b, &e), e);
    enum err_code code = grammar_compile(&g, v, b, root, &e);
    gb_close(b);
    char s[MAX_TEXT];
    if (code != ERR_OK) { /* no text, then */
        CHECK_MSG(strstr(e.msg, "no text"), "%s", e.msg);
        for (uint32_t n = 0, all = 1; n < 7; n++, all *= 3)
            for (uint32_t k = 0; k < all; k++) {
                text_number(k, n, s);
                CHECK(!(ends(t, s, n, 0) >> n & 1));
            }
        counts[0]++;
        return;
    }
    counts[1]++;
    crowded = rng_below(r, 4) == 0 ? g : NULL;
    for (uint32_t n = 0, all = 1; n < 7; n++, all *= 3)
        for (uint32_t k = 0; k < all; k++) {
            bool complete, prefix, want;
            text_number(k, n, s);
            prefix = accepts(g, s, n, &complete);
            want = ends(t, s, n, 0) >> n & 1;
            CHECK_MSG(complete == want, "'%.*s' %d", (int)n, s, want);
            counts[2] += want;
            CHECK(prefix || !want);
        }
    for (int i = 0; i < 12; i++) {
        struct grammar_matcher *m;
        size_t taken;
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        for (uint32_t n = rng_below(r, 7); n > 0; n--)
            (void)grammar_matcher_accept(m, &"abc"[rng_below(r, 3)], 1, &taken);
        check_place(m);
        counts[3] += reaches_end(m, 4);
        counts[4]++;
        grammar_matcher_close(m);
    }
    crowded = NULL;
    grammar_close(g);
}

/* Goal:   the automaton says what the trees say, of every text of up to six letters; masks and
 *         forced bytes say what single bytes say; no place is a dead end.
 * Method: random trees, with intersections, differences, counts, and empty rounds. A quarter of the
 *         automata forget all that no matcher needs before most calls. */
TEST_LIMIT(grammar_random_regular, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    uint64_t counts[5] = {0};
    for (int round = 0; round < 400; round++) {
        n_pool = 0;
        check_language(&r, v, random_tree(&r, 4, NULL), counts);
    }
    CHECK(counts[0] > 5 && counts[1] > 200 && counts[2] > 1000);
    CHECK_MSG(counts[3] * 10 > counts[4] * 9, "%llu of %llu places reach an end within 4 bytes",
              (unsigned long long)counts[3], (unsigned long long)counts[4]);
    grammar_vocab_close(v);
}

/* The same with one rule that goes round. */
TEST_LIMIT(grammar_random_recursive, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    uint64_t counts[5] = {0};
    for (int round = 0; round < 300; round++) {
        n_pool = 0;
        struct tree *rule = tree_new(T_RULE);
        struct tree *alt = tree_new(T_ALT);
        rule->kid[0] = alt;
        alt->n = 2;
        alt->kid[0] = random_tree(&r, 1, NULL);
        alt->kid[1] = random_tree(&r, 3, rule);
        check_language(&r, v, rule, counts);
    }
    CHECK(counts[1] > 150 && counts[2] > 1000);
    grammar_vocab_close(v);
}

TEST(grammar_left_recursion_is_refused)
{
    struct rng r = {1};
    struct grammar_vocab *v = open_vocab(&r);
    struct grammar_builder *b;
    struct grammar *g;
    struct err e;
    CHECK_OK(gb_open(&b, &e), e);
    gb_node a = gb_bytes(b, "a", 1), rule = gb_rule(b, "list");
    gb_node more = gb_seq(b, (gb_node[]){gb_repeat(b, a, 0, 1), rule, a}, 3);
    gb_define(b, rule, gb_alt(b, (gb_node[]){a, more}, 2));
    CHECK(!gb_is_regular(b, rule));
    CHECK(grammar_compile(&g, v, b, rule, &e) == ERR_INVALID);
    CHECK_MSG(strstr(e.msg, "'list' begins with itself"), "%s", e.msg);
    gb_close(b);
    grammar_vocab_close(v);
}

/* Goal: large counts cost neither copies nor time; they are kept exactly. */
TEST(grammar_large_counts)
{
    struct rng r = {1};
    struct grammar_vocab *v = open_vocab(&r);
    struct grammar_builder *b;
    struct grammar *g;
    struct grammar_matcher *m;
    struct err e;
    size_t taken;
    CHECK_OK(gb_open(&b, &e), e);
    gb_node a = gb_bytes(b, "a", 1), ab = gb_alt(b, (gb_node[]){a, gb_bytes(b, "ab", 2)}, 2);
    gb_node part[] = {gb_repeat(b, ab, 100000, 100002), gb_bytes(b, "c", 1)};
    CHECK_OK(grammar_compile(&g, v, b, gb_seq(b, part, 2), &e), e);
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    for (int i = 0; i < 99999; i++)
        CHECK(grammar_matcher_accept(m, "ab", 2, &taken));
    CHECK(!grammar_matcher_accept(m, "c", 1, &taken));
    CHECK(grammar_matcher_accept(m, "ab", 2, &taken));
    CHECK(grammar_matcher_accept(m, "aab", 3, &taken));
    CHECK(!grammar_matcher_accept(m, "a", 1, &taken));
    CHECK(grammar_matcher_accept(m, "c", 1, &taken));
    CHECK(grammar_matcher_must_end(m));
    CHECK(!grammar_matcher_failed(m));
    grammar_matcher_close(m);
    grammar_close(g);
    gb_close(b);
    grammar_vocab_close(v);
}

/* An array of items that differ: [item,item,...] with at least min and at most max of them. */
static gb_node array(struct grammar_builder *b, gb_node x, uint32_t min, uint32_t max)
{
    gb_node item = gb_item(b, x), comma = gb_bytes(b, ",", 1);
    gb_node more = gb_seq(b, (gb_node[]){comma, item}, 2);
    uint32_t left = max == GB_UNBOUNDED ? max : max - 1;
    gb_node body = gb_seq(b, (gb_node[]){item, gb_repeat(b, more, min ? min - 1 : 0, left)}, 2);
    if (min == 0)
        body = gb_alt(b, (gb_node[]){GB_EMPTY, body}, 2);
    gb_node part[] = {gb_bytes(b, "[", 1), gb_unique(b, body), gb_bytes(b, "]", 1)};
    return gb_seq(b, part, 3);
}

static struct grammar *compiled(struct grammar_vocab *v, struct grammar_builder *b, gb_node x)
{
    struct grammar *g;
    struct err e;
    CHECK_OK(grammar_compile(&g, v, b, x, &e), e);
    return g;
}

static const char *follows(struct grammar *g, const char *text)
{
    static char next[257];
    struct grammar_matcher *m;
    struct err e;
    size_t taken, n = 0;
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    CHECK_MSG(grammar_matcher_accept(m, text, strlen(text), &taken), "'%s' at %zu", text, taken);
    for (unsigned byte = 1; byte < 256; byte++) {
        struct grammar_matcher *c;
        CHECK_OK(grammar_matcher_copy(&c, m, &e), e);
        if (grammar_matcher_accept(c, &(char){(char)byte}, 1, &taken))
            next[n++] = (char)byte;
        grammar_matcher_close(c);
    }
    if (grammar_matcher_may_end(m))
        next[n++] = '$';
    next[n] = 0;
    grammar_matcher_close(m);
    return next;
}

#define CHECK_FOLLOWS(g, text, want)                                                               \
    CHECK_MSG(!strcmp(follows(g, text), want), "after '%s': '%s'", text, follows(g, text))

/* Goal: items that differ, with few texts, many, nested; no way into an array that cannot end. */
TEST(grammar_unique_items)
{
    struct rng r = {1};
    struct grammar_vocab *v = open_vocab(&r);
    struct grammar_builder *b;
    struct grammar *g;
    struct err e;
    CHECK_OK(gb_open(&b, &e), e);
    gb_node word[] = {gb_bytes(b, "ab", 2), gb_bytes(b, "ac", 2), gb_bytes(b, "b", 1)};
    gb_node words = gb_alt(b, word, 3);
    g = compiled(v, b, array(b, words, 0, GB_UNBOUNDED));
    CHECK_FOLLOWS(g, "[", "]ab");
    CHECK_FOLLOWS(g, "[ab,", "ab");
    CHECK_FOLLOWS(g, "[ab,a", "c");
    CHECK_FOLLOWS(g, "[ab,ac", ",]");
    CHECK_FOLLOWS(g, "[ab,ac,", "b");
    CHECK_FOLLOWS(g, "[ac,b,a", "b");
    CHECK_FOLLOWS(g, "[ab,ac,b", "]");
    grammar_close(g);
    g = compiled(v, b, array(b, words, 3, 5));
    CHECK_FOLLOWS(g, "[b,ac", ",");
    CHECK_FOLLOWS(g, "[b,ac,ab", "]");
    grammar_close(g);
    CHECK(grammar_compile(&g, v, b, array(b, words, 4, 5), &e) == ERR_INVALID);

    uint64_t digit[4] = {(uint64_t)3 << '0'};
    gb_node number = gb_repeat(b, gb_byte_set(b, digit), 1, 2), list = array(b, number, 1, 9);
    g = compiled(v, b, list);
    CHECK_FOLLOWS(g, "[0,0", "01");
    CHECK_FOLLOWS(g, "[0,00,0", "1");
    CHECK_FOLLOWS(g, "[0,1,00,01,10,", "1");
    CHECK_FOLLOWS(g, "[0,1,00,01,10,1", "1");
    CHECK_FOLLOWS(g, "[0,1,00,01,10,11", "]");
    grammar_close(g);
    g = compiled(v, b, array(b, list, 2, 2));
    CHECK_FOLLOWS(g, "[[0,1],[0", ",01]");
    CHECK_FOLLOWS(g, "[[0],[0", ",01");
    CHECK_FOLLOWS(g, "[[0],[0,1", ",01]");
    CHECK_FOLLOWS(g, "[[0,1],[0,1", ",01");
    grammar_close(g);
    gb_close(b);
    grammar_vocab_close(v);
}

/* The same by masks: strings of letters in quotes, where tokens leave an item and begin another. */
TEST_LIMIT(grammar_unique_masks, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    for (uint32_t round = 0; round < 300; round++) {
        struct grammar_builder *b;
        struct grammar *g;
        struct grammar_matcher *m;
        struct err e;
        size_t taken;
        CHECK_OK(gb_open(&b, &e), e);
        uint64_t ab[4] = {0, (uint64_t)3 << ('a' & 63)};
        uint32_t min = rng_below(&r, 3);
        uint32_t max = rng_below(&r, 2) ? GB_UNBOUNDED : min + 1 + rng_below(&r, 30);
        gb_node c = gb_bytes(b, "c", 1), letters = gb_repeat(b, gb_byte_set(b, ab), min, max);
        gb_node x = gb_item(b, gb_seq(b, (gb_node[]){letters, c}, 2)); /* c ends an item */
        g = compiled(v, b, gb_unique(b, gb_repeat(b, x, 0, rng_below(&r, 2) ? 3 : GB_UNBOUNDED)));
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        crowded = round % 3 ? NULL : g;
        for (int i = 0; i < 12; i++) {
            check_place(m);
            (void)grammar_matcher_accept(m, &"abccc"[rng_below(&r, 5)], 1, &taken);
        }
        CHECK(!grammar_matcher_failed(m));
        crowded = NULL;
        grammar_matcher_close(m);
        grammar_close(g);
        gb_close(b);
    }
    grammar_vocab_close(v);
}

/* Whether s is a whole array of arrays of words, such as [[aq,q],[]], that all differ. */
static bool nested_and_unique(const char *s)
{
    const char *inner[16], *word[16];
    size_t inner_bytes[16], word_bytes[16];
    unsigned n_inner = 0;
    if (*s++ != '[')
        return false;
    while (*s && *s != ']') {
        unsigned n = 0;
        inner[n_inner] = s;
        if (*s++ != '[')
            return false;
        while (*s && *s != ']') {
            word[n] = s;
            while (*s == 'a' || *s == 'b')
                s++;
            if (*s++ != 'q')
                return false;
            word_bytes[n] = (size_t)(s - word[n]);
            for (unsigned i = 0; i < n; i++)
                if (word_bytes[i] == word_bytes[n] && !memcmp(word[i], word[n], word_bytes[n]))
                    return false;
            CHECK(++n < 16);
            if (*s == ',' && s[1] != ']')
                s++;
            else if (*s != ']')
                return false;
        }
        if (*s++ != ']')
            return false;
        inner_bytes[n_inner] = (size_t)(s - inner[n_inner]);
        for (unsigned i = 0; i < n_inner; i++)
            if (inner_bytes[i] == inner_bytes[n_inner] &&
                !memcmp(inner[i], inner[n_inner], inner_bytes[i]))
                return false;
        CHECK(++n_inner < 16);
        if (*s == ',' && s[1] != ']')
            s++;
        else if (*s != ']')
            return false;
    }
    return s[0] == ']' && !s[1];
}

/* Goal:   sets inside sets, which can be read in two ways at each depth: tokens that end an item
 * and hold further ones, inner or outer. Method: masks against single bytes, and whole texts
 * against a plain reader. */
TEST_LIMIT(grammar_unique_nested, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    grammar_vocab_close(v);
    struct err e;
    for (uint32_t id = 0; id + 1 < N_TOKENS; id++) {
        memset(token[id], 0, sizeof token[id]);
        for (uint32_t k = 0, len = id < 6 ? 1 : 2 + rng_below(&r, 5); k < len; k++)
            token[id][k] = id < 6 ? "[],abq"[id] : "[],,abqq"[rng_below(&r, 8)];
    }
    CHECK_OK(grammar_vocab_open(&v, N_TOKENS, token_bytes, NULL, &e), e);
    uint32_t whole = 0;
    for (uint32_t round = 0; round < 400; round++) {
        struct grammar_builder *b;
        struct grammar_matcher *m;
        size_t taken, n = 0;
        char text[32] = "";
        CHECK_OK(gb_open(&b, &e), e);
        uint64_t ab[4] = {0, (uint64_t)3 << ('a' & 63)};
        gb_node q = gb_bytes(b, "q", 1), set = gb_byte_set(b, ab);
        gb_node one = gb_seq(b, (gb_node[]){gb_repeat(b, set, 0, GB_UNBOUNDED), q}, 2);
        gb_node two = gb_seq(b, (gb_node[]){gb_repeat(b, set, 0, 3), q}, 2);
        gb_node lists[] = {array(b, one, 0, GB_UNBOUNDED), array(b, two, 0, GB_UNBOUNDED)};
        gb_node outer[] = {array(b, lists[0], 0, GB_UNBOUNDED),
                           array(b, gb_alt(b, lists, 2), 0, GB_UNBOUNDED)};
        struct grammar *g = compiled(v, b, round % 2 ? outer[0] : gb_alt(b, outer, 2));
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        crowded = round % 3 ? NULL : g;
        while (n < 20) {
            const char *next = n < 2 ? "[" : &"[],,abqq"[rng_below(&r, 8)];
            check_place(m);
            if (grammar_matcher_accept(m, next, 1, &taken))
                text[n++] = *next;
            bool complete = grammar_matcher_may_end(m);
            CHECK_MSG(complete == nested_and_unique(text), "%s: %d", text, complete);
            whole += complete;
            if (complete)
                break;
        }
        CHECK(!grammar_matcher_failed(m));
        crowded = NULL;
        grammar_matcher_close(m);
        grammar_close(g);
        gb_close(b);
    }
    CHECK_MSG(whole > 100, "%u", whole);
    grammar_vocab_close(v);
}

/* Goal:   a text that can be read in two ways at each of its depths takes no more than its depth.
 * Method: S is a S b | a S c | d: forty a's could stand on 2^40 stacks. Then either letter may
 * close each of them, and with a right side of which neither is known, masks say so. */
TEST(grammar_ambiguous_depths)
{
    struct rng r = {1};
    struct grammar_vocab *v = open_vocab(&r);
    struct grammar_builder *b;
    struct grammar_matcher *m;
    struct err e;
    size_t taken;
    CHECK_OK(gb_open(&b, &e), e);
    gb_node s = gb_rule(b, "s"), a = gb_bytes(b, "a", 1);
    gb_node ways[] = {gb_seq(b, (gb_node[]){a, s, gb_bytes(b, "b", 1)}, 3),
                      gb_seq(b, (gb_node[]){a, s, gb_bytes(b, "c", 1)}, 3), gb_bytes(b, "d", 1)};
    gb_define(b, s, gb_alt(b, ways, 3));
    struct grammar *g = compiled(v, b, s);
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    for (int i = 0; i < 40; i++)
        CHECK(grammar_matcher_accept(m, "a", 1, &taken));
    check_place(m);
    CHECK(grammar_matcher_accept(m, "d", 1, &taken));
    for (int i = 0; i < 40; i++) {
        CHECK(!grammar_matcher_may_end(m));
        check_place(m);
        CHECK(grammar_matcher_accept(m, &"bc"[rng_below(&r, 2)], 1, &taken));
    }
    CHECK(grammar_matcher_must_end(m) && !grammar_matcher_failed(m));
    CHECK_MSG(g->n_cells < 2000, "%u cells", g->n_cells);
    grammar_matcher_close(m);
    grammar_close(g);
    gb_close(b);
    grammar_vocab_close(v);
}

/* Texts of letters, but for some, between marks: the mask takes a way of its own there. */
TEST_LIMIT(grammar_strings_but_names, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    for (uint32_t round = 0; round < 300; round++) {
        struct grammar_builder *b;
        struct grammar *g;
        struct grammar_matcher *m;
        struct err e;
        size_t taken;
        CHECK_OK(gb_open(&b, &e), e);
        uint64_t ab[4] = {0, (uint64_t)3 << ('a' & 63)};
        uint32_t min = rng_below(&r, 3), n_names = 1 + rng_below(&r, 4);
        uint32_t max = rng_below(&r, 2) ? GB_UNBOUNDED : min + 1 + rng_below(&r, 6);
        gb_node name[4], letter = gb_byte_set(b, ab);
        for (uint32_t i = 0; i < n_names; i++) {
            char text[4];
            size_t n = 1 + rng_below(&r, 4);
            for (size_t k = 0; k < n; k++)
                text[k] = "ab"[rng_below(&r, 2)];
            name[i] = gb_bytes(b, text, n);
        }
        gb_node names = gb_alt(b, name, n_names), close = gb_bytes(b, "c", 1);
        if (rng_below(&r, 3) == 0) /* all that begin so */
            names = gb_seq(b, (gb_node[]){names, gb_repeat(b, letter, 0, GB_UNBOUNDED)}, 2);
        gb_node text = gb_repeat(b, letter, min, max);
        if (rng_below(&r, 2)) { /* the mark may be part of the difference */
            text = gb_seq(b, (gb_node[]){text, close}, 2);
            names = gb_seq(b, (gb_node[]){names, close}, 2);
            close = gb_bytes(b, "a", rng_below(&r, 2));
        }
        gb_node key = gb_minus(b, text, names);
        gb_node body = gb_seq(b, (gb_node[]){key, close, gb_bytes(b, "b", rng_below(&r, 2))}, 3);
        enum err_code code = grammar_compile(&g, v, b, gb_repeat(b, body, 1, GB_UNBOUNDED), &e);
        gb_close(b);
        if (code != ERR_OK)
            continue; /* nothing is left */
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        for (int i = 0; i < 12; i++) {
            check_place(m);
            (void)grammar_matcher_accept(m, &"aabbc"[rng_below(&r, 5)], 1, &taken);
        }
        CHECK(!grammar_matcher_failed(m));
        grammar_matcher_close(m);
        grammar_close(g);
    }
    grammar_vocab_close(v);
}

/* Texts of a pattern with a maximum that begins far away: masks up to it and at it. */
TEST_LIMIT(grammar_far_maximum, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_vocab(&r);
    uint64_t abc[4] = {0, (uint64_t)7 << ('a' & 63)};
    for (uint32_t round = 0; round < 200; round++) {
        struct grammar_builder *b;
        struct grammar *g;
        struct grammar_matcher *m;
        struct err e;
        size_t taken;
        n_pool = 0;
        CHECK_OK(gb_open(&b, &e), e);
        gb_node letter = gb_byte_set(b, abc), any = gb_repeat(b, letter, 0, GB_UNBOUNDED);
        gb_node search[] = {any, tree_node(b, random_tree(&r, 2, NULL)), any};
        gb_node pattern =
            rng_below(&r, 2) ? gb_repeat(b, search[1], 0, GB_UNBOUNDED) : gb_seq(b, search, 3);
        uint32_t min = rng_below(&r, 3), max = 10 + rng_below(&r, 20);
        gb_node x = gb_and(b, pattern, gb_repeat(b, letter, min, max));
        gb_node part[] = {x, gb_bytes(b, "d", rng_below(&r, 2))};
        enum err_code code = grammar_compile(&g, v, b, gb_seq(b, part, 2), &e);
        gb_close(b);
        if (code != ERR_OK)
            continue;
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        for (uint32_t i = 0; i < max + 2; i++) {
            check_place(m);
            (void)grammar_matcher_accept(m, &"abc"[rng_below(&r, 3)], 1, &taken);
        }
        CHECK(!grammar_matcher_failed(m));
        grammar_matcher_close(m);
        grammar_close(g);
    }
    grammar_vocab_close(v);
}

/* With some tokens of many words, which may go round more often than is left. */
static struct grammar_vocab *open_long_vocab(struct rng *r)
{
    struct grammar_vocab *v = open_vocab(r);
    struct err e;
    grammar_vocab_close(v);
    for (uint32_t i = 3; i < 15; i++)
        for (uint32_t k = 0, len = 10 + rng_below(r, 50); k <= len; k++)
            token[N_TOKENS - i][k] = k < len ? "abcac"[rng_below(r, 5)] : 0;
    CHECK_OK(grammar_vocab_open(&v, N_TOKENS, token_bytes, NULL, &e), e);
    return v;
}

/* Words that are counted, in a text whose length is bounded: masks where both are far from their
 * ends, near the end of one, and at it; one mask serves many places. */
TEST_LIMIT(grammar_counted_words, 60)
{
    struct rng r = {test_seed()};
    struct grammar_vocab *v = open_long_vocab(&r);
    for (uint32_t round = 0; round < 60; round++) {
        static const char *const words[] = {"[ab]+c", "[ab]+c+", "a[ab]*cc", "(?:ab|b)[ab]*c"};
        struct grammar_builder *b;
        struct grammar *g;
        struct grammar_matcher *m;
        struct err e;
        gb_node pattern, length;
        char text[80];
        size_t taken;
        CHECK_OK(gb_open(&b, &e), e);
        uint32_t least = rng_below(&r, 3), most = 8 + rng_below(&r, 30),
                 max = 30 + rng_below(&r, 50);
        snprintf(text, sizeof text, "(?:%s){%u,%u}[ab]+", words[rng_below(&r, 4)], least, most);
        CHECK_OK(grammar_regex(&pattern, b, text, strlen(text), 0, &e), e);
        snprintf(text, sizeof text, "[^]{%u,%u}", rng_below(&r, 3), max);
        CHECK_OK(grammar_regex(&length, b, text, strlen(text), 0, &e), e);
        gb_node part[] = {gb_and(b, pattern, length), gb_bytes(b, "d", rng_below(&r, 2))};
        CHECK_OK(grammar_compile(&g, v, b, gb_seq(b, part, 2), &e), e);
        gb_close(b);
        CHECK_OK(grammar_matcher_open(&m, g, &e), e);
        for (uint32_t i = 0; i < 2 * max; i++) {
            check_place(m);
            (void)grammar_matcher_accept(m, &"aabcc"[rng_below(&r, 5)], 1, &taken);
        }
        CHECK(!grammar_matcher_failed(m));
        grammar_matcher_close(m);
        grammar_close(g);
    }
    grammar_vocab_close(v);
}
