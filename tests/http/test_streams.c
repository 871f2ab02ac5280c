/* test_streams.c - streams that are gone on with after their connection broke.
 *
 * Goal: whoever asks with the number of the events that it has gets all others, byte for byte,
 * once; and what nobody asks for again ends. */
#include "rig.h"

#include "server/auth.h"

#define CHAT "/v1/chat/completions"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"
#define RESUMABLE ",\"stream\":true,\"resumable\":true"
#define LONG "{" USER ",\"max_tokens\":4000" RESUMABLE "}"

enum { MAX_EVENTS = 400 };

static const struct {
    const char *path, *body, *prefix;
} ends[] = {{CHAT, "{" USER ",\"max_tokens\":25" RESUMABLE "}", "chatcmpl-"},
            {"/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":25" RESUMABLE "}", "cmpl-"},
            {"/v1/messages", "{" USER ",\"max_tokens\":25" RESUMABLE "}", "msg_"},
            {"/v1/responses", "{\"input\":\"x\",\"max_output_tokens\":25" RESUMABLE "}", "resp_"}};
enum { N_ENDS = sizeof ends / sizeof *ends };

static void read_id(const char *stream, const char *prefix, char id[64])
{
    char mark[40];
    snprintf(mark, sizeof mark, "\"id\":\"%s", prefix);
    const char *s = strstr(stream, mark);
    CHECK_MSG(s, "no id in %.300s", stream);
    s += 6;
    snprintf(id, 64, "%.*s", (int)strcspn(s, "\""), s);
}

/* The whole rest of a stream, without its headers. */
static char *resume(struct rig *r, const char *id, int from)
{
    char request[200];
    int fd = client_open(r);
    snprintf(request, sizeof request, "GET /v1/streams/%s?from=%d HTTP/1.1\r\nHost: x\r\n\r\n", id,
             from);
    client_say(fd, request);
    char *a = client_read(fd, "\r\n0\r\n\r\n", PATIENCE_US / 1000);
    close(fd);
    CHECK_MSG(status_of(a) == 200 && strcasestr(a, "content-type: text/event-stream"), "%s", a);
    join_chunks(a);
    char *body = strdup(strstr(a, "\r\n\r\n") + 4);
    free(a);
    return body;
}

static int count_events(const char *s)
{
    int n = 0;
    for (; (s = strstr(s, "\n\n")); s += 2)
        n++;
    return n;
}

static int status_at(struct rig *r, const char *method, const char *path, const char *says)
{
    char request[300];
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", method, path);
    char *a = rig_ask(r, request);
    int status = status_of(a);
    CHECK_MSG(strstr(a, says), "%s %s: %s", method, path, a);
    free(a);
    return status;
}

static int stream_status(struct rig *r, const char *id, const char *query, const char *says)
{
    char path[200];
    snprintf(path, sizeof path, "/v1/streams/%s%s", id, query);
    return status_at(r, "GET", path, says);
}

/* Reads a few events, vanishes, and comes back for the others. */
TEST(resumed_at_every_event)
{
    struct rig r;
    char id[64];
    rig_prepare(&r);
    rig_start(&r);
    for (int e = 0; e < N_ENDS; e++) {
        atomic_store(&fake.token_us, 4000);
        for (int cut = 1; cut < 24; cut += 4) {
            int fd = client_open(&r);
            struct buf had = {0};
            client_post(fd, ends[e].path, ends[e].body);
            buf_str(&had, "");
            while (count_events(had.s) < cut) { /* the chunks of a piece are whole */
                char *a = client_read(fd, "\n\n", PATIENCE_US / 1000);
                CHECK(*a);
                buf_str(&had, a);
                free(a);
            }
            close(fd);
            join_chunks(had.s);
            const char *body = strstr(had.s, "\r\n\r\n") + 4;
            int n = count_events(body);
            read_id(had.s, ends[e].prefix, id);
            char *rest = resume(&r, id, n), *all = resume(&r, id, 0);
            size_t first = strlen(all) - strlen(rest);
            CHECK_MSG(!strcmp(all + first, rest) && !strncmp(all, body, first), "%s\n--\n%s", all,
                      rest);
            CHECK(strstr(all, !e || e == 1 ? "[DONE]" : e == 2 ? "message_stop" : "resp_"));
            CHECK(count_events(all) >= 25 && count_events(rest) == count_events(all) - n);
            free(rest);
            free(all);
            buf_free(&had);
        }
    }
    CHECK(fake_count.cancelled == 0 && gauge(&r, "gaze_detached_streams") == 0);
    rig_stop(&r);
}

/* Starts one that does not end, and leaves it; returns how many events its client had. */
static void begin_and_leave(struct rig *r, char id[64])
{
    int fd = client_open(r);
    client_post(fd, CHAT, LONG);
    char *a = client_read(fd, "tok ", PATIENCE_US / 1000);
    read_id(a, "chatcmpl-", id);
    free(a);
    close(fd);
    EVENTUALLY(gauge(r, "gaze_detached_streams") == 1);
}

TEST(what_nobody_comes_back_for_ends)
{
    struct rig r;
    char id[64];
    fake.token_us = 5000;
    rig_prepare(&r);
    rig_set(&r, "resume", "1");
    rig_start(&r);
    begin_and_leave(&r, id);
    CHECK(fake_count.running == 1 && fake_count.cancelled == 0);
    EVENTUALLY(fake_count.cancelled == 1 && fake_count.running == 0);
    CHECK(stream_status(&r, id, "", "stream_not_found") == 404);
    EVENTUALLY(gauge(&r, "gaze_resumable_streams") == 0);
    char *a = rig_stream(&r, CHAT, ends[0].body); /* one that has ended is kept as long */
    read_id(a, "chatcmpl-", id);
    free(a);
    a = resume(&r, id, 3);
    CHECK(strstr(a, "[DONE]"));
    free(a);
    EVENTUALLY(stream_status(&r, id, "", "") == 404);
    begin_and_leave(&r, id); /* a reader keeps it alive for longer than that */
    char request[200];
    int fd = client_open(&r);
    snprintf(request, sizeof request, "GET /v1/streams/%s HTTP/1.1\r\nHost: x\r\n\r\n", id);
    client_say(fd, request);
    usleep(2500000);
    CHECK(fake_count.running == 1);
    close(fd);
    EVENTUALLY(fake_count.running == 0);
    rig_stop(&r);
}

TEST(an_ordinary_stream_ends_with_its_client)
{
    struct rig r;
    char id[64];
    fake.token_us = 5000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, CHAT, "{" USER ",\"max_tokens\":4000,\"stream\":true}");
    char *a = client_read(fd, "tok ", PATIENCE_US / 1000);
    read_id(a, "chatcmpl-", id);
    free(a);
    CHECK(stream_status(&r, id, "", "stream_not_found") == 404);
    close(fd);
    EVENTUALLY(fake_count.cancelled == 1);
    a = rig_post(&r, CHAT, "{" USER ",\"resumable\":true}");
    CHECK(status_of(a) == 400 && strstr(a, "\"param\":\"resumable\""));
    free(a);
    rig_stop(&r);
}

TEST(old_events_make_room)
{
    struct rig r;
    char id[64], query[100];
    unsigned first = 0, last = 0;
    rig_prepare(&r);
    rig_set(&r, "stream-buffer", "4096");
    rig_start(&r);
    fake.token_us = 200;
    char *a = rig_stream(&r, CHAT, "{" USER ",\"max_tokens\":200" RESUMABLE "}");
    read_id(a, "chatcmpl-", id);
    free(a);
    snprintf(query, sizeof query, "/v1/streams/%s", id);
    a = rig_get(&r, query);
    const char *holds = strstr(a, "the stream holds ");
    CHECK_MSG(status_of(a) == 404 && strstr(a, "events_gone") && holds, "%s", a);
    CHECK(sscanf(holds, "the stream holds %u to %u", &first, &last) == 2 && first > 100);
    free(a);
    a = resume(&r, id, (int)first);
    CHECK(count_events(a) == (int)(last - first) && strlen(a) <= 4096 && strstr(a, "[DONE]"));
    free(a);
    a = resume(&r, id, (int)last); /* it has all: nothing comes, and the end */
    CHECK(!*a);
    free(a);
    snprintf(query, sizeof query, "?from=%u", last + 1);
    CHECK(stream_status(&r, id, query, "\"param\":\"from\"") == 400);
    CHECK(stream_status(&r, id, "?from=x", "\"param\":\"from\"") == 400);
    CHECK(stream_status(&r, id, "?from=-1", "\"param\":\"from\"") == 400);
    CHECK(stream_status(&r, "chatcmpl-0", "", "stream_not_found") == 404);
    rig_stop(&r);
}

TEST(several_readers_and_delete)
{
    struct rig r;
    char id[64], request[200];
    int fd[3];
    char *a[3];
    fake.token_us = 3000;
    rig_prepare(&r);
    rig_set(&r, "stream-ping", "1");
    rig_start(&r);
    begin_and_leave(&r, id);
    snprintf(request, sizeof request, "GET /v1/streams/%s?from=2 HTTP/1.1\r\nHost: x\r\n\r\n", id);
    for (int i = 0; i < 3; i++) {
        fd[i] = client_open(&r);
        client_say(fd[i], request);
    }
    usleep(300000);
    atomic_store(&fake.token_us, 1600000); /* a silent time: comments go to readers, too */
    a[0] = client_read(fd[0], ": keep-alive prompt ", PATIENCE_US / 1000);
    CHECK(strstr(a[0], ": keep-alive prompt "));
    free(a[0]);
    atomic_store(&fake.token_us, 3000);
    snprintf(request, sizeof request, "/v1/streams/%s", id);
    CHECK(status_at(&r, "DELETE", request, "\"deleted\":true") == 200);
    CHECK(status_at(&r, "DELETE", request, "stream_not_found") == 404);
    for (int i = 0; i < 3; i++) {
        a[i] = client_read(fd[i], "0\r\n\r\n", PATIENCE_US / 1000);
        CHECK_MSG(strstr(a[i], "0\r\n\r\n"), "reader %d has no end", i);
        free(a[i]);
        close(fd[i]);
    }
    EVENTUALLY(fake_count.running == 0);
    CHECK(status_at(&r, "POST", request, "GET, HEAD, DELETE, OPTIONS") == 405);
    fd[0] = client_open(&r); /* with its own client there, that one gets what there is */
    client_post(fd[0], CHAT, LONG);
    a[0] = client_read(fd[0], "tok ", PATIENCE_US / 1000);
    read_id(a[0], "chatcmpl-", id);
    free(a[0]);
    snprintf(request, sizeof request, "/v1/streams/%s", id);
    CHECK(status_at(&r, "DELETE", request, "\"deleted\":true") == 200);
    a[0] = client_read(fd[0], "[DONE]", PATIENCE_US / 1000);
    CHECK(strstr(a[0], "\"finish_reason\":\"stop\"") && strstr(a[0], "[DONE]"));
    free(a[0]);
    close(fd[0]);
    rig_stop(&r);
}

TEST(there_are_so_many_of_them)
{
    enum { MAX = 256 };
    struct rig r;
    int fd[MAX];
    rig_prepare(&r);
    rig_start(&r);
    for (int i = 0; i < MAX + 20; i++) { /* ended ones make room */
        char *a = rig_stream(&r, CHAT, "{" USER ",\"max_tokens\":1" RESUMABLE "}");
        CHECK(strstr(a, "[DONE]"));
        free(a);
    }
    CHECK(gauge(&r, "gaze_resumable_streams") == MAX);
    atomic_store(&fake.token_us, 500000);
    for (int i = 0; i < MAX; i++) {
        fd[i] = client_open(&r);
        client_post(fd[i], CHAT, LONG);
    }
    EVENTUALLY(fake_count.running == MAX);
    char *a = rig_post(&r, CHAT, LONG);
    CHECK_MSG(status_of(a) == 429 && strstr(a, "256 resumable"), "%s", a);
    free(a);
    for (int i = 0; i < MAX; i++)
        close(fd[i]);
    EVENTUALLY(gauge(&r, "gaze_detached_streams") == MAX);
    kill(getpid(), SIGTERM); /* the first signal waits for them, the second does not */
    EVENTUALLY(is_draining(&r));
    rig_stop(&r);
}

TEST(an_error_is_resumed_too)
{
    struct rig r;
    char id[64];
    fake.token_us = 30000;
    fake.fail_at = 8;
    rig_prepare(&r);
    rig_start(&r);
    begin_and_leave(&r, id);
    char *a = resume(&r, id, 1);
    CHECK_MSG(strstr(a, "data: {\"error\":{") && !strstr(a, "[DONE]"), "%s", a);
    free(a);
    rig_stop(&r);
}

TEST(draining_lets_them_end)
{
    struct rig r;
    char id[64];
    fake.token_us = 10000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, CHAT, "{" USER ",\"max_tokens\":60" RESUMABLE "}");
    char *a = client_read(fd, "tok ", PATIENCE_US / 1000);
    read_id(a, "chatcmpl-", id);
    free(a);
    close(fd);
    EVENTUALLY(gauge(&r, "gaze_detached_streams") == 1);
    kill(getpid(), SIGTERM);
    EVENTUALLY(is_draining(&r));
    a = resume(&r, id, 0);
    CHECK(strstr(a, "[DONE]"));
    free(a);
    thread_join(r.thread);
    CHECK(r.exit_code == 0 && fake_count.cancelled == 0);
    settings_free(&r.settings);
}

/* A response can also be read as OpenAI's clients do it; it is known while its client is away. */
TEST(responses_starting_after)
{
    struct rig r;
    char id[64], path[200];
    fake.token_us = 20000;
    rig_prepare(&r);
    rig_start(&r);
    int fd = client_open(&r);
    client_post(fd, "/v1/responses", ends[3].body);
    char *a = client_read(fd, "output_text.delta", PATIENCE_US / 1000);
    read_id(a, "resp_", id);
    free(a);
    close(fd);
    EVENTUALLY(gauge(&r, "gaze_detached_streams") == 1);
    snprintf(path, sizeof path, "/v1/responses/%s", id);
    CHECK(status_at(&r, "GET", path, "\"status\":\"in_progress\"") == 200);
    snprintf(path, sizeof path,
             "GET /v1/responses/%s?stream=true&starting_after=4 HTTP/1.1\r\nHost: x\r\n\r\n", id);
    fd = client_open(&r);
    client_say(fd, path);
    a = client_read(fd, "\r\n0\r\n\r\n", PATIENCE_US / 1000);
    close(fd);
    static cJSON *ev[MAX_EVENTS];
    bool done;
    join_chunks(a);
    int n = events_of(a, ev, MAX_EVENTS, &done);
    CHECK(n > 20);
    for (int i = 0; i < n; i++) {
        CHECK(number_at(ev[i], "sequence_number") == 5 + i);
        if (i == n - 1)
            CHECK(!strcmp(text_at(ev[i], "type"), "response.incomplete"));
        cJSON_Delete(ev[i]);
    }
    free(a);
    snprintf(path, sizeof path, "/v1/responses/%s", id);
    CHECK(status_at(&r, "GET", path, "\"status\":\"incomplete\"") == 200); /* kept as any other */
    rig_stop(&r);
}

/* A stream is its key's, and a key's request counts until the answer has ended. */
TEST(streams_belong_to_their_key)
{
    static char one[] = "concurrent=1";
    char path[300], line[2][400], id[64], request[300];
    struct rig r;
    struct err e = {0};
    snprintf(path, sizeof path, "%s/keys", test_tmpdir());
    CHECK_OK(auth_make_line(line[0], sizeof line[0], "a", "a-secret", (char *[]){one}, 1, &e), e);
    CHECK_OK(auth_make_line(line[1], sizeof line[1], "b", "b-secret", NULL, 0, &e), e);
    FILE *f = fopen(path, "w");
    CHECK(f && fprintf(f, "%s\n%s\n", line[0], line[1]) > 0 && fclose(f) == 0);
    fake.token_us = 20000;
    rig_prepare(&r);
    rig_set(&r, "key-file", path);
    rig_start(&r);
    snprintf(request, sizeof request,
             "POST " CHAT " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-secret\r\n"
             "Content-Length: %zu\r\n\r\n",
             strlen(ends[0].body));
    int fd = client_open(&r);
    client_say(fd, request);
    client_say(fd, ends[0].body);
    char *a = client_read(fd, "tok ", PATIENCE_US / 1000);
    read_id(a, "chatcmpl-", id);
    free(a);
    close(fd);
    EVENTUALLY((fd = client_open(&r), client_say(fd, request), client_say(fd, ends[0].body),
                a = client_answer(fd), close(fd),
                status_of(a) == 429 ? (free(a), 1) : (free(a), 0)));
    snprintf(request, sizeof request,
             "GET /v1/streams/%s HTTP/1.1\r\nHost: x\r\nx-api-key: b-secret\r\n\r\n", id);
    a = rig_ask(&r, request);
    CHECK(status_of(a) == 404);
    free(a);
    fd = client_open(&r);
    snprintf(request, sizeof request,
             "GET /v1/streams/%s HTTP/1.1\r\nHost: x\r\nx-api-key: a-secret\r\n\r\n", id);
    client_say(fd, request);
    a = client_read(fd, "[DONE]", PATIENCE_US / 1000);
    CHECK(strstr(a, "[DONE]"));
    free(a);
    close(fd);
    rig_stop(&r);
}
