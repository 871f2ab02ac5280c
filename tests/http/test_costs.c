/* test_costs.c - what each answer says of its own cost, and that all of it adds up.
 *
 * Goal:   every endpoint that generates tells its timings, streamed or not, and the requests'
 *         shares of the device make up the time that the workers were busy.
 * Method: the real engine with the bundled model, a crowd of requests of every kind at once, and
 * the counter of busy time in /metrics before and after. A share is rounded down to a microsecond,
 * a lane's time to the same in the page.
 */
#include "rig.h"

#include <math.h>

#define CHAT "/v1/chat/completions"
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"Tell me about the sea and its ships\"}]"
/* What a random model says at random may hold a NUL, which the reader here refuses. */
#define GREEDY_FIRST "\"temperature\":0,"
#define GREEDY ",\"temperature\":0"
#define STREAM ",\"stream\":true"

struct kind {
    const char *path, *body;
    bool streams;
};
static const struct kind kinds[] = {
    {CHAT, "{" HI GREEDY ",\"max_tokens\":30,\"ignore_eos\":true}", false},
    {CHAT, "{" HI GREEDY ",\"max_tokens\":20,\"n\":3,\"ignore_eos\":true}", false},
    {CHAT, "{" HI GREEDY ",\"max_tokens\":25,\"ignore_eos\":true" STREAM "}", true},
    {CHAT,
     "{" HI GREEDY ",\"max_tokens\":9,\"n\":2,\"ignore_eos\":true" STREAM
     ",\"stream_options\":{\"include_usage\":true}}",
     true},
    {"/v1/completions",
     "{" GREEDY_FIRST
     "\"prompt\":[\"one\",\"two or three\",\"four\"],\"max_tokens\":12,\"ignore_eos\":true}",
     false},
    {"/v1/completions", "{" GREEDY_FIRST "\"prompt\":\"x\",\"best_of\":4,\"n\":1,\"max_tokens\":7}",
     false},
    {"/v1/completions",
     "{" GREEDY_FIRST
     "\"prompt\":\"a longer prompt of some words\",\"echo\":true,\"logprobs\":1,\"max_tokens\":0}",
     false},
    {"/v1/completions",
     "{" GREEDY_FIRST "\"prompt\":[\"five\",\"six\"],\"max_tokens\":15" STREAM "}", true},
    {"/v1/messages", "{" HI GREEDY ",\"max_tokens\":17}", false},
    {"/v1/messages", "{" HI GREEDY ",\"max_tokens\":17" STREAM "}", true},
    {"/v1/responses", "{" GREEDY_FIRST "\"input\":\"Hello you\",\"max_output_tokens\":19}", false},
    {"/v1/responses",
     "{" GREEDY_FIRST "\"input\":\"Hello you\",\"max_output_tokens\":19" STREAM "}", true},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds, ROUNDS = 3, MAX_EVENTS = 500 };

static const char *const fields[] = {
    "queue_ms", "prompt_n",    "prompt_ms",    "prompt_per_second",
    "cached_n", "predicted_n", "predicted_ms", "predicted_per_second",
    "ttft_ms",  "total_ms",    "device_ms",    "kv_byte_seconds"};

/* Both lanes; the page may be a step behind the answers, so it is read until it stands still. */
static double busy_ms(struct rig *r)
{
    double last = -1;
    for (;;) {
        double sum = 0;
        char *a = rig_get(r, "/metrics");
        static const char name[] = "\ngaze_busy_seconds_total{model_name=\"fake\",lane=";
        for (const char *s = a; (s = strstr(s, name)); s++)
            sum += 1e3 * strtod(strchr(s + sizeof name, '}') + 1, NULL);
        free(a);
        if (sum == last)
            return sum;
        last = sum;
        usleep(200000);
    }
}

/* The timings of a whole answer, or those that came last in a stream. */
static double device_ms(const struct kind *k, const char *answer)
{
    static cJSON *ev[MAX_EVENTS];
    const cJSON *timings = NULL;
    int n = 1, told = 0;
    bool done;
    CHECK_MSG(status_of(answer) == 200, "%s %s: %s", k->path, k->body, answer);
    if (k->streams)
        n = events_of(answer, ev, MAX_EVENTS, &done);
    else
        ev[0] = body_of(answer);
    for (int i = 0; i < n; i++) {
        const cJSON *t = at(ev[i], "timings");
        if (!t)
            t = at(ev[i], "response.timings");
        told += t != NULL;
        timings = t ? t : timings;
    }
    CHECK_MSG(told == 1, "%s %s: timings came %d times", k->path, k->body, told);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        CHECK_MSG(number_at(timings, fields[i]) >= 0, "%s: no %s", k->path, fields[i]);
    CHECK(number_at(timings, "kv_byte_seconds") > 0);
    double ms = number_at(timings, "device_ms");
    CHECK_MSG(ms > 0 && ms <= 1 + number_at(timings, "total_ms") * 2, "%s: %g of %g ms", k->path,
              ms, number_at(timings, "total_ms")); /* two lanes */
    for (int i = 0; i < n; i++)
        cJSON_Delete(ev[i]);
    return ms;
}

TEST(costs_of_requests_add_up_to_the_workers_time)
{
    struct rig r;
    int fd[ROUNDS * N_KINDS];
    double sum = 0;
    rig_prepare(&r);
    rig_set(&r, "model", "config/models/ember");
    rig_start_real(&r);
    double before = busy_ms(&r);
    for (int i = 0; i < ROUNDS * N_KINDS; i++) {
        fd[i] = client_open(&r);
        client_post(fd[i], kinds[i % N_KINDS].path, kinds[i % N_KINDS].body);
        usleep(3000);
    }
    for (int i = 0; i < ROUNDS * N_KINDS; i++) {
        const struct kind *k = &kinds[i % N_KINDS];
        char *a = k->streams ? client_read(fd[i], "\r\n0\r\n\r\n", PATIENCE_US / 1000)
                             : client_answer(fd[i]);
        if (k->streams)
            join_chunks(a);
        sum += device_ms(k, a);
        free(a);
        close(fd[i]);
    }
    double busy = busy_ms(&r) - before;
    printf("  %d requests: device_ms adds up to %.3f, the workers were busy for %.3f ms\n",
           ROUNDS * N_KINDS, sum, busy);
    CHECK(busy > 10);
    CHECK_MSG(fabs(sum - busy) <= 0.02 * busy, "%.3f against %.3f", sum, busy);
    rig_stop(&r);
}
