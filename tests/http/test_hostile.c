/* test_hostile.c - the whole server over the real engine, among clients that leave, flood and wait.
 *
 * What the engine does with a cancel step by step is in tests/sim; what the front end does with bad
 * bytes in test_http.c, over a fake. Here both stand together: afterwards nothing runs, nothing is
 * held, memory has not grown, and the next request is answered as the first was.
 */
#include "rig.h"

#include <sys/resource.h>

#define SHORT_BODY "{\"prompt\":\"one two\",\"max_tokens\":24,\"ignore_eos\":true,\"seed\":5}"

static double resident_kib(void)
{
    char line[128];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, "VmRSS:", 6))
            kib = strtod(line + 6, NULL);
    fclose(f);
    return kib;
}

/* A sanitizer's allocator keeps what was freed, so there it says nothing. */
static void check_at_most(double kib, double most)
{
#ifdef GAZE_DEBUG
    (void)most;
    CHECK(kib > 0);
#else
    CHECK_MSG(kib <= most, "%.0f KiB resident, at most %.0f", kib, most);
#endif
}

static bool engine_is_empty(struct rig *r)
{
    return gauge(r, "vllm:num_requests_running{model_name=\"fake\"}") == 0 &&
           gauge(r, "vllm:num_requests_waiting{model_name=\"fake\"}") == 0 &&
           gauge(r, "gaze_kv_pages{model_name=\"fake\",state=\"used\"}") == 0 &&
           gauge(r, "gaze_calls") == 1 && gauge(r, "gaze_connections") == 1;
}

/* The text of the answer to SHORT_BODY. malloc'ed. */
static char *answer_text(struct rig *r)
{
    char *a = rig_post(r, "/v1/completions", SHORT_BODY);
    CHECK_MSG(status_of(a) == 200, "%.300s", a);
    cJSON *v = body_of(a);
    char *text = strdup(text_at(v, "choices.0.text"));
    cJSON_Delete(v);
    free(a);
    return text;
}

/* A prompt of n_words words that no other has, so that nothing of it is cached. */
static char *body_of_words(uint32_t salt, uint32_t n_words, uint32_t max_tokens, bool stream)
{
    struct buf b = {0};
    buf_fmt(&b,
            "{\"max_tokens\":%u,\"ignore_eos\":true,\"return_token_ids\":true,\"stream\":%s,"
            "\"prompt\":\"",
            max_tokens, stream ? "true" : "false");
    for (uint32_t i = 0; i < n_words; i++)
        buf_fmt(&b, "%u ", (salt * 977 + i) % 10);
    buf_fmt(&b, "\"}");
    CHECK(b.s);
    return b.s;
}

enum stage { AMID_HEADERS, AMID_BODY, AT_ONCE, QUEUED, IN_PREFILL, IN_DECODE, N_STAGES };

/* A client that gets as far as `stage` and leaves. */
static void come_and_go(struct rig *r, enum stage stage, uint32_t i)
{
    bool stream = i / N_STAGES % 2;
    bool decode = stage == IN_DECODE;
    char *body = body_of_words(i, decode ? 10 : 700, decode ? 900 : 20, stream);
    int fd = client_open(r);
    if (stage == AMID_HEADERS) {
        client_say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le");
    } else if (stage == AMID_BODY) {
        client_say(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{");
    } else {
        client_post(fd, "/v1/completions", body);
    }
    if (stage == QUEUED || stage == IN_PREFILL)
        usleep(500 + 700 * (i % 5));
    if (decode && stream)
        free(client_read(fd, "data: {", PATIENCE_US / 1000)); /* its first token is there */
    else if (decode)
        usleep(8000);
    close(fd);
    free(body);
}

/* Goal:   1,000 clients that leave at every stage, streaming and not, leave no sequence, no page,
 * no call and no descriptor, and change nothing for who comes after. Method: few seats and small
 * chunks, so that some wait and prompts take several steps; for the first 200 of them four clients
 * hold all seats, so that those are queued for certain. */
TEST_LIMIT(clients_that_leave_at_every_stage, 300)
{
    struct rig r;
    int holder[4];
    rig_prepare(&r);
    rig_set(&r, "max-seqs", "4");
    rig_set(&r, "max-context", "2048");
    rig_set(&r, "prefill-tokens", "64");
    rig_set(&r, "max-queued", "64");
    rig_run_on(&r, &engine_api_real);
    rig_await(&r);
    char *first = answer_text(&r);
    EVENTUALLY(engine_is_empty(&r));
    int fds = count_fds();
    for (uint32_t k = 0; k < 4; k++) {
        char *body = body_of_words(k, 10, 1900, true);
        holder[k] = client_open(&r);
        client_post(holder[k], "/v1/completions", body);
        free(client_read(holder[k], "data: {", PATIENCE_US / 1000));
        free(body);
    }
    for (uint32_t i = 0; i < 1000; i++) {
        for (uint32_t k = 0; i == 200 && k < 4; k++)
            close(holder[k]);
        come_and_go(&r, i < 200 ? QUEUED : (enum stage)(i % N_STAGES), i);
    }
    EVENTUALLY(engine_is_empty(&r));
    EVENTUALLY(count_fds() <= fds);
    double kib = resident_kib();
    for (uint32_t i = 0; i < 200; i++)
        come_and_go(&r, (enum stage)(i % N_STAGES), 1000 + i);
    EVENTUALLY(engine_is_empty(&r));
    EVENTUALLY(count_fds() <= fds);
    printf("  resident after 1,000: %.1f MiB, after 1,200: %.1f MiB\n", kib / 1024,
           resident_kib() / 1024);
    check_at_most(resident_kib(), kib + 2048);
    char *last = answer_text(&r);
    CHECK_MSG(!strcmp(first, last), "%s / %s", first, last);
    free(first);
    free(last);
    rig_stop(&r);
}

static uint32_t pages_used(struct rig *r)
{
    struct engine_stats s;
    engine_get_stats(r->sv->engine, &s);
    return s.pages_used;
}

/* Goal: when a client leaves in the middle of its stream its pages are free as soon as the loop has
 * heard of it and the step under way has ended: milliseconds, here with room for a busy machine.
 * (tests/sim/test_scheduler.c counts the steps: sched_cancel_at_every_step.) */
TEST_LIMIT(pages_of_who_leaves_are_free_at_once, 60)
{
    struct rig r;
    uint64_t most_us = 0;
    rig_prepare(&r);
    rig_start_real(&r);
    for (uint32_t i = 0; i < 20; i++) {
        char *body = body_of_words(i, 300, 1200, true);
        int fd = client_open(&r);
        client_post(fd, "/v1/completions", body);
        free(client_read(fd, "data: {", PATIENCE_US / 1000));
        EVENTUALLY(pages_used(&r) > 0);
        uint64_t begun_us = clock_us();
        close(fd);
        while (pages_used(&r))
            CHECK(clock_us() - begun_us < PATIENCE_US);
        uint64_t us = clock_us() - begun_us;
        most_us = us > most_us ? us : most_us;
        CHECK_MSG(us < PATIENCE_US / 20, "after %llu us", (unsigned long long)us);
        free(body);
    }
    printf("  pages free after %.1f ms at most\n", (double)most_us / 1e3);
    rig_stop(&r);
}

/* Goal: thousands of idle connections cost less than 8 KiB each, and others are served meanwhile;
 * above the bound further ones are closed. */
TEST_LIMIT(thousands_of_idle_connections, 120)
{
    enum { N = 4000, MORE = 200 };
    struct rig r;
    struct rlimit files = {3 * N, 3 * N};
    static int fd[N + MORE];
    if (setrlimit(RLIMIT_NOFILE, &files))
        TEST_SKIP("this process may not have so many descriptors");
    rig_prepare(&r);
    rig_start_real(&r);
    free(answer_text(&r));
    double before = resident_kib();
    for (int i = 0; i < N; i++)
        fd[i] = client_open(&r);
    EVENTUALLY(gauge(&r, "gaze_connections") == N + 1);
    double each = (resident_kib() - before) / N;
    printf("  %.2f KiB resident for each of %d idle connections\n", each, N);
    check_at_most(resident_kib(), before + 8 * N);
    free(answer_text(&r));
    for (int i = N; i < N + MORE; i++)
        fd[i] = client_open(&r);
    for (int i = 0; i < N; i++)
        close(fd[i]);
    EVENTUALLY(gauge(&r, "gaze_connections") <= MORE + 1);
    free(answer_text(&r));
    for (int i = N; i < N + MORE; i++)
        close(fd[i]);
    EVENTUALLY(gauge(&r, "gaze_connections") == 1);
    rig_stop(&r);
}

/* What stands around a prompt. */
struct frame {
    const char *path, *head, *tail, *field;
};
static const struct frame completion = {"/v1/completions", "{\"max_tokens\":2,\"prompt\":\"", "\"}",
                                        "prompt"};
static const struct frame chat = {
    "/v1/chat/completions", "{\"max_tokens\":2,\"messages\":[{\"role\":\"user\",\"content\":\"",
    "\"}]}", "messages"};

/* Sends a request whose prompt has n bytes, all one word; returns the socket. */
static int send_prompt(struct rig *r, const struct frame *f, size_t n)
{
    char line[200], *piece = malloc(1 << 16);
    CHECK(piece);
    memset(piece, 'w', 1 << 16);
    int fd = client_open(r);
    snprintf(line, sizeof line, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
             f->path, n + strlen(f->head) + strlen(f->tail));
    client_say(fd, line);
    client_say(fd, f->head);
    for (size_t left = n; left;) {
        size_t k = left < 1 << 16 ? left : 1 << 16;
        client_send(fd, piece, k);
        left -= k;
    }
    client_say(fd, f->tail);
    free(piece);
    return fd;
}

static char *end_of_answer(int fd)
{
    char *a = client_read(fd, "}}", 4 * PATIENCE_US / 1000);
    close(fd);
    return a;
}

/* Goal: bodies of 64 MB are refused by their size, or closed upon while they come; memory is what
 * it was after the first. */
TEST_LIMIT(prompts_of_64_megabytes, 100)
{
    struct rig r;
    double before = 0;
    rig_prepare(&r);
    rig_start_real(&r);
    free(answer_text(&r));
    for (int i = 0; i < 5; i++) {
        char *a = end_of_answer(send_prompt(&r, &completion, 64000000));
        CHECK_MSG(!*a || status_of(a) == 413, "%.300s", a);
        free(a);
        EVENTUALLY(gauge(&r, "gaze_calls") == 1);
        if (i == 0)
            before = resident_kib();
    }
    printf("  resident %.1f MiB after the first, %.1f MiB after five\n", before / 1024,
           resident_kib() / 1024);
    check_at_most(resident_kib(), before + 4096);
    free(answer_text(&r));
    rig_stop(&r);
}

/* Checks that a prompt of n bytes is told both numbers of tokens; returns how many others were
 * answered between its last byte and that. */
static uint32_t check_told(struct rig *r, const struct frame *f, size_t n, const char *told)
{
    uint32_t others = 0;
    int fd = send_prompt(r, f, n);
    uint64_t sent_us = clock_us();
    struct pollfd p = {.fd = fd, .events = POLLIN};
    for (; poll(&p, 1, 0) == 0; others++)
        free(answer_text(r));
    char *a = end_of_answer(fd);
    printf("  %s, %zu bytes: told after %.0f ms, %u answers meanwhile\n", f->path, n,
           (double)(clock_us() - sent_us) / 1000, others);
    CHECK_MSG(status_of(a) == 400 && strstr(a, "context_length_exceeded"), "%.400s", a);
    CHECK_MSG(strstr(a, told) && strstr(a, "context is 2048 tokens"), "%s in: %.400s", told, a);
    free(a);
    return others;
}

/* Goal: where the operator lets 64 MB in, such a prompt is told that it cannot fit, with both
 * numbers of tokens, without being merged, and others are answered meanwhile. A prompt that might
 * fit by its bytes is counted exactly. */
TEST_LIMIT(prompts_of_64_megabytes_that_may_come, 100)
{
    enum { N = 64000000 };
    struct rig r;
    char told[100];
    rig_prepare(&r);
    rig_set(&r, "body-limit", "100MiB");
    rig_start_real(&r);
    char *first = answer_text(&r);
    size_t longest = tokenizer_longest(r.sv->api->tokenizer(r.sv->engine));
    snprintf(told, sizeof told, "(at least %zu in the prompt, 2 in the answer)",
             (N + longest - 1) / longest);
    CHECK(check_told(&r, &completion, N, told) > 0);
    double before = resident_kib();
    CHECK(check_told(&r, &completion, N, told) > 0);
    CHECK(check_told(&r, &chat, N, "in the messages, 2 in the answer)") > 0);
    check_at_most(resident_kib(), before + 4096);
    /* and a token that begins it */
    snprintf(told, sizeof told, "(%zu in the prompt, 2 in the answer)", 2046 * longest + 1);
    check_told(&r, &completion, 2046 * longest, told);
    char *last = answer_text(&r);
    CHECK_MSG(!strcmp(first, last), "%s / %s", first, last);
    free(first);
    free(last);
    rig_stop(&r);
}
