/* tls.c - see tls.h. */
#include "tls.h"

#include "base/clock.h"
#include "base/log.h"

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHAIN = 8, KEY_ID = 32 };

const char tls_priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";

struct certificate {
    gnutls_pcert_st chain[MAX_CHAIN];
    unsigned n_chain;
    gnutls_privkey_t key;
    int64_t expires_s;
    uint64_t retired_us;
    struct certificate *older;
};
static struct certificate *current;

static void free_certificate(struct certificate *c)
{
    for (unsigned i = 0; i < c->n_chain; i++)
        gnutls_pcert_deinit(&c->chain[i]);
    if (c->key)
        gnutls_privkey_deinit(c->key);
    free(c);
}

static enum err_code read_chain(struct certificate *c, const char *path, struct err *e)
{
    gnutls_datum_t text;
    gnutls_x509_crt_t own;
    int code = gnutls_load_file(path, &text);
    if (code)
        return err_set(e, ERR_INVALID, "tls-cert %.120s cannot be read", path);
    c->n_chain = MAX_CHAIN;
    code = gnutls_pcert_list_import_x509_raw(c->chain, &c->n_chain, &text, GNUTLS_X509_FMT_PEM, 0);
    gnutls_free(text.data);
    if (code) {
        c->n_chain = 0;
        return err_set(e, ERR_INVALID, "tls-cert %.100s: %s", path, gnutls_strerror(code));
    }
    if (gnutls_x509_crt_init(&own))
        return err_set(e, ERR_NOMEM, "certificate");
    code = gnutls_x509_crt_import(own, &c->chain[0].cert, GNUTLS_X509_FMT_DER);
    c->expires_s = code ? 0 : (int64_t)gnutls_x509_crt_get_expiration_time(own);
    gnutls_x509_crt_deinit(own);
    return code ? err_set(e, ERR_INVALID, "tls-cert %.100s: %s", path, gnutls_strerror(code))
                : ERR_OK;
}

static enum err_code read_key(struct certificate *c, const char *path, struct err *e)
{
    gnutls_datum_t text;
    int code = gnutls_load_file(path, &text);
    if (code)
        return err_set(e, ERR_INVALID, "tls-key %.120s cannot be read", path);
    code = gnutls_privkey_init(&c->key);
    if (!code)
        code = gnutls_privkey_import_x509_raw(c->key, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
    gnutls_memset(text.data, 0, text.size);
    gnutls_free(text.data);
    return code ? err_set(e, ERR_INVALID, "tls-key %.100s: %s", path, gnutls_strerror(code))
                : ERR_OK;
}

/* A key of another certificate would fail every handshake, and only then. */
static enum err_code check_pair(const struct certificate *c, struct err *e)
{
    uint8_t of_cert[KEY_ID], of_key[KEY_ID];
    size_t n_cert = sizeof of_cert, n_key = sizeof of_key;
    gnutls_pubkey_t public;
    if (gnutls_pubkey_init(&public))
        return err_set(e, ERR_NOMEM, "public key");
    int code = gnutls_pubkey_import_privkey(public, c->key, 0, 0);
    if (!code)
        code = gnutls_pubkey_get_key_id(public, GNUTLS_KEYID_USE_SHA256, of_key, &n_key);
    if (!code)
        code =
            gnutls_pubkey_get_key_id(c->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, of_cert, &n_cert);
    gnutls_pubkey_deinit(public);
    if (code)
        return err_set(e, ERR_INVALID, "tls-key: %s", gnutls_strerror(code));
    if (n_cert != n_key || memcmp(of_cert, of_key, n_key) != 0)
        return err_set(e, ERR_INVALID,
                       "tls-key does not belong to the first certificate of "
                       "tls-cert");
    return ERR_OK;
}

/* What nobody can be shaking hands with any more. */
static void free_old(uint64_t now_us, uint64_t grace_us)
{
    struct certificate **at = &current->older;
    while (*at) {
        struct certificate *c = *at;
        if (now_us - c->retired_us > grace_us) {
            *at = c->older;
            free_certificate(c);
        } else {
            at = &c->older;
        }
    }
}

enum err_code tls_load(const char *cert_path, const char *key_path, uint64_t grace_us,
                       struct err *e)
{
    uint64_t now_us = clock_us();
    struct certificate *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ERR_NOMEM, "certificate");
    if (read_chain(c, cert_path, e) || read_key(c, key_path, e) || check_pair(c, e)) {
        free_certificate(c);
        return e->code;
    }
    if (c->expires_s < (int64_t)clock_unix_s())
        log_warn("tls", "certificate=expired path=\"%.150s\"", cert_path);
    if (current)
        current->retired_us = now_us;
    c->older = current;
    current = c;
    free_old(now_us, grace_us);
    return ERR_OK;
}

void tls_unload(void)
{
    while (current) {
        struct certificate *c = current;
        current = c->older;
        free_certificate(c);
    }
}

int64_t tls_expires_s(void)
{
    return current ? current->expires_s : 0;
}

static int retrieve(gnutls_session_t session, const gnutls_datum_t *authority, int n_authorities,
                    const gnutls_pk_algorithm_t *algorithm, int n_algorithms,
                    gnutls_pcert_st **chain, unsigned *n_chain, gnutls_privkey_t *key)
{
    (void)session;
    (void)authority;
    (void)n_authorities;
    (void)algorithm;
    (void)n_algorithms;
    if (!current)
        return -1;
    *chain = current->chain;
    *n_chain = current->n_chain;
    *key = current->key;
    return 0;
}

intptr_t tls_callback(void)
{
    gnutls_certificate_retrieve_function2 *f = retrieve;
    return (intptr_t)f;
}
