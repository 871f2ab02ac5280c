/* server.h - the loop thread's own state: one server, its connections, the calls under way.
 *
 * A conn is a client's connection; a call is one request on it, from its first line to its last
 * byte. A call that waits for the engine is suspended in libmicrohttpd and woken by http_wake().
 * Objects are found by what the engine knows of them: a req_id leads to a call only while both are
 * alive.
 *
 * Thread: everything here belongs to the loop thread. A text worker may read `settings`, `api` and
 * the engine's text functions, and writes only to the gen_params of its own call.
 */
#ifndef GAZE_SERVER_SERVER_H
#define GAZE_SERVER_SERVER_H

#include "auth.h"
#include "base/arena.h"
#include "engine_api.h"
#include "errors.h"
#include "json_out.h"
#include "otlp.h"
#include "settings.h"
#include "sse.h"
#include "trace.h"

#include <microhttpd.h>
#include <stdatomic.h>
#include <uv.h>

enum { MAX_ALIASES = 16, MAX_NAME = 128, MAX_COUNTERS = 256 };

struct server;
struct call;
struct body_schema; /* schema.h */
struct generation;  /* generation.h */
struct stream;      /* stream.h */

enum conn_state {
    CONN_IDLE,    /* between requests, or before the first */
    CONN_READING, /* a request line came, its body has not ended */
    CONN_ANSWERING
};
struct conn {
    struct server *sv;
    int fd;
    enum conn_state state;
    uint64_t since_us;   /* of the state */
    uint64_t read_bytes; /* of the body being read */
    uint64_t looked_us;  /* when it was last asked whether its client is still there */
    bool cut;            /* shut down by us; libmicrohttpd has yet to notice */
    int cut_status;      /* what its client was told then; 0: nothing */
    bool queueing;       /* what is queued now is ours: refusals.c */
    struct conn *prev, *next;
};

struct route {
    const char *method;             /* "GET", "POST" */
    const char *path;               /* ends with '*': all that begins so */
    const char *handler;            /* name in metrics */
    bool needs_engine;              /* 503 while loading or draining */
    const struct body_schema *body; /* what its JSON body holds; NULL: it takes none */
    void (*handle)(struct call *c);
    const char *answer; /* in /openapi.json; NULL: it is not implemented */
    const char *events; /* there, of an event where it streams; NULL: it does not */
    const char *shown;  /* the path there; NULL: path, with {id} for its '*' */
    const char *media;  /* of the answer; NULL: application/json */
    const char *query;  /* names of numbers that may follow '?', with spaces; NULL: none */
};

/* libuv frees a handle later than we do a call, so the watch on its socket stands alone. */
struct watch {
    uv_poll_t poll;
    struct call *call; /* NULL: given up */
};

struct call {
    struct server *sv;
    struct conn *conn;
    struct MHD_Connection *mhd;
    const struct route *route; /* NULL: unknown path */
    char method[12], path[192];
    char request_id[80];
    struct trace trace;
    bool traced;          /* the client sent a trace, or a collector waits for ours */
    struct auth_key *key; /* NULL: none was asked for, or it was wrong */
    bool admitted;        /* it counts among key's running requests */
    struct buf body;
    uint64_t begun_us;
    bool handled;   /* the handler ran */
    bool suspended; /* in libmicrohttpd; http_wake() ends it */
    bool working;   /* a text worker has it: must not be freed */
    bool gone;      /* the client has left */
    bool ended;     /* libmicrohttpd is through with it */
    bool streaming; /* status and headers are out; `sse` carries the rest */
    bool queued;    /* an answer was handed to libmicrohttpd */
    bool close_after;
    bool unmeasured; /* where its body ends is not certain */
    bool http10;
    int status; /* of the answer; 0: none yet */
    const char *content_type;
    const char *allow; /* for 405 and OPTIONS */
    bool challenge;    /* 401 says how to ask */
    unsigned retry_after_s;
    struct buf answer; /* the whole body, unless streaming */
    struct sse sse;
    struct generation *gen;
    struct stream *stream;    /* that it writes (with a gen) or reads; NULL: neither */
    struct call *next_reader; /* of the stream */
    struct watch *watch;
    uv_work_t work;
    struct call *prev, *next;
};

struct engine_slot { /* by req_id.slot */
    uint32_t gen;
    struct call *call; /* NULL: none waits for it */
    uint32_t prompt;   /* which of the call's requests */
};

struct http_counter {
    const char *handler;
    char method[8];
    int status;
    uint64_t count;
};

enum load_state { LOAD_RUNNING, LOAD_DONE, LOAD_FAILED };

struct server {
    const struct settings *settings;
    const struct engine_api *api;
    struct engine *engine; /* NULL until loaded */
    struct engine_options engine_options;
    pthread_t loader;
    bool loader_started;
    _Atomic int load_state;
    struct err load_err;
    _Atomic size_t load_done_bytes, load_total_bytes;
    uint64_t load_begun_us, load_said_us;

    char name[MAX_NAME];
    char label[2 * MAX_NAME]; /* name as a value of a metric's label */
    char alias[MAX_ALIASES][MAX_NAME];
    uint32_t n_aliases;
    uint64_t created_s, begun_us;
    uint64_t id_seed; /* for request ids */
    struct auth *auth;
    struct otlp *otlp;                /* NULL: no collector */
    struct response_store *responses; /* NULL: none are kept */
    struct guides *guides;
    struct stream *streams; /* resumable ones, the newest first */
    uint32_t n_streams;

    uv_loop_t loop;
    uv_async_t engine_wake; /* events, or the end of loading */
    uv_poll_t mhd_poll;
    uv_timer_t mhd_timer, sweep;
    uv_signal_t sigterm, sigint, sighup;
    struct MHD_Daemon *daemon;
    uint16_t port; /* the one in use */
    bool closing;
    bool stopping; /* all connections are being ended */
    bool draining;
    uint64_t drain_begun_us;
    bool hurried; /* the second signal came */
    uint64_t hurry_us;
    bool lost; /* a rank of the engine is lost: everything gets 503, and then the process ends */
    struct err lost_err;
    uint64_t lost_us;
    int exit_code;

    struct conn *conns;
    struct call *calls;
    uint32_t n_conns, n_calls;
    struct engine_slot *slot;
    uint32_t n_slots;
    uint32_t n_engine_requests; /* submitted and not ended */

    struct http_counter counter[MAX_COUNTERS];
    uint32_t n_counters;
    uint64_t n_disconnects, n_cut_off;
    double loop_lag_s, loop_lag_max_s; /* how late the sweep came */
    uint64_t sweep_due_us;
    void (*on_ready)(struct server *sv); /* once the engine is loaded; may be NULL */
    /* SIGHUP: brings the live settings up to date; may be NULL. False: they stay as they were. */
    bool (*on_reload)(struct server *sv, struct err *e);
    void *reload_arg;
    uint64_t n_reloads, n_reloads_failed;
};

/* Whether name is the served name or an alias. */
bool server_knows_model(const struct server *sv, const char *name);

#endif
