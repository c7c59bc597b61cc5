/* SPDX-License-Identifier: Apache-2.0
 *
 * Loans: a payload that is made where its readers look at it, and never copied. The writer's half. (The reader's half:
 * towpath_ring_hold.h. Which pages are whose: towpath_ring_slab.h.)
 *
 * THEORY OF OPERATION
 *
 * Behind the ring, in the same memfd, lies the writer's slab. So whoever may read the ring may read the slab, by the same
 * descriptor: nothing has to be handed out, taken up again or checked for it a second time, and a late reader has all
 * that the ring's records speak of. (A memfd is sparse: a slab that is never used costs address space only. A second memfd,
 * made at the first loan, would have to reach each reader through the core before the first record that speaks of it.)
 *
 * A loan is pages of the slab that the writer's program fills in place. Published, it becomes a record that says where they
 * are; it has a seq as any has, and (source, seq), which is unique for ever, is its name from then on. A reader copies the
 * bytes out, as it does with those in the ring, or holds them: it writes their name into the *held table* of its control
 * page, and may then look at them for as long as that stands there. That is reference counting without a shared counter
 * (hazard pointers across processes): each holder writes its own page, and only the writer adds up.
 *
 * WHEN PAGES MAY BE USED AGAIN: when (1) no reader that counts has its cursor before the end of the record, and (2) nobody
 * holds it. With drop, a slab without room does not wait for (1): the oldest messages are lost to who has not read them, as
 * in the ring. But (2) always holds: a message that somebody looks at is never touched.
 *
 * Why nobody ever looks at pages that are used again:
 *
 *     reader                                      writer
 *     held.source, held.seq := record             [L: load cursors; all are past the record, or drop]
 *        fence                                    oldest_pos := past the record
 *     O: load oldest_pos: past it? then give up      fence
 *     cursor := past the record                   G: load generation: changed? then attach first
 *                                                 H: load all held tables; held? then it stays
 *                                                 the pages are free
 *
 *   - A reader that the writer knows: either O sees oldest_pos (and the reader looks at nothing), or H sees the hold: the two
 *     fences forbid that both miss (Dekker). So it is safe whether or not the cursor counted at L: also for one that the
 *     writer has been parted from, whose page is kept for that (tpr_writer_part).
 *   - One that the writer does not know yet: then its generation G is new, or, by the same argument as in towpath_ring.h,
 *     "Attaching", the reader began after the writer's fence, and its O sees oldest_pos.
 *   - A reader that copies has no hold. Its copy is checked afterwards, as any: oldest_pos was published before anything
 *     could be written into the pages (release fence; the writer's program writes later still).
 *   - The bytes: the holder's looks come before the release-store that ends its hold, H is an acquire, and the writer's
 *     program writes after that. The program's writes come before the tail that publishes them.
 *
 * A holder that dies: the core withdraws its page, the writer detaches it, and with the page its holds are gone. A writer
 * that dies leaves its readers their mappings. Neither leaves anything to repair.
 *
 * HOSTILE PEERS. The record's place is loaded once and checked against the slab's size as it was when the ring was mapped.
 * A held table may claim anything: at worst the writer spares pages until the core withdraws the page.
 *
 * WHAT OTHERS SEE OF OLD BYTES. A slab belongs to one source: one program, one principal, one channel; its pages never go to
 * another owner, so they are not zeroed between two messages. What a loan's buffer holds at first is what an earlier message of
 * the same source left there, or zeros. A loan that is given back unpublished is zeroed: nobody was meant to see it.
 *
 * WAITING. A writer without a free piece stores loans_wanted, fences, and looks again; a reader that moved a cursor or
 * released something fences and looks at loans_wanted (Dekker, once more), moves the word `released` in its page, and wakes.
 *
 * HISTORY. What late readers may ask for stays, for as long as there is room beside it; then it gives way.
 *
 * Invariants: a block is free only if nobody holds it, and oldest_pos is past its record; `published` is in order of seq and
 * of position.
 *
 * Not here: loans of a ring that was taken up again after a crash (towpath_ring_recover.h): there are none.
 * Source: M. Michael, "Hazard pointers: safe memory reclamation for lock-free objects" (2004).
 */
#ifndef TOWPATH_RING_LOAN_H
#define TOWPATH_RING_LOAN_H

#include "towpath_ring_writer_wait.h"

/* A piece of the slab that is its holder's to fill. */
struct tpr_loan {
    uint8_t *data;   /* page-aligned */
    uint64_t bytes;  /* as asked for */
    uint64_t serial; /* of the block; see tpr_loan_block_() */
    uint32_t index;
};

/* How much is published between two looks for what may be used again: little, that it is still in the cache then; but a
 * look is for TPR_LOOK_ENTRIES entries of held tables one message at least, so that looks cost little by the message. */
#define TPR_LOOK_BYTES (UINT64_C(256) << 10)
#define TPR_LOOK_COUNT 32u
#define TPR_LOOK_ENTRIES 8u

/* Note which of the first `count` published are held by whom. Garbage in a table is a message that is not there, or keeps
 * one that is. O(readers + entries in use * log count). */
static inline void tpr_loans_mark_held_(struct tpr_writer *writer, uint32_t count) {
    struct tpr_slab *slab = writer->slab;
    uint64_t looked = 0;
    for (uint32_t i = 0; i < count; i++)
        slab->block[slab->published[i]].is_held = 0;
    for (uint32_t p = 0; p < writer->peer_count && !TPR_FAULT_(HOLDS_IGNORED); p++) {
        const struct tpr_peer *peer = &writer->peer[p];
        uint64_t until = tpr_load_acquire_(&peer->control->held_until); /* not less than what the holds below needed */
        if (until > peer->held_max)
            until = peer->held_max;
        looked += until;
        for (uint64_t e = 0; e < until; e++) {
            uint64_t seq = tpr_load_acquire_(&peer->held[e].seq); /* with the reader's release of it: it has looked */
            if (!seq || tpr_load_relaxed_(&peer->held[e].source) != writer->source)
                continue;
            struct tpr_block *block = tpr_slab_find_(slab, count, seq);
            if (block)
                block->is_held = 1;
        }
    }
    slab->looked = looked;
}

/* Free what was published before `limit` and is held by nobody. Returns TPR_OK, or TPR_NEEDS_READERS: not known. */
static inline int tpr_loans_free_before_(struct tpr_writer *writer, uint64_t limit) {
    struct tpr_slab *slab = writer->slab;
    uint32_t count = 0, kept = 0;
    while (count < slab->published_count && slab->block[slab->published[count]].end <= limit)
        count++;
    if (!count)
        return TPR_OK;
    tpr_writer_give_up_(writer, slab->block[slab->published[count - 1]].end);
    TPR_FENCE(REUSE); /* with the reader's, between its hold and its look at oldest_pos */
    if (!tpr_writer_is_current_(writer))
        return TPR_NEEDS_READERS;
    tpr_loans_mark_held_(writer, count);
    for (uint32_t i = 0; i < slab->published_count; i++) {
        struct tpr_block *block = &slab->block[slab->published[i]];
        if (i < count && !block->is_held)
            tpr_slab_free_(slab, block);
        else
            slab->published[kept++] = slab->published[i];
    }
    slab->published_count = kept;
    return TPR_OK;
}

/* Up to where all have read; not what history promises, unless `is_pressed`. */
static inline uint64_t tpr_loans_limit_(struct tpr_writer *writer, int is_pressed) {
    uint64_t lowest;
    tpr_writer_scan_(writer, &lowest);
    if (TPR_FAULT_(REUSE_BEFORE_CURSOR))
        lowest = writer->tail;
    if (!is_pressed && writer->history && writer->positions->history_pos < lowest)
        lowest = writer->positions->history_pos;
    return lowest;
}

/* Loans are of `bytes`: when to look again, unless the slab has no room before. */
static inline void tpr_loans_pause_(struct tpr_writer *writer, uint64_t bytes) {
    struct tpr_slab *slab = writer->slab;
    uint64_t pause = TPR_LOOK_BYTES / tpr_block_bytes_(bytes) + 1, least = slab->looked / TPR_LOOK_ENTRIES;
    pause = pause < TPR_LOOK_COUNT ? pause : TPR_LOOK_COUNT;
    slab->look_at = slab->published_count + (uint32_t)(pause > least ? pause : least);
}

/* A block for `bytes`, if need be after taking back what can be. TPR_OK; TPR_FULL; TPR_NEEDS_READERS; TPR_E_LOANS: waiting
 * for others cannot help. */
static inline int tpr_loans_take_(struct tpr_writer *writer, uint64_t bytes, struct tpr_block **block) {
    struct tpr_slab *slab = writer->slab;
    int code = TPR_OK, has_looked = slab->published_count >= slab->look_at;
    if (has_looked) {
        code = tpr_loans_free_before_(writer, tpr_loans_limit_(writer, 0));
        tpr_loans_pause_(writer, bytes);
    }
    *block = tpr_slab_take_(slab, bytes);
    if (*block)
        return TPR_OK;
    tpr_writer_flush(writer); /* what is given up is published */
    for (int is_pressed = has_looked; !*block && code == TPR_OK && is_pressed <= 1; is_pressed++) {
        code = tpr_loans_free_before_(writer, tpr_loans_limit_(writer, is_pressed));
        *block = tpr_slab_take_(slab, bytes);
    }
    /* Drop: one message after the other, the oldest first, until it fits. */
    for (uint32_t i = 0; !*block && code == TPR_OK && writer->overflow == TPR_OVERFLOW_DROP && i < slab->published_count;) {
        uint32_t before = slab->published_count;
        code = tpr_loans_free_before_(writer, slab->block[slab->published[i]].end);
        i += slab->published_count == before; /* held: the next one */
        *block = tpr_slab_take_(slab, bytes);
    }
    if (*block)
        return TPR_OK;
    if (code != TPR_OK)
        return code;
    if (!tpr_writer_is_current_(writer)) /* who is in the way may be gone */
        return TPR_NEEDS_READERS;
    return writer->overflow == TPR_OVERFLOW_DROP || !slab->published_count ? TPR_E_LOANS : TPR_FULL;
}

/* Could `bytes` be loaned at all? Makes the table of blocks when first asked. */
static inline int tpr_loans_check_(struct tpr_writer *writer, uint64_t bytes) {
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    if (!writer->slab_bytes)
        return TPR_E_NO_SLAB;
    if (bytes > writer->slab_bytes || bytes > UINT32_MAX)
        return TPR_E_TOO_LARGE;
    if (!writer->slab && !(writer->slab = tpr_slab_new_(writer->slab_bytes)))
        return TPR_E_SYSTEM;
    return TPR_OK;
}

/* Have `bytes` (0..slab_bytes, and less than 2^32) of the slab to fill. What they hold at first is an earlier message's, or
 * zeros. The largest free piece counts, so not every sum that is free can be had at once.
 *
 * Returns TPR_OK; TPR_FULL (readers have not read, or let go of, what was published: tpr_writer_loan_wait(); not with
 * overflow = drop); TPR_NEEDS_READERS; TPR_E_LOANS (the rest is out, or, with drop, held); TPR_E_TOO_LARGE; TPR_E_NO_SLAB;
 * TPR_E_FORKED; TPR_E_SYSTEM. Amortized O(readers + holds). */
static inline int tpr_writer_loan(struct tpr_writer *writer, uint64_t bytes, struct tpr_loan *loan) {
    struct tpr_block *block;
    int code = tpr_loans_check_(writer, bytes);
    if (code == TPR_OK)
        code = tpr_loans_take_(writer, bytes, &block);
    if (code != TPR_OK)
        return code;
    loan->data = writer->slab_data + block->offset;
    loan->bytes = bytes;
    loan->serial = block->serial;
    loan->index = (uint32_t)(block - writer->slab->block);
    return TPR_OK;
}

/* Its block; NULL: it was published, or given back. */
static inline struct tpr_block *tpr_loan_block_(const struct tpr_writer *writer, const struct tpr_loan *loan) {
    if (!writer->slab || loan->index >= TPR_LOANS_MAX)
        return NULL;
    struct tpr_block *block = &writer->slab->block[loan->index];
    return block->serial == loan->serial && block->state == TPR_BLOCK_OUT ? block : NULL;
}

/* Add the first `loan->bytes` of a loan to the batch (fewer than were loaned will do): as tpr_writer_put(), without the copy.
 * On TPR_OK its bytes are the readers', and not to be written any more.
 *
 * Returns as tpr_writer_put(); TPR_E_LOAN. The loan stays the caller's unless TPR_OK. */
static inline int tpr_writer_put_loan(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                      const struct tpr_loan *loan) {
    struct tpr_block *block = tpr_loan_block_(writer, loan);
    if (!block || loan->bytes > block->bytes)
        return TPR_E_LOAN;
    uint64_t place[2] = {block->offset, loan->bytes};
    int code = tpr_writer_put_record_(writer, headers, headers_bytes, NULL, TPR_PLACE_BYTES, NULL, place);
    if (code != TPR_OK)
        return code;
    block->state = TPR_BLOCK_PUBLISHED;
    block->seq = writer->last_seq;
    block->end = writer->position;
    writer->slab->published[writer->slab->published_count++] = loan->index;
    return TPR_OK;
}

/* put_loan() and flush(). */
static inline int tpr_writer_publish_loan(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                          const struct tpr_loan *loan) {
    int code = tpr_writer_put_loan(writer, headers, headers_bytes, loan);
    if (code == TPR_OK)
        tpr_writer_flush(writer);
    return code;
}

/* Give a loan back unpublished; its pages are zeros again. TPR_OK, TPR_E_LOAN, TPR_E_FORKED. */
static inline int tpr_writer_return_loan(struct tpr_writer *writer, const struct tpr_loan *loan) {
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    struct tpr_block *block = tpr_loan_block_(writer, loan);
    if (!block)
        return TPR_E_LOAN;
    if (madvise(writer->slab_data + block->offset, block->bytes, MADV_REMOVE) != 0)
        memset(writer->slab_data + block->offset, 0, block->bytes);
    tpr_slab_free_(writer->slab, block);
    return TPR_OK;
}

/* ---- waiting ---- */

/* Everything that a sleeping writer looks at. */
struct tpr_loan_wait {
    uint64_t *wanted;
    const uint64_t *word[TPR_WAITV_MAX - 2]; /* of each reader, `released`, */
    uint64_t seen[TPR_WAITV_MAX - 2];        /* as it was before the look in vain */
    uint32_t count;
    uint32_t is_partial; /* there are more readers than fit: look again every TPR_SLICE_NS */
    const uint64_t *generation_cell;
    uint64_t generation;
    const uint32_t *wake_word;
    uint32_t wake_seen;
    struct tpr_spin *spin;
};

/* Whose cursor is it that does not move past the oldest message that somebody has not read? Who only holds is not stuck. */
static inline void tpr_loans_note_stuck_(struct tpr_writer *writer) {
    struct tpr_slab *slab = writer->slab;
    uint64_t lowest;
    uint32_t i = 0;
    tpr_writer_scan_(writer, &lowest);
    while (i < slab->published_count && slab->block[slab->published[i]].end <= lowest)
        i++;
    writer->full_until = i < slab->published_count ? slab->block[slab->published[i]].end + writer->capacity : 0;
    tpr_writer_note_stuck_(writer);
}

/* Say what is wanted, and look once more. As tpr_writer_loan(), but takes nothing. With TPR_FULL loans_wanted stays set. */
static inline int tpr_loans_want_(struct tpr_writer *writer, uint64_t bytes, uint64_t how, struct tpr_loan_wait *wait) {
    struct tpr_block *block;
    int code = tpr_loans_check_(writer, bytes);
    if (code != TPR_OK)
        return code;
    wait->wake_seen = __atomic_load_n(&writer->wake_word, __ATOMIC_ACQUIRE);
    tpr_writer_flush(writer);
    TPR_STORE(LOANS_WANTED, &writer->page->loans_wanted, how, __ATOMIC_RELEASE);
    TPR_FENCE(LOANS); /* with the reader's, between what it let go of and its look at loans_wanted */
    wait->wanted = &writer->page->loans_wanted;
    wait->count = wait->is_partial = 0;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        if (wait->count == TPR_WAITV_MAX - 2) {
            wait->is_partial = 1;
            break;
        }
        wait->word[wait->count] = &writer->peer[i].control->released;
        wait->seen[wait->count++] = tpr_load_acquire_(&writer->peer[i].control->released);
    }
    wait->generation_cell = writer->generation_cell;
    wait->generation = writer->generation;
    wait->wake_word = &writer->wake_word;
    wait->spin = &writer->spin;
    code = tpr_loans_take_(writer, bytes, &block);
    if (code == TPR_OK)
        tpr_slab_free_(writer->slab, block);
    if (code != TPR_FULL) {
        TPR_STORE(LOANS_WANTED, &writer->page->loans_wanted, TPR_LOANS_WANTED_NOT, __ATOMIC_RELEASE);
        return code;
    }
    tpr_loans_note_stuck_(writer);
    return TPR_FULL;
}

/* Can `bytes` be loaned now? As tpr_writer_loan(), but takes nothing; TPR_FULL: `wait` is filled in for
 * tpr_loan_wait_sleep(), which must follow. */
static inline int tpr_writer_loan_wait_begin(struct tpr_writer *writer, uint64_t bytes, struct tpr_loan_wait *wait) {
    return tpr_loans_want_(writer, bytes, TPR_LOANS_WANTED_FUTEX, wait);
}

/* A writer that were woken by the first message that is let go of would go back to sleep at once, and so for each. So who
 * waits naps first: as for room in the ring, until three quarters of what is published have been read. Not for long, for that is
 * not what is waited for: one message less may be enough, and whoever has read may hold. */
#define TPR_NAP_NS UINT64_C(200000)

/* Is it a reader's cursor that is in the way? Then `nap` is filled in for tpr_loan_nap(). */
static inline int tpr_writer_loan_nap_begin(struct tpr_writer *writer, struct tpr_room_wait *nap) {
    struct tpr_slab *slab = writer->slab;
    if (!slab || !slab->published_count)
        return 0;
    return tpr_writer_wait_begin(writer, TPR_READ_TO + slab->block[slab->published[slab->published_count - 1 - slab->published_count / 4]].end, nap) ==
           TPR_FULL;
}

/* Touches nothing but `nap`, and what it points at. */
static inline void tpr_loan_nap(const struct tpr_room_wait *nap, uint64_t deadline_ns) {
    uint64_t end_ns = tpr_monotonic_ns() + TPR_NAP_NS;
    tpr_room_wait_sleep(nap, end_ns < deadline_ns ? end_ns : deadline_ns);
}

static inline int tpr_loan_wait_is_over_(const struct tpr_loan_wait *wait) {
    for (uint32_t i = 0; i < wait->count; i++)
        if (tpr_load_acquire_(wait->word[i]) != wait->seen[i])
            return 1;
    return (wait->generation_cell && tpr_load_acquire_(wait->generation_cell) != wait->generation) ||
           __atomic_load_n(wait->wake_word, __ATOMIC_ACQUIRE) != wait->wake_seen;
}

/* Sleep until something changed that is worth another tpr_writer_loan_wait_begin(), or the deadline.
 * Returns TPR_OK, TPR_TIMEOUT, TPR_INTERRUPTED, TPR_E_SYSTEM. */
static inline int tpr_loan_wait_sleep(const struct tpr_loan_wait *wait, uint64_t deadline_ns) {
    struct tpr_waitv_ entry[TPR_WAITV_MAX];
    uint32_t count = 0;
    int code = TPR_OK;
    for (uint32_t i = 0; i < wait->count; i++)
        entry[count++] = tpr_waitv_entry_(wait->word[i], wait->seen[i], 0);
    if (wait->generation_cell)
        entry[count++] = tpr_waitv_entry_(wait->generation_cell, wait->generation, 0);
    entry[count++] = tpr_waitv_entry_(wait->wake_word, wait->wake_seen, 1);
    uint64_t began_ns = tpr_monotonic_ns();
    uint64_t slice_end_ns = wait->is_partial ? tpr_monotonic_ns() + TPR_SLICE_NS : deadline_ns;
    int is_slice = slice_end_ns < deadline_ns;
    while (code == TPR_OK && !tpr_loan_wait_is_over_(wait))
        code = tpr_wait_any_(entry, count, is_slice ? slice_end_ns : deadline_ns);
    TPR_STORE(LOANS_WANTED, wait->wanted, TPR_LOANS_WANTED_NOT, __ATOMIC_RELEASE);
    tpr_spin_slept_(wait->spin, tpr_monotonic_ns() - began_ns);
    return code == TPR_TIMEOUT && is_slice ? TPR_OK : code;
}

/* Wait until `bytes` can be loaned. Returns as tpr_writer_loan_wait_begin() but for TPR_FULL; TPR_TIMEOUT, TPR_NOTIFIED,
 * TPR_INTERRUPTED. */
static inline int tpr_writer_loan_wait(struct tpr_writer *writer, uint64_t bytes, uint64_t deadline_ns) {
    struct tpr_loan_wait wait;
    struct tpr_room_wait nap;
    for (;;) {
        if (tpr_writer_loan_nap_begin(writer, &nap)) {
            tpr_loan_nap(&nap, deadline_ns);
            if (__atomic_load_n(&writer->wake_word, __ATOMIC_ACQUIRE) != nap.wake_seen)
                return TPR_NOTIFIED;
        }
        int code = tpr_writer_loan_wait_begin(writer, bytes, &wait);
        if (code != TPR_FULL)
            return code;
        code = tpr_loan_wait_sleep(&wait, deadline_ns);
        if (code != TPR_OK)
            return code;
        if (__atomic_load_n(&writer->wake_word, __ATOMIC_ACQUIRE) != wait.wake_seen)
            return TPR_NOTIFIED;
    }
}

/* Event loops: have the doorbell that the readers were given rung when something is let go of. As
 * tpr_writer_loan_wait_begin(); TPR_FULL: it is armed. Who holds after its source is gone (a reader that was parted from)
 * does not ring. */
static inline int tpr_writer_arm_loan(struct tpr_writer *writer, uint64_t bytes) {
    struct tpr_loan_wait wait;
    return tpr_loans_want_(writer, bytes, TPR_LOANS_WANTED_DOORBELL, &wait);
}

/* No doorbell wanted any more. */
static inline void tpr_writer_disarm_loan(struct tpr_writer *writer) {
    TPR_STORE(LOANS_WANTED, &writer->page->loans_wanted, TPR_LOANS_WANTED_NOT, __ATOMIC_RELEASE);
}

#endif
