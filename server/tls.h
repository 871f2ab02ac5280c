/* tls.h - the certificate that HTTPS is served with, and a newer one while the server runs.
 *
 * libmicrohttpd asks for the certificate in each handshake without saying which server it is for,
 * so there is one of these in a process. A certificate that was replaced is kept for those that
 * still shake hands with it.
 *
 * Thread: the loop's.
 */
#ifndef GAZE_SERVER_TLS_H
#define GAZE_SERVER_TLS_H

#include "base/err.h"

#include <stdint.h>

/* TLS 1.2 or later. */
extern const char tls_priorities[];

/* PEM files: the chain, the server's own certificate first, and the key that belongs to it. Called
 * again it replaces what was there; an error (ERR_INVALID, ERR_NOMEM) leaves that as it
 * was. Replaced certificates end once they are older than grace_us. */
MUST_CHECK enum err_code tls_load(const char *cert_path, const char *key_path, uint64_t grace_us,
                                  struct err *e);
void tls_unload(void);
int64_t tls_expires_s(void); /* Unix time; 0: no certificate */
/* For MHD_OPTION_HTTPS_CERT_CALLBACK: a gnutls_certificate_retrieve_function2 as a number, so that
 * GnuTLS, which has a `params` of its own, stays out of the other files. */
intptr_t tls_callback(void);

#endif
