/* SPDX-License-Identifier: Apache-2.0
 *
 * The reader's half of the ring: add sources, walk their records, move the cursors. (Waiting: _reader_wait.h.)
 *
 * A pass over the sources is begin(), then peek() and consume() for each message wanted, then end(). peek()
 * shows the next message where it lies in the ring; the caller copies it before consume(), because its bytes
 * may be overwritten as soon as the cursor has moved past them. A source's cursor is stored once per pass, when
 * the pass leaves the source. Passes begin with a different source each, so a busy one starves nobody.
 *
 * The rings are other processes' memory and may hold anything: tail and record headers are loaded once, word by
 * word, and checked before use. A source whose ring breaks the rules is marked violated and never read again;
 * the others go on.
 *
 * Invariants: committed <= cursor <= known tail <= committed + capacity. seq grows by one from record to record.
 *
 * A handle belongs to one thread at a time, except that tpr_reader_wait_sleep() touches only the snapshot that
 * tpr_reader_wait_begin() made, the sleeping word and the spin; and tpr_reader_notify() may come from anywhere.
 */
#ifndef TOWPATH_RING_READER_H
#define TOWPATH_RING_READER_H

#include "towpath_ring_memfd.h"
#include "towpath_ring_wait.h"

#include <stdlib.h>

enum tpr_source_state { TPR_SOURCE_LIVE, TPR_SOURCE_FINISHED, TPR_SOURCE_DRAINED, TPR_SOURCE_VIOLATED };

/* One ring being read. */
struct tpr_source {
    uint64_t source;
    const struct tpr_ring_page *page;
    const uint8_t *data;
    uint64_t capacity;
    uint64_t cursor;    /* end of the last record consumed */
    uint64_t committed; /* what the slot says */
    uint64_t tail_word; /* as last loaded */
    uint64_t next_seq;  /* 0: any */
    struct tpr_slot *slot;
    uint32_t slot_index;
    enum tpr_source_state state;
    const char *violation; /* when violated: what was wrong */
    uint32_t is_told;      /* the caller's: it knows that this source is drained or violated */
    void *tag;             /* the caller's */
};

/* A message in the ring, its lengths checked. Valid until consume(). */
struct tpr_view {
    struct tpr_source *from;
    const uint8_t *headers, *payload;
    uint64_t seq, time_ns;
    uint32_t headers_bytes, payload_bytes;
    uint64_t end; /* the cursor after it */
};

struct tpr_reader {
    struct tpr_memory memory;
    struct tpr_control_page *page;
    uint64_t reader, epoch;
    uint32_t slots;
    struct tpr_source **source;
    uint32_t count, room;
    uint32_t turn, left;   /* the pass: whose turn, how many sources are still to visit */
    uint32_t has_news;     /* a source was drained or violated and nobody asked yet */
    uint32_t wake_word;    /* private futex: tpr_reader_notify() */
    uint32_t is_waiting, is_armed;
    /* Snapshot for the sleeper. */
    const uint64_t **tail;
    uint64_t *tail_seen;
    uint32_t tail_count, tail_room, window;
    uint32_t wake_seen;
    struct tpr_source *deferred; /* released when the sleeper is back */
    uint32_t deferred_count;
    struct tpr_spin spin;
};

/* Make a control page with `slots` (1..4096) slots for the subscription `reader`. */
static inline int tpr_reader_open(struct tpr_reader *reader, uint64_t id, uint32_t slots) {
    struct {
        uint64_t magic;
        uint32_t version, slots;
        uint64_t reader;
    } header = {TPR_CONTROL_MAGIC, TPR_VERSION, slots, id};
    memset(reader, 0, sizeof *reader);
    reader->memory.fd = -1;
    if (slots < 1 || slots > TPR_SLOTS_MAX)
        return TPR_E_SLOTS;
    int code = tpr_memory_make_(&reader->memory, "towpath-control", tpr_control_bytes_(slots));
    if (code != TPR_OK)
        return code;
    reader->page = (struct tpr_control_page *)reader->memory.page;
    TPR_COPY(CONTROL_HEADER, reader->page, &header, sizeof header);
    reader->reader = id;
    reader->slots = slots;
    tpr_spin_init_(&reader->spin);
    return TPR_OK;
}

static inline int tpr_reader_share(const struct tpr_reader *reader) {
    return tpr_memory_share_(&reader->memory);
}

/* Ends a sleep in tpr_reader_wait_sleep(), or the next one at once; from any thread of this process. */
static inline void tpr_reader_notify(struct tpr_reader *reader) {
    __atomic_fetch_add(&reader->wake_word, 1, __ATOMIC_SEQ_CST); /* private */
    tpr_futex_wake_(&reader->wake_word, 1);
}

/* ---- sources ---- */

static inline struct tpr_source *tpr_reader_find(const struct tpr_reader *reader, uint64_t source) {
    for (uint32_t i = 0; i < reader->count; i++)
        if (reader->source[i]->source == source)
            return reader->source[i];
    return NULL;
}

/* Wake the writer of a ring if it sleeps for the position that the cursor has just crossed. Only the store that
 * crosses it wakes: of the stores before, none is enough, and those after were preceded by one that did. */
static inline void tpr_source_wake_writer_(struct tpr_source *source, uint64_t before, uint64_t after) {
    tpr_fence_(); /* with the writer's, between writer_waits_for and its second look at the cursor */
    uint64_t needed = tpr_load_relaxed_(&source->page->writer_waits_for);
    if (needed && before < needed && after >= needed)
        tpr_futex_wake_(&source->slot->cursor, 0);
}

/* Map the ring behind `fd` (stays the caller's) and begin to read it: at position 0 when `from_start`, else at
 * the tail as it is now, using slot `slot` of the control page (assigned by the core). `tag` is kept for the
 * caller. Only after the core has announced this reader (tpr_table_bump).
 *
 * Returns TPR_OK; TPR_E_SLOT, TPR_E_SLOT_TAKEN, TPR_E_SOURCE_TAKEN, TPR_E_FORKED, TPR_E_SYSTEM, TPR_E_OTHER_SOURCE,
 * TPR_E_TAIL, TPR_E_LATE, or what is wrong with the descriptor. State is unchanged on error. */
static inline int tpr_reader_add(struct tpr_reader *reader, int fd, uint32_t slot, uint64_t source, int from_start,
                                 void *tag) {
    struct tpr_ring_info info;
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    if (slot >= reader->slots)
        return TPR_E_SLOT;
    for (uint32_t i = 0; i < reader->count; i++) {
        if (reader->source[i]->source == source)
            return TPR_E_SOURCE_TAKEN;
        if (reader->source[i]->slot_index == slot)
            return TPR_E_SLOT_TAKEN;
    }
    int code = tpr_ring_check(fd, &info);
    if (code != TPR_OK)
        return code;
    if (info.source != source)
        return TPR_E_OTHER_SOURCE;
    if (reader->count == reader->room) {
        uint32_t room = reader->room ? reader->room * 2 : 8;
        void *grown = realloc(reader->source, room * sizeof *reader->source);
        if (!grown)
            return TPR_E_SYSTEM;
        reader->source = (struct tpr_source **)grown;
        reader->room = room;
    }
    struct tpr_source *added = (struct tpr_source *)calloc(1, sizeof *added);
    const void *page = added ? tpr_map_(fd, TPR_HEADER_BYTES + info.capacity) : NULL;
    if (!page) {
        free(added);
        return TPR_E_SYSTEM;
    }
    added->source = source;
    added->page = (const struct tpr_ring_page *)page;
    added->data = (const uint8_t *)page + TPR_HEADER_BYTES;
    added->capacity = info.capacity;
    added->slot = &reader->page->slot[slot];
    added->slot_index = slot;
    added->tag = tag;
    tpr_fence_(); /* after the core's bump, of which the caller knows; with the fence of the writer's flush */
    uint64_t tail_word = tpr_load_acquire_(&added->page->tail);
    uint64_t tail = tail_word & ~TPR_TAIL_FLAGS;
    code = (tail_word & TPR_TAIL_FLAGS & ~TPR_TAIL_CLOSED) ? TPR_E_TAIL
           : from_start && tail > info.capacity            ? TPR_E_LATE
                                                           : TPR_OK;
    if (code != TPR_OK) {
        tpr_unmap_(page, TPR_HEADER_BYTES + info.capacity);
        free(added);
        return code;
    }
    added->cursor = added->committed = from_start ? 0 : tail;
    added->tail_word = added->cursor; /* the closed bit is to be seen by peek() */
    added->next_seq = from_start ? 1 : 0;
    TPR_STORE(SLOT_RESET, &added->slot->cursor, TPR_CURSOR_UNSET, __ATOMIC_RELEASE);
    TPR_STORE(SLOT_SOURCE, &added->slot->source, source, __ATOMIC_RELEASE);
    TPR_STORE(SLOT_START, &added->slot->cursor, added->cursor | TPR_CURSOR_SET, __ATOMIC_RELEASE);
    tpr_source_wake_writer_(added, 0, UINT64_MAX); /* it may sleep on a cursor that was unset */
    reader->source[reader->count++] = added;
    tpr_reader_notify(reader);
    return TPR_OK;
}

static inline void tpr_source_commit_(struct tpr_source *source) {
    uint64_t before = source->committed;
    if (source->cursor == before)
        return;
    source->committed = source->cursor;
    /* With the writer's acquire in its scan: the copies are done before it overwrites. */
    TPR_STORE(CURSOR, &source->slot->cursor, source->cursor | TPR_CURSOR_SET, __ATOMIC_RELEASE);
    tpr_source_wake_writer_(source, before, source->cursor);
}

/* Let go of a source; its slot is free for another, its writer does not wait for us any more. 1, or 0 when it is
 * not known, or TPR_E_FORKED. Returns the tag through `tag` when that is not NULL. */
static inline int tpr_reader_remove(struct tpr_reader *reader, uint64_t id, void **tag) {
    uint32_t i = 0;
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    while (i < reader->count && reader->source[i]->source != id)
        i++;
    if (i == reader->count)
        return 0;
    struct tpr_source *source = reader->source[i];
    reader->source[i] = reader->source[--reader->count];
    reader->turn = 0;
    reader->left = 0;
    if (tag)
        *tag = source->tag;
    TPR_STORE(SLOT_LEFT, &source->slot->cursor, TPR_CURSOR_LEFT, __ATOMIC_RELEASE);
    tpr_source_wake_writer_(source, 0, UINT64_MAX);
    if (reader->is_waiting) {
        void *grown = realloc(reader->deferred, (reader->deferred_count + 1) * sizeof *reader->deferred);
        if (grown) {
            reader->deferred = (struct tpr_source *)grown;
            reader->deferred[reader->deferred_count++] = *source;
        } /* else: leak the mapping rather than pull it away under the sleeper */
        tpr_reader_notify(reader);
    } else {
        tpr_unmap_(source->page, TPR_HEADER_BYTES + source->capacity);
    }
    free(source);
    return 1;
}

/* The writer of this source is gone: read on to its tail, then it counts as drained. 0 when it is not known. */
static inline int tpr_reader_finish(struct tpr_reader *reader, uint64_t id) {
    struct tpr_source *source = tpr_reader_find(reader, id);
    if (!source)
        return 0;
    if (source->state == TPR_SOURCE_LIVE)
        source->state = TPR_SOURCE_FINISHED;
    tpr_reader_notify(reader);
    return 1;
}

/* ---- reading ---- */

static inline int tpr_source_violated_(struct tpr_reader *reader, struct tpr_source *source, const char *what) {
    source->state = TPR_SOURCE_VIOLATED;
    source->violation = what;
    reader->has_news = 1;
    return 0;
}

/* Look at the tail anew. 1: there are records. */
static inline int tpr_source_refresh_(struct tpr_reader *reader, struct tpr_source *source) {
    uint64_t word = tpr_load_acquire_(&source->page->tail); /* with the writer's flush: the records are there */
    uint64_t tail = word & ~TPR_TAIL_FLAGS;
    if (tail - source->cursor > source->capacity || (word & TPR_TAIL_FLAGS & ~TPR_TAIL_CLOSED))
        return tpr_source_violated_(reader, source, "the tail is impossible");
    source->tail_word = word;
    if (tail != source->cursor)
        return 1;
    if ((word & TPR_TAIL_CLOSED) || source->state == TPR_SOURCE_FINISHED) {
        source->state = TPR_SOURCE_DRAINED;
        reader->has_news = 1;
    }
    return 0;
}

/* The next message of one source. 1: `view` is filled in. */
static inline int tpr_source_peek_(struct tpr_reader *reader, struct tpr_source *source, struct tpr_view *view) {
    for (;;) {
        uint64_t tail = source->tail_word & ~TPR_TAIL_FLAGS;
        if (source->cursor == tail) {
            if (!tpr_source_refresh_(reader, source))
                return 0;
            tail = source->tail_word & ~TPR_TAIL_FLAGS;
        }
        uint64_t available = tail - source->cursor;
        uint64_t offset = source->cursor & (source->capacity - 1);
        uint64_t until_wrap = source->capacity - offset;
        const uint64_t *word = (const uint64_t *)(const void *)(source->data + offset);
        uint64_t first = tpr_load_relaxed_(&word[0]);
        uint32_t bytes = (uint32_t)first, flags = (uint32_t)(first >> 32);
        if (flags == TPR_RECORD_PADDING) {
            if (bytes != until_wrap || bytes > available)
                return tpr_source_violated_(reader, source, "a padding record does not end at the wrap");
            source->cursor += bytes;
            continue;
        }
        if (flags != TPR_RECORD_DATA)
            return tpr_source_violated_(reader, source, "a record is of unknown kind");
        if (bytes < TPR_RECORD_HEADER_BYTES || bytes > source->capacity / 4 || bytes > available || bytes > until_wrap)
            return tpr_source_violated_(reader, source, "a record's length is impossible");
        uint64_t seq = tpr_load_relaxed_(&word[1]), time_ns = tpr_load_relaxed_(&word[2]);
        uint64_t lengths = tpr_load_relaxed_(&word[3]);
        uint32_t headers_bytes = (uint32_t)lengths, payload_bytes = (uint32_t)(lengths >> 32);
        if (tpr_record_bytes(headers_bytes, payload_bytes) != bytes)
            return tpr_source_violated_(reader, source, "a record's lengths disagree");
        if (seq == 0 || (source->next_seq && seq != source->next_seq))
            return tpr_source_violated_(reader, source, "seq is not contiguous");
        view->from = source;
        view->headers = (const uint8_t *)&word[4];
        view->payload = view->headers + headers_bytes;
        view->seq = seq;
        view->time_ns = time_ns;
        view->headers_bytes = headers_bytes;
        view->payload_bytes = payload_bytes;
        view->end = source->cursor + bytes;
        return 1;
    }
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
        if (source->state != TPR_SOURCE_VIOLATED)
            tpr_source_commit_(source);
        reader->left--;
        if (++reader->turn >= reader->count)
            reader->turn = 0;
    }
    return 0;
}

/* The message of `view` has been copied. */
static inline void tpr_reader_consume(struct tpr_reader *reader, const struct tpr_view *view) {
    (void)reader;
    view->from->cursor = view->end;
    view->from->next_seq = view->seq + 1;
}

/* End the pass; the next one begins with another source. */
static inline void tpr_reader_end(struct tpr_reader *reader) {
    if (!reader->left)
        return;
    reader->left = 0;
    tpr_source_commit_(reader->source[reader->turn]);
    if (++reader->turn >= reader->count)
        reader->turn = 0;
}

/* Bytes of records published and not consumed, over all sources. */
static inline uint64_t tpr_reader_pending_bytes(const struct tpr_reader *reader) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < reader->count; i++) {
        const struct tpr_source *source = reader->source[i];
        uint64_t bytes = (tpr_load_acquire_(&source->page->tail) & ~TPR_TAIL_FLAGS) - source->cursor;
        if (source->state <= TPR_SOURCE_FINISHED)
            sum += bytes > source->capacity ? source->capacity : bytes;
    }
    return sum;
}

/* ---- the end ---- */

/* Unmap what was removed during a sleep; the sleeper is back. */
static inline void tpr_reader_reap(struct tpr_reader *reader) {
    for (uint32_t i = 0; i < reader->deferred_count; i++)
        tpr_unmap_(reader->deferred[i].page, TPR_HEADER_BYTES + reader->deferred[i].capacity);
    free(reader->deferred);
    reader->deferred = NULL;
    reader->deferred_count = 0;
}

/* Let go of all sources and release everything. Nobody may be asleep in it. Tags are the caller's to free first. */
static inline void tpr_reader_close(struct tpr_reader *reader) {
    if (!reader->memory.page)
        return;
    if (tpr_is_forked_(&reader->memory)) {
        while (reader->count) {
            struct tpr_source *source = reader->source[--reader->count];
            tpr_unmap_(source->page, TPR_HEADER_BYTES + source->capacity);
            free(source);
        }
    }
    while (reader->count)
        tpr_reader_remove(reader, reader->source[0]->source, NULL);
    tpr_reader_reap(reader);
    free(reader->source);
    free((void *)reader->tail);
    free(reader->tail_seen);
    reader->source = NULL;
    reader->tail = NULL;
    reader->tail_seen = NULL;
    tpr_memory_free_(&reader->memory);
}

#endif
