/* auth.c - see auth.h. */
#include "auth.h"

#include "hex.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char hash_mark[] = "sha256:";

struct auth {
    char *path;                         /* "": no file */
    char *single;                       /* "": none */
    struct auth_key key[AUTH_MAX_KEYS]; /* a key keeps its place as long as it is known */
};

/* --- hashes --------------------------------------------------------------------------- */

static bool digest(uint8_t out[AUTH_DIGEST], const uint8_t salt[AUTH_SALT], const char *secret,
                   size_t bytes)
{
    gnutls_hash_hd_t h;
    if (gnutls_hash_init(&h, GNUTLS_DIG_SHA256))
        return false;
    bool ok = !gnutls_hash(h, salt, AUTH_SALT) && !gnutls_hash(h, secret, bytes);
    gnutls_hash_deinit(h, out);
    return ok;
}

/* --- a line ----------------------------------------------------------------------------------- */

static bool name_is_good(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@", name[i]))
            return false;
    return n >= 1 && n < AUTH_NAME;
}

static enum err_code read_use(struct key_limits *l, const char *use, struct err *e)
{
    static const char *const names[] = {
        [KEY_FOR_ALL] = "all", [KEY_FOR_METRICS] = "metrics", [KEY_FOR_API] = "api"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(use, names[i]) != 0)
            continue;
        l->use = (enum key_use)i;
        return ERR_OK;
    }
    return err_set(e, ERR_INVALID, "use=%.40s: expected all, metrics or api", use);
}

static enum err_code read_limit(struct key_limits *l, const char *word, struct err *e)
{
    const struct {
        const char *name;
        uint32_t *value;
        unsigned long min;
    } table[] = {{"requests=", &l->requests, 1},
                 {"tokens=", &l->tokens, 1},
                 {"concurrent=", &l->concurrent, 1},
                 {"weight=", &l->weight, 1}};
    const char *equals = strchr(word, '=');
    char *end = NULL;
    if (!strncmp(word, "use=", 4))
        return read_use(l, word + 4, e);
    errno = 0;
    long v = equals ? strtol(equals + 1, &end, 10) : 0;
    if (!equals || end == equals + 1 || *end || errno)
        return err_set(e, ERR_INVALID, "\"%.40s\" is no limit like requests=60", word);
    if (!strncmp(word, "priority=", 9)) {
        if (v < -1000000 || v > 1000000)
            return err_set(e, ERR_INVALID, "%.40s is outside -1000000..1000000", word);
        l->priority = (int32_t)v;
        return ERR_OK;
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strncmp(word, table[i].name, strlen(table[i].name)) != 0)
            continue;
        long max = table[i].value == &l->weight ? 1000 : 1000000000;
        if (v < (long)table[i].min || v > max)
            return err_set(e, ERR_INVALID, "%.40s is outside %lu..%ld", word, table[i].min, max);
        *table[i].value = (uint32_t)v;
        return ERR_OK;
    }
    return err_set(e, ERR_INVALID,
                   "\"%.40s\": the limits are requests, tokens, concurrent, weight, priority, use",
                   word);
}

/* Cuts the line into words. */
static enum err_code read_line(struct auth_key *k, char *line, struct err *e)
{
    static const char space[] = " \t\r\n";
    char *rest = NULL, *name = strtok_r(line, space, &rest), *hash = strtok_r(NULL, space, &rest);
    *k = (struct auth_key){.valid = true, .limit.weight = 1};
    if (!name || !name_is_good(name))
        return err_set(e, ERR_INVALID, "a key's name is 1 to %d letters, digits or any of . _ - @",
                       AUTH_NAME - 1);
    snprintf(k->name, sizeof k->name, "%s", name);
    size_t n = sizeof hash_mark - 1;
    const char *s = hash && !strncmp(hash, hash_mark, n) ? hash + n : NULL;
    s = s ? hex_read(s, k->salt, AUTH_SALT) : NULL;
    s = s && *s == ':' ? hex_read(s + 1, k->digest, AUTH_DIGEST) : NULL;
    if (!s || *s)
        return err_set(e, ERR_INVALID,
                       "key %s needs sha256:SALT:HASH in lower-case hex (gaze key makes it)", name);
    for (char *word; (word = strtok_r(NULL, space, &rest));)
        if (read_limit(&k->limit, word, e))
            return err_prefix(e, "key %s", name);
    return ERR_OK;
}

static enum err_code random_bytes(uint8_t *out, size_t n, struct err *e)
{
    if (gnutls_rnd(GNUTLS_RND_KEY, out, n))
        return err_set(e, ERR_IO, "no random numbers");
    return ERR_OK;
}

enum err_code auth_make_secret(char out[AUTH_SECRET], struct err *e)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    enum { N = 43 }; /* of 6 bits: 258 */
    uint8_t bytes[N];
    if (random_bytes(bytes, N, e))
        return e->code;
    size_t n = (size_t)snprintf(out, AUTH_SECRET, "sk-gaze-");
    for (int i = 0; i < N; i++)
        out[n++] = letters[bytes[i] & 63];
    out[n] = 0;
    return ERR_OK;
}

enum err_code auth_make_line(char *out, size_t bytes, const char *name, const char *secret,
                             char **limit, int n_limits, struct err *e)
{
    struct auth_key k = {.limit.weight = 1};
    char salt[2 * AUTH_SALT + 1], hash[2 * AUTH_DIGEST + 1];
    if (!name_is_good(name))
        return err_set(e, ERR_INVALID, "a key's name is 1 to %d letters, digits or any of . _ - @",
                       AUTH_NAME - 1);
    if (random_bytes(k.salt, AUTH_SALT, e))
        return e->code;
    if (!digest(k.digest, k.salt, secret, strlen(secret)))
        return err_set(e, ERR_IO, "no SHA-256");
    hex_write(salt, k.salt, AUTH_SALT);
    hex_write(hash, k.digest, AUTH_DIGEST);
    size_t n = (size_t)snprintf(out, bytes, "%s %s%s:%s", name, hash_mark, salt, hash);
    for (int i = 0; i < n_limits; i++) {
        if (read_limit(&k.limit, limit[i], e))
            return e->code;
        if (n < bytes)
            n += (size_t)snprintf(out + n, bytes - n, " %s", limit[i]);
    }
    return n < bytes ? ERR_OK : err_set(e, ERR_INVALID, "too many limits");
}

/* --- the file --------------------------------------------------------------------------------- */

struct key_list {
    struct auth_key key[AUTH_MAX_KEYS];
    uint32_t n;
};

static enum err_code add_key(struct key_list *list, char *line, struct err *e)
{
    struct auth_key k;
    if (read_line(&k, line, e))
        return e->code;
    for (uint32_t i = 0; i < list->n; i++)
        if (!strcmp(list->key[i].name, k.name))
            return err_set(e, ERR_INVALID, "the name %s comes twice", k.name);
    if (list->n == AUTH_MAX_KEYS)
        return err_set(e, ERR_INVALID, "there may be %d keys", AUTH_MAX_KEYS);
    list->key[list->n++] = k;
    return ERR_OK;
}

static enum err_code read_file(struct key_list *list, const char *path, struct err *e)
{
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t max = 0;
    unsigned number = 0;
    if (!f)
        return err_set(e, ERR_INVALID, "key-file %.140s: %s", path, strerror(errno));
    e->code = ERR_OK;
    while (!e->code && getline(&line, &max, f) >= 0) {
        number++;
        char *s = line + strspn(line, " \t\r\n");
        if (*s && *s != '#' && add_key(list, s, e))
            err_prefix(e, "%.100s line %u", path, number);
    }
    if (!e->code && ferror(f))
        err_set(e, ERR_INVALID, "key-file %.140s: %s", path, strerror(errno));
    else if (!e->code && !list->n)
        err_set(e, ERR_INVALID, "%.150s holds no key", path);
    free(line);
    fclose(f);
    return e->code;
}

static enum err_code add_single(struct key_list *list, const char *secret, struct err *e)
{
    char line[300];
    if (auth_make_line(line, sizeof line, "default", secret, NULL, 0, e))
        return e->code;
    return add_key(list, line, e);
}

static struct auth_key *place_for(struct auth *a, const char *name)
{
    struct auth_key *unused = NULL;
    for (uint32_t i = 0; i < AUTH_MAX_KEYS; i++) {
        struct auth_key *k = &a->key[i];
        if (!strcmp(k->name, name))
            return k;
        bool idle = !k->valid && k->n_running == 0;
        if (idle && (!unused || (unused->name[0] && !k->name[0])))
            unused = k; /* one never used is better than one that a key has left */
    }
    return unused;
}

static bool listed(const struct key_list *list, const char *name)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (!strcmp(list->key[i].name, name))
            return true;
    return false;
}

/* Known keys get their new hash and limits; those that are gone end. */
static enum err_code put_in_place(struct auth *a, const struct key_list *list, struct err *e)
{
    uint32_t n_kept = 0; /* keys that are gone while requests of theirs run */
    for (uint32_t i = 0; i < AUTH_MAX_KEYS; i++)
        n_kept += a->key[i].n_running && !listed(list, a->key[i].name);
    if (list->n + n_kept > AUTH_MAX_KEYS)
        return err_set(e, ERR_INVALID, "%u keys and %u old ones in use are more than %d", list->n,
                       n_kept, AUTH_MAX_KEYS);
    for (uint32_t i = 0; i < AUTH_MAX_KEYS; i++)
        a->key[i].valid = false;
    for (uint32_t pass = 0; pass < 2; pass++) { /* known names first: nobody takes their places */
        for (uint32_t i = 0; i < list->n; i++) {
            const struct auth_key *from = &list->key[i];
            struct auth_key *to = place_for(a, from->name);
            assert(to);
            bool known = !strcmp(to->name, from->name);
            if (to->valid || known != (pass == 0))
                continue;
            if (!known)
                *to = (struct auth_key){.tenant = (uint32_t)(to - a->key) + 1};
            memcpy(to->name, from->name, sizeof to->name);
            memcpy(to->salt, from->salt, sizeof to->salt);
            memcpy(to->digest, from->digest, sizeof to->digest);
            to->limit = from->limit;
            to->valid = true;
        }
    }
    return ERR_OK;
}

enum err_code auth_reload(struct auth *a, struct err *e)
{
    struct key_list *list = calloc(1, sizeof *list);
    if (!list)
        return err_set(e, ERR_NOMEM, "keys");
    e->code = ERR_OK;
    if (!(a->path[0] && read_file(list, a->path, e)) &&
        !(a->single[0] && add_single(list, a->single, e)) && !put_in_place(a, list, e))
        e->code = ERR_OK;
    gnutls_memset(list, 0, sizeof *list);
    free(list);
    return e->code;
}

enum err_code auth_open(struct auth **out, const char *path, const char *single, struct err *e)
{
    struct auth *a = calloc(1, sizeof *a);
    if (a) {
        a->path = strdup(path);
        a->single = strdup(single);
    }
    if (!a || !a->path || !a->single) {
        auth_close(a);
        return err_set(e, ERR_NOMEM, "keys");
    }
    if (auth_reload(a, e)) {
        auth_close(a);
        return e->code;
    }
    *out = a;
    return ERR_OK;
}

void auth_close(struct auth *a)
{
    if (!a)
        return;
    if (a->single)
        gnutls_memset(a->single, 0, strlen(a->single));
    free(a->single);
    free(a->path);
    free(a);
}

bool auth_required(const struct auth *a)
{
    return a->path[0] || a->single[0];
}

struct auth_key *auth_find(struct auth *a, const char *secret, size_t bytes)
{
    struct auth_key *found = NULL;
    uint8_t hash[AUTH_DIGEST];
    for (uint32_t i = 0; i < AUTH_MAX_KEYS; i++) {
        struct auth_key *k = &a->key[i];
        if (k->valid && digest(hash, k->salt, secret, bytes) &&
            !gnutls_memcmp(hash, k->digest, sizeof hash))
            found = k; /* and on to the end: the time tells nothing */
    }
    return found;
}

const struct auth_key *auth_keys(const struct auth *a, uint32_t *n)
{
    *n = AUTH_MAX_KEYS;
    return a->key;
}

/* --- buckets ---------------------------------------------------------------------------------- */

static double level_now(const struct bucket *b, uint32_t per_minute, uint64_t now_us)
{
    if (!b->at_us)
        return per_minute;
    double flowed = (double)(now_us - b->at_us) * 1e-6 * per_minute / 60;
    return fmin(b->level + flowed, per_minute);
}

static void take(struct bucket *b, uint32_t per_minute, uint64_t now_us, double n)
{
    *b = (struct bucket){.level = level_now(b, per_minute, now_us) - n, .at_us = now_us};
}

/* Seconds until `least` is in it. */
static double wait_s(const struct bucket *b, uint32_t per_minute, uint64_t now_us, double least)
{
    double lack = least - level_now(b, per_minute, now_us);
    return lack > 0 ? lack * 60 / per_minute : 0;
}

static bool refuse(struct auth_key *k, struct api_error *ae, double seconds, const char *what,
                   uint32_t limit)
{
    k->n_refused++;
    api_fail(ae, 429, NULL, "rate_limit_exceeded", "The key %s is over its limit of %u %s.",
             k->name, limit, what);
    ae->retry_after_s = seconds > 1 ? (unsigned)ceil(seconds) : 1;
    return false;
}

bool auth_admit(struct auth_key *k, uint64_t now_us, struct api_error *ae)
{
    const struct key_limits *l = &k->limit;
    double requests = l->requests ? wait_s(&k->requests, l->requests, now_us, 1) : 0;
    double tokens = l->tokens ? wait_s(&k->tokens, l->tokens, now_us, 1) : 0;
    if (l->concurrent && k->n_running >= l->concurrent)
        return refuse(k, ae, 1, "requests at once", l->concurrent);
    if (requests > 0 && requests >= tokens)
        return refuse(k, ae, requests, "requests per minute", l->requests);
    if (tokens > 0)
        return refuse(k, ae, tokens, "tokens per minute", l->tokens);
    if (l->requests)
        take(&k->requests, l->requests, now_us, 1);
    k->n_running++;
    k->n_requests++;
    return true;
}

void auth_charge(struct auth_key *k, uint64_t now_us, uint32_t prompt_tokens,
                 uint32_t answer_tokens)
{
    if (k->limit.tokens)
        take(&k->tokens, k->limit.tokens, now_us, (double)prompt_tokens + answer_tokens);
    k->n_prompt_tokens += prompt_tokens;
    k->n_answer_tokens += answer_tokens;
}

void auth_release(struct auth_key *k)
{
    assert(k->n_running > 0);
    k->n_running--;
}

static bool state_of(const struct bucket *b, uint32_t per_minute, uint64_t now_us,
                     struct bucket_state *out)
{
    if (!per_minute)
        return false;
    double level = level_now(b, per_minute, now_us);
    *out = (struct bucket_state){.limit = per_minute,
                                 .remaining = level > 0 ? (uint32_t)level : 0,
                                 .reset_s = (per_minute - level) * 60 / per_minute};
    return true;
}

bool auth_requests_left(const struct auth_key *k, uint64_t now_us, struct bucket_state *out)
{
    return state_of(&k->requests, k->limit.requests, now_us, out);
}

bool auth_tokens_left(const struct auth_key *k, uint64_t now_us, struct bucket_state *out)
{
    return state_of(&k->tokens, k->limit.tokens, now_us, out);
}
