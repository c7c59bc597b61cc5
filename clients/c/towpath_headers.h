/* SPDX-License-Identifier: Apache-2.0
 *
 * What travels beside a payload: protos/towpath/v1/message.proto `Headers`, made and read by hand.
 *
 *     struct towpath_headers headers = TOWPATH_HEADERS_NONE;
 *     towpath_headers_text(&headers, TOWPATH_CONTENT_TYPE, "application/json");
 *     towpath_headers_user(&headers, "machine", "7");
 *     towpath_publish(publisher, "{}", 2, &headers, -1);
 *     towpath_headers_free(&headers);
 *
 * Setters append; what is wrong (a priority of 40) is remembered, and publishing with such headers is refused with
 * TOWPATH_E_INVALID_ARGUMENT. The same headers may go with any number of messages.
 */
#ifndef TOWPATH_HEADERS_H
#define TOWPATH_HEADERS_H

#include "towpath_wire.h"

enum towpath_header {
    TOWPATH_CONTENT_TYPE = 1, /* text */
    TOWPATH_KEY = 2,          /* bytes */
    TOWPATH_PRIORITY = 3,     /* a number, 0 to 31 */
    TOWPATH_REPLY_TO = 4,     /* text */
    TOWPATH_ORIGIN = 5,       /* text; said by Towpath */
    TOWPATH_TRACEPARENT = 6,  /* text */
    TOWPATH_TRACESTATE = 7,   /* text */
    TOWPATH_USER = 8,         /* by towpath_headers_user() */
    TOWPATH_MESSAGE_ID = 9    /* text, at most 128 bytes */
};

#define TOWPATH_PRIORITY_MAX 31u
#define TOWPATH_MESSAGE_ID_BYTES_MAX 128u
#define TOWPATH_USER_HEADERS_MAX 64u
#define TOWPATH_USER_NAME_BYTES_MAX 128u

struct towpath_headers {
    struct tpw_out out;
    uint32_t user_count;
    const char *wrong; /* why they cannot be sent, or NULL */
};

#ifdef __cplusplus
#define TOWPATH_HEADERS_NONE {}
#else
#define TOWPATH_HEADERS_NONE {{0, 0, 0, 0}, 0, 0}
#endif

static inline void towpath_headers_free(struct towpath_headers *headers) {
    tpw_out_free(&headers->out);
    memset(headers, 0, sizeof *headers);
}

/* Set TOWPATH_CONTENT_TYPE, _REPLY_TO, _TRACEPARENT, _TRACESTATE or _MESSAGE_ID. */
static inline void towpath_headers_text(struct towpath_headers *headers, enum towpath_header which, const char *text) {
    if (which == TOWPATH_KEY || which == TOWPATH_PRIORITY || which == TOWPATH_USER || which == TOWPATH_ORIGIN)
        headers->wrong = "that header is not set by towpath_headers_text()";
    else if (which == TOWPATH_MESSAGE_ID && strlen(text) > TOWPATH_MESSAGE_ID_BYTES_MAX)
        headers->wrong = "a message id has at most 128 bytes";
    else
        tpw_put_text(&headers->out, which, text);
}

static inline void towpath_headers_key(struct towpath_headers *headers, const void *key, size_t key_bytes) {
    tpw_put_bytes(&headers->out, TOWPATH_KEY, key, key_bytes);
}

static inline void towpath_headers_priority(struct towpath_headers *headers, unsigned priority) {
    if (priority > TOWPATH_PRIORITY_MAX)
        headers->wrong = "a priority is from 0 to 31";
    else
        tpw_put_number(&headers->out, TOWPATH_PRIORITY, priority);
}

/* A header of the application's own. */
static inline void towpath_headers_user(struct towpath_headers *headers, const char *name, const char *value) {
    struct tpw_out entry;
    size_t name_bytes = strlen(name);
    if (name_bytes < 1 || name_bytes > TOWPATH_USER_NAME_BYTES_MAX) {
        headers->wrong = "a header's name has 1 to 128 bytes";
        return;
    }
    if (++headers->user_count > TOWPATH_USER_HEADERS_MAX) {
        headers->wrong = "a message has at most 64 headers of the application's own";
        return;
    }
    memset(&entry, 0, sizeof entry);
    tpw_put_text(&entry, 1, name);
    tpw_put_text(&entry, 2, value);
    headers->out.has_failed |= entry.has_failed;
    tpw_put_span(&headers->out, TOWPATH_USER, entry.bytes, entry.count);
    tpw_out_free(&entry);
}

/* ---- reading; `raw` is what a message came with ---- */

/* A header of text or bytes: 1, and `value` points into `raw`; 0: it has none. The last one counts. */
static inline int towpath_headers_get(struct towpath_bytes raw, enum towpath_header which, struct towpath_bytes *value) {
    struct tpw_in in = {(const uint8_t *)raw.data, (const uint8_t *)raw.data + raw.count};
    struct tpw_field field;
    int found = 0;
    while (tpw_next(&in, &field) == 1) {
        if (field.number == (uint32_t)which && field.wire == 2) {
            *value = field.span;
            found = 1;
        }
    }
    return found;
}

static inline unsigned towpath_headers_get_priority(struct towpath_bytes raw) {
    struct tpw_in in = {(const uint8_t *)raw.data, (const uint8_t *)raw.data + raw.count};
    struct tpw_field field;
    unsigned priority = 0;
    while (tpw_next(&in, &field) == 1)
        if (field.number == TOWPATH_PRIORITY && field.wire == 0)
            priority = (unsigned)field.value;
    return priority;
}

/* A header of the application's own, by its name. As towpath_headers_get(). */
static inline int towpath_headers_get_user(struct towpath_bytes raw, const char *name, struct towpath_bytes *value) {
    struct tpw_in in = {(const uint8_t *)raw.data, (const uint8_t *)raw.data + raw.count};
    struct tpw_field field;
    int found = 0;
    while (tpw_next(&in, &field) == 1) {
        struct towpath_bytes own_name = {"", 0}, own_value = {"", 0};
        if (field.number != TOWPATH_USER || field.wire != 2)
            continue;
        towpath_headers_get(field.span, (enum towpath_header)1, &own_name);
        towpath_headers_get(field.span, (enum towpath_header)2, &own_value);
        if (own_name.count == strlen(name) && memcmp(own_name.data, name, own_name.count) == 0) {
            *value = own_value;
            found = 1;
        }
    }
    return found;
}

#endif
