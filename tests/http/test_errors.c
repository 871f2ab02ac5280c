/* test_errors.c - every kind of error that a client can meet, with its status, type, param, code.
 *
 * One row for each line of the documented list; those that need a server in a certain state have a
 * test of their own. /v1/messages says the same in Anthropic's shape.
 */
#include "rig.h"

#include "server/auth.h"

#define CHAT "/v1/chat/completions"
#define COMPLETIONS "/v1/completions"
#define MESSAGES "/v1/messages"
#define RESPONSES "/v1/responses"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define HEAD " HTTP/1.1\r\nHost: x\r\n"

struct row {
    const char *request; /* path and body after '|', or a whole request */
    int status;
    const char *type, *param, *code;
    const char *says; /* in the message */
};

static const char *null_or(const char *s)
{
    return s ? s : "(no string)"; /* as text_at() gives for null */
}

static void check_object(const char *a, const struct row *row)
{
    cJSON *v = body_of(a);
    CHECK_MSG(status_of(a) == row->status, "%s: %s", row->request, a);
    CHECK_MSG(strcasestr(a, "\r\nx-request-id: ") || row->status == 408, "%s: %s", row->request, a);
    CHECK_MSG(cJSON_GetArraySize(v) == 1 && cJSON_GetArraySize(at(v, "error")) == 4, "%s", a);
    CHECK_MSG(!strcmp(text_at(v, "error.type"), row->type), "%s: %s", row->request, a);
    CHECK_MSG(!strcmp(text_at(v, "error.param"), null_or(row->param)), "%s: %s", row->request, a);
    CHECK_MSG(!strcmp(text_at(v, "error.code"), null_or(row->code)), "%s: %s", row->request, a);
    CHECK_MSG(strstr(text_at(v, "error.message"), row->says), "%s: %s", row->request, a);
    cJSON_Delete(v);
}

static char *send_row(struct rig *r, const struct row *row)
{
    const char *bar = strchr(row->request, '|');
    char path[100];
    if (!bar)
        return rig_ask(r, row->request);
    snprintf(path, sizeof path, "%.*s", (int)(bar - row->request), row->request);
    return rig_post(r, path, bar + 1);
}

#define BAD "invalid_request_error"
static const struct row rows[] = {
    /* 400: bad JSON with the offset of the byte */
    {CHAT "|{\"messages\":[}", 400, BAD, NULL, "invalid_json", "byte 13"},
    {CHAT "|{\"a\":1} x", 400, BAD, NULL, "invalid_json", "byte 8"},
    {RESPONSES "|nul", 400, BAD, NULL, "invalid_json", "byte 0"},
    {CHAT "|[1]", 400, BAD, NULL, "invalid_json", "must be a JSON object"},
    {COMPLETIONS "|{\"prompt\":\"a\\u0000b\"}", 400, BAD, NULL, "invalid_json", "byte 12"},
    {CHAT "|{" USER ",\"stop\":\"\\u0000\",\"structured_outputs\":{\"json\":{\"const\":1}}}", 400,
     BAD, NULL, "invalid_json", "byte"},
    {COMPLETIONS "|{\"prompt\":\"\\ud800\"}", 400, BAD, NULL, "invalid_json", "surrogate"},
    {COMPLETIONS "|{\"prompt\":\"\\udc00\\ud800\"}", 400, BAD, NULL, "invalid_json", "byte 11"},
    {COMPLETIONS "|{\"prompt\":\"\xff\"}", 400, BAD, NULL, "invalid_json", "UTF-8 at byte 11"},
    {"POST " CHAT HEAD "Content-Length: 0\r\n\r\n", 400, BAD, NULL, "invalid_json", "no body"},
    /* 400: a wrong type, a wrong range, a field that is missing */
    {CHAT "|{" USER ",\"temperature\":\"hot\"}", 400, BAD, "temperature", "invalid_value",
     "a number"},
    {CHAT "|{" USER ",\"temperature\":2.5}", 400, BAD, "temperature", "invalid_value", "2.5"},
    {CHAT "|{}", 400, BAD, "messages", "invalid_value", "required"},
    {CHAT "|{\"messages\":[{\"role\":\"user\"},{\"role\":\"king\",\"content\":\"\"}]}", 400, BAD,
     "messages[1].role", "invalid_value", "king"},
    {RESPONSES "|{\"input\":[{\"role\":\"king\",\"content\":\"\"}]}", 400, BAD, "input[0].role",
     "invalid_value", "role"},
    {RESPONSES "|{\"input\":\"x\",\"max_output_tokens\":0}", 400, BAD, "max_output_tokens",
     "invalid_value", "0"},
    {RESPONSES "|{\"input\":\"x\",\"previous_response_id\":\"resp_0\"}", 400, BAD,
     "previous_response_id", "previous_response_not_found", "resp_0"},
    /* 400: too long, with both numbers */
    {CHAT "|{" USER ",\"max_tokens\":9000}", 400, BAD, "messages", "context_length_exceeded",
     "8192"},
    {COMPLETIONS "|{\"prompt\":\"x\",\"max_tokens\":9000}", 400, BAD, "prompt",
     "context_length_exceeded", "9002"},
    {RESPONSES "|{\"input\":\"x\",\"max_output_tokens\":9000}", 400, BAD, "input",
     "context_length_exceeded", "8192"},
    /* 404 */
    {"GET /nothing" HEAD "\r\n", 404, BAD, NULL, "not_found", "/nothing"},
    {"POST /v1/chat/completion" HEAD "Content-Length: 0\r\n\r\n", 404, BAD, NULL, "not_found",
     "/v1/chat/completion"},
    {CHAT "|{" USER ",\"model\":\"gpt-9\"}", 404, BAD, "model", "model_not_found", "gpt-9"},
    {COMPLETIONS "|{\"prompt\":\"x\",\"model\":\"gpt-9\"}", 404, BAD, "model", "model_not_found",
     "gpt-9"},
    {RESPONSES "|{\"input\":\"x\",\"model\":\"gpt-9\"}", 404, BAD, "model", "model_not_found",
     "gpt-9"},
    {"/tokenize|{\"prompt\":\"x\",\"model\":\"gpt-9\"}", 404, BAD, "model", "model_not_found",
     "gpt-9"},
    {"GET /v1/models/gpt-9" HEAD "\r\n", 404, BAD, "model", "model_not_found", "gpt-9"},
    {"GET /v1/responses/resp_0" HEAD "\r\n", 404, BAD, "response_id", "response_not_found",
     "resp_0"},
    {"DELETE /v1/responses/resp_0" HEAD "\r\n", 404, BAD, "response_id", "response_not_found",
     "resp_0"},
    /* 405, 411, 415 */
    {"GET " CHAT HEAD "\r\n", 405, BAD, NULL, "method_not_allowed", "GET"},
    {"PUT /v1/models" HEAD "Content-Length: 0\r\n\r\n", 405, BAD, NULL, "method_not_allowed",
     "PUT"},
    {"POST " CHAT HEAD "\r\n", 411, BAD, NULL, "length_required", "Content-Length"},
    {"POST " CHAT HEAD "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, BAD, NULL,
     "unsupported_media_type", "application/json"},
    /* 501 */
    {"/v1/embeddings|{}", 501, "not_implemented_error", NULL, "not_implemented", "embeddings"},
    {"/v1/audio/speech|{}", 501, "not_implemented_error", NULL, "not_implemented", "audio"},
    {"/v1/images/edits|{}", 501, "not_implemented_error", NULL, "not_implemented", "images"},
    {"/v1/moderations|{}", 501, "not_implemented_error", NULL, "not_implemented", "moderations"},
    {"/v1/files|{}", 501, "not_implemented_error", NULL, "not_implemented", "files"},
    {"/v1/batches|{}", 501, "not_implemented_error", NULL, "not_implemented", "batches"},
    {"/v1/rerank|{}", 501, "not_implemented_error", NULL, "not_implemented", "rerank"},
};

TEST(errors_row_by_row)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *a = send_row(&r, &rows[i]);
        check_object(a, &rows[i]);
        CHECK((rows[i].status == 405) == (strcasestr(a, "\r\nallow: ") != NULL));
        CHECK(rows[i].status != 411 || strcasestr(a, "\r\nconnection: close\r\n"));
        free(a);
    }
    CHECK(fake_count.submitted == 0);
    char *a = rig_post(&r, COMPLETIONS, "{\"prompt\":5,\"max_tokens\":2,\"prompt\":\"x\"}");
    CHECK_MSG(status_of(a) == 200, "of duplicate keys the last wins: %s", a);
    free(a);
    rig_stop(&r);
}

/* Takes the answer. */
static void check_messages(char *a, int status, const char *type, const char *says)
{
    cJSON *v = body_of(a);
    CHECK_MSG(status_of(a) == status && !strcmp(text_at(v, "type"), "error"), "%s", a);
    CHECK_MSG(!strcmp(text_at(v, "error.type"), type), "%s", a);
    CHECK_MSG(strstr(text_at(v, "error.message"), says) && at(v, "request_id"), "%s", a);
    cJSON_Delete(v);
    free(a);
}

TEST(errors_in_the_other_shape)
{
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "body-limit", "64KiB");
    rig_set(&r, "slow-client", "1");
    rig_start(&r);
    check_messages(rig_post(&r, MESSAGES, "{\"a\":]"), 400, BAD, "byte 5");
    check_messages(rig_post(&r, MESSAGES, "{\"max_tokens\":5," USER ",\"top_p\":7}"), 400, BAD,
                   "top_p");
    check_messages(rig_post(&r, MESSAGES, "{\"max_tokens\":9000," USER "}"), 400, BAD, "8192");
    check_messages(rig_post(&r, MESSAGES, "{\"max_tokens\":5," USER ",\"model\":\"gpt-9\"}"), 404,
                   "not_found_error", "gpt-9");
    check_messages(rig_get(&r, MESSAGES "/nothing"), 404, "not_found_error", "/nothing");
    check_messages(rig_get(&r, MESSAGES), 405, BAD, "GET");
    check_messages(rig_ask(&r, "POST " MESSAGES HEAD "\r\n"), 411, BAD, "Content-Length");
    check_messages(rig_post(&r, MESSAGES "/batches", "{}"), 501, "api_error", "batches");
    char *big = malloc(100001);
    memset(big, ' ', 100000);
    big[100000] = 0;
    check_messages(rig_post(&r, MESSAGES, big), 413, "request_too_large", "65536");
    free(big);
    int fd = client_open(&r);
    client_say(fd, "POST " MESSAGES HEAD "Content-Length: 100\r\n\r\n{");
    check_messages(client_read(fd, NULL, 4000), 408, BAD, "slowly");
    close(fd);
    atomic_store(&fake.busy, true);
    check_messages(rig_post(&r, MESSAGES, "{\"max_tokens\":5," USER "}"), 429, "rate_limit_error",
                   "busy");
    rig_stop(&r);
}

TEST(errors_of_size_and_time)
{
    static const struct row large = {"large", 413, BAD, NULL, "request_too_large", "100000"};
    static const struct row slow = {"slow", 408, BAD, NULL, "request_timeout", "slowly"};
    struct rig r;
    rig_prepare(&r);
    rig_set(&r, "body-limit", "64KiB");
    rig_set(&r, "slow-client", "1");
    rig_start(&r);
    char *body = malloc(100001), *a;
    memset(body, ' ', 100000);
    body[100000] = 0;
    a = rig_post(&r, CHAT, body);
    check_object(a, &large);
    free(a);
    free(body);
    int fd = client_open(&r);
    client_say(fd, "POST " CHAT HEAD "Content-Length: 100\r\n\r\n{");
    a = client_read(fd, NULL, 4000);
    check_object(a, &slow);
    free(a);
    close(fd);
    rig_stop(&r);
}

/* What libmicrohttpd refuses before a request is ours, and what it would let pass although nobody
 * can be sure where the body ends: one answer, our object, and the connection is over. */
struct unreadable {
    const char *request; /* '*' stands for 100,000 letters, where there is one */
    int status;
    const char *code;
};
static const struct unreadable unreadables[] = {
    {"GET /health\r\n\r\n", 400, "malformed_request"},
    {"GET  HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"},
    {"GET /health http/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"},
    {"GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "malformed_request"},
    {"GET /health HTTP/0.9\r\nHost: x\r\n\r\n", 505, "http_version_not_supported"},
    {"GET /health HTTP/3.7\r\nHost: x\r\n\r\n", 505, "http_version_not_supported"},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_not_supported"},
    {"GET /* HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"},
    {"GET /health HTTP/1.1\r\nHost: x\r\nX: *\r\n\r\n", 431, "headers_too_large"},
    {"GET /health HTTP/1.1\r\nHost: x\r\n*: x\r\n\r\n", 431, "headers_too_large"},
    {"POST " CHAT HEAD "Content-Length: 5x\r\n\r\nabcde", 400, "malformed_request"},
    {"POST " CHAT HEAD "Content-Length: -5\r\n\r\nabcde", 400, "malformed_request"},
    {"POST " CHAT HEAD "Content-Length: 99999999999999999999999\r\n\r\nabcde", 413,
     "request_too_large"},
    {"POST " CHAT HEAD "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400,
     "malformed_request"},
    {"POST " CHAT HEAD "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
     "malformed_request"},
    {"POST " CHAT HEAD "Transfer-Encoding: gzip\r\n\r\nabcde", 501, "not_implemented"},
    {"POST " CHAT HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n0\r\n\r\n", 400,
     "malformed_request"},
    {"POST " CHAT HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeXX0\r\n\r\n", 400,
     "malformed_request"},
    {"POST " CHAT HEAD "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 413,
     "request_too_large"},
    {"POST " CHAT HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nno colon\r\n\r\n", 400,
     "malformed_request"},
    {"POST " CHAT HEAD "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nx: *\r\n\r\n", 431,
     "headers_too_large"},
};

static void check_unreadable(struct rig *r, const struct unreadable *u, bool second, bool halves)
{
    const char *star = strchr(u->request, '*');
    struct buf b = {0};
    bool spread = star && u->status != 505;
    buf_add(&b, u->request, spread ? (size_t)(star - u->request) : strlen(u->request));
    for (int i = 0; spread && i < 100000; i++)
        buf_add(&b, "a", 1);
    if (spread)
        buf_str(&b, star + 1);
    int fd = client_open(r);
    if (second) {
        client_say(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        free(client_read(fd, "{\"status\":\"ok\"}", 3000));
    }
    client_send(fd, b.s, halves ? b.n / 2 : b.n);
    if (halves) {
        usleep(3000);
        client_send(fd, b.s + b.n / 2, b.n - b.n / 2);
    }
    char *a = client_read(fd, NULL, 5000);
    CHECK_MSG(status_of(a) == u->status, "%.60s: %.200s", u->request, a);
    CHECK_MSG(!strstr(a + 1, "HTTP/1.1 "), "%.60s: two heads: %.400s", u->request, a);
    CHECK(strcasestr(a, "\r\nconnection: close\r\n"));
    CHECK(strcasestr(a, "\r\ncontent-type: application/json\r\n"));
    cJSON *v = body_of(a);
    CHECK_MSG(cJSON_GetArraySize(v) == 1 && cJSON_GetArraySize(at(v, "error")) == 4, "%s", a);
    CHECK_MSG(!strcmp(text_at(v, "error.code"), u->code), "%.60s: %s", u->request, a);
    CHECK(cJSON_IsNull(at(v, "error.param")) && strlen(text_at(v, "error.message")) > 30);
    cJSON_Delete(v);
    free(a);
    close(fd);
    buf_free(&b);
}

TEST_LIMIT(errors_of_requests_that_cannot_be_read, 60)
{
    enum { N = sizeof unreadables / sizeof *unreadables };
    struct rig r;
    unsigned n_400 = 0;
    rig_prepare(&r);
    rig_start(&r);
    for (int way = 0; way < 4; way++)
        for (size_t i = 0; i < N; i++) {
            check_unreadable(&r, &unreadables[i], way & 1, way & 2);
            n_400 += unreadables[i].status == 400;
        }
    char *a = rig_get(&r, "/metrics"), *at = a; /* each is counted as what it was, none as 499 */
    unsigned counted = 0;
    while ((at = strstr(at, "http_requests_total{")) && at++) {
        unsigned long n = strtoul(strchr(at, '}') + 1, NULL, 10);
        bool is_400 = !strncmp(strchr(at, '}') - 5, "\"400\"", 5);
        counted += is_400 ? (unsigned)n : 0;
        CHECK_MSG(strncmp(strchr(at, '}') - 5, "\"499\"", 5) != 0, "%.100s", at);
    }
    CHECK_MSG(counted == n_400, "%u of %u", counted, n_400);
    free(a);
    CHECK(fake_count.submitted == 0);
    EVENTUALLY(gauge(&r, "gaze_calls") == 1);
    rig_stop(&r);
}

/* 401, 403 and the 429 of a key. */
TEST(errors_of_keys)
{
    static const char auth[] = "authentication_error";
    static const struct row by_key[] = {
        {"GET /v1/models" HEAD "\r\n", 401, auth, NULL, "invalid_api_key", "needed"},
        {"GET /v1/models" HEAD "Authorization: Bearer nobody\r\n\r\n", 401, auth, NULL,
         "invalid_api_key", "not known"},
        {"GET /metrics" HEAD "Authorization: Bearer app-secret\r\n\r\n", 403, "permission_error",
         NULL, "not_permitted", "app"},
        {"POST " CHAT HEAD "Authorization: Bearer eye-secret\r\nContent-Length: 2\r\n\r\n{}", 403,
         "permission_error", NULL, "not_permitted", CHAT},
        {"POST " CHAT HEAD "Authorization: Bearer app-secret\r\nContent-Length: 2\r\n\r\n{}", 400,
         BAD, "messages", "invalid_value", "required"}, /* which takes its one request a minute */
        {"POST " CHAT HEAD "Authorization: Bearer app-secret\r\nContent-Length: 2\r\n\r\n{}", 429,
         "rate_limit_error", NULL, "rate_limit_exceeded", "app"},
    };
    static char use_api[] = "use=api", use_metrics[] = "use=metrics", one[] = "requests=1";
    char path[300], line[2][400];
    struct rig r;
    struct err e = {0};
    snprintf(path, sizeof path, "%s/keys", test_tmpdir());
    CHECK_OK(auth_make_line(line[0], sizeof line[0], "app", "app-secret", (char *[]){use_api, one},
                            2, &e),
             e);
    CHECK_OK(auth_make_line(line[1], sizeof line[1], "eye", "eye-secret", (char *[]){use_metrics},
                            1, &e),
             e);
    FILE *f = fopen(path, "w");
    CHECK(f && fprintf(f, "%s\n%s\n", line[0], line[1]) > 0 && fclose(f) == 0);
    rig_prepare(&r);
    rig_set(&r, "key-file", path);
    rig_start(&r);
    for (size_t i = 0; i < sizeof by_key / sizeof *by_key; i++) {
        char *a = rig_ask(&r, by_key[i].request);
        check_object(a, &by_key[i]);
        CHECK((by_key[i].status == 429) == (strcasestr(a, "\r\nretry-after: ") != NULL));
        CHECK((by_key[i].status == 401) == (strcasestr(a, "\r\nwww-authenticate: ") != NULL));
        free(a);
    }
    char *a = rig_ask(&r, "GET /metrics" HEAD "Authorization: Bearer eye-secret\r\n\r\n");
    CHECK(status_of(a) == 200);
    free(a);
    rig_stop(&r);
}

TEST(errors_of_the_engine)
{
    static const struct row busy = {
        "busy", 429, "rate_limit_error", NULL, "rate_limit_exceeded", "The server is busy"};
    static const struct row inner = {"failed",         500,        "server_error", NULL,
                                     "internal_error", "my-number"};
    static const struct row loading = {"loading", 503,       "service_unavailable_error",
                                       NULL,      "loading", "loading"};
    static const struct row draining = {"draining", 503,        "service_unavailable_error",
                                        NULL,       "draining", "shutting down"};
    struct rig r;
    fake.load_us = 400000;
    fake.token_us = 20000;
    rig_prepare(&r);
    rig_run(&r);
    char *a = rig_post(&r, CHAT, "{" USER "}");
    check_object(a, &loading);
    CHECK(strcasestr(a, "\r\nretry-after: "));
    free(a);
    rig_await(&r);
    atomic_store(&fake.busy, true);
    a = rig_post(&r, CHAT, "{" USER "}");
    check_object(a, &busy);
    CHECK(strcasestr(a, "\r\nretry-after: "));
    free(a);
    atomic_store(&fake.busy, false);
    fake.fail_at = 3;
    a = rig_ask(&r, "POST " CHAT HEAD "x-request-id: my-number\r\nContent-Length: 45\r\n\r\n{" USER
                    "}");
    check_object(a, &inner);
    CHECK(!strstr(a, "the device is gone"));
    free(a);
    /* In a stream that has begun it is an event, and the last. */
    a = rig_stream(&r, CHAT, "{" USER ",\"stream\":true}");
    const char *event = strstr(a, "data: {\"error\":{\"message\":\"");
    CHECK_MSG(status_of(a) == 200 && event && !strstr(event + 1, "data: "), "%s", a);
    CHECK(strstr(event, "\"type\":\"server_error\",\"param\":null,\"code\":\"internal_error\"}}"));
    CHECK(strstr(event, "(request req_") && !strstr(a, "the device is gone"));
    free(a);
    a = rig_stream(&r, MESSAGES, "{\"max_tokens\":9," USER ",\"stream\":true}");
    CHECK_MSG(
        strstr(a, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
        "%s", a);
    free(a);
    fake.fail_at = 0;
    /* 499 is counted and logged; nobody hears it. */
    int fd = client_open(&r);
    client_post(fd, CHAT, "{" USER ",\"max_tokens\":4000}");
    EVENTUALLY(fake_count.running == 1);
    close(fd);
    EVENTUALLY(gauge(&r, "http_requests_total{handler=\"chat\",method=\"POST\",status=\"499\"}") ==
               1);
    fd = client_open(&r);
    client_post(fd, CHAT, "{" USER ",\"max_tokens\":60,\"stream\":true}");
    EVENTUALLY(fake_count.running == 1);
    kill(getpid(), SIGTERM);
    EVENTUALLY(is_draining(&r));
    a = rig_post(&r, CHAT, "{" USER "}");
    check_object(a, &draining);
    CHECK(strcasestr(a, "\r\nretry-after: "));
    free(a);
    a = client_read(fd, "[DONE]", PATIENCE_US / 1000);
    CHECK(strstr(a, "[DONE]"));
    free(a);
    close(fd);
    thread_join(r.thread);
    CHECK(r.exit_code == 0);
    settings_free(&r.settings);
}
