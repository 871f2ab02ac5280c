/* test_schema.c - each keyword of JSON Schema, and random schemas against another validator. */
#include "base/fault.h"
#include "base/json.h"
#include "grammar/grammar.h"
#include "grammar/schema.h"
#include "grammar_walk.h"
#include "test.h"
#include "text/chat_json.h"

static const char *byte_token(const void *arg, uint32_t id, size_t *n)
{
    static char one[256];
    (void)arg;
    one[id] = (char)id;
    *n = 1;
    return &one[id];
}

static struct grammar_vocab *open_vocab(void)
{
    static struct grammar_vocab *v; /* lives as long as the test */
    struct err e;
    if (!v)
        CHECK_OK(grammar_vocab_open(&v, 256, byte_token, NULL, &e), e);
    return v;
}

static cJSON *parsed(const char *text)
{
    cJSON *v;
    struct err e;
    CHECK_OK(json_parse(&v, text, strlen(text), JSON_MAX_DEPTH, &e), e);
    CHECK_OK(chat_json_keep_numbers(v, text, strlen(text), &e), e);
    return v;
}

static enum err_code compile(struct grammar **g, const cJSON *schema, struct err *e)
{
    struct grammar_builder *b;
    gb_node x = GB_NEVER;
    if (gb_open(&b, e) != ERR_OK)
        return e->code;
    enum err_code code = grammar_schema(&x, b, schema, e);
    if (code == ERR_OK)
        code = grammar_compile(g, open_vocab(), b, x, e);
    gb_close(b);
    if (code == ERR_INVALID)
        grammar_schema_explain(schema, e);
    return code;
}

/* A schema, texts that satisfy it, and texts that do not; a space between two. */
static const struct {
    const char *schema, *yes, *no;
} rows[] = {
    {"true", "null true -1 \"\" [] {} [1,{\"a\":[]}] {\"a\":{\"b\":null}}", "nul {]}"},
    {"{\"type\":\"null\"}", "null", "0 false"},
    {"{\"type\":[\"boolean\",\"integer\"]}", "true false 0 -3 12345678901", "1.5 null -0 01 1.0"},
    {"{\"type\":\"number\"}", "0 -1.5 1e-07 2.50 0.1", ".5 1. -0 --1 1e"},
    {"{\"type\":\"integer\",\"minimum\":-3,\"maximum\":12}", "-3 -1 0 9 10 12", "-4 13 20 1.5 -10"},
    {"{\"type\":\"number\",\"exclusiveMinimum\":0.5,\"maximum\":2}", "0.51 1 2 2.0 1.999",
     "0.5 0.50 2.01 -1 10 0.49"},
    {"{\"type\":\"number\",\"exclusiveMaximum\":1}", "0.9999999999999998 -5 0.5",
     "1 0.99999999999999999 1.0"}, /* the last but one is 1 in double precision */
    {"{\"type\":\"number\",\"minimum\":0.1,\"maximum\":0.10000000001}", "0.1 0.100000000005",
     "0.11 0.09 0.1000000001 1"},
    {"{\"type\":\"integer\",\"multipleOf\":7}", "0 7 14 -21 700", "1 8 -6 71"},
    {"{\"type\":\"number\",\"multipleOf\":0.01}", "0.01 19.99 -3 5.5 7.10", "0.001 0.015 1.999"},
    {"{\"type\":\"integer\",\"multipleOf\":3600}", "0 3600 7200 -10800 36000", "360 1800 3601 100"},
    /* names that additionalProperties spares do not break it */
    {"{\"not\":{\"type\":\"object\",\"properties\":{\"c\":true},"
     "\"additionalProperties\":{\"type\":\"number\"}}}",
     "1 {\"a\":\"x\"} {\"c\":1,\"a\":\"x\"}", "{} {\"a\":2} {\"c\":\"x\"} {\"a\":2,\"c\":\"x\"}"},
    {"{\"type\":\"number\",\"multipleOf\":5.25}", "0 5.25 -10.5 21 525 1050 9999999999999996",
     "5 5.2 5.3 5.255 -1 0.25 9999999999999996.25"},
    {"{\"type\":\"number\",\"multipleOf\":100}", "0 100 -300 1000 1200", "10 150 100.5 1 0.1"},
    {"{\"anyOf\":[{\"multipleOf\":0.5},{\"multipleOf\":300},{\"maximum\":-7.25}]}",
     "0.5 -0.5 -8.125 300 2", "0.25 -7.125 300.25 300.125"},
    {"{\"type\":\"number\",\"multipleOf\":2.5}", "0 2.5 5 -7.5 10", "2 1.25 0.5"},
    {"{\"type\":\"string\"}", "\"\" \"é\" \"\\n\" \"\\\"\" \"\\u0001\"",
     "\"\\u00e9\" \"\\/\" '' \"a"},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", "\"ab\" \"éüö\" \"\\n\\n\"",
     "\"a\" \"abcd\" \"é\""},
    {"{\"type\":\"string\",\"pattern\":\"b+c\",\"maxLength\":4}", "\"bc\" \"abbc\" \"bcbc\"",
     "\"bb\" \"abbbc\" \"\""},
    {"{\"type\":\"string\",\"format\":\"date\"}", "\"2024-02-29\" \"1999-12-31\"",
     "\"2023-02-29\" \"1900-02-29\" \"2024-13-01\" \"2024-1-01\""},
    {"{\"type\":\"string\",\"format\":\"date-time\"}",
     "\"2024-01-01T00:00:00Z\" \"2024-01-01T23:59:59.5+01:30\"",
     "\"2024-01-01T24:00:00Z\" \"2024-01-01\" \"2024-01-01T00:00:00\""},
    {"{\"type\":\"string\",\"format\":\"time\"}", "\"12:30:00Z\"", "\"12:30\" \"12:30:00\""},
    {"{\"type\":\"string\",\"format\":\"duration\"}", "\"P1Y\" \"PT5M\" \"P2W\" \"P1DT12H\"",
     "\"P\" \"PT\" \"1D\" \"P1W1D\""},
    {"{\"type\":\"string\",\"format\":\"email\"}", "\"a.b@example.org\"",
     "\"a@\" \"@b.c\" \"a b@c.d\""},
    {"{\"type\":\"string\",\"format\":\"hostname\"}", "\"a.example\" \"localhost\"",
     "\"-a\" \"a..b\""},
    {"{\"type\":\"string\",\"format\":\"ipv4\"}", "\"0.0.0.0\" \"255.1.20.3\"",
     "\"256.1.1.1\" \"1.1.1\" \"01.1.1.1\""},
    {"{\"type\":\"string\",\"format\":\"ipv6\"}",
     "\"::1\" \"::\" \"1:2:3:4:5:6:7:8\" \"fe80::1.2.3.4\"",
     "\":1\" \"1:2:3\" \"g::\" \"1::2::3\""},
    {"{\"type\":\"string\",\"format\":\"uri\"}",
     "\"https://a.b/c?d=e#f\" \"mailto:a@b.c\" \"urn:x:y\"", "\"a/b\" \"https://\" \"http://a b\""},
    {"{\"type\":\"string\",\"format\":\"uri-reference\"}", "\"\" \"/a/b\" \"a?b#c\"",
     "\"a\\\\b\" \"%zz\""},
    {"{\"type\":\"string\",\"format\":\"uri-template\"}", "\"a/{b}{?c,d*}\"", "\"a/{b\" \"{}\""},
    {"{\"type\":\"string\",\"format\":\"uuid\"}", "\"123e4567-e89b-12d3-a456-426614174000\"",
     "\"123e4567-e89b-12d3-a456-42661417400\""},
    {"{\"type\":\"string\",\"format\":\"regex\"}", "\"^a(b|c)*$\" \"[a-z]+\" \"\"",
     "\"(a\" \"[a\" \"*\""},
    {"{\"type\":\"string\",\"format\":\"json-pointer\"}", "\"\" \"/a/~0b\"", "\"a\" \"/~2\""},
    {"{\"type\":\"string\",\"format\":\"relative-json-pointer\"}", "\"0\" \"1/a\" \"2#\"",
     "\"/a\" \"01\""},
    {"{\"type\":\"string\",\"format\":\"colour\"}", "\"anything\"", "1"},
    {"{\"enum\":[1,\"a\",null,[1,2],{\"b\":1,\"a\":2}]}", "1 \"a\" null [1,2] {\"b\":1,\"a\":2}",
     "2 \"b\" [1] {\"b\":1} {}"},
    {"{\"const\":{\"a\":[true]}}", "{\"a\":[true]}", "{\"a\":[]} {}"},
    {"{\"enum\":[1,2,3,4],\"minimum\":2,\"not\":{\"const\":3}}", "2 4", "1 3"},
    {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":3}",
     "[1] [1,2,3]", "[] [1,2,3,4] [\"a\"] [1,] [1, 2]"},
    {"{\"type\":\"array\",\"maxItems\":0}", "[]", "[1]"},
    {"{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false}",
     "[] [1] [1,2]", "[2] [1,2,3]"},
    {"{\"type\":\"array\",\"items\":[{\"const\":1}],\"additionalItems\":{\"const\":2},\"minItems\":"
     "2}",
     "[1,2] [1,2,2]", "[1] [1,1] [2,2]"},
    {"{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\",1]},\"uniqueItems\":true,\"minItems\":"
     "2}",
     "[\"a\",1] [1,\"b\",\"a\"]", "[1,1] [\"a\"] [\"a\",\"b\",1,1]"},
    {"{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":"
     "\"number\"}},"
     "\"additionalProperties\":false},\"uniqueItems\":true}",
     "[{\"a\":1},{\"a\":2},{}] [{\"a\":1.5}]",
     "[{\"a\":1},{\"a\":1}] [{},{}] [{\"a\":1.0},{\"a\":1}]"},
    {"{\"type\":\"array\",\"contains\":{\"type\":\"null\"},\"minContains\":1,\"maxContains\":2}",
     "[null] [1,null,\"\",null]", "[] [1] [null,null,null]"},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
     "\"required\":[\"b\"],\"additionalProperties\":false}",
     "{\"b\":null} {\"a\":null,\"b\":null}",
     "{} {\"a\":null} {\"b\":null,\"a\":null} {\"b\":null,\"c\":1}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},"
     "\"additionalProperties\":{\"type\":\"integer\"}}",
     "{} {\"x\":1} {\"a\":null,\"x\":1,\"ab\":2}", "{\"x\":null} {\"a\":1} {\"x\":1,\"a\":null}"},
    {"{\"type\":\"object\",\"patternProperties\":{\"^x\":{\"type\":\"integer\"},\"y$\":{"
     "\"minimum\":5}},"
     "\"additionalProperties\":false}",
     "{\"x\":1} {\"xy\":5} {\"y\":7,\"y\":\"a\"}", "{\"a\":1} {\"xy\":4} {\"x\":\"\"} {\"y\":1}"},
    {"{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-z]$\"}}", "{} {\"a\":1,\"b\":2}",
     "{\"A\":1} {\"ab\":1}"},
    {"{\"type\":\"object\",\"minProperties\":1,\"maxProperties\":2}", "{\"a\":1} {\"a\":1,\"b\":2}",
     "{} {\"a\":1,\"b\":2,\"c\":3}"},
    {"{\"type\":\"object\",\"minProperties\":2}", "{\"a\":1,\"b\":2}", "{\"a\":1,\"a\":2}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{},\"c\":{}},\"minProperties\":2,"
     "\"additionalProperties\":false}",
     "{\"a\":1,\"c\":1} {\"a\":1,\"b\":1,\"c\":1}", "{\"a\":1} {}"},
    {"{\"type\":\"object\",\"required\":[\"q\"]}", "{\"q\":1} {\"z\":1,\"q\":2}", "{} {\"z\":1}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":true,\"b\":true},\"additionalProperties\":false,"
     "\"dependentRequired\":{\"a\":[\"b\"]}}",
     "{} {\"b\":1} {\"a\":1,\"b\":1}", "{\"a\":1}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":true,\"b\":true},\"additionalProperties\":false,"
     "\"dependentSchemas\":{\"a\":{\"properties\":{\"b\":{\"const\":1}}}}}",
     "{\"b\":2} {\"a\":1} {\"a\":1,\"b\":1}", "{\"a\":1,\"b\":2}"},
    {"{\"type\":\"object\",\"allOf\":[{\"properties\":{\"a\":true}},{\"$ref\":\"#/$defs/b\"}],"
     "\"unevaluatedProperties\":{\"$ref\":\"#\"},\"$defs\":{\"b\":{\"patternProperties\":{\"^b\":"
     "true}}}}",
     "{} {\"a\":1} {\"bc\":1} {\"c\":{}} {\"c\":{\"d\":{\"a\":2}}}", "{\"c\":1} {\"c\":{\"d\":1}}"},
    {"{\"type\":\"object\",\"properties\":{\"k\":true},\"if\":{\"properties\":{\"k\":{\"const\":1}}"
     ","
     "\"required\":[\"k\"]},\"then\":{\"properties\":{\"x\":true}},\"else\":{\"properties\":{\"y\":"
     "true}},\"unevaluatedProperties\":false}",
     "{\"k\":1,\"x\":1} {\"k\":2,\"y\":1} {\"y\":1} {}",
     "{\"k\":1,\"y\":1} {\"k\":2,\"x\":1} {\"x\":1}"},
    {"{\"type\":\"object\",\"anyOf\":[{\"properties\":{\"a\":{\"const\":1}},\"required\":[\"a\"]},{"
     "\"properties\":{\"b\":{\"const\":1}},\"required\":[\"b\"]}],\"dependentSchemas\":{\"b\":{"
     "\"properties\":{\"c\":true}}},\"unevaluatedProperties\":false}",
     "{\"a\":1} {\"b\":1} {\"a\":1,\"b\":1,\"c\":1} {\"b\":1,\"c\":2}",
     "{\"a\":1,\"b\":2} {\"a\":1,\"c\":1} {\"a\":2,\"b\":1} {}"},
    {"{\"type\":\"array\",\"prefixItems\":[{\"const\":0}],\"anyOf\":[{\"prefixItems\":[true,{"
     "\"const\":1}]},"
     "true],\"not\":{\"not\":{\"items\":true}},\"unevaluatedItems\":{\"type\":\"null\"}}",
     "[] [0] [0,1] [0,null] [0,1,null]", "[1] [0,2] [0,1,1] [0,null,1]"},
    {"{\"type\":\"array\",\"dependentSchemas\":{\"b\":{\"items\":true}},"
     "\"unevaluatedItems\":false}",
     "[]", "[0] [0,1]"},
    {"{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"properties\":{\"a\":true,\"b\":true}}}",
     "[{\"a\":1,\"x\":1,\"y\":2},{\"a\":1,\"y\":1,\"x\":2}] "
     "[{\"x\":{\"p\":1,\"q\":2}},{\"x\":{\"q\":2}}]",
     "[{\"a\":1,\"x\":1,\"y\":2},{\"a\":1,\"y\":2,\"x\":1}] "
     "[{\"a\":1,\"b\":2,\"x\":1,\"y\":2,\"z\":3},{\"a\":1,\"b\":2,\"z\":3,\"y\":2,\"x\":1}] "
     "[{\"x\":{\"p\":1,\"q\":2}},{\"x\":{\"q\":2,\"p\":1}}] "
     "[[{\"p\":1,\"q\":2}],[{\"q\":2,\"p\":1}]]"},
    {"{\"type\":\"array\",\"uniqueItems\":true,\"minItems\":2,\"items\":{\"type\":\"object\","
     "\"maxProperties\":2,\"propertyNames\":{\"enum\":[\"x\",\"y\"]},\"additionalProperties\":{"
     "\"enum\":["
     "\"p\",\"q\"]}}}",
     "[{\"x\":\"p\",\"y\":\"q\"},{\"y\":\"q\"}] "
     "[{\"x\":\"p\",\"y\":\"q\"},{\"y\":\"q\",\"x\":\"q\"}]",
     "[{\"x\":\"p\",\"y\":\"q\"},{\"y\":\"q\",\"x\":\"p\"}]"},
    {"{\"dependencies\":{\"a\":[\"b\"],\"b\":{\"maxProperties\":2}},\"type\":\"object\"}",
     "{\"a\":1,\"b\":2} {\"b\":1} {\"x\":1}", "{\"a\":1} {\"a\":1,\"b\":1,\"c\":1}"},
    {"{\"allOf\":[{\"type\":\"string\",\"minLength\":1},{\"pattern\":\"^a\"}]}", "\"a\" \"ab\"",
     "\"\" \"b\" 1"},
    {"{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"string\",\"maxLength\":1}]}", "1 \"a\"",
     "\"ab\" null"},
    {"{\"oneOf\":[{\"type\":\"integer\",\"minimum\":5},{\"type\":\"integer\",\"multipleOf\":2}]}",
     "2 4 5 7", "6 8 1 3"},
    {"{\"type\":\"object\",\"properties\":{\"a\":true,\"b\":true},\"additionalProperties\":false,"
     "\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
     "{\"a\":1} {\"b\":1}", "{} {\"a\":1,\"b\":1}"},
    {"{\"not\":{\"type\":[\"object\",\"array\",\"string\"]}}", "1 null true", "\"\" [] {}"},
    {"{\"type\":\"object\",\"properties\":{\"k\":{\"enum\":[\"x\",\"y\"]},\"v\":{\"type\":["
     "\"integer\","
     "\"null\"]}},\"required\":[\"k\",\"v\"],\"additionalProperties\":false,\"if\":{\"properties\":"
     "{\"k\":{"
     "\"const\":\"x\"}}},\"then\":{\"properties\":{\"v\":{\"type\":\"integer\"}}},\"else\":{"
     "\"properties\":{"
     "\"v\":{\"type\":\"null\"}}}}",
     "{\"k\":\"x\",\"v\":1} {\"k\":\"y\",\"v\":null}",
     "{\"k\":\"x\",\"v\":null} {\"k\":\"y\",\"v\":1}"},
    {"{\"$ref\":\"#/$defs/"
     "list\",\"$defs\":{\"list\":{\"type\":\"object\",\"properties\":{\"next\":{\"anyOf\":"
     "[{\"$ref\":\"#/$defs/list\"},{\"type\":\"null\"}]}},\"required\":[\"next\"],"
     "\"additionalProperties\":false}}}",
     "{\"next\":null} {\"next\":{\"next\":null}}", "{} {\"next\":{}} null"},
    {"{\"$defs\":{\"a/"
     "b\":{\"const\":1},\"c~d\":{\"$anchor\":\"x\",\"const\":2}},\"anyOf\":[{\"$ref\":"
     "\"#/$defs/a~1b\"},{\"$ref\":\"#x\"}]}",
     "1 2", "3"},
    {"{\"$id\":\"http://a.example/b\",\"$defs\":{\"c\":{\"$id\":\"d\",\"const\":1}},\"$ref\":"
     "\"http://a.example/d\"}",
     "1", "2"},
    {"{\"type\":\"integer\",\"minimum\":1,\"exclusiveMinimum\":true,\"maximum\":3}", "2 3", "1 4"},
};

static void each_word(const char *words, struct grammar *g, bool want, const char *schema)
{
    char *copy = strdup(words), *rest = copy;
    CHECK(copy);
    for (char *w; (w = strsep(&rest, " "));)
        if (*w)
            CHECK_MSG(complete(g, w) == want, "%s: %s", schema, w);
    free(copy);
}

TEST(schema_keywords)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cJSON *schema = parsed(rows[i].schema);
        struct grammar *g;
        struct err e = {0};
        CHECK_MSG(compile(&g, schema, &e) == ERR_OK, "%s: %s", rows[i].schema, e.msg);
        each_word(rows[i].yes, g, true, rows[i].schema);
        each_word(rows[i].no, g, false, rows[i].schema);
        grammar_close(g);
        cJSON_Delete(schema);
    }
}

#define FIFTY "12345678901234567890123456789012345678901234567890"

/* What is wrong or cannot be kept, with the keyword and the place that the message must name. */
TEST(schema_refusals)
{
    static const char *const bad[][2] = {
        {"{\"type\":\"strin\"}", "type at #: "},
        {"{\"properties\":{\"a\":{\"items\":{\"minLength\":-1}}}}",
         "minLength at #/properties/a/items: "},
        {"{\"anyOf\":[]}", "anyOf at #: "},
        {"{\"anyOf\":[{},{\"pattern\":\"(\"}]}", "pattern at #/anyOf/1: "},
        {"{\"required\":\"a\"}", "required at #: "},
        {"{\"multipleOf\":0}", "multipleOf at #: "},
        {"{\"multipleOf\":99991}", "multipleOf at #: "},
        {"{\"multipleOf\":1.222}", "multipleOf at #: "},
        {"{\"enum\":[]}", "enum at #: "},
        {"{\"$ref\":\"#/$defs/x\"}", "$ref at #: "},
        {"{\"$ref\":\"http://elsewhere.example/\"}", "$ref at #: "},
        {"{\"$ref\":\"#\"}", "$ref at #: "},
        {"{\"pattern\":\"(a)\\\\1\"}", "pattern at #: "},
        {"{\"contains\":true,\"unevaluatedItems\":false}", "unevaluatedItems at #: "},
        {"{\"properties\":{\"a\":{\"unevaluatedProperties\":1}}}",
         "unevaluatedProperties at #/properties/a: "},
        {"{\"type\":\"array\",\"not\":{\"uniqueItems\":true}}", "uniqueItems at #/not: "},
        {"{\"type\":\"integer\",\"minimum\":2,\"maximum\":1}", "maximum at #: "},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"array\",\"items\":false,"
         "\"minItems\":1}},"
         "\"required\":[\"a\"]}",
         "minItems at #/properties/a: "},
        {"{\"type\":\"array\",\"items\":{\"enum\":[1,2]},\"uniqueItems\":true,\"minItems\":3}",
         "minItems at #: "},
        /* a place too long for a message is cut in front */
        {"{\"properties\":{\"no text " FIFTY FIFTY FIFTY "^[ab]+$\":{\"pattern\":\"[a\"}}}",
         FIFTY "^[ab]+$: "},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cJSON *schema = parsed(bad[i][0]);
        struct grammar *g;
        struct err e = {0};
        CHECK_MSG(compile(&g, schema, &e) == ERR_INVALID, "%s", bad[i][0]);
        CHECK_MSG(strstr(e.msg, bad[i][1]) && strstr(e.msg, " at #"), "%s: '%s'", bad[i][0], e.msg);
        cJSON_Delete(schema);
    }
}

/* --- explosive ones -----------------------------------------------------------------------------
 */

static void answers_in_time(const char *text)
{
    cJSON *schema = parsed(text);
    struct grammar *g = NULL;
    struct err e = {0};
    if (compile(&g, schema, &e) == ERR_OK)
        grammar_close(g);
    else
        CHECK_MSG(e.code == ERR_INVALID && strstr(e.msg, " at #"), "%s", e.msg);
    cJSON_Delete(schema);
}

TEST(schema_large_ones)
{
    size_t room = 1 << 20;
    char *s = malloc(room), *t = s;
    CHECK(s);
    t += sprintf(t, "{\"type\":\"object\",\"properties\":{");
    for (int i = 0; i < 1000; i++)
        t += sprintf(t, "%s\"p%d\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":9}",
                     i ? "," : "", i);
    t += sprintf(t, "},\"required\":[");
    for (int i = 0; i < 1000; i++)
        t += sprintf(t, "%s\"p%d\"", i ? "," : "", i);
    sprintf(t, "],\"additionalProperties\":false}");
    answers_in_time(s);
    t = s + sprintf(s, "{\"enum\":[");
    for (int i = 0; i < 1000; i++)
        t += sprintf(t, "%s\"value number %04d of the list\"", i ? "," : "", i);
    sprintf(t, "]}");
    answers_in_time(s);
    t = s + sprintf(s, "{\"oneOf\":[");
    for (int i = 0; i < 300; i++)
        t += sprintf(t, "%s{\"type\":\"integer\",\"minimum\":%d,\"maximum\":%d}", i ? "," : "",
                     5 * i, 5 * i + 5);
    sprintf(t, "]}");
    answers_in_time(s);
    free(s);
}

/* --- random ones --------------------------------------------------------------------------------
 */

struct tally {
    uint32_t schemas, refused, valid, invalid;
};

static void judge(struct tally *n, const cJSON *line)
{
    const cJSON *schema = json_get(line, "schema"), *doc;
    struct grammar *g = NULL;
    struct err e = {0};
    enum err_code code = compile(&g, schema, &e);
    bool none = code != ERR_OK && (strstr(e.msg, "no value") || strstr(e.msg, "no text"));
    char *text = cJSON_PrintUnformatted(schema);
    n->schemas++;
    n->refused += code != ERR_OK && !none;
    for (doc = json_get(line, "docs")->child; doc && (code == ERR_OK || none); doc = doc->next) {
        bool valid = cJSON_IsTrue(json_get(doc, "valid")), any = false;
        const cJSON *t = json_get(doc, "texts")->child, *first = t;
        for (; t && !none; t = t->next)
            any |= complete(g, t->valuestring);
        CHECK_MSG(any == valid, "%s: %s is %s", text, first->valuestring,
                  valid ? "valid" : "not valid");
        n->valid += valid;
        n->invalid += !valid;
    }
    free(text);
    if (g)
        grammar_close(g);
}

/* Goal:   the automaton's verdict is ajv's.
 * Method: random schemas and documents, made and judged by tests/sdk/schemas.mjs; others with
 *         RANDOM_SCHEMAS=file. */
TEST_LIMIT(schema_random_ones, 120)
{
    const char *path = getenv("RANDOM_SCHEMAS");
    FILE *f = fopen(path ? path : test_fixture("grammar/random_schemas.jsonl"), "rb");
    struct tally n = {0};
    char *line = NULL;
    size_t room = 0;
    CHECK(f);
    while (getline(&line, &room, f) > 0) {
        cJSON *v = parsed(line);
        judge(&n, v);
        cJSON_Delete(v);
    }
    free(line);
    fclose(f);
    printf("%u schemas, %u refused; %u valid and %u invalid documents\n", n.schemas, n.refused,
           n.valid, n.invalid);
    CHECK(n.refused * 20 <= n.schemas);
}

/* Each place that can fail does, once. */
TEST_LIMIT(schema_without_memory, 60)
{
    cJSON *schema = parsed("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\","
                           "\"pattern\":\"^a\"},\"b\":{\"type\":"
                           "\"number\",\"minimum\":1}},\"patternProperties\":{\"^x\":{\"enum\":[1,"
                           "2]}},\"oneOf\":[{\"required\":"
                           "[\"a\"]},{\"required\":[\"b\"]}]}");
    (void)open_vocab();
    bool done = false;
    for (int i = 1; !done; i++) {
        char spec[32];
        struct grammar *g;
        struct err e = {0};
        snprintf(spec, sizeof spec, "grammar.schema:%d", i);
        fault_arm(spec);
        enum err_code code = compile(&g, schema, &e);
        done = fault_passages() == 0 || code == ERR_OK;
        fault_arm(NULL);
        if (code == ERR_OK)
            grammar_close(g);
        else
            CHECK_MSG(code == ERR_NOMEM, "%s: %d %s", spec, (int)code, e.msg);
        CHECK(i < 20000);
    }
    cJSON_Delete(schema);
}
