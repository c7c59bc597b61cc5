/* SPDX-License-Identifier: Apache-2.0
 *
 * A C client's connection: greeting the daemon, taking in its frames, losing it, and taking everything up again.
 *
 * The session outlives its connection, as the Python client's does (towpath/protocol.py): rings and control pages are
 * this process's own. When the connection breaks, the timer makes the descriptor readable when it is time to try again;
 * after the welcome each subscription and publisher that the core had is attached again under its old id, with the token
 * that proves that it is ours. A publisher keeps the readers that it had (orphans), a subscription its sources
 * (unconfirmed), until they have done the same, or TOWPATH_GRACE_NS is over.
 *
 * Not here: when the socket is looked at (towpath_calls.h).
 */
#ifndef TOWPATH_CONNECTION_H
#define TOWPATH_CONNECTION_H

#include "towpath_session.h"

static inline void towpath_greet_(struct towpath *client) {
    tpw_out_clear(&client->body);
    tpw_put_number(&client->body, 1, TOWPATH_PROTOCOL_VERSION);
    tpw_put_number(&client->body, 2, TOWPATH_PROTOCOL_VERSION);
    tpw_put_text(&client->body, 3, "towpath-c/" TOWPATH_VERSION);
    tpw_put_text(&client->body, 4, client->name);
    tpw_put_number(&client->body, 5, 1);
    client->connection = TOWPATH_GREETING_;
    towpath_post_(client, TPW_HELLO, client->door.bell_sender);
}

/* Whatever waited for an answer has lost it; publishers and subscriptions live on. */
static inline void towpath_lost_(struct towpath *client, const struct towpath_error *why) {
    if (client->connection == TOWPATH_READY_)
        client->pause_ns = TOWPATH_RECONNECT_FIRST_NS;
    client->connection = TOWPATH_DOWN_;
    towpath_door_drop_(&client->door);
    client->ids_left = 0; /* they were the connection's session's */
    client->grace_at_ns = TPR_FOREVER;
    client->reconnect_at_ns = tpr_monotonic_ns() + client->pause_ns;
    client->pause_ns = client->pause_ns * 2 < TOWPATH_RECONNECT_MAX_NS ? client->pause_ns * 2 : TOWPATH_RECONNECT_MAX_NS;
    towpath_set_timer_(client);
    client->answer_error = *why;
    if (client->answer_error.code != TOWPATH_E_VERSION_MISMATCH)
        client->answer_error.code = TOWPATH_E_CONNECTION_LOST;
    client->answer_error.is_retryable = 1;
    client->awaited = 0;
    for (struct towpath_publisher *each = client->publishers; each; each = each->next) {
        if (each->end.attach_call && !each->end.is_attached)
            each->end.ended = client->answer_error;
        each->end.attach_call = 0;
    }
    for (struct towpath_subscription *each = client->subscriptions; each; each = each->next) {
        if (each->end.attach_call && !each->end.is_attached)
            each->end.ended = client->answer_error;
        each->end.attach_call = 0;
    }
}

/* Attach everything again that the core had. */
static inline void towpath_resume_(struct towpath *client) {
    int has_any = 0;
    for (struct towpath_subscription *each = client->subscriptions; each; each = each->next) {
        if (!each->end.is_attached || each->end.ended.code)
            continue;
        for (struct towpath_followed_ *followed = each->followed; followed; followed = followed->next)
            followed->is_unconfirmed = !followed->is_gone;
        towpath_attach_subscription_(each);
        has_any = 1;
    }
    for (struct towpath_publisher *each = client->publishers; each; each = each->next) {
        if (each->is_queue || !each->end.is_attached || each->end.ended.code)
            continue;
        free(each->orphan);
        each->orphans = 0;
        each->orphan = (uint64_t *)calloc(each->writer.peer_count + 1, sizeof *each->orphan);
        for (uint32_t i = 0; each->orphan && i < each->writer.peer_count; i++)
            each->orphan[each->orphans++] = each->writer.peer[i].reader;
        towpath_attach_publisher_(each);
        has_any = 1;
    }
    if (has_any)
        client->grace_at_ns = tpr_monotonic_ns() + TOWPATH_GRACE_NS;
}

/* Whether the core has yet to answer for something that is attached again. */
static inline int towpath_is_resuming_(const struct towpath *client) {
    for (const struct towpath_publisher *each = client->publishers; each; each = each->next)
        if (each->end.attach_call && each->end.is_attached)
            return 1;
    for (const struct towpath_subscription *each = client->subscriptions; each; each = each->next)
        if (each->end.attach_call && each->end.is_attached)
            return 1;
    return 0;
}

/* Take for dead who has not come back in time. Before the core has answered nobody can be late: it may be the core
 * itself that reads us. */
static inline void towpath_expire_(struct towpath *client) {
    if (towpath_is_resuming_(client)) {
        client->grace_at_ns = tpr_monotonic_ns() + TOWPATH_GRACE_NS;
        return;
    }
    client->grace_at_ns = TPR_FOREVER;
    for (struct towpath_publisher *each = client->publishers; each; each = each->next)
        while (each->orphans)
            tpr_writer_part(&each->writer, each->orphan[--each->orphans]); /* stopped, perhaps, and holds loans */
    for (struct towpath_subscription *each = client->subscriptions; each; each = each->next) {
        struct towpath_followed_ *followed = each->followed, *next;
        for (; followed; followed = next) {
            next = followed->next;
            if (followed->is_unconfirmed) {
                followed->is_late = 1;
                towpath_let_go_(each, followed);
            }
        }
    }
}

static inline int towpath_welcomed_(struct towpath *client, const struct tpw_frame *frame) {
    if (frame->body == TPW_ERROR) {
        towpath_error_from_(&client->answer_error, frame);
        return client->answer_error.code;
    }
    if (frame->body != TPW_WELCOME || !frame->descriptors)
        return towpath_fail_(&client->answer_error, TOWPATH_E_PROTOCOL_VIOLATION, "", "hello was answered by %u", frame->body);
    if (frame->version != TOWPATH_PROTOCOL_VERSION)
        return towpath_fail_(&client->answer_error, TOWPATH_E_VERSION_MISMATCH, "update the older side",
                             "the daemon speaks version %u", frame->version);
    towpath_close_fd_(&client->table_fd);
    client->table_fd = client->door.came[0];
    client->door.came[0] = -1; /* ours now */
    client->session = frame->session;
    client->next_id = frame->first_id;
    client->ids_left = frame->id_count;
    client->connection = TOWPATH_READY_;
    towpath_resume_(client);
    towpath_set_timer_(client);
    return 0;
}

static inline void towpath_noticed_(struct towpath *client, const struct tpw_frame *frame) {
    struct towpath_subscription *subscription;
    struct towpath_publisher *publisher;
    switch (frame->body) {
    case TPW_SOURCE_ADDED: towpath_source_added_(client, frame); break;
    case TPW_SOURCE_GONE:
    case TPW_SOURCE_DETACHED: towpath_source_gone_(client, frame); break;
    case TPW_READER_ADDED: towpath_reader_added_(client, frame); break;
    case TPW_READER_GONE: towpath_reader_gone_(client, frame); break;
    case TPW_SUBSCRIPTION_ENDED:
        if ((subscription = towpath_subscription_by_(client, frame->reader)) == NULL)
            break;
        towpath_error_from_(&subscription->end.ended, frame);
        for (struct towpath_followed_ *each = subscription->followed; each; each = each->next)
            if (each->is_followed)
                tpr_reader_finish(&subscription->reader, each->source);
        break;
    case TPW_PUBLICATION_ENDED:
        if ((publisher = towpath_publisher_by_(client, frame->source)) != NULL)
            towpath_error_from_(&publisher->end.ended, frame);
        break;
    case TPW_PUBLICATION_HELD:
        if ((publisher = towpath_publisher_by_(client, frame->source)) == NULL)
            break;
        publisher->held.code = 0;
        if (frame->has_error)
            towpath_error_from_(&publisher->held, frame);
        break;
    case TPW_DOORBELL_ADDED:
        if (frame->descriptors) {
            towpath_door_add_bell_(&client->door, client->door.came[0]);
            client->door.came[0] = -1;
        }
        break;
    default: break; /* of a later version */
    }
}

/* Handle one frame. 0, or a code in `answer_error`: the connection is over. */
static inline int towpath_handle_(struct towpath *client, const struct tpw_frame *frame) {
    if (client->connection == TOWPATH_GREETING_)
        return towpath_welcomed_(client, frame);
    if (frame->id == 0 && frame->body == TPW_ERROR) {
        towpath_error_from_(&client->answer_error, frame);
        return client->answer_error.code;
    }
    if (frame->id == 0) {
        towpath_noticed_(client, frame);
    } else if (frame->id == client->awaited) {
        client->awaited = 0;
        client->is_answered = 1;
        client->answer = *frame;
        if (frame->body == TPW_ERROR)
            towpath_error_from_(&client->answer_error, frame);
    } else {
        towpath_attached_(client, frame);
    }
    return 0;
}

/* Take in what the socket has. 0, or a code in `answer_error`: the connection is over. */
static inline int towpath_take_in_(struct towpath *client) {
    struct towpath_door *door = &client->door;
    int more = towpath_door_read_(door, &client->answer_error);
    size_t at = 0, bytes = 0;
    if (more <= 0)
        return more;
    for (;;) {
        struct tpw_frame frame;
        int code = towpath_door_frame_(door, at, &frame, &bytes, &client->answer_error);
        if (code <= 0) {
            memmove(door->in, door->in + at, door->in_count - at);
            door->in_count -= at;
            return code;
        }
        code = towpath_handle_(client, &frame);
        towpath_door_taken_(door, frame.descriptors);
        if (code < 0)
            return code;
        at += bytes;
    }
}

#endif
