/* test_log.c - lines of the log as text and as JSON, whatever stands in them. */
#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "test.h"

static const struct timespec at = {.tv_sec = 1795521062, .tv_nsec = 7900000};

static const char *line_of(enum log_format format, const char *event)
{
    static char line[20000];
    size_t n = log_line(line, sizeof line - 1, format, LOG_INFO, &at, "http", event);
    CHECK(n > 0 && line[n - 1] == '\n');
    line[n] = 0;
    return line;
}

TEST(a_text_line)
{
    CHECK(!strcmp(line_of(LOG_TEXT, "request=r-1 ms=0.5 path=\"/v1/x y\""),
                  "2026-11-24T11:51:02.007Z info http request=r-1 ms=0.5 path=\"/v1/x y\"\n"));
    CHECK(!strcmp(line_of(LOG_TEXT, "a=1\nforged line\x1b[31m\xff"),
                  "2026-11-24T11:51:02.007Z info http a=1?forged line?[31m?\n"));
}

#define HEAD "{\"time\":\"2026-11-24T11:51:02.007Z\",\"level\":\"info\",\"module\":\"http\""
TEST(a_json_line)
{
    static const struct {
        const char *event, *json;
    } cases[] = {
        {"", ""},
        {"n=12 ms=-3.50 id=007 x=1e5 v=1.2.3 e=", ",\"n\":12,\"ms\":-3.50,\"id\":\"007\","
                                                  "\"x\":\"1e5\",\"v\":\"1.2.3\",\"e\":\"\""},
        {"path=\"/a b\" status=200", ",\"path\":\"/a b\",\"status\":200"},
        {"error=\"key \"x\" is bad\" n=1", ",\"error\":\"key \\\"x\\\" is bad\",\"n\":1"},
        {"error=\"it ends in \"x\"\"", ",\"error\":\"it ends in \\\"x\\\"\""},
        {"path=\"/a\\\" status=200 \\\\\" status=404", /* escaped: not a field of its own */
         ",\"path\":\"/a\\\" status=200 \\\\\",\"status\":404"},
        {"left=true ignored here model=m", ",\"left\":\"true\",\"message\":\"ignored here\","
                                           "\"model\":\"m\""},
        {"just words, no fields", ",\"message\":\"just words, no fields\""},
        {"who=\"J\xc3\xbcrgen\"", ",\"who\":\"J\xc3\xbcrgen\""},
        {"open=\"never closed n=1", ",\"open\":\"never closed n=1\""},
        {"id=12345678901234567890", ",\"id\":\"12345678901234567890\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char want[500];
        snprintf(want, sizeof want, HEAD "%s}\n", cases[i].json);
        const char *got = line_of(LOG_JSON, cases[i].event);
        CHECK_MSG(!strcmp(got, want), "%zu: %s for %s", i, got, want);
    }
}

/* Goal: whatever is logged, the line is one line, and as JSON it parses. */
TEST(any_bytes_give_one_line_that_parses)
{
    static const char parts[][8] = {"a=", "\"", "\\", " ", "\n", "\xff", "=", "1", "x", "\xc3\xbc"};
    struct rng g = {test_seed()};
    for (int i = 0; i < 20000; i++) {
        char event[400] = "", escaped[200], line[900];
        for (uint32_t k = rng_below(&g, 30); k; k--)
            strcat(event, parts[rng_below(&g, 10)]);
        const char *text = line_of(LOG_TEXT, event);
        CHECK(strchr(text, '\n') == text + strlen(text) - 1);
        cJSON *v = NULL;
        struct err e = {0};
        const char *json = line_of(LOG_JSON, event);
        CHECK(strchr(json, '\n') == json + strlen(json) - 1);
        CHECK_OK(json_parse(&v, json, strlen(json), 4, &e), e);
        cJSON_Delete(v);
        /* What was escaped comes back as one value, and adds no field. */
        snprintf(line, sizeof line, "v=\"%s\" z=1", log_escape(escaped, sizeof escaped, event));
        json = line_of(LOG_JSON, line);
        CHECK_OK(json_parse(&v, json, strlen(json), 4, &e), e);
        CHECK_MSG(cJSON_GetArraySize(v) == 5 && json_get(v, "v") && json_get(v, "z"), "%s", json);
        cJSON_Delete(v);
    }
}

TEST(long_events_are_cut)
{
    char event[6000], line[2000];
    memset(event, '"', sizeof event - 1);
    event[sizeof event - 1] = 0;
    size_t n = log_line(line, sizeof line, LOG_TEXT, LOG_WARN, &at, "m", event);
    CHECK(n == sizeof line && line[n - 1] == '\n');
    n = log_line(line, sizeof line - 1, LOG_JSON, LOG_WARN, &at, "m", event);
    line[n] = 0;
    cJSON *v = NULL;
    struct err e = {0};
    CHECK(n > 100 && n < sizeof line);
    CHECK_OK(json_parse(&v, line, n, 4, &e), e);
    CHECK(json_get(v, "cut"));
    cJSON_Delete(v);
    char small[8];
    CHECK(!strcmp(log_escape(small, sizeof small, "aaaa\xc3\xbc\xc3\xbc"), "aaaa\xc3\xbc"));
    CHECK(!strcmp(log_escape(small, sizeof small, "\"\"\"\"\"\""), "\\\"\\\"\\\""));
}
