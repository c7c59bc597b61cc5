/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program's subscription: a control page of its own, and the rings of those who publish.
 *
 * A message is copied out of its publisher's ring, and the cursor moved past it, before it is handed out; the copy is good
 * until the next receive. When there is none, the subscription spins for a little, then has its doorbell rung.
 */
#ifndef TOWPATH_SUBSCRIPTION_H
#define TOWPATH_SUBSCRIPTION_H

#include "towpath_calls.h"

#define TOWPATH_LOOK_EVERY_MESSAGES 256u

struct towpath_hold; /* towpath_loan.h */

/* A message that was received. Its memory is the subscription's, until the next receive or the close. */
struct towpath_message {
    const void *payload; /* a 0 follows it, which is not part of it */
    size_t payload_bytes;
    struct towpath_bytes headers; /* for towpath_headers_get() and friends; of 0 bytes when there are none */
    const char *channel;
    uint64_t source, seq; /* unique for ever; contiguous within a source */
    uint64_t time_ns;     /* CLOCK_REALTIME when it was published */
    uint64_t missed;      /* how many of this source were lost just before it (overflow = drop) */
};

static inline void towpath_subscription_free_(struct towpath_subscription *subscription) {
    struct towpath_subscription **link = &subscription->end.client->subscriptions;
    while (*link && *link != subscription)
        link = &(*link)->next;
    if (*link)
        *link = subscription->next;
    while (subscription->followed) {
        struct towpath_followed_ *followed = subscription->followed;
        subscription->followed = followed->next;
        free(followed);
    }
    free(subscription->copy);
    free(subscription);
}

static inline struct towpath_subscription *towpath_subscribe_try_(struct towpath *client, const char *channel,
                                                                  uint64_t deadline_ns) {
    uint64_t id;
    int is_pattern = strpbrk(channel, "*>") != NULL;
    if (towpath_take_id_(client, &id, deadline_ns) < 0)
        return NULL;
    struct towpath_subscription *subscription = (struct towpath_subscription *)calloc(1, sizeof *subscription);
    if (!subscription) {
        towpath_fail_system_(&client->error, "a subscription");
        return NULL;
    }
    subscription->end.client = client;
    subscription->end.id = id;
    snprintf(subscription->end.channel, sizeof subscription->end.channel, "%s", channel);
    int code = tpr_reader_open_holding(&subscription->reader, id, is_pattern ? TPR_SLOTS_MAX : TPR_SLOTS_DEFAULT,
                                       TPR_HELD_DEFAULT);
    if (code != TPR_OK) {
        towpath_fail_ring_(&client->error, code, "a subscription's page");
        towpath_subscription_free_(subscription);
        return NULL;
    }
    subscription->next = client->subscriptions;
    client->subscriptions = subscription;
    towpath_attach_subscription_(subscription);
    if (towpath_await_attached_(&subscription->end, deadline_ns) == 0)
        return subscription;
    tpr_reader_close(&subscription->reader);
    towpath_tell_(client, TPW_DETACH_READER, id, 0);
    towpath_subscription_free_(subscription);
    return NULL;
}

/* Let go of sources that are read to their end, of those that broke their ring, and of those that went on without us. */
static inline void towpath_tend_(struct towpath_subscription *subscription) {
    struct tpr_reader *reader = &subscription->reader;
    uint32_t i = 0;
    while (i < reader->count) {
        struct tpr_source *source = reader->source[i];
        struct towpath_followed_ *followed = (struct towpath_followed_ *)source->tag;
        if (source->state <= TPR_SOURCE_FINISHED) {
            i++;
            continue;
        }
        if (source->state == TPR_SOURCE_VIOLATED)
            towpath_fail_(&subscription->trouble, TOWPATH_E_CORRUPT_RING, "", "publisher %llu of %s is not followed any more: %s",
                          (unsigned long long)source->source, followed->channel, source->violation);
        if (source->state == TPR_SOURCE_DETACHED)
            towpath_overtaken_(subscription, followed);
        towpath_unfollow_(subscription, followed);
    }
}

/* Copy a message out of its ring. 0, or TPR_E_SYSTEM. */
static inline int towpath_copy_(struct towpath_subscription *subscription, const void *payload, size_t payload_bytes,
                                const void *headers, size_t headers_bytes) {
    size_t needed = payload_bytes + 1 + headers_bytes;
    if (needed > subscription->copy_room) {
        void *grown = realloc(subscription->copy, needed * 2);
        if (!grown)
            return TPR_E_SYSTEM;
        subscription->copy = (uint8_t *)grown;
        subscription->copy_room = needed * 2;
    }
    if (payload_bytes)
        memcpy(subscription->copy, payload, payload_bytes);
    subscription->copy[payload_bytes] = 0;
    memcpy(subscription->copy + payload_bytes + 1, headers, headers_bytes);
    return 0;
}

/* What there is to say of a message that was consumed, but for its payload. */
static inline void towpath_message_of_(const struct towpath_subscription *subscription, struct towpath_message *message,
                                       const struct tpr_view *view) {
    message->payload_bytes = view->payload_bytes;
    message->headers.data = subscription->copy + 1; /* behind a payload of 0 bytes */
    message->headers.count = view->headers_bytes;
    message->channel = ((struct towpath_followed_ *)view->from->tag)->channel;
    message->source = view->from->source;
    message->seq = view->seq;
    message->time_ns = view->time_ns;
    message->missed = view->missed;
}

/* Take the next message that is there. 1; 0: there is none; a code. */
static inline int towpath_take_(struct towpath_subscription *subscription, struct towpath_message *message) {
    struct tpr_reader *reader = &subscription->reader;
    struct tpr_view view;
    int code = tpr_reader_begin(reader);
    if (code != TPR_OK)
        return towpath_fail_ring_(&subscription->end.client->error, code, "this subscription");
    memset(&view, 0, sizeof view);
    while (tpr_reader_peek(reader, &view)) {
        if (towpath_copy_(subscription, view.payload, view.payload_bytes, view.headers, view.headers_bytes) < 0) {
            tpr_reader_end(reader);
            return towpath_fail_system_(&subscription->end.client->error, "a message");
        }
        if (!tpr_reader_consume(reader, &view))
            continue; /* overwritten while it was copied */
        towpath_message_of_(subscription, message, &view);
        message->payload = subscription->copy;
        message->headers.data = subscription->copy + view.payload_bytes + 1;
        tpr_reader_end(reader);
        return 1;
    }
    return 0;
}

/* Spin for a message, as long as that has paid lately. */
static inline void towpath_spin_for_message_(struct towpath_subscription *subscription, uint64_t deadline_ns) {
    struct tpr_reader *reader = &subscription->reader;
    struct tpr_spinning_ spinning;
    if (!reader->spin.budget_ns || tpr_reader_wait_begin(reader) != TPR_OK)
        return;
    tpr_spin_begin_(&reader->spin, &spinning, tpr_monotonic_ns(), deadline_ns);
    while (tpr_spin_goes_on_(&spinning)) {
        if (tpr_reader_wait_is_over_(reader)) {
            tpr_spin_answered_(&reader->spin, &spinning);
            return;
        }
    }
    tpr_spin_failed_(&reader->spin);
}

/* Whether the subscription has ended and everything before that was handed out. */
static inline int towpath_is_over_(const struct towpath_subscription *subscription) {
    return subscription->end.ended.code && subscription->reader.count == 0;
}

/* Nothing is there: handle what the daemon says, and ask for the doorbell. 1: look again; 0: asleep; a code. */
static inline int towpath_rest_(struct towpath_subscription *subscription) {
    struct towpath *client = subscription->end.client;
    towpath_wait_(client, 0);
    towpath_tend_(subscription);
    if (subscription->trouble.code) {
        client->error = subscription->trouble;
        subscription->trouble.code = 0;
        return client->error.code;
    }
    if (towpath_is_over_(subscription)) {
        client->error = subscription->end.ended;
        return client->error.code;
    }
    return tpr_reader_arm(&subscription->reader);
}

/* Looks for a message, and takes it: towpath_take_(), or what holds it besides. */
typedef int (*towpath_take_function_)(struct towpath_subscription *, struct towpath_message *, struct towpath_hold *);

static inline int towpath_take_copied_(struct towpath_subscription *subscription, struct towpath_message *message,
                                       struct towpath_hold *hold) {
    (void)hold;
    return towpath_take_(subscription, message);
}

/* The next message, before the deadline. 1; 0: the time is over; a code. */
static inline int towpath_receive_until_(struct towpath_subscription *subscription, struct towpath_message *message,
                                         struct towpath_hold *hold, towpath_take_function_ take, uint64_t deadline_ns) {
    struct towpath *client = subscription->end.client;
    int is_spun = deadline_ns == 0;
    for (;;) {
        int code = take(subscription, message, hold);
        if (code == 1 && ++subscription->taken >= TOWPATH_LOOK_EVERY_MESSAGES) {
            subscription->taken = 0; /* while messages come all the time, so do publishers */
            towpath_wait_(client, 0);
        }
        if (code != 0)
            return code;
        if (!is_spun) {
            towpath_spin_for_message_(subscription, deadline_ns);
            is_spun = 1;
            continue;
        }
        code = towpath_rest_(subscription);
        if (code < 0)
            return code;
        if (code == 1)
            continue;
        uint64_t began_ns = tpr_monotonic_ns();
        if (began_ns >= deadline_ns)
            return 0;
        code = towpath_wait_(client, deadline_ns);
        tpr_spin_slept_(&subscription->reader.spin, tpr_monotonic_ns() - began_ns);
        if (code == TOWPATH_E_CANCELLED)
            return towpath_fail_(&client->error, code, "", "a signal handler ran while a message was waited for");
    }
}

#endif
