/* SPDX-License-Identifier: Apache-2.0
 *
 * Towpath for C programs: publish and subscribe through shared memory. C11 (and C++11 or later), header-only, nothing
 * beyond libc, gcc and clang, 64-bit Linux. Include this file before any system header; link with -pthread.
 *
 *     struct towpath *client = towpath_connect(NULL, "sensor", &error);      NULL: `error` says why
 *     towpath_declare(client, "plant.temp", NULL);                           where nobody has yet
 *
 *     struct towpath_publisher *publisher = towpath_publisher(client, "plant.temp");
 *     towpath_publish(publisher, "21.5", 4, NULL, -1);                       its seq; less than 0: an error
 *
 *     struct towpath_subscription *subscription = towpath_subscribe(client, "plant.>");
 *     while (towpath_receive(subscription, &message, -1) == 1)
 *         printf("%s: %s\n", message.channel, (const char *)message.payload);
 *
 *     towpath_close(client);                                                 with all that came from it
 *
 * Functions that answer with a number answer less than 0 for an error, which is its TOWPATH_E code; those that answer
 * with a pointer answer NULL. towpath_last_error() has the words. Timeouts are milliseconds; 0 does not wait, -1 waits
 * for ever. A signal whose handler returns ends a publish's or a receive's wait with TOWPATH_E_CANCELLED; call again.
 *
 * MESSAGES. One publisher is one source: its messages keep their order, and (source, seq) is unique for ever. What was
 * published is in shared memory when the call returns; a subscriber that was there before gets it, whatever becomes of
 * the publisher. On a channel in total order (`order = "total"`) and on durable topics the same calls work, and subscribers
 * see what the core has ordered, or has on disk; towpath_wait_drained() then waits for the disk. Only the live part: what
 * was stored before the subscription is not replayed, and a subscriber that is lapped is told how many it missed. A queue
 * can be published to (one round trip each), and not consumed from.
 *
 * LARGE PAYLOADS. towpath_loan() gives a buffer to fill in place, towpath_publish_loan() publishes it, and towpath_receive_held()
 * lets a subscriber look at it there until towpath_release(): nothing is copied.
 *
 * EVENT LOOPS. towpath_fd() is one descriptor, the same for the client's whole life: when it is readable, call
 * towpath_receive() with timeout 0 until it answers 0, for each subscription (or towpath_process() without any). Only a
 * subscription whose last towpath_receive() answered 0 rings it.
 *
 * THREADS AND FORKS. No thread is made; a client, and all that came from it, belongs to one thread at a time. In a forked
 * child its calls answer TOWPATH_E_CONNECTION_LOST; the child may towpath_close() it, which only frees memory, and connects
 * for itself.
 *
 * RECONNECTION. When the daemon goes away, direct traffic goes on in shared memory, and the client connects again by
 * itself, taking up its publishers and subscriptions, inside whatever call it is given: publish, receive, process. Others
 * wait 3 seconds for it after the daemon's return; a program that calls nothing for longer (not even towpath_process()
 * when its descriptor is readable) is taken for dead by then, and what it publishes after that reaches subscribers anew.
 * Calls that need the daemon wait for it up to 10 seconds, then answer TOWPATH_E_UNAVAILABLE.
 *
 * LIMITS. A message, headers included: a quarter of the channel's ring_bytes less 32 bytes; on a queue 1 MiB. 255 publishers
 * at a time for one subscription, 4096 for a pattern.
 *
 * Not here: consuming from queues, state, services, transactions, bindings, replay of what is stored (other languages have
 * them). Reading order: towpath_error.h, _wire.h, _headers.h, _door.h, _session.h, _connection.h,
 * _calls.h, _publisher.h, _subscription.h, _loan.h. The ring beneath: towpath_ring.h.
 */
#ifndef TOWPATH_H
#define TOWPATH_H

#include "towpath_publisher.h"
#include "towpath_subscription.h"
#include "towpath_loan.h"

enum towpath_kind { TOWPATH_ANY_KIND, TOWPATH_TOPIC, TOWPATH_QUEUE, TOWPATH_STATE, TOWPATH_SERVICE };
enum towpath_overflow { TOWPATH_ANY_OVERFLOW, TOWPATH_BLOCK, TOWPATH_DROP, TOWPATH_REJECT };
enum towpath_order { TOWPATH_ANY_ORDER, TOWPATH_ORDER_SOURCE, TOWPATH_ORDER_TOTAL };

/* What to declare a channel with; begin with TOWPATH_OPTIONS_ANY. A field of 0 (kind, overflow, order, ring_bytes) or of -1 (the others) is left to the
 * daemon when the channel is new, and matches anything when it is there. */
struct towpath_options {
    enum towpath_kind kind;
    enum towpath_overflow overflow;
    enum towpath_order order;
    uint64_t ring_bytes;  /* of each publisher's ring: a power of two, 4 KiB to 1 GiB */
    int is_durable;       /* 0 or 1 */
    int64_t history;      /* messages that a new subscriber first gets of each publisher, 0 to 65536 */
    int64_t stall_ms_max; /* how long a publisher waits for one subscriber that does not move; 0: for ever */
};

#define TOWPATH_OPTIONS_ANY {TOWPATH_ANY_KIND, TOWPATH_ANY_OVERFLOW, TOWPATH_ANY_ORDER, 0, -1, -1, -1}

/* Why the last call that failed did. The client's; overwritten by the next one. */
static inline const struct towpath_error *towpath_last_error(const struct towpath *client) {
    return &client->error;
}

/* The session's number, as `towpath status` has it; 0 while there is no connection. */
static inline uint64_t towpath_session(const struct towpath *client) {
    return client->connection == TOWPATH_READY_ ? client->session : 0;
}

/* Let go of a publisher. What it published stays for who subscribed before; on a durable topic wait first
 * (towpath_wait_drained()) for whoever wants to know that it is on disk. NULL is fine. */
static inline void towpath_publisher_close(struct towpath_publisher *publisher) {
    if (!publisher)
        return;
    struct towpath *client = publisher->end.client;
    if (!publisher->is_queue) {
        tpr_writer_close(&publisher->writer);
        if (client->forks == tpr_fork_count_())
            towpath_tell_(client, TPW_DETACH_SOURCE, publisher->end.id, 0);
    }
    towpath_publisher_free_(publisher);
}

/* Let go of a subscription, and of the message that it handed out last. NULL is fine. */
static inline void towpath_unsubscribe(struct towpath_subscription *subscription) {
    if (!subscription)
        return;
    struct towpath *client = subscription->end.client;
    tpr_reader_close(&subscription->reader);
    if (client->forks == tpr_fork_count_())
        towpath_tell_(client, TPW_DETACH_READER, subscription->end.id, 0);
    towpath_subscription_free_(subscription);
}

/* Close a client with its publishers and subscriptions, whose handles are void after it. NULL is fine. */
static inline void towpath_close(struct towpath *client) {
    if (!client)
        return;
    while (client->publishers)
        towpath_publisher_close(client->publishers);
    while (client->subscriptions)
        towpath_unsubscribe(client->subscriptions);
    towpath_close_fd_(&client->table_fd);
    towpath_door_close_(&client->door);
    tpw_out_free(&client->body);
    free(client->path);
    free(client);
}

/* Connect to the daemon of this host.
 *
 * `path`: of its socket, or unix:/path; NULL searches $TOWPATH_SOCKET, $XDG_RUNTIME_DIR/towpath/, /run/towpath/ and
 * /tmp/towpath-UID/. `name`: what `towpath status` calls this session, at most 63 bytes of UTF-8. `error`: says why there
 * is none; may be NULL.
 *
 * Returns a client for towpath_close(); or NULL: TOWPATH_E_UNAVAILABLE, _INVALID_ARGUMENT, _VERSION_MISMATCH,
 * _LIMIT_EXCEEDED. */
static inline struct towpath *towpath_connect(const char *path, const char *name, struct towpath_error *error) {
    struct towpath_error ignored;
    struct towpath *client = (struct towpath *)calloc(1, sizeof *client);
    error = error ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (!client) {
        towpath_fail_system_(error, "a client");
        return NULL;
    }
    client->table_fd = -1;
    client->next_call = 1;
    client->reconnect_at_ns = client->grace_at_ns = TPR_FOREVER;
    client->pause_ns = TOWPATH_RECONNECT_FIRST_NS;
    client->forks = tpr_fork_count_();
    snprintf(client->name, sizeof client->name, "%s", name && *name ? name : program_invocation_short_name);
    int code = towpath_door_open_(&client->door);
    if (code < 0)
        towpath_fail_system_(error, "a client's descriptors");
    else
        code = towpath_door_connect_(&client->door, path, error);
    if (code == 0) {
        client->path = strdup(client->door.path);
        towpath_greet_(client);
        uint64_t deadline_ns = tpr_monotonic_ns() + TOWPATH_CALL_NS;
        while (client->path && client->connection == TOWPATH_GREETING_ && tpr_monotonic_ns() < deadline_ns)
            towpath_wait_(client, deadline_ns);
        if (client->connection == TOWPATH_READY_)
            return client;
        *error = client->answer_error;
        if (!error->code)
            towpath_fail_(error, TOWPATH_E_UNAVAILABLE, "", "the daemon at %s does not answer", client->door.path);
    }
    towpath_close(client);
    return NULL;
}

/* One descriptor to poll for reading; see "Event loops" above. The client's: never close it, nor read from it. */
static inline int towpath_fd(const struct towpath *client) {
    return client->door.poll;
}

/* Handle what the daemon says, without waiting. 0, or TOWPATH_E_CONNECTION_LOST in a forked child. */
static inline int towpath_process(struct towpath *client) {
    int code = towpath_check_(client);
    if (code == 0)
        towpath_wait_(client, 0);
    return code;
}

/* An option that may be 0 is written even then. */
static inline void towpath_put_option_(struct tpw_out *out, uint32_t field, int64_t value) {
    if (value < 0)
        return;
    tpw_put_varint(out, (uint64_t)field << 3);
    tpw_put_varint(out, (uint64_t)value);
}

/* Declare a channel. Declaring it again is fine when every option that is stated is as it is. `options`: NULL for any.
 * Returns 0; or TOWPATH_E_INVALID_NAME, _INVALID_ARGUMENT, _CHANNEL_CONFLICT, _PERMISSION_DENIED, _QUOTA_EXCEEDED,
 * _UNAVAILABLE, _CONNECTION_LOST (perhaps it was declared). */
static inline int towpath_declare(struct towpath *client, const char *channel, const struct towpath_options *options) {
    uint64_t deadline_ns = tpr_monotonic_ns() + TOWPATH_CALL_NS;
    struct tpw_out stated;
    int code = towpath_ready_(client, deadline_ns);
    if (code < 0)
        return code;
    memset(&stated, 0, sizeof stated);
    if (options) {
        tpw_put_number(&stated, 1, (uint64_t)options->kind);
        towpath_put_option_(&stated, 2, options->is_durable);
        tpw_put_number(&stated, 3, (uint64_t)options->overflow);
        tpw_put_number(&stated, 4, options->ring_bytes);
        tpw_put_number(&stated, 5, (uint64_t)options->order);
        towpath_put_option_(&stated, 6, options->history);
        towpath_put_option_(&stated, 7, options->stall_ms_max);
    }
    tpw_out_clear(&client->body);
    tpw_put_text(&client->body, 1, channel);
    tpw_put_bytes(&client->body, 2, stated.bytes, stated.count);
    client->body.has_failed |= stated.has_failed;
    tpw_out_free(&stated);
    return towpath_ask_(client, TPW_DECLARE, TPW_DECLARED, deadline_ns);
}

/* Does `channel` fit where names are kept? Whether it is a name at all, the core says. */
static inline int towpath_check_channel_(struct towpath *client, const char *channel) {
    if (strlen(channel) <= TOWPATH_CHANNEL_BYTES_MAX)
        return 0;
    return towpath_fail_(&client->error, TOWPATH_E_INVALID_NAME, "", "a channel's name has at most %u characters",
                         TOWPATH_CHANNEL_BYTES_MAX);
}

/* Become a publisher of a channel. Returns it, for towpath_publisher_close() or until the client is closed; or NULL:
 * TOWPATH_E_CHANNEL_NOT_FOUND, _INVALID_NAME, _PERMISSION_DENIED, _QUOTA_EXCEEDED, _LIMIT_EXCEEDED, _UNAVAILABLE. */
static inline struct towpath_publisher *towpath_publisher(struct towpath *client, const char *channel) {
    uint64_t deadline_ns = tpr_monotonic_ns() + TOWPATH_CALL_NS;
    struct towpath_publisher *publisher = NULL;
    if (towpath_check_(client) < 0 || towpath_check_channel_(client, channel) < 0)
        return NULL;
    do /* once more when the connection breaks meanwhile: what was half attached went with it */
        publisher = towpath_publisher_try_(client, channel, deadline_ns);
    while (!publisher && client->error.code == TOWPATH_E_CONNECTION_LOST && tpr_monotonic_ns() < deadline_ns);
    return publisher;
}

/* Publish `count` messages at once, all with the same headers (NULL: none); with one wake-up for those who sleep.
 *
 * Returns the last one's seq; or a code, and `*published` (may be NULL) is how many went out before it:
 * TOWPATH_E_MESSAGE_TOO_LARGE, _INVALID_ARGUMENT (headers), _TIMEOUT (the ring stayed full), _STORE_FULL,
 * _CHANNEL_UNDECLARED, _CANCELLED, _CONNECTION_LOST (a forked child), or what the core ended the publisher with. */
static inline int64_t towpath_publish_many(struct towpath_publisher *publisher, const struct towpath_bytes *payloads,
                                           size_t count, const struct towpath_headers *headers, int timeout_ms,
                                           size_t *published) {
    struct towpath_bytes raw = {NULL, 0};
    uint64_t deadline_ns = towpath_deadline_(timeout_ms);
    size_t done = 0;
    int code = towpath_check_headers_(publisher->end.client, headers);
    if (code == 0)
        code = towpath_check_(publisher->end.client);
    if (headers) {
        raw.data = headers->out.bytes;
        raw.count = headers->out.count;
    }
    while (code == 0 && done < count) {
        code = publisher->is_queue ? towpath_enqueue_(publisher, payloads[done], raw, deadline_ns)
                                   : towpath_put_(publisher, payloads[done], raw, deadline_ns);
        done += code == 0;
    }
    if (!publisher->is_queue && towpath_check_(publisher->end.client) == 0)
        towpath_after_batch_(publisher);
    if (published)
        *published = done;
    return code < 0 ? code : (int64_t)publisher->writer.last_seq;
}

/* The same for one message. */
static inline int64_t towpath_publish(struct towpath_publisher *publisher, const void *payload, size_t payload_bytes,
                                      const struct towpath_headers *headers, int timeout_ms) {
    struct towpath_bytes one = {payload, payload_bytes};
    return towpath_publish_many(publisher, &one, 1, headers, timeout_ms, NULL);
}

/* Have a buffer of `bytes` to fill where subscribers will look at it: then publishing costs nothing by its size. 256 MiB of a
 * publisher can be out, or looked at, at a time; on durable channels and in total order one loan is no larger than a message. It is
 * the caller's until towpath_publish_loan() or towpath_return_loan(); what it holds at first is not defined.
 *
 * Returns 0; or TOWPATH_E_MESSAGE_TOO_LARGE, _TIMEOUT (subscribers do not read, or do not release), _LIMIT_EXCEEDED (all is
 * out, or, with overflow = drop, held), _CHANNEL_UNDECLARED, _CANCELLED, _CONNECTION_LOST (a forked child). */
static inline int towpath_loan(struct towpath_publisher *publisher, size_t bytes, struct towpath_loan *loan,
                               int timeout_ms) {
    struct towpath *client = publisher->end.client;
    int code = towpath_check_(client);
    memset(loan, 0, sizeof *loan);
    if (code < 0)
        return code;
    if (bytes > towpath_loan_bytes_max_(publisher))
        return towpath_fail_(&client->error, TOWPATH_E_MESSAGE_TOO_LARGE, "", "a loan of %zu bytes; at most %llu are allowed",
                             bytes, (unsigned long long)towpath_loan_bytes_max_(publisher));
    if (!publisher->is_queue)
        return towpath_loan_until_(publisher, bytes, loan, towpath_deadline_(timeout_ms));
    loan->data = malloc(bytes + (bytes == 0));
    loan->bytes = bytes;
    return loan->data ? 0 : towpath_fail_system_(&client->error, "a loan");
}

/* Give a loan back unpublished; nobody sees what was written to it. More than once is fine. */
static inline void towpath_return_loan(struct towpath_publisher *publisher, struct towpath_loan *loan) {
    if (loan->data && publisher->is_queue)
        free(loan->data);
    else if (loan->data)
        tpr_writer_return_loan(&publisher->writer, &loan->own);
    loan->data = NULL;
}

/* Publish what was loaned, the first `loan->bytes` of it: it is the subscribers' then, and not to be touched any more.
 * Returns and waits as towpath_publish(); on an error the loan stays the caller's. */
static inline int64_t towpath_publish_loan(struct towpath_publisher *publisher, struct towpath_loan *loan,
                                           const struct towpath_headers *headers, int timeout_ms) {
    struct towpath *client = publisher->end.client;
    struct towpath_bytes raw = {NULL, 0}, payload = {(const uint8_t *)loan->data, loan->bytes};
    int code = towpath_check_headers_(client, headers);
    if (code == 0)
        code = towpath_check_(client);
    if (code == 0 && !loan->data)
        code = towpath_fail_loan_(publisher, TPR_E_LOAN);
    if (code < 0)
        return code;
    if (headers) {
        raw.data = headers->out.bytes;
        raw.count = headers->out.count;
    }
    if (publisher->is_queue) {
        code = towpath_enqueue_(publisher, payload, raw, towpath_deadline_(timeout_ms));
        if (code == 0)
            free(loan->data);
    } else if (publisher->is_taken_in && loan->bytes + raw.count > tpr_message_bytes_max(publisher->writer.capacity)) {
        code = towpath_fail_(&client->error, TOWPATH_E_MESSAGE_TOO_LARGE, "", "a loan of %zu bytes, and headers of %zu",
                             loan->bytes, raw.count);
    } else {
        code = towpath_put_loan_(publisher, loan, raw, towpath_deadline_(timeout_ms));
        towpath_after_batch_(publisher);
    }
    if (code == 0)
        loan->data = NULL;
    return code < 0 ? code : (int64_t)publisher->writer.last_seq;
}

/* Wait until every subscriber of now has read everything; on a channel in total order, until the core has taken it; on a
 * durable topic, until it is on disk; on a queue it is there already. Returns 0; or TOWPATH_E_TIMEOUT, _STORE_FULL, _CANCELLED, _CHANNEL_UNDECLARED, _CONNECTION_LOST. */
static inline int towpath_wait_drained(struct towpath_publisher *publisher, int timeout_ms) {
    struct towpath *client = publisher->end.client;
    uint64_t deadline_ns = towpath_deadline_(timeout_ms);
    for (;;) {
        int code = towpath_check_(client);
        if (code == 0 && publisher->is_queue)
            return 0;
        if (code == 0 && publisher->end.ended.code) {
            client->error = publisher->end.ended;
            code = client->error.code;
        }
        if (code == 0 && !tpr_writer_is_current_(&publisher->writer))
            code = towpath_fetch_readers_(publisher, deadline_ns);
        if (code < 0)
            return code;
        int has_reader = !publisher->is_durable || publisher->writer.peer_count; /* without one the core is away */
        if (has_reader && tpr_writer_is_drained(&publisher->writer))
            return 0;
        if (publisher->held.code)
            return towpath_no_room_(publisher, TPR_ALL_READ);
        uint64_t soon_ns = tpr_monotonic_ns() + TOWPATH_LOOK_MS * UINT64_C(1000000);
        if (has_reader)
            code = towpath_make_way_(publisher, TPR_ALL_READ, deadline_ns, 0);
        else if (tpr_monotonic_ns() >= deadline_ns)
            code = towpath_no_room_(publisher, TPR_ALL_READ);
        else
            towpath_wait_(client, soon_ns < deadline_ns ? soon_ns : deadline_ns);
        if (code < 0)
            return code;
    }
}

/* Subscribe to a channel, or to a pattern (`plant.*.temp`, `plant.>`), which follows channels declared later too. Nothing
 * that is published after this returned is missed. Returns the subscription, for towpath_unsubscribe() or until the client
 * is closed; or NULL, as towpath_publisher(). */
static inline struct towpath_subscription *towpath_subscribe(struct towpath *client, const char *channel) {
    uint64_t deadline_ns = tpr_monotonic_ns() + TOWPATH_CALL_NS;
    struct towpath_subscription *subscription = NULL;
    if (towpath_check_(client) < 0 || towpath_check_channel_(client, channel) < 0)
        return NULL;
    do
        subscription = towpath_subscribe_try_(client, channel, deadline_ns);
    while (!subscription && client->error.code == TOWPATH_E_CONNECTION_LOST && tpr_monotonic_ns() < deadline_ns);
    return subscription;
}

/* Receive the next message.
 *
 * Returns 1: `message` is filled in, good until the next receive; 0: there was none in time; or a code:
 * TOWPATH_E_SLOW_CONSUMER, _CORRUPT_RING, _LIMIT_EXCEEDED (one publisher is not followed any more, said once; the
 * subscription goes on with the others), _CANCELLED, _CHANNEL_UNDECLARED and others that end the subscription,
 * _CONNECTION_LOST (a forked child). */
static inline int towpath_receive(struct towpath_subscription *subscription, struct towpath_message *message,
                                  int timeout_ms) {
    int code = towpath_check_(subscription->end.client);
    memset(message, 0, sizeof *message);
    if (code < 0)
        return code;
    return towpath_receive_until_(subscription, message, NULL, towpath_take_copied_,
                                  timeout_ms == 0 ? 0 : towpath_deadline_(timeout_ms));
}

/* The same, but `message->payload` stays where it is until towpath_release(hold), whatever is received, closed, or dies
 * meanwhile: of a loaned message it is the publisher's own memory, read-only, of others a copy. (No 0 follows it; headers
 * and channel are good until the next receive.) Hold few, and not for ever: a publisher has so much to loan and no more.
 * `hold` is set up only when the answer is 1. */
static inline int towpath_receive_held(struct towpath_subscription *subscription, struct towpath_message *message,
                                       struct towpath_hold *hold, int timeout_ms) {
    int code = towpath_check_(subscription->end.client);
    memset(message, 0, sizeof *message);
    memset(hold, 0, sizeof *hold);
    if (code < 0)
        return code;
    return towpath_receive_until_(subscription, message, hold, towpath_take_held_,
                                  timeout_ms == 0 ? 0 : towpath_deadline_(timeout_ms));
}

/* Look at it no more. More than once is fine, also after the subscription and the client are closed. */
static inline void towpath_release(struct towpath_hold *hold) {
    if (hold->held)
        tpr_hold_release(hold->held);
    free(hold->held);
    free(hold->copy);
    hold->held = NULL;
    hold->copy = NULL;
}

/* How many messages this subscription has lost, all in all (overflow = drop). */
static inline uint64_t towpath_lost(const struct towpath_subscription *subscription) {
    return subscription->reader.lost;
}

#endif
