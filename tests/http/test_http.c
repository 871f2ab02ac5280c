/* test_http.c - the server as a hostile or hasty client meets it, over bare sockets and a fake
 * engine. */
#include "rig.h"

#define CHAT "/v1/chat/completions"
#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":3}"
#define ENDLESS "{\"prompt\":\"Hi\",\"max_tokens\":8000,\"stream\":true}"
#define ENDLESS_WHOLE "{\"prompt\":\"Hi\",\"max_tokens\":8000}"

static void check_status(struct rig *r, const char *request, int status, const char *code)
{
    char *a = rig_ask(r, request);
    CHECK_MSG(status_of(a) == status, "expected %d for %.60s: %.300s", status, request, a);
    if (code) {
        cJSON *v = body_of(a);
        CHECK_MSG(!strcmp(text_at(v, "error.code"), code), "%s: %.300s", code, a);
        CHECK(cJSON_IsString(at(v, "error.message")) && cJSON_IsString(at(v, "error.type")));
        CHECK(at(v, "error.param"));
        cJSON_Delete(v);
    }
    free(a);
}

/* Goal: each path and method has its status, and errors their object. */
TEST(statuses_of_paths_and_methods)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    check_status(&r, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found");
    check_status(&r, "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "GET /v1/models/fake HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "GET /v1/models/gpt-4o HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "GET /v1/models/nope HTTP/1.1\r\nHost: x\r\n\r\n", 404, "model_not_found");
    check_status(&r, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    check_status(&r, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 501,
                 "not_implemented");
    check_status(&r, "POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 501,
                 "not_implemented");
    check_status(&r, "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                 501, "not_implemented");
    check_status(&r, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400,
                 "invalid_json");
    check_status(&r,
                 "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                 "Content-Length: 2\r\n\r\n{}",
                 415, "unsupported_media_type");
    check_status(&r, "OPTIONS " CHAT " HTTP/1.1\r\nHost: x\r\n\r\n", 204, NULL);
    char *page = rig_get(&r, "/"); /* whole, and at home here alone */
    CHECK(status_of(page) == 200 && strcasestr(page, "\r\ncontent-type: text/html; charset=utf-8"));
    CHECK(strcasestr(page, "\r\ncontent-security-policy: default-src 'none'; "));
    CHECK(strstr(page, "\r\n\r\n<!doctype html>") && strstr(page, "</html>\n"));
    CHECK(!strstr(page, "src=\"http") && !strstr(page, "href=\"http"));
    free(page);
    char *a = rig_ask(&r, "GET " CHAT " HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(status_of(a) == 405 && strcasestr(a, "\r\nallow: POST, OPTIONS\r\n"));
    free(a);
    a = rig_ask(&r, "DELETE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(status_of(a) == 405 && strcasestr(a, "\r\nallow: GET, HEAD, OPTIONS\r\n"));
    free(a);
    rig_stop(&r);
}

TEST(malformed_http_is_refused_and_the_server_lives)
{
    static const struct {
        const char *bytes;
        int status; /* 0: the connection is closed without an answer, see refusals.c */
    } bad[] = {
        {"\r\n\r\nGARBAGE\r\n\r\n", 0},
        {"GARBAGE\r\n\r\n", 0},
        {"GET\r\n\r\n", 0},
        {"\x16\x03\x01\x02\x01\xfc\x03\x03tls\r\n", 0},
        {"GARBAGE LINE\r\n\r\n", 400},
        {"GET / HTTP/9.9\r\n\r\n", 505},
        {"POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400},
        {"POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
         413},
        {"POST " CHAT " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n", 400},
        {"POST " CHAT
         " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
         413},
        {"GET /v1/models HTTP/1.1\r\nHost x\r\n broken\r\n\r\n", 400},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
    };
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int fd = client_open(&r);
        client_say(fd, bad[i].bytes);
        uint64_t from = clock_us();
        char *a = client_read(fd, NULL, 5000);
        CHECK_MSG(clock_us() - from < 4000000, "%.50s: nothing came", bad[i].bytes);
        CHECK_MSG(bad[i].status ? status_of(a) == bad[i].status && strstr(a, "{\"error\":{") : !*a,
                  "%.50s: %.200s", bad[i].bytes, a);
        free(a);
        close(fd);
        check_status(&r, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    }
    rig_stop(&r);
}

TEST(bad_bodies)
{
    static const struct {
        const char *body;
        size_t bytes;
    } bad[] = {{"{", 1},
               {"[]", 2},
               {"{\"a\":1}x", 8},
               {"{\"prompt\":\"a\0b\"}", 16},
               {"{\"prompt\":\"a\\u0000b\"}", 21},
               {"{\"prompt\":\"\xff\xfe\"}", 15},
               {"{\"prompt\":\"\\ud800\"}", 19},
               {"nul", 3}};
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char head[160];
        int fd = client_open(&r);
        snprintf(head, sizeof head,
                 "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
                 bad[i].bytes);
        client_say(fd, head);
        client_send(fd, bad[i].body, bad[i].bytes);
        char *a = client_answer(fd);
        cJSON *v = body_of(a);
        CHECK_MSG(status_of(a) == 400 && !strcmp(text_at(v, "error.code"), "invalid_json"),
                  "%zu: %s", i, a);
        cJSON_Delete(v);
        free(a);
        close(fd);
    }
    char deep[4096] = "{\"a\":";
    memset(deep + 5, '[', 2000);
    char *a = rig_post(&r, "/v1/completions", deep);
    CHECK(status_of(a) == 400);
    free(a);
    size_t n = 3000000; /* few bytes, many values */
    char *many = malloc(n + 32);
    strcpy(many, "{\"prompt\":[1");
    for (size_t i = 0; i < n / 2; i++)
        memcpy(many + 12 + 2 * i, ",1", 2);
    strcpy(many + 12 + n / 2 * 2, "]}");
    a = rig_post(&r, "/v1/completions", many);
    CHECK_MSG(status_of(a) == 400 && strstr(a, "too_many_values"), "%.300s", a);
    free(a);
    free(many);
    rig_stop(&r);
}

TEST(large_bodies_get_413_within_bounded_memory)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "body-limit", "64KiB");
    rig_start(&r);
    int fd = client_open(&r);
    size_t n =
        200000; /* above the limit, and read to its end so that the client hears the answer */
    char *body = malloc(n + 1);
    memset(body, 'x', n);
    body[n] = 0;
    client_post(fd, CHAT, body);
    char *a = client_answer(fd);
    CHECK_MSG(status_of(a) == 413 && strstr(a, "200000") && strstr(a, "65536"), "%.300s", a);
    free(a);
    client_post(fd, CHAT, HELLO); /* the connection is still good */
    a = client_answer(fd);
    CHECK_MSG(status_of(a) == 200, "%.300s", a);
    free(a);
    close(fd);
    fd = client_open(&r); /* far too much: refused before it comes */
    client_say(fd, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 64000000\r\n\r\n");
    a = client_read(fd, "}}", 5000);
    CHECK(status_of(a) == 413);
    free(a);
    close(fd);
    fd = client_open(&r); /* an endless chunked one */
    client_say(fd, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 10; i++) {
        client_say(fd, "186A0\r\n"); /* 100,000 */
        client_send(fd, body, 100000);
        client_say(fd, "\r\n");
    }
    a = client_read(fd, NULL, 5000);
    CHECK_MSG(!*a || status_of(a) == 413, "%.200s", a);
    free(a);
    close(fd);
    free(body);
    rig_stop(&r);
}

TEST(chunked_bodies_and_expect_continue)
{
    struct rig r;
    char head[300];
    rig_prepare(&r);
    rig_set(&r, "body-limit", "64KiB");
    rig_start(&r);
    int fd = client_open(&r);
    snprintf(head, sizeof head,
             "POST " CHAT
             " HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\nExpect: 100-continue\r\n\r\n",
             strlen(HELLO));
    client_say(fd, head);
    char *a = client_read(fd, "100 Continue\r\n\r\n", 3000);
    CHECK(strstr(a, "100 Continue"));
    free(a);
    client_say(fd, HELLO);
    a = client_answer(fd);
    CHECK(status_of(a) == 200);
    free(a);
    snprintf(head, sizeof head,
             "POST " CHAT " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
             "%zx\r\n%.10s",
             strlen(HELLO), HELLO);
    client_say(fd, head);
    usleep(20000);
    client_say(fd, &HELLO[10]);
    client_say(fd, "\r\n0\r\n\r\n");
    a = client_answer(fd);
    CHECK(status_of(a) == 200);
    free(a);
    close(fd);
    fd = client_open(&r);
    client_say(fd, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n"
                   "Expect: 100-continue\r\n\r\n");
    a = client_answer(fd);
    CHECK(status_of(a) == 413); /* in place of the 100 */
    free(a);
    close(fd);
    rig_stop(&r);
}

TEST(header_limits)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *big = malloc(100000);
    int n = sprintf(big, "GET /health HTTP/1.1\r\nHost: x\r\nX-Big: ");
    memset(big + n, 'a', 90000);
    strcpy(big + n + 90000, "\r\n\r\n");
    int fd = client_open(&r);
    client_say(fd, big);
    char *a = client_read(fd, NULL, 3000);
    CHECK_MSG(!*a || status_of(a) == 431, "%.200s", a);
    free(a);
    close(fd);
    free(big);
    check_status(&r, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
    rig_stop(&r);
}

TEST(pipelined_requests_are_answered_in_order)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    for (int i = 0; i < 20; i++) {
        char request[400];
        if (i % 2)
            snprintf(request, sizeof request,
                     "GET /v1/models HTTP/1.1\r\nHost: x\r\nx-request-id: n%d\r\n\r\n", i);
        else
            snprintf(request, sizeof request,
                     "POST " CHAT " HTTP/1.1\r\nHost: x\r\nx-request-id: n%d\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     i, strlen(HELLO), HELLO);
        client_say(fd, request);
    }
    for (int i = 0; i < 20; i++) {
        char want[40], *a = client_answer(fd);
        snprintf(want, sizeof want, "x-request-id: n%d\r\n", i);
        CHECK_MSG(status_of(a) == 200 && strstr(a, want), "%d: %.300s", i, a);
        free(a);
    }
    close(fd);
    rig_stop(&r);
}

TEST(http_1_0_head_and_connection_close)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "cors", "https://page.example");
    rig_start(&r);
    int fd = client_open(&r);
    char head[300];
    snprintf(
        head, sizeof head, "POST " CHAT " HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s",
        strlen("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":3,"
               "\"stream\":true}"),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":3,\"stream\":true}");
    client_say(fd, head);
    char *a = client_read(fd, NULL, 5000); /* the end of the connection ends the stream */
    CHECK(status_of(a) == 200 && strstr(a, "data: [DONE]\n\n") && !strcasestr(a, "chunked"));
    free(a);
    close(fd);
    fd = client_open(&r);
    client_say(fd, "HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    a = client_read(fd, NULL, 5000);
    CHECK(status_of(a) == 200 && strcasestr(a, "content-length:") && !strchr(a, '{'));
    CHECK(strstr(a, "Access-Control-Allow-Origin: https://page.example"));
    free(a);
    close(fd);
    a = rig_ask(&r, "OPTIONS " CHAT " HTTP/1.1\r\nHost: x\r\nOrigin: https://page.example\r\n"
                    "Access-Control-Request-Method: POST\r\n\r\n");
    CHECK(status_of(a) == 204 && strstr(a, "Access-Control-Allow-Headers: Authorization"));
    free(a);
    a = rig_ask(&r, "GET /health HTTP/1.1\r\nHost: x\r\nx-request-id: a\"b\r\n\r\n");
    CHECK(strstr(a, "x-request-id: req_")); /* one that could break a log line is not taken */
    free(a);
    rig_stop(&r);
}

TEST(slow_senders_get_408)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "slow-client", "1");
    rig_start(&r);
    int fd = client_open(&r);
    client_say(fd, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"a\"");
    char *a = client_read(fd, NULL, 4000);
    CHECK_MSG(status_of(a) == 408 && strstr(a, "request_timeout"), "%.200s", a);
    free(a);
    close(fd);
    fd = client_open(&r); /* a byte now and then does not help */
    client_say(fd, "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    uint64_t begun = clock_us();
    a = NULL;
    for (int i = 0; i < 60; i++) {
        client_say(fd, " ");
        free(a);
        a = client_read(fd, "}}", 100);
        if (*a)
            break;
    }
    CHECK_MSG(status_of(a) == 408 && clock_us() - begun < 4000000, "%.200s", a);
    free(a);
    close(fd);
    fd = client_open(&r); /* headers that never end */
    client_say(fd, "GET /health HTTP/1.1\r\nX-A: b\r\n");
    a = client_read(fd, NULL, 4000);
    CHECK(status_of(a) == 408);
    free(a);
    close(fd);
    rig_stop(&r);
}

TEST(idle_connections_are_closed)
{
    struct rig r;
    char c;
    rig_prepare(&r);
    rig_set(&r, "keep-alive", "1");
    rig_start(&r);
    int fd = client_open(&r);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 4000) == 1 && recv(fd, &c, 1, 0) == 0);
    close(fd);
    rig_stop(&r);
}

TEST_LIMIT(slow_readers_are_cut_off, 40)
{
    struct rig r;
    char *text = malloc(2000001);
    memset(text, 'x', 2000000);
    text[2000000] = 0;
    fake.text = text;
    fake.piece_bytes = 2000;
    rig_prepare(&r);
    rig_set(&r, "slow-client", "1");
    rig_start(&r);
    int fd = client_open(&r), small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    /* Text enough to fill the kernel's buffers and to wait in ours. */
    client_post(fd, "/v1/completions",
                "{\"prompt\":\"x\",\"max_tokens\":8000,\"stream\":true,\"n\":4}");
    EVENTUALLY(fake_count.submitted == 1);
    EVENTUALLY(fake_count.running == 0);
    sleep(3); /* never read: the stream must be given up */
    char *a = client_read(fd, "[DONE]", 5000);
    CHECK(!strstr(a, "[DONE]"));
    free(a);
    close(fd);
    a = rig_get(&r, "/metrics");
    CHECK(strstr(a, "gaze_clients_cut_off_total 1\n"));
    CHECK(strstr(a, "gaze_connections 1\n"));
    free(a);
    rig_stop(&r);
    free(text);
}

TEST_LIMIT(a_thousand_idle_connections, 40)
{
    enum { N = 1000 };
    struct rig r;
    int fd[N];
    rig_prepare(&r);
    rig_start(&r);
    for (int i = 0; i < N; i++)
        fd[i] = client_open(&r);
    char *a = rig_post(&r, CHAT, HELLO);
    CHECK(status_of(a) == 200);
    free(a);
    for (int i = 0; i < N; i++)
        close(fd[i]);
    EVENTUALLY(gauge(&r, "gaze_connections") == 1);
    rig_stop(&r);
}

TEST_LIMIT(a_thousand_quick_cancels_leave_nothing, 60)
{
    struct rig r;
    fake.token_us = 1000;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT, HELLO);
    free(a);
    int idle = client_open(&r); /* an old connection must not keep those that close after it */
    client_say(idle, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
    EVENTUALLY(gauge(&r, "gaze_connections") == 2);
    usleep(100000); /* the question's own connection is closed by now */
    int before = count_fds();
    for (int i = 0; i < 1000; i++) {
        int fd = client_open(&r);
        client_post(fd, "/v1/completions", i % 2 ? ENDLESS : ENDLESS_WHOLE);
        if (i % 4 < 2)
            usleep(300 * (unsigned)(i % 7)); /* at every stage */
        close(fd);
    }
    EVENTUALLY(gauge(&r, "gaze_connections") == 2);
    EVENTUALLY(fake_count.running == 0 && fake_count.done == fake_count.submitted);
    EVENTUALLY(count_fds() <= before);
    EVENTUALLY(gauge(&r, "gaze_engine_requests") == 0 && gauge(&r, "gaze_calls") == 1);
    close(idle);
    rig_stop(&r);
}

/* Goal: a farewell right behind half a request is heard long before any limit of time. */
TEST_LIMIT(clients_that_leave_amid_a_request_are_forgotten, 60)
{
    static const char half[] = "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 70\r\n\r\n{";
    struct rig r;
    struct rng g = {test_seed()};
    rig_prepare(&r);
    rig_set(&r, "slow-client", "300");
    rig_set(&r, "keep-alive", "300");
    rig_start(&r);
    for (int i = 0; i < 3000; i++) {
        int fd = client_open(&r);
        client_send(fd, half, rng_below(&g, sizeof half));
        close(fd);
    }
    EVENTUALLY(gauge(&r, "gaze_connections") == 1 && gauge(&r, "gaze_calls") == 1);
    rig_stop(&r);
}

TEST(a_client_that_leaves_while_waiting_is_noticed_at_once)
{
    struct rig r;
    fake.prefill_us = 60000000; /* nothing is ever said */
    rig_prepare(&r);
    rig_start(&r);
    for (int stream = 0; stream < 2; stream++) {
        int fd = client_open(&r);
        client_post(fd, "/v1/completions", stream ? ENDLESS : ENDLESS_WHOLE);
        EVENTUALLY(fake_count.running == 1);
        usleep(20000);
        uint64_t begun = clock_us();
        if (stream)
            shutdown(fd, SHUT_WR); /* taken as gone, as documented */
        else
            close(fd);
        EVENTUALLY(fake_count.running == 0);
        CHECK_MSG(clock_us() - begun < 1000000, "took %llu us",
                  (unsigned long long)(clock_us() - begun));
        EVENTUALLY(gauge(&r, "gaze_connections") == 1);
        if (stream)
            close(fd);
    }
    rig_stop(&r);
}

TEST(a_client_that_leaves_in_the_middle_of_a_stream)
{
    struct rig r;
    fake.token_us = 2000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, "/v1/completions", ENDLESS);
    char *a = client_read(fd, "tok tok", 300);
    free(a);
    CHECK(fake_count.running == 1);
    close(fd);
    EVENTUALLY(fake_count.running == 0 && fake_count.cancelled == 1);
    rig_stop(&r);
}

TEST(long_bodies_are_read_on_the_pool_and_may_be_abandoned)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    size_t n = 6000000;
    char *body = malloc(n + 100);
    strcpy(body, "{\"max_tokens\":2,\"prompt\":\"");
    size_t at_end = strlen(body);
    for (size_t i = 0; i < n; i++)
        body[at_end + i] = "abc def\xc3\xa4 "[i % 10];
    strcpy(body + at_end + n, "\"}");
    for (int i = 0; i < 8; i++) {
        int fd = client_open(&r);
        client_post(fd, "/v1/completions", body);
        usleep(1000 * (unsigned)i);
        close(fd);
    }
    char *a = rig_post(&r, "/v1/completions", body);
    CHECK_MSG(status_of(a) == 400 && strstr(a, "context_length_exceeded"), "%.300s", a);
    free(a);
    strcpy(body + at_end + 20000, "\"}");
    a = rig_post(&r, "/tokenize", body);
    CHECK_MSG(status_of(a) == 200, "%.300s", a);
    free(a);
    free(body);
    EVENTUALLY(gauge(&r, "gaze_calls") == 1);
    rig_stop(&r);
}

TEST(a_full_queue_is_429_with_retry_after)
{
    struct rig r;
    fake.busy = true;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT, HELLO);
    cJSON *v = body_of(a);
    CHECK(status_of(a) == 429 && strcasestr(a, "\r\nretry-after: 1\r\n"));
    CHECK(!strcmp(text_at(v, "error.code"), "rate_limit_exceeded"));
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

TEST(an_engine_error_is_500_or_an_event)
{
    struct rig r;
    fake.fail_at = 3;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, "/v1/completions", "{\"prompt\":\"x\"}");
    CHECK(status_of(a) == 500 && strstr(a, "internal_error") && !strstr(a, "device is gone"));
    CHECK(strstr(a, "x-request-id: "));
    free(a);
    a = rig_stream(&r, "/v1/completions", "{\"prompt\":\"x\",\"stream\":true}");
    CHECK(status_of(a) == 200 && strstr(a, "data: {\"error\":{") && !strstr(a, "[DONE]"));
    free(a);
    rig_stop(&r);
}

TEST(loading_and_stuck_show_in_health)
{
    struct rig r;
    fake.load_us = 600000;
    rig_prepare(&r);
    rig_run(&r);
    char *a = rig_get(&r, "/health");
    CHECK(status_of(a) == 503 && strstr(a, "loading"));
    free(a);
    a = rig_post(&r, CHAT, HELLO);
    CHECK(status_of(a) == 503 && strcasestr(a, "retry-after:") && strstr(a, "loading"));
    free(a);
    a = rig_get(&r, "/v1/models");
    CHECK(status_of(a) == 200);
    free(a);
    EVENTUALLY((a = rig_get(&r, "/health"), status_of(a) == 200 ? (free(a), 1) : (free(a), 0)));
    fake.stuck = true;
    a = rig_get(&r, "/health");
    CHECK(status_of(a) == 503 && strstr(a, "a step does not end"));
    free(a);
    rig_stop(&r);
}

TEST(a_model_that_does_not_load_is_exit_code_1)
{
    struct rig r;
    fake.load_fails = true;
    rig_prepare(&r);
    rig_run(&r);
    thread_join(r.thread);
    CHECK(r.exit_code == 1 && strstr(r.err.msg, "does not load"));
    settings_free(&r.settings);
}

TEST(a_port_in_use_is_an_error)
{
    struct rig r, other;
    struct err e = {0};
    char port[8];
    rig_prepare(&r);
    rig_start(&r);
    rig_prepare(&other);
    snprintf(port, sizeof port, "%u", r.port);
    rig_set(&other, "port", port);
    CHECK(server_open(&other.sv, &other.settings, &fake_engine_api, &e) == ERR_IO);
    CHECK(strstr(e.msg, port));
    settings_free(&other.settings);
    rig_stop(&r);
}

TEST(draining_lets_running_requests_end)
{
    struct rig r;
    fake.token_us = 30000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, "/v1/completions", "{\"prompt\":\"x\",\"stream\":true}"); /* 16 tokens */
    EVENTUALLY(fake_count.running == 1);
    kill(getpid(), SIGTERM);
    EVENTUALLY(is_draining(&r));
    char *a = rig_post(&r, CHAT, HELLO);
    CHECK(status_of(a) == 503 && strstr(a, "draining") && strcasestr(a, "retry-after:"));
    free(a);
    a = rig_get(&r, "/health");
    CHECK(status_of(a) == 503 && strstr(a, "draining"));
    free(a);
    a = client_read(fd, "[DONE]", 10000);
    CHECK(strstr(a, "[DONE]"));
    free(a);
    close(fd);
    thread_join(r.thread);
    CHECK(r.exit_code == 0);
    settings_free(&r.settings);
}

TEST(a_second_signal_ends_at_once)
{
    struct rig r;
    fake.token_us = 30000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r), whole = client_open(&r);
    client_post(fd, "/v1/completions", ENDLESS);
    client_post(whole, "/v1/completions", ENDLESS_WHOLE);
    EVENTUALLY(fake_count.running == 2);
    kill(getpid(), SIGTERM);
    EVENTUALLY(is_draining(&r));
    kill(getpid(), SIGTERM);
    char *a = client_read(fd, "draining", 3000);
    CHECK(strstr(a, "data: {\"error\":") && strstr(a, "shut down"));
    free(a);
    a = client_read(whole, "draining", 3000);
    CHECK(status_of(a) == 503);
    free(a);
    thread_join(r.thread);
    CHECK(r.exit_code == 0);
    close(fd);
    close(whole);
    settings_free(&r.settings);
}

TEST(a_drain_ends_even_with_stalled_clients)
{
    struct rig r;
    fake.prefill_us = 60000000;
    rig_prepare(&r);
    rig_set(&r, "drain", "1");
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, "/v1/completions", ENDLESS);
    EVENTUALLY(fake_count.running == 1);
    uint64_t begun = clock_us();
    rig_stop(&r);
    CHECK(clock_us() - begun < 5000000);
    close(fd);
}

TEST(a_silent_stream_gets_comments)
{
    struct rig r;
    fake.prefill_us = 2500000;
    rig_prepare(&r);
    rig_set(&r, "stream-ping", "1");
    rig_start(&r);
    char *a = rig_stream(&r, "/v1/completions", "{\"prompt\":\"x\",\"stream\":true}");
    CHECK(strstr(a, ": keep-alive prompt 0/2\n\n") && strstr(a, "[DONE]"));
    free(a);
    rig_stop(&r);
}

TEST(metrics_count_what_happened)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT, HELLO);
    free(a);
    a = rig_post(&r, CHAT, "{}");
    free(a);
    static const char *const want[] = {
        "http_requests_total{handler=\"chat\",method=\"POST\",status=\"200\"} 1\n",
        "http_requests_total{handler=\"chat\",method=\"POST\",status=\"400\"} 1\n",
        "vllm:num_requests_running{model_name=\"fake\"} ",
        "vllm:kv_cache_usage_perc{",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"fake\",le=\"+Inf\"} ",
        "vllm:prefix_cache_queries_total{",
        "vllm:generation_tokens_total{",
        /* the fake's: layers 0 and 1, expert x had 10 l + x of each; the second one has experts */
        "gaze_expert_rows_total{model_name=\"fake\",expert=\"3\"} 16\n",
        "gaze_expert_imbalance_ratio{model_name=\"fake\",layer=\"1\"} 1.4286\n",
        /* both layers select; the fake has counts of the first */
        "gaze_selections_sampled_total{model_name=\"fake\",layer=\"0\"} 4096\n",
        "gaze_selections_reused_total{model_name=\"fake\",layer=\"0\"} 2048\n",
        "gaze_selections_reused_total{model_name=\"fake\",layer=\"1\"} 0\n",
        "gaze_build_info{version=",
        "gaze_loop_lag_seconds ",
        "process_resident_memory_bytes ",
        "vllm:request_prompt_tokens_bucket{model_name=\"fake\",le=\"1048576\"} ",
    };
    /* What dashboards and gateways written for vLLM read, each with its type. */
    static const char *const types[] = {
        "num_requests_running gauge",
        "num_requests_waiting gauge",
        "kv_cache_usage_perc gauge",
        "prefix_cache_queries_total counter",
        "prefix_cache_hits_total counter",
        "prompt_tokens_total counter",
        "generation_tokens_total counter",
        "request_success_total counter",
        "num_preemptions_total counter",
        "spec_decode_num_drafts_total counter",
        "spec_decode_num_draft_tokens_total counter",
        "spec_decode_num_accepted_tokens_total counter",
        "time_to_first_token_seconds histogram",
        "inter_token_latency_seconds histogram",
        "e2e_request_latency_seconds histogram",
        "request_queue_time_seconds histogram",
        "request_prefill_time_seconds histogram",
        "request_decode_time_seconds histogram",
        "request_prompt_tokens histogram",
        "request_generation_tokens histogram",
        "iteration_tokens_total histogram",
    };
    a = rig_get(&r, "/metrics");
    CHECK(strstr(a, "Content-Type: text/plain; version=0.0.4"));
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECK_MSG(strstr(a, want[i]), "no %s in %s", want[i], a);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char line[96];
        snprintf(line, sizeof line, "# TYPE vllm:%s\n", types[i]);
        CHECK_MSG(strstr(a, line), "no %s in %s", line, a);
    }
    free(a);
    rig_stop(&r);
}
