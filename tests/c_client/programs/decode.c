/* SPDX-License-Identifier: Apache-2.0
 *
 * Decodes frames from standard input, each behind a u32 length, and prints a line for each: the fields that were set, or
 * `malformed`. Each is decoded out of memory of exactly its size, so that a sanitizer sees a byte too far. */
#include "towpath_headers.h"

#include <stdio.h>

static void number(const char *name, uint64_t value) {
    if (value)
        printf(" %s=%llu", name, (unsigned long long)value);
}

static void span(const char *name, struct towpath_bytes bytes) {
    if (!bytes.count)
        return;
    printf(" %s=", name);
    for (size_t i = 0; i < bytes.count; i++)
        printf("%02x", ((const uint8_t *)bytes.data)[i]);
}

static void show(const struct tpw_frame *frame) {
    printf("%u id=%llu", frame->body, (unsigned long long)frame->id);
    number("descriptors", frame->descriptors);
    number("error_code", frame->error_code);
    number("is_retryable", frame->is_retryable);
    span("error_message", frame->error_message);
    span("error_hint", frame->error_hint);
    number("source", frame->source);
    number("reader", frame->reader);
    number("session", frame->session);
    number("first_id", frame->first_id);
    number("generation", frame->generation);
    number("first_seq", frame->first_seq);
    number("ring_bytes", frame->ring_bytes);
    number("tail", frame->tail == TPW_NO_TAIL ? 0 : frame->tail);
    number("version", frame->version);
    number("id_count", frame->id_count);
    number("slot", frame->slot);
    number("generation_index", frame->generation_index);
    number("from_start", frame->from_start);
    number("from_history", frame->from_history);
    number("is_parted", frame->is_parted);
    number("return_ms", frame->return_ms);
    number("kind", frame->kind);
    number("is_durable", frame->is_durable);
    number("overflow", frame->overflow);
    number("order", frame->order);
    number("history", frame->history);
    number("stall_ms_max", frame->stall_ms_max);
    span("channel", frame->channel);
    span("token", frame->token);
    putchar('\n');
}

int main(void) {
    uint32_t length;
    while (fread(&length, 1, sizeof length, stdin) == sizeof length) {
        struct tpw_frame frame;
        struct towpath_bytes value;
        uint8_t *bytes = (uint8_t *)malloc(length + (length == 0));
        if (!bytes || fread(bytes, 1, length, stdin) != length)
            return 1;
        if (tpw_frame_decode(bytes, length, &frame))
            show(&frame);
        else
            puts("malformed");
        struct towpath_bytes raw = {bytes, length}; /* the same bytes as headers: nothing to see, but to survive */
        (void)(towpath_headers_get(raw, TOWPATH_KEY, &value) + towpath_headers_get_user(raw, "x", &value));
        (void)towpath_headers_get_priority(raw);
        free(bytes);
    }
    return 0;
}
