/* refusals.c - what libmicrohttpd refuses by itself: a request line, headers or a chunk that cannot
 * be read, or that are too large.
 *
 * It answers those with pages of its own, in HTML, before a request is ours, and has no option to
 * change them. But it queues them with its public MHD_queue_response(), which a program may put its
 * own in the place of: as with every function of a shared library, the program's comes first. Ours
 * lets through what we queue ourselves, and gives the rest our error object and closes. (Through
 * the library a refusal of Content-Length would even go out with two heads.)
 *
 * Not so where a request line has no space in it: a single word, or bytes that are no HTTP at all,
 * such as the hello of TLS at a port without. The library then shuts the socket down without a word
 * to the program, neither a callback nor a page, so that connection is closed without an answer.
 *
 * Over TLS nothing but the library can write: there the object is queued in its page's place, and a
 * wrong Content-Length still gets two heads.
 */
#include "http_impl.h"

#include "base/log.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef enum MHD_Result queue_function(struct MHD_Connection *, unsigned, struct MHD_Response *);

enum MHD_Result http_queue(struct MHD_Connection *mhd, unsigned status, struct MHD_Response *r)
{
    static queue_function *next;
    if (!next) {
        void *found = dlsym(RTLD_NEXT, "MHD_queue_response");
        assert(found); /* we are linked with it */
        memcpy(&next, &found, sizeof next);
    }
    return next(mhd, status, r);
}

static const char *why_refused(unsigned status)
{
    switch (status) {
    case 413:
        return "its length, or a chunk's, is more than any body may have";
    case 414:
    case 431:
        return "its request line and headers are more than header_limit lets come";
    case 505:
        return "it is of another version than HTTP/1.0 and HTTP/1.1";
    default:
        return status < 500 ? "its request line, a header or a chunk is not as HTTP has it"
                            : "there was no memory for it";
    }
}

static enum MHD_Result queue_object(struct MHD_Connection *mhd, unsigned status, const char *why)
{
    struct buf body = {0};
    struct api_error ae;
    http_cut_error(&ae, (int)status, why);
    api_error_json(&body, &ae);
    struct MHD_Response *r =
        body.failed ? NULL
                    : MHD_create_response_from_buffer_with_free_callback(body.n, body.s, free);
    if (!r) {
        buf_free(&body);
        return MHD_NO;
    }
    enum MHD_Result ok = MHD_add_response_header(r, "Content-Type", "application/json");
    if (ok == MHD_YES)
        ok = http_queue(mhd, status, r);
    MHD_destroy_response(r);
    return ok;
}

/* In the library's place; refusing, it gives MHD_NO, upon which the library lets go of the
 * connection. */
enum MHD_Result MHD_queue_response(struct MHD_Connection *mhd, unsigned status,
                                   struct MHD_Response *r)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *conn = info ? info->socket_context : NULL;
    if (!conn)
        return MHD_NO; /* there was no memory for it, or it is of a follower's port */
    if (conn->queueing)
        return http_queue(mhd, status, r);
    struct server *sv = conn->sv;
    const char *why = why_refused(status);
    if (!sv->settings->tls_cert[0]) {
        http_cut(sv, conn, (int)status, why);
        return MHD_NO;
    }
    conn->cut_status = (int)status;
    log_info("http", "cut=\"%s\" status=%u", why, status);
    return queue_object(mhd, status, why);
}
