/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program's publisher: a ring of its own on a topic, or requests to the core on a queue.
 *
 * The daemon is asked only when the ring says that subscribers have come or gone, or that one has stopped reading. While
 * the ring is full (overflow = block) the publisher spins for a little, then has its doorbell rung by who makes room.
 */
#ifndef TOWPATH_PUBLISHER_H
#define TOWPATH_PUBLISHER_H

#include "towpath_calls.h"

#define TOWPATH_LOOK_NS_MIN UINT64_C(1000000)
#define TOWPATH_LOOK_NS_MAX UINT64_C(500000000)
#define TOWPATH_MEET_NS UINT64_C(1000000000)
#define TOWPATH_LOOK_EVERY_NS UINT64_C(50000000) /* how often a busy program looks at what the daemon says */
#define TOWPATH_LOAN_BYTES (UINT64_C(1) << 28) /* that a publisher may have loaned, or still looked at; address space until used */
#define TOWPATH_REQUEST_BYTES_MAX (UINT64_C(1) << 20)

enum { TOWPATH_KIND_TOPIC_ = 1, TOWPATH_KIND_QUEUE_ = 2, TOWPATH_OVERFLOW_DROP_ = 2, TOWPATH_ORDER_TOTAL_ = 2 };

static inline void towpath_publisher_free_(struct towpath_publisher *publisher) {
    struct towpath_publisher **link = &publisher->end.client->publishers;
    while (*link && *link != publisher)
        link = &(*link)->next;
    if (*link)
        *link = publisher->next;
    free(publisher->orphan);
    free(publisher->absent);
    free(publisher);
}

/* Make a publisher's ring as the channel in `client->answer` has it. */
static inline int towpath_publisher_open_(struct towpath_publisher *publisher, const struct tpw_frame *channel) {
    publisher->is_queue = channel->kind == TOWPATH_KIND_QUEUE_;
    publisher->is_durable = channel->is_durable != 0;
    publisher->is_taken_in = publisher->is_durable || channel->order == TOWPATH_ORDER_TOTAL_;
    publisher->stall_ns = (uint64_t)channel->stall_ms_max * 1000000;
    if (publisher->is_queue)
        return TPR_OK;
    int is_drop = channel->overflow == TOWPATH_OVERFLOW_DROP_ && !channel->is_durable;
    return tpr_writer_open_loaning(&publisher->writer, publisher->end.id, channel->ring_bytes,
                                   is_drop ? TPR_OVERFLOW_DROP : TPR_OVERFLOW_BLOCK, channel->history, TOWPATH_LOAN_BYTES);
}

static inline struct towpath_publisher *towpath_publisher_try_(struct towpath *client, const char *channel,
                                                               uint64_t deadline_ns) {
    uint64_t id;
    int code = towpath_take_id_(client, &id, deadline_ns);
    if (code == 0)
        code = towpath_ask_of_(client, TPW_GET_CHANNEL, TPW_GOT_CHANNEL, channel, deadline_ns);
    if (code < 0)
        return NULL;
    struct tpw_frame info = client->answer;
    struct towpath_publisher *publisher = (struct towpath_publisher *)calloc(1, sizeof *publisher);
    if (!publisher) {
        towpath_fail_system_(&client->error, "a publisher");
        return NULL;
    }
    publisher->end.client = client;
    publisher->end.id = id;
    snprintf(publisher->end.channel, sizeof publisher->end.channel, "%s", channel);
    code = towpath_publisher_open_(publisher, &info);
    if (code != TPR_OK) {
        towpath_fail_ring_(&client->error, code, "a publisher's ring");
        towpath_publisher_free_(publisher);
        return NULL;
    }
    publisher->next = client->publishers;
    client->publishers = publisher;
    if (publisher->is_queue)
        return publisher;
    towpath_attach_publisher_(publisher);
    if (towpath_await_attached_(&publisher->end, deadline_ns) == 0)
        return publisher;
    tpr_writer_close(&publisher->writer);
    towpath_tell_(client, TPW_DETACH_SOURCE, publisher->end.id, 0);
    towpath_publisher_free_(publisher);
    return NULL;
}

/* Have the core tell the readers, and take the generation that they make up. 0, or a code. */
static inline int towpath_fetch_readers_(struct towpath_publisher *publisher, uint64_t deadline_ns) {
    struct towpath *client = publisher->end.client;
    uint64_t most_ns = tpr_monotonic_ns() + TOWPATH_CALL_NS;
    int code;
    do {
        code = towpath_ready_(client, deadline_ns);
        if (code == 0 && publisher->end.attach_call) /* taken up again after a reconnection; that tells the readers too */
            code = towpath_await_attached_(&publisher->end, deadline_ns);
        if (code < 0)
            break;
        tpw_out_clear(&client->body);
        tpw_put_number(&client->body, 1, publisher->end.id);
        code = towpath_ask_(client, TPW_FETCH_READERS, TPW_FETCHED_READERS, deadline_ns < most_ns ? deadline_ns : most_ns);
    } while (code == TOWPATH_E_CONNECTION_LOST && tpr_monotonic_ns() < deadline_ns && towpath_check_(client) == 0);
    if (code == 0)
        tpr_writer_install(&publisher->writer, client->answer.generation);
    if (code == TOWPATH_E_SOURCE_NOT_FOUND)
        code = towpath_fail_(&client->error, TOWPATH_E_CHANNEL_UNDECLARED, "declare it again, and make a new publisher",
                             "channel %s was undeclared", publisher->end.channel);
    return code;
}

/* Part us from subscribers that have held the ring full for too long, and from absent ones. While there is no daemon to
 * ask nobody else is left behind; who left by itself meanwhile is told of at the next look. */
static inline void towpath_part_from_stalled_(struct towpath_publisher *publisher) {
    struct towpath *client = publisher->end.client;
    struct towpath_error kept = client->error;
    uint64_t reader;
    towpath_give_up_absent_(publisher);
    while (publisher->stall_ns && client->connection == TOWPATH_READY_ &&
           tpr_writer_stalled(&publisher->writer, publisher->stall_ns, &reader)) {
        if (towpath_forget_absent_(publisher, reader)) {
            tpr_writer_detach(&publisher->writer, reader);
            continue;
        }
        tpw_out_clear(&client->body);
        tpw_put_number(&client->body, 1, publisher->end.id);
        tpw_put_number(&client->body, 2, reader);
        if (towpath_ask_(client, TPW_DETACH_STALLED, TPW_STALLED_DETACHED, tpr_monotonic_ns() + TOWPATH_MEET_NS) < 0)
            break;
    }
    client->error = kept;
}

/* Spin for room for a message of `bytes`, as long as that has paid lately. */
static inline void towpath_spin_for_room_(struct towpath_publisher *publisher, uint64_t bytes, uint64_t deadline_ns) {
    struct tpr_room_wait wait;
    struct tpr_spinning_ spinning;
    struct tpr_spin *spin = tpr_writer_spin_(&publisher->writer, bytes);
    if (!spin->budget_ns || tpr_writer_wait_begin(&publisher->writer, bytes, &wait) != TPR_FULL)
        return;
    tpr_spin_begin_(spin, &spinning, tpr_monotonic_ns(), deadline_ns);
    while (tpr_spin_goes_on_(&spinning)) {
        if (tpr_room_wait_is_over_(&wait)) {
            tpr_spin_answered_(spin, &spinning);
            return;
        }
    }
    tpr_spin_failed_(spin);
}

/* What a publisher that cannot go on in time is told. */
static inline int towpath_no_room_(struct towpath_publisher *publisher, uint64_t bytes) {
    struct towpath *client = publisher->end.client;
    if (publisher->held.code) {
        client->error = publisher->held;
        return client->error.code;
    }
    if (bytes == TPR_ALL_READ)
        return towpath_fail_(&client->error, TOWPATH_E_TIMEOUT, "what was published stays in the ring for them",
                             "not everything on %s was read in time", publisher->end.channel);
    return towpath_fail_(&client->error, TOWPATH_E_TIMEOUT, "a subscriber is too slow, or has stopped",
                         "the ring of %s stayed full", publisher->end.channel);
}

/* Have the doorbell rung for room, or for a loan. 1: look again; 0: armed; an error of the ring's. */
static inline int towpath_arm_(struct towpath_publisher *publisher, uint64_t bytes, int is_loan) {
    if (!is_loan)
        return tpr_writer_arm_room(&publisher->writer, bytes);
    int code = tpr_writer_arm_loan(&publisher->writer, bytes);
    return code < 0 && code != TPR_E_LOANS ? code : code != TPR_FULL; /* E_LOANS: the next attempt says it */
}

static inline void towpath_disarm_(struct towpath_publisher *publisher, int is_loan) {
    if (is_loan)
        tpr_writer_disarm_loan(&publisher->writer);
    else
        tpr_writer_disarm_room(&publisher->writer);
}

/* How long to wait for room before looking who is in the way. */
static inline uint64_t towpath_look_ns_(const struct towpath_publisher *publisher) {
    uint64_t quarter_ns = publisher->stall_ns / 4;
    if (!publisher->stall_ns)
        return publisher->absents ? TOWPATH_LOOK_NS_MAX : TPR_FOREVER;
    if (quarter_ns < TOWPATH_LOOK_NS_MIN)
        return TOWPATH_LOOK_NS_MIN;
    return quarter_ns < TOWPATH_LOOK_NS_MAX ? quarter_ns : TOWPATH_LOOK_NS_MAX;
}

/* Wait until there may be room for a message of `bytes` (TPR_ALL_READ: until all was read), or so much to loan, or readers
 * to attach. 0, or a code. */
static inline int towpath_make_way_(struct towpath_publisher *publisher, uint64_t bytes, uint64_t deadline_ns,
                                    int is_loan) {
    struct towpath *client = publisher->end.client;
    if (!is_loan)
        towpath_spin_for_room_(publisher, bytes, deadline_ns);
    for (;;) {
        int armed = towpath_arm_(publisher, bytes, is_loan);
        if (armed < 0)
            return towpath_fail_ring_(&client->error, armed, publisher->end.channel);
        if (armed || publisher->end.ended.code) {
            if (is_loan)
                towpath_disarm_(publisher, 1);
            return 0;
        }
        uint64_t began_ns = tpr_monotonic_ns();
        if (began_ns >= deadline_ns) {
            towpath_disarm_(publisher, is_loan);
            return towpath_no_room_(publisher, bytes);
        }
        uint64_t look_ns = towpath_look_ns_(publisher);
        uint64_t until_ns = look_ns == TPR_FOREVER || deadline_ns < began_ns + look_ns ? deadline_ns : began_ns + look_ns;
        int code = towpath_wait_(client, until_ns);
        tpr_spin_slept_(tpr_writer_spin_(&publisher->writer, bytes), tpr_monotonic_ns() - began_ns);
        if (code == TOWPATH_E_CANCELLED) {
            towpath_disarm_(publisher, is_loan);
            return towpath_fail_(&client->error, code, "", "a signal handler ran while %s was waited for",
                                 publisher->end.channel);
        }
        towpath_part_from_stalled_(publisher);
    }
}

/* Put one message into the ring, waiting for room and for readers as needed. 0, or a code. */
static inline int towpath_put_(struct towpath_publisher *publisher, struct towpath_bytes payload,
                               struct towpath_bytes headers, uint64_t deadline_ns) {
    struct towpath *client = publisher->end.client;
    for (;;) {
        if (publisher->end.ended.code) {
            client->error = publisher->end.ended;
            return client->error.code;
        }
        int code = tpr_writer_put(&publisher->writer, headers.data, headers.count, payload.data, payload.count);
        if (code == TPR_OK)
            return 0;
        if (code == TPR_FULL)
            code = towpath_make_way_(publisher, headers.count + payload.count, deadline_ns, 0);
        else if (code == TPR_NEEDS_READERS)
            code = towpath_fetch_readers_(publisher, deadline_ns);
        else
            code = towpath_fail_ring_(&client->error, code, publisher->end.channel);
        if (code < 0)
            return code;
    }
}

/* One message to a queue: the core answers when it is in it. 0, or a code. */
static inline int towpath_enqueue_(struct towpath_publisher *publisher, struct towpath_bytes payload,
                                   struct towpath_bytes headers, uint64_t deadline_ns) {
    struct towpath *client = publisher->end.client;
    int code = towpath_ready_(client, deadline_ns);
    if (code < 0)
        return code;
    tpw_out_clear(&client->body);
    tpw_put_text(&client->body, 1, publisher->end.channel);
    tpw_put_span(&client->body, 2, payload.data, payload.count);
    if (headers.count)
        tpw_put_span(&client->body, 3, headers.data, headers.count);
    if (client->body.count + 64 > TOWPATH_REQUEST_BYTES_MAX)
        return towpath_fail_(&client->error, TOWPATH_E_MESSAGE_TOO_LARGE, "", "a message of %zu bytes for queue %s",
                             payload.count + headers.count, publisher->end.channel);
    code = towpath_ask_(client, TPW_PUBLISH, TPW_PUBLISHED, deadline_ns);
    if (code == 0)
        publisher->writer.last_seq = client->answer.first_seq;
    return code;
}

static inline int towpath_check_headers_(struct towpath *client, const struct towpath_headers *headers) {
    if (!headers || (!headers->wrong && !headers->out.has_failed))
        return 0;
    return towpath_fail_(&client->error, TOWPATH_E_INVALID_ARGUMENT, "", "%s",
                         headers->wrong ? headers->wrong : "out of memory for headers");
}

/* What comes after a batch: the daemon is listened to now and then, and readers that came meanwhile are met now; so are
 * those who came before it took us up again, who may be asleep, whatever this program does next. */
static inline void towpath_after_batch_(struct towpath_publisher *publisher) {
    struct towpath *client = publisher->end.client;
    tpr_writer_flush(&publisher->writer);
    if (tpr_monotonic_ns() - client->looked_ns > TOWPATH_LOOK_EVERY_NS)
        towpath_wait_(client, 0);
    int is_taken_up = publisher->end.attach_call && client->connection == TOWPATH_READY_;
    if (publisher->writer.readers_changed || is_taken_up) {
        struct towpath_error kept = client->error;
        towpath_fetch_readers_(publisher, tpr_monotonic_ns() + TOWPATH_MEET_NS);
        client->error = kept; /* the next message asks again */
    }
}

#endif
