/* auth.h - who may ask: API keys, read from a file that holds their hashes, with each key's limits.
 *
 * A line of the file is a key; `gaze key NAME [LIMIT=N ...]` makes one:
 *   alice sha256:<salt, 32 hex digits>:<SHA-256 of salt and secret, 64 hex digits> requests=60
 * Limits, all optional: requests and tokens (per minute), concurrent (requests under way), weight
 * (share of a busy engine, 1), priority (the best that its requests may ask for, 0), use (all;
 * metrics: nothing but /metrics; api: all but that). Lines that begin with # are notes. The secret
 * itself is nowhere but with its owner, so it must be a long random one: a hash made once is no
 * protection for a word that can be guessed.
 *
 * What a key may use is kept in buckets that fill steadily (see auth_admit). Reading the file again
 * keeps the buckets and counts of the keys that are still in it.
 *
 * Thread: the loop's.
 */
#ifndef GAZE_SERVER_AUTH_H
#define GAZE_SERVER_AUTH_H

#include "errors.h"

#include <stdio.h>

enum {
    AUTH_MAX_KEYS = 255, /* with 0 for "no key" the scheduler's tenants fit in a byte */
    AUTH_NAME = 48,
    AUTH_SALT = 16,
    AUTH_DIGEST = 32,
    AUTH_SECRET = 60 /* room for a secret made by auth_make() */
};

enum key_use { KEY_FOR_ALL, KEY_FOR_METRICS, KEY_FOR_API };
struct key_limits {
    uint32_t requests, tokens, concurrent; /* per minute, per minute, at once; 0: no limit */
    uint32_t weight;                       /* >= 1 */
    int32_t priority;
    enum key_use use;
};

struct bucket { /* of a minute's worth */
    double level;
    uint64_t at_us; /* level is of that time; 0: not begun, so full */
};

struct auth_key {
    char name[AUTH_NAME]; /* "": an unused place */
    uint8_t salt[AUTH_SALT], digest[AUTH_DIGEST];
    bool valid;      /* false: gone from the file, and kept while requests of it run */
    uint32_t tenant; /* 1 .. AUTH_MAX_KEYS: its place; the scheduler's name for it */
    struct key_limits limit;
    struct bucket requests, tokens;
    uint32_t n_running; /* requests between auth_admit() and auth_release() */
    uint64_t n_requests, n_refused, n_prompt_tokens, n_answer_tokens;
};

struct auth; /* opaque */

/* path: the file of keys; single: a secret without limits, named "default"; either may be "", and
 * with both "" everybody may ask. ERR_INVALID (the line and what is wrong), ERR_NOMEM. */
MUST_CHECK enum err_code auth_open(struct auth **out, const char *path, const char *single,
                                   struct err *e);
void auth_close(struct auth *a);
/* The file again. All or nothing: on an error the keys are as they were. */
MUST_CHECK enum err_code auth_reload(struct auth *a, struct err *e);

bool auth_required(const struct auth *a);
/* The key whose secret this is, NULL: none. Its time does not depend on which key it is. Valid
 * until a reload, and until auth_release() for a key that was admitted. */
struct auth_key *auth_find(struct auth *a, const char *secret, size_t bytes);
/* All places; unused ones have no name. */
const struct auth_key *auth_keys(const struct auth *a, uint32_t *n);

/* Takes one request from the key's buckets; false: it is over a limit, and *ae is the 429 with how
 * long to wait. Tokens are charged as they are used (auth_charge), so a request may begin while any
 * is left; what it overdraws must flow back before the next one. */
bool auth_admit(struct auth_key *k, uint64_t now_us, struct api_error *ae);
void auth_charge(struct auth_key *k, uint64_t now_us, uint32_t prompt_tokens,
                 uint32_t answer_tokens);
void auth_release(struct auth_key *k);

/* What x-ratelimit-* headers say of one bucket. */
struct bucket_state {
    uint32_t limit, remaining;
    double reset_s; /* until it is full */
};
bool auth_requests_left(const struct auth_key *k, uint64_t now_us, struct bucket_state *out);
bool auth_tokens_left(const struct auth_key *k, uint64_t now_us, struct bucket_state *out);

/* A line of the file for a secret, "name sha256:..."; limits are checked and added as given. */
MUST_CHECK enum err_code auth_make_line(char *out, size_t bytes, const char *name,
                                        const char *secret, char **limit, int n_limits,
                                        struct err *e);
/* A fresh random secret. */
MUST_CHECK enum err_code auth_make_secret(char out[AUTH_SECRET], struct err *e);

#endif
