/* The ring between processes, with the test as the core: it carries descriptors and bumps the generation.
 *
 * - ping: two processes answer each other with every spin off, so each message is a sleep and a wake-up.
 * - latecomer: a reader falls asleep before the writer knows of it, and during the writer's batch.
 * - flood: several writers, several readers, small rings; every byte and every seq checked.
 * - storm: readers come and go while a writer never stops; each must get everything published after it subscribed.
 * - crowd: one reader on more rings than one futex_waitv takes.
 */
#include "pair.h"

/* ---- ping ---- */

static void ping_side(int socket, uint64_t id, uint64_t other, uint64_t rounds) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct tpr_view view;
    uint64_t received = 0;
    CHECK(tpr_writer_open(&writer, id, 4096) == TPR_OK && tpr_reader_open(&reader, id, 1) == TPR_OK);
    exchange(socket, &writer, &reader, other);
    while (received < rounds) {
        if (id < other || received)
            CHECK(tpr_writer_publish(&writer, NULL, 0, &received, sizeof received) == TPR_OK);
        for (;;) {
            tpr_reader_begin(&reader);
            bool got = tpr_reader_peek(&reader, &view);
            if (got)
                CHECK(tpr_reader_consume(&reader, &view));
            tpr_reader_end(&reader);
            if (got)
                break;
            int code = tpr_reader_wait(&reader, within_limit());
            CHECK(code == TPR_OK || code == TPR_NOTIFIED); /* a timeout is a lost wake-up */
        }
        received++;
    }
    if (id > other)
        CHECK(tpr_writer_publish(&writer, NULL, 0, NULL, 0) == TPR_OK);
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
}

static void ping(uint64_t rounds) {
    int pair[2];
    make_socketpair(pair);
    pid_t child = begin_child();
    if (child == 0) {
        ping_side(pair[1], 2, 1, rounds);
        _exit(0);
    }
    ping_side(pair[0], 1, 2, rounds);
    CHECK(wait_child(child) == 0);
    close(pair[0]);
    close(pair[1]);
}

/* ---- latecomer ---- */

static void latecomer(void) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct tpr_table table;
    struct tpr_control_info info;
    struct note note;
    uint64_t generation, deadline_ns = within_limit();
    int pair[2], control;
    make_socketpair(pair);
    pid_t child = begin_child();
    if (child == 0) {
        int ring;
        CHECK(tpr_reader_open(&reader, 9, 1) == TPR_OK);
        no_spin(&reader.spin);
        CHECK(receive_note(pair[1], &note, &ring)); /* the core has bumped */
        CHECK(tpr_reader_add(&reader, ring, 0, 5, 0, -1, NULL) == TPR_OK);
        send_note(pair[1], 0, 0, tpr_reader_share(&reader));
        receive_round(&reader);
        tpr_reader_close(&reader);
        _exit(0);
    }
    CHECK(tpr_writer_open(&writer, 5, 4096) == TPR_OK && tpr_table_open(&table, 1) == TPR_OK);
    CHECK(tpr_writer_set_table(&writer, tpr_table_share(&table), 0) == TPR_OK);
    tpr_writer_install(&writer, 0);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "before", 6) == TPR_OK);
    CHECK(tpr_writer_put(&writer, NULL, 0, "race", 4) == TPR_OK); /* has seen the old generation */
    CHECK(tpr_table_bump(&table, 0, &generation) == TPR_OK);
    send_note(pair[0], 0, 0, tpr_writer_share(&writer));
    CHECK(receive_note(pair[0], &note, &control) && tpr_control_check(control, &info) == TPR_OK);
    const struct tpr_control_page *page =
        (const struct tpr_control_page *)tpr_map_(control, tpr_control_bytes_(&info));
    CHECK(page);
    while ((tpr_load_acquire_(&page->sleeping) & TPR_MODE_MASK) != TPR_MODE_FUTEX) {
        sched_yield();
        CHECK(tpr_monotonic_ns() < deadline_ns);
    }
    tpr_writer_flush(&writer);
    CHECK(wait_child(child) == 0); /* it woke, and got "race", of which it was never attached for */
    CHECK(writer.readers_changed);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "after", 5) == TPR_NEEDS_READERS);
    tpr_unmap_(page, tpr_control_bytes_(&info));
    tpr_writer_close(&writer);
    tpr_table_close(&table);
    close(control);
    close(pair[0]);
    close(pair[1]);
}

/* A writer that sleeps because an attached reader has no cursor yet wakes when the reader gets one. */
static void newcomer(void) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct note note;
    int pair[2], fd;
    make_socketpair(pair);
    pid_t child = begin_child();
    if (child == 0) {
        uint64_t deadline_ns = within_limit();
        CHECK(tpr_reader_open(&reader, 9, 1) == TPR_OK);
        send_note(pair[1], 0, 0, tpr_reader_share(&reader));
        CHECK(receive_note(pair[1], &note, &fd));
        const struct tpr_ring_page *page = (const struct tpr_ring_page *)tpr_map_(fd, TPR_HEADER_BYTES + 4096);
        CHECK(page);
        while (!tpr_load_acquire_(&page->writer_waits_for)) {
            sched_yield();
            CHECK(tpr_monotonic_ns() < deadline_ns);
        }
        CHECK(tpr_reader_add(&reader, fd, 0, 5, 0, -1, NULL) == TPR_OK);
        CHECK(receive_note(pair[1], &note, &fd)); /* stay until it woke: leaving would wake it too */
        tpr_reader_close(&reader);
        _exit(0);
    }
    CHECK(tpr_writer_open(&writer, 5, 4096) == TPR_OK);
    no_spin(&writer.spin);
    CHECK(receive_note(pair[0], &note, &fd));
    CHECK(tpr_writer_attach(&writer, 9, fd, 0, -1, 0) == TPR_OK);
    while (tpr_writer_publish(&writer, NULL, 0, "0123456789", 10) == TPR_OK)
        ;
    send_note(pair[0], 0, 0, tpr_writer_share(&writer));
    CHECK(tpr_writer_wait_room(&writer, 10, within_limit()) == TPR_OK);
    send_note(pair[0], 0, 0, -1);
    CHECK(wait_child(child) == 0);
    tpr_writer_close(&writer);
    close(fd);
    close(pair[0]);
    close(pair[1]);
}

/* ---- flood ---- */

#define MOST 900

static void flood_writer(int core, uint64_t source, int readers, uint64_t messages) {
    struct tpr_writer writer;
    struct note note;
    int fd;
    CHECK(tpr_writer_open(&writer, source, 4096) == TPR_OK);
    if (source % 2)
        no_spin(&writer.spin);
    send_note(core, 0, source, tpr_writer_share(&writer));
    for (int r = 0; r < readers; r++) {
        CHECK(receive_note(core, &note, &fd));
        CHECK(tpr_writer_attach(&writer, note.number, fd, (uint32_t)source, -1, 1) == TPR_OK);
        close(fd);
    }
    while (writer.last_seq < messages) {
        int code = pattern_put(&writer, MOST);
        CHECK(code == TPR_OK || code == TPR_FULL);
        if (code == TPR_FULL)
            CHECK(tpr_writer_wait_room(&writer, MOST, within_limit()) == TPR_OK);
        else if (writer.last_seq % 3 == 0)
            tpr_writer_flush(&writer);
    }
    tpr_writer_close(&writer);
}

/* Read until every source is drained; returns how many messages there were. */
static uint64_t read_to_the_end(struct tpr_reader *reader, size_t most) {
    struct tpr_view view;
    uint64_t received = 0;
    for (;;) {
        uint32_t drained = 0;
        tpr_reader_begin(reader);
        for (int i = 0; i < 10 && tpr_reader_peek(reader, &view); i++) {
            pattern_check_view(&view, most);
            CHECK(tpr_reader_consume(reader, &view));
            received++;
        }
        tpr_reader_end(reader);
        for (uint32_t i = 0; i < reader->count; i++) {
            CHECK(reader->source[i]->state != TPR_SOURCE_VIOLATED);
            drained += reader->source[i]->state == TPR_SOURCE_DRAINED;
        }
        if (drained == reader->count)
            return received;
        int code = tpr_reader_wait(reader, within_limit());
        CHECK(code == TPR_OK || code == TPR_NOTIFIED);
    }
}

static void flood_reader(int core, uint64_t id, int writers, uint64_t messages) {
    struct tpr_reader reader;
    struct note note;
    int fd;
    CHECK(tpr_reader_open(&reader, id, (uint32_t)writers) == TPR_OK);
    if (id % 2)
        no_spin(&reader.spin);
    send_note(core, 0, id, tpr_reader_share(&reader));
    for (int w = 0; w < writers; w++) {
        CHECK(receive_note(core, &note, &fd));
        CHECK(tpr_reader_add(&reader, fd, (uint32_t)note.number, note.number, 1, -1, NULL) == TPR_OK);
        close(fd);
    }
    CHECK(read_to_the_end(&reader, MOST) == (uint64_t)writers * messages);
    for (int w = 0; w < writers; w++)
        CHECK(reader.source[w]->next_seq == messages + 1);
    tpr_reader_close(&reader);
}

static void flood(uint64_t messages) {
    enum { WRITERS = 3, READERS = 2, ALL = WRITERS + READERS };
    int socket[ALL], fd[ALL];
    pid_t child[ALL];
    struct note note;
    for (int i = 0; i < ALL; i++) {
        int pair[2];
        make_socketpair(pair);
        child[i] = begin_child();
        if (child[i] == 0) {
            if (i < WRITERS)
                flood_writer(pair[1], (uint64_t)i, READERS, messages);
            else
                flood_reader(pair[1], (uint64_t)(i + 100), WRITERS, messages);
            _exit(0);
        }
        close(pair[1]);
        socket[i] = pair[0];
    }
    for (int i = 0; i < ALL; i++)
        CHECK(receive_note(socket[i], &note, &fd[i]));
    for (int w = 0; w < WRITERS; w++) {
        for (int r = WRITERS; r < ALL; r++) {
            send_note(socket[w], 0, (uint64_t)(r + 100), fd[r]);
            send_note(socket[r], 0, (uint64_t)w, fd[w]);
        }
    }
    for (int i = 0; i < ALL; i++) {
        CHECK(wait_child(child[i]) == 0);
        close(socket[i]);
        close(fd[i]);
    }
}

/* ---- storm ---- */

enum { SUBSCRIBE = 1, SUBSCRIBED, UNSUBSCRIBE, FETCH, ATTACH, DETACH, INSTALL, STOP };

static void storm_writer(int core, _Atomic uint64_t *started) {
    struct tpr_writer writer;
    struct note note;
    int fd;
    CHECK(tpr_writer_open(&writer, 5, 16384) == TPR_OK);
    send_note(core, 0, 0, tpr_writer_share(&writer));
    CHECK(receive_note(core, &note, &fd) && tpr_writer_set_table(&writer, fd, 0) == TPR_OK);
    for (;;) {
        *started = writer.last_seq + 1;
        int code = pattern_put(&writer, 100);
        tpr_writer_flush(&writer);
        if (code == TPR_FULL)
            code = tpr_writer_wait_room(&writer, 100, within_limit());
        if (code == TPR_OK)
            continue;
        CHECK(code == TPR_NEEDS_READERS);
        *started = writer.last_seq; /* nothing is being published while the readers are fetched */
        send_note(core, FETCH, 0, -1);
        do {
            CHECK(receive_note(core, &note, &fd));
            if (note.what == ATTACH) {
                CHECK(tpr_writer_attach(&writer, note.number, fd, 0, -1, 0) == TPR_OK);
                close(fd);
            } else if (note.what == DETACH) {
                tpr_writer_detach(&writer, note.number);
            } else if (note.what == STOP) {
                CHECK(writer.peer_count == 0 || !writer.peer[0].is_violator);
                tpr_writer_close(&writer);
                return;
            }
        } while (note.what != INSTALL);
        tpr_writer_install(&writer, note.number);
    }
}

static void storm_reader(int core, _Atomic uint64_t *started, uint64_t id, int rounds) {
    for (int i = 0; i < rounds; i++, id++) {
        struct tpr_reader reader;
        struct tpr_view view;
        struct note note;
        int fd;
        uint64_t expected = 0, wanted = 6;
        CHECK(tpr_reader_open(&reader, id, 1) == TPR_OK);
        if (i % 2)
            no_spin(&reader.spin);
        int control = tpr_reader_share(&reader);
        send_note(core, SUBSCRIBE, id, control);
        close(control);
        CHECK(receive_note(core, &note, &fd) && note.what == SUBSCRIBED);
        CHECK(tpr_reader_add(&reader, fd, 0, 5, 0, -1, NULL) == TPR_OK);
        close(fd);
        /* subscribe() returns here: whatever publish() begins later is due. */
        uint64_t begun = *started;
        while (wanted) {
            tpr_reader_begin(&reader);
            while (wanted && tpr_reader_peek(&reader, &view)) {
                CHECK(expected ? view.seq == expected : view.seq <= begun + 1);
                pattern_check_view(&view, 100);
                expected = view.seq + 1;
                CHECK(tpr_reader_consume(&reader, &view));
                wanted--;
            }
            tpr_reader_end(&reader);
            CHECK(reader.source[0]->state == TPR_SOURCE_LIVE);
            if (wanted) {
                int code = tpr_reader_wait(&reader, within_limit());
                CHECK(code == TPR_OK || code == TPR_NOTIFIED);
            }
        }
        tpr_reader_close(&reader);
        send_note(core, UNSUBSCRIBE, id, -1);
    }
}

static void storm_core(int writer, const int *reader, int readers) {
    struct tpr_table table;
    struct note note;
    struct pollfd poll_fd[4];
    uint64_t generation = 0, gone[4] = {0};
    int live = readers, ring, fd, control[4];
    uint64_t id[4];
    CHECK(receive_note(writer, &note, &ring));
    CHECK(tpr_table_open(&table, 1) == TPR_OK);
    send_note(writer, 0, 0, tpr_table_share(&table));
    for (int i = 0; i < readers; i++) {
        poll_fd[i] = (struct pollfd){.fd = reader[i], .events = POLLIN};
        control[i] = -1;
    }
    poll_fd[readers] = (struct pollfd){.fd = writer, .events = POLLIN};
    while (live) {
        CHECK(poll(poll_fd, (nfds_t)readers + 1, (int)limit_s * 1000) > 0);
        for (int i = 0; i < readers; i++) {
            if (!poll_fd[i].revents)
                continue;
            if (!receive_note(reader[i], &note, &fd)) {
                poll_fd[i].fd = -1;
                live--;
                continue;
            }
            if (note.what == SUBSCRIBE) {
                control[i] = fd;
                id[i] = note.number;
            } else {
                close(control[i]);
                control[i] = -1;
                gone[i] = note.number;
            }
            CHECK(tpr_table_bump(&table, 0, &generation) == TPR_OK);
            if (note.what == SUBSCRIBE)
                send_note(reader[i], SUBSCRIBED, 0, ring);
        }
        if (poll_fd[readers].revents) {
            CHECK(receive_note(writer, &note, NULL) && note.what == FETCH);
            for (int i = 0; i < readers; i++) {
                if (gone[i])
                    send_note(writer, DETACH, gone[i], -1);
                if (control[i] >= 0)
                    send_note(writer, ATTACH, id[i], control[i]);
            }
            send_note(writer, INSTALL, generation, -1);
        }
    }
    CHECK(tpr_table_bump(&table, 0, &generation) == TPR_OK);
    CHECK(receive_note(writer, &note, NULL) && note.what == FETCH);
    send_note(writer, STOP, 0, -1);
    close(ring);
    tpr_table_close(&table);
}

static void storm(int rounds) {
    enum { READERS = 3 };
    int writer[2], reader[READERS];
    pid_t child[READERS + 1];
    _Atomic uint64_t *started = (_Atomic uint64_t *)mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                                                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(started != MAP_FAILED);
    make_socketpair(writer);
    child[READERS] = begin_child();
    if (child[READERS] == 0) {
        storm_writer(writer[1], started);
        _exit(0);
    }
    close(writer[1]);
    for (int i = 0; i < READERS; i++) {
        int pair[2];
        make_socketpair(pair);
        child[i] = begin_child();
        if (child[i] == 0) {
            close(pair[0]);
            storm_reader(pair[1], started, (uint64_t)(i + 1) * 1000000, rounds);
            _exit(0);
        }
        close(pair[1]);
        reader[i] = pair[0];
    }
    storm_core(writer[0], reader, READERS);
    for (int i = 0; i <= READERS; i++)
        CHECK(wait_child(child[i]) == 0);
    for (int i = 0; i < READERS; i++)
        close(reader[i]);
    close(writer[0]);
}

/* ---- crowd ---- */

static void crowd(void) {
    enum { RINGS = 150 };
    static struct tpr_writer writer[RINGS];
    struct tpr_reader reader;
    struct note note;
    int pair[2];
    make_socketpair(pair);
    pid_t child = begin_child();
    if (child == 0) {
        int fd;
        CHECK(tpr_reader_open(&reader, 9, RINGS) == TPR_OK);
        no_spin(&reader.spin);
        send_note(pair[1], 0, 0, tpr_reader_share(&reader));
        for (uint32_t i = 0; i < RINGS; i++) {
            CHECK(receive_note(pair[1], &note, &fd));
            CHECK(tpr_reader_add(&reader, fd, i, i, 1, -1, NULL) == TPR_OK);
            close(fd);
        }
        for (uint64_t received = 0; received < RINGS; received++) {
            struct tpr_view view;
            tpr_reader_begin(&reader);
            while (!tpr_reader_peek(&reader, &view)) {
                int code = tpr_reader_wait(&reader, within_limit());
                CHECK(code == TPR_OK || code == TPR_NOTIFIED);
                tpr_reader_begin(&reader);
            }
            CHECK(view.from->source == received);
            CHECK(tpr_reader_consume(&reader, &view));
            tpr_reader_end(&reader);
            send_note(pair[1], 0, 0, -1);
        }
        tpr_reader_close(&reader);
        _exit(0);
    }
    int control;
    CHECK(receive_note(pair[0], &note, &control));
    for (uint32_t i = 0; i < RINGS; i++) {
        CHECK(tpr_writer_open(&writer[i], i, 4096) == TPR_OK);
        CHECK(tpr_writer_attach(&writer[i], 9, control, i, -1, 1) == TPR_OK);
        int fd = tpr_writer_share(&writer[i]);
        send_note(pair[0], 0, 0, fd);
        close(fd);
    }
    for (uint32_t i = 0; i < RINGS; i++) {
        CHECK(tpr_writer_publish(&writer[i], NULL, 0, "x", 1) == TPR_OK);
        CHECK(receive_note(pair[0], &note, NULL));
    }
    for (uint32_t i = 0; i < RINGS; i++)
        tpr_writer_close(&writer[i]);
    CHECK(wait_child(child) == 0);
    close(control);
    close(pair[0]);
    close(pair[1]);
}

int main(void) {
    begin_test();
    ping(5000);
    latecomer();
    newcomer();
    flood(4000);
    storm(150);
    crowd();
    puts("ok");
    return 0;
}
