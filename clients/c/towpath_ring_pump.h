/* SPDX-License-Identifier: Apache-2.0
 *
 * The pump: moves messages from a reader's sources into a writer's ring. So does the core with the channels that it
 * orders: what comes from many publishers goes on in the one order in which it was written here.
 *
 * EXACTLY ONCE, whenever the process is killed
 *
 * Two positions say how far a source was taken in: its cursor in the control page, and the newest record of the own ring
 * that has it as its origin. They are stored one after the other, so a kill may come between; and records are overwritten,
 * so the ring alone cannot say. But one fact is stored at once: the tail of the own ring, which shows messages together
 * with their origin (source and seq). All else follows from it, by the order of the stores:
 *
 *     for one source after the other:   records (with origins)   tail   [more records   tail ...]   cursor of that source
 *
 * No record of another source, or of nobody, is published between a source's first tail and its cursor. Hence, at any
 * moment: of every source but one the cursor is right, and that one is the origin of the ring's newest record, whose seq
 * says how far it was taken in. The newest record is never overwritten, whatever the ring does when it is full. So who
 * goes on with both memories has to do one thing before it publishes anything else: to take the messages of that source
 * up to that seq as read. tpr_pump() does so by itself for as long as that record is the newest one; when the source cannot
 * be read yet, tpr_reader_pass_over() writes the seq into its slot, where it holds until the source is read again.
 *
 * The cursor is moved whatever became of the source meanwhile: one that broke its ring after ten good messages has had
 * ten taken in.
 *
 * Not here: messages that the core has to judge and to store before anybody sees them. There the store holds the
 * positions, committed with what it holds; after a crash it says pass_over() of each source.
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

/* Up to which seq this source was taken in already, wherever its cursor is. */
static inline uint64_t tpr_pump_taken_(const struct tpr_source *source, const struct tpr_writer *writer) {
    struct tpr_origin newest;
    uint64_t taken = source->slot->taken;
    if (tpr_writer_last_origin(writer, &newest) && newest.source == source->source && newest.seq > taken)
        taken = newest.seq;
    return TPR_FAULT_(TAKEN_TWICE) ? 0 : taken;
}

/* Move messages of one source, as far as there are any and room for them. Returns TPR_OK or what stopped it. */
static inline int tpr_pump_source_(struct tpr_reader *reader, struct tpr_source *source, struct tpr_writer *writer,
                                   uint64_t count_max, uint64_t bytes_max, uint64_t *count, uint64_t *bytes) {
    struct tpr_view view;
    uint64_t taken = tpr_pump_taken_(source, writer);
    while (*count < count_max && *bytes < bytes_max && source->state <= TPR_SOURCE_FINISHED &&
           tpr_source_peek_(reader, source, &view)) {
        struct tpr_origin origin = {source->source, view.seq, view.time_ns};
        struct tpr_put_undo_ undo = {writer->position, writer->last_seq, writer->origin_at, writer->origin};
        if (view.seq <= taken) {
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
        if (!TPR_FAULT_(CURSOR_LEFT_BEHIND) || source->state <= TPR_SOURCE_DRAINED)
            tpr_source_commit_(source);
        reader->left--;
        if (++reader->turn >= reader->count)
            reader->turn = 0;
    }
    reader->left = 0;
    return code;
}

#endif
