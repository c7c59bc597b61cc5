/* What the tests of loans share: patterned messages in the slab, and a shelf of messages that a reader holds on to, looked
 * at again when they are put away.
 */
#ifndef LOANS_H
#define LOANS_H

#include "testing.h"

#define SHELF 3

struct shelf {
    struct kept {
        struct tpr_hold hold;
        uint64_t source, seq;
        size_t headers;
        bool is_kept;
    } kept[SHELF];
    uint32_t next;
};

/* As pattern_put(), but the payload is loaned. `loan` is kept from call to call; its data is NULL when there is none. What
 * the slab has no room for at all is copied. */
static inline int pattern_put_loan(struct tpr_writer *writer, size_t most, struct tpr_loan *loan) {
    uint8_t bytes[16384];
    uint64_t seq = writer->last_seq + 1;
    size_t count = pattern_bytes(writer->source, seq, most), headers = count / 3;
    if (!loan->data) {
        int code = tpr_writer_loan(writer, most, loan);
        if (code != TPR_OK)
            loan->data = NULL;
        if (code == TPR_E_LOANS)
            return pattern_put(writer, most);
        if (code != TPR_OK)
            return code;
    }
    pattern_fill(bytes, count, writer->source, seq);
    TPR_COPY(RECORD_PAYLOAD, loan->data, bytes + headers, count - headers);
    loan->bytes = count - headers;
    int code = tpr_writer_put_loan(writer, bytes, headers, loan);
    if (code == TPR_OK)
        loan->data = NULL;
    return code;
}

/* It is as it was when it was taken; put it away. */
static inline void shelf_clear(struct kept *kept) {
    if (!kept->is_kept)
        return;
    for (size_t i = 0; i < kept->hold.bytes; i++)
        CHECK(kept->hold.data[i] == pattern_byte(kept->source, kept->seq, kept->headers + i));
    tpr_hold_release(&kept->hold);
    kept->is_kept = false;
}

static inline void shelf_clear_all(struct shelf *shelf) {
    for (int i = 0; i < SHELF; i++)
        shelf_clear(&shelf->kept[i]);
}

/* A loaned message was peeked: hold it, instead of the one that is held for longest. NULL: the reader's table is full. */
static inline struct kept *shelf_hold(struct shelf *shelf, struct tpr_reader *reader, const struct tpr_view *view) {
    struct kept *kept = &shelf->kept[shelf->next % SHELF];
    shelf_clear(kept);
    if (tpr_reader_hold(reader, view, &kept->hold) != TPR_OK)
        return NULL;
    kept->source = view->from->source;
    kept->seq = view->seq;
    kept->headers = view->headers_bytes;
    return kept;
}

/* It was consumed, or taken back meanwhile. */
static inline void shelf_keep(struct shelf *shelf, struct kept *kept, bool is_consumed) {
    if (is_consumed)
        shelf->next++;
    else
        tpr_hold_release(&kept->hold);
    kept->is_kept = is_consumed;
}

#endif
