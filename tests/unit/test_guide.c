/* test_guide.c - tokens as grammars know them, choices that a grammar steers, and the cache. */
#include "base/fault.h"
#include "grammar/cache.h"
#include "grammar/ebnf.h"
#include "grammar/regex.h"
#include "sched/guide.h"
#include "test.h"
#include "text/guide_vocab.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

struct rig {
    struct tokenizer *tok;
    struct guide_vocab *v;
    struct gen_request *r;
    struct guide guide;
};

static void rig_make(struct rig *g)
{
    struct err e;
    memset(g, 0, sizeof *g);
    CHECK_OK(tokenizer_open(&g->tok, "config/models/ember", &e), e);
    CHECK_OK(guide_vocab_open(&g->v, g->tok, tokenizer_n_ids(g->tok) + 5, &e), e);
    g->r = gen_request_new();
    CHECK(g->r && g->v->think_end != UINT32_MAX);
    g->r->guide_vocab = g->v;
}

static void rig_free(struct rig *g)
{
    guide_close(&g->guide);
    gen_request_free(g->r);
    guide_vocab_close(g->v);
    tokenizer_close(g->tok);
}

static enum err_code make_pattern(const struct guide_vocab *v, const char *pattern,
                                  struct grammar **out, struct err *e)
{
    struct grammar_builder *b;
    gb_node x;
    if (gb_open(&b, e))
        return e->code;
    enum err_code code = grammar_regex(&x, b, pattern, strlen(pattern), 0, e);
    if (!code)
        code = grammar_compile(out, v->vocab, b, x, e);
    gb_close(b);
    return code;
}

static void steer(struct rig *g, const char *pattern)
{
    struct err e;
    CHECK_OK(make_pattern(g->v, pattern, &g->r->grammar, &e), e);
    CHECK_OK(guide_open(&g->guide, g->r, &e), e);
}

static const struct guide_rules no_rules = {.may_end = true};

static bool may_come(struct rig *g, uint32_t id)
{
    struct err e;
    bool over;
    CHECK_OK(guide_fill(&g->guide, &no_rules, &over, &e), e);
    return g->guide.mask[id / 32] >> id % 32 & 1;
}

static void put(struct rig *g, const char *text)
{
    struct text_part part = {text, strlen(text), false};
    struct token_vec ids = {0};
    struct err e;
    CHECK_OK(tokenizer_encode(g->tok, &part, 1, &ids, &e), e);
    for (size_t i = 0; i < ids.n; i++) {
        CHECK_MSG(!guide_masks(&g->guide) || may_come(g, ids.id[i]), "%s at %zu", text, i);
        CHECK_OK(guide_put(&g->guide, ids.id[i], &e), e);
    }
    token_vec_free(&ids);
}

static uint32_t plain_id(const struct rig *g, const char *text)
{
    struct text_part part = {text, strlen(text), false};
    struct token_vec ids = {0};
    struct err e;
    CHECK_OK(tokenizer_encode(g->tok, &part, 1, &ids, &e), e);
    CHECK_MSG(ids.n == 1, "%s has %zu tokens", text, ids.n);
    uint32_t id = ids.id[0];
    token_vec_free(&ids);
    return id;
}

TEST(guide_begins_behind_thinking)
{
    struct rig g;
    rig_make(&g);
    g.r->grammar_after_thinking = true;
    steer(&g, "[0-9]+");
    uint32_t marker = tokenizer_find(g.tok, "<think>", 7), digit = plain_id(&g, "7");
    uint32_t eos = tokenizer_eos(g.tok), letter = plain_id(&g, "a");
    CHECK(g.guide.state == GUIDE_THINKING);
    CHECK(may_come(&g, letter) && may_come(&g, digit) && may_come(&g, g.v->think_end));
    CHECK(!may_come(&g, marker) && !may_come(&g, eos)); /* it neither begins anew nor ends here */
    CHECK(!may_come(&g, tokenizer_n_ids(g.tok) + 2));   /* a hole */
    put(&g, "well, 2 < 3 and </thin air");
    CHECK(g.guide.state == GUIDE_THINKING);
    struct err e;
    CHECK_OK(guide_put(&g.guide, g.v->think_end, &e), e);
    CHECK(g.guide.state == GUIDE_ON && may_come(&g, digit) && !may_come(&g, letter));
    rig_free(&g);
}

/* Plain tokens that spell the end of reasoning end it; one that brings more with it cannot come. */
TEST(guide_hears_a_spelled_end)
{
    struct rig g;
    rig_make(&g);
    g.r->grammar_after_thinking = true;
    steer(&g, "[0-9]+");
    put(&g, "so </think");
    CHECK(g.guide.spelled == 7);
    CHECK(may_come(&g, plain_id(&g, ">")));
    put(&g, ">");
    CHECK(g.guide.state == GUIDE_ON && may_come(&g, plain_id(&g, "4")));
    rig_free(&g);
}

TEST(guide_tokens_that_are_longer)
{
    struct rig g;
    uint32_t n_longer = 0, *mask;
    rig_make(&g);
    mask = calloc(g.v->n_words, sizeof *mask);
    memcpy(mask, g.v->plain, g.v->n_words * sizeof *mask);
    grammar_vocab_without_longer(g.v->vocab, "th", 2, mask);
    for (uint32_t id = 0; id < tokenizer_n_ids(g.tok); id++) {
        size_t n;
        const char *p = tokenizer_bytes(g.tok, id, &n);
        bool longer = n > 2 && !memcmp(p, "th", 2), plain = !tokenizer_is_added(g.tok, id);
        CHECK_MSG((mask[id / 32] >> id % 32 & 1) == (plain && !longer), "%.*s", (int)n, p);
        n_longer += longer;
    }
    CHECK(n_longer > 5);
    CHECK(grammar_vocab_has_longer(g.v->vocab, "th", 2));
    CHECK(!grammar_vocab_has_longer(g.v->vocab, "\xFE\xFE", 2));
    free(mask);
    rig_free(&g);
}

/* A grammar takes an added token where it asks for it, and nowhere else: not where its text is. */
TEST(guide_markers_are_no_text)
{
    static const char mark[] = "<｜tool▁call▁end｜>";
    struct rig g;
    struct grammar_builder *b;
    struct err e;
    gb_node node;
    rig_make(&g);
    uint32_t id = tokenizer_find(g.tok, mark, strlen(mark));
    CHECK(id != UINT32_MAX && tokenizer_is_added(g.tok, id));
    steer(&g, "<.*>");
    CHECK(!may_come(&g, id));
    put(&g, mark); /* spelled, it is text like any other */
    guide_close(&g.guide);
    grammar_close(g.r->grammar);
    CHECK_OK(gb_open(&b, &e), e);
    CHECK_OK(guide_vocab_markup(&node, b, g.v, mark, &e), e);
    CHECK_OK(grammar_compile(&g.r->grammar, g.v->vocab, b, node, &e), e);
    gb_close(b);
    CHECK_OK(guide_open(&g.guide, g.r, &e), e);
    bool over;
    CHECK_OK(guide_fill(&g.guide, &no_rules, &over, &e), e);
    for (uint32_t i = 0; i < g.v->n_ids; i++)
        CHECK((g.guide.mask[i / 32] >> i % 32 & 1) == (i == id));
    CHECK_OK(guide_put(&g.guide, id, &e), e);
    CHECK_OK(guide_fill(&g.guide, &no_rules, &over, &e), e);
    CHECK(over);
    rig_free(&g);
}

TEST(guide_ends_and_rules)
{
    struct rig g;
    struct err e;
    bool over;
    rig_make(&g);
    steer(&g, "ab?");
    uint32_t eos = tokenizer_eos(g.tok), a = plain_id(&g, "a"), b = plain_id(&g, "b");
    struct guide_rules rules = {.end_id = &eos, .n_end = 1, .may_end = true};
    CHECK_OK(guide_fill(&g.guide, &rules, &over, &e), e);
    CHECK(!over && !(g.guide.mask[eos / 32] >> eos % 32 & 1));
    CHECK_OK(guide_put(&g.guide, a, &e), e);
    CHECK_OK(guide_fill(&g.guide, &rules, &over, &e), e);
    CHECK(!over && g.guide.mask[eos / 32] >> eos % 32 & 1 && g.guide.mask[b / 32] >> b % 32 & 1);
    rules.banned = &b; /* nothing but the end is left: over, whether it may come or not */
    rules.n_banned = 1;
    CHECK_OK(guide_fill(&g.guide, &rules, &over, &e), e);
    CHECK(over && g.guide.mask[eos / 32] >> eos % 32 & 1);
    rules.may_end = false;
    CHECK_OK(guide_fill(&g.guide, &rules, &over, &e), e);
    CHECK(over && !(g.guide.mask[eos / 32] >> eos % 32 & 1));
    guide_close(&g.guide);
    grammar_close(g.r->grammar);
    steer(&g, "b");
    CHECK(guide_fill(&g.guide, &rules, &over, &e) == ERR_INVALID && strstr(e.msg, "no token"));
    CHECK(guide_put(&g.guide, a, &e) == ERR_INVALID && strstr(e.msg, "does not fit"));
    rig_free(&g);
}

/* Forced tokens are the tokenizer's own, and leave the last ones to the model. */
TEST(guide_forces_the_tokenizers_tokens)
{
    static const char text[] = "The quick brown fox jumps over the lazy dog, and the sea is ";
    struct rig g;
    struct err e;
    uint32_t id[GUIDE_MAX_FORCED], n, total = 0;
    bool over;
    rig_make(&g);
    steer(&g, "The quick brown fox jumps over the lazy dog, and the sea is [a-z]+");
    struct text_part part = {text, sizeof text - 1, false};
    struct token_vec want = {0};
    CHECK_OK(tokenizer_encode(g.tok, &part, 1, &want, &e), e);
    for (;;) {
        CHECK_OK(guide_fill(&g.guide, &no_rules, &over, &e), e);
        CHECK_OK(guide_forced(&g.guide, id, &n, &e), e);
        if (!n)
            break;
        for (uint32_t i = 0; i < n; i++) {
            CHECK(total < want.n && id[i] == want.id[total]);
            CHECK(may_come(&g, id[i]));
            CHECK_OK(guide_put(&g.guide, id[i], &e), e);
            total++;
        }
    }
    CHECK_MSG(total + 3 >= want.n && total < want.n, "%u of %zu", total, want.n);
    token_vec_free(&want);
    rig_free(&g);
}

/* Every allocation fails in turn: an error, and what is shared stays as good as it was. */
TEST_LIMIT(guide_without_memory, 60)
{
    static const char *const places[] = {"guide_vocab.open", "grammar.vocab",     "grammar.compile",
                                         "grammar.matcher",  "grammar.automaton", "grammar.lexicon",
                                         "grammar.builder"};
    struct rig g;
    struct err e = {0};
    rig_make(&g);
    uint32_t digit = plain_id(&g, "7");
    int n_failed = 0;
    for (size_t p = 0; p < sizeof places / sizeof *places; p++)
        for (int k = 1; k < 40; k++) {
            char spec[64];
            struct guide_vocab *v = NULL;
            snprintf(spec, sizeof spec, "%s:%d", places[p], k);
            fault_arm(spec);
            enum err_code code = guide_vocab_open(&v, g.tok, g.v->n_ids, &e);
            fault_arm(NULL);
            if (code) {
                CHECK(code == ERR_NOMEM);
                n_failed++;
                continue;
            }
            g.r->guide_vocab = v;
            fault_arm(spec);
            code = make_pattern(v, "(?=.*[a-z])[0-9a-z]{3,9}", &g.r->grammar, &e);
            if (!code)
                code = guide_open(&g.guide, g.r, &e);
            bool over = false;
            if (!code)
                code = guide_fill(&g.guide, &no_rules, &over, &e);
            if (!code)
                code = guide_put(&g.guide, digit, &e);
            fault_arm(NULL);
            n_failed += code != ERR_OK;
            guide_close(&g.guide);
            if (g.r->grammar) { /* whoever comes next finds it in order */
                CHECK_OK(guide_open(&g.guide, g.r, &e), e);
                CHECK_OK(guide_fill(&g.guide, &no_rules, &over, &e), e);
                CHECK(g.guide.mask[digit / 32] >> digit % 32 & 1);
                CHECK_OK(guide_put(&g.guide, digit, &e), e);
                guide_close(&g.guide);
                grammar_close(g.r->grammar);
                g.r->grammar = NULL;
            }
            g.r->guide_vocab = g.v;
            guide_vocab_close(v);
        }
    CHECK_MSG(n_failed >= 10, "%d", n_failed);
    rig_free(&g);
}

/* --- the cache ----------------------------------------------------------------------------------
 */

struct making {
    const struct guide_vocab *v;
    const char *pattern;
    _Atomic int n_made;
    enum err_code fail;
    unsigned us;
};

static enum err_code make(void *arg, struct grammar **out, struct err *e)
{
    struct making *m = arg;
    atomic_fetch_add(&m->n_made, 1);
    usleep(m->us);
    if (m->fail)
        return err_set(e, m->fail, "it was to fail");
    return make_pattern(m->v, m->pattern, out, e);
}

TEST(cache_keeps_and_forgets)
{
    struct rig g;
    struct grammar_cache *c;
    struct grammar *x, *y;
    struct err e;
    rig_make(&g);
    struct making m = {.v = g.v, .pattern = "[a-z]{5}"};
    CHECK_OK(grammar_cache_open(&c, 3, (size_t)1 << 30, &e), e);
    CHECK(!grammar_cache_has(c, "a", 1));
    CHECK_OK(grammar_cache_get(c, &x, "a", 1, make, &m, &e), e);
    CHECK_OK(grammar_cache_get(c, &y, "a", 1, make, &m, &e), e);
    CHECK(x == y && m.n_made == 1 && grammar_cache_has(c, "a", 1));
    grammar_close(y);
    m.pattern = "(";
    for (int i = 0; i < 2; i++) /* a refusal is kept */
        CHECK(grammar_cache_get(c, &y, "b", 1, make, &m, &e) == ERR_INVALID && e.msg[0]);
    CHECK(m.n_made == 2);
    m.fail = ERR_NOMEM;
    for (int i = 0; i < 2; i++) /* what may go better the next time is not */
        CHECK(grammar_cache_get(c, &y, "c", 1, make, &m, &e) == ERR_NOMEM);
    CHECK(m.n_made == 4 && grammar_cache_get_counts(c).entries == 2);
    m.fail = ERR_OK;
    m.pattern = "x";
    for (char k = 'd'; k < 'h'; k++) {
        CHECK_OK(grammar_cache_get(c, &y, &k, 1, make, &m, &e), e);
        grammar_close(y);
    }
    struct grammar_cache_counts n = grammar_cache_get_counts(c);
    CHECK(n.entries == 3 && n.evicted == 3 && n.hits == 2 && n.misses == 8 && n.refused == 1);
    CHECK(!grammar_cache_has(c, "a", 1) && grammar_cache_has(c, "g", 1) && n.bytes > 0);
    struct grammar_matcher *mt; /* who holds a forgotten one can use it */
    CHECK_OK(grammar_matcher_open(&mt, x, &e), e);
    size_t taken;
    CHECK(grammar_matcher_accept(mt, "abcde", 5, &taken) && grammar_matcher_must_end(mt));
    grammar_matcher_close(mt);
    grammar_close(x);
    grammar_cache_close(c);
    CHECK_OK(grammar_cache_open(&c, 100, 1, &e), e); /* one too large for it stays until the next */
    for (char k = 'a'; k < 'e'; k++) {
        CHECK_OK(grammar_cache_get(c, &y, &k, 1, make, &m, &e), e);
        grammar_close(y);
        CHECK(grammar_cache_get_counts(c).entries == 1);
    }
    grammar_cache_close(c);
    rig_free(&g);
}

struct asker {
    pthread_t thread;
    struct grammar_cache *c;
    struct making *m;
    struct grammar *got;
};

static void *ask(void *arg)
{
    struct asker *a = arg;
    struct err e;
    if (grammar_cache_get(a->c, &a->got, "same", 4, make, a->m, &e))
        a->got = NULL;
    return NULL;
}

TEST(cache_makes_once_for_many)
{
    enum { N = 8 };
    struct rig g;
    struct grammar_cache *c;
    struct asker a[N] = {0};
    struct err e;
    rig_make(&g);
    struct making m = {.v = g.v, .pattern = "[a-z]+", .us = 50000};
    CHECK_OK(grammar_cache_open(&c, 4, (size_t)1 << 30, &e), e);
    for (int round = 0; round < 3; round++) { /* made; then refused; then out of memory */
        m.fail = round == 2 ? ERR_NOMEM : round == 1 ? ERR_INVALID : ERR_OK;
        grammar_cache_close(c);
        CHECK_OK(grammar_cache_open(&c, 4, (size_t)1 << 30, &e), e);
        m.n_made = 0;
        for (int i = 0; i < N; i++) {
            a[i] = (struct asker){.c = c, .m = &m};
            CHECK(!pthread_create(&a[i].thread, NULL, ask, &a[i]));
        }
        for (int i = 0; i < N; i++) {
            pthread_join(a[i].thread, NULL);
            CHECK((a[i].got != NULL) == (round == 0));
            grammar_close(a[i].got);
        }
        CHECK_MSG(m.n_made == 1 || round == 2, "%d", m.n_made);
        CHECK(grammar_cache_get_counts(c).entries == (round == 2 ? 0u : 1u));
    }
    grammar_cache_close(c);
    rig_free(&g);
}
