/* socket.c - see socket.h. */
#include "comm/socket.h"

#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BACKLOG = 128 };

enum err_code socket_resolve(struct addrinfo **out, const char *host, uint16_t port, struct err *e)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    char text[8];
    snprintf(text, sizeof text, "%u", port);
    int rc = getaddrinfo(host, text, &hints, out);
    if (rc)
        return err_set(e, ERR_IO, "meeting: host %.100s: %s", host, gai_strerror(rc));
    return ERR_OK;
}

uint16_t socket_port(const struct sockaddr_storage *at)
{
    return ntohs(at->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)at)->sin6_port
                                           : ((const struct sockaddr_in *)at)->sin_port);
}

void socket_set_port(struct sockaddr_storage *at, uint16_t port)
{
    if (at->ss_family == AF_INET6)
        ((struct sockaddr_in6 *)at)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)at)->sin_port = htons(port);
}

enum err_code socket_listen(int *out, const struct sockaddr *at, socklen_t size, struct err *e)
{
    struct sockaddr_storage own = {0};
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    int one = 1, no = 0;
    memcpy(&own, at, size);
    any.sin6_port = htons(socket_port(&own));
    int fd = socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int rc = FAULT("meeting.listen") ? -1 : bind(fd, at, size);
    if (rc && errno == EADDRNOTAVAIL) {
        close(fd);
        fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
        rc = bind(fd, (struct sockaddr *)&any, sizeof any);
    }
    if (!rc && !listen(fd, BACKLOG)) {
        *out = fd;
        return ERR_OK;
    }
    err_set(e, ERR_IO, "port %u: %s", socket_port(&own), strerror(errno));
    if (fd >= 0)
        close(fd);
    return e->code;
}

int socket_call(const struct sockaddr *at, socklen_t size, uint32_t timeout_ms)
{
    int fd = socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), wrong = 0;
    socklen_t n = sizeof wrong;
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    if (fd < 0)
        return -1;
    if (FAULT("meeting.connect"))
        errno = wrong = ECONNREFUSED;
    else if (connect(fd, at, size) && errno != EINPROGRESS)
        wrong = errno;
    else if (poll(&p, 1, (int)timeout_ms) < 1)
        wrong = ETIMEDOUT;
    else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &wrong, &n))
        wrong = errno;
    if (!wrong && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK))
        wrong = errno;
    if (!wrong)
        return fd;
    close(fd);
    errno = wrong;
    return -1;
}

void socket_set_options(int fd)
{
    int one = 1;
    struct timeval t = {.tv_sec = SOCKET_SEND_MS / 1000};
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
}

bool socket_send(int fd, const void *bytes, size_t n_bytes)
{
    const char *at = bytes;
    while (n_bytes) {
        ssize_t n = FAULT("meeting.send") ? -1 : send(fd, at, n_bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        n_bytes -= (size_t)n;
    }
    return true;
}
