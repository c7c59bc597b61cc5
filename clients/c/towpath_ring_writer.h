/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer's handle: its ring, the generation it watches, and how much of the ring it may overwrite.
 *
 * Room. The writer writes nothing at or past `room_until`, which is oldest_pos + capacity: so what lies from oldest_pos
 * on stays as it is. To go further it first publishes a larger oldest_pos, a 64th of the ring at a time
 * (tpr_writer_extend_). With overflow = block that stops at the slowest reader's cursor; cursors only grow, so they are
 * looked at again only when the leave that they gave is used up. With overflow = drop it stops nowhere, and oldest_pos
 * is the start of a record, for who was lapped to go on from: the writer remembers one start in each 64th.
 *
 * History. The writer remembers where its last `history` messages begin, and publishes where the first of them that
 * is still there does.
 *
 * Invariants: tail <= position <= room_until = oldest + capacity; with block, oldest <= the cursor of any reader that
 * counts; oldest <= tail; position - tail is at most half the ring and some; seq grows by one per record, and is never
 * used twice.
 *
 * A handle belongs to one thread at a time, except that tpr_room_wait_sleep() touches only its own struct and
 * `writer_waits_for`, so others may use the handle meanwhile, provided nothing is unmapped.
 *
 * Not here: records and batches (_publish.h), readers that come and go (_attach.h), waiting (_writer_wait.h).
 */
#ifndef TOWPATH_RING_WRITER_H
#define TOWPATH_RING_WRITER_H

#include "towpath_ring_generation.h"
#include "towpath_ring_slab.h"

#include <stdlib.h>

/* One attached reader. */
struct tpr_peer {
    uint64_t reader;
    const struct tpr_control_page *control;
    const struct tpr_slot *slot;
    const struct tpr_held *held;
    uint64_t control_bytes;
    uint64_t pin;        /* where it counts as standing while its cursor is unset */
    uint64_t rung;       /* the sleeping word it was last rung for, */
    uint32_t rings;      /* and how often */
    uint64_t word;       /* its cursor word at the last look */
    uint64_t cursor;     /* its cursor at the last look, if it had one */
    uint64_t stuck_word; /* its cursor word when it was first seen to hold up the writer */
    uint64_t stuck_ns;   /* how long it has held up the writer since, as far as the writer looked */
    uint32_t held_max;   /* entries that its held table has */
    int doorbell;        /* a duplicate of ours, or -1 */
    uint8_t has_left;    /* let go by itself, or parted from: counts no more */
    uint8_t is_parted;   /* no reader of ours any more, but what it holds it holds */
    uint8_t stale_left;  /* the slot said LEFT when attached: that is from before, not news */
    uint8_t is_violator; /* its cursor was impossible: counts no more */
    uint8_t is_stuck;    /* it holds up the writer, and stuck_word and stuck_ns say since when */
};

/* Who published a message first, on a channel that the core orders, and when. */
struct tpr_origin {
    uint64_t source, seq, time_ns;
};

/* Where munmap(2) of a detached page happens; lets a caller with a sleeping thread put it off. */
struct tpr_unmapped {
    const void *page;
    uint64_t bytes;
};

/* Where records begin, remembered by a writer that must tell. */
struct tpr_positions {
    uint64_t mark[TPR_MARKS]; /* the first record of each 64th of the ring; older where that has none */
    uint64_t segment;         /* the 64th of the last mark */
    uint32_t segment_shift;
    uint32_t message_room;
    uint64_t *message;     /* [seq % message_room], enough for those published last and the batch being written */
    uint64_t first_seq;    /* where history begins: none before it is there any more */
    uint64_t history_pos;  /* as published */
    uint64_t before_batch; /* what it was when the newest batch was begun */
    uint64_t after_batch;  /* and when that was published */
};

struct tpr_writer {
    struct tpr_memory memory;
    struct tpr_ring_page *page;
    uint8_t *data;
    uint64_t source, capacity;
    uint64_t position, tail, previous_tail; /* where the next record goes; end of the newest batch, and its start */
    uint64_t room_until, room_limit;        /* what may be written without a store; and without a look at cursors */
    uint64_t oldest;
    uint64_t last_seq, batch_time_ns;
    struct tpr_origin origin; /* of the message `origin_at`, the last that had one */
    uint64_t origin_at;
    uint32_t batch_count;
    uint32_t next_anchor; /* which of the two */
    uint32_t overflow, history;
    uint32_t is_installed;    /* has `generation` been set since the table was */
    uint32_t readers_changed; /* a batch went out while new readers may have been coming: attach them soon */
    uint64_t generation;
    const uint64_t *generation_cell; /* NULL: no table, never asks for readers */
    struct tpr_unmapped table;
    struct tpr_positions *positions; /* NULL: block, without history */
    uint64_t slab_bytes;
    uint8_t *slab_data;
    struct tpr_slab *slab; /* NULL: nothing was ever loaned */
    struct tpr_peer *peer;
    uint32_t peer_count, peer_room;
    uint32_t wake_word; /* private futex: tpr_writer_notify() */
    uint32_t is_waiting, is_armed;
    struct tpr_unmapped *deferred; /* unmapped when the waiter is back */
    uint32_t deferred_count;
    uint64_t full_until, looked_ns; /* how far it wanted to go when it last found no room; and when it last looked */
    struct tpr_spin spin, stored_spin; /* see tpr_writer_spin_() */
};

static inline int tpr_positions_open_(struct tpr_writer *writer) {
    uint32_t history = writer->history;
    if (writer->overflow == TPR_OVERFLOW_BLOCK && !history)
        return TPR_OK;
    struct tpr_positions *positions = (struct tpr_positions *)calloc(1, sizeof *positions);
    uint32_t room = history ? history + TPR_BATCH_COUNT : 1;
    uint64_t *message = (uint64_t *)calloc(room, sizeof *message); /* touched as it is used */
    if (!positions || !message) {
        free(positions);
        free(message);
        return TPR_E_SYSTEM;
    }
    while ((writer->capacity / TPR_MARKS) >> positions->segment_shift > 1)
        positions->segment_shift++;
    positions->segment = UINT64_MAX;
    positions->message = message;
    positions->message_room = room;
    positions->first_seq = 1;
    writer->positions = positions;
    return TPR_OK;
}

static inline void tpr_positions_close_(struct tpr_writer *writer) {
    if (writer->positions)
        free(writer->positions->message);
    free(writer->positions);
    writer->positions = NULL;
}

/* Make a ring of `capacity` data bytes (power of two, 4096..2^30) for `source`. `overflow`: TPR_OVERFLOW_BLOCK or _DROP.
 * `history`: how many messages a late reader may ask for, 0..65536. `slab_bytes`: how much can be loaned at a time
 * (towpath_ring_loan.h), a multiple of 4096 up to 2^32; 0: nothing. It is paid for as it is used.
 * Returns TPR_OK, TPR_E_CAPACITY, TPR_E_OVERFLOW, TPR_E_HISTORY, TPR_E_SLAB, TPR_E_SYSTEM. */
static inline int tpr_writer_open_loaning(struct tpr_writer *writer, uint64_t source, uint64_t capacity,
                                          uint32_t overflow, uint32_t history, uint64_t slab_bytes) {
    struct {
        uint64_t magic;
        uint32_t version, header_bytes;
        uint64_t capacity, source, created_ns;
        uint32_t overflow, history;
        uint64_t base_seq, slab_bytes;
    } header = {TPR_RING_MAGIC, TPR_VERSION, TPR_HEADER_BYTES, capacity, source, tpr_clock_ns_(CLOCK_REALTIME),
                overflow,       history,     0,                slab_bytes};
    memset(writer, 0, sizeof *writer);
    writer->memory.fd = -1;
    if (!tpr_is_capacity_(capacity))
        return TPR_E_CAPACITY;
    if (overflow > TPR_OVERFLOW_DROP)
        return TPR_E_OVERFLOW;
    if (history > TPR_HISTORY_MAX)
        return TPR_E_HISTORY;
    if (!tpr_is_slab_(slab_bytes))
        return TPR_E_SLAB;
    writer->source = source;
    writer->capacity = capacity;
    writer->slab_bytes = slab_bytes;
    writer->overflow = overflow;
    writer->history = history;
    int code = tpr_positions_open_(writer);
    if (code == TPR_OK)
        code = tpr_memory_make_(&writer->memory, "towpath-ring", TPR_HEADER_BYTES + capacity + slab_bytes);
    if (code != TPR_OK) {
        tpr_positions_close_(writer);
        return code;
    }
    writer->page = (struct tpr_ring_page *)writer->memory.page;
    writer->data = (uint8_t *)writer->memory.page + TPR_HEADER_BYTES;
    writer->slab_data = writer->data + capacity;
    if (slab_bytes) /* heard where the administrator lets shared memory have huge pages (shmem_enabled: advise) */
        madvise(writer->slab_data, slab_bytes, MADV_HUGEPAGE);
    TPR_COPY(RING_HEADER, writer->page, &header, sizeof header);
    writer->room_until = writer->room_limit = capacity;
    tpr_spin_init_(&writer->spin, TPR_SPIN_MAX_NS);
    tpr_spin_init_(&writer->stored_spin, TPR_SPIN_STORED_NS);
    return TPR_OK;
}

/* The same without a slab. */
static inline int tpr_writer_open_with(struct tpr_writer *writer, uint64_t source, uint64_t capacity,
                                       uint32_t overflow, uint32_t history) {
    return tpr_writer_open_loaning(writer, source, capacity, overflow, history, 0);
}

/* The seqs of a new ring begin with `first_seq` (1 or more) instead of 1: it goes on with a log. Before anything is
 * published or attached. */
static inline void tpr_writer_begin_at(struct tpr_writer *writer, uint64_t first_seq) {
    writer->last_seq = first_seq - 1;
    if (writer->positions)
        writer->positions->first_seq = first_seq;
    TPR_STORE(BASE_SEQ, &writer->page->base_seq, first_seq - 1, __ATOMIC_RELEASE);
    TPR_STORE(LAST_SEQ, &writer->page->last_seq, first_seq - 1, __ATOMIC_RELEASE);
}

/* The same for overflow = block without history. */
static inline int tpr_writer_open(struct tpr_writer *writer, uint64_t source, uint64_t capacity) {
    return tpr_writer_open_with(writer, source, capacity, TPR_OVERFLOW_BLOCK, 0);
}

static inline int tpr_writer_share(const struct tpr_writer *writer) {
    return tpr_memory_share_(&writer->memory);
}

static inline void tpr_writer_unmap_(struct tpr_writer *writer, const void *page, uint64_t bytes) {
    if (!page)
        return;
    if (writer->is_waiting) {
        void *grown = realloc(writer->deferred, (writer->deferred_count + 1) * sizeof *writer->deferred);
        if (grown) {
            writer->deferred = (struct tpr_unmapped *)grown;
            writer->deferred[writer->deferred_count].page = page;
            writer->deferred[writer->deferred_count++].bytes = bytes;
        } /* else: leak the mapping rather than pull it away under the sleeper */
        return;
    }
    tpr_unmap_(page, bytes);
}

/* Wakes a sleeping tpr_room_wait_sleep() of this process; from any thread. */
static inline void tpr_writer_notify(struct tpr_writer *writer) {
    __atomic_fetch_add(&writer->wake_word, 1, __ATOMIC_SEQ_CST); /* private */
    tpr_futex_wake_(&writer->wake_word, 1);
}

/* ---- generations ---- */

/* Use cell `index` of the core's table behind `fd` (stays the caller's). Replaces an earlier table; in either
 * case the next put answers TPR_NEEDS_READERS until tpr_writer_install(). State is unchanged on error. */
static inline int tpr_writer_set_table(struct tpr_writer *writer, int fd, uint32_t index) {
    uint32_t cells;
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    int code = tpr_table_check(fd, &cells);
    if (code != TPR_OK)
        return code;
    if (index >= cells)
        return TPR_E_CELL;
    uint64_t bytes = tpr_table_bytes_(cells);
    const struct tpr_table_page *page = (const struct tpr_table_page *)tpr_map_(fd, bytes);
    if (!page)
        return TPR_E_SYSTEM;
    tpr_writer_unmap_(writer, writer->table.page, writer->table.bytes);
    writer->table.page = page;
    writer->table.bytes = bytes;
    writer->generation_cell = &page->cell[index].generation;
    writer->is_installed = 0;
    tpr_writer_notify(writer);
    return TPR_OK;
}

/* The readers of `generation` are attached, all of them. */
static inline void tpr_writer_install(struct tpr_writer *writer, uint64_t generation) {
    writer->generation = generation;
    writer->is_installed = 1;
    writer->readers_changed = 0;
}

static inline int tpr_writer_is_current_(const struct tpr_writer *writer) {
    return !writer->generation_cell ||
           (writer->is_installed && tpr_load_acquire_(writer->generation_cell) == writer->generation);
}

/* ---- cursors ---- */

enum tpr_standing_ { TPR_COUNTS_, TPR_COUNTS_NOT_ };

/* Where does this reader stand? The page is the reader's, so the word may be anything. */
static inline enum tpr_standing_ tpr_peer_cursor_(const struct tpr_writer *writer, struct tpr_peer *peer,
                                                  uint64_t *cursor) {
    if (peer->has_left || peer->is_violator)
        return TPR_COUNTS_NOT_;
    /* The reader stores UNSET, then the source, then the cursor (each a release). Both loads of the source
     * agreeing therefore means that the cursor between them is of that source, not of a reuse of the slot. */
    uint64_t before = tpr_load_acquire_(&peer->slot->source);
    uint64_t word = tpr_load_acquire_(&peer->slot->cursor); /* with the reader's commit: its copies are done */
    uint64_t after = tpr_load_relaxed_(&peer->slot->source);
    peer->word = word;
    int is_ours = before == writer->source && after == writer->source;
    if (!is_ours || word == TPR_CURSOR_UNSET || (word == TPR_CURSOR_LEFT && peer->stale_left)) {
        *cursor = peer->pin;
        return TPR_FAULT_(NO_PIN) ? TPR_COUNTS_NOT_ : TPR_COUNTS_;
    }
    peer->stale_left = 0;
    if (word == TPR_CURSOR_LEFT) {
        peer->has_left = 1;
        return TPR_COUNTS_NOT_;
    }
    *cursor = word & ~TPR_CURSOR_FLAGS;
    if ((word & TPR_CURSOR_FLAGS) != TPR_CURSOR_SET || *cursor > writer->tail || *cursor < peer->cursor) {
        peer->is_violator = 1;
        return TPR_COUNTS_NOT_;
    }
    peer->cursor = *cursor;
    /* A reader that began at a place overwritten before we knew of it (see "History" in towpath_ring.h) is about to
     * see that, and to go on at our history_pos; until then it holds what is left. */
    if (*cursor < writer->oldest)
        *cursor = writer->oldest;
    return TPR_COUNTS_;
}

/* Look at all slots anew; returns the slowest reader that counts, or NULL, and its position (without one: the tail).
 * O(readers). */
static inline struct tpr_peer *tpr_writer_scan_(struct tpr_writer *writer, uint64_t *lowest) {
    struct tpr_peer *slowest = NULL;
    *lowest = writer->tail;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        uint64_t cursor = 0;
        if (tpr_peer_cursor_(writer, &writer->peer[i], &cursor) == TPR_COUNTS_ && (!slowest || cursor < *lowest)) {
            slowest = &writer->peer[i];
            *lowest = cursor;
        }
    }
    return slowest;
}

/* Have all readers that count taken everything published? */
static inline int tpr_writer_is_drained(struct tpr_writer *writer) {
    uint64_t lowest;
    tpr_writer_scan_(writer, &lowest);
    return lowest == writer->tail;
}

/* The reader furthest behind; 0 when there is none that counts, else 1. */
static inline int tpr_writer_slowest(struct tpr_writer *writer, uint64_t *reader) {
    uint64_t lowest;
    struct tpr_peer *slowest = tpr_writer_scan_(writer, &lowest);
    if (slowest)
        *reader = slowest->reader;
    return slowest != NULL;
}

/* ---- room ---- */

/* The next record begins at `position`: remember that. */
static inline void tpr_positions_note_(struct tpr_writer *writer) {
    struct tpr_positions *positions = writer->positions;
    uint64_t segment = writer->position >> positions->segment_shift;
    if (segment != positions->segment) {
        positions->segment = segment;
        positions->mark[segment % TPR_MARKS] = writer->position;
    }
    if (writer->history)
        positions->message[(writer->last_seq + 1) % positions->message_room] = writer->position;
}

/* The start of a record at `least` or after it, as early as is known. O(1): 64 marks at most. */
static inline uint64_t tpr_positions_after_(const struct tpr_writer *writer, uint64_t least) {
    const struct tpr_positions *positions = writer->positions;
    uint64_t segment = least >> positions->segment_shift;
    for (uint32_t i = 0; i < TPR_MARKS; i++, segment++) {
        uint64_t mark = positions->mark[segment % TPR_MARKS];
        /* A mark left from an earlier turn is less than `least`, and one of the turn that is being written is not in this
         * segment: to take it would give up the whole ring. One of the batch being written is no place yet. */
        if (mark >= least && mark >> positions->segment_shift == segment && mark <= writer->tail)
            return mark;
    }
    return writer->tail;
}

/* Publish where history begins: at most `history` messages back, and not before `oldest`. Amortized O(1). */
static inline void tpr_writer_tell_history_(struct tpr_writer *writer, uint64_t oldest) {
    struct tpr_positions *positions = writer->positions;
    uint64_t last_seq = writer->last_seq - writer->batch_count, at = writer->tail;
    if (last_seq >= writer->history && positions->first_seq <= last_seq - writer->history)
        positions->first_seq = last_seq - writer->history + 1;
    while (positions->first_seq <= last_seq &&
           positions->message[positions->first_seq % positions->message_room] < oldest)
        positions->first_seq++;
    if (positions->first_seq <= last_seq)
        at = positions->message[positions->first_seq % positions->message_room];
    if (at == positions->history_pos)
        return;
    positions->history_pos = at;
    TPR_STORE(HISTORY, &writer->page->history_pos, at, __ATOMIC_RELEASE); /* with the late reader's load of it */
}

/* Go on to `until`: publish what is given up for that. 0: readers do not allow it. */
static inline int tpr_writer_extend_(struct tpr_writer *writer, uint64_t until) {
    uint64_t oldest, lowest;
    if (writer->overflow == TPR_OVERFLOW_DROP) {
        oldest = tpr_positions_after_(writer, until - writer->capacity);
    } else {
        if (until > writer->room_limit) {
            tpr_writer_scan_(writer, &lowest);
            writer->room_limit = lowest + writer->capacity;
            if (until > writer->room_limit)
                return 0;
        }
        until += writer->capacity / TPR_MARKS;
        oldest = (until < writer->room_limit ? until : writer->room_limit) - writer->capacity;
    }
    if (writer->history)
        tpr_writer_tell_history_(writer, oldest);
    writer->oldest = oldest;
    writer->room_until = oldest + writer->capacity;
    if (TPR_FAULT_(OLDEST_AFTER_RECORD))
        return 1;
    TPR_STORE(OLDEST, &writer->page->oldest_pos, oldest, __ATOMIC_RELEASE); /* history_pos is not older than it */
    tpr_fence_release_(); /* with the reader's, between copying a record and its look at oldest_pos */
    return 1;
}

/* What lies before `oldest` (the start of a record, and not after any cursor that counts, or with drop the tail) is given
 * up, although nothing overwrites it in the ring. */
static inline void tpr_writer_give_up_(struct tpr_writer *writer, uint64_t oldest) {
    if (oldest <= writer->oldest)
        return;
    if (writer->history)
        tpr_writer_tell_history_(writer, oldest);
    writer->oldest = oldest;
    writer->room_until = oldest + writer->capacity;
    if (writer->room_limit < writer->room_until)
        writer->room_limit = writer->room_until;
    TPR_STORE(OLDEST, &writer->page->oldest_pos, oldest, __ATOMIC_RELEASE);
}

/* Room for `bytes` at `position`, padding included? Publishes what is given up for them. */
static inline int tpr_writer_has_room_(struct tpr_writer *writer, uint64_t bytes) {
    return writer->position + bytes <= writer->room_until || tpr_writer_extend_(writer, writer->position + bytes);
}

#endif
