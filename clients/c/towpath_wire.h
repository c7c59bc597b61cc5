/* SPDX-License-Identifier: Apache-2.0
 *
 * The door's wire format, as far as a C client needs it: protobuf's encoding of `Frame` (protos/towpath/v1/frame.proto)
 * by hand, without protobuf.
 *
 * Writing: a growing buffer to which fields are appended. A field of the value 0 or of no bytes is left out, as proto3
 * has it. Out of memory is remembered in the buffer (`has_failed`), so that only the end needs to be asked.
 *
 * Reading: tpw_frame_decode() turns a frame into one flat struct, guided by a table that says which field of which
 * message goes where; all else is passed over. What it reads comes from another process: every length is checked against
 * what is there, nesting goes only as deep as the table, and spans point into the frame that was given.
 *
 * Groups, which proto3 does not have, count as malformed. That strings are UTF-8 is not checked: they are for people.
 *
 * Not here: sockets, the u32 length before a frame, descriptors (towpath_door.h); headers (towpath_headers.h).
 * Sources: https://protobuf.dev/programming-guides/encoding/; tests/c_client/test_wire.py compares it with protobuf.
 */
#ifndef TOWPATH_WIRE_H
#define TOWPATH_WIRE_H

#include "towpath_ring.h"

#include <stdlib.h>
#include <string.h>

/* Bytes somewhere; not ended by a 0. */
struct towpath_bytes {
    const void *data;
    size_t count;
};

/* ---- writing ---- */

struct tpw_out {
    uint8_t *bytes;
    size_t count, room;
    int has_failed; /* out of memory: what is in it is not whole */
};

static inline void tpw_out_clear(struct tpw_out *out) {
    out->count = 0;
    out->has_failed = 0;
}

static inline void tpw_out_free(struct tpw_out *out) {
    free(out->bytes);
    memset(out, 0, sizeof *out);
}

static inline void tpw_put(struct tpw_out *out, const void *data, size_t count) {
    if (out->count + count > out->room) {
        size_t room = (out->count + count) * 2 + 64;
        void *grown = realloc(out->bytes, room);
        if (!grown) {
            out->has_failed = 1;
            return;
        }
        out->bytes = (uint8_t *)grown;
        out->room = room;
    }
    if (count)
        memcpy(out->bytes + out->count, data, count);
    out->count += count;
}

static inline void tpw_put_varint(struct tpw_out *out, uint64_t value) {
    uint8_t byte[10];
    size_t count = 0;
    do {
        byte[count++] = (uint8_t)(value | 0x80);
        value >>= 7;
    } while (value);
    byte[count - 1] &= 0x7F;
    tpw_put(out, byte, count);
}

/* A field of bytes, a string or a message, even of none. */
static inline void tpw_put_span(struct tpw_out *out, uint32_t field, const void *data, size_t count) {
    tpw_put_varint(out, (uint64_t)field << 3 | 2);
    tpw_put_varint(out, count);
    tpw_put(out, data, count);
}

static inline void tpw_put_bytes(struct tpw_out *out, uint32_t field, const void *data, size_t count) {
    if (count)
        tpw_put_span(out, field, data, count);
}

static inline void tpw_put_text(struct tpw_out *out, uint32_t field, const char *text) {
    tpw_put_bytes(out, field, text, strlen(text));
}

static inline void tpw_put_number(struct tpw_out *out, uint32_t field, uint64_t value) {
    if (!value)
        return;
    tpw_put_varint(out, (uint64_t)field << 3);
    tpw_put_varint(out, value);
}

/* A frame that carries `body` as its field `kind`, behind its u32 length. */
static inline void tpw_put_frame(struct tpw_out *out, uint64_t id, uint32_t descriptors, uint32_t kind,
                                 const struct tpw_out *body) {
    uint32_t length = 0;
    size_t start = out->count;
    tpw_put(out, &length, sizeof length);
    tpw_put_number(out, 1, id);
    tpw_put_number(out, 2, descriptors);
    tpw_put_span(out, kind, body->bytes, body->count);
    out->has_failed |= body->has_failed;
    if (out->has_failed)
        return;
    length = (uint32_t)(out->count - start - sizeof length);
    memcpy(out->bytes + start, &length, sizeof length); /* little-endian, as the ring requires */
}

/* ---- reading: fields ---- */

struct tpw_in {
    const uint8_t *at, *end;
};

struct tpw_field {
    uint32_t number, wire; /* wire: 0 varint, 1 eight bytes, 2 a span, 5 four bytes */
    uint64_t value;        /* but for spans */
    struct towpath_bytes span;
};

static inline int tpw_get_varint(struct tpw_in *in, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 70 && in->at < in->end; shift += 7) {
        uint8_t byte = *in->at++;
        if (shift == 63 && byte > 1)
            return 0;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return 1;
    }
    return 0;
}

static inline int tpw_get_fixed(struct tpw_in *in, uint64_t *value, size_t count) {
    *value = 0;
    if ((size_t)(in->end - in->at) < count)
        return 0;
    memcpy(value, in->at, count);
    in->at += count;
    return 1;
}

/* The next field: 1; none is left: 0; what is there is malformed: -1. */
static inline int tpw_next(struct tpw_in *in, struct tpw_field *field) {
    uint64_t tag;
    if (in->at == in->end)
        return 0;
    if (!tpw_get_varint(in, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
        return -1;
    field->number = (uint32_t)(tag >> 3);
    field->wire = (uint32_t)(tag & 7);
    field->value = 0;
    switch (field->wire) {
    case 0: return tpw_get_varint(in, &field->value) ? 1 : -1;
    case 1: return tpw_get_fixed(in, &field->value, 8) ? 1 : -1;
    case 5: return tpw_get_fixed(in, &field->value, 4) ? 1 : -1;
    case 2:
        if (!tpw_get_varint(in, &field->value) || field->value > (uint64_t)(in->end - in->at))
            return -1;
        field->span.data = in->at;
        field->span.count = (size_t)field->value;
        in->at += field->span.count;
        return 1;
    default: return -1;
    }
}

/* ---- reading: frames ---- */

/* Fields of Frame.body that a C client sends or understands. */
enum {
    TPW_ERROR = 4,
    TPW_HELLO = 7,
    TPW_WELCOME = 8,
    TPW_DECLARE = 20,
    TPW_DECLARED = 21,
    TPW_GET_CHANNEL = 24,
    TPW_GOT_CHANNEL = 25,
    TPW_PUBLISH = 40,
    TPW_PUBLISHED = 41,
    TPW_ALLOCATE_IDS = 60,
    TPW_ALLOCATED_IDS = 61,
    TPW_ATTACH_SOURCE = 62,
    TPW_SOURCE_ATTACHED = 63,
    TPW_DETACH_SOURCE = 64,
    TPW_ATTACH_READER = 66,
    TPW_READER_ATTACHED = 67,
    TPW_DETACH_READER = 68,
    TPW_FETCH_READERS = 70,
    TPW_FETCHED_READERS = 71,
    TPW_RELEASE_SLOT = 72,
    TPW_SOURCE_ADDED = 74,
    TPW_SOURCE_GONE = 75,
    TPW_READER_ADDED = 76,
    TPW_READER_GONE = 77,
    TPW_SUBSCRIPTION_ENDED = 78,
    TPW_PUBLICATION_ENDED = 79,
    TPW_DETACH_STALLED = 80,
    TPW_STALLED_DETACHED = 81,
    TPW_SOURCE_DETACHED = 82,
    TPW_PUBLICATION_HELD = 84,
    TPW_DOORBELL_ADDED = 85,
    /* Messages inside those. */
    TPW_IN_CHANNEL = 1000,
    TPW_IN_OPTIONS
};

#define TPW_NO_TAIL UINT64_MAX

/* What a frame said; which fields mean something depends on `body`. Spans point into the frame. */
struct tpw_frame {
    uint64_t id;
    uint32_t descriptors;
    uint32_t body; /* TPW_x, or 0: none that is known here */
    uint32_t has_error;
    uint32_t error_code, is_retryable;
    struct towpath_bytes error_message, error_hint;
    uint64_t source, reader, session, first_id, generation, first_seq, ring_bytes, tail; /* tail: or TPW_NO_TAIL */
    uint32_t version, id_count, slot, generation_index, from_start, from_history, is_parted, return_ms;
    uint32_t kind, is_durable, overflow, order, history, stall_ms_max;
    struct towpath_bytes channel, token;
};

enum { TPW_AS_U64, TPW_AS_U32, TPW_AS_BOOL, TPW_AS_SPAN, TPW_AS_MESSAGE };

/* Field `number` of message `message` goes to `offset`; AS_MESSAGE: is of the message `offset`. */
struct tpw_rule {
    uint16_t message, number, as, offset;
};

#define TPW_TO_(as, member) as, (uint16_t)offsetof(struct tpw_frame, member)
static const struct tpw_rule tpw_rules[] = {
    {TPW_ERROR, 1, TPW_TO_(TPW_AS_U32, error_code)},
    {TPW_ERROR, 2, TPW_TO_(TPW_AS_SPAN, error_message)},
    {TPW_ERROR, 3, TPW_TO_(TPW_AS_SPAN, error_hint)},
    {TPW_ERROR, 4, TPW_TO_(TPW_AS_BOOL, is_retryable)},
    {TPW_WELCOME, 1, TPW_TO_(TPW_AS_U32, version)},
    {TPW_WELCOME, 3, TPW_TO_(TPW_AS_U64, session)},
    {TPW_WELCOME, 6, TPW_TO_(TPW_AS_U64, first_id)},
    {TPW_WELCOME, 7, TPW_TO_(TPW_AS_U32, id_count)},
    {TPW_DECLARED, 1, TPW_AS_MESSAGE, TPW_IN_CHANNEL},
    {TPW_GOT_CHANNEL, 1, TPW_AS_MESSAGE, TPW_IN_CHANNEL},
    {TPW_IN_CHANNEL, 2, TPW_AS_MESSAGE, TPW_IN_OPTIONS},
    {TPW_IN_OPTIONS, 1, TPW_TO_(TPW_AS_U32, kind)},
    {TPW_IN_OPTIONS, 2, TPW_TO_(TPW_AS_BOOL, is_durable)},
    {TPW_IN_OPTIONS, 3, TPW_TO_(TPW_AS_U32, overflow)},
    {TPW_IN_OPTIONS, 4, TPW_TO_(TPW_AS_U64, ring_bytes)},
    {TPW_IN_OPTIONS, 5, TPW_TO_(TPW_AS_U32, order)},
    {TPW_IN_OPTIONS, 6, TPW_TO_(TPW_AS_U32, history)},
    {TPW_IN_OPTIONS, 7, TPW_TO_(TPW_AS_U32, stall_ms_max)},
    {TPW_PUBLISHED, 1, TPW_TO_(TPW_AS_U64, source)},
    {TPW_PUBLISHED, 2, TPW_TO_(TPW_AS_U64, first_seq)},
    {TPW_ALLOCATED_IDS, 1, TPW_TO_(TPW_AS_U64, first_id)},
    {TPW_ALLOCATED_IDS, 2, TPW_TO_(TPW_AS_U32, id_count)},
    {TPW_SOURCE_ATTACHED, 1, TPW_TO_(TPW_AS_U32, generation_index)},
    {TPW_SOURCE_ATTACHED, 2, TPW_TO_(TPW_AS_U64, generation)},
    {TPW_SOURCE_ATTACHED, 3, TPW_TO_(TPW_AS_SPAN, token)},
    {TPW_READER_ATTACHED, 1, TPW_TO_(TPW_AS_SPAN, token)},
    {TPW_FETCHED_READERS, 1, TPW_TO_(TPW_AS_U64, generation)},
    {TPW_SOURCE_ADDED, 1, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_SOURCE_ADDED, 2, TPW_TO_(TPW_AS_U64, source)},
    {TPW_SOURCE_ADDED, 3, TPW_TO_(TPW_AS_U32, slot)},
    {TPW_SOURCE_ADDED, 4, TPW_TO_(TPW_AS_BOOL, from_start)},
    {TPW_SOURCE_ADDED, 6, TPW_TO_(TPW_AS_SPAN, channel)},
    {TPW_SOURCE_ADDED, 7, TPW_TO_(TPW_AS_BOOL, from_history)},
    {TPW_SOURCE_ADDED, 11, TPW_TO_(TPW_AS_U64, tail)},
    {TPW_SOURCE_GONE, 1, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_SOURCE_GONE, 2, TPW_TO_(TPW_AS_U64, source)},
    {TPW_READER_ADDED, 1, TPW_TO_(TPW_AS_U64, source)},
    {TPW_READER_ADDED, 2, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_READER_ADDED, 3, TPW_TO_(TPW_AS_U32, slot)},
    {TPW_READER_ADDED, 4, TPW_TO_(TPW_AS_BOOL, from_start)},
    {TPW_READER_ADDED, 6, TPW_TO_(TPW_AS_BOOL, from_history)},
    {TPW_READER_GONE, 1, TPW_TO_(TPW_AS_U64, source)},
    {TPW_READER_GONE, 2, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_READER_GONE, 3, TPW_TO_(TPW_AS_BOOL, is_parted)},
    {TPW_READER_GONE, 4, TPW_TO_(TPW_AS_U32, return_ms)},
    {TPW_SUBSCRIPTION_ENDED, 1, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_SUBSCRIPTION_ENDED, 2, TPW_AS_MESSAGE, TPW_ERROR},
    {TPW_PUBLICATION_ENDED, 1, TPW_TO_(TPW_AS_U64, source)},
    {TPW_PUBLICATION_ENDED, 2, TPW_AS_MESSAGE, TPW_ERROR},
    {TPW_SOURCE_DETACHED, 1, TPW_TO_(TPW_AS_U64, reader)},
    {TPW_SOURCE_DETACHED, 2, TPW_TO_(TPW_AS_U64, source)},
    {TPW_SOURCE_DETACHED, 3, TPW_AS_MESSAGE, TPW_ERROR},
    {TPW_PUBLICATION_HELD, 1, TPW_TO_(TPW_AS_U64, source)},
    {TPW_PUBLICATION_HELD, 2, TPW_AS_MESSAGE, TPW_ERROR},
};

/* Put one field where its rule says; 0 when no rule has it, or it is of another wire type: passed over. */
static inline const struct tpw_rule *tpw_apply_(uint32_t message, const struct tpw_field *field,
                                                struct tpw_frame *frame) {
    for (size_t i = 0; i < sizeof tpw_rules / sizeof *tpw_rules; i++) {
        const struct tpw_rule *rule = &tpw_rules[i];
        uint8_t *to = (uint8_t *)frame + rule->offset;
        if (rule->message != message || rule->number != field->number)
            continue;
        uint32_t narrow = (uint32_t)field->value, truth = field->value != 0;
        if (field->wire != (rule->as >= TPW_AS_SPAN ? 2u : 0u))
            return NULL;
        switch (rule->as) {
        case TPW_AS_U64: memcpy(to, &field->value, sizeof field->value); break;
        case TPW_AS_U32: memcpy(to, &narrow, sizeof narrow); break;
        case TPW_AS_BOOL: memcpy(to, &truth, sizeof truth); break;
        case TPW_AS_SPAN: memcpy(to, &field->span, sizeof field->span); break;
        default: return rule;
        }
        return NULL;
    }
    return NULL;
}

/* Read one message of what a frame carries; it recurses into what the table names, which is three deep at most. */
static inline int tpw_message_decode_(uint32_t message, struct towpath_bytes span, struct tpw_frame *frame) {
    struct tpw_in in;
    struct tpw_field field;
    int more;
    in.at = (const uint8_t *)span.data;
    in.end = in.at + span.count;
    if (message == TPW_ERROR)
        frame->has_error = 1;
    while ((more = tpw_next(&in, &field)) == 1) {
        const struct tpw_rule *inner = tpw_apply_(message, &field, frame);
        if (inner && !tpw_message_decode_(inner->offset, field.span, frame))
            return 0;
    }
    return more == 0;
}

/* Is that a body that a C client understands? */
static inline int tpw_is_body_(uint32_t number) {
    static const uint8_t bodies[] = {
        TPW_ERROR,           TPW_WELCOME,         TPW_DECLARED,       TPW_GOT_CHANNEL,        TPW_PUBLISHED,
        TPW_ALLOCATED_IDS,   TPW_SOURCE_ATTACHED, TPW_READER_ATTACHED, TPW_FETCHED_READERS,    TPW_SOURCE_ADDED,
        TPW_SOURCE_GONE,     TPW_READER_ADDED,    TPW_READER_GONE,    TPW_SUBSCRIPTION_ENDED, TPW_PUBLICATION_ENDED,
        TPW_STALLED_DETACHED, TPW_SOURCE_DETACHED, TPW_PUBLICATION_HELD, TPW_DOORBELL_ADDED};
    for (size_t i = 0; i < sizeof bodies; i++)
        if (bodies[i] == number)
            return 1;
    return 0;
}

static inline void tpw_frame_clear_(struct tpw_frame *frame) {
    memset(frame, 0, sizeof *frame);
    frame->tail = TPW_NO_TAIL;
}

/* Read a frame (without its length). 1: `frame` says what it was; 0: it is malformed. As protobuf has it, the last of
 * several bodies counts, and what is repeated is merged. */
static inline int tpw_frame_decode(const void *data, size_t count, struct tpw_frame *frame) {
    struct tpw_in in;
    struct tpw_field field;
    int more;
    in.at = (const uint8_t *)data;
    in.end = in.at + count;
    tpw_frame_clear_(frame);
    while ((more = tpw_next(&in, &field)) == 1) {
        if (field.number == 1 && field.wire == 0)
            frame->id = field.value;
        else if (field.number == 2 && field.wire == 0)
            frame->descriptors = (uint32_t)field.value;
        else if (field.wire == 2 && tpw_is_body_(field.number)) {
            if (frame->body != field.number) {
                uint64_t id = frame->id;
                uint32_t descriptors = frame->descriptors;
                tpw_frame_clear_(frame);
                frame->id = id;
                frame->descriptors = descriptors;
                frame->body = field.number;
            }
            if (!tpw_message_decode_(field.number, field.span, frame))
                return 0;
        }
    }
    return more == 0;
}

#endif
