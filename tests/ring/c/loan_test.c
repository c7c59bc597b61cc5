/* Loans, in one process: when pages are used again and when not; what is refused; what a ring or a held table that lies can
 * do; holds that outlive their source and their reader; and, with a thread that moves only when told, each order of events
 * that a fence is there for (built with a store buffer, so that a missing one shows).
 */
#include "loans.h"

#include <pthread.h>

#define PAGE TPR_SLAB_GRAIN

static struct tpr_writer writer;
static struct tpr_reader reader;

static void attach_reader(struct tpr_reader *to, uint64_t id, enum tpr_start start) {
    int control = tpr_reader_share(to), ring = tpr_writer_share(&writer);
    CHECK(tpr_writer_attach(&writer, id, control, 0, -1, start) == TPR_OK);
    CHECK(tpr_reader_add(to, ring, 0, 7, start, -1, NULL) == TPR_OK);
    close(control);
    close(ring);
}

static void open_both(uint32_t overflow, uint32_t history, uint64_t pages, uint32_t held_max) {
    CHECK(tpr_writer_open_loaning(&writer, 7, 4096, overflow, history, pages * PAGE) == TPR_OK);
    CHECK(tpr_reader_open_holding(&reader, 9, 4, held_max) == TPR_OK);
    no_spin(&writer.spin);
    attach_reader(&reader, 9, TPR_START_BEGIN);
}

static void close_both(void) {
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
}

/* Publish a loan full of `byte`; its offset in the slab. */
static uint64_t publish(uint8_t byte, uint64_t bytes) {
    struct tpr_loan loan;
    CHECK(tpr_writer_loan(&writer, bytes, &loan) == TPR_OK && loan.bytes == bytes);
    memset(loan.data, byte, bytes);
    CHECK(tpr_writer_publish_loan(&writer, "h", 1, &loan) == TPR_OK);
    return (uint64_t)(loan.data - writer.slab_data);
}

/* Take the next message of `from`, and hold it if `hold` is not NULL. Returns its seq; 0: there was none. */
static uint64_t take(struct tpr_reader *from, struct tpr_hold *hold) {
    struct tpr_view view;
    CHECK(tpr_reader_begin(from) == TPR_OK);
    while (tpr_reader_peek(from, &view)) {
        if (hold)
            CHECK(tpr_reader_hold(from, &view, hold) == TPR_OK);
        if (tpr_reader_consume(from, &view)) {
            CHECK(view.is_loan && view.headers_bytes == 1 && view.headers[0] == 'h');
            tpr_reader_end(from);
            return view.seq;
        }
        if (hold)
            tpr_hold_release(hold); /* it was taken back */
    }
    return 0;
}

static void check_bytes(const struct tpr_hold *hold, uint8_t byte, uint64_t bytes) {
    CHECK(hold->bytes == bytes);
    for (uint64_t i = 0; i < bytes; i++)
        CHECK(hold->data[i] == byte);
}

static int try_loan(uint64_t bytes) {
    struct tpr_loan loan;
    int code = tpr_writer_loan(&writer, bytes, &loan);
    if (code == TPR_OK)
        CHECK(tpr_writer_return_loan(&writer, &loan) == TPR_OK);
    return code;
}

static void test_reuse(void) {
    struct tpr_hold first, second;
    open_both(TPR_OVERFLOW_BLOCK, 0, 3, 4);
    CHECK(publish(1, 5000) == 0); /* two pages */
    CHECK(publish(2, 100) == 2 * PAGE);
    CHECK(try_loan(1) == TPR_FULL); /* neither was read */
    CHECK(take(&reader, &first) == 1 && take(&reader, &second) == 2);
    CHECK(try_loan(1) == TPR_FULL); /* both are held */
    tpr_hold_release(&first);
    CHECK(try_loan(8193) == TPR_FULL);
    CHECK(publish(3, 8192) == 0); /* the very pages */
    check_bytes(&second, 2, 100);
    CHECK(take(&reader, &first) == 3);
    check_bytes(&first, 3, 8192);
    tpr_hold_release(&second);
    CHECK(publish(4, 1) == 2 * PAGE);
    CHECK(take(&reader, NULL) == 4); /* copied, or not looked at: nobody holds it */
    CHECK(publish(5, 0) == 2 * PAGE);
    CHECK(take(&reader, &second) == 5 && second.bytes == 0);
    tpr_hold_release(&first);
    tpr_hold_release(&second);
    CHECK(try_loan(3 * PAGE) == TPR_OK); /* the extents are whole again */
    CHECK(reader.held_count == 0 && reader.page->held_until == 0);
    close_both();
}

/* Entries of the held table are used again, the lowest first, in whichever order they are let go of. */
static void test_entries(void) {
    struct tpr_hold hold[5];
    uint32_t is_held = 0;
    open_both(TPR_OVERFLOW_BLOCK, 0, 64, 5);
    for (uint64_t turn = 0; turn < 1000; turn++) {
        uint32_t at = (uint32_t)(mix(turn) % 5), lowest = 0;
        if (is_held >> at & 1) {
            tpr_hold_release(&hold[at]);
            is_held &= ~(1u << at);
            continue;
        }
        while (is_held >> lowest & 1)
            lowest++;
        publish(1, 1);
        CHECK(take(&reader, &hold[lowest]) && hold[lowest].index == lowest);
        is_held |= 1u << lowest;
        CHECK(reader.held_count == (uint32_t)__builtin_popcount(is_held));
        CHECK(reader.page->held_until == 32 - (uint32_t)__builtin_clz(is_held));
    }
    close_both();
    for (uint32_t at = 0; at < 5; at++)
        if (is_held >> at & 1)
            tpr_hold_release(&hold[at]);
}

/* It naps until three quarters are read, and then sleeps until something is let go of. */
static void test_nap(void) {
    struct tpr_room_wait nap;
    struct tpr_hold hold;
    open_both(TPR_OVERFLOW_BLOCK, 0, 4, 4);
    CHECK(!tpr_writer_loan_nap_begin(&writer, &nap)); /* nothing was ever loaned */
    for (uint8_t i = 1; i <= 4; i++)
        publish(i, 1);
    for (uint64_t seq = 1; seq <= 3; seq++) {
        CHECK(tpr_writer_loan_nap_begin(&writer, &nap) && nap.needed == writer.slab->block[writer.slab->published[2]].end);
        tpr_loan_nap(&nap, TPR_FOREVER); /* ends by itself */
        CHECK(take(&reader, seq == 1 ? &hold : NULL) == seq);
    }
    CHECK(!tpr_writer_loan_nap_begin(&writer, &nap));
    CHECK(tpr_writer_loan_wait(&writer, 1, within_limit()) == TPR_OK);
    CHECK(tpr_writer_loan_wait(&writer, 3 * PAGE, tpr_monotonic_ns() + 1000000) == TPR_TIMEOUT);
    tpr_hold_release(&hold);
    close_both();
}

static void test_refusals(void) {
    struct tpr_loan loan, other;
    CHECK(tpr_writer_open_loaning(&writer, 7, 4096, 0, 0, 100) == TPR_E_SLAB);
    CHECK(tpr_writer_open_loaning(&writer, 7, 4096, 0, 0, TPR_SLAB_MAX + PAGE) == TPR_E_SLAB);
    CHECK(tpr_reader_open_holding(&reader, 9, 4, TPR_HELD_MAX + 1) == TPR_E_HELD);
    CHECK(tpr_writer_open(&writer, 7, 4096) == TPR_OK);
    CHECK(try_loan(1) == TPR_E_NO_SLAB);
    tpr_writer_close(&writer);
    open_both(TPR_OVERFLOW_BLOCK, 0, 2, 4);
    CHECK(try_loan(2 * PAGE + 1) == TPR_E_TOO_LARGE);
    CHECK(tpr_writer_loan(&writer, 1, &loan) == TPR_OK);
    CHECK(tpr_writer_loan(&writer, 1, &other) == TPR_OK);
    CHECK(try_loan(1) == TPR_E_LOANS); /* both are out: waiting for readers would be for ever */
    memset(other.data, 7, PAGE);
    CHECK(tpr_writer_return_loan(&writer, &other) == TPR_OK && other.data[0] == 0 && other.data[PAGE - 1] == 0);
    CHECK(tpr_writer_return_loan(&writer, &other) == TPR_E_LOAN);
    CHECK(tpr_writer_publish_loan(&writer, NULL, 0, &other) == TPR_E_LOAN);
    char headers[2048];
    CHECK(tpr_writer_publish_loan(&writer, headers, sizeof headers, &loan) == TPR_E_TOO_LARGE);
    loan.bytes = PAGE + 1;
    CHECK(tpr_writer_publish_loan(&writer, NULL, 0, &loan) == TPR_E_LOAN);
    loan.bytes = 1;
    CHECK(tpr_writer_publish_loan(&writer, NULL, 0, &loan) == TPR_OK); /* refused ones are still ours */
    CHECK(tpr_writer_publish_loan(&writer, NULL, 0, &loan) == TPR_E_LOAN);
    CHECK(tpr_writer_return_loan(&writer, &loan) == TPR_E_LOAN);
    other.index = TPR_LOANS_MAX;
    CHECK(tpr_writer_return_loan(&writer, &other) == TPR_E_LOAN);
    close_both();
}

static void test_limits(void) {
    struct tpr_hold hold[2];
    struct tpr_loan loan;
    struct tpr_view view;
    open_both(TPR_OVERFLOW_BLOCK, 0, TPR_LOANS_MAX + 1, 1);
    for (uint32_t i = 0; i < TPR_LOANS_MAX; i++)
        CHECK(tpr_writer_loan(&writer, 1, &loan) == TPR_OK);
    CHECK(try_loan(1) == TPR_E_LOANS); /* there is a page, but no block for it */
    CHECK(tpr_writer_publish_loan(&writer, "h", 1, &loan) == TPR_OK);
    CHECK(take(&reader, &hold[0]) == TPR_LOANS_MAX - (TPR_LOANS_MAX - 1));
    CHECK(try_loan(1) == TPR_FULL);
    tpr_hold_release(&hold[0]);
    publish(1, 1);
    CHECK(take(&reader, &hold[0]) == 2);
    CHECK(try_loan(1) == TPR_FULL);
    tpr_hold_release(&hold[0]);
    publish(2, 1);
    CHECK(take(&reader, &hold[0]) == 3);
    tpr_reader_begin(&reader);
    CHECK(!tpr_reader_peek(&reader, &view));
    close_both();
    check_bytes(&hold[0], 2, 1);
    tpr_hold_release(&hold[0]);

    open_both(TPR_OVERFLOW_BLOCK, 0, 4, 1);
    publish(1, 1);
    publish(2, 1);
    CHECK(take(&reader, &hold[0]) == 1);
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view));
    CHECK(tpr_reader_hold(&reader, &view, &hold[1]) == TPR_FULL && reader.loans_copied == 1); /* it has one entry */
    CHECK(view.payload[0] == 2 && tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    tpr_hold_release(&hold[0]);
    close_both();
}

static void test_drop(void) {
    struct tpr_hold hold[3];
    struct tpr_view view;
    open_both(TPR_OVERFLOW_DROP, 0, 3, 4);
    for (uint8_t i = 1; i <= 3; i++)
        publish(i, 1);
    CHECK(publish(4, 2 * PAGE) == 0); /* the oldest two are given up */
    CHECK(take(&reader, &hold[0]) == 3 && reader.lost == 2);
    check_bytes(&hold[0], 3, 1);
    CHECK(publish(5, 1) == 0); /* what is held is not, though it is the oldest */
    CHECK(take(&reader, &hold[1]) == 5 && reader.lost == 3);
    CHECK(publish(6, 1) == PAGE);
    CHECK(take(&reader, &hold[2]) == 6);
    CHECK(try_loan(1) == TPR_E_LOANS); /* all are held */
    for (uint8_t i = 0; i < 3; i++) {
        check_bytes(&hold[i], i == 0 ? 3 : 4 + i, 1);
        tpr_hold_release(&hold[i]);
    }
    /* Taken back between peek and hold, and between peek and consume. */
    publish(7, 3 * PAGE);
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view));
    publish(8, 3 * PAGE);
    CHECK(tpr_reader_hold(&reader, &view, &hold[0]) == TPR_OK);
    CHECK(!tpr_reader_consume(&reader, &view));
    tpr_hold_release(&hold[0]);
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 8);
    publish(9, 3 * PAGE);
    CHECK(!tpr_reader_consume(&reader, &view));
    /* Held in time. */
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 9);
    CHECK(tpr_reader_hold(&reader, &view, &hold[0]) == TPR_OK);
    CHECK(try_loan(1) == TPR_E_LOANS);
    tpr_hold_release(&hold[0]);
    close_both();
}

static void test_history(void) {
    struct tpr_reader late;
    open_both(TPR_OVERFLOW_BLOCK, 2, 4, 4);
    for (uint8_t i = 1; i <= 4; i++) {
        publish(i, 1);
        CHECK(take(&reader, NULL) == i);
    }
    CHECK(publish(5, 1) == 0); /* the first page: what is older than the last two is no history */
    CHECK(publish(6, 1) == PAGE);
    CHECK(take(&reader, NULL) == 5 && take(&reader, NULL) == 6);
    CHECK(tpr_reader_open_holding(&late, 10, 4, 4) == TPR_OK);
    attach_reader(&late, 10, TPR_START_HISTORY);
    struct tpr_hold hold;
    CHECK(take(&late, &hold) == 5);
    check_bytes(&hold, 5, 1);
    CHECK(take(&late, NULL) == 6);
    tpr_hold_release(&hold);
    CHECK(publish(7, 4 * PAGE) == 0); /* without room beside it history gives way */
    CHECK(take(&reader, NULL) == 7 && take(&late, NULL) == 7);
    tpr_reader_close(&late);
    close_both();
}

static void test_readers_that_leave(void) {
    struct tpr_reader other;
    struct tpr_hold hold[2];
    open_both(TPR_OVERFLOW_BLOCK, 0, 2, 4);
    CHECK(tpr_reader_open_holding(&other, 10, 4, 4) == TPR_OK);
    attach_reader(&other, 10, TPR_START_BEGIN);
    publish(1, PAGE);
    publish(2, PAGE);
    CHECK(take(&reader, &hold[0]) == 1 && take(&reader, NULL) == 2);
    CHECK(take(&other, &hold[1]) == 1);
    CHECK(try_loan(1) == TPR_FULL); /* `other` has not read the second, and both hold the first */
    CHECK(tpr_writer_part(&writer, 10) == 1 && tpr_writer_part(&writer, 11) == 0);
    CHECK(publish(3, 1) == PAGE); /* it is waited for no more, but holds what it holds */
    CHECK(take(&reader, NULL) == 3);
    tpr_hold_release(&hold[0]);
    CHECK(try_loan(2 * PAGE) == TPR_FULL);
    check_bytes(&hold[1], 1, PAGE);
    CHECK(tpr_writer_detach(&writer, 10) == 1); /* the core says that it died */
    CHECK(try_loan(2 * PAGE) == TPR_OK);
    /* Closed, it keeps what it looks at, at the same place. */
    CHECK(publish(4, PAGE) == 0);
    CHECK(take(&reader, &hold[0]) == 4);
    const uint8_t *before = hold[0].data;
    tpr_reader_close(&reader);
    tpr_reader_close(&other);
    CHECK(publish(5, 2 * PAGE) == 0);
    CHECK(hold[0].data == before);
    check_bytes(&hold[0], 4, PAGE);
    tpr_writer_close(&writer);
    check_bytes(&hold[0], 4, PAGE);
    tpr_hold_release(&hold[0]);
    tpr_hold_release(&hold[1]);
}

static void test_writer_that_leaves(void) {
    struct tpr_hold hold;
    open_both(TPR_OVERFLOW_BLOCK, 0, 2, 4);
    publish(1, 100);
    CHECK(take(&reader, &hold) == 1);
    tpr_writer_close(&writer);
    CHECK(tpr_reader_remove(&reader, 7, NULL) == 1);
    check_bytes(&hold, 1, 100);
    pid_t child = begin_child();
    if (child == 0) { /* the hold is the parent's */
        tpr_hold_release(&hold);
        tpr_reader_close(&reader);
        _exit(0);
    }
    CHECK(wait_child(child) == 0 && reader.held[0].seq == 1);
    check_bytes(&hold, 1, 100);
    tpr_hold_release(&hold);
    tpr_reader_close(&reader);
}

/* Whatever a ring says, the reader looks at nothing outside it; whatever a held table says, the writer only spares pages. */
static void test_hostile(void) {
    static const uint64_t places[][2] = {{3 * PAGE, 1},        {2 * PAGE, PAGE + 1},   {0, 3 * PAGE + 1},  {8, 1},
                                         {UINT64_MAX - 4095, 4096}, {PAGE, UINT64_MAX}, {0, UINT64_MAX},    {1 << 30, 0}};
    struct tpr_view view;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        open_both(TPR_OVERFLOW_BLOCK, 0, 3, 4);
        publish(1, 1);
        uint64_t *place = (uint64_t *)(void *)(writer.data + TPR_RECORD_HEADER_BYTES);
        memcpy(place, places[i], sizeof places[i]);
        CHECK(tpr_reader_begin(&reader) == TPR_OK);
        bool is_inside = places[i][0] == 3 * PAGE && places[i][1] == 0;
        CHECK(tpr_reader_peek(&reader, &view) == is_inside && reader.source[0]->state == TPR_SOURCE_VIOLATED);
        CHECK(strcmp(reader.source[0]->violation, "a loan lies outside the slab") == 0);
        close_both();
    }
    open_both(TPR_OVERFLOW_BLOCK, 0, 3, 4);
    publish(1, 1);
    ((struct tpr_record *)(void *)writer.data)->payload_bytes = 24;
    ((struct tpr_record *)(void *)writer.data)->headers_bytes = 0;
    CHECK(tpr_reader_begin(&reader) == TPR_OK && !tpr_reader_peek(&reader, &view));
    CHECK(reader.source[0]->state == TPR_SOURCE_VIOLATED);
    close_both();
    open_both(TPR_OVERFLOW_BLOCK, 0, 0, 4); /* a loan in a ring that has no slab */
    CHECK(tpr_writer_publish(&writer, NULL, 0, "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0", TPR_PLACE_BYTES) == TPR_OK);
    ((struct tpr_record *)(void *)writer.data)->flags |= TPR_RECORD_LOAN;
    CHECK(tpr_reader_begin(&reader) == TPR_OK && !tpr_reader_peek(&reader, &view));
    CHECK(strcmp(reader.source[0]->violation, "a loan lies outside the slab") == 0);
    close_both();

    open_both(TPR_OVERFLOW_DROP, 0, 3, 4);
    reader.page->held_until = UINT64_MAX;
    for (uint64_t round = 0; round < 2000; round++) {
        for (int e = 0; e < 4; e++) {
            reader.held[e].seq = mix(round * 4 + (uint64_t)e) % 3 ? writer.last_seq - mix(round) % 5 : mix(round);
            reader.held[e].source = mix(round + (uint64_t)e) % 2 ? 7 : mix(round);
        }
        int code = try_loan(1 + mix(round) % (3 * PAGE));
        CHECK(code == TPR_OK || code == TPR_E_LOANS);
        if (code == TPR_OK)
            publish((uint8_t)round, 1 + mix(round) % (3 * PAGE));
    }
    for (int e = 0; e < 4; e++)
        reader.held[e].seq = writer.last_seq;
    reader.page->held_until = 4;
    CHECK(tpr_writer_detach(&writer, 9) == 1); /* the core withdraws the page */
    CHECK(try_loan(3 * PAGE) == TPR_OK);
    close_both();
}

/* What goes on to somebody else is copied: by the pump, and into parcels. */
static void test_pump(void) {
    struct tpr_writer on;
    struct tpr_reader end;
    struct tpr_view view;
    uint64_t moved;
    open_both(TPR_OVERFLOW_BLOCK, 0, 1, 0);
    CHECK(tpr_writer_open(&on, 8, 4096) == TPR_OK && tpr_reader_open(&end, 11, 1) == TPR_OK);
    int control = tpr_reader_share(&end), ring = tpr_writer_share(&on);
    CHECK(tpr_writer_attach(&on, 11, control, 0, -1, TPR_START_BEGIN) == TPR_OK);
    CHECK(tpr_reader_add(&end, ring, 0, 8, TPR_START_BEGIN, -1, NULL) == TPR_OK);
    for (uint8_t i = 1; i <= 20; i++) {
        CHECK(publish(i, 700) == 0); /* free again as soon as it was pumped */
        CHECK(tpr_pump(&reader, &on, 10, 10000, &moved) == TPR_OK && moved == 1);
        tpr_reader_begin(&end);
        CHECK(tpr_reader_peek(&end, &view) && !view.is_loan && view.payload_bytes == 700);
        CHECK(view.headers_bytes == 1 && view.headers[0] == 'h' && view.payload[0] == i && view.payload[699] == i);
        CHECK(view.origin_source == 7 && view.origin_seq == i && tpr_reader_consume(&end, &view));
        tpr_reader_end(&end);
    }
    close(control);
    close(ring);
    tpr_reader_close(&end);
    tpr_writer_close(&on);
    close_both();
}

/* ---- a second thread, that moves only when told ---- */

enum { IDLE, HOLD, RELEASE, LOAN, WANT, SLEEP, DONE };
static _Atomic int order;
static _Atomic int answer;
static struct tpr_loan_wait loan_wait;
static struct tpr_hold thread_hold[2];

static int tell(int what) {
    uint64_t deadline_ns = within_limit();
    order = what;
    while (order != IDLE) {
        sched_yield();
        CHECK(tpr_monotonic_ns() < deadline_ns);
    }
    return answer;
}

static void *obey(void *unused) {
    static struct tpr_loan loan;
    struct tpr_view view;
    int held = 0;
    for (;;) {
        switch (order) {
        case IDLE: sched_yield(); continue;
        case HOLD:
            CHECK(tpr_reader_peek(&reader, &view));
            CHECK(tpr_reader_hold(&reader, &view, &thread_hold[held]) == TPR_OK);
            answer = tpr_reader_consume(&reader, &view);
            held++;
            break;
        case RELEASE: tpr_hold_release(&thread_hold[0]); break; /* the lower of two entries: nothing else is stored */
        case LOAN: answer = tpr_writer_loan(&writer, 1, &loan); break;
        case WANT: answer = tpr_writer_loan_wait_begin(&writer, 1, &loan_wait); break;
        case SLEEP: answer = tpr_loan_wait_sleep(&loan_wait, within_limit()); break;
        case DONE: order = IDLE; return unused;
        }
        order = IDLE;
    }
}

static void with_thread(void (*trial)(void)) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, obey, NULL) == 0);
    trial();
    tell(DONE);
    CHECK(pthread_join(thread, NULL) == 0);
    for (int i = 0; i < 2; i++)
        if (thread_hold[i].mapping)
            tpr_hold_release(&thread_hold[i]);
}

/* It holds, then we want the page. */
static void hold_then_loan(void) {
    struct tpr_loan loan;
    CHECK(tell(HOLD) == 1);
    CHECK(tpr_writer_loan(&writer, 1, &loan) == TPR_E_LOANS);
}

/* We hold, then it has wanted the page: either we see that, or it has left us the page. */
static void loan_then_hold(void) {
    struct tpr_view view;
    CHECK(tpr_reader_peek(&reader, &view));
    CHECK(tell(LOAN) == TPR_OK);
    CHECK(tpr_reader_hold(&reader, &view, &thread_hold[0]) == TPR_OK);
    CHECK(!tpr_reader_consume(&reader, &view));
    tpr_hold_release(&thread_hold[0]);
}

/* It wants, then we release: it is woken. */
static void want_then_release(void) {
    CHECK(tell(HOLD) == 1);
    tpr_reader_end(&reader);
    CHECK(tell(WANT) == TPR_FULL);
    tpr_hold_release(&thread_hold[0]);
    CHECK(tell(SLEEP) == TPR_OK);
}

/* It wants, then we read: it is woken. */
static void want_then_read(void) {
    struct tpr_view view;
    CHECK(tell(WANT) == TPR_FULL);
    CHECK(tpr_reader_peek(&reader, &view) && tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    CHECK(tell(SLEEP) == TPR_OK);
}

/* It releases, then we want: there is something. */
static void release_then_want(void) {
    CHECK(tell(HOLD) == 1 && tell(HOLD) == 1);
    tpr_reader_end(&reader);
    tell(RELEASE);
    CHECK(tpr_writer_loan_wait(&writer, 1, within_limit()) == TPR_OK);
}

static void test_orders(void) {
    open_both(TPR_OVERFLOW_DROP, 0, 1, 4);
    publish(1, 1);
    tpr_reader_begin(&reader);
    with_thread(hold_then_loan);
    close_both();
    open_both(TPR_OVERFLOW_DROP, 0, 1, 4);
    publish(1, 1);
    tpr_reader_begin(&reader);
    with_thread(loan_then_hold);
    close_both();
    open_both(TPR_OVERFLOW_BLOCK, 0, 1, 4);
    publish(1, 1);
    tpr_reader_begin(&reader);
    with_thread(want_then_release);
    close_both();
    open_both(TPR_OVERFLOW_BLOCK, 0, 1, 4);
    publish(1, 1);
    tpr_reader_begin(&reader);
    with_thread(want_then_read);
    close_both();
    open_both(TPR_OVERFLOW_BLOCK, 0, 2, 4);
    publish(1, 1);
    publish(2, 1);
    tpr_reader_begin(&reader);
    with_thread(release_then_want);
    close_both();
}

/* A reader that the writer does not know yet holds what it has read. */
static void test_unknown_reader(void) {
    struct tpr_table table;
    struct tpr_reader late;
    struct tpr_hold hold;
    uint64_t generation;
    CHECK(tpr_table_open(&table, 1) == TPR_OK);
    open_both(TPR_OVERFLOW_BLOCK, 2, 1, 4);
    int fd = tpr_table_share(&table);
    CHECK(tpr_writer_set_table(&writer, fd, 0) == TPR_OK);
    tpr_writer_install(&writer, 0);
    publish(1, 1);
    CHECK(take(&reader, NULL) == 1);
    CHECK(tpr_table_bump(&table, 0, &generation) == TPR_OK);
    CHECK(tpr_reader_open_holding(&late, 10, 4, 4) == TPR_OK);
    int ring = tpr_writer_share(&writer), control = tpr_reader_share(&late);
    CHECK(tpr_reader_add(&late, ring, 0, 7, TPR_START_HISTORY, -1, NULL) == TPR_OK);
    CHECK(take(&late, &hold) == 1);
    CHECK(try_loan(1) == TPR_NEEDS_READERS);
    CHECK(tpr_writer_attach(&writer, 10, control, 0, -1, TPR_START_HISTORY) == TPR_OK);
    tpr_writer_install(&writer, generation);
    CHECK(try_loan(1) == TPR_FULL);
    tpr_hold_release(&hold);
    CHECK(try_loan(1) == TPR_OK);
    close(fd);
    close(ring);
    close(control);
    tpr_reader_close(&late);
    tpr_table_close(&table);
    close_both();
}

int main(void) {
    begin_test();
    test_reuse();
    test_entries();
    test_nap();
    test_refusals();
    test_limits();
    test_drop();
    test_history();
    test_readers_that_leave();
    test_writer_that_leaves();
    test_hostile();
    test_pump();
    test_orders();
    test_unknown_reader();
    puts("ok");
    return 0;
}
