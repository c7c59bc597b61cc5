/* SPDX-License-Identifier: Apache-2.0
 *
 * Parcels: runs of messages with contiguous numbers in one piece of memory; what is stored, read back, and shown.
 *
 *     0    magic u32   crc u32 (CRC-32C of all that follows)
 *     8    version u32  count u32
 *     16   content_bytes u64 (headers and payloads)
 *     24   parcel_bytes u64 (all of it)
 *     32   `count` records as in a ring (towpath_ring_layout.h), but that a record's seq is its index in the parcel,
 *          from 0, and none is padding
 *
 * The seq of a parcel's first message is not in it: it is known only when the parcel's turn has come, and whoever stores
 * or sends the parcel tells it beside. Message i has seq first_seq + i. So the core moves messages from publishers' rings
 * into a parcel, and from a parcel into its own ring, without looking into them: headers, payload, time, and who published
 * it first (origin) stay as they are.
 *
 * Life of a parcel. Taken (tpr_parcel_take) or packed (tpr_parcel_put); ended (tpr_parcel_end); stored; opened
 * (tpr_parcel_open), which is when everything in it is checked: it may come from a disk, or from another process. What has
 * been opened is walked without further checks.
 *
 * Taking and releasing. tpr_parcel_take() copies out of a reader's sources and goes on behind that at the next call, but
 * the cursors that the publishers see stay where they are until tpr_parcel_release(). Between the two the messages are
 * committed to a store. So a publisher that waits for its messages to be read waits for them to be stored; and if the
 * process dies in between, its successor finds them in the ring and in the store, and knows from the latter (each record
 * has its origin) what not to take again: tpr_reader_pass_over().
 *
 * Not here: where parcels are kept, who gets which seq.
 */
#ifndef TOWPATH_RING_PARCEL_H
#define TOWPATH_RING_PARCEL_H

#include "towpath_ring_pump.h"

#define TPR_PARCEL_MAGIC UINT32_C(0x4C504354) /* "TCPL" */
#define TPR_PARCEL_VERSION 1u
#define TPR_PARCEL_BYTES_MAX (UINT64_C(1) << 30)

struct tpr_parcel_header {
    uint32_t magic, crc, version, count;
    uint64_t content_bytes, parcel_bytes;
};
#define TPR_PARCEL_HEADER_BYTES 32u
TPR_STATIC_ASSERT(sizeof(struct tpr_parcel_header) == TPR_PARCEL_HEADER_BYTES, "parcel header");
TPR_STATIC_ASSERT(offsetof(struct tpr_parcel_header, version) == 8, "the CRC covers what comes after it");

/* A parcel being made, in `room` bytes of the caller's, 8-aligned. */
struct tpr_parcel {
    uint8_t *data;
    uint64_t room, bytes, content_bytes, headers_bytes;
    uint64_t first_time_ns, last_time_ns; /* the least and the greatest of its messages' */
    uint32_t count;
};

/* ---- CRC-32C: Castagnoli's polynomial, reflected; RFC 3720 B.4 ---- */

static inline uint32_t tpr_crc_plain_(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    static uint32_t table[8][256]; /* filled by whoever comes first, with the same values as by anybody else */
    if (!__atomic_load_n(&table[7][255], __ATOMIC_ACQUIRE)) {
        uint32_t made[8][256];
        for (uint32_t i = 0; i < 256; i++) {
            made[0][i] = i;
            for (int bit = 0; bit < 8; bit++)
                made[0][i] = made[0][i] >> 1 ^ (made[0][i] & 1 ? UINT32_C(0x82F63B78) : 0);
        }
        for (uint32_t i = 0; i < 256 * 7; i++)
            made[1 + i / 256][i % 256] = made[i / 256][i % 256] >> 8 ^ made[0][made[i / 256][i % 256] & 255];
        for (uint32_t i = 0; i < 256 * 8; i++)
            __atomic_store_n(&table[i / 256][i % 256], made[i / 256][i % 256], __ATOMIC_RELEASE); /* private */
    }
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= table[7 - i][word >> 8 * i & 255];
    }
    for (; bytes; data++, bytes--)
        crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static inline uint32_t tpr_crc_sse_(uint32_t crc, const uint8_t *data,
                                                                      uint64_t bytes) {
    uint64_t wide = crc, word;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; bytes; data++, bytes--)
        crc = __builtin_ia32_crc32qi(crc, *data);
    return crc;
}
#endif

static inline uint32_t tpr_crc32c(const void *data, uint64_t bytes) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~tpr_crc_sse_(UINT32_MAX, (const uint8_t *)data, bytes);
#endif
    return ~tpr_crc_plain_(UINT32_MAX, (const uint8_t *)data, bytes);
}

static inline uint32_t tpr_parcel_crc_(const uint8_t *data, uint64_t bytes) {
    return tpr_crc32c(data + 8, bytes - 8);
}

/* ---- making ---- */

/* Begin a parcel in `room` bytes at `data`: at least TPR_PARCEL_HEADER_BYTES. */
static inline void tpr_parcel_begin(struct tpr_parcel *parcel, void *data, uint64_t room) {
    memset(parcel, 0, sizeof *parcel);
    parcel->data = (uint8_t *)data;
    parcel->room = room;
    parcel->bytes = TPR_PARCEL_HEADER_BYTES;
}

/* Add a message. `origin` says when it was published, and by whom first, unless its source is 0.
 * Returns TPR_OK, or TPR_FULL when there is no room for it. */
static inline int tpr_parcel_put(struct tpr_parcel *parcel, const void *headers, uint32_t headers_bytes,
                                 const void *payload, uint32_t payload_bytes, const struct tpr_origin *origin) {
    uint64_t origin_bytes = origin->source ? TPR_ORIGIN_BYTES : 0;
    uint64_t bytes = tpr_record_bytes(headers_bytes, payload_bytes) + origin_bytes;
    if (bytes > parcel->room - parcel->bytes || parcel->count == UINT32_MAX)
        return TPR_FULL;
    struct tpr_record record = {(uint32_t)bytes, TPR_RECORD_DATA,  parcel->count, origin->time_ns,
                                headers_bytes,   payload_bytes};
    uint8_t *at = parcel->data + parcel->bytes, *end = at + bytes;
    if (origin_bytes) {
        uint64_t first[2] = {origin->source, origin->seq};
        record.flags |= TPR_RECORD_ORIGIN;
        memcpy(at + sizeof record, first, sizeof first);
    }
    memcpy(at, &record, sizeof record);
    at += sizeof record + origin_bytes;
    if (headers_bytes)
        memcpy(at, headers, headers_bytes);
    if (payload_bytes)
        memcpy(at + headers_bytes, payload, payload_bytes);
    at += (uint64_t)headers_bytes + payload_bytes;
    memset(at, 0, (size_t)(end - at));
    if (!parcel->count || origin->time_ns < parcel->first_time_ns)
        parcel->first_time_ns = origin->time_ns;
    if (origin->time_ns > parcel->last_time_ns)
        parcel->last_time_ns = origin->time_ns;
    parcel->count++;
    parcel->bytes += bytes;
    parcel->content_bytes += (uint64_t)headers_bytes + payload_bytes;
    parcel->headers_bytes += headers_bytes;
    return TPR_OK;
}

/* Nothing is added any more: write its header. */
static inline void tpr_parcel_end(const struct tpr_parcel *parcel) {
    struct tpr_parcel_header header = {TPR_PARCEL_MAGIC, 0, TPR_PARCEL_VERSION, parcel->count, parcel->content_bytes,
                                       parcel->bytes};
    memcpy(parcel->data, &header, sizeof header);
    header.crc = tpr_parcel_crc_(parcel->data, parcel->bytes);
    memcpy(parcel->data, &header, sizeof header);
}

/* ---- opening ---- */

/* The record at offset `at` of a parcel. As tpr_record_read_(): what is wrong, or NULL. */
static inline const char *tpr_parcel_read_(const uint8_t *data, uint64_t bytes, uint64_t at, struct tpr_view *view) {
    uint64_t unwrapped = UINT64_C(1) << 34; /* more than four times the largest parcel, so that no bound is ever met */
    if (bytes - at < TPR_RECORD_HEADER_BYTES)
        return "a record is cut off";
    const char *wrong = tpr_record_read_(data, unwrapped, at, bytes - at, view);
    return !wrong && view->is_loan ? "a parcel holds all of its messages itself" : wrong;
}

/* Check all of a parcel at `data` (8-aligned) whose first message has `first_seq`. Returns TPR_OK and its header;
 * TPR_E_PARCEL. */
static inline int tpr_parcel_open(const uint8_t *data, uint64_t bytes, uint64_t first_seq,
                                  struct tpr_parcel_header *header) {
    uint64_t at = TPR_PARCEL_HEADER_BYTES, content_bytes = 0;
    struct tpr_view view;
    if (bytes < sizeof *header || bytes > TPR_PARCEL_BYTES_MAX || first_seq == 0)
        return TPR_E_PARCEL;
    memcpy(header, data, sizeof *header);
    if (header->magic != TPR_PARCEL_MAGIC || header->version != TPR_PARCEL_VERSION || header->parcel_bytes != bytes ||
        header->count == 0 || first_seq > UINT64_MAX - header->count || header->crc != tpr_parcel_crc_(data, bytes))
        return TPR_E_PARCEL;
    for (uint32_t index = 0; index < header->count; index++) {
        if (at >= bytes || tpr_parcel_read_(data, bytes, at, &view) || !view.payload || view.seq != index)
            return TPR_E_PARCEL;
        content_bytes += (uint64_t)view.headers_bytes + view.payload_bytes;
        at = view.end;
    }
    return at == bytes && content_bytes == header->content_bytes ? TPR_OK : TPR_E_PARCEL;
}

/* The message at offset `at` of a parcel that was opened, and the offset after it (`view->end`); `view->seq` is its
 * index. */
static inline void tpr_parcel_view(const uint8_t *data, const struct tpr_parcel_header *header, uint64_t at,
                                   struct tpr_view *view) {
    memset(view, 0, sizeof *view);
    tpr_parcel_read_(data, header->parcel_bytes, at, view);
}

/* ---- between rings and parcels ---- */

/* Room that a take from this reader's sources may need, at most about `bytes_max` and one message. */
static inline uint64_t tpr_parcel_room(const struct tpr_reader *reader, uint64_t bytes_max) {
    uint64_t pending = tpr_reader_pending_bytes(reader), largest = 0;
    for (uint32_t i = 0; i < reader->count; i++)
        if (reader->source[i]->capacity > largest)
            largest = reader->source[i]->capacity;
    pending += pending / 2; /* a record of 32 bytes takes 48 with its origin */
    return TPR_PARCEL_HEADER_BYTES + (pending < bytes_max ? pending : bytes_max) + largest / 4 + TPR_ORIGIN_BYTES;
}

/* Take messages of one source. Returns how many, and the seq of the first. */
static inline uint32_t tpr_parcel_take_source_(struct tpr_reader *reader, struct tpr_source *source,
                                               struct tpr_parcel *parcel, uint64_t count_max, uint64_t bytes_max,
                                               uint64_t message_bytes_max, uint64_t *first) {
    uint64_t taken = source->slot->taken;
    uint32_t before = parcel->count;
    struct tpr_view view;
    while (parcel->count < count_max && parcel->bytes < bytes_max && source->state <= TPR_SOURCE_FINISHED &&
           tpr_source_peek_(reader, source, &view)) {
        struct tpr_origin origin = {source->source, view.seq, view.time_ns};
        struct tpr_parcel undo = *parcel;
        if (view.seq <= taken) {
            tpr_reader_consume(reader, &view);
            continue;
        }
        if ((uint64_t)view.headers_bytes + view.payload_bytes > message_bytes_max) {
            tpr_source_violated_(reader, source, "a message is larger than the channel allows");
            break;
        }
        if (tpr_parcel_put(parcel, view.headers, view.headers_bytes, view.payload, view.payload_bytes, &origin) !=
            TPR_OK)
            break;
        if (!tpr_reader_consume(reader, &view))
            *parcel = undo; /* overwritten while it was copied */
        else if (undo.count == before)
            *first = view.seq;
    }
    return parcel->count - before;
}

/* Copy messages out of the reader's sources, in turn, up to `count_max` of them and about `bytes_max` bytes, without
 * moving the cursors that the writers see. `told(tag, source, first, last)` is called for each source that something came
 * of, with the seqs of its first and its last message taken. A larger message than `message_bytes_max` is its source's violation.
 * Returns TPR_OK or TPR_E_FORKED. */
static inline int tpr_parcel_take(struct tpr_reader *reader, struct tpr_parcel *parcel, uint64_t count_max,
                                  uint64_t bytes_max, uint64_t message_bytes_max,
                                  void (*told)(void *tag, uint64_t source, uint64_t first, uint64_t last), void *tag) {
    uint64_t first = 0;
    int code = tpr_reader_begin(reader);
    if (code != TPR_OK)
        return code;
    while (reader->left && parcel->count < count_max && parcel->bytes < bytes_max) {
        struct tpr_source *source = reader->source[reader->turn];
        if (tpr_parcel_take_source_(reader, source, parcel, count_max, bytes_max, message_bytes_max, &first))
            told(tag, source->source, first, source->next_seq - 1);
        reader->left--;
        if (++reader->turn >= reader->count)
            reader->turn = 0;
    }
    reader->left = 0;
    if (parcel->count)
        tpr_parcel_end(parcel);
    return TPR_OK;
}

/* What was taken so far is stored: move the cursors past it. */
static inline void tpr_parcel_release(struct tpr_reader *reader) {
    for (uint32_t i = 0; i < reader->count; i++)
        tpr_source_commit_(reader->source[i]);
}

/* Where the reader stands that is furthest behind: what lies from there on was not read by all. O(readers). */
static inline uint64_t tpr_writer_unread_from(struct tpr_writer *writer) {
    uint64_t lowest;
    tpr_writer_scan_(writer, &lowest);
    return lowest;
}

/* Have this page say that `source` was read up to `position`, so that TPR_START_CURSOR goes on there: for a source that
 * another page had, which is gone. The writer still holds what lies behind it. TPR_OK, TPR_E_SLOT, TPR_E_SLOT_TAKEN. */
static inline int tpr_reader_seed(struct tpr_reader *reader, uint32_t index, uint64_t source, uint64_t position) {
    if (index >= reader->slots || position % 8)
        return TPR_E_SLOT;
    for (uint32_t i = 0; i < reader->count; i++)
        if (reader->source[i]->slot_index == index)
            return TPR_E_SLOT_TAKEN;
    struct tpr_slot *slot = &reader->page->slot[index];
    TPR_STORE(SLOT_RESET, &slot->cursor, TPR_CURSOR_UNSET, __ATOMIC_RELEASE);
    TPR_STORE(SLOT_TAKEN, &slot->taken, UINT64_C(0), __ATOMIC_RELAXED);
    TPR_STORE(SLOT_SOURCE, &slot->source, source, __ATOMIC_RELEASE);
    TPR_STORE(SLOT_START, &slot->cursor, position | TPR_CURSOR_SET, __ATOMIC_RELEASE);
    return TPR_OK;
}

/* Write an opened parcel's messages into a ring, from offset `*at` on (TPR_PARCEL_HEADER_BYTES at first), which is left
 * behind the last one written. Its first message has `first_seq`, and the writer's next seq must be that of the first that
 * is written.
 * Returns TPR_OK: all of them; TPR_FULL or TPR_NEEDS_READERS: call again; TPR_E_TOO_LARGE, TPR_E_FORKED, TPR_E_RECORDS
 * (the seqs do not meet). */
static inline int tpr_parcel_show(const uint8_t *data, const struct tpr_parcel_header *header, uint64_t first_seq,
                                  struct tpr_writer *writer, uint64_t *at) {
    struct tpr_view view;
    int code = TPR_OK;
    while (code == TPR_OK && *at < header->parcel_bytes) {
        tpr_parcel_view(data, header, *at, &view);
        struct tpr_origin origin = {view.origin_source, view.origin_seq, view.time_ns};
        if (first_seq + view.seq != writer->last_seq + 1)
            code = TPR_E_RECORDS;
        else
            code = tpr_writer_put_from(writer, view.headers, view.headers_bytes, view.payload, view.payload_bytes,
                                       &origin);
        if (code == TPR_OK)
            *at = view.end;
    }
    tpr_writer_flush(writer);
    return code;
}

#endif
