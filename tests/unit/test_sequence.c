/* test_sequence.c - how a choice ends, and what must not come next. */
#include "base/fault.h"
#include "sched/sequence.h"
#include "test.h"

static const uint32_t eos[] = {90, 91};

struct rig {
    struct gen_request *r;
    struct sequence s;
    struct tokenizer *tok;
};

static const uint32_t prompt[] = {1, 2, 3};

static void rig_make(struct rig *g)
{
    memset(g, 0, sizeof *g);
    g->r = gen_request_new();
    CHECK(g->r != NULL);
    g->r->prompt = prompt;
    g->r->n_prompt = 3;
    g->r->max_tokens = 8;
}

static void rig_open(struct rig *g)
{
    struct err e;
    CHECK_OK(sequence_open(&g->s, g->r, 0, eos, 2, g->tok, &e), e);
}

static void rig_close(struct rig *g)
{
    sequence_close(&g->s);
    gen_request_free(g->r);
    if (g->tok)
        tokenizer_close(g->tok);
}

static struct seq_text put(struct rig *g, uint32_t token)
{
    struct seq_text t;
    struct err e;
    CHECK_OK(sequence_put(&g->s, token, &t, &e), e);
    return t;
}

TEST(sequence_ends_by_length)
{
    struct rig g;
    rig_make(&g);
    rig_open(&g);
    for (uint32_t i = 0; i < 7; i++)
        CHECK(put(&g, 10 + i).finish == FINISH_NONE);
    struct seq_text t = put(&g, 17);
    CHECK(t.finish == FINISH_LENGTH && t.stop_reason == -1 && t.bytes == 0);
    CHECK(g.s.n_tokens == 11 && memcmp(g.s.token, prompt, sizeof prompt) == 0);
    CHECK(g.s.token[3] == 10 && g.s.token[10] == 17);
    rig_close(&g);
}

TEST(sequence_ends_by_end_and_stop_ids)
{
    static const uint32_t stop_id[] = {50};
    struct rig g;
    for (int ignore = 0; ignore < 2; ignore++) {
        rig_make(&g);
        g.r->stop_id = stop_id;
        g.r->n_stop_id = 1;
        g.r->ignore_eos = ignore;
        rig_open(&g);
        struct seq_text t = put(&g, 91);
        if (ignore) {
            CHECK(t.finish == FINISH_NONE);
            t = put(&g, 50);
            CHECK(t.finish == FINISH_STOP && t.stop_reason == 50);
        } else {
            CHECK(t.finish == FINISH_STOP && t.stop_reason == -1);
        }
        rig_close(&g);
    }
}

/* Of n tokens of reasoning the next one is known; then nothing is, and a budget binds only where
 * reasoning is open. */
TEST(sequence_ends_thinking_in_time)
{
    struct rig g;
    uint32_t id;
    for (int open = 0; open < 2; open++) {
        rig_make(&g);
        g.r->limit_thinking = true;
        g.r->thinking_open = open;
        g.r->max_thinking = 2;
        g.r->think_begin = 40;
        g.r->think_end = 41;
        rig_open(&g);
        if (!open) {
            CHECK(!sequence_must_close(&g.s, &id) && put(&g, 10).finish == FINISH_NONE);
            CHECK(!sequence_must_close(&g.s, &id) && put(&g, 40).finish == FINISH_NONE);
        }
        for (uint32_t i = 0; i < 2; i++)
            CHECK(!sequence_must_close(&g.s, &id) && put(&g, 10 + i).finish == FINISH_NONE);
        CHECK(sequence_must_close(&g.s, &id) && id == 41);
        CHECK(put(&g, 41).finish == FINISH_NONE);
        for (uint32_t i = 0; i < 2; i++)
            CHECK(!sequence_must_close(&g.s, &id) && put(&g, 10).finish == FINISH_NONE);
        CHECK(!sequence_must_close(&g.s, &id));
        rig_close(&g);
    }
    rig_make(&g); /* without a budget */
    g.r->thinking_open = true;
    rig_open(&g);
    CHECK(!sequence_must_close(&g.s, &id));
    rig_close(&g);
    rig_make(&g); /* it may be nothing at all */
    g.r->limit_thinking = g.r->thinking_open = true;
    g.r->think_end = 41;
    rig_open(&g);
    CHECK(sequence_must_close(&g.s, &id) && id == 41);
    rig_close(&g);
}

TEST(sequence_an_end_id_wins_over_length)
{
    struct rig g;
    rig_make(&g);
    g.r->max_tokens = 1;
    rig_open(&g);
    CHECK(put(&g, 90).finish == FINISH_STOP);
    rig_close(&g);
}

TEST(sequence_min_tokens_bans_and_defers_ends)
{
    struct rig g;
    rig_make(&g);
    g.r->min_tokens = 2;
    rig_open(&g);
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 2 && g.s.banned[0] == 90 && g.s.banned[1] == 91);
    CHECK(put(&g, 90).finish == FINISH_NONE); /* were it to come all the same */
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 2);
    CHECK(put(&g, 5).finish == FINISH_NONE);
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 0);
    CHECK(put(&g, 90).finish == FINISH_STOP);
    rig_close(&g);
}

/* They are banned at every token, beside what else is, and nobody has to watch for them. */
TEST(sequence_never_takes_some_ids)
{
    static const uint32_t never[] = {70, 71};
    struct rig g;
    rig_make(&g);
    g.r->never = never;
    g.r->n_never = 2;
    g.r->min_tokens = 1;
    rig_open(&g);
    for (int i = 0; i < 3; i++) {
        sequence_ban(&g.s);
        CHECK(g.s.n_banned == (i ? 2 : 2 + g.s.n_end) && g.s.banned[0] == 70 &&
              g.s.banned[1] == 71);
        CHECK((sequence_unwatched(&g.s) > 0) == (i > 0));
        CHECK(put(&g, 10).finish == FINISH_NONE);
    }
    rig_close(&g);
}

TEST(sequence_bad_words_ban_their_last_token)
{
    static const uint32_t one[] = {20}, three[] = {30, 31, 32}, across[] = {3, 40};
    static const struct token_span words[] = {{one, 1}, {three, 3}, {across, 2}, {NULL, 0}};
    struct rig g;
    rig_make(&g);
    g.r->bad_word = words;
    g.r->n_bad_words = 4;
    rig_open(&g);
    sequence_ban(&g.s); /* the prompt's last token is 3, but a word lies within the output */
    CHECK(g.s.n_banned == 1 && g.s.banned[0] == 20);
    put(&g, 30);
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 1);
    put(&g, 31);
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 2 && g.s.banned[1] == 32);
    put(&g, 3);
    sequence_ban(&g.s);
    CHECK(g.s.n_banned == 2 && g.s.banned[1] == 40);
    rig_close(&g);
}

TEST(sequence_sizes)
{
    struct gen_request r = {.n_prompt = 1};
    CHECK(sequence_kv_tokens(&r) == 1 && sequence_shared_pages(&r) == 0);
    r.max_tokens = 1;
    CHECK(sequence_kv_tokens(&r) == 1); /* the token is chosen, but never run */
    r.max_tokens = 64;
    CHECK(sequence_kv_tokens(&r) == 64);
    r.n_prompt = 64;
    CHECK(sequence_shared_pages(&r) == 0); /* the last token is always run */
    r.n_prompt = 65;
    CHECK(sequence_shared_pages(&r) == 1);
    r.n_prompt = r.max_tokens = UINT32_MAX;
    CHECK(sequence_kv_tokens(&r) == 2ull * UINT32_MAX - 1);
}

TEST(sequence_counts_pages_over_time)
{
    struct rig g;
    rig_make(&g);
    rig_open(&g);
    g.s.kv_since_us = 100;
    g.s.table.n_pages = 3;
    sequence_count_pages(&g.s, 110);
    sequence_count_pages(&g.s, 105); /* a clock never takes back */
    g.s.kv_since_us = 110;
    g.s.table.n_pages = 1;
    sequence_count_pages(&g.s, 120);
    CHECK(g.s.kv_page_us > 39.5 && g.s.kv_page_us < 40.5);
    g.s.table.n_pages = 0;
    rig_close(&g);
}

TEST(sequence_open_without_memory)
{
    for (int at = 1; at <= 5; at++) {
        char spec[32];
        struct rig g;
        struct err e;
        rig_make(&g);
        snprintf(spec, sizeof spec, "arena.alloc:%d", at);
        fault_arm(spec);
        CHECK(sequence_open(&g.s, g.r, 0, eos, 2, NULL, &e) == ERR_NOMEM);
        fault_arm(NULL);
        rig_close(&g);
    }
}

/* Token i is byte i. Bytes that do not print are spelled as the usual byte-level table does. */
static void open_letters(struct rig *g)
{
    static char json[8192];
    char *p = json;
    unsigned n_odd = 0;
    struct err e;
    p += sprintf(p, "{\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":"
                    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},"
                    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (unsigned i = 0; i < 256; i++) {
        bool plain = (i > 32 && i < 127) || (i > 160 && i != 173);
        p += sprintf(p, "%s\"\\u%04x\":%u", i ? "," : "", plain ? i : 256 + n_odd++, i);
    }
    p += sprintf(p, "},\"merges\":[]}}");
    CHECK_OK(tokenizer_parse(&g->tok, json, (size_t)(p - json), NULL, 0, &e), e);
}

static void check_text(const struct seq_text *t, const char *want)
{
    CHECK_MSG(t->bytes == strlen(want) && memcmp(t->text, want, t->bytes) == 0, "\"%.*s\", not %s",
              (int)t->bytes, t->text, want);
}

TEST(sequence_stop_strings_and_the_rest_of_the_text)
{
    struct rig g;
    rig_make(&g);
    open_letters(&g);
    g.r->stop[0] = "xyz";
    g.r->stop_bytes[0] = 3;
    g.r->stop[1] = "cd";
    g.r->stop_bytes[1] = 2;
    g.r->n_stop = 2;
    rig_open(&g);
    struct seq_text t = put(&g, 'a');
    check_text(&t, "a");
    t = put(&g, 'c'); /* may become "cd" */
    check_text(&t, "");
    t = put(&g, 'b');
    check_text(&t, "cb");
    t = put(&g, 'c');
    t = put(&g, 'd');
    check_text(&t, "");
    CHECK(t.finish == FINISH_STOP && t.stop_reason == -3);
    sequence_flush(&g.s, &t);
    check_text(&t, "");
    rig_close(&g);
}

TEST(sequence_an_end_id_lets_held_text_out)
{
    static const uint32_t stop_id[] = {'e'};
    struct rig g;
    for (int include = 0; include < 2; include++) {
        rig_make(&g);
        open_letters(&g);
        g.r->stop[0] = "xyz";
        g.r->stop_bytes[0] = 3;
        g.r->n_stop = 1;
        g.r->stop_id = stop_id;
        g.r->n_stop_id = 1;
        g.r->include_stop = include;
        rig_open(&g);
        put(&g, 'x');
        struct seq_text t = put(&g, 'y'); /* "xy" is held */
        check_text(&t, "");
        t = put(&g, 'e');
        CHECK(t.finish == FINISH_STOP && t.stop_reason == 'e');
        check_text(&t, include ? "xye" : "");
        sequence_flush(&g.s, &t);
        check_text(&t, include ? "" : "xy");
        rig_close(&g);
    }
}
