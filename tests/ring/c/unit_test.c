/* The ring in one process, one thread: records, wraps, bounds, attaching, hostile pages, checks of descriptors. */
#include "both.h"

/* Receive everything there is; returns how many. */
static uint64_t drain(size_t most) {
    struct tpr_view view;
    uint64_t count = 0;
    CHECK(tpr_reader_begin(&reader) == TPR_OK);
    while (tpr_reader_peek(&reader, &view)) {
        pattern_check_view(&view, most);
        CHECK(tpr_reader_consume(&reader, &view));
        count++;
    }
    tpr_reader_end(&reader);
    return count;
}

static void test_wrap_at_every_alignment(void) {
    /* Two messages of every pair of lengths, one after the other, so that the wrap comes at every place. */
    for (size_t bytes = 0; bytes <= 992; bytes++) {
        uint8_t payload[992];
        connect_both(4096);
        for (int i = 0; i < 12; i++) {
            struct tpr_view view;
            size_t count = i % 2 ? bytes : 992 - bytes;
            pattern_fill(payload, count, 1, bytes);
            CHECK(tpr_writer_publish(&writer, NULL, 0, payload, count) == TPR_OK);
            tpr_reader_begin(&reader);
            CHECK(tpr_reader_peek(&reader, &view));
            CHECK(view.payload_bytes == count && view.seq == (uint64_t)i + 1);
            pattern_check(view.payload, count, 1, bytes);
            CHECK(tpr_reader_consume(&reader, &view));
            CHECK(!tpr_reader_peek(&reader, &view));
            tpr_reader_end(&reader);
            CHECK(tpr_writer_is_drained(&writer));
        }
        close_both();
    }
}

static void test_message_sizes(void) {
    uint8_t big[1024];
    memset(big, 5, sizeof big);
    connect_both(4096);
    CHECK(tpr_message_bytes_max(4096) == 992);
    CHECK(tpr_writer_publish(&writer, big, 993, NULL, 0) == TPR_E_TOO_LARGE);
    CHECK(tpr_writer_publish(&writer, big, 500, big, 493) == TPR_E_TOO_LARGE);
    CHECK(tpr_writer_publish(&writer, big, SIZE_MAX, big, SIZE_MAX) == TPR_E_TOO_LARGE);
    CHECK(writer.last_seq == 0 && writer.tail == 0);
    CHECK(tpr_writer_publish(&writer, big, 492, big, 500) == TPR_OK);
    CHECK(tpr_writer_publish(&writer, NULL, 0, NULL, 0) == TPR_OK);
    CHECK(writer.last_seq == 2 && writer.tail == 1024 + 32);
    close_both();
}

static void test_full_and_room(void) {
    struct tpr_room_wait wait;
    uint64_t sent = 0;
    connect_both(4096);
    while (pattern_put(&writer, 100) == TPR_OK)
        sent++;
    CHECK(writer.position == writer.tail); /* FULL has flushed */
    CHECK(tpr_writer_wait_begin(&writer, 992, &wait) == TPR_FULL);
    CHECK(tpr_writer_wait_room(&writer, 992, tpr_deadline_ns(0)) == TPR_TIMEOUT);
    CHECK(writer.page->writer_waits_for == 0);
    CHECK(!tpr_writer_is_drained(&writer));
    CHECK(drain(100) == sent);
    CHECK(tpr_writer_is_drained(&writer));
    CHECK(tpr_writer_wait_room(&writer, 992, tpr_deadline_ns(0)) == TPR_OK);
    CHECK(tpr_writer_wait_room(&writer, 993, tpr_deadline_ns(0)) == TPR_E_TOO_LARGE);
    close_both();
}

static void test_batches_are_bounded(void) {
    connect_both(1 << 20);
    for (int i = 0; i < 256; i++)
        CHECK(tpr_writer_put(&writer, NULL, 0, "x", 1) == TPR_OK);
    CHECK(writer.tail == 0);
    CHECK(tpr_writer_put(&writer, NULL, 0, "x", 1) == TPR_OK); /* the 257th begins a new one */
    CHECK(writer.tail == 256 * 40);
    tpr_writer_flush(&writer);
    static uint8_t large[100000];
    uint64_t before = writer.tail;
    CHECK(tpr_writer_put(&writer, NULL, 0, large, sizeof large) == TPR_OK);
    CHECK(writer.tail == before);
    CHECK(tpr_writer_put(&writer, NULL, 0, large, sizeof large) == TPR_OK); /* together above an eighth */
    CHECK(writer.tail == before + 100032);
    close_both();
}

static void test_many_rounds(void) {
    connect_both(8192);
    uint64_t received = 0;
    for (int i = 0; i < 20000; i++) {
        int code = pattern_put(&writer, 1000);
        if (code == TPR_FULL) {
            received += drain(1000);
            CHECK(received == writer.last_seq);
        } else {
            CHECK(code == TPR_OK);
        }
    }
    tpr_writer_close(&writer);
    received += drain(1000);
    CHECK(reader.source[0]->state == TPR_SOURCE_DRAINED && reader.has_news);
    CHECK(received > 10000);
    CHECK(reader.source[0]->next_seq == received + 1);
    tpr_reader_close(&reader);
}

/* A pass that stopped for its own reasons just at the end of a closed ring leaves something to be told: no sleep. */
static void test_no_sleep_before_the_end_is_told(void) {
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        struct tpr_view view;
        connect_both(4096);
        CHECK(tpr_reader_wait(&reader, tpr_deadline_ns(0)) == TPR_NOTIFIED); /* the add */
        CHECK(tpr_writer_publish(&writer, NULL, 0, "x", 1) == TPR_OK);
        if (is_closed)
            tpr_writer_close(&writer);
        else
            CHECK(tpr_reader_finish(&reader, 7) == 1 && tpr_reader_wait(&reader, 0) == TPR_NOTIFIED);
        tpr_reader_begin(&reader);
        CHECK(tpr_reader_peek(&reader, &view));
        CHECK(tpr_reader_consume(&reader, &view));
        tpr_reader_end(&reader);
        CHECK(reader.source[0]->state != TPR_SOURCE_DRAINED);
        CHECK(tpr_reader_wait(&reader, within_limit()) == TPR_OK);
        CHECK(drain(1) == 0 && reader.source[0]->state == TPR_SOURCE_DRAINED);
        CHECK(tpr_reader_wait(&reader, tpr_deadline_ns(0)) == TPR_TIMEOUT);
        close_both();
    }
}

static void test_attach_and_pin(void) {
    open_both(4096);
    for (int i = 0; i < 3; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    attach(2, 0);
    uint64_t pin = writer.peer[0].pin;
    CHECK(pin == writer.tail - 48); /* before the newest batch */
    CHECK(!tpr_writer_is_drained(&writer));
    while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
        CHECK(writer.tail <= pin + 4096);
    CHECK(writer.tail + 48 > pin + 4096);
    add(2, 0); /* at the tail */
    CHECK(tpr_writer_is_drained(&writer));
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    CHECK(writer.room_limit == reader.source[0]->committed + 4096);
    struct tpr_view view;
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == writer.last_seq);
    tpr_reader_end(&reader);
    int fd = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 9, fd, 2, -1, 1) == TPR_E_LATE); /* the start is overwritten */
    CHECK(tpr_writer_attach(&writer, 9, fd, 4, -1, 0) == TPR_E_SLOT);
    CHECK(tpr_writer_attach(&writer, 8, fd, 2, -1, 0) == TPR_E_OTHER_READER);
    CHECK(writer.peer_count == 1);
    CHECK(tpr_writer_detach(&writer, 9) == 1 && tpr_writer_detach(&writer, 9) == 0);
    close(fd);
    close_both();
}

static void test_leaving_frees_the_writer(void) {
    connect_both(4096);
    while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
        ;
    CHECK(tpr_reader_remove(&reader, 7, NULL) == 1 && tpr_reader_remove(&reader, 7, NULL) == 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    uint64_t slowest;
    CHECK(tpr_writer_slowest(&writer, &slowest) == 0);
    /* The slot still says LEFT, from before: the reader attached anew holds the writer at once all the same. */
    attach(0, 0);
    uint64_t pin = writer.peer[0].pin;
    while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
        ;
    CHECK(writer.tail <= pin + 4096);
    CHECK(tpr_writer_slowest(&writer, &slowest) == 1 && slowest == 9);
    add(0, 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    close_both();
}

static void test_slot_of_another_source(void) {
    /* A slot that carries another source's cursor says nothing about ours. */
    connect_both(4096);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    reader.page->slot[0].source = 8;
    reader.page->slot[0].cursor = 4000 | TPR_CURSOR_SET;
    CHECK(!tpr_writer_is_drained(&writer)); /* pinned at 0 */
    CHECK(!writer.peer[0].is_violator);
    struct tpr_room_wait wait;
    while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
        ;
    CHECK(tpr_writer_wait_begin(&writer, 10, &wait) == TPR_FULL);
    CHECK(!tpr_room_wait_is_over_(&wait)); /* and must not keep the writer from sleeping */
    close_both();
}

static void test_hostile_cursors(void) {
    const uint64_t bad[] = {4800 | TPR_CURSOR_SET, UINT64_MAX - 6, 8 | 5, 16 | 3, 8};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        connect_both(4096);
        while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
            ;
        reader.page->slot[0].cursor = bad[i];
        CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
        CHECK(writer.peer[0].is_violator);
        close_both();
    }
    /* Going back further than the ring reaches. */
    connect_both(4096);
    for (int i = 0; i < 1000; i++) {
        CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
        struct tpr_view view;
        tpr_reader_begin(&reader);
        CHECK(tpr_reader_peek(&reader, &view));
        CHECK(tpr_reader_consume(&reader, &view));
        tpr_reader_end(&reader);
    }
    reader.page->slot[0].cursor = 0 | TPR_CURSOR_SET;
    CHECK(tpr_writer_is_drained(&writer) && writer.peer[0].is_violator);
    close_both();
}

static void violate(const char *what, void (*damage)(void)) {
    struct tpr_view view;
    connect_both(4096);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK);
    damage();
    tpr_reader_begin(&reader);
    while (tpr_reader_peek(&reader, &view))
        CHECK(tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    CHECK(reader.source[0]->state == TPR_SOURCE_VIOLATED && reader.has_news);
    CHECK(strcmp(reader.source[0]->violation, what) == 0);
    tpr_reader_begin(&reader);
    CHECK(!tpr_reader_peek(&reader, &view));
    close_both();
}

static struct tpr_record *first_record(void) {
    return (struct tpr_record *)(void *)writer.data;
}

static void damage_tail(void) { writer.page->tail = 8192; }
static void damage_tail_back(void) { writer.page->tail = UINT64_MAX & ~UINT64_C(7); }
static void damage_tail_bits(void) { writer.page->tail |= 2; }
static void damage_kind(void) { first_record()->flags = 17; }
static void damage_zero(void) { memset(first_record(), 0, 32); }
static void damage_short(void) { first_record()->record_bytes = 24; }
static void damage_long(void) { first_record()->record_bytes = 1032; }
static void damage_past_tail(void) { first_record()->record_bytes = 104; }
static void damage_lengths(void) { first_record()->payload_bytes = 17; }
static void damage_huge_lengths(void) { first_record()->headers_bytes = first_record()->payload_bytes = UINT32_MAX; }
static void damage_padding(void) { first_record()->flags = TPR_RECORD_PADDING; }
static void damage_seq(void) { first_record()->seq = 3; }
static void damage_odd(void) { first_record()->record_bytes = 47; }

static void test_hostile_rings(void) {
    violate("the tail is impossible", damage_tail);
    violate("the tail is impossible", damage_tail_back);
    violate("the tail is impossible", damage_tail_bits);
    violate("a record is of unknown kind", damage_kind);
    violate("a record is of unknown kind", damage_zero);
    violate("a record's length is impossible", damage_short);
    violate("a record's length is impossible", damage_long);
    violate("a record's length is impossible", damage_past_tail);
    violate("a record's lengths disagree", damage_lengths);
    violate("a record's lengths disagree", damage_huge_lengths);
    violate("a record's lengths disagree", damage_odd);
    violate("a padding record does not end at the wrap", damage_padding);
    violate("seq is not contiguous", damage_seq);
}

/* Every single byte of what was published, changed to several values: never more than a violation. */
static void test_hostile_bytes(void) {
    volatile uint8_t touched = 0;
    for (size_t at = 0; at < 96; at++) {
        for (int value = 0; value < 256; value += 51) {
            struct tpr_view view;
            connect_both(4096);
            CHECK(tpr_writer_publish(&writer, "ab", 2, "0123456789", 10) == TPR_OK);
            CHECK(tpr_writer_publish(&writer, "ab", 2, "0123456789", 10) == TPR_OK);
            writer.data[at] = (uint8_t)value;
            tpr_reader_begin(&reader);
            while (tpr_reader_peek(&reader, &view)) {
                for (uint32_t i = 0; i < view.headers_bytes + view.payload_bytes; i++)
                    touched = view.headers[i]; /* all of it is in the mapping */
                CHECK(tpr_reader_consume(&reader, &view));
            }
            tpr_reader_end(&reader);
            CHECK(reader.source[0]->cursor <= writer.tail);
            (void)touched;
            close_both();
        }
    }
}

static void test_fairness(void) {
    struct tpr_writer other;
    struct tpr_view view;
    connect_both(4096);
    CHECK(tpr_writer_open(&other, 8, 4096) == TPR_OK);
    int ring = tpr_writer_share(&other), control = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&other, 9, control, 1, -1, 1) == TPR_OK);
    CHECK(tpr_reader_add(&reader, ring, 1, 8, 1, -1, NULL) == TPR_OK);
    CHECK(tpr_reader_add(&reader, ring, 2, 8, 1, -1, NULL) == TPR_E_SOURCE_TAKEN);
    CHECK(tpr_reader_add(&reader, ring, 1, 6, 1, -1, NULL) == TPR_E_SLOT_TAKEN);
    CHECK(tpr_reader_add(&reader, ring, 3, 6, 1, -1, NULL) == TPR_E_OTHER_SOURCE);
    CHECK(tpr_reader_add(&reader, ring, 4, 6, 1, -1, NULL) == TPR_E_SLOT);
    for (int i = 0; i < 10; i++) {
        CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
        CHECK(tpr_writer_publish(&other, NULL, 0, "b", 1) == TPR_OK);
    }
    uint64_t from[9] = {0};
    for (int i = 0; i < 10; i++) { /* passes of one message alternate */
        tpr_reader_begin(&reader);
        CHECK(tpr_reader_peek(&reader, &view));
        CHECK(tpr_reader_consume(&reader, &view));
        tpr_reader_end(&reader);
        from[view.from->source]++;
    }
    CHECK(from[7] == 5 && from[8] == 5);
    CHECK(tpr_reader_finish(&reader, 8) == 1 && tpr_reader_finish(&reader, 5) == 0);
    CHECK(tpr_reader_pending_bytes(&reader) == 10 * 40);
    tpr_reader_begin(&reader);
    while (tpr_reader_peek(&reader, &view))
        CHECK(tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    CHECK(tpr_reader_find(&reader, 8)->state == TPR_SOURCE_DRAINED);
    CHECK(tpr_reader_find(&reader, 7)->state == TPR_SOURCE_LIVE);
    close(ring);
    close(control);
    tpr_writer_close(&other);
    close_both();
}

static void test_generations(void) {
    struct tpr_table table;
    uint64_t generation;
    CHECK(tpr_table_open(&table, 0) == TPR_E_CELL);
    CHECK(tpr_table_open(&table, 3) == TPR_OK);
    connect_both(4096);
    int fd = tpr_table_share(&table), ring = tpr_writer_share(&writer);
    CHECK(tpr_writer_set_table(&writer, fd, 3) == TPR_E_CELL);
    CHECK(tpr_writer_set_table(&writer, ring, 0) == TPR_E_MAGIC);
    CHECK(tpr_writer_set_table(&writer, fd, 2) == TPR_OK);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_NEEDS_READERS); /* none installed yet */
    tpr_writer_install(&writer, 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(tpr_table_bump(&table, 1, &generation) == TPR_OK && generation == 1); /* another channel */
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(tpr_writer_put(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(!writer.readers_changed);
    CHECK(tpr_table_bump(&table, 2, &generation) == TPR_OK && generation == 1);
    tpr_writer_flush(&writer); /* the batch was begun before: it goes out, and says so */
    CHECK(writer.readers_changed);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_NEEDS_READERS);
    CHECK(tpr_writer_wait_room(&writer, 1, tpr_deadline_ns(0)) == TPR_NEEDS_READERS);
    tpr_writer_install(&writer, 1);
    CHECK(!writer.readers_changed);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(tpr_table_bump(&table, 3, &generation) == TPR_E_CELL);
    CHECK(writer.last_seq == 4);
    close(fd);
    close(ring);
    tpr_table_close(&table);
    close_both();
}

/* A memfd like those of the ring, but for what is asked. */
static int forge(uint64_t bytes, int seals, const void *header, size_t header_bytes, int is_writable) {
    char path[64];
    int fd = memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && pwrite(fd, header, header_bytes, 0) >= 0);
    CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
    if (is_writable)
        return fd;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int shared = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(shared >= 0);
    close(fd);
    return shared;
}

static int check_forged(uint64_t bytes, int seals, const struct tpr_ring_page *page, int is_writable) {
    struct tpr_ring_info info;
    int fd = forge(bytes, seals, page, 64, is_writable);
    int code = tpr_ring_check(fd, &info);
    close(fd);
    return code;
}

static void test_checks(void) {
    static struct tpr_ring_page good, bad;
    struct tpr_ring_info ring;
    struct tpr_control_info control;
    uint32_t cells;
    good.magic = TPR_RING_MAGIC;
    good.version = TPR_VERSION;
    good.header_bytes = 4096;
    good.capacity = 4096;
    good.source = 3;
    CHECK(check_forged(8192, TPR_SEALS, &good, 0) == TPR_OK);
    CHECK(check_forged(8192, TPR_SEALS, &good, 1) == TPR_E_WRITABLE);
    CHECK(check_forged(8192, 0, &good, 0) == TPR_E_SEALS);
    CHECK(check_forged(8192, F_SEAL_GROW | F_SEAL_SEAL, &good, 0) == TPR_E_SEALS);
    CHECK(check_forged(8192, F_SEAL_SHRINK | F_SEAL_GROW, &good, 0) == TPR_E_SEALS);
    CHECK(check_forged(4096, TPR_SEALS, &good, 0) == TPR_E_SIZE);
    CHECK(check_forged(8193, TPR_SEALS, &good, 0) == TPR_E_SIZE);
    CHECK(check_forged(0, TPR_SEALS & ~F_SEAL_GROW, &good, 0) == TPR_E_SEALS);
    bad = good, bad.magic++;
    CHECK(check_forged(8192, TPR_SEALS, &bad, 0) == TPR_E_MAGIC);
    bad = good, bad.version++;
    CHECK(check_forged(8192, TPR_SEALS, &bad, 0) == TPR_E_VERSION);
    bad = good, bad.header_bytes = 64;
    CHECK(check_forged(8192, TPR_SEALS, &bad, 0) == TPR_E_FIELD);
    const uint64_t capacities[] = {0, 2048, 4095, 6144, UINT64_C(1) << 31, UINT64_MAX};
    for (size_t i = 0; i < sizeof capacities / sizeof *capacities; i++) {
        bad = good, bad.capacity = capacities[i];
        CHECK(check_forged(8192, TPR_SEALS, &bad, 0) == TPR_E_FIELD);
    }
    int file = open("/proc/self/exe", O_RDONLY), pipes[2];
    CHECK(tpr_ring_check(file, &ring) == TPR_E_NOT_MEMFD);
    CHECK(pipe(pipes) == 0 && tpr_ring_check(pipes[0], &ring) == TPR_E_NOT_MEMFD);
    CHECK(tpr_ring_check(-1, &ring) == TPR_E_SYSTEM && errno == EBADF);
    close(file);
    close(pipes[0]);
    close(pipes[1]);

    open_both(4096);
    int ring_fd = tpr_writer_share(&writer), control_fd = tpr_reader_share(&reader);
    CHECK(tpr_ring_check(ring_fd, &ring) == TPR_OK && ring.source == 7 && ring.capacity == 4096);
    CHECK(tpr_control_check(control_fd, &control) == TPR_OK && control.reader == 9 && control.slots == 4);
    CHECK(tpr_ring_check(control_fd, &ring) == TPR_E_MAGIC);
    CHECK(tpr_control_check(ring_fd, &control) == TPR_E_MAGIC);
    CHECK(tpr_table_check(ring_fd, &cells) == TPR_E_MAGIC);
    CHECK(tpr_reader_add(&reader, control_fd, 0, 7, 0, -1, NULL) == TPR_E_MAGIC);
    CHECK(tpr_writer_attach(&writer, 9, ring_fd, 0, -1, 0) == TPR_E_MAGIC);
    CHECK(tpr_writer_attach(&writer, 9, control_fd, 0, ring_fd, 0) == TPR_E_DOORBELL);
    CHECK(writer.peer_count == 0 && reader.count == 0);
    struct stat status;
    CHECK(fstat(ring_fd, &status) == 0 && (status.st_mode & 07777) == 0600);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0) == MAP_FAILED);
    close(ring_fd);
    close(control_fd);
    close_both();
    CHECK(tpr_writer_open(&writer, 1, 5000) == TPR_E_CAPACITY && tpr_writer_open(&writer, 1, 2048) == TPR_E_CAPACITY);
    CHECK(tpr_reader_open(&reader, 1, 0) == TPR_E_SLOTS && tpr_reader_open(&reader, 1, 4097) == TPR_E_SLOTS);
}

static void test_fork(void) {
    connect_both(4096);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    pid_t child = begin_child();
    if (child == 0) {
        CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_E_FORKED);
        CHECK(tpr_writer_share(&writer) == TPR_E_FORKED);
        CHECK(tpr_writer_wait_room(&writer, 1, 0) == TPR_E_FORKED);
        CHECK(tpr_reader_begin(&reader) == TPR_E_FORKED);
        CHECK(tpr_reader_wait(&reader, 0) == TPR_E_FORKED);
        CHECK(tpr_reader_remove(&reader, 7, NULL) == TPR_E_FORKED);
        close_both(); /* releases; must neither crash nor mark the parent's ring closed */
        connect_both(4096);
        CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
        close_both();
        _exit(0);
    }
    CHECK(wait_child(child) == 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    struct tpr_view view;
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view) && view.seq == 1);
    CHECK(reader.source[0]->state == TPR_SOURCE_LIVE);
    close_both();
}

static void test_doorbell(void) {
    int bell[2];
    char byte;
    open_both(4096);
    make_socketpair(bell);
    int control = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 9, control, 0, bell[1], 1) == TPR_OK);
    add(0, 1);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) < 0); /* awake: not rung */
    CHECK(tpr_reader_arm(&reader) == 1);              /* there is something */
    CHECK(drain(0) == 1);
    CHECK(tpr_reader_arm(&reader) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) == 1);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) < 0); /* once per arming */
    CHECK(drain(0) == 3);
    CHECK(tpr_reader_arm(&reader) == 0);
    tpr_reader_disarm(&reader);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) < 0);
    CHECK(drain(0) == 1);
    /* Somebody has filled the bell: the writer must not wait. */
    while (send(bell[1], "", 1, MSG_DONTWAIT) == 1)
        ;
    CHECK(tpr_reader_arm(&reader) == 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    CHECK(drain(0) == 1);
    /* The reader is gone: neither a signal nor an error. */
    close(bell[0]);
    CHECK(tpr_reader_arm(&reader) == 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    close(bell[1]);
    close(control);
    close_both();
}

/* A reader that armed before its writer knew of it is rung when attached (the writer's newest batch may have
 * come after its look at the tail). */
static void test_late_attach_rings(void) {
    int bell[2];
    char byte;
    open_both(4096);
    make_socketpair(bell);
    add(0, 0);
    CHECK(tpr_reader_arm(&reader) == 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "", 0) == TPR_OK);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) < 0);
    int control = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 9, control, 0, bell[1], 0) == TPR_OK);
    CHECK(recv(bell[0], &byte, 1, MSG_DONTWAIT) == 1);
    CHECK(drain(0) == 1);
    close(control);
    close(bell[0]);
    close(bell[1]);
    close_both();
}

int main(void) {
    begin_test();
    test_wrap_at_every_alignment();
    test_message_sizes();
    test_full_and_room();
    test_batches_are_bounded();
    test_many_rounds();
    test_no_sleep_before_the_end_is_told();
    test_attach_and_pin();
    test_leaving_frees_the_writer();
    test_slot_of_another_source();
    test_hostile_cursors();
    test_hostile_rings();
    test_hostile_bytes();
    test_fairness();
    test_generations();
    test_checks();
    test_fork();
    test_doorbell();
    test_late_attach_rings();
    puts("ok");
    return 0;
}
