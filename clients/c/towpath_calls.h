/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting, and asking the daemon: the steps that every call of a C program is made of.
 *
 * towpath_wait_() is the only place where this client sleeps on the daemon. It handles whatever has come: frames,
 * doorbells, the timer. A call that asks something waits in it until the answer is there, at most TOWPATH_CALL_NS.
 *
 * Not here: what the frames do (towpath_connection.h, towpath_session.h).
 */
#ifndef TOWPATH_CALLS_H
#define TOWPATH_CALLS_H

#include "towpath_connection.h"

#include <poll.h>

#define TOWPATH_EVENTS_ 16

/* Is this still the process that connected? 0, or a code. */
static inline int towpath_check_(struct towpath *client) {
    if (client->forks == tpr_fork_count_())
        return 0;
    return towpath_fail_(&client->error, TOWPATH_E_CONNECTION_LOST, "connect in the child for itself",
                         "this client belongs to the process that forked");
}

/* The point in time that a timeout in milliseconds means; less than 0: never. */
static inline uint64_t towpath_deadline_(int timeout_ms) {
    return timeout_ms < 0 ? TPR_FOREVER : tpr_monotonic_ns() + (uint64_t)timeout_ms * 1000000;
}

static inline void towpath_reconnect_(struct towpath *client) {
    client->reconnect_at_ns = TPR_FOREVER;
    if (towpath_door_try_(&client->door, client->path) == 0) {
        client->door.is_deaf = 0;
        towpath_greet_(client);
        return;
    }
    client->pause_ns = client->pause_ns * 2 < TOWPATH_RECONNECT_MAX_NS ? client->pause_ns * 2 : TOWPATH_RECONNECT_MAX_NS;
    client->reconnect_at_ns = tpr_monotonic_ns() + client->pause_ns;
}

static inline void towpath_timer_fired_(struct towpath *client) {
    uint64_t expirations, now_ns = tpr_monotonic_ns();
    ssize_t ignored = read(client->door.timer, &expirations, sizeof expirations);
    (void)ignored;
    if (now_ns >= client->reconnect_at_ns)
        towpath_reconnect_(client);
    if (now_ns >= client->grace_at_ns)
        towpath_expire_(client);
    towpath_set_timer_(client);
}

/* Sleep until something has come or the deadline, and handle it. 0; TOWPATH_E_TIMEOUT: nothing has; TOWPATH_E_CANCELLED: a
 * signal handler ran. The error is not filled in: who waits knows better for what. */
static inline int towpath_wait_(struct towpath *client, uint64_t deadline_ns) {
    struct epoll_event event[TOWPATH_EVENTS_];
    uint64_t now_ns = tpr_monotonic_ns(), left_ms = 0;
    if (deadline_ns > now_ns)
        left_ms = deadline_ns == TPR_FOREVER ? INT32_MAX : (deadline_ns - now_ns + 999999) / 1000000;
    if (client->door.is_deaf && left_ms > TOWPATH_LOOK_MS)
        left_ms = TOWPATH_LOOK_MS;
    /* Not epoll_wait(2) itself, which a SIGSTOP and a SIGCONT end too, without any handler (signal(7)). */
    struct pollfd door = {client->door.poll, POLLIN, 0};
    int is_interrupted = left_ms && poll(&door, 1, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms) < 0 && errno == EINTR;
    int count = epoll_wait(client->door.poll, event, TOWPATH_EVENTS_, 0);
    client->looked_ns = tpr_monotonic_ns();
    for (int i = 0; i < count; i++) {
        int fd = event[i].data.fd;
        if (fd == client->door.socket) {
            if (towpath_take_in_(client) < 0)
                towpath_lost_(client, &client->answer_error);
        } else if (fd == client->door.timer) {
            towpath_timer_fired_(client);
        } else {
            towpath_door_rung_(&client->door, fd);
        }
    }
    if (is_interrupted)
        return TOWPATH_E_CANCELLED;
    return count <= 0 && client->looked_ns >= deadline_ns ? TOWPATH_E_TIMEOUT : 0;
}

/* Wait until there is a connection. 0, or a code. */
static inline int towpath_ready_(struct towpath *client, uint64_t deadline_ns) {
    int code = towpath_check_(client);
    if (code < 0)
        return code;
    while (client->connection != TOWPATH_READY_) {
        if (towpath_wait_(client, deadline_ns) == TOWPATH_E_TIMEOUT)
            return towpath_fail_(&client->error, TOWPATH_E_UNAVAILABLE, "see `towpath status` and the daemon's log",
                                 "the daemon at %s does not answer%s%s", client->path,
                                 client->answer_error.code ? ": " : "", client->answer_error.message);
    }
    return 0;
}

/* Send the call whose body is in `client->body`, on the connection that there is, and wait for its answer (in
 * `client->answer`), which must be `expected`. 0, or a code. */
static inline int towpath_ask_(struct towpath *client, uint32_t kind, uint32_t expected, uint64_t deadline_ns) {
    client->is_answered = 0;
    uint64_t call = client->awaited = towpath_post_(client, kind, -1);
    while (!client->is_answered) {
        if (client->awaited != call) {
            client->error = client->answer_error;
            return client->error.code;
        }
        if (towpath_wait_(client, deadline_ns) == TOWPATH_E_TIMEOUT && !client->is_answered) {
            client->awaited = 0;
            return towpath_fail_(&client->error, TOWPATH_E_TIMEOUT, "", "the daemon did not answer in time");
        }
    }
    if (client->answer.body == TPW_ERROR) {
        client->error = client->answer_error;
        return client->error.code;
    }
    if (client->answer.body != expected)
        return towpath_fail_(&client->error, TOWPATH_E_PROTOCOL_VIOLATION, "", "call %u was answered by %u", kind,
                             client->answer.body);
    return 0;
}

/* Ask with one text. */
static inline int towpath_ask_of_(struct towpath *client, uint32_t kind, uint32_t expected, const char *text,
                                  uint64_t deadline_ns) {
    int code = towpath_ready_(client, deadline_ns);
    if (code < 0)
        return code;
    tpw_out_clear(&client->body);
    tpw_put_text(&client->body, 1, text);
    return towpath_ask_(client, kind, expected, deadline_ns);
}

/* An id of the session's own for a publisher or a subscription. 0, or a code. */
static inline int towpath_take_id_(struct towpath *client, uint64_t *id, uint64_t deadline_ns) {
    int code = towpath_ready_(client, deadline_ns);
    while (code == 0 && client->ids_left == 0) {
        tpw_out_clear(&client->body);
        tpw_put_number(&client->body, 1, TOWPATH_IDS_PER_REQUEST);
        code = towpath_ask_(client, TPW_ALLOCATE_IDS, TPW_ALLOCATED_IDS, deadline_ns);
        if (code == 0) {
            client->next_id = client->answer.first_id;
            client->ids_left = client->answer.id_count;
        }
    }
    if (code < 0)
        return code;
    client->ids_left--;
    *id = client->next_id++;
    return 0;
}

/* Wait until the core has answered the attach of an end. 0, or a code: it is not attached. */
static inline int towpath_await_attached_(struct towpath_end_ *end, uint64_t deadline_ns) {
    while (end->attach_call) {
        if (towpath_wait_(end->client, deadline_ns) == TOWPATH_E_TIMEOUT && end->attach_call)
            return towpath_fail_(&end->client->error, TOWPATH_E_TIMEOUT, "", "the daemon did not answer in time");
    }
    if (end->ended.code)
        end->client->error = end->ended;
    return end->ended.code;
}

#endif
