/* bench_frontend.c - what the front end itself costs: the real HTTP server over an engine that
 * costs nothing, and a client process that reads thousands of streams with epoll.
 *
 * The engine says, for every running request at each step, a token whose text is the time at which
 * it was made; the client reads the time and knows how long the token was on its way (one machine,
 * one monotonic clock). Flat out the next step is made when the server has taken the last one, so
 * the server is never idle and never further behind than a step.
 *
 * Columns: tokens/s by the clock, and by the time that the server's one thread was on a CPU, which
 * is what one core of its own would stream, whoever else is busy here; p50 and p99 of a token's
 * time from the engine to the system call that sends it, and p50, p99 and the most of its time to
 * the client's read; KiB of resident memory per stream.
 *
 * The client never sleeps. On loopback who sends to a sleeping reader wakes it within that very
 * call, 20 to 100 us in a virtual machine, which no server pays whose clients are elsewhere: with a
 * client that slept, 16 streams of 50 tokens/s showed 3 ms, and 110 us of the server's CPU a token
 * instead of 13.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "server/loop.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 2048, MAX_SAMPLES = 1 << 22, TAIL = 20 };
#define MODEL "tests/fixtures/v32-bf16"

/* --- what both processes see ------------------------------------------------------------------ */

struct shared {
    _Atomic uint32_t port, streams, connected; /* streams: wanted; connected: have a token */
    _Atomic bool chat, measuring, quit;
    _Atomic uint64_t n_tokens, n_samples; /* read while measuring */
    _Atomic uint64_t n_lost;              /* streams that ended, which none should */
    uint32_t us[MAX_SAMPLES];
};
static struct shared *shared;

/* --- the engine ------------------------------------------------------------------------------- */

struct run {
    struct gen_request *req; /* NULL: free */
    uint32_t gen;
    bool cancelled, ended;
};

struct engine {
    struct engine_options options;
    struct model_config model;
    struct tokenizer *tok;
    struct engine_plan plan;
    struct mailbox out;
    pthread_t thread;
    pthread_mutex_t lock; /* guards run and taken */
    pthread_cond_t more;
    struct run run[MAX_STREAMS];
    bool taken; /* nothing that was said waits for the server */
    _Atomic uint32_t step_us;
    _Atomic bool stopping;
    _Atomic uint64_t n_said;
};
static struct engine only;

static void say(struct engine *en, uint32_t i, enum gen_event_kind kind, const char *text, size_t n)
{
    struct gen_event *ev =
        gen_event_new(kind, (struct req_id){i, en->run[i].gen}, kind == GEN_TOKENS, n);
    assert(ev);
    memcpy(ev->text, text, n);
    ev->finish = kind == GEN_CHOICE ? FINISH_CANCELLED : FINISH_NONE;
    if (kind == GEN_TOKENS) {
        ev->out[0] = (struct sample_out){.token = 100, .logprob = -0.5f, .rank = 1};
        atomic_fetch_add(&en->n_said, 1);
    }
    if (mailbox_put(&en->out, &ev->mail))
        en->options.wake(en->options.wake_arg);
}

static bool step(struct engine *en)
{
    bool said = false;
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        struct run *r = &en->run[i];
        char text[TAIL + 1];
        if (!r->req || r->ended)
            continue;
        en->taken = false;
        said = true;
        if (r->cancelled) {
            r->ended = true;
            say(en, i, GEN_CHOICE, "", 0);
            say(en, i, GEN_DONE, "", 0);
            continue;
        }
        int n = snprintf(text, sizeof text, "@%016llx ", (unsigned long long)clock_us());
        say(en, i, GEN_TOKENS, text, (size_t)n);
    }
    return said;
}

static void *engine_main(void *arg)
{
    struct engine *en = arg;
    uint64_t due_us = clock_us();
    mutex_lock(&en->lock);
    while (!atomic_load(&en->stopping)) {
        uint64_t now_us = clock_us();
        uint32_t step_us = atomic_load(&en->step_us);
        if (step_us && now_us < due_us) {
            cond_wait_us(&en->more, &en->lock, (unsigned long)(due_us - now_us));
        } else if ((!step_us && !en->taken) || !step(en)) {
            cond_wait_us(&en->more, &en->lock, 20000);
        } else {
            due_us = (due_us + 2 * step_us < now_us ? now_us : due_us) + step_us;
        }
    }
    mutex_unlock(&en->lock);
    return NULL;
}

static enum err_code bench_open(struct engine **out, const struct engine_options *o, struct err *e)
{
    struct engine *en = &only;
    en->options = *o;
    en->taken = true;
    if (model_config_read(&en->model, MODEL, e) || tokenizer_open(&en->tok, MODEL, e))
        return e->code;
    en->plan = (struct engine_plan){
        .max_context = 1u << 30, .max_seqs = MAX_STREAMS, .kv_tokens = UINT64_MAX / 2};
    mailbox_init(&en->out);
    pthread_mutex_init(&en->lock, NULL);
    cond_init_monotonic(&en->more);
    *out = en;
    return thread_start(&en->thread, "engine", engine_main, en, e);
}

static void drop_all(struct engine *en)
{
    for (struct mail *m = mailbox_take(&en->out), *next; m; m = next) {
        next = m->next;
        gen_event_free((struct gen_event *)m);
    }
}

static void bench_close(struct engine *en)
{
    atomic_store(&en->stopping, true);
    thread_join(en->thread);
    for (uint32_t i = 0; i < MAX_STREAMS; i++)
        gen_request_free(en->run[i].req);
    drop_all(en);
    mailbox_destroy(&en->out);
    tokenizer_close(en->tok);
}

static enum err_code bench_submit(struct engine *en, struct gen_request *req, struct req_id *id,
                                  struct err *e)
{
    uint32_t i = 0;
    mutex_lock(&en->lock);
    while (i < MAX_STREAMS && en->run[i].req)
        i++;
    if (i < MAX_STREAMS) {
        en->run[i] = (struct run){.req = req, .gen = en->run[i].gen + 1};
        *id = (struct req_id){i, en->run[i].gen};
        pthread_cond_signal(&en->more);
    }
    mutex_unlock(&en->lock);
    if (i < MAX_STREAMS)
        return ERR_OK;
    gen_request_free(req);
    return err_set(e, ERR_BUSY, "%d streams run", MAX_STREAMS);
}

static void bench_cancel(struct engine *en, struct req_id id)
{
    mutex_lock(&en->lock);
    if (en->run[id.slot].req && en->run[id.slot].gen == id.gen)
        en->run[id.slot].cancelled = true;
    pthread_cond_signal(&en->more);
    mutex_unlock(&en->lock);
}

static struct gen_event *bench_take(struct engine *en)
{
    struct mail *all = mailbox_take(&en->out);
    mutex_lock(&en->lock);
    for (struct mail *m = all; m; m = m->next) {
        const struct gen_event *ev = (const struct gen_event *)m;
        if (ev->kind != GEN_DONE)
            continue;
        gen_request_free(en->run[ev->id.slot].req);
        en->run[ev->id.slot].req = NULL;
    }
    en->taken = true;
    pthread_cond_signal(&en->more);
    mutex_unlock(&en->lock);
    return (struct gen_event *)all;
}

static void bench_drain(struct engine *en)
{
    (void)en;
}

static void bench_stats(struct engine *en, struct engine_stats *out)
{
    (void)en;
    *out = (struct engine_stats){.last_step_us = clock_us()};
}

static const struct model_config *bench_model(const struct engine *en)
{
    return &en->model;
}

static const struct tokenizer *bench_tokenizer(const struct engine *en)
{
    return en->tok;
}

static const struct chat_format *bench_format(const struct engine *en)
{
    (void)en;
    return chat_format_by_name("deepseek-v3.1");
}

static const struct engine_plan *bench_plan(const struct engine *en)
{
    return &en->plan;
}

static const char *bench_name(const struct engine *en)
{
    (void)en;
    return "bench";
}

static const struct engine_api bench_api = {.open = bench_open,
                                            .close = bench_close,
                                            .submit = bench_submit,
                                            .cancel = bench_cancel,
                                            .take_events = bench_take,
                                            .drain = bench_drain,
                                            .get_stats = bench_stats,
                                            .model = bench_model,
                                            .tokenizer = bench_tokenizer,
                                            .chat_format = bench_format,
                                            .get_plan = bench_plan,
                                            .backend_name = bench_name,
                                            .fingerprint = bench_name};

/* --- the way out ------------------------------------------------------------------------------ */

static uint32_t
    sent_us[MAX_SAMPLES]; /* the server's thread writes, measure() reads when it rests */
static _Atomic uint64_t n_sent;

/* In the C library's place for libmicrohttpd: how old the tokens are that go out. */
ssize_t send(int fd, const void *from, size_t n, int flags)
{
    static ssize_t (*next)(int, const void *, size_t, int);
    const char *at = from, *end = at + n;
    if (!next) {
        void *found = dlsym(RTLD_NEXT, "send");
        assert(found);
        memcpy(&next, &found, sizeof next);
    }
    uint64_t now_us =
        atomic_load_explicit(&shared->measuring, memory_order_relaxed) ? clock_us() : 0;
    while (now_us && (at = memchr(at, '@', (size_t)(end - at))) && end - at > 17) {
        uint64_t made_us = strtoull(at + 1, NULL, 16), k = atomic_fetch_add(&n_sent, 1);
        if (k < MAX_SAMPLES)
            sent_us[k] = now_us > made_us ? (uint32_t)(now_us - made_us) : 0;
        at += 17;
    }
    return next(fd, from, n, flags);
}

/* --- the client process ----------------------------------------------------------------------- */

struct stream {
    int fd;
    bool heard;
    uint32_t n_tail; /* bytes of a token that a read has cut */
    char tail[TAIL];
};
static struct stream stream[MAX_STREAMS];

static void ask(struct stream *st, int epoll)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atomic_load(&shared->port)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bool chat = atomic_load(&shared->chat);
    const char *body = chat ? "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],"
                              "\"max_tokens\":1000000,\"stream\":true,\"ignore_eos\":true}"
                            : "{\"prompt\":\"Hello\",\"max_tokens\":1000000,\"stream\":true,"
                              "\"ignore_eos\":true}";
    char all[600];
    int n = snprintf(all, sizeof all,
                     "POST /v1/%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     chat ? "chat/completions" : "completions", strlen(body), body);
    *st = (struct stream){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = st};
    if (st->fd < 0 || connect(st->fd, (struct sockaddr *)&to, sizeof to) ||
        send(st->fd, all, (size_t)n, MSG_NOSIGNAL) != n || fcntl(st->fd, F_SETFL, O_NONBLOCK) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, st->fd, &ev)) {
        perror("bench_frontend: client");
        _exit(1);
    }
}

static void note(uint64_t now_us, const char *token)
{
    uint64_t made_us = strtoull(token, NULL, 16), n;
    if (!atomic_load_explicit(&shared->measuring, memory_order_relaxed))
        return;
    atomic_fetch_add_explicit(&shared->n_tokens, 1, memory_order_relaxed);
    n = atomic_fetch_add_explicit(&shared->n_samples, 1, memory_order_relaxed);
    if (n < MAX_SAMPLES)
        shared->us[n] = now_us > made_us ? (uint32_t)(now_us - made_us) : 0;
}

static void hear(struct stream *st)
{
    static char text[TAIL + (1 << 16) + 1];
    memcpy(text, st->tail, st->n_tail);
    ssize_t got = recv(st->fd, text + st->n_tail, 1 << 16, 0);
    uint64_t now_us = clock_us();
    if (got < 0)
        return; /* nothing there after all */
    if (got == 0) {
        atomic_fetch_add(&shared->n_lost, 1);
        close(st->fd);
        st->fd = -1;
        return;
    }
    char *end = text + st->n_tail + got, *at = text;
    *end = 0;
    st->n_tail = 0;
    while ((at = memchr(at, '@', (size_t)(end - at)))) {
        if (end - at < 17) {
            st->n_tail = (uint32_t)(end - at);
            memcpy(st->tail, at, st->n_tail);
            break;
        }
        note(now_us, at + 1);
        at += 17;
        if (!st->heard) {
            st->heard = true;
            atomic_fetch_add(&shared->connected, 1);
        }
    }
}

static void client_main(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    uint32_t n = 0;
    while (!atomic_load(&shared->quit)) {
        struct epoll_event ev[256];
        uint32_t want = atomic_load(&shared->streams);
        if (want < n) { /* the case is over */
            for (uint32_t i = 0; i < n; i++)
                close(stream[i].fd);
            n = 0;
        }
        for (uint32_t k = 0; k < 16 && n < want; k++)
            ask(&stream[n++], epoll);
        int got = epoll_wait(epoll, ev, 256, 0);
        for (int i = 0; i < got; i++)
            hear(ev[i].data.ptr);
    }
}

/* --- the rows --------------------------------------------------------------------------------- */

struct rig {
    struct settings settings;
    struct server *sv;
    pthread_t thread;
    struct err err;
};

static _Atomic uint32_t n_ready;
static void on_ready(struct server *sv)
{
    (void)sv;
    atomic_store(&n_ready, 1);
}

static void *server_main(void *arg)
{
    struct rig *r = arg;
    server_run(r->sv, &r->err);
    server_close(r->sv);
    return NULL;
}

static double thread_s(pthread_t t)
{
    clockid_t id;
    struct timespec ts = {0};
    if (!pthread_getcpuclockid(t, &id))
        clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static size_t resident_bytes(void)
{
    unsigned long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lu %lu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static bool wait_for(_Atomic uint32_t *what, uint32_t value)
{
    for (int i = 0; i < 3000; i++) {
        if (atomic_load(what) == value)
            return true;
        usleep(10000);
    }
    fprintf(stderr, "bench_frontend: %u of %u after 30 s\n", atomic_load(what), value);
    return false;
}

static _Atomic uint32_t n_running;
static void count_running(void)
{
    uint32_t n = 0;
    mutex_lock(&only.lock);
    for (uint32_t i = 0; i < MAX_STREAMS; i++)
        n += only.run[i].req != NULL;
    mutex_unlock(&only.lock);
    atomic_store(&n_running, n);
}

struct rates {
    double by_clock, by_cpu, sent_p50, sent_p99, p50, p99, most, kib;
};

static bool measure(struct rig *r, bool chat, uint32_t streams, uint32_t step_us, double seconds,
                    struct rates *out)
{
    atomic_store(&shared->connected, 0);
    atomic_store(&shared->chat, chat);
    atomic_store(&only.step_us, 50000); /* calm, while they connect */
    size_t before = resident_bytes();
    atomic_store(&shared->streams, streams);
    if (!wait_for(&shared->connected, streams))
        return false;
    atomic_store(&only.step_us, step_us);
    usleep(300000);
    shared->n_tokens = shared->n_samples = n_sent = 0;
    double cpu = thread_s(r->thread);
    uint64_t begun_us = clock_us(), said = only.n_said;
    atomic_store(&shared->measuring, true);
    usleep((useconds_t)(seconds * 1e6));
    cpu = thread_s(r->thread) - cpu;
    said = only.n_said - said;
    atomic_store(&shared->measuring, false);
    double s = (double)(clock_us() - begun_us) * 1e-6;
    size_t after = resident_bytes();
    uint64_t n = shared->n_samples < MAX_SAMPLES ? shared->n_samples : MAX_SAMPLES;
    uint64_t sent = n_sent < MAX_SAMPLES ? n_sent : MAX_SAMPLES;
    if (!n || (double)sent < 0.9 * (double)(said < MAX_SAMPLES ? said : MAX_SAMPLES) ||
        (double)shared->n_tokens < 0.9 * (double)said) {
        fprintf(stderr, "bench_frontend: %llu tokens said, %llu sent, %llu heard\n",
                (unsigned long long)said, (unsigned long long)n_sent,
                (unsigned long long)shared->n_tokens);
        return false;
    }
    qsort(shared->us, n, sizeof *shared->us, by_value);
    qsort(sent_us, sent, sizeof *sent_us, by_value);
    *out = (struct rates){.by_clock = (double)shared->n_tokens / s,
                          .by_cpu = (double)shared->n_tokens / cpu,
                          .sent_p50 = sent_us[sent / 2] * 1e-3,
                          .sent_p99 = sent_us[sent * 99 / 100] * 1e-3,
                          .p50 = shared->us[n / 2] * 1e-3,
                          .p99 = shared->us[n * 99 / 100] * 1e-3,
                          .most = shared->us[n - 1] * 1e-3,
                          .kib = ((double)after - (double)before) / 1024 / streams};
    atomic_store(&shared->streams, 0);
    atomic_store(&only.step_us, 50000);
    for (int i = 0; i < 1000; i++) {
        count_running();
        if (!n_running)
            return true;
        usleep(10000);
    }
    fprintf(stderr, "bench_frontend: %u streams stay after their clients left\n", n_running);
    return false;
}

static int by_p99(const void *a, const void *b)
{
    const struct rates *x = a, *y = b;
    return x->p99 < y->p99 ? -1 : x->p99 > y->p99;
}

static bool rows(struct rig *r, double seconds)
{
    static const struct {
        bool chat;
        uint32_t streams, step_us;
    } cases[] = {{true, 2000, 1000000}, {true, 1, 20000}, {true, 16, 20000}, {true, 64, 20000},
                 {true, 256, 20000},    {false, 16, 0},   {false, 256, 0},   {true, 16, 0},
                 {true, 256, 0},        {true, 2000, 0}};
    enum { REPEATS = 3 };
    printf("%-12s %8s %8s %12s %12s %9s %9s %9s %9s %9s %11s\n", "endpoint", "streams", "step_ms",
           "tokens/s", "per CPU s", "sent_p50", "sent_p99", "p50_ms", "p99_ms", "most_ms",
           "KiB/stream");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rates got[REPEATS];
        for (int k = 0; k < REPEATS; k++)
            if (!measure(r, cases[i].chat, cases[i].streams, cases[i].step_us, seconds, &got[k]))
                return false;
        double kib = got[0].kib; /* later ones find the memory of the first */
        qsort(got, REPEATS, sizeof *got, by_p99);
        const struct rates *g = &got[REPEATS / 2];
        char step[16];
        snprintf(step, sizeof step, "%u", cases[i].step_us / 1000);
        printf("%-12s %8u %8s %12.0f %12.0f %9.3f %9.3f %9.3f %9.3f %9.2f",
               cases[i].chat ? "chat" : "completions", cases[i].streams,
               cases[i].step_us ? step : "none", g->by_clock, g->by_cpu, g->sent_p50, g->sent_p99,
               g->p50, g->p99, g->most);
        if (i == 0)
            printf(" %11.1f\n", kib);
        else
            printf(" %11s\n", "-");
        fflush(stdout);
    }
    return true;
}

int main(int argc, char **argv)
{
    static struct rig r;
    struct err e = {0};
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    pid_t client = fork();
    if (client == 0) {
        client_main();
        _exit(0);
    }
    log_set_level(LOG_ERROR);
    settings_default(&r.settings);
    if (settings_set(&r.settings, "port", "0", &e) ||
        settings_set(&r.settings, "model", MODEL, &e) ||
        server_open(&r.sv, &r.settings, &bench_api, &e)) {
        fprintf(stderr, "bench_frontend: %s\n", e.msg);
        kill(client, SIGTERM);
        return 1;
    }
    atomic_store(&only.step_us, 50000);
    atomic_store(&shared->port, r.sv->port);
    r.sv->on_ready = on_ready;
    if (thread_start(&r.thread, "server", server_main, &r, &e))
        return 1;
    bool ok = wait_for(&n_ready, 1) && rows(&r, seconds);
    atomic_store(&shared->quit, true);
    waitpid(client, NULL, 0);
    kill(getpid(), SIGTERM);
    thread_join(r.thread);
    if (shared->n_lost)
        fprintf(stderr, "bench_frontend: %llu streams ended early\n",
                (unsigned long long)shared->n_lost);
    bool lost = shared->n_lost > 0;
    settings_free(&r.settings);
    return ok && !lost ? 0 : 1;
}
