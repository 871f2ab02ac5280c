/* loop.c - see loop.h. */
#include "loop.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/thread.h"
#include "generation.h"
#include "guide.h"
#include "http.h"
#include "progress.h"
#include "response_store.h"
#include "stream.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum {
    SWEEP_MS = 100,
    LAST_SPANS_MS = 2000, /* at the end: for the collector to take them */
    HURRY_US = 1000000,   /* after a second signal: time to tell the clients */
    LOST_US = 700000      /* the same after a rank was lost, and for a probe to see it */
};

static void on_mhd_timer(uv_timer_t *t)
{
    server_turn(t->data);
}

void server_turn(struct server *sv)
{
    MHD_UNSIGNED_LONG_LONG ms;
    if (!sv->daemon || sv->closing)
        return;
    MHD_run(sv->daemon);
    if (MHD_get_timeout(sv->daemon, &ms) == MHD_YES)
        uv_timer_start(&sv->mhd_timer, on_mhd_timer, ms, 0);
    else
        uv_timer_stop(&sv->mhd_timer);
}

static void on_mhd_readable(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    server_turn(p->data);
}

/* --- the engine --------------------------------------------------------------------------------
 */

static void wake_loop(void *arg)
{
    struct server *sv = arg;
    uv_async_send(&sv->engine_wake);
}

static void on_progress(void *arg, size_t done, size_t total)
{
    struct server *sv = arg;
    atomic_store(&sv->load_total_bytes, total);
    atomic_store(&sv->load_done_bytes, done);
}

static void *load_main(void *arg)
{
    struct server *sv = arg;
    struct engine *en = NULL;
    struct err e = {0};
    if (sv->api->open(&en, &sv->engine_options, &e)) {
        sv->load_err = e;
        atomic_store(&sv->load_state, LOAD_FAILED);
    } else {
        atomic_store(&sv->load_state, LOAD_DONE);
    }
    uv_async_send(&sv->engine_wake);
    return en;
}

static void finish_loading(struct server *sv)
{
    void *result = NULL;
    if (!sv->loader_started || atomic_load(&sv->load_state) == LOAD_RUNNING)
        return;
    pthread_join(sv->loader, &result);
    sv->loader_started = false;
    if (atomic_load(&sv->load_state) == LOAD_FAILED) {
        sv->exit_code = SERVER_NOT_LOADED;
        uv_stop(&sv->loop);
        return;
    }
    sv->engine = result;
    progress_end(sv);
    if (sv->draining)
        sv->api->drain(sv->engine);
    if (sv->on_ready)
        sv->on_ready(sv);
}

/* Whoever still waits, hears of it: most have by the engine's own events. */
static void check_lost(struct server *sv)
{
    struct api_error ae;
    if (sv->lost || !sv->api->lost || !sv->api->lost(sv->engine, &sv->lost_err))
        return;
    sv->lost = true;
    sv->lost_us = clock_us();
    sv->exit_code = SERVER_LOST;
    log_error("loop", "lost=rank calls=%u error=\"%s\"", sv->n_calls, sv->lost_err.msg);
    api_fail_err(&ae, &sv->lost_err);
    for (struct call *c = sv->calls; c; c = c->next)
        generation_fail(c, &ae);
}

static void on_engine_wake(uv_async_t *a)
{
    struct server *sv = a->data;
    finish_loading(sv);
    if (!sv->engine)
        return;
    struct gen_event *ev = sv->api->take_events(sv->engine), *next;
    for (; ev; ev = next) {
        next = (struct gen_event *)ev->mail.next;
        generation_event(sv, ev);
        gen_event_free(ev);
    }
    check_lost(sv);
    server_turn(sv);
}

/* --- time and signals
 * ----------------------------------------------------------------------------- */

static void check_drained(struct server *sv, uint64_t now_us)
{
    if (sv->lost && now_us > sv->lost_us + LOST_US)
        uv_stop(&sv->loop);
    if (!sv->draining)
        return;
    if (!sv->hurried && now_us > sv->drain_begun_us + sv->settings->drain_s * 1000000) {
        log_warn("loop", "drain=\"took too long\" calls=%u", sv->n_calls);
        server_drain(sv);
    }
    bool late = sv->hurried && now_us > sv->hurry_us + HURRY_US;
    if ((sv->n_calls == 0 && sv->n_engine_requests == 0) || late)
        uv_stop(&sv->loop);
}

static void on_sweep(uv_timer_t *t)
{
    struct server *sv = t->data;
    uint64_t now_us = clock_us();
    double late_s = now_us > sv->sweep_due_us ? (double)(now_us - sv->sweep_due_us) * 1e-6 : 0;
    sv->loop_lag_s = late_s;
    if (late_s > sv->loop_lag_max_s)
        sv->loop_lag_max_s = late_s;
    if (!sv->engine)
        progress_show(sv, now_us);
    http_sweep(sv, now_us);
    server_turn(sv);
    check_drained(sv, now_us);
    sv->sweep_due_us = clock_us() + SWEEP_MS * 1000;
}

void server_drain(struct server *sv)
{
    uint64_t now_us = clock_us();
    if (!sv->draining) {
        sv->draining = true;
        sv->drain_begun_us = now_us;
        log_info("loop", "drain=begun calls=%u", sv->n_calls);
        if (sv->engine)
            sv->api->drain(sv->engine);
    } else if (!sv->hurried) {
        struct api_error ae;
        sv->hurried = true;
        sv->hurry_us = now_us;
        log_info("loop", "drain=\"at once\" calls=%u", sv->n_calls);
        api_fail(&ae, 503, NULL, "draining", "The server was shut down before the answer ended.");
        for (struct call *c = sv->calls; c; c = c->next)
            generation_fail(c, &ae);
        streams_fail(sv, &ae);
    }
    server_turn(sv);
    check_drained(sv, now_us);
}

static void on_signal(uv_signal_t *s, int number)
{
    (void)number;
    struct server *sv = s->data;
    if (!sv->engine) { /* nothing runs yet; the loader cannot be interrupted politely */
        log_info("loop", "signal=%d while=loading", number);
        _Exit(0);
    }
    server_drain(sv);
}

static void reload_part(struct server *sv, const char *what, bool ok, const struct err *e)
{
    if (ok) {
        log_info("loop", "reload=%s", what);
        return;
    }
    sv->n_reloads_failed++;
    log_error("loop", "reload=%s error=\"%s\" kept=\"what was there\"", what, e->msg);
}

void server_reload(struct server *sv)
{
    struct err e = {0};
    sv->n_reloads++;
    if (sv->on_reload)
        reload_part(sv, "settings", sv->on_reload(sv, &e), &e);
    if (auth_required(sv->auth))
        reload_part(sv, "keys", auth_reload(sv->auth, &e) == ERR_OK, &e);
    if (sv->settings->tls_cert[0])
        reload_part(sv, "certificate", http_load_tls(sv, &e) == ERR_OK, &e);
}

static void on_hangup(uv_signal_t *s, int number)
{
    (void)number;
    server_reload(s->data);
}

/* --- open, run, close ----------------------------------------------------------------------------
 */

static enum err_code set_names(struct server *sv, struct err *e)
{
    settings_model_name(sv->settings, sv->name, sizeof sv->name);
    for (const char *s = sv->settings->alias; *s;) {
        size_t n = strcspn(s, ",");
        if (n && sv->n_aliases == MAX_ALIASES)
            return err_set(e, ERR_INVALID, "alias: at most %d names", MAX_ALIASES);
        if (n)
            snprintf(sv->alias[sv->n_aliases++], MAX_NAME, "%.*s", (int)n, s);
        s += n + (s[n] == ',');
    }
    return ERR_OK;
}

bool server_knows_model(const struct server *sv, const char *name)
{
    bool known = !strcmp(name, sv->name);
    for (uint32_t i = 0; !known && i < sv->n_aliases; i++)
        known = !strcmp(name, sv->alias[i]);
    return known;
}

static void start_handles(struct server *sv)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(sv->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    uv_async_init(&sv->loop, &sv->engine_wake, on_engine_wake);
    uv_poll_init(&sv->loop, &sv->mhd_poll, info->epoll_fd);
    uv_timer_init(&sv->loop, &sv->mhd_timer);
    uv_timer_init(&sv->loop, &sv->sweep);
    uv_signal_init(&sv->loop, &sv->sigterm);
    uv_signal_init(&sv->loop, &sv->sigint);
    uv_signal_init(&sv->loop, &sv->sighup);
    sv->engine_wake.data = sv->mhd_poll.data = sv->mhd_timer.data = sv->sweep.data = sv;
    sv->sigterm.data = sv->sigint.data = sv->sighup.data = sv;
    uv_poll_start(&sv->mhd_poll, UV_READABLE, on_mhd_readable);
    uv_timer_start(&sv->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    uv_signal_start(&sv->sigterm, on_signal, SIGTERM);
    uv_signal_start(&sv->sigint, on_signal, SIGINT);
    uv_signal_start(&sv->sighup, on_hangup, SIGHUP);
    sv->sweep_due_us = clock_us() + SWEEP_MS * 1000;
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

enum err_code server_open(struct server **out, const struct settings *settings,
                          const struct engine_api *api, struct err *e)
{
    struct server *sv = calloc(1, sizeof *sv);
    if (!sv)
        return err_set(e, ERR_NOMEM, "server");
    signal(SIGPIPE, SIG_IGN);
    sv->settings = settings;
    sv->api = api;
    sv->begun_us = clock_us();
    sv->created_s = clock_unix_s();
    sv->id_seed = rng_entropy();
    if (settings_engine(settings, &sv->engine_options, e) || set_names(sv, e))
        goto free_server;
    if (!settings->model[0] && !settings->served_name[0])
        snprintf(sv->name, sizeof sv->name, "ember");
    if (settings->stored_responses &&
        response_store_open(&sv->responses, (uint32_t)settings->stored_responses,
                            (size_t)settings->response_memory, e))
        goto free_server;
    if (auth_open(&sv->auth, settings->key_file, settings->api_key, e))
        goto close_responses;
    if (guides_open(&sv->guides, e))
        goto close_auth;
    if (uv_loop_init(&sv->loop)) {
        err_set(e, ERR_IO, "cannot start the event loop");
        goto close_auth;
    }
    char instance[80];
    snprintf(instance, sizeof instance, "%.50s:%u", settings->host, (unsigned)settings->port);
    if (settings->otlp_endpoint[0] &&
        otlp_open(&sv->otlp, &sv->loop, settings->otlp_endpoint, instance, e))
        goto close_loop;
    if (http_start(sv, e))
        goto close_otlp;
    start_handles(sv);
    sv->engine_options.by_launcher = settings->launcher != 0;
    sv->engine_options.wake = wake_loop;
    sv->engine_options.wake_arg = sv;
    sv->engine_options.progress = on_progress;
    sv->engine_options.progress_arg = sv;
    sv->load_begun_us = clock_us();
    if (thread_start(&sv->loader, "load", load_main, sv, e)) {
        server_close(sv);
        return e->code;
    }
    sv->loader_started = true;
    *out = sv;
    return ERR_OK;
close_otlp:
    otlp_close(sv->otlp, 0);
close_loop:
    uv_run(&sv->loop, UV_RUN_DEFAULT);
    uv_loop_close(&sv->loop);
close_auth:
    guides_close(sv->guides);
    auth_close(sv->auth);
close_responses:
    response_store_close(sv->responses);
free_server:
    free(sv);
    return e->code;
}

int server_run(struct server *sv, struct err *e)
{
    server_turn(sv);
    uv_run(&sv->loop, UV_RUN_DEFAULT);
    if (atomic_load(&sv->load_state) == LOAD_FAILED)
        *e = sv->load_err;
    if (sv->lost)
        *e = sv->lost_err;
    return sv->exit_code;
}

void server_close(struct server *sv)
{
    void *result = NULL;
    if (sv->loader_started) {
        pthread_join(sv->loader, &result);
        sv->engine = result;
    }
    close_handle((uv_handle_t *)&sv->mhd_poll, NULL); /* while its descriptor is still its own */
    http_stop(sv);
    otlp_close(sv->otlp, LAST_SPANS_MS);
    sv->closing = true;
    uv_walk(&sv->loop, close_handle, NULL);
    uv_run(&sv->loop, UV_RUN_DEFAULT); /* text workers end here, too */
    if (sv->engine)
        sv->api->close(sv->engine);
    guides_close(sv->guides);
    int busy = uv_loop_close(&sv->loop);
    assert(busy == 0);
    auth_close(sv->auth);
    response_store_close(sv->responses);
    free(sv->slot);
    free(sv);
}
