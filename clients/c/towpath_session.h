/* SPDX-License-Identifier: Apache-2.0
 *
 * A C client's session with the daemon: its publishers and subscriptions, and what the core says of who is attached to
 * which.
 *
 * Theory of operation. There is no thread: whatever comes from the daemon is handled when the program calls something
 * that waits or looks. What the core says of who is attached to which is carried out here at once, on the rings.
 *
 * A source in a subscription is *followed* until its ring was read to the end, and *gone* when the core says so; its slot
 * is released after both.
 *
 * Not here: the connection that all of it goes through, and its loss (towpath_connection.h).
 */
#ifndef TOWPATH_SESSION_H
#define TOWPATH_SESSION_H

#include "towpath_door.h"
#include "towpath_headers.h"

#define TOWPATH_VERSION "0.1.0"
#define TOWPATH_PROTOCOL_VERSION 1u
#define TOWPATH_CALL_NS UINT64_C(10000000000)
#define TOWPATH_GRACE_NS UINT64_C(3000000000)
#define TOWPATH_RECONNECT_FIRST_NS UINT64_C(20000000)
#define TOWPATH_RECONNECT_MAX_NS UINT64_C(2000000000)
#define TOWPATH_TOKEN_BYTES_MAX 64u
#define TOWPATH_IDS_PER_REQUEST 1024u
#define TOWPATH_CHANNEL_BYTES_MAX 255u
#define TOWPATH_LATE_MAX_ 64u

struct towpath;

/* What publishers and subscriptions have in common on their way to being attached. */
struct towpath_end_ {
    struct towpath *client;
    char channel[TOWPATH_CHANNEL_BYTES_MAX + 1];
    uint64_t id;
    uint64_t attach_call; /* the call that is under way to attach it, or 0 */
    int is_attached;      /* the core has said so once: it may be taken up again */
    struct towpath_error ended; /* code 0: it has not */
    uint8_t token[TOWPATH_TOKEN_BYTES_MAX];
    size_t token_bytes;
};

/* A reader that has gone, and may come back by then: it is waited for. */
struct towpath_absent_ {
    uint64_t reader, until_ns;
};

struct towpath_publisher {
    struct towpath_end_ end;
    struct towpath_publisher *next;
    struct tpr_writer writer;
    int is_queue, is_durable, is_taken_in;
    uint64_t stall_ns;
    struct towpath_error held; /* code 0: what is published can be stored */
    uint64_t *orphan;
    size_t orphans;
    struct towpath_absent_ *absent;
    size_t absents;
};

/* A source that the core has given a slot; the tag of its ring. */
struct towpath_followed_ {
    struct towpath_followed_ *next;
    uint64_t source;
    uint32_t slot;
    int is_followed, is_gone, is_unconfirmed, is_overtaken, is_late;
    char channel[TOWPATH_CHANNEL_BYTES_MAX + 1];
};

/* A source that did not come back in time, and was read to its end: it may have been stopped only, and goes on later. */
struct towpath_late_ {
    uint64_t source, next_seq;
};

struct towpath_subscription {
    struct towpath_end_ end;
    struct towpath_subscription *next;
    struct tpr_reader reader;
    struct towpath_followed_ *followed;
    struct towpath_late_ late[TOWPATH_LATE_MAX_];
    uint32_t lates; /* there ever were; the oldest are forgotten */
    struct towpath_error trouble; /* what the program is to be told once; code 0: nothing */
    uint8_t *copy;                /* of the message handed out last */
    size_t copy_room;
    uint32_t taken; /* since the daemon was looked at */
};

enum towpath_connection_ { TOWPATH_DOWN_, TOWPATH_GREETING_, TOWPATH_READY_ };

struct towpath {
    struct towpath_door door;
    enum towpath_connection_ connection;
    uint32_t forks;
    uint64_t session, next_call, next_id, looked_ns;
    uint32_t ids_left;
    int table_fd;
    uint64_t reconnect_at_ns, grace_at_ns, pause_ns;
    char name[64], *path;
    struct towpath_publisher *publishers;
    struct towpath_subscription *subscriptions;
    struct tpw_out body;
    uint64_t awaited; /* the call whose answer goes to `answer`, or 0 */
    int is_answered;
    struct tpw_frame answer; /* without its spans */
    struct towpath_error answer_error, error;
};

static inline void towpath_copy_text_(char *to, size_t room, struct towpath_bytes from) {
    size_t count = from.count < room ? from.count : room - 1;
    if (count)
        memcpy(to, from.data, count);
    to[count] = 0;
}

static inline void towpath_error_from_(struct towpath_error *error, const struct tpw_frame *frame) {
    error->code = frame->error_code && frame->error_code < 1000 ? -(int)frame->error_code : TOWPATH_E_INTERNAL;
    error->is_retryable = (int)frame->is_retryable;
    towpath_copy_text_(error->message, sizeof error->message, frame->error_message);
    towpath_copy_text_(error->hint, sizeof error->hint, frame->error_hint);
}

static inline struct towpath_publisher *towpath_publisher_by_(struct towpath *client, uint64_t source) {
    struct towpath_publisher *publisher = client->publishers;
    while (publisher && publisher->end.id != source)
        publisher = publisher->next;
    return publisher;
}

static inline struct towpath_subscription *towpath_subscription_by_(struct towpath *client, uint64_t reader) {
    struct towpath_subscription *subscription = client->subscriptions;
    while (subscription && subscription->end.id != reader)
        subscription = subscription->next;
    return subscription;
}

static inline struct towpath_followed_ *towpath_followed_by_(struct towpath_subscription *subscription, uint64_t source) {
    struct towpath_followed_ *followed = subscription->followed;
    while (followed && followed->source != source)
        followed = followed->next;
    return followed;
}

static inline void towpath_set_timer_(struct towpath *client) {
    towpath_door_set_timer_(&client->door, client->reconnect_at_ns < client->grace_at_ns ? client->reconnect_at_ns
                                                                                         : client->grace_at_ns);
}

/* Send what `client->body` holds; the id of the call. While there is no connection nothing happens. */
static inline uint64_t towpath_post_(struct towpath *client, uint32_t kind, int fd) {
    uint64_t call = client->next_call++;
    towpath_door_send_(&client->door, call, kind, &client->body, fd);
    return call;
}

/* Say something whose answer does not matter: two numbers. */
static inline void towpath_tell_(struct towpath *client, uint32_t kind, uint64_t first, uint64_t second) {
    if (client->connection != TOWPATH_READY_)
        return;
    tpw_out_clear(&client->body);
    tpw_put_number(&client->body, 1, first);
    tpw_put_number(&client->body, 2, second);
    towpath_post_(client, kind, -1);
}

/* ---- attaching ---- */

static inline void towpath_attach_publisher_(struct towpath_publisher *publisher) {
    struct towpath *client = publisher->end.client;
    struct tpw_out *body = &client->body;
    tpw_out_clear(body);
    tpw_put_text(body, 1, publisher->end.channel);
    tpw_put_number(body, 2, publisher->end.id);
    tpw_put_number(body, 3, publisher->end.is_attached != 0);
    tpw_put_bytes(body, 8, publisher->end.token, publisher->end.token_bytes);
    publisher->end.attach_call = towpath_post_(client, TPW_ATTACH_SOURCE, publisher->writer.memory.fd);
}

static inline void towpath_attach_subscription_(struct towpath_subscription *subscription) {
    struct towpath *client = subscription->end.client;
    struct tpw_out *body = &client->body, held;
    memset(&held, 0, sizeof held);
    tpw_out_clear(body);
    tpw_put_text(body, 1, subscription->end.channel);
    tpw_put_number(body, 2, subscription->end.id);
    tpw_put_number(body, 3, subscription->end.is_attached != 0);
    tpw_put_number(body, 4, subscription->reader.slots);
    for (struct towpath_followed_ *each = subscription->followed; each; each = each->next) {
        tpw_out_clear(&held);
        tpw_put_number(&held, 1, each->source);
        tpw_put_number(&held, 2, each->slot);
        tpw_put_span(body, 6, held.bytes, held.count);
        body->has_failed |= held.has_failed;
    }
    tpw_out_free(&held);
    tpw_put_number(body, 7, 1);
    tpw_put_bytes(body, 9, subscription->end.token, subscription->end.token_bytes);
    subscription->end.attach_call = towpath_post_(client, TPW_ATTACH_READER, subscription->reader.memory.fd);
}

static inline void towpath_keep_token_(struct towpath_end_ *end, const struct tpw_frame *frame) {
    end->is_attached = 1;
    end->token_bytes = frame->token.count <= sizeof end->token ? frame->token.count : 0;
    if (end->token_bytes)
        memcpy(end->token, frame->token.data, end->token_bytes);
}

/* The answer to an attach: 1 when it was one. */
static inline int towpath_attached_(struct towpath *client, const struct tpw_frame *frame) {
    for (struct towpath_publisher *each = client->publishers; each; each = each->next) {
        if (each->end.attach_call != frame->id)
            continue;
        each->end.attach_call = 0;
        int code = frame->body == TPW_SOURCE_ATTACHED
                       ? tpr_writer_set_table(&each->writer, client->table_fd, frame->generation_index)
                       : TPR_OK;
        if (frame->body == TPW_ERROR)
            towpath_error_from_(&each->end.ended, frame);
        else if (frame->body != TPW_SOURCE_ATTACHED)
            towpath_fail_(&each->end.ended, TOWPATH_E_PROTOCOL_VIOLATION, "", "a publisher was answered by %u", frame->body);
        else if (code != TPR_OK)
            towpath_fail_ring_(&each->end.ended, code, "the generation table");
        else {
            towpath_keep_token_(&each->end, frame);
            tpr_writer_install(&each->writer, frame->generation);
        }
        return 1;
    }
    for (struct towpath_subscription *each = client->subscriptions; each; each = each->next) {
        if (each->end.attach_call != frame->id)
            continue;
        each->end.attach_call = 0;
        if (frame->body == TPW_ERROR)
            towpath_error_from_(&each->end.ended, frame);
        else if (frame->body != TPW_READER_ATTACHED)
            towpath_fail_(&each->end.ended, TOWPATH_E_PROTOCOL_VIOLATION, "", "a subscription was answered by %u",
                          frame->body);
        else
            towpath_keep_token_(&each->end, frame);
        return 1;
    }
    return 0;
}

/* ---- sources of a subscription ---- */

/* The core has let it go and it was read to its end: its slot may serve another. */
static inline void towpath_release_(struct towpath_subscription *subscription, struct towpath_followed_ *followed) {
    struct towpath_followed_ **link = &subscription->followed;
    while (*link != followed)
        link = &(*link)->next;
    *link = followed->next;
    towpath_tell_(subscription->end.client, TPW_RELEASE_SLOT, subscription->end.id, followed->source);
    free(followed);
}

/* Nothing more of it is read. */
static inline void towpath_unfollow_(struct towpath_subscription *subscription, struct towpath_followed_ *followed) {
    const struct tpr_source *source = tpr_reader_find(&subscription->reader, followed->source);
    if (followed->is_late && source && source->state == TPR_SOURCE_DRAINED) {
        struct towpath_late_ *late = &subscription->late[subscription->lates++ % TOWPATH_LATE_MAX_];
        late->source = followed->source;
        late->next_seq = source->next_seq;
    }
    followed->is_followed = 0;
    tpr_reader_remove(&subscription->reader, followed->source, NULL);
    if (followed->is_gone)
        towpath_release_(subscription, followed);
}

/* The core has let a source go, or it did not come back. */
static inline void towpath_let_go_(struct towpath_subscription *subscription, struct towpath_followed_ *followed) {
    followed->is_gone = 1;
    followed->is_unconfirmed = 0;
    if (followed->is_followed)
        tpr_reader_finish(&subscription->reader, followed->source);
    else
        towpath_release_(subscription, followed);
}

/* A publisher went on without us: the program is told once. */
static inline void towpath_overtaken_(struct towpath_subscription *subscription, struct towpath_followed_ *followed) {
    followed->is_overtaken = 1;
    towpath_fail_(&subscription->trouble, TOWPATH_E_SLOW_CONSUMER,
                  "what was not read of that publisher is lost; subscribe again to follow it again",
                  "this subscription was too slow for publisher %llu of %s, which went on without it",
                  (unsigned long long)followed->source, followed->channel);
}

static inline enum tpr_start towpath_start_(const struct tpw_frame *frame) {
    return frame->from_start ? TPR_START_BEGIN : frame->from_history ? TPR_START_HISTORY : TPR_START_TAIL;
}

static inline void towpath_source_added_(struct towpath *client, const struct tpw_frame *frame) {
    struct towpath_subscription *subscription = towpath_subscription_by_(client, frame->reader);
    if (!subscription || !frame->descriptors)
        return;
    struct towpath_followed_ *followed = towpath_followed_by_(subscription, frame->source);
    int doorbell = frame->descriptors > 1 ? client->door.came[1] : -1;
    if (!followed) {
        followed = (struct towpath_followed_ *)calloc(1, sizeof *followed);
        if (!followed) {
            towpath_fail_system_(&subscription->trouble, "a publisher is not followed");
            return;
        }
        followed->source = frame->source;
        towpath_copy_text_(followed->channel, sizeof followed->channel, frame->channel);
        followed->next = subscription->followed;
        subscription->followed = followed;
    }
    followed->slot = frame->slot;
    followed->is_gone = followed->is_unconfirmed = followed->is_overtaken = 0;
    if (followed->is_followed && tpr_reader_revive(&subscription->reader, followed->source)) {
        followed->is_late = 0;
        if (doorbell >= 0)
            tpr_reader_set_doorbell(&subscription->reader, followed->source, doorbell);
        return;
    }
    if (followed->is_followed)
        towpath_unfollow_(subscription, followed); /* it was read to its end by now */
    followed->is_late = 0;
    uint64_t announced = frame->tail == TPW_NO_TAIL ? TPR_TAIL_UNKNOWN : frame->tail;
    int code = tpr_reader_add_from(&subscription->reader, client->door.came[0], frame->slot, frame->source,
                                   towpath_start_(frame), announced, doorbell, followed);
    followed->is_followed = code == TPR_OK;
    for (uint32_t i = 0; i < TOWPATH_LATE_MAX_; i++)
        if (subscription->late[i].source == followed->source && subscription->late[i].next_seq) {
            tpr_reader_expect(&subscription->reader, followed->source, subscription->late[i].next_seq);
            subscription->late[i].next_seq = 0;
        }
    if (code == TPR_E_LATE) /* it was parted from us before we got to read it; the core will say so too */
        towpath_overtaken_(subscription, followed);
    else if (code != TPR_OK)
        towpath_fail_ring_(&subscription->trouble, code, "a publisher is not followed");
}

static inline void towpath_source_gone_(struct towpath *client, const struct tpw_frame *frame) {
    struct towpath_subscription *subscription = towpath_subscription_by_(client, frame->reader);
    struct towpath_followed_ *followed = subscription ? towpath_followed_by_(subscription, frame->source) : NULL;
    if (!followed)
        return;
    if (frame->body == TPW_SOURCE_GONE) {
        towpath_let_go_(subscription, followed);
        return;
    }
    /* We were too slow for it: what is unread may be overwritten at any time now. */
    if (!followed->is_overtaken)
        towpath_error_from_(&subscription->trouble, frame);
    followed->is_gone = 1;
    if (followed->is_followed)
        towpath_unfollow_(subscription, followed);
    else
        towpath_release_(subscription, followed);
}

/* ---- readers of a publisher ---- */

static inline void towpath_forget_orphan_(struct towpath_publisher *publisher, uint64_t reader) {
    for (size_t i = 0; i < publisher->orphans; i++)
        if (publisher->orphan[i] == reader)
            publisher->orphan[i] = publisher->orphan[--publisher->orphans];
}

/* It is not waited for as one that is absent any more. Was it? */
static inline int towpath_forget_absent_(struct towpath_publisher *publisher, uint64_t reader) {
    for (size_t i = 0; i < publisher->absents; i++) {
        if (publisher->absent[i].reader == reader) {
            publisher->absent[i] = publisher->absent[--publisher->absents];
            return 1;
        }
    }
    return 0;
}

/* Wait for a reader that has gone, and may come back, where readers are waited for at all. */
static inline void towpath_await_return_(struct towpath_publisher *publisher, uint64_t reader, uint32_t return_ms) {
    struct towpath_absent_ *grown = NULL;
    if (publisher->writer.overflow == TPR_OVERFLOW_BLOCK)
        grown = (struct towpath_absent_ *)realloc(publisher->absent, (publisher->absents + 1) * sizeof *grown);
    if (!grown) {
        tpr_writer_detach(&publisher->writer, reader);
        return;
    }
    publisher->absent = grown;
    grown[publisher->absents].reader = reader;
    grown[publisher->absents++].until_ns = tpr_monotonic_ns() + (uint64_t)return_ms * 1000000;
}

/* Wait no more for who is absent for too long. */
static inline void towpath_give_up_absent_(struct towpath_publisher *publisher) {
    uint64_t now_ns = publisher->absents ? tpr_monotonic_ns() : 0;
    for (size_t i = publisher->absents; i-- > 0;) {
        if (now_ns >= publisher->absent[i].until_ns) {
            tpr_writer_detach(&publisher->writer, publisher->absent[i].reader);
            publisher->absent[i] = publisher->absent[--publisher->absents];
        }
    }
}

static inline void towpath_reader_added_(struct towpath *client, const struct tpw_frame *frame) {
    struct towpath_publisher *publisher = towpath_publisher_by_(client, frame->source);
    if (!publisher || !frame->descriptors)
        return;
    int is_known = tpr_writer_find_(&publisher->writer, frame->reader) != NULL;
    towpath_forget_orphan_(publisher, frame->reader);
    towpath_forget_absent_(publisher, frame->reader);
    if (is_known && frame->descriptors == 1)
        return;
    /* One that cannot be attached is so by its own fault: it will not be waited for, nor woken. */
    tpr_writer_attach(&publisher->writer, frame->reader, client->door.came[0], frame->slot,
                      frame->descriptors > 1 ? client->door.came[1] : -1, towpath_start_(frame));
}

static inline void towpath_reader_gone_(struct towpath *client, const struct tpw_frame *frame) {
    struct towpath_publisher *publisher = towpath_publisher_by_(client, frame->source);
    if (!publisher)
        return;
    towpath_forget_orphan_(publisher, frame->reader);
    towpath_forget_absent_(publisher, frame->reader);
    if (frame->return_ms)
        towpath_await_return_(publisher, frame->reader, frame->return_ms);
    else if (frame->is_parted)
        tpr_writer_part(&publisher->writer, frame->reader);
    else
        tpr_writer_detach(&publisher->writer, frame->reader);
}

#endif
