/* SPDX-License-Identifier: Apache-2.0
 *
 * The pump: moves messages from a reader's sources into a writer's ring. So does the core with the channels that it
 * orders: what comes from many publishers goes on in the one order in which it was written here.
 *
 * Each message enters exactly once, whenever the process is killed. Messages of one source are published, in batches, and
 * then that source's cursor is moved past them, before those of another source are touched. So what a dead pump had
 * published and not yet moved the cursor past is of one source, and ends with the newest message of the ring; its origin
 * says which and how far. The pump passes over that much of that source, as long as the message is the newest; whoever
 * publishes something else before that source is back first writes it into the source's slot (tpr_reader_pass_over()).
 */
#ifndef TOWPATH_RING_PUMP_H
#define TOWPATH_RING_PUMP_H

#include "towpath_ring_recover.h"

/* What a put() changed, so that a message that was overwritten while it was copied can be taken back. Only the last put,
 * before it is flushed. */
struct tpr_put_undo_ {
    uint64_t position, last_seq, origin_at;
    struct tpr_origin origin;
};

static inline void tpr_writer_undo_put_(struct tpr_writer *writer, const struct tpr_put_undo_ *undo) {
    writer->position = undo->position;
    writer->last_seq = undo->last_seq;
    writer->origin = undo->origin;
    writer->origin_at = undo->origin_at;
    writer->batch_count--;
    if (writer->positions)
        writer->positions->segment = UINT64_MAX; /* the mark that was made, if any, is made anew */
}

/* Move messages of one source, as far as there are any and room for them. Returns TPR_OK or what stopped it. */
static inline int tpr_pump_source_(struct tpr_reader *reader, struct tpr_source *source, struct tpr_writer *writer,
                                   uint64_t count_max, uint64_t bytes_max, uint64_t *count, uint64_t *bytes) {
    struct tpr_view view;
    uint64_t taken = source->slot->taken;
    if (writer->last_seq && writer->origin_at == writer->last_seq && writer->origin.source == source->source &&
        writer->origin.seq > taken)
        taken = writer->origin.seq;
    while (*count < count_max && *bytes < bytes_max && source->state <= TPR_SOURCE_FINISHED &&
           tpr_source_peek_(reader, source, &view)) {
        struct tpr_origin origin = {source->source, view.seq, view.time_ns};
        struct tpr_put_undo_ undo = {writer->position, writer->last_seq, writer->origin_at, writer->origin};
        if (view.seq <= taken && !TPR_FAULT_(TAKEN_TWICE)) {
            tpr_reader_consume(reader, &view);
            continue;
        }
        int code = tpr_writer_put_from(writer, view.headers, view.headers_bytes, view.payload, view.payload_bytes,
                                       &origin);
        if (code == TPR_E_TOO_LARGE) {
            tpr_source_violated_(reader, source, "a message is larger than the channel allows");
            return TPR_OK;
        }
        if (code != TPR_OK)
            return code;
        if (!tpr_reader_consume(reader, &view)) {
            tpr_writer_undo_put_(writer, &undo);
            continue;
        }
        *count += 1;
        *bytes += (uint64_t)view.headers_bytes + view.payload_bytes;
    }
    return TPR_OK;
}

/* Move up to `count_max` messages, and about `bytes_max` bytes of them, from the reader's sources in turn to the writer's
 * ring, where they have the source and seq they came from as their origin, and keep headers and time. `moved` is how many.
 *
 * Returns TPR_OK; TPR_FULL or TPR_NEEDS_READERS (of the writer: what was not moved stays where it is); TPR_E_FORKED. */
static inline int tpr_pump(struct tpr_reader *reader, struct tpr_writer *writer, uint64_t count_max, uint64_t bytes_max,
                           uint64_t *moved) {
    uint64_t bytes = 0;
    int code = tpr_reader_begin(reader);
    *moved = 0;
    if (code == TPR_OK && tpr_is_forked_(&writer->memory))
        code = TPR_E_FORKED;
    if (code != TPR_OK)
        return code;
    tpr_writer_flush(writer);
    while (reader->left && code == TPR_OK && *moved < count_max && bytes < bytes_max) {
        struct tpr_source *source = reader->source[reader->turn];
        code = tpr_pump_source_(reader, source, writer, count_max, bytes_max, moved, &bytes);
        if (TPR_FAULT_(CURSOR_BEFORE_BATCH))
            tpr_source_commit_(source);
        tpr_writer_flush(writer);
        if (source->state <= TPR_SOURCE_DRAINED)
            tpr_source_commit_(source);
        reader->left--;
        if (++reader->turn >= reader->count)
            reader->turn = 0;
    }
    reader->left = 0;
    return code;
}

#endif
