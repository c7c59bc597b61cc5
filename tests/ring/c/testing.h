/* What the C tests of the ring share: CHECK, patterned messages, descriptors over a socket, processes with an end.
 *
 * A message's bytes follow from its source and seq alone, so any reader can tell a torn one.
 */
#ifndef TESTING_H
#define TESTING_H

#include "towpath_ring_layout.h"

#ifdef WITH_STORE_BUFFER
/* A store buffer of one entry per thread, which only the next store or a fence empties: the worst that the
 * architecture allows, so that a missing fence does not need luck to show. */
static __thread uint64_t *buffered_target, buffered_value;

static inline void empty_store_buffer(void) {
    if (buffered_target)
        __atomic_store_n(buffered_target, buffered_value, __ATOMIC_RELEASE);
    buffered_target = NULL;
}

static inline void buffer_store(uint64_t *target, uint64_t value) {
    empty_store_buffer();
    buffered_target = target;
    buffered_value = value;
}

#define TOWPATH_RING_STORE(target, value, order) buffer_store((target), (value))
#define TOWPATH_RING_ON_FENCE() empty_store_buffer()
/* Stores stay in order: a copy comes after what is held back. */
#define TOWPATH_RING_MEMCPY(target, origin, bytes) (empty_store_buffer(), memcpy((target), (origin), (bytes)))
#endif

#ifdef WITH_FAULTS
static int chosen_fault; /* by the environment's RING_FAULT, in begin_test() */
#define TOWPATH_RING_FAULT chosen_fault
#endif

#include "towpath_ring.h"

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: CHECK(%s) failed (errno %d)\n", __FILE__, __LINE__, #condition, errno);   \
            fflush(stderr);                                                                                   \
            _exit(99);                                                                                        \
        }                                                                                                     \
    } while (0)

#define SECONDS_NS INT64_C(1000000000)

/* A test that hangs ends after this, by SIGALRM; under the sanitizers all is slower. RING_LIMIT_S is another. */
static unsigned limit_s = 60;

static inline uint64_t within_limit(void) {
    return tpr_deadline_ns((int64_t)limit_s * SECONDS_NS);
}

static inline uint64_t mix(uint64_t value) {
    value ^= value >> 33;
    value *= UINT64_C(0xff51afd7ed558ccd);
    value ^= value >> 29;
    return value * UINT64_C(0xc4ceb9fe1a85ec53);
}

/* The length that message `seq` of `source` has, 0..most. */
static inline size_t pattern_bytes(uint64_t source, uint64_t seq, size_t most) {
    return (size_t)(mix(source * 1000003 + seq) % (most + 1));
}

static inline uint8_t pattern_byte(uint64_t source, uint64_t seq, size_t i) {
    return (uint8_t)(mix(source ^ seq * 31) >> (i % 8 * 8)) ^ (uint8_t)i;
}

static inline void pattern_fill(uint8_t *bytes, size_t count, uint64_t source, uint64_t seq) {
    for (size_t i = 0; i < count; i++)
        bytes[i] = pattern_byte(source, seq, i);
}

static inline void pattern_check(const uint8_t *bytes, size_t count, uint64_t source, uint64_t seq) {
    for (size_t i = 0; i < count; i++)
        CHECK(bytes[i] == pattern_byte(source, seq, i));
}

/* Put message `last_seq + 1`: patterned headers (of a third its length) and payload. Does not flush. */
static inline int pattern_put_from(struct tpr_writer *writer, size_t most, const struct tpr_origin *origin) {
    uint8_t bytes[16384];
    uint64_t seq = writer->last_seq + 1;
    size_t count = pattern_bytes(writer->source, seq, most), headers = count / 3;
    CHECK(count <= sizeof bytes);
    pattern_fill(bytes, count, writer->source, seq);
    return tpr_writer_put_from(writer, bytes, headers, bytes + headers, count - headers, origin);
}

static inline int pattern_put(struct tpr_writer *writer, size_t most) {
    return pattern_put_from(writer, most, NULL);
}

/* The view is message `seq` of `source`, whole, as pattern_put() wrote it. */
static inline void pattern_check_view(const struct tpr_view *view, size_t most) {
    uint8_t bytes[16384];
    size_t count = (size_t)view->headers_bytes + view->payload_bytes;
    CHECK(count == pattern_bytes(view->from->source, view->seq, most));
    CHECK(view->headers_bytes == count / 3);
    memcpy(bytes, view->headers, view->headers_bytes);
    memcpy(bytes + view->headers_bytes, view->payload, view->payload_bytes);
    pattern_check(bytes, count, view->from->source, view->seq);
}

/* A note, with a descriptor or without (-1), over a UNIX socket. */
struct note {
    int what;
    uint64_t number;
};

static inline void send_note(int socket, int what, uint64_t number, int fd) {
    struct note note = {what, number};
    struct iovec part = {&note, sizeof note};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.bytes;
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    /* The other end may be dead: that is what some tests are about. */
    CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == sizeof note || errno == EPIPE || errno == ECONNRESET);
}

/* False when the other end is gone. */
static inline bool receive_note(int socket, struct note *note, int *fd) {
    struct iovec part = {note, sizeof *note};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || errno == ECONNRESET)); /* died with notes unread: what it said is here */
    if (fd)
        *fd = -1;
    if (got <= 0)
        return false;
    CHECK(got == (ssize_t)sizeof *note);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_type == SCM_RIGHTS) {
        int received;
        memcpy(&received, CMSG_DATA(header), sizeof received);
        if (fd)
            *fd = received;
        else
            close(received);
    }
    return true;
}

static inline void make_socketpair(int pair[2]) {
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
}

static inline void begin_test(void) {
    if (getenv("RING_LIMIT_S"))
        limit_s = (unsigned)atoi(getenv("RING_LIMIT_S"));
#ifdef WITH_FAULTS
#define FAULT_TEXT(name) #name,
    static const char *const fault_name[] = {TOWPATH_RING_FAULTS(FAULT_TEXT)};
    const char *wanted = getenv("RING_FAULT");
    CHECK(wanted);
    while (strcmp(fault_name[chosen_fault], wanted) != 0)
        CHECK(++chosen_fault < TPR_FAULT_COUNT);
#endif
    alarm(limit_s);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

/* Fork; the child must end with _exit(). It does not outlive its parent, nor the limit. */
static inline pid_t begin_child(void) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(limit_s);
    }
    return child;
}

static inline int wait_child(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static inline void no_spin(struct tpr_spin *spin) {
    spin->budget_ns = 0;
    spin->probe_after = 0;
}

#endif
