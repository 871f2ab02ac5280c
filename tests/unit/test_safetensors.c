/* test_safetensors.c - good files, lying files, shards and their index. */
#include "base/clock.h"
#include "base/fault.h"
#include "model/safetensors.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

/* A file as it lies on disk: length, header, data_bytes of 0, 1, 2 ... */
struct image {
    unsigned char *bytes;
    size_t n;
};

static struct image make_image(const char *header, size_t data_bytes)
{
    size_t len = strlen(header);
    struct image m = {malloc(8 + len + data_bytes), 8 + len + data_bytes};
    CHECK(m.bytes != NULL);
    for (int i = 0; i < 8; i++)
        m.bytes[i] = (unsigned char)((uint64_t)len >> (8 * i));
    memcpy(m.bytes + 8, header, len);
    for (size_t i = 0; i < data_bytes; i++)
        m.bytes[8 + len + i] = (unsigned char)i;
    return m;
}

static const char *in_tmp(const char *name)
{
    static char path[2][256];
    static int turn;
    char *p = path[turn++ % 2];
    snprintf(p, 256, "%s/%s", test_tmpdir(), name);
    return p;
}

static void write_bytes(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(in_tmp(name), "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static void write_image(const char *name, const char *header, size_t data_bytes)
{
    struct image m = make_image(header, data_bytes);
    write_bytes(name, m.bytes, m.n);
    free(m.bytes);
}

TEST(a_small_file)
{
    write_image("model.safetensors",
                "{\"__metadata__\":{\"format\":\"pt\"},"
                "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                "\"none\":{\"dtype\":\"I64\",\"shape\":[0,5],\"data_offsets\":[24,24]},"
                "\"a\":{\"data_offsets\":[26,30],\"shape\":[2],\"dtype\":\"BF16\",\"new\":[]},"
                "\"one\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[24,25]}}   ",
                40);
    struct safetensors *st = NULL;
    struct err e = {0};
    CHECK_OK(safetensors_open_dir(&st, test_tmpdir(), &e), e);
    CHECK(safetensors_count(st) == 4 && safetensors_bytes(st) == 24 + 0 + 4 + 1);
    static const char *const order[] = {"a", "b", "none", "one"};
    for (size_t i = 0; i < 4; i++)
        CHECK(strcmp(safetensors_at(st, i)->name, order[i]) == 0 && !safetensors_at(st, i)->used);
    struct tensor *t = safetensors_find(st, "b");
    CHECK(t && t->used && t->dtype == DT_F32 && t->n_dims == 2 && t->dim[0] == 2 && t->dim[1] == 3);
    CHECK(t->bytes == 24 && ((const unsigned char *)t->data)[23] == 23);
    t = safetensors_find(st, "a");
    CHECK(t && t->bytes == 4 && ((const unsigned char *)t->data)[0] == 26);
    t = safetensors_find(st, "one");
    CHECK(t && t->n_dims == 0 && t->bytes == 1);
    CHECK(!safetensors_find(st, "") && !safetensors_find(st, "__metadata__"));
    CHECK(!safetensors_find(st, "bb") && !safetensors_find(st, "zzz"));
    for (size_t i = 0; i < 4; i++)
        safetensors_prefetch(safetensors_at(st, i)->data, safetensors_at(st, i)->bytes);
    safetensors_close(st);
    safetensors_close(NULL);
}

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end   \
    "]}"

TEST(lying_headers_are_refused_with_both_numbers)
{
    static const struct {
        const char *header, *message;
    } bad[] = {
        {"", "header: JSON"},
        {"{", "header: JSON"},
        {"[]", "the header is no JSON object"},
        {"{\"a\":[]}", "a: must be an object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", "a: dtype must be a string"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", "a: shape must be a list"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", "a: data_offsets must be two"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", "must be two"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", "must be two"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
         "a: dtype is given twice"},
        {"{" T("a", "F7", "[1]", "0", "4") "}", "a: dtype \"F7\" is not known"},
        {"{" T("a", "U8", "[-1]", "0", "1") "}", "a: dimension 0 of shape is no whole number"},
        {"{" T("a", "U8", "[1.5]", "0", "1") "}", "a: dimension 0"},
        {"{" T("a", "U8", "[\"1\"]", "0", "1") "}", "a: dimension 0"},
        {"{" T("a", "U8", "[1e300]", "0", "1") "}", "a: dimension 0"},
        {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", "more than 8 dimensions"},
        {"{" T("a", "F32", "[4294967296,4294967296]", "0", "0") "}",
         "a: shape has more than 2^64 bytes at dimension 1 (4294967296)"},
        {"{" T("a", "F64", "[9007199254740992,1024]", "0", "0") "}", "more than 2^64 bytes"},
        {"{" T("a", "U8", "[8]", "0", "17") "}", "a: data_offsets [0, 17] are outside 16 bytes"},
        {"{" T("a", "U8", "[1]", "2", "1") "}", "a: data_offsets [2, 1] are outside"},
        {"{" T("a", "U8", "[1]", "-1", "0") "}", "a: data_offsets must be two whole numbers"},
        {"{" T("a", "F32", "[3]", "0", "16") "}",
         "shape has 12 bytes as F32, data_offsets have 16"},
        {"{" T("a", "U8", "[9]", "0", "9") "," T("b", "U8", "[8]", "8", "16") "}",
         "a and b share bytes from 8 on"},
        {"{" T("b", "U8", "[16]", "0", "16") "," T("a", "U8", "[2]", "4", "6") "}",
         "b and a share bytes from 4 on"},
        {"{" T("a", "U8", "[1]", "0", "1") "," T("a", "U8", "[1]", "1", "2") "}",
         "a is there twice"},
        {"{\"a\":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}", "nested levels"},
    };
    struct err e = {0};
    struct safetensors *st = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image m = make_image(bad[i].header, 16);
        CHECK_MSG(safetensors_check(m.bytes, m.n, &e) == ERR_INVALID, "accepted %s", bad[i].header);
        CHECK_MSG(strstr(e.msg, bad[i].message), "%s: %s", bad[i].header, e.msg);
        free(m.bytes);
        write_image("bad.safetensors", bad[i].header, 16);
        CHECK(safetensors_open_file(&st, in_tmp("bad.safetensors"), &e) == ERR_INVALID && !st);
        CHECK_MSG(strstr(e.msg, "/bad.safetensors: ") && strstr(e.msg, bad[i].message), "%s",
                  e.msg);
    }
}

/* Goal: no prefix of a good file is taken for one that has all its data. */
TEST(every_truncation_is_refused)
{
    struct image m = make_image(
        "{" T("a", "F32", "[3]", "0", "12") "," T("b", "BF16", "[2]", "12", "16") "}", 16);
    struct err e = {0};
    CHECK_OK(safetensors_check(m.bytes, m.n, &e), e);
    for (size_t n = 0; n < m.n; n++) {
        unsigned char *cut = malloc(n ? n : 1); /* so that a sanitizer sees a read past the end */
        memcpy(cut, m.bytes, n);
        CHECK_MSG(safetensors_check(cut, n, &e) == ERR_INVALID, "accepted %zu bytes", n);
        free(cut);
    }
    m.bytes[7] = 0xFF; /* a length near 2^64 */
    CHECK(safetensors_check(m.bytes, m.n, &e) == ERR_INVALID && strstr(e.msg, "is more than"));
    m.bytes[7] = 0;
    m.bytes[3] = 1; /* 16 MB: allowed, but not there */
    CHECK(safetensors_check(m.bytes, m.n, &e) == ERR_INVALID && strstr(e.msg, "the file"));
    free(m.bytes);
}

TEST(files_that_cannot_be_opened)
{
    struct safetensors *st = NULL;
    struct err e = {0};
    CHECK(safetensors_open_dir(&st, test_tmpdir(), &e) == ERR_IO && strstr(e.msg, "neither"));
    CHECK(safetensors_open_file(&st, in_tmp("none"), &e) == ERR_IO && strstr(e.msg, "/none: No"));
    CHECK(safetensors_open_file(&st, test_tmpdir(), &e) == ERR_IO);
    CHECK(strstr(e.msg, "not a plain file"));
    write_bytes("empty", "", 0);
    CHECK(safetensors_open_file(&st, in_tmp("empty"), &e) == ERR_INVALID);
    CHECK(strstr(e.msg, "/empty: 0 bytes are too few"));
}

/* The header's length decides where data begins: odd lengths give odd addresses, and that is fine.
 */
TEST(odd_alignment_is_tolerated)
{
    struct safetensors *st = NULL;
    struct err e = {0};
    write_image("odd.safetensors", "{" T("a", "F32", "[2]", "0", "8") "}  ", 8);
    write_image("even.safetensors", "{" T("a", "F32", "[2]", "0", "8") "}   ", 8);
    unsigned odd = 0;
    for (int i = 0; i < 2; i++) {
        CHECK_OK(safetensors_open_file(&st, in_tmp(i ? "odd.safetensors" : "even.safetensors"), &e),
                 e);
        const struct tensor *t = safetensors_find(st, "a");
        odd += (uintptr_t)t->data % 2 == 1;
        CHECK(((const unsigned char *)t->data)[7] == 7);
        safetensors_close(st);
    }
    CHECK(odd == 1);
}

static void write_index(const char *weight_map)
{
    char text[1024];
    int n = snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":8},\"weight_map\":%s}",
                     weight_map);
    write_bytes("model.safetensors.index.json", text, (size_t)n);
}

static void write_shards(void)
{
    write_image("s1.safetensors", "{" T("a", "U8", "[4]", "0", "4") "}", 4);
    write_image("s2.safetensors",
                "{" T("c", "U8", "[2]", "0", "2") "," T("b", "U8", "[2]", "2", "4") "}", 4);
}

TEST(shards_and_their_index)
{
    struct safetensors *st = NULL;
    struct err e = {0};
    write_shards();
    write_index("{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\",\"c\":\"s2.safetensors\"}");
    CHECK_OK(safetensors_open_dir(&st, test_tmpdir(), &e), e);
    CHECK(safetensors_count(st) == 3 && safetensors_bytes(st) == 8);
    const struct tensor *t = safetensors_find(st, "b");
    CHECK(t && ((const unsigned char *)t->data)[0] == 2);
    safetensors_close(st);
    /* What the index leaves out is there all the same. */
    write_index("{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}");
    CHECK_OK(safetensors_open_dir(&st, test_tmpdir(), &e), e);
    CHECK(safetensors_find(st, "c"));
    safetensors_close(st);
    /* A whole file wins over an index beside it. */
    write_image("model.safetensors", "{}", 0);
    CHECK_OK(safetensors_open_dir(&st, test_tmpdir(), &e), e);
    CHECK(safetensors_count(st) == 0);
    safetensors_close(st);
}

TEST(indexes_that_lie)
{
    static const char *const bad[][2] = {
        {"{\"a\":\"s1.safetensors\",\"d\":\"s2.safetensors\"}",
         "weight_map: d is not in s2.safetensors"},
        {"{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}",
         "weight_map: b is in s2.safetensors, not in s1.safetensors"},
        {"{\"a\":\"s1.safetensors\",\"b\":\"s3.safetensors\"}", "/s3.safetensors: No such file"},
        {"{\"a\":\"s1.safetensors\",\"a\":\"s1.safetensors\"}", "weight_map: a is there twice"},
        {"{\"a\":\"../s1.safetensors\"}", "weight_map: a: must name a file of this folder"},
        {"{\"a\":\"\"}", "weight_map: a: must name a file"},
        {"{\"a\":7}", "weight_map: a: must name a file"},
        {"{}", "weight_map: must be an object with members"},
        {"[]", "weight_map: must be an object"},
        {"", "JSON"},
    };
    struct safetensors *st = NULL;
    struct err e = {0};
    write_shards();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index(bad[i][0]);
        enum err_code code = safetensors_open_dir(&st, test_tmpdir(), &e);
        CHECK_MSG(code == ERR_INVALID || code == ERR_IO, "accepted %s", bad[i][0]);
        CHECK_MSG(!st && strstr(e.msg, bad[i][1]) && strstr(e.msg, test_tmpdir()) == e.msg, "%s",
                  e.msg);
    }
    write_image("s1.safetensors",
                "{" T("a", "U8", "[4]", "0", "4") "," T("b", "U8", "[1]", "4", "5") "}", 5);
    write_index("{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}");
    CHECK(safetensors_open_dir(&st, test_tmpdir(), &e) == ERR_INVALID);
    CHECK_MSG(strstr(e.msg, "b is in both ") && strstr(e.msg, "/s2.safetensors"), "%s", e.msg);
}

/* Goal:   a checkpoint of DeepSeek-V3.2's size opens at once: nothing is quadratic in its 92,425
 * names. Method: all names in two shards (the worst case), one byte of data each. */
TEST(ninety_thousand_tensors_open_quickly)
{
    enum { N = 92425, PER_LINE = 160 };
    char *header = malloc(N * PER_LINE), *index = malloc(N * PER_LINE);
    CHECK(header && index);
    size_t at = (size_t)sprintf(index, "{\"weight_map\":{");
    for (unsigned s = 0, i = 0; s < 2; s++) {
        size_t n = 0;
        unsigned base = i, end = s ? N : N / 2;
        char shard[32];
        snprintf(shard, sizeof shard, "s%u.safetensors", s);
        for (; i < end; i++) {
            n += (size_t)sprintf(header + n,
                                 "%c\"model.layers.%u.mlp.experts.%u.up_proj.weight\":{\"dtype\":"
                                 "\"U8\",\"shape\":[1],\"data_offsets\":[%u,%u]}",
                                 i == base ? '{' : ',', i / 1000, i, i - base, i - base + 1);
            at += (size_t)sprintf(index + at,
                                  "%s\"model.layers.%u.mlp.experts.%u.up_proj.weight\":\"%s\"",
                                  i ? "," : "", i / 1000, i, shard);
        }
        strcpy(header + n, "}");
        write_image(shard, header, end - base);
    }
    at += (size_t)sprintf(index + at, "}}");
    write_bytes("model.safetensors.index.json", index, at);
    struct safetensors *st = NULL;
    struct err e = {0};
    uint64_t begin = clock_us();
    CHECK_OK(safetensors_open_dir(&st, test_tmpdir(), &e), e);
    for (unsigned i = 0; i < N; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.%u.up_proj.weight", i / 1000, i);
        const struct tensor *t = safetensors_find(st, name);
        unsigned place = i < N / 2 ? i : i - N / 2;
        CHECK(t && *(const unsigned char *)t->data == (unsigned char)place);
    }
    uint64_t took = clock_us() - begin;
    CHECK_MSG(took < 10000000, "%llu us", (unsigned long long)took);
    safetensors_close(st);
    free(header);
    free(index);
}

TEST(faults_leave_nothing_behind)
{
    write_shards();
    write_index("{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\",\"c\":\"s2.safetensors\"}");
    int n = 1;
    for (;; n++) {
        char spec[32];
        struct safetensors *st = NULL;
        struct err e = {0};
        snprintf(spec, sizeof spec, "*:%d", n);
        fault_arm(spec);
        enum err_code code = safetensors_open_dir(&st, test_tmpdir(), &e);
        bool passed = fault_passages() >= (uint64_t)n;
        fault_arm(NULL);
        CHECK_MSG(passed == (code != ERR_OK), "passage %d: code %d, %s", n, (int)code, e.msg);
        CHECK((st != NULL) == !passed);
        safetensors_close(st);
        if (!passed)
            break;
    }
    CHECK(n > 12);
}

/* Goal:   whatever bytes change, the answer is yes or no, and yes only where all data is inside.
 * Method: random changes to a good header; the sanitizer builds watch the reads. */
TEST(random_damage)
{
    struct rng rng = {test_seed()};
    struct image m = make_image(
        "{" T("abc", "F32", "[3]", "0", "12") "," T("b", "BF16", "[2]", "12", "16") "}", 16);
    unsigned char *copy = malloc(m.n);
    for (int i = 0; i < 20000; i++) {
        struct err e = {0};
        memcpy(copy, m.bytes, m.n);
        for (uint32_t k = 0, n = 1 + rng_below(&rng, 3); k < n; k++) {
            uint32_t at = rng_below(&rng, (uint32_t)m.n);
            copy[at] = rng_below(&rng, 2)
                           ? (unsigned char)rng_next(&rng)
                           : (unsigned char)"0123456789[]{},:\"-e."[rng_below(&rng, 20)];
        }
        enum err_code code = safetensors_check(copy, m.n, &e);
        CHECK(code == ERR_OK || code == ERR_INVALID);
    }
    free(copy);
    free(m.bytes);
}
