/* SPDX-License-Identifier: Apache-2.0
 *
 * Putting messages into the ring, and publishing them in batches.
 *
 * A batch lies between `tail` (what readers see) and `position` (where the next record goes). put() extends it, flush()
 * publishes it with one store, and wakes who sleeps. Whatever must be seen before that store is stored before it: the
 * records, the anchor (for who finds the ring without its writer), and oldest_pos before the records.
 */
#ifndef TOWPATH_RING_PUBLISH_H
#define TOWPATH_RING_PUBLISH_H

#include "towpath_ring_writer.h"

/* Wake the readers that sleep. The whole sleeping word, epoch and mode, is kept, so that a reader that takes long to get
 * going is not rung for each message.
 *
 * A doorbell is rung once for each sleep. A futex is rung twice, as once may be in vain: our look may come so late that
 * the reader has taken this very tail, said that it sleeps, found nothing newer, and is on its way into the kernel; then
 * the wake-up finds nobody, and the kernel finds the tail that the reader expects. The second look comes after a newer
 * tail: it finds the reader asleep, or the kernel will find that tail.
 *
 * A reader that is not attached yet may have seen the tail before this batch and gone to sleep; its page is
 * unknown here. But then the generation has changed by now (see "Attaching"), which is reason enough to wake
 * whoever sleeps on the tail; only its doorbell has to wait for the attach, hence `readers_changed`. */
static inline void tpr_writer_wake_(struct tpr_writer *writer) {
    int is_futex_due = 0;
    TPR_FENCE(PUBLISH); /* with the reader's, between its `sleeping` and its second look at the tail */
    if (!TPR_FAULT_(NO_NEWS_CHECK) && !tpr_writer_is_current_(writer)) {
        writer->readers_changed = 1;
        is_futex_due = 1;
    }
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct tpr_peer *peer = &writer->peer[i];
        uint64_t sleeping = tpr_load_relaxed_(&peer->control->sleeping);
        uint32_t enough = (sleeping & TPR_MODE_MASK) == TPR_MODE_FUTEX && !TPR_FAULT_(RUNG_ONCE) ? 2 : 1;
        if (sleeping != peer->rung)
            peer->rings = 0;
        if ((sleeping & TPR_MODE_MASK) == TPR_MODE_AWAKE || peer->rings >= enough || peer->has_left ||
            peer->is_violator)
            continue;
        peer->rung = sleeping;
        peer->rings++;
        if ((sleeping & TPR_MODE_MASK) == TPR_MODE_FUTEX)
            is_futex_due = 1;
        else
            tpr_doorbell_ring_(peer->doorbell);
    }
    if (is_futex_due)
        tpr_futex_wake_(&writer->page->tail, 0);
}

/* Publish the batch: one store, then wake who sleeps. Without a batch nothing happens. */
static inline void tpr_writer_flush(struct tpr_writer *writer) {
    struct tpr_positions *positions = writer->positions;
    if (writer->batch_count == 0)
        return;
    writer->batch_count = 0;
    /* Of the two anchors the one stays that the tail before belongs to: whoever dies between these stores leaves a
     * tail that its batch can be found for. */
    TPR_STORE(ANCHOR, &writer->page->anchor[writer->next_anchor], writer->tail, __ATOMIC_RELAXED);
    writer->next_anchor ^= 1;
    writer->previous_tail = writer->tail;
    writer->tail = writer->position;
    TPR_STORE(LAST_SEQ, &writer->page->last_seq, writer->last_seq, __ATOMIC_RELAXED);
    TPR_STORE(TAIL, &writer->page->tail, writer->tail, __ATOMIC_RELEASE); /* with the reader's load of tail */
    if (writer->history) { /* after the tail: a late reader looks in the other order */
        positions->before_batch = positions->after_batch;
        tpr_writer_tell_history_(writer, writer->oldest);
        positions->after_batch = positions->history_pos;
    }
    tpr_writer_wake_(writer);
}

static inline uint64_t tpr_writer_padding_(const struct tpr_writer *writer, uint64_t record_bytes) {
    uint64_t left = writer->capacity - (writer->position & (writer->capacity - 1));
    return left < record_bytes ? left : 0;
}

/* Write a record at `position`, where there is room for it and its padding. `place`: of a payload that lies in the slab,
 * offset and bytes, instead of a payload here. */
static inline void tpr_writer_write_(struct tpr_writer *writer, uint64_t bytes, uint64_t padding, const void *headers,
                                     size_t headers_bytes, const void *payload, size_t payload_bytes,
                                     const struct tpr_origin *origin, const uint64_t *place) {
    if (padding) {
        uint32_t pad[2] = {(uint32_t)padding, TPR_RECORD_PADDING};
        if (!TPR_FAULT_(NO_PADDING))
            TPR_COPY(PADDING, writer->data + (writer->position & (writer->capacity - 1)), pad, sizeof pad);
        writer->position += padding;
    }
    if (writer->positions)
        tpr_positions_note_(writer);
    uint8_t *at = writer->data + (writer->position & (writer->capacity - 1));
    struct tpr_record record = {(uint32_t)bytes,
                                TPR_RECORD_DATA,
                                writer->last_seq + 1,
                                writer->batch_time_ns,
                                (uint32_t)headers_bytes,
                                (uint32_t)payload_bytes};
    if (TPR_FAULT_(TAIL_BEFORE_RECORD))
        TPR_STORE(TAIL, &writer->page->tail, writer->position + bytes, __ATOMIC_RELEASE);
    if (origin && origin->time_ns)
        record.time_ns = origin->time_ns;
    if (origin && origin->source) {
        uint64_t first[2] = {origin->source, origin->seq};
        record.flags |= TPR_RECORD_ORIGIN;
        TPR_COPY(RECORD_ORIGIN, at + sizeof record, first, sizeof first);
    }
    if (place)
        record.flags |= TPR_RECORD_LOAN;
    TPR_COPY(RECORD_HEADER, at, &record, sizeof record);
    at += sizeof record + (origin && origin->source ? TPR_ORIGIN_BYTES : 0);
    if (place) {
        TPR_COPY(RECORD_LOAN, at, place, TPR_PLACE_BYTES);
        at += TPR_PLACE_BYTES;
        payload_bytes = 0;
    }
    if (headers_bytes)
        TPR_COPY(RECORD_HEADERS, at, headers, headers_bytes);
    if (payload_bytes)
        TPR_COPY(RECORD_PAYLOAD, at + headers_bytes, payload, payload_bytes);
    if (TPR_FAULT_(OLDEST_AFTER_RECORD))
        TPR_STORE(OLDEST, &writer->page->oldest_pos, writer->oldest, __ATOMIC_RELAXED);
    writer->position += bytes;
    writer->last_seq++;
    writer->batch_count++;
    if (origin && origin->source) {
        writer->origin = *origin;
        writer->origin_at = writer->last_seq;
    }
}

static inline int tpr_writer_put_record_(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                         const void *payload, size_t payload_bytes, const struct tpr_origin *origin,
                                         const uint64_t *place) {
    uint64_t most = tpr_message_bytes_max(writer->capacity);
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    if (headers_bytes > most || payload_bytes > most - headers_bytes)
        return TPR_E_TOO_LARGE;
    uint64_t bytes = tpr_record_bytes(headers_bytes, payload_bytes) + (origin && origin->source ? TPR_ORIGIN_BYTES : 0);
    if (writer->batch_count &&
        (writer->batch_count >= TPR_BATCH_COUNT ||
         writer->position - writer->tail + bytes > writer->capacity / TPR_BATCH_FRACTION))
        tpr_writer_flush(writer);
    if (writer->batch_count == 0) {
        if (!tpr_writer_is_current_(writer))
            return TPR_NEEDS_READERS;
        writer->batch_time_ns = tpr_clock_ns_(CLOCK_REALTIME);
    }
    uint64_t padding = tpr_writer_padding_(writer, bytes);
    if (!tpr_writer_has_room_(writer, padding + bytes)) {
        tpr_writer_flush(writer);
        return TPR_FULL;
    }
    tpr_writer_write_(writer, bytes, padding, headers, headers_bytes, payload, payload_bytes, origin, place);
    return TPR_OK;
}

/* tpr_writer_put(); with an origin the record says so unless its source is 0, and has its time unless that is 0 (see
 * tpr_pump(), tpr_parcel_show()). */
static inline int tpr_writer_put_from(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                      const void *payload, size_t payload_bytes, const struct tpr_origin *origin) {
    return tpr_writer_put_record_(writer, headers, headers_bytes, payload, payload_bytes, origin, NULL);
}

/* Add a message to the batch (flushing by itself when the batch is at its bounds). `headers` and `payload` are
 * copied; either may be NULL when its length is 0. On TPR_OK the message has seq `writer->last_seq`.
 *
 * Returns TPR_OK; TPR_FULL (everything before it is flushed; never with TPR_OVERFLOW_DROP); TPR_NEEDS_READERS;
 * TPR_E_TOO_LARGE, TPR_E_FORKED. The message is taken only on TPR_OK. */
static inline int tpr_writer_put(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                 const void *payload, size_t payload_bytes) {
    return tpr_writer_put_from(writer, headers, headers_bytes, payload, payload_bytes, NULL);
}

/* put() and flush(): one message at once. */
static inline int tpr_writer_publish(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                     const void *payload, size_t payload_bytes) {
    int code = tpr_writer_put(writer, headers, headers_bytes, payload, payload_bytes);
    if (code == TPR_OK)
        tpr_writer_flush(writer);
    return code;
}

#endif
