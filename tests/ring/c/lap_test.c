/* Lapping, in one process and one thread, so that each interleaving that matters is made to happen: the writer overwrites
 * what a reader has not read, is reading, or has just copied; at every place of the ring. History, recovery, and a wake-up
 * that comes too early.
 */
#include "testing.h"

#include <pthread.h>

static struct tpr_writer writer;
static struct tpr_reader reader;

static void open_ring(uint64_t capacity, uint32_t overflow, uint32_t history) {
    CHECK(tpr_writer_open_with(&writer, 7, capacity, overflow, history) == TPR_OK);
    CHECK(tpr_reader_open(&reader, 9, 4) == TPR_OK);
}

static void attach(enum tpr_start start) {
    int fd = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 9, fd, 0, -1, start) == TPR_OK);
    close(fd);
}

static void add(enum tpr_start start) {
    int fd = tpr_writer_share(&writer);
    CHECK(tpr_reader_add(&reader, fd, 0, 7, start, -1, NULL) == TPR_OK);
    close(fd);
}

static void close_ring(void) {
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
}

static void publish(int count, size_t bytes) {
    static const uint8_t payload[4096];
    while (count--)
        CHECK(tpr_writer_publish(&writer, NULL, 0, payload, bytes) == TPR_OK);
}

static void publish_patterns(int count, size_t most) {
    while (count--) {
        CHECK(pattern_put(&writer, most) == TPR_OK);
        tpr_writer_flush(&writer);
    }
}

/* Take one message, pattern and all; `total` is what was received and missed so far. 0: there was none. */
static int take(size_t most, uint64_t *total) {
    struct tpr_view view;
    int got;
    CHECK(tpr_reader_begin(&reader) == TPR_OK);
    while ((got = tpr_reader_peek(&reader, &view)) && !tpr_reader_consume(&reader, &view))
        ;
    if (got) {
        pattern_check_view(&view, most); /* nothing was written since */
        *total += 1 + view.missed;
        CHECK(view.seq == *total);
    }
    tpr_reader_end(&reader);
    return got;
}

static void test_lapped_at_every_place(void) {
    /* The reader stops after `read` messages, so at every place of the ring; then the writer goes on by `more`. */
    for (int read = 0; read < 60; read++) {
        for (int more = 0; more < 60; more++) {
            uint64_t total = 0;
            open_ring(4096, TPR_OVERFLOW_DROP, 0);
            attach(TPR_START_BEGIN);
            add(TPR_START_BEGIN);
            for (int i = 0; i < read; i++) {
                publish_patterns(1, 500);
                CHECK(take(500, &total));
            }
            publish_patterns(more, 500);
            while (take(500, &total))
                ;
            CHECK(total == (uint64_t)(read + more) && reader.source[0]->state == TPR_SOURCE_LIVE);
            close_ring();
        }
    }
}

static void test_lapped_while_copying(void) {
    /* The view is there, the writer goes on by `more`, then the copy is judged. */
    for (uint32_t overflow = TPR_OVERFLOW_BLOCK; overflow <= TPR_OVERFLOW_DROP; overflow++) {
        int torn = 0, whole = 0;
        for (int more = 0; more < 40; more++) {
            struct tpr_view view;
            uint8_t copy[500];
            uint64_t total = 1;
            open_ring(4096, overflow, 0);
            attach(TPR_START_BEGIN);
            add(TPR_START_BEGIN);
            publish_patterns(2, 500);
            CHECK(take(500, &(uint64_t){0}));
            tpr_reader_begin(&reader);
            CHECK(tpr_reader_peek(&reader, &view) && view.seq == 2);
            struct tpr_view copied = view;
            memcpy(copy, view.headers, 10);
            if (overflow == TPR_OVERFLOW_BLOCK)
                tpr_writer_detach(&writer, 9);
            publish_patterns(more, 500);
            memcpy(copy + 10, view.headers + 10, view.headers_bytes + view.payload_bytes - 10);
            copied.headers = copy;
            copied.payload = copy + view.headers_bytes;
            if (tpr_reader_consume(&reader, &view)) {
                pattern_check_view(&copied, 500);
                whole++;
                total++;
            } else {
                CHECK(writer.oldest > 0);
                torn++;
            }
            tpr_reader_end(&reader);
            if (overflow == TPR_OVERFLOW_DROP) {
                while (take(500, &total))
                    ;
                CHECK(total == 2 + (uint64_t)more);
            } else {
                while (take(500, &total))
                    CHECK(writer.oldest <= reader.source[0]->cursor);
                CHECK(reader.source[0]->state == (total == 2 + (uint64_t)more ? TPR_SOURCE_LIVE : TPR_SOURCE_DETACHED));
                CHECK(reader.has_news == (reader.source[0]->state == TPR_SOURCE_DETACHED));
            }
            close_ring();
        }
        CHECK(whole > 3 && torn > 3);
    }
}

/* What a reader that is waited for is looking at stays as it is until it says that it has taken it. */
static void test_not_overwritten_while_copying(void) {
    struct tpr_view view;
    open_ring(4096, TPR_OVERFLOW_BLOCK, 0);
    attach(TPR_START_BEGIN);
    add(TPR_START_BEGIN);
    publish(4, 900);
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view));
    CHECK(tpr_writer_publish(&writer, NULL, 0, NULL, 900) == TPR_FULL);
    CHECK(tpr_reader_consume(&reader, &view));
    CHECK(tpr_writer_publish(&writer, NULL, 0, NULL, 900) == TPR_FULL); /* the pass is not over */
    tpr_reader_end(&reader);
    CHECK(tpr_writer_publish(&writer, NULL, 0, NULL, 0) == TPR_OK);
    close_ring();
}

static void test_where_a_lapped_reader_goes_on(void) {
    struct tpr_view view;
    open_ring(4096, TPR_OVERFLOW_DROP, 0);
    attach(TPR_START_BEGIN);
    add(TPR_START_BEGIN);
    publish(20, 968); /* four fit */
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 17 && view.missed == 16); /* the oldest that is there */
    CHECK(reader.source[0]->cursor == writer.oldest);
    publish(2, 968);
    CHECK(!tpr_reader_consume(&reader, &view));
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 22 && view.missed == 21); /* lapped at the edge: the newest */
    publish(3, 968);
    CHECK(tpr_reader_consume(&reader, &view)); /* which has the whole ring before it */
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 23 && view.missed == 0);
    CHECK(tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    close_ring();
}

/* Somebody laps us always, or says so: the pass ends, and the others' turn comes. */
static void test_tired(void) {
    struct tpr_view view;
    int looks = 0;
    open_ring(4096, TPR_OVERFLOW_DROP, 0);
    attach(TPR_START_BEGIN);
    add(TPR_START_BEGIN);
    tpr_reader_begin(&reader);
    publish(20, 968);
    while (tpr_reader_peek(&reader, &view)) {
        publish(8, 968);
        CHECK(!tpr_reader_consume(&reader, &view));
        CHECK(++looks < 10);
    }
    CHECK(looks >= 3 && reader.source[0]->state == TPR_SOURCE_LIVE);
    tpr_reader_end(&reader);
    uint64_t received = 0;
    tpr_reader_begin(&reader);
    while (tpr_reader_peek(&reader, &view)) {
        CHECK(tpr_reader_consume(&reader, &view));
        CHECK(received || view.missed == view.seq - 1);
        received = view.seq;
    }
    tpr_reader_end(&reader);
    CHECK(received == writer.last_seq);
    close_ring();
}

static void test_hostile_positions(void) {
    const uint64_t bad[] = {4097, UINT64_MAX, UINT64_MAX - 7, UINT64_C(1) << 63, 8};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (uint32_t history = 0; history < 2; history++) {
            struct tpr_view view;
            open_ring(4096, history ? TPR_OVERFLOW_BLOCK : TPR_OVERFLOW_DROP, history);
            publish(history ? 1 : 0, 100);
            attach(history ? TPR_START_HISTORY : TPR_START_BEGIN);
            add(history ? TPR_START_HISTORY : TPR_START_BEGIN);
            publish(1, 100);
            writer.page->oldest_pos = bad[i];
            int looks = 0;
            tpr_reader_begin(&reader);
            while (tpr_reader_peek(&reader, &view)) {
                CHECK(++looks < 20);
                tpr_reader_consume(&reader, &view);
            }
            tpr_reader_end(&reader);
            CHECK(reader.source[0]->cursor <= writer.tail);
            /* At 8 there is no record; but history begins after it. */
            CHECK(reader.source[0]->state == (bad[i] == 8 && history ? TPR_SOURCE_LIVE : TPR_SOURCE_VIOLATED));
            close_ring();
        }
    }
    struct tpr_view view;
    open_ring(4096, TPR_OVERFLOW_BLOCK, 5);
    publish(1, 100);
    writer.page->history_pos = 8192;
    int fd = tpr_writer_share(&writer);
    CHECK(tpr_reader_add(&reader, fd, 0, 7, TPR_START_HISTORY, -1, NULL) == TPR_E_TAIL && reader.count == 0);
    writer.page->history_pos = 3;
    CHECK(tpr_reader_add(&reader, fd, 0, 7, TPR_START_HISTORY, -1, NULL) == TPR_E_TAIL);
    writer.page->anchor[0] = 13, writer.page->anchor[1] = UINT64_MAX; /* costs no more than knowing the last seq */
    CHECK(tpr_reader_add(&reader, fd, 0, 7, TPR_START_TAIL, -1, NULL) == TPR_OK);
    publish(1, 100);
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 2 && view.missed == 0);
    tpr_reader_end(&reader);
    close(fd);
    close_ring();
}

/* ---- history ---- */

/* A reader that comes while the writer, not knowing of it, is in the middle of a batch that overwrites what the reader has
 * chosen to begin with. */
static void test_history_given_up_meanwhile(void) {
    for (uint32_t overflow = TPR_OVERFLOW_BLOCK; overflow <= TPR_OVERFLOW_DROP; overflow++) {
        struct tpr_view view;
        open_ring(4096, overflow, 100);
        publish(50, 68); /* 104 bytes each */
        CHECK(tpr_writer_put(&writer, NULL, 0, NULL, 0) == TPR_OK); /* its look at the generation is over */
        add(TPR_START_HISTORY);
        uint64_t began_at = reader.source[0]->cursor;
        CHECK(began_at >= writer.oldest);
        for (int i = 0; i < 3; i++)
            CHECK(tpr_writer_put(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
        tpr_writer_flush(&writer);
        CHECK(writer.oldest > began_at);
        attach(TPR_START_HISTORY); /* the generation has changed */
        CHECK(writer.peer[0].pin >= writer.oldest);
        CHECK(!tpr_writer_is_drained(&writer) && !writer.peer[0].is_violator);
        uint64_t expected = 0;
        tpr_reader_begin(&reader);
        while (tpr_reader_peek(&reader, &view)) {
            CHECK(!expected || view.seq == expected);
            CHECK(view.missed == 0 || (overflow == TPR_OVERFLOW_DROP && !expected)); /* it was there when we came */
            expected = view.seq + 1;
            CHECK(tpr_reader_consume(&reader, &view));
        }
        tpr_reader_end(&reader);
        CHECK(expected == writer.last_seq + 1);
        CHECK(reader.source[0]->state == TPR_SOURCE_LIVE && tpr_writer_is_drained(&writer));
        close_ring();
    }
}

/* A reader is announced, and comes to read after the batch that the writer publishes before it learns of it. */
static void test_where_the_tail_was_when_it_was_announced(void) {
    for (uint32_t overflow = TPR_OVERFLOW_BLOCK; overflow <= TPR_OVERFLOW_DROP; overflow++) {
        for (int before = 0; before < 90; before++) {
            for (int meanwhile = 0; meanwhile < 60; meanwhile += 7) {
                struct tpr_view view;
                open_ring(4096, overflow, 0);
                publish(before, 68);
                uint64_t announced = writer.page->tail & ~TPR_TAIL_FLAGS, first = writer.last_seq + 1, expected = first;
                int is_overwritten = meanwhile > 30;
                for (int i = 0; i < (overflow == TPR_OVERFLOW_BLOCK && is_overwritten ? 30 : meanwhile); i++)
                    CHECK(tpr_writer_put(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
                tpr_writer_flush(&writer);
                int fd = tpr_writer_share(&writer);
                CHECK(tpr_reader_add_from(&reader, fd, 0, 7, TPR_START_TAIL, announced, -1, NULL) == TPR_OK);
                close(fd);
                attach(TPR_START_TAIL);
                publish(1, 10);
                tpr_reader_begin(&reader);
                while (tpr_reader_peek(&reader, &view)) {
                    if (expected == first && writer.oldest > announced)
                        expected = view.seq; /* with drop: it began at the tail as it then was */
                    CHECK(view.seq == expected++ && view.missed == 0);
                    CHECK(tpr_reader_consume(&reader, &view));
                }
                tpr_reader_end(&reader);
                CHECK(expected == writer.last_seq + 1);
                CHECK(writer.oldest <= announced || overflow == TPR_OVERFLOW_DROP);
                close_ring();
            }
        }
    }
}

static void test_a_tail_that_cannot_have_been(void) {
    const uint64_t bad[] = {4, 8, 4096, 5 * 104 + 8, 5 * 104 + 4096, UINT64_MAX - 7, UINT64_C(1) << 63};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tpr_view view;
        open_ring(4096, TPR_OVERFLOW_BLOCK, 0);
        publish(5, 68); /* 104 bytes each */
        int fd = tpr_writer_share(&writer);
        CHECK(tpr_reader_add_from(&reader, fd, 0, 7, TPR_START_TAIL, bad[i], -1, NULL) == TPR_OK);
        close(fd);
        attach(TPR_START_TAIL);
        publish(1, 68);
        tpr_reader_begin(&reader);
        CHECK(tpr_reader_peek(&reader, &view) == 1 && view.seq == 6);
        CHECK(tpr_reader_consume(&reader, &view) && !tpr_reader_peek(&reader, &view));
        tpr_reader_end(&reader);
        close_ring();
    }
}

/* Let go as stalled while it catches up: it goes on with what history there is, and is told when even that is gone. */
static void test_history_of_a_stalled_reader(void) {
    struct tpr_view view;
    open_ring(4096, TPR_OVERFLOW_BLOCK, 100);
    publish(50, 68);
    attach(TPR_START_HISTORY);
    add(TPR_START_HISTORY);
    CHECK(tpr_writer_detach(&writer, 9) == 1);
    publish(100, 68);
    uint64_t last = 0;
    tpr_reader_begin(&reader);
    while (tpr_reader_peek(&reader, &view))
        if (tpr_reader_consume(&reader, &view))
            last = view.seq;
    tpr_reader_end(&reader);
    CHECK(last == 150);
    publish(100, 68);
    tpr_reader_begin(&reader);
    CHECK(!tpr_reader_peek(&reader, &view));
    CHECK(reader.source[0]->state == TPR_SOURCE_DETACHED);
    close_ring();
}

/* ---- recovery ---- */

static uint64_t count_from(enum tpr_start start, uint64_t *first) {
    struct tpr_reader late;
    struct tpr_view view;
    uint64_t count = 0;
    int fd = tpr_writer_share(&writer);
    CHECK(tpr_reader_open(&late, 11, 1) == TPR_OK);
    CHECK(tpr_reader_add(&late, fd, 0, 7, start, -1, NULL) == TPR_OK);
    tpr_reader_begin(&late);
    while (tpr_reader_peek(&late, &view)) {
        *first = count++ ? *first : view.seq;
        CHECK(tpr_reader_consume(&late, &view));
    }
    tpr_reader_end(&late);
    CHECK(late.source[0]->state == TPR_SOURCE_LIVE);
    CHECK(late.source[0]->next_seq == writer.last_seq + 1 || writer.last_seq == 0);
    close(fd);
    tpr_reader_close(&late);
    return count;
}

/* The handle as a crash leaves it: its memory is let go, nothing else happens. */
static int crash(void) {
    int fd = tpr_writer_keep(&writer);
    CHECK(fd >= 0);
    while (writer.peer_count)
        tpr_writer_drop_(&writer, &writer.peer[0]);
    free(writer.peer);
    tpr_positions_close_(&writer);
    tpr_memory_free_(&writer.memory);
    return fd;
}

static void test_recovery_at_every_length(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (int count = 0; count < 90; count++) {
            uint64_t first[2] = {0, 0};
            open_ring(4096, mode & 1 ? TPR_OVERFLOW_DROP : TPR_OVERFLOW_BLOCK, mode & 2 ? 10 : 0);
            for (int i = 0; i < count; i++) {
                struct tpr_origin origin = {i % 3 + 100, i + 1, 5};
                CHECK(pattern_put_from(&writer, 300, i % 3 ? &origin : NULL) == TPR_OK);
                if (i % 5 == 4)
                    tpr_writer_flush(&writer);
            }
            tpr_writer_flush(&writer);
            if (count % 2)
                CHECK(pattern_put(&writer, 300) == TPR_OK); /* never published */
            uint64_t tail = writer.tail, oldest = writer.oldest;
            writer.last_seq -= count % 2;
            uint64_t held = count_from(TPR_START_HISTORY, &first[0]);
            int fd = crash();
            CHECK(tpr_writer_recover(&writer, fd) == TPR_OK);
            CHECK(writer.source == 7 && writer.capacity == 4096 && writer.overflow == (mode & 1));
            CHECK(writer.tail == tail && writer.oldest == oldest && writer.last_seq == (uint64_t)count);
            struct tpr_origin origin = {0, 0, 0};
            CHECK(tpr_writer_last_origin(&writer, &origin) == (count > 0 && (count - 1) % 3 != 0));
            CHECK(count == 0 || (count - 1) % 3 == 0 || (origin.seq == (uint64_t)count && origin.time_ns == 5));
            CHECK(count_from(TPR_START_HISTORY, &first[1]) == held && first[0] == first[1]);
            attach(TPR_START_TAIL);
            add(TPR_START_TAIL);
            uint64_t total = (uint64_t)count;
            for (int i = 0; i < 60; i++) {
                publish_patterns(1, 300);
                CHECK(take(300, &total));
            }
            CHECK(mode & 2 ? count_from(TPR_START_HISTORY, &first[0]) == 10 : true);
            int again = crash(); /* and once more, after the anchors have taken turns */
            CHECK(tpr_writer_recover(&writer, again) == TPR_OK && writer.last_seq == (uint64_t)count + 60);
            close(again);
            close(fd);
            close_ring();
        }
    }
}

static void test_recovery_refuses(void) {
    struct tpr_writer other;
    struct tpr_reader other_reader;
    open_ring(4096, TPR_OVERFLOW_DROP, 3);
    publish(100, 100);
    int keep = tpr_writer_keep(&writer), shared = tpr_writer_share(&writer), page = tpr_reader_keep(&reader);
    CHECK(tpr_writer_recover(&other, shared) == TPR_E_READ_ONLY);
    CHECK(tpr_writer_recover(&other, page) == TPR_E_MAGIC);
    CHECK(tpr_reader_recover(&other_reader, keep) == TPR_E_MAGIC);
    CHECK(tpr_writer_recover(&other, -1) == TPR_E_SYSTEM);
    static uint8_t good[8192];
    memcpy(good, writer.page, sizeof good);
    const struct {
        size_t at;
        uint64_t value;
    } bad[] = {{128, 3}, {128, 8}, {128, UINT64_MAX & ~UINT64_C(7)}, {384, 4}, {384, UINT64_MAX & ~UINT64_C(7)}, {384, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy((uint8_t *)writer.page + bad[i].at, &bad[i].value, 8);
        int code = tpr_writer_recover(&other, keep);
        CHECK(code == TPR_E_RECORDS || code == TPR_E_CLOSED);
        memcpy(writer.page, good, sizeof good);
    }
    /* Whatever one byte says, of those that are read: recovered, and fit for use, or refused. */
    const size_t from[] = {0, 128, 384, 512, 4096}, to[] = {48, 144, 392, 536, 8192};
    for (size_t part = 0; part < sizeof from / sizeof *from; part++) {
        for (size_t at = from[part]; at < to[part]; at++) {
            ((uint8_t *)writer.page)[at] ^= 0x55;
            if (tpr_writer_recover(&other, keep) == TPR_OK) {
                for (int i = 0; i < 3; i++)
                    CHECK(tpr_writer_publish(&other, NULL, 0, "x", 1) == TPR_OK);
                tpr_writer_close(&other);
            }
            memcpy(writer.page, good, sizeof good);
        }
    }
    tpr_writer_close(&writer);
    CHECK(tpr_writer_recover(&other, keep) == TPR_E_CLOSED);
    close(keep);
    close(shared);
    close(page);
    tpr_reader_close(&reader);
}

static void test_reader_recovery(void) {
    struct tpr_reader successor;
    uint64_t total = 0;
    open_ring(4096, TPR_OVERFLOW_BLOCK, 0);
    attach(TPR_START_BEGIN);
    add(TPR_START_BEGIN);
    publish_patterns(10, 100);
    for (int i = 0; i < 4; i++)
        CHECK(take(100, &total));
    CHECK(tpr_reader_arm(&reader) == 1);
    uint64_t sleeping = reader.page->sleeping;
    int keep = tpr_reader_keep(&reader), ring = tpr_writer_share(&writer);
    CHECK(tpr_reader_recover(&successor, keep) == TPR_OK);
    CHECK(successor.reader == 9 && successor.slots == 4 && successor.page->sleeping >> 2 > sleeping >> 2);
    CHECK(tpr_reader_add(&successor, ring, 1, 7, TPR_START_CURSOR, -1, NULL) == TPR_E_NO_CURSOR);
    CHECK(tpr_reader_pass_over(&successor, 7, 3) == 1 && tpr_reader_pass_over(&successor, 8, 3) == 0);
    CHECK(tpr_reader_add(&successor, ring, 0, 7, TPR_START_CURSOR, -1, NULL) == TPR_OK);
    struct tpr_reader old = reader;
    reader = successor;
    while (take(100, &total))
        ;
    CHECK(total == 10 && tpr_writer_is_drained(&writer));
    close(keep);
    close(ring);
    tpr_reader_close(&old);
    close_ring();
}

/* ---- a wake-up that comes too early ---- */

static struct {
    pthread_t thread;
    _Atomic int thread_id;
} sleeper;

static void *sleep_and_receive(void *argument) {
    struct tpr_view view;
    (void)argument;
    sleeper.thread_id = (int)syscall(SYS_gettid);
    tpr_reader_begin(&reader);
    while (!tpr_reader_peek(&reader, &view)) {
        int code = tpr_reader_wait(&reader, within_limit());
        CHECK(code == TPR_OK || code == TPR_NOTIFIED); /* a timeout is a lost wake-up */
        tpr_reader_begin(&reader);
    }
    tpr_reader_end(&reader);
    return NULL;
}

static void await_kernel_sleep(int thread_id) {
    uint64_t deadline_ns = within_limit();
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_id);
    for (char state = 0; state != 'S'; sched_yield()) {
        FILE *file = fopen(path, "r");
        CHECK(file && fgets(text, sizeof text, file) && strrchr(text, ')'));
        state = strrchr(text, ')')[2];
        fclose(file);
        CHECK(tpr_monotonic_ns() < deadline_ns);
    }
}

/* The writer has published, and looks who sleeps only when the reader has taken that message and says that it sleeps,
 * but is not in the kernel yet: that wake-up finds nobody, and must not be the last one of this sleep. */
static void test_early_wake_up(void) {
    open_ring(4096, TPR_OVERFLOW_BLOCK, 0);
    attach(TPR_START_BEGIN);
    add(TPR_START_BEGIN);
    no_spin(&reader.spin);
    CHECK(tpr_reader_wait(&reader, 1) == TPR_NOTIFIED);
    reader.page->sleeping = (reader.epoch + 1) << 2 | TPR_MODE_FUTEX; /* what it will say */
    tpr_writer_wake_(&writer);
    CHECK(pthread_create(&sleeper.thread, NULL, sleep_and_receive, NULL) == 0);
    while (!sleeper.thread_id)
        sched_yield();
    await_kernel_sleep(sleeper.thread_id);
    CHECK(reader.page->sleeping == writer.peer[0].rung);
    publish(1, 10);
    CHECK(pthread_join(sleeper.thread, NULL) == 0);
    close_ring();
}

int main(void) {
    begin_test();
    test_lapped_at_every_place();
    test_lapped_while_copying();
    test_not_overwritten_while_copying();
    test_where_a_lapped_reader_goes_on();
    test_tired();
    test_hostile_positions();
    test_history_given_up_meanwhile();
    test_history_of_a_stalled_reader();
    test_where_the_tail_was_when_it_was_announced();
    test_a_tail_that_cannot_have_been();
    test_recovery_at_every_length();
    test_recovery_refuses();
    test_reader_recovery();
    test_early_wake_up();
    puts("ok");
    return 0;
}
