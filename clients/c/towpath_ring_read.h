/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading: walk the records of all sources, move the cursors.
 *
 * A pass over the sources is begin(), then peek(), a copy and consume() for each message wanted, then end(). peek()
 * shows the next message where it lies in the ring. The caller copies it; consume() then says whether the copy is good:
 * whether the writer had not begun to overwrite what was copied. A source's cursor is stored once per pass, when the
 * pass leaves the source. Passes begin with a different source each, so a busy one starves nobody.
 *
 * The rings are other processes' memory and may hold anything: tail and record headers are loaded once, word by word,
 * and checked before use. A source whose ring breaks the rules is marked violated and never read again; the others go on.
 *
 * Being lapped. What lies before oldest_pos may be half overwritten, headers too. So whatever was read is believed only
 * after a look at oldest_pos that came after it: a message in consume(), a padding record or a broken rule in peek().
 * A lapped reader of a dropping ring goes on at oldest_pos; if it is lapped there once more before it took one message
 * (where a copy takes as long as a write, the edge is the worst place to be), at the start of the newest batch, which
 * has a whole turn of the ring before it. The seq there tells how many it missed. In a blocking ring only a reader that
 * the writer waits for no more is lapped (TPR_SOURCE_DETACHED), or one that begins with the history (catch_up_until).
 *
 * Invariants: committed <= cursor <= known tail <= cursor + capacity, unless lapped. seq grows by one from record to
 * record, but for what was missed.
 */
#ifndef TOWPATH_RING_READ_H
#define TOWPATH_RING_READ_H

#include "towpath_ring_reader.h"

static inline void tpr_source_commit_(struct tpr_source *source) {
    uint64_t before = source->committed;
    if (source->cursor == before)
        return;
    source->committed = source->cursor;
    /* With the writer's acquire in its scan: the copies are done before it overwrites. */
    TPR_STORE(CURSOR, &source->slot->cursor, source->cursor | TPR_CURSOR_SET, __ATOMIC_RELEASE);
    tpr_source_wake_writer_(source, before, source->cursor);
}

static inline int tpr_source_violated_(struct tpr_reader *reader, struct tpr_source *source, const char *what) {
    source->state = TPR_SOURCE_VIOLATED;
    source->violation = what;
    reader->has_news = 1;
    return 0;
}

static inline int tpr_source_drained_(struct tpr_reader *reader, struct tpr_source *source) {
    source->state = TPR_SOURCE_DRAINED;
    reader->has_news = 1;
    return 0;
}

/* May the writer have begun to overwrite what was just read at the cursor? */
static inline int tpr_source_is_overrun_(const struct tpr_source *source) {
    tpr_fence_acquire_(); /* with the writer's release fence, between its oldest_pos and what it overwrites */
    return !TPR_FAULT_(NO_OVERRUN_CHECK) && tpr_load_relaxed_(&source->page->oldest_pos) > source->cursor;
}

/* It has. Go on further ahead, if that is this ring's way. 1: look again; 0: nothing more of this source in this pass. */
static inline int tpr_source_resume_(struct tpr_reader *reader, struct tpr_source *source) {
    if (!source->is_drop && source->cursor >= source->catch_up_until) {
        source->state = TPR_SOURCE_DETACHED;
        reader->has_news = 1;
        return 0;
    }
    const struct tpr_ring_page *page = source->page;
    uint64_t oldest = tpr_load_acquire_(&page->oldest_pos); /* before history_pos and the tail: they are not older */
    uint64_t at = source->is_drop ? oldest : tpr_load_acquire_(&page->history_pos);
    uint64_t word = tpr_source_tail_(source), tail = word & ~TPR_TAIL_FLAGS;
    if (source->state == TPR_SOURCE_FINISHED && at > tail)
        return tpr_source_drained_(reader, source); /* its writer went on, over what was left to read */
    if ((at | oldest) % 8 || at < oldest || oldest <= source->cursor || at > tail ||
        (word & TPR_TAIL_FLAGS & ~TPR_TAIL_CLOSED))
        return tpr_source_violated_(reader, source, "the oldest position is impossible");
    if (source->resumes++ && source->is_drop && tpr_newest_batch_(page, tail) > at)
        at = tpr_newest_batch_(page, tail);
    if (tail - at <= source->capacity) { /* else it is over already */
        if (TPR_FAULT_(RESUME_NOT_COUNTED))
            source->next_seq = 0;
        source->cursor = at;
        source->tail_word = word;
        source->is_lapped = 1;
    }
    source->is_tired = source->resumes >= TPR_RESUMES_MAX;
    return !source->is_tired;
}

/* Look at the tail anew. 1: look at the records. */
static inline int tpr_source_refresh_(struct tpr_reader *reader, struct tpr_source *source) {
    uint64_t word = tpr_source_tail_(source), tail = word & ~TPR_TAIL_FLAGS;
    if (word & TPR_TAIL_FLAGS & ~TPR_TAIL_CLOSED)
        return tpr_source_violated_(reader, source, "the tail is impossible");
    if (tail - source->cursor > source->capacity)
        return tpr_source_is_overrun_(source) ? tpr_source_resume_(reader, source)
                                              : tpr_source_violated_(reader, source, "the tail is impossible");
    source->tail_word = word;
    if (tail != source->cursor)
        return 1;
    if ((word & TPR_TAIL_CLOSED) || source->state == TPR_SOURCE_FINISHED)
        return tpr_source_drained_(reader, source);
    return 0;
}

/* Does the seq follow from what was read before? Says what is wrong, or NULL. */
static inline const char *tpr_source_check_seq_(const struct tpr_source *source, struct tpr_view *view) {
    view->missed = source->missed;
    if (view->seq == source->next_seq && view->seq)
        return NULL;
    if (view->seq == 0 || (source->next_seq && (!source->is_lapped || view->seq < source->next_seq)))
        return "seq is not contiguous";
    if (source->next_seq)
        view->missed += view->seq - source->next_seq;
    return NULL;
}

/* Where in the slab the message of `view` lies: its place is loaded once, and checked. NULL, or what is wrong with it. */
static inline const char *tpr_source_resolve_(const struct tpr_source *source, struct tpr_view *view) {
    const uint64_t *place = (const uint64_t *)(const void *)view->payload;
    uint64_t offset = tpr_load_relaxed_(&place[0]), bytes = tpr_load_relaxed_(&place[1]);
    if (offset % TPR_SLAB_GRAIN || offset > source->slab_bytes || bytes > source->slab_bytes - offset ||
        bytes > UINT32_MAX)
        return "a loan lies outside the slab";
    view->payload = source->slab + offset;
    view->payload_bytes = (uint32_t)bytes;
    return NULL;
}

/* The message of `view` has been copied. 1: it is taken; 0: it may have been overwritten meanwhile, forget the copy. */
static inline int tpr_reader_consume(struct tpr_reader *reader, const struct tpr_view *view) {
    struct tpr_source *source = view->from;
    if (tpr_source_is_overrun_(source)) {
        tpr_source_resume_(reader, source);
        return 0;
    }
    source->cursor = view->end;
    source->next_seq = view->seq + 1;
    reader->lost += view->missed - source->missed;
    source->missed = 0;
    source->is_lapped = 0;
    source->resumes = 0;
    return 1;
}

/* What consume() changes, so that the newest message it took can be put back before its source's cursor is stored. */
struct tpr_unread {
    uint64_t cursor, next_seq, missed, lost;
    uint32_t is_lapped, resumes;
};

/* Before consume(). */
static inline void tpr_reader_note_unread(const struct tpr_reader *reader, const struct tpr_view *view,
                                          struct tpr_unread *unread) {
    const struct tpr_source *source = view->from;
    struct tpr_unread now = {source->cursor, source->next_seq, source->missed, reader->lost, source->is_lapped,
                             source->resumes};
    *unread = now;
}

/* The message of `view` is not taken after all: the next peek() shows it again. */
static inline void tpr_reader_unread(struct tpr_reader *reader, const struct tpr_view *view,
                                     const struct tpr_unread *unread) {
    struct tpr_source *source = view->from;
    source->cursor = unread->cursor;
    source->next_seq = unread->next_seq;
    source->missed = unread->missed;
    source->is_lapped = unread->is_lapped;
    source->resumes = unread->resumes;
    reader->lost = unread->lost;
}

/* The next message of one source. 1: `view` is filled in. */
static inline int tpr_source_peek_(struct tpr_reader *reader, struct tpr_source *source, struct tpr_view *view) {
    while (!source->is_tired) {
        uint64_t tail = source->tail_word & ~TPR_TAIL_FLAGS;
        if (source->cursor == tail) {
            if (!tpr_source_refresh_(reader, source))
                break;
            continue;
        }
        const char *wrong =
            tpr_record_read_(source->data, source->capacity, source->cursor, tail - source->cursor, view);
        if (!wrong && view->payload && view->is_loan)
            wrong = tpr_source_resolve_(source, view);
        if (!wrong && view->payload && !(wrong = tpr_source_check_seq_(source, view))) {
            view->from = source;
            if (view->origin_source && tpr_reader_excludes_(reader, view->origin_source)) {
                if (tpr_reader_consume(reader, view))
                    source->missed = view->missed;
                continue;
            }
            if (TPR_FAULT_(COMMIT_BEFORE_COPY))
                TPR_STORE(CURSOR, &source->slot->cursor, view->end | TPR_CURSOR_SET, __ATOMIC_RELEASE);
            return 1;
        }
        if (tpr_source_is_overrun_(source)) {
            if (!tpr_source_resume_(reader, source))
                break;
        } else if (wrong) {
            return tpr_source_violated_(reader, source, wrong);
        } else {
            source->cursor = view->end; /* padding */
        }
    }
    source->is_tired = 0;
    return 0;
}

/* Look at the tails of sources that have nothing pending, so that those at their end become drained. */
static inline void tpr_reader_look(struct tpr_reader *reader) {
    for (uint32_t i = 0; i < reader->count; i++) {
        struct tpr_source *source = reader->source[i];
        if (source->state <= TPR_SOURCE_FINISHED && source->cursor == (source->tail_word & ~TPR_TAIL_FLAGS))
            tpr_source_refresh_(reader, source);
    }
}

/* Begin a pass over all sources. Returns TPR_OK or TPR_E_FORKED. */
static inline int tpr_reader_begin(struct tpr_reader *reader) {
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    reader->left = reader->count;
    if (reader->turn >= reader->count)
        reader->turn = 0;
    return TPR_OK;
}

/* Show the next message of the pass without taking it. 1: `view` is filled in; 0: the pass is over. */
static inline int tpr_reader_peek(struct tpr_reader *reader, struct tpr_view *view) {
    while (reader->left) {
        struct tpr_source *source = reader->source[reader->turn];
        if (source->state <= TPR_SOURCE_FINISHED && tpr_source_peek_(reader, source, view))
            return 1;
        if (source->state <= TPR_SOURCE_DRAINED)
            tpr_source_commit_(source);
        reader->left--;
        if (++reader->turn >= reader->count)
            reader->turn = 0;
    }
    return 0;
}

/* End the pass; the next one begins with another source. */
static inline void tpr_reader_end(struct tpr_reader *reader) {
    if (!reader->left)
        return;
    reader->left = 0;
    if (reader->source[reader->turn]->state <= TPR_SOURCE_DRAINED)
        tpr_source_commit_(reader->source[reader->turn]);
    if (++reader->turn >= reader->count)
        reader->turn = 0;
}

#endif
