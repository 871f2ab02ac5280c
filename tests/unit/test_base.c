/* test_base.c - arena, mailbox, hash, rng, json, faults. */
#include "base/arena.h"
#include "base/fault.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mailbox.h"
#include "base/rng.h"
#include "base/thread.h"
#include "test.h"

TEST(arena_pieces_are_aligned_and_apart)
{
    struct arena a;
    arena_init(&a, 64);
    unsigned char *last = NULL;
    for (size_t n = 0; n < 300; n += 7) {
        unsigned char *p = arena_alloc(&a, n);
        CHECK(p && (uintptr_t)p % 16 == 0 && p != last);
        memset(p, 0xAB, n);
        last = n ? p : last;
    }
    arena_free(&a);
    CHECK(a.used_bytes == 0 && !a.head);
}

TEST(arena_fault_gives_null)
{
    struct arena a;
    arena_init(&a, 0);
    fault_arm("arena.alloc:2");
    CHECK(arena_alloc(&a, 1));
    CHECK(!arena_alloc(&a, 1));
    CHECK(arena_alloc(&a, 1));
    fault_arm(NULL);
    arena_free(&a);
}

struct note {
    struct mail mail;
    unsigned sender, number;
};
enum { SENDERS = 4, EACH = 5000 };
static struct mailbox box;

static void *send_notes(void *arg)
{
    unsigned sender = (unsigned)(uintptr_t)arg;
    for (unsigned i = 0; i < EACH; i++) {
        struct note *n = malloc(sizeof *n);
        CHECK(n != NULL);
        n->sender = sender;
        n->number = i;
        mailbox_put(&box, &n->mail);
    }
    return NULL;
}

/* Goal: nothing is lost and each sender's order is kept, however the threads run. */
TEST(mailbox_keeps_every_senders_order)
{
    pthread_t t[SENDERS];
    struct err e = {0};
    unsigned next[SENDERS] = {0}, total = 0;
    mailbox_init(&box);
    for (unsigned i = 0; i < SENDERS; i++)
        CHECK_OK(thread_start(&t[i], "sender", send_notes, (void *)(uintptr_t)i, &e), e);
    while (total < SENDERS * EACH) {
        for (struct mail *m = mailbox_wait(&box, 0), *after; m; m = after) {
            struct note *n = (struct note *)m;
            after = m->next;
            CHECK(n->number == next[n->sender]++);
            total++;
            free(n);
        }
    }
    for (unsigned i = 0; i < SENDERS; i++)
        thread_join(t[i]);
    mailbox_destroy(&box);
}

TEST(mailbox_kick_ends_a_wait)
{
    mailbox_init(&box);
    mailbox_kick(&box);
    CHECK(!mailbox_wait(&box, 0));
    CHECK(!mailbox_wait(&box, 1000)); /* the kick was used up: this one ends by its limit */
    mailbox_destroy(&box);
}

/* Known answers of Philox4x32-10 (Random123's published vectors: all zero and all ones). */
TEST(philox_known_answers)
{
    uint32_t out[4];
    philox4x32(0, 0, 0, out);
    CHECK(out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c &&
          out[3] == 0x9b00dbd8);
}

TEST(rng_unit_stays_inside)
{
    CHECK(rng_unit(0) > 0.0f && rng_unit(~0u) < 1.0f);
}

TEST(hash_depends_on_every_byte_and_length)
{
    unsigned char b[40] = {0};
    uint64_t seen[82];
    size_t n = 0;
    for (size_t len = 0; len <= 40; len++)
        seen[n++] = hash_bytes(7, b, len);
    for (size_t i = 0; i < 40; i++) {
        b[i] = 1;
        seen[n++] = hash_bytes(7, b, 40);
        b[i] = 0;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t k = i + 1; k < n; k++)
            CHECK(seen[i] != seen[k]);
}

static void refuse(const char *text, size_t n, const char *part)
{
    struct err e = {0};
    cJSON *tree = NULL;
    CHECK_MSG(json_parse(&tree, text, n, 8, &e) == ERR_INVALID, "accepted: %s", text);
    CHECK_MSG(strstr(e.msg, part), "%s: %s", text, e.msg);
    CHECK(!tree);
}

TEST(json_refuses_what_is_wrong_and_says_where)
{
    refuse("", 0, "byte 0");
    refuse("{\"a\":1,}", 8, "byte");
    refuse("[1] x", 5, "byte 4");
    refuse("\"\xff\"", 3, "UTF-8 at byte 1");
    refuse("\"\xed\xa0\x80\"", 5, "UTF-8");
    refuse("\"a\0b\"", 5, "NUL at byte 2");
    refuse("\"\\u0000\"", 8, "u0000");
    refuse("\"\\ud800\"", 8, "surrogate");
    refuse("\"\\udc00\"", 8, "surrogate");
    refuse("\"\\ud800\\u0041\"", 14, "surrogate");
    refuse("\"\\u12g4\"", 8, "escape");
    refuse("[[[[[[[[[1]]]]]]]]]", 19, "nested");
    refuse("\"a\nb\"", 5, "control");
}

TEST(json_reads_nul_where_it_may)
{
    static const char text[] = "{\"a\\u0000\": [\"\\\\u0000\", \"\\u0000\"]}";
    struct err e = {0};
    cJSON *t = NULL;
    CHECK_OK(json_parse_nul(&t, text, strlen(text), 8, &e), e);
    const cJSON *a = json_get(t, "a" JSON_NUL);
    CHECK(cJSON_GetArraySize(a) == 2);
    CHECK(!strcmp(a->child->valuestring, "\\u0000"));
    CHECK(!strcmp(a->child->next->valuestring, JSON_NUL));
    cJSON_Delete(t);
    CHECK(json_parse_nul(&t, "\"\0\"", 3, 8, &e) == ERR_INVALID);
    CHECK(json_parse_nul(&t, "\"\xC0\x80\"", 4, 8, &e) == ERR_INVALID);
}

TEST(json_reads_pairs_and_takes_the_last_duplicate)
{
    struct err e = {0};
    cJSON *t = NULL;
    const char *s = "{\"a\":1,\"a\":2,\"s\":\"\\ud83d\\ude00\",\"n\":null}";
    CHECK_OK(json_parse(&t, s, strlen(s), 8, &e), e);
    CHECK(json_get(t, "a")->valueint == 2);
    CHECK(strcmp(json_get(t, "s")->valuestring, "\xf0\x9f\x98\x80") == 0);
    uint32_t v = 9;
    CHECK_OK(json_get_u32(t, "missing", 0, 10, &v, &e), e);
    CHECK_OK(json_get_u32(t, "n", 0, 10, &v, &e), e);
    CHECK(v == 9);
    CHECK(json_get_u32(t, "s", 0, 10, &v, &e) == ERR_INVALID && strstr(e.msg, "s:"));
    CHECK(json_get_u32(t, "a", 5, 10, &v, &e) == ERR_INVALID && strstr(e.msg, "5..10"));
    cJSON_Delete(t);
}
