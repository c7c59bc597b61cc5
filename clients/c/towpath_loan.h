/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program's loans: payloads made where subscribers look at them, and looked at where they were made. (How the memory is
 * shared: towpath_ring_loan.h.)
 *
 * A loan of a queue's publisher, which has no ring, is memory of this process, and copied when it is published.
 */
#ifndef TOWPATH_LOAN_H
#define TOWPATH_LOAN_H

#include "towpath_publisher.h"
#include "towpath_subscription.h"

/* A buffer to fill, until it is published or given back. */
struct towpath_loan {
    void *data;   /* aligned for any type; NULL: there is none any more */
    size_t bytes; /* may be made less before it is published */
    struct tpr_loan own;
};

/* How large a loan may be: where the core takes the messages in it has a ring of its own for them. */
static inline uint64_t towpath_loan_bytes_max_(const struct towpath_publisher *publisher) {
    if (publisher->is_queue)
        return TOWPATH_REQUEST_BYTES_MAX;
    return publisher->is_taken_in ? tpr_message_bytes_max(publisher->writer.capacity) : publisher->writer.slab_bytes;
}

/* What the ring says, as this client's error; 0 for what is none. */
static inline int towpath_fail_loan_(struct towpath_publisher *publisher, int code) {
    if (code >= 0)
        return 0;
    if (code == TPR_E_LOANS)
        return towpath_fail_(&publisher->end.client->error, TOWPATH_E_LIMIT_EXCEEDED,
                             "publish or return loans; where overflow is drop, subscribers must release messages",
                             "of %s nothing can be loaned: all of it is out", publisher->end.channel);
    if (code == TPR_E_LOAN)
        return towpath_fail_(&publisher->end.client->error, TOWPATH_E_INVALID_ARGUMENT, "",
                             "the loan was published or returned before, or is another publisher's");
    return towpath_fail_ring_(&publisher->end.client->error, code, publisher->end.channel);
}

/* Loan `bytes`, once the ring and the readers allow. 0, or a code. */
static inline int towpath_loan_until_(struct towpath_publisher *publisher, size_t bytes, struct towpath_loan *loan,
                                      uint64_t deadline_ns) {
    for (;;) {
        if (publisher->end.ended.code) {
            publisher->end.client->error = publisher->end.ended;
            return publisher->end.ended.code;
        }
        int code = tpr_writer_loan(&publisher->writer, bytes, &loan->own);
        if (code == TPR_OK) {
            loan->data = loan->own.data;
            loan->bytes = bytes;
            return 0;
        }
        if (code == TPR_FULL)
            code = towpath_make_way_(publisher, bytes, deadline_ns, 1);
        else if (code == TPR_NEEDS_READERS)
            code = towpath_fetch_readers_(publisher, deadline_ns);
        else
            code = towpath_fail_loan_(publisher, code);
        if (code < 0)
            return code;
    }
}

/* Publish what was loaned of the ring. 0, or a code. */
static inline int towpath_put_loan_(struct towpath_publisher *publisher, struct towpath_loan *loan,
                                    struct towpath_bytes headers, uint64_t deadline_ns) {
    loan->own.bytes = loan->bytes;
    for (;;) {
        if (publisher->end.ended.code) {
            publisher->end.client->error = publisher->end.ended;
            return publisher->end.ended.code;
        }
        int code = tpr_writer_put_loan(&publisher->writer, headers.data, headers.count, &loan->own);
        if (code == TPR_OK)
            return 0;
        if (code == TPR_FULL)
            code = towpath_make_way_(publisher, headers.count + TPR_PLACE_BYTES, deadline_ns, 0);
        else if (code == TPR_NEEDS_READERS)
            code = towpath_fetch_readers_(publisher, deadline_ns);
        else
            code = towpath_fail_loan_(publisher, code);
        if (code < 0)
            return code;
    }
}

/* A payload that stays where it is until towpath_release(). */
struct towpath_hold {
    struct tpr_hold *held; /* of the publisher's memory */
    void *copy;            /* or a copy of our own: the message was not loaned, or as many as may be are held */
};

/* Take the next message that is there, its payload held or copied for `hold`. 1; 0: there is none; a code. */
static inline int towpath_take_held_(struct towpath_subscription *subscription, struct towpath_message *message,
                                     struct towpath_hold *hold) {
    struct tpr_reader *reader = &subscription->reader;
    struct tpr_view view;
    struct tpr_hold *held = (struct tpr_hold *)malloc(sizeof *held);
    int code = held ? tpr_reader_begin(reader) : TPR_E_SYSTEM;
    memset(&view, 0, sizeof view);
    if (code == TPR_OK && tpr_reader_peek(reader, &view) && view.is_loan &&
        tpr_reader_hold(reader, &view, held) == TPR_OK) {
        code = towpath_copy_(subscription, NULL, 0, view.headers, view.headers_bytes);
        if (code == 0 && tpr_reader_consume(reader, &view)) {
            hold->held = held;
            towpath_message_of_(subscription, message, &view);
            message->payload = held->data;
            tpr_reader_end(reader);
            return 1;
        }
        tpr_hold_release(held);
        if (code < 0)
            tpr_reader_end(reader);
    }
    free(held);
    if (code < 0)
        return code == TPR_E_FORKED ? towpath_fail_ring_(&subscription->end.client->error, code, "this subscription")
                                    : towpath_fail_system_(&subscription->end.client->error, "a message");
    code = towpath_take_(subscription, message);
    if (code != 1)
        return code;
    hold->copy = subscription->copy; /* it was copied; that copy is the hold's now, headers and all */
    subscription->copy = NULL;
    subscription->copy_room = 0;
    return 1;
}

#endif
