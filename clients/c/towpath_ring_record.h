/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading records out of a ring that may hold anything: another process's, or one's own after a crash.
 *
 * Each word of a record's header is loaded once and checked; what passes lies wholly inside the data and before the
 * end that was given. Not here: whether the bytes still are what they were when they had been copied (a reader asks
 * oldest_pos for that), and whether seq follows from the record before.
 */
#ifndef TOWPATH_RING_RECORD_H
#define TOWPATH_RING_RECORD_H

#include "towpath_ring_steps.h"

/* A message where it lies in the ring, its lengths checked. */
struct tpr_view {
    struct tpr_source *from;          /* set by readers */
    const uint8_t *headers, *payload; /* NULL: a padding record */
    uint64_t seq, time_ns;
    uint64_t missed;                      /* how many of this source were lost just before it; set by readers */
    uint64_t origin_source, origin_seq; /* who published it first; 0 and 0 when the record does not say */
    uint32_t headers_bytes, payload_bytes;
    uint32_t is_loan; /* the payload lies in the slab; here its place does, TPR_PLACE_BYTES of it, until a reader resolves it */
    uint64_t end;     /* the position after it */
};

/* Read the record at position `at`, of which `available` bytes (of 1 or more) are published. Returns NULL and fills in
 * `view` (but `from` and `missed`), or says what is wrong. */
static inline const char *tpr_record_read_(const uint8_t *data, uint64_t capacity, uint64_t at, uint64_t available,
                                           struct tpr_view *view) {
    uint64_t offset = at & (capacity - 1), until_wrap = capacity - offset;
    const uint64_t *word = (const uint64_t *)(const void *)(data + offset);
    uint64_t first = tpr_load_relaxed_(&word[0]);
    uint32_t bytes = (uint32_t)first, flags = (uint32_t)(first >> 32);
    uint64_t origin_bytes = flags & TPR_RECORD_ORIGIN ? TPR_ORIGIN_BYTES : 0;
    view->end = at + bytes;
    view->is_loan = (flags & TPR_RECORD_LOAN) != 0;
    if (flags == TPR_RECORD_PADDING) {
        view->payload = NULL;
        return bytes != until_wrap || bytes > available ? "a padding record does not end at the wrap" : NULL;
    }
    if ((flags & ~(TPR_RECORD_ORIGIN | TPR_RECORD_LOAN)) != TPR_RECORD_DATA)
        return "a record is of unknown kind";
    if (bytes < TPR_RECORD_HEADER_BYTES + origin_bytes || bytes > capacity / 4 + origin_bytes || bytes > available ||
        bytes > until_wrap)
        return "a record's length is impossible";
    view->seq = tpr_load_relaxed_(&word[1]);
    view->time_ns = tpr_load_relaxed_(&word[2]);
    uint64_t lengths = tpr_load_relaxed_(&word[3]);
    view->headers_bytes = (uint32_t)lengths;
    view->payload_bytes = (uint32_t)(lengths >> 32);
    if (tpr_record_bytes(view->headers_bytes, view->payload_bytes) + origin_bytes != bytes)
        return "a record's lengths disagree";
    if (view->is_loan && view->payload_bytes != TPR_PLACE_BYTES)
        return "a loan's place has another length";
    view->origin_source = origin_bytes ? tpr_load_relaxed_(&word[4]) : 0;
    view->origin_seq = origin_bytes ? tpr_load_relaxed_(&word[5]) : 0;
    view->headers = (const uint8_t *)&word[4] + origin_bytes;
    view->payload = view->headers + view->headers_bytes;
    if (view->is_loan) { /* a place comes first, so that it is aligned */
        view->payload = view->headers;
        view->headers += TPR_PLACE_BYTES;
    }
    return NULL;
}

/* Where the newest batch begins that ends at `tail`: of the two anchors the last one before it. 0 also when both are
 * later, which happens when the writer went on meanwhile (position 0 is an answer only while that is in the ring). */
static inline uint64_t tpr_newest_batch_(const struct tpr_ring_page *page, uint64_t tail) {
    uint64_t a = tpr_load_relaxed_(&page->anchor[0]), b = tpr_load_relaxed_(&page->anchor[1]);
    a = a < tail && a % 8 == 0 ? a : 0;
    b = b < tail && b % 8 == 0 ? b : 0;
    return a > b ? a : b;
}

/* Walk the records from position `at`, the start of one, to `tail`; `newest` is left with the last message (payload
 * NULL: there was none). Returns whether there are none but records, at most `most` of them, and their seqs follow each
 * other. */
static inline int tpr_walk_(const uint8_t *data, uint64_t capacity, uint64_t at, uint64_t tail, uint64_t most,
                            struct tpr_view *newest) {
    memset(newest, 0, sizeof *newest);
    if (at > tail || tail - at > capacity)
        return 0;
    while (at != tail) {
        struct tpr_view view;
        memset(&view, 0, sizeof view);
        if (most-- == 0 || tpr_record_read_(data, capacity, at, tail - at, &view))
            return 0;
        at = view.end;
        if (!view.payload)
            continue;
        if (view.seq == 0 || (newest->payload && view.seq != newest->seq + 1))
            return 0;
        *newest = view;
    }
    return 1;
}

#endif
