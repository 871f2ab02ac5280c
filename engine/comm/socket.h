/* socket.h - TCP as meetings and lines use it: find a host, listen, call, send whole. Private to
 * engine/comm; the lines of engine/exec go through line.h.
 *
 * Thread: any; a descriptor has one reader and one writer at a time.
 */
#ifndef GAZE_COMM_SOCKET_H
#define GAZE_COMM_SOCKET_H

#include "base/err.h"

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { SOCKET_SEND_MS = 2000 }; /* for a peer to take something of what is sent */

/* ERR_IO: what the resolver says. End with freeaddrinfo(). */
MUST_CHECK enum err_code socket_resolve(struct addrinfo **out, const char *host, uint16_t port,
                                        struct err *e);
/* Listens at an address that others were given; where that is not this machine's own (a name in
 * front of it), at all of its addresses. Port 0: any that is free. ERR_IO. */
MUST_CHECK enum err_code socket_listen(int *out, const struct sockaddr *at, socklen_t size,
                                       struct err *e);
/* One attempt; -1: errno says why. */
int socket_call(const struct sockaddr *at, socklen_t size, uint32_t timeout_ms);
/* No delay for small pieces, and SOCKET_SEND_MS. */
void socket_set_options(int fd);
/* All of it, or false: the peer is gone, or takes nothing. */
bool socket_send(int fd, const void *bytes, size_t n);

/* The port within an address of either family; and the address with another one. */
uint16_t socket_port(const struct sockaddr_storage *at);
void socket_set_port(struct sockaddr_storage *at, uint16_t port);

#endif
