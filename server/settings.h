/* settings.h - every option of the program, from four places: flag, environment, file, default.
 *
 * One table (settings.c) says of each option its name, type, range, default and meaning; parsing,
 * the check of the file and --help all come from it. "max-context" is --max-context on the command
 * line, GAZE_MAX_CONTEXT in the environment and "max_context" in the file. A flag beats the
 * environment, which beats the file, which beats the default.
 *
 * Thread: read by one before the server starts, then immutable.
 */
#ifndef GAZE_SERVER_SETTINGS_H
#define GAZE_SERVER_SETTINGS_H

#include "engine.h"

#include <stdio.h>

enum { SETTINGS_MAX = 60 };

struct settings {
    const char *model, *served_name, *alias, *host, *chat_format, *cors; /* "": not given */
    const char *api_key, *key_file, *tls_cert, *tls_key, *otlp_endpoint; /* likewise */
    uint64_t port;
    const char *device;    /* auto, cpu, cuda, cuda:N; engine_device() reads it */
    uint64_t precision;    /* 0: auto, 1: exact, 2: fast, 3: fp8 */
    uint64_t kv;           /* 0: auto, 1: f32, 2: bf16, 3: fp8 */
    uint64_t index;        /* 0: auto, 1: exact, 2: fp8 */
    const char *split;     /* "P:D", or "": groups that prefill, and that decode */
    const char *placement; /* file of experts' places, or "" */
    uint64_t tp, ep;       /* ranks of a group; parts of the experts */
    uint64_t experts;      /* what experts read; 0: f32, 1: fp8 */
    uint64_t ranks_per_gpu;
    uint64_t comm;         /* of ranks on GPUs; 0: auto, 1: device, 2: nccl */
    uint64_t launcher;     /* 0: its environment is not asked */
    uint64_t health_port;  /* of a process that follows; 0: none */
    uint64_t dp;           /* attention groups */
    uint64_t step_limit_s; /* 0: by the number of groups; see engine_lost() */
    uint64_t threads, max_context, max_seqs, max_queued, prefill_tokens, kv_memory, layers;
    uint64_t plan_for;     /* bytes; no option: gaze plan alone sets it */
    uint64_t prefix_cache; /* 0: off, 1: on */
    uint64_t load;         /* 0: auto, 1: dummy */
    uint64_t log_level;    /* enum log_level */
    uint64_t log_format;   /* enum log_format */
    uint64_t log_prompts;  /* 0: off, 1: on */
    uint64_t open_metrics; /* 1: /metrics asks for no key */
    uint64_t insecure;     /* 1: a public address may do without a key */
    uint64_t body_limit, header_limit, max_connections;
    uint64_t keep_alive_s;  /* an idle connection is closed after so long */
    uint64_t slow_client_s; /* a sender or reader that stalls so long is cut off */
    uint64_t sse_ping_s;    /* a comment goes out when a stream was silent for so long */
    uint64_t stream_buffer; /* bytes that one stream may hold for a slow reader */
    uint64_t resume_s;      /* a resumable stream goes on for so long without a reader */
    uint64_t stored_responses, response_memory; /* answers of /v1/responses: how many, bytes */
    uint64_t drain_s;                           /* running requests get so long after SIGTERM */
    char *owned[SETTINGS_MAX];                  /* strings that settings_free() frees */
};

/* Defaults, then the file (path NULL: the first that exists of <binary>/../share/gaze/gaze.json and
 * config/gaze.json, or none), then the environment, then argv[0 .. argc). Options that are no
 * settings end in `rest` when it takes them: rest(arg, argv + i, n_left) returns how many it took,
 * 0: unknown. ERR_INVALID names the option (with the nearest known name) and the range. */
typedef int settings_rest(void *arg, char **argv, int n_left);
MUST_CHECK enum err_code settings_load(struct settings *s, char **argv, int argc,
                                       settings_rest *rest, void *rest_arg, struct err *e);
void settings_default(struct settings *s);
/* "64", "2GiB", "512 MiB", "1.5G"; powers of 1024. */
bool settings_bytes(const char *s, uint64_t *out);
/* One option by its flag name, e.g. in tests. */
MUST_CHECK enum err_code settings_set(struct settings *s, const char *name, const char *value,
                                      struct err *e);
/* A whole file of settings. */
MUST_CHECK enum err_code settings_read_file(struct settings *s, const char *path, struct err *e);
/* Takes over from `fresh` what may change while the server runs: logging, the body limit, and the
 * limits of time. */
void settings_take_live(struct settings *s, const struct settings *fresh);
void settings_free(struct settings *s);
void settings_help(FILE *to); /* a line or two per option */

/* Borrows strings of s. ERR_INVALID, ERR_CUDA for a device that cannot be used. */
MUST_CHECK enum err_code settings_engine(const struct settings *s, struct engine_options *o,
                                         struct err *e);
/* What the model is called by clients: served_name, else the directory's last part. */
void settings_model_name(const struct settings *s, char *out, size_t bytes);

#endif
