/* SPDX-License-Identifier: Apache-2.0
 *
 * A connection to the daemon's socket, as a C client has it: where it is, the frames that go out, the bytes and
 * descriptors that come in, and the one descriptor on which everything can be waited for.
 *
 * That descriptor is an epoll of the socket, the session's doorbells, and a timer: so a program with an event loop of its
 * own watches one number, and a program without one sleeps on it here. The timer says when to connect again, or when who
 * did not come back after that is taken for dead.
 *
 * A doorbell is a socketpair; whoever has a message for a sleeping subscription, or room for a waiting publisher, sends a
 * byte to it. Processes of our own uid ring the one that hello gave; for each other uid the core sends one.
 *
 * Frames are small: what does not go out within TOWPATH_SEND_S is a daemon that does not read, and ends the connection.
 * Answers above TOWPATH_ANSWER_BYTES_MAX end it too: nothing that this client asks has one.
 *
 * Not here: what frames say (towpath_wire.h), and what is done about it (towpath_session.h).
 * Sources: unix(7), cmsg(3), epoll(7), timerfd_create(2); towpath/wire.py and towpath/addresses.py do the same.
 */
#ifndef TOWPATH_DOOR_H
#define TOWPATH_DOOR_H

#include "towpath_error.h"
#include "towpath_wire.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#define TOWPATH_ANSWER_BYTES_MAX (1u << 20)
#define TOWPATH_DESCRIPTORS_MAX 64u /* that came, and whose frames have not */
#define TOWPATH_BELLS_MAX 64u
#define TOWPATH_SEND_S 5
#define TOWPATH_LOOK_MS 20

struct towpath_door {
    int socket; /* -1: there is no connection */
    int poll, timer;
    int bell, bell_sender; /* our own doorbell */
    int other_bell[TOWPATH_BELLS_MAX];
    uint32_t other_bells;
    uint32_t is_deaf; /* some who ring are not heard: sleepers look every TOWPATH_LOOK_MS */
    uint8_t *in;
    size_t in_count, in_room;
    int came[TOWPATH_DESCRIPTORS_MAX];
    uint32_t came_count;
    struct tpw_out out;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static inline void towpath_close_fd_(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline int towpath_door_watch_(struct towpath_door *door, int fd) {
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    event.data.fd = fd;
    return epoll_ctl(door->poll, EPOLL_CTL_ADD, fd, &event);
}

/* Make what outlives connections. Returns 0, or -1 with errno set; towpath_door_close_() in either case. */
static inline int towpath_door_open_(struct towpath_door *door) {
    int pair[2];
    memset(door, 0, sizeof *door);
    door->socket = door->bell = door->bell_sender = door->timer = -1;
    door->poll = epoll_create1(EPOLL_CLOEXEC);
    if (door->poll < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return -1;
    door->bell = pair[0];
    door->bell_sender = pair[1];
    door->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (door->timer < 0 || towpath_door_watch_(door, door->bell) != 0)
        return -1;
    return towpath_door_watch_(door, door->timer);
}

/* The connection is over; what has come and was not read yet is nothing any more. */
static inline void towpath_door_drop_(struct towpath_door *door) {
    towpath_close_fd_(&door->socket);
    while (door->came_count)
        close(door->came[--door->came_count]);
    while (door->other_bells)
        close(door->other_bell[--door->other_bells]);
    door->in_count = 0;
}

static inline void towpath_door_close_(struct towpath_door *door) {
    towpath_door_drop_(door);
    towpath_close_fd_(&door->bell);
    towpath_close_fd_(&door->bell_sender);
    towpath_close_fd_(&door->timer);
    towpath_close_fd_(&door->poll);
    free(door->in);
    door->in = NULL;
    tpw_out_free(&door->out);
}

/* Have the timer make the descriptor readable at that time (CLOCK_MONOTONIC); TPR_FOREVER: not. */
static inline void towpath_door_set_timer_(struct towpath_door *door, uint64_t at_ns) {
    struct itimerspec spec;
    memset(&spec, 0, sizeof spec);
    if (at_ns != TPR_FOREVER)
        spec.it_value = tpr_timespec_(at_ns ? at_ns : 1);
    timerfd_settime(door->timer, TFD_TIMER_ABSTIME, &spec, NULL);
}

/* ---- connecting ---- */

/* Connect to one path; leaves errno set on failure (-1). */
static inline int towpath_door_try_(struct towpath_door *door, const char *path) {
    struct sockaddr_un address;
    struct timeval limit = {TOWPATH_SEND_S, 0};
    int fd = -1;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* The limit holds for connect(2) as well: a full backlog is no reason to hang. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0 &&
        connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && towpath_door_watch_(door, fd) == 0) {
        door->socket = fd;
        snprintf(door->path, sizeof door->path, "%s", path);
        return 0;
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* Find the daemon: `path`, or where it may be, most specific first. Returns 0 or a TOWPATH_E code. */
static inline int towpath_door_connect_(struct towpath_door *door, const char *path, struct towpath_error *error) {
    char place[3][sizeof door->path];
    const char *given = path ? path : getenv("TOWPATH_SOCKET"), *runtime = getenv("XDG_RUNTIME_DIR");
    char tried[sizeof error->message - 32] = "";
    size_t places = 0, length = 0;
    if (given && *given) {
        if (strncmp(given, "unix:", 5) == 0)
            given += 5;
        if (strlen(given) >= sizeof place[0])
            return towpath_fail_(error, TOWPATH_E_INVALID_ARGUMENT, "a UNIX socket's path has at most 107 bytes",
                                 "the path of the daemon's socket is too long");
        snprintf(place[places++], sizeof place[0], "%s", given);
    } else {
        if (runtime && *runtime && strlen(runtime) < sizeof place[0] - 24)
            snprintf(place[places++], sizeof place[0], "%.80s/towpath/towpath.sock", runtime);
        snprintf(place[places++], sizeof place[0], "/run/towpath/towpath.sock");
        snprintf(place[places++], sizeof place[0], "/tmp/towpath-%u/towpath.sock", (unsigned)getuid());
    }
    for (size_t i = 0; i < places; i++) {
        if (towpath_door_try_(door, place[i]) == 0)
            return 0;
        if (length < sizeof tried)
            length += (size_t)snprintf(tried + length, sizeof tried - length, "%s%s: %s", i ? "; " : "", place[i],
                                       strerror(errno));
    }
    return towpath_fail_(error, TOWPATH_E_UNAVAILABLE, "start it with `towpath serve`, or set TOWPATH_SOCKET",
                         "no daemon answers (%s)", tried);
}

/* ---- frames ---- */

/* Send a frame with its body in `body` and `fd` beside it (-1: none). 0, or -1: the connection is broken, and it reads as
 * ended. */
static inline int towpath_door_send_(struct towpath_door *door, uint64_t id, uint32_t kind, const struct tpw_out *body,
                                     int fd) {
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    size_t sent = 0;
    if (door->socket < 0)
        return -1;
    tpw_out_clear(&door->out);
    tpw_put_frame(&door->out, id, fd >= 0, kind, body);
    while (!door->out.has_failed && sent < door->out.count) {
        struct iovec part = {door->out.bytes + sent, door->out.count - sent};
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        if (fd >= 0 && sent == 0) {
            memset(&control, 0, sizeof control);
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof fd);
            memcpy(CMSG_DATA(header), &fd, sizeof fd);
        }
        ssize_t count = sendmsg(door->socket, &message, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            shutdown(door->socket, SHUT_RDWR);
            return -1;
        }
        sent += (size_t)count;
    }
    if (door->out.has_failed)
        shutdown(door->socket, SHUT_RDWR);
    return door->out.has_failed ? -1 : 0;
}

/* Keep the descriptors that came with something; those beyond the bound are closed, and the frame that wants them will
 * say that they are missing. */
static inline void towpath_door_keep_(struct towpath_door *door, struct msghdr *message) {
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            if (door->came_count < TOWPATH_DESCRIPTORS_MAX)
                door->came[door->came_count++] = fd;
            else
                close(fd);
        }
    }
}

/* Take in once what is there. 1: something; 0: nothing; a TOWPATH_E code: the connection is over. */
static inline int towpath_door_read_(struct towpath_door *door, struct towpath_error *error) {
    union {
        char bytes[CMSG_SPACE(253 * sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec part;
    struct msghdr message;
    if (door->in_room - door->in_count < 16384) {
        void *grown = realloc(door->in, door->in_room * 2 + 65536);
        if (!grown)
            return towpath_fail_system_(error, "a frame of the daemon's");
        door->in = (uint8_t *)grown;
        door->in_room = door->in_room * 2 + 65536;
    }
    memset(&message, 0, sizeof message);
    part.iov_base = door->in + door->in_count;
    part.iov_len = door->in_room - door->in_count;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    ssize_t count = recvmsg(door->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (count < 0)
        return towpath_fail_(error, TOWPATH_E_CONNECTION_LOST, "", "the connection broke: %s", strerror(errno));
    towpath_door_keep_(door, &message);
    if (message.msg_flags & MSG_CTRUNC)
        return towpath_fail_(error, TOWPATH_E_BAD_DESCRIPTOR, "this process is at its limit of open files (ulimit -n)",
                             "descriptors were lost on arrival");
    if (count == 0)
        return towpath_fail_(error, TOWPATH_E_CONNECTION_LOST, "", "the daemon closed the connection");
    door->in_count += (size_t)count;
    return 1;
}

/* Show the next whole frame of what came in, `bytes` long with its length, and its descriptors' number checked. 1: there is
 * one; 0: not yet; a TOWPATH_E code: the daemon broke the protocol. towpath_door_taken_() when it was handled. */
static inline int towpath_door_frame_(struct towpath_door *door, size_t at, struct tpw_frame *frame, size_t *bytes,
                                      struct towpath_error *error) {
    uint32_t length;
    if (door->in_count - at < sizeof length)
        return 0;
    memcpy(&length, door->in + at, sizeof length);
    if (length > TOWPATH_ANSWER_BYTES_MAX)
        return towpath_fail_(error, TOWPATH_E_PROTOCOL_VIOLATION, "", "a frame of %u bytes; at most %u are allowed",
                             length, TOWPATH_ANSWER_BYTES_MAX);
    if (door->in_count - at - sizeof length < length)
        return 0;
    if (!tpw_frame_decode(door->in + at + sizeof length, length, frame))
        return towpath_fail_(error, TOWPATH_E_PROTOCOL_VIOLATION, "", "what arrived is not a Frame");
    if (frame->descriptors > door->came_count)
        return towpath_fail_(error, TOWPATH_E_BAD_DESCRIPTOR, "", "a frame came without its descriptors");
    *bytes = sizeof length + length;
    return 1;
}

/* The first `count` descriptors that came belonged to a frame that was handled; those not kept (-1) are closed. */
static inline void towpath_door_taken_(struct towpath_door *door, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        towpath_close_fd_(&door->came[i]);
    door->came_count -= count;
    memmove(door->came, door->came + count, door->came_count * sizeof *door->came);
}

/* ---- doorbells ---- */

/* Listen to one more. Takes over `fd`. */
static inline void towpath_door_add_bell_(struct towpath_door *door, int fd) {
    if (door->other_bells < TOWPATH_BELLS_MAX && towpath_door_watch_(door, fd) == 0) {
        door->other_bell[door->other_bells++] = fd;
        return;
    }
    close(fd);
    door->is_deaf = 1;
}

/* Read a doorbell empty; 0: it was shut down by somebody, and can only wake us in vain. */
static inline int towpath_door_hush_(int bell) {
    char bytes[4096];
    ssize_t count;
    do
        count = recv(bell, bytes, sizeof bytes, MSG_DONTWAIT);
    while (count == (ssize_t)sizeof bytes);
    return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
}

/* One of them has rung, or is of before and not ours any more. */
static inline void towpath_door_rung_(struct towpath_door *door, int bell) {
    uint32_t i = 0;
    while (i < door->other_bells && door->other_bell[i] != bell)
        i++;
    if ((i == door->other_bells && bell != door->bell) || towpath_door_hush_(bell))
        return;
    epoll_ctl(door->poll, EPOLL_CTL_DEL, bell, NULL);
    door->is_deaf = 1;
    if (i < door->other_bells) {
        close(bell);
        door->other_bell[i] = door->other_bell[--door->other_bells];
    }
}

#endif
