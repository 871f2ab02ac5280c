/* test_trace.c - trace context as it comes and goes, and spans byte for byte as OTLP has them. */
#include "rig.h"

#include "server/otlp.h"

TEST(traceparent_is_taken_when_it_is_well_formed)
{
    static const char good[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    static const char *const bad[] = {
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x"};
    struct trace t, other;
    char text[TRACE_HEADER];
    trace_begin(&t, good, 1);
    CHECK(t.has_parent && t.sampled && t.id[0] == 0x4b && t.parent[7] == 0xb7);
    trace_header(text, &t);
    CHECK(!strncmp(text, good, 36) && strncmp(text + 36, good + 36, 16) != 0);
    CHECK(!strcmp(text + 52, "-01"));
    trace_begin(&t, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", 1);
    CHECK(t.has_parent && !t.sampled);
    trace_begin(&t, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", 1);
    CHECK(t.has_parent);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        trace_begin(&t, bad[i], 2 * i);
        trace_begin(&other, NULL, 2 * i + 1);
        CHECK_MSG(!t.has_parent && t.sampled, "%s", bad[i]);
        CHECK(memcmp(t.id, other.id, TRACE_ID) != 0 && memcmp(t.span, other.span, SPAN_ID) != 0);
    }
}

/* Goal: the bytes are those of opentelemetry-proto's JSON mapping: ids in hex, 64-bit numbers as
 * strings, enums as numbers. Written by hand after its example trace.json. */
TEST(spans_are_written_as_otlp_json)
{
    static const char want[] =
        "{\"resourceSpans\":[{\"resource\":{\"attributes\":["
        "{\"key\":\"service.name\",\"value\":{\"stringValue\":\"gaze\"}},"
        "{\"key\":\"service.version\",\"value\":{\"stringValue\":\"9.9\"}},"
        "{\"key\":\"service.instance.id\",\"value\":{\"stringValue\":\"h:1\"}}]},"
        "\"scopeSpans\":[{\"scope\":{\"name\":\"gaze\"},\"spans\":["
        "{\"traceId\":\"5b8efff798038103d269b633813fc60c\",\"spanId\":\"eee19b7ec3c1b174\","
        "\"parentSpanId\":\"eee19b7ec3c1b173\",\"name\":\"POST chat\",\"kind\":2,"
        "\"startTimeUnixNano\":\"1544712660000000000\",\"endTimeUnixNano\":\"1544712661000000000\","
        "\"attributes\":[{\"key\":\"url.path\",\"value\":{\"stringValue\":\"/a\\\"b\"}},"
        "{\"key\":\"http.response.status_code\",\"value\":{\"intValue\":\"503\"}}],"
        "\"status\":{\"message\":\"the server failed\",\"code\":2}},"
        "{\"traceId\":\"5b8efff798038103d269b633813fc60c\",\"spanId\":\"eee19b7ec3c1b174\","
        "\"name\":\"queue\",\"kind\":1,"
        "\"startTimeUnixNano\":\"1544712660000000000\",\"endTimeUnixNano\":\"1544712660000000001\","
        "\"attributes\":[],\"status\":{}}]}]}]}";
    static const uint8_t trace[TRACE_ID] = {0x5B, 0x8E, 0xFF, 0xF7, 0x98, 0x03, 0x81, 0x03,
                                            0xD2, 0x69, 0xB6, 0x33, 0x81, 0x3F, 0xC6, 0x0C};
    static const uint8_t span[SPAN_ID] = {0xEE, 0xE1, 0x9B, 0x7E, 0xC3, 0xC1, 0xB1, 0x74};
    static const uint8_t parent[SPAN_ID] = {0xEE, 0xE1, 0x9B, 0x7E, 0xC3, 0xC1, 0xB1, 0x73};
    const struct span_attribute a[] = {{"url.path", "/a\"b", 0},
                                       {"http.response.status_code", NULL, 503}};
    struct span s = {.trace_id = trace,
                     .id = span,
                     .parent = parent,
                     .name = "POST chat",
                     .kind = SPAN_SERVER,
                     .begin_ns = 1544712660000000000,
                     .end_ns = 1544712661000000000,
                     .attribute = a,
                     .n_attributes = 2,
                     .error = "the server failed"};
    struct buf spans = {0}, out = {0};
    span_json(&spans, &s);
    buf_add(&spans, ",", 1);
    s = (struct span){.trace_id = trace,
                      .id = span,
                      .name = "queue",
                      .kind = SPAN_INTERNAL,
                      .begin_ns = 1544712660000000000,
                      .end_ns = 1544712660000000001};
    span_json(&spans, &s);
    spans_request_json(&out, "9.9", "h:1", &spans);
    CHECK_MSG(!strcmp(out.s, want), "%s", out.s);
    buf_free(&spans);
    buf_free(&out);
}

/* --- a collector -------------------------------------------------------------------------------
 */

struct collector {
    int fd;
    uint16_t port;
    const char *answer; /* NULL: hangs up at once */
    pthread_t thread;
    struct buf got; /* of all requests; complete once the thread has ended */
    _Atomic int n_requests;
    _Atomic bool stop;
};

static void *collect(void *arg)
{
    struct collector *c = arg;
    while (!c->stop) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        if (poll(&p, 1, 50) <= 0)
            continue;
        int fd = accept(c->fd, NULL, NULL);
        if (c->answer) {
            char *a = client_answer(fd); /* a request with a length, and no byte more */
            buf_add(&c->got, a, strlen(a));
            free(a);
            client_say(fd, c->answer);
        }
        close(fd);
        c->n_requests++;
    }
    return NULL;
}

static void collector_start(struct collector *c, const char *answer)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    struct err e = {0};
    *c = (struct collector){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .answer = answer};
    CHECK(c->fd >= 0 && !bind(c->fd, (struct sockaddr *)&a, n) && !listen(c->fd, 16));
    CHECK(!getsockname(c->fd, (struct sockaddr *)&a, &n));
    c->port = ntohs(a.sin_port);
    CHECK_OK(thread_start(&c->thread, "collector", collect, c, &e), e);
}

static void collector_stop(struct collector *c)
{
    c->stop = true;
    thread_join(c->thread);
    close(c->fd);
}

#define BODY "{\"prompt\":\"Hi\",\"max_tokens\":3}"
#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"

static char *ask_traced(struct rig *r, const char *flags)
{
    char request[500];
    snprintf(request, sizeof request,
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nx-request-id: mine\r\n"
             "traceparent: 00-" TRACE "-00f067aa0ba902b7-%s\r\nContent-Length: %zu\r\n\r\n" BODY,
             flags, strlen(BODY));
    return rig_ask(r, request);
}

TEST(a_request_becomes_spans_at_the_collector)
{
    struct collector c;
    struct rig r;
    char url[64];
    fake.prefill_us = 20000;
    fake.token_us = 10000;
    collector_start(&c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    snprintf(url, sizeof url, "http://127.0.0.1:%u", c.port);
    rig_prepare(&r);
    rig_set(&r, "otlp-endpoint", url);
    rig_start(&r);
    char *a = ask_traced(&r, "01");
    CHECK(status_of(a) == 200 && strstr(a, "\r\ntraceparent: 00-" TRACE "-"));
    char ours[2 * SPAN_ID + 1] = "";
    snprintf(ours, sizeof ours, "%s", strstr(a, "00-" TRACE "-") + 36);
    CHECK(strcmp(ours, "00f067aa0ba902b7") != 0);
    free(a);
    a = ask_traced(&r, "00"); /* its caller wants no trace: none is sent */
    CHECK(status_of(a) == 200);
    free(a);
    EVENTUALLY(c.n_requests >= 1);
    rig_stop(&r); /* what is left is sent on the way out */
    collector_stop(&c);
    CHECK(strstr(c.got.s, "POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:"));
    CHECK(strstr(c.got.s, "\r\nContent-Type: application/json\r\n"));
    int n_mine = 0, n_children = 0;
    char under[80];
    snprintf(under, sizeof under, "\"parentSpanId\":\"%s\"", ours);
    for (const char *s = c.got.s; (s = strstr(s, "\"traceId\":\"" TRACE "\"")); s++)
        n_mine++;
    for (const char *s = c.got.s; (s = strstr(s, under)); s++)
        n_children++;
    CHECK_MSG(n_mine == 4 && n_children == 3, "%d %d in %s", n_mine, n_children, c.got.s);
    CHECK(strstr(c.got.s, "\"parentSpanId\":\"00f067aa0ba902b7\",\"name\":\"POST completions\","
                          "\"kind\":2,"));
    CHECK(
        strstr(c.got.s, "{\"key\":\"gen_ai.usage.output_tokens\",\"value\":{\"intValue\":\"3\"}}"));
    CHECK(strstr(c.got.s, "{\"key\":\"gaze.request_id\",\"value\":{\"stringValue\":\"mine\"}}"));
    buf_free(&c.got);
}

/* Goal: a collector that is away, unwilling or rude costs spans, which are counted, and no request.
 */
TEST_LIMIT(a_bad_collector_costs_nothing_but_spans, 60)
{
    static const char *const answers[] = {"HTTP/1.1 503 Busy\r\n\r\n", "nonsense, long enough",
                                          NULL};
    for (int i = 0; i < 4; i++) {
        struct collector c;
        struct rig r;
        char url[64], *a;
        collector_start(&c, i < 3 ? answers[i] : NULL);
        if (i == 3)
            collector_stop(&c);
        snprintf(url, sizeof url, "http://127.0.0.1:%u/", c.port);
        rig_prepare(&r);
        rig_set(&r, "otlp-endpoint", url);
        rig_start(&r);
        a = ask_traced(&r, "01");
        CHECK_MSG(status_of(a) == 200, "%d: %s", i, a);
        free(a);
        EVENTUALLY(gauge(&r, "gaze_trace_spans_total{result=\"failed\"}") >= 4);
        CHECK(gauge(&r, "gaze_trace_spans_total{result=\"sent\"}") == 0);
        a = ask_traced(&r, "01");
        CHECK(status_of(a) == 200);
        free(a);
        rig_stop(&r);
        if (i < 3)
            collector_stop(&c);
        buf_free(&c.got);
    }
}

TEST(endpoints_are_checked)
{
    static const char *const bad[] = {"https://x:4318", "x:4318",        "http://",
                                      "http://:1",      "http://x:port", "http://x:4318 y",
                                      "http://[::1"};
    struct rig r;
    struct err e = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        rig_prepare(&r);
        rig_set(&r, "otlp-endpoint", bad[i]);
        CHECK_MSG(server_open(&r.sv, &r.settings, &fake_engine_api, &e) == ERR_INVALID, "%s",
                  bad[i]);
        CHECK(strstr(e.msg, "otlp-endpoint"));
        settings_free(&r.settings);
    }
    static const char *const good[] = {"http://[::1]:4318", "http://x/base/v1/traces", "HTTP://x"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        rig_prepare(&r);
        rig_set(&r, "otlp-endpoint", good[i]);
        rig_start(&r);
        rig_stop(&r);
    }
}

TEST(a_trace_is_answered_without_a_collector)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = ask_traced(&r, "01");
    CHECK(strstr(a, "\r\ntraceparent: 00-" TRACE "-"));
    free(a);
    a = rig_get(&r, "/version");
    CHECK(!strcasestr(a, "traceparent"));
    free(a);
    rig_stop(&r);
}
