/* SIGKILL of a writer, a reader or the core around every store to shared memory, and proof that there are no others.
 *
 * Each trial runs two writers, two readers and a core as processes of their own, the test in the middle carrying
 * descriptors. One of them, the victim, kills itself at the n-th hit of a step, before the store, in the middle of
 * a copy, or after it. The others must go on to their ends: whole messages, seq contiguous from 1, both readers
 * agreeing on how much a dead writer published.
 *
 * With the argument `guard` nobody is killed; instead every page is unwritable except between BEFORE and AFTER of a
 * step, so a store to shared memory that goes past the macros is a SIGSEGV.
 */
#include "towpath_ring_layout.h"

#include <stdlib.h>
#include <sys/types.h>

static void on_step(int step, int phase);
static void *guarded_map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
#define TOWPATH_RING_ON_STEP(step, phase) on_step((step), (phase))
#define TOWPATH_RING_MMAP guarded_map
#define TOWPATH_RING_MUNMAP munmap
#include "testing.h"

/* ---- hooks ---- */

static struct {
    int step, phase, hit;
} kill_at = {-1, 0, 0};
static bool is_guarded;
static struct {
    void *page;
    size_t bytes;
} own[4];
static int owned;

static void protect(int protection) {
    for (int i = 0; i < owned; i++)
        CHECK(mprotect(own[i].page, own[i].bytes, protection) == 0);
}

static void on_step(int step, int phase) {
    if (step == kill_at.step && phase == kill_at.phase && --kill_at.hit == 0)
        kill(getpid(), SIGKILL);
    if (is_guarded && phase == TPR_BEFORE)
        protect(PROT_READ | PROT_WRITE);
    if (is_guarded && phase == TPR_AFTER)
        protect(PROT_READ);
}

static void *guarded_map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *page = mmap(address, bytes, protection, flags, fd, offset);
    if (is_guarded && page != MAP_FAILED && (protection & PROT_WRITE)) {
        CHECK(owned < 4);
        own[owned].page = page;
        own[owned++].bytes = bytes;
        protect(PROT_READ);
    }
    return page;
}

/* ---- the parties ---- */

enum role { CORE, WRITER_A, WRITER_B, READER_A, READER_B, ROLES };
enum { HERE = ROLES, GO, GONE }; /* notes; those before them carry the descriptor of that role */
#define MESSAGES 150
#define MOST 600
#define CAPACITY 4096

static bool is_writer(enum role role) {
    return role == WRITER_A || role == WRITER_B;
}

static void core_main(int middle) {
    struct tpr_table table;
    struct note note;
    uint64_t generation;
    CHECK(tpr_table_open(&table, 1) == TPR_OK);
    send_note(middle, HERE, 0, tpr_table_share(&table));
    /* Bump whenever told to; answer when it is done. */
    while (receive_note(middle, &note, NULL)) {
        CHECK(tpr_table_bump(&table, 0, &generation) == TPR_OK);
        send_note(middle, HERE, generation, -1);
    }
    tpr_table_close(&table);
}

/* Somebody is gone, or the generation changed by itself: hear what, if anything. */
static void writer_news(int middle, struct tpr_writer *writer) {
    struct pollfd pending = {.fd = middle, .events = POLLIN};
    struct note note;
    while (poll(&pending, 1, 0) == 1 && receive_note(middle, &note, NULL))
        tpr_writer_detach(writer, note.number);
    tpr_writer_install(writer, *writer->generation_cell);
}

static void writer_main(int middle, enum role role) {
    struct tpr_writer writer;
    struct tpr_room_wait wait = {0};
    struct note note;
    int fd;
    bool has_waited = false;
    CHECK(tpr_writer_open(&writer, role, CAPACITY) == TPR_OK);
    no_spin(&writer.spin);
    send_note(middle, HERE, role, tpr_writer_share(&writer));
    while (receive_note(middle, &note, &fd) && note.what != GO) {
        if (note.what == CORE)
            CHECK(tpr_writer_set_table(&writer, fd, 0) == TPR_OK);
        else
            CHECK(tpr_writer_attach(&writer, note.number, fd, role, -1, 1) == TPR_OK);
        close(fd);
    }
    if (writer.generation_cell)
        tpr_writer_install(&writer, *writer.generation_cell);
    while (writer.last_seq < MESSAGES) {
        int code = pattern_put(&writer, MOST);
        if (code == TPR_OK) {
            if (writer.last_seq % 3 == 0)
                tpr_writer_flush(&writer);
            continue;
        }
        if (code == TPR_NEEDS_READERS) {
            writer_news(middle, &writer);
            continue;
        }
        CHECK(code == TPR_FULL);
        code = tpr_writer_wait_begin(&writer, MOST, &wait);
        if (!has_waited) {
            /* The readers hold still until now, so that a writer sleeps for room in every trial. */
            has_waited = true;
            send_note(middle, GO, 0, -1);
        }
        if (code == TPR_FULL)
            CHECK(tpr_room_wait_sleep(&wait, within_limit()) == TPR_OK);
        else if (code == TPR_NEEDS_READERS)
            writer_news(middle, &writer);
        else
            CHECK(code == TPR_OK);
    }
    tpr_writer_close(&writer);
}

/* What a reader saw, as its last words: the last seq of each writer. */
static void reader_main(int middle, enum role role) {
    struct tpr_reader reader;
    struct tpr_view view;
    struct note note;
    int fd;
    uint64_t last[ROLES] = {0};
    CHECK(tpr_reader_open(&reader, role, ROLES) == TPR_OK);
    no_spin(&reader.spin);
    send_note(middle, HERE, role, tpr_reader_share(&reader));
    while (receive_note(middle, &note, &fd) && note.what != GO) {
        CHECK(tpr_reader_add(&reader, fd, (uint32_t)note.number, note.number, 1, NULL) == TPR_OK);
        close(fd);
    }
    CHECK(tpr_reader_wait(&reader, 1) == TPR_NOTIFIED); /* the adds; also makes every trial sleep once */
    tpr_reader_arm(&reader);
    tpr_reader_disarm(&reader);
    send_note(middle, HERE, role, -1);
    CHECK(receive_note(middle, &note, NULL) && note.what == GO);
    while (reader.count) {
        tpr_reader_begin(&reader);
        for (int i = 0; i < 5 && tpr_reader_peek(&reader, &view); i++) {
            pattern_check_view(&view, MOST);
            CHECK(view.seq == last[view.from->source] + 1);
            last[view.from->source] = view.seq;
            tpr_reader_consume(&reader, &view);
        }
        tpr_reader_end(&reader);
        for (uint32_t i = 0; i < reader.count; i++) {
            CHECK(reader.source[i]->state != TPR_SOURCE_VIOLATED);
            if (reader.source[i]->state == TPR_SOURCE_DRAINED)
                tpr_reader_remove(&reader, reader.source[i--]->source, NULL);
        }
        /* The end of a writer comes over the socket, as from the core. It stands for a doorbell too: a short sleep
         * on the rings, then a look at the socket. */
        struct pollfd pending = {.fd = middle, .events = POLLIN};
        if (poll(&pending, 1, 0) == 1 && receive_note(middle, &note, NULL)) {
            tpr_reader_finish(&reader, note.number);
            continue;
        }
        if (reader.count) {
            int code = tpr_reader_wait(&reader, tpr_deadline_ns(1000000));
            CHECK(code == TPR_OK || code == TPR_NOTIFIED || code == TPR_TIMEOUT);
        }
    }
    for (int writer = WRITER_A; writer <= WRITER_B; writer++)
        send_note(middle, writer, last[writer], -1);
    tpr_reader_close(&reader);
}

/* ---- a trial ---- */

struct party {
    pid_t pid;
    int socket, fd;
    bool is_killed;
};

static void begin_party(struct party *party, enum role role, bool is_victim, int step, int phase, int hit) {
    int pair[2];
    make_socketpair(pair);
    party->pid = begin_child();
    if (party->pid == 0) {
        close(pair[0]);
        if (is_victim) {
            kill_at.step = step;
            kill_at.phase = phase;
            kill_at.hit = hit;
        }
        if (role == CORE)
            core_main(pair[1]);
        else if (is_writer(role))
            writer_main(pair[1], role);
        else
            reader_main(pair[1], role);
        _exit(0);
    }
    close(pair[1]);
    party->socket = pair[0];
    party->fd = -1;
    party->is_killed = false;
}

/* The party has ended: of the kill if it is the victim, and else well. */
static void end_party(struct party *party, bool is_victim) {
    int status = wait_child(party->pid);
    party->is_killed = WIFSIGNALED(status);
    if (status != 0 && !(is_victim && party->is_killed && WTERMSIG(status) == SIGKILL)) {
        fprintf(stderr, "a party ended with status %#x\n", (unsigned)status);
        CHECK(!"only the victim may be killed, and only by SIGKILL");
    }
}

/* Introduce everybody to everybody; then let the writers go, and the readers once a writer is full or dead. */
static void introduce(struct party *party) {
    struct note note;
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        if (party[CORE].fd >= 0)
            send_note(party[writer].socket, CORE, 0, party[CORE].fd);
        for (int reader = READER_A; reader <= READER_B; reader++) {
            if (party[reader].fd >= 0)
                send_note(party[writer].socket, reader, (uint64_t)reader, party[reader].fd);
            if (party[writer].fd >= 0)
                send_note(party[reader].socket, writer, (uint64_t)writer, party[writer].fd);
        }
    }
    for (int reader = READER_A; reader <= READER_B; reader++) {
        send_note(party[reader].socket, GO, 0, -1);
        receive_note(party[reader].socket, &note, NULL); /* has added and slept; or is dead */
    }
}

/* Returns whether the victim was killed. */
static bool trial(enum role victim, int step, int phase, int hit) {
    struct party party[ROLES];
    struct note note;
    uint64_t last[ROLES][ROLES] = {{0}};
    for (int role = 0; role < ROLES; role++)
        begin_party(&party[role], (enum role)role, role == (int)victim, step, phase, hit);
    for (int role = 0; role < ROLES; role++)
        receive_note(party[role].socket, &note, &party[role].fd); /* none: killed before it could say HERE */
    introduce(party);
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        send_note(party[writer].socket, GO, 0, -1);
        receive_note(party[writer].socket, &note, NULL); /* full; or dead */
    }
    for (int reader = READER_A; reader <= READER_B; reader++)
        send_note(party[reader].socket, GO, 0, -1);
    if (victim == CORE) { /* make it bump; the writers find the generation changed on their own */
        send_note(party[CORE].socket, HERE, 0, -1);
        receive_note(party[CORE].socket, &note, NULL);
    }
    if (victim == READER_A) { /* whatever became of it: its end is what the writers are told */
        for (int writer = WRITER_A; writer <= WRITER_B && receive_note(party[victim].socket, &note, NULL); writer++)
            last[victim][note.what] = note.number;
        end_party(&party[victim], true);
        for (int writer = WRITER_A; writer <= WRITER_B; writer++)
            send_note(party[writer].socket, GONE, victim, -1);
        send_note(party[CORE].socket, HERE, 0, -1);
        CHECK(receive_note(party[CORE].socket, &note, NULL));
    }
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        end_party(&party[writer], writer == (int)victim);
        for (int reader = READER_A; reader <= READER_B; reader++)
            send_note(party[reader].socket, GONE, (uint64_t)writer, -1);
    }
    for (int reader = READER_A; reader <= READER_B; reader++) {
        if (reader == (int)victim)
            continue;
        for (int writer = WRITER_A; writer <= WRITER_B && receive_note(party[reader].socket, &note, NULL); writer++)
            last[reader][note.what] = note.number;
        end_party(&party[reader], false);
    }
    shutdown(party[CORE].socket, SHUT_RDWR);
    end_party(&party[CORE], victim == CORE);

    CHECK(last[READER_B][WRITER_B] == MESSAGES);
    CHECK(victim == WRITER_A || last[READER_B][WRITER_A] == MESSAGES);
    if (victim == WRITER_A || victim == CORE || !party[READER_A].is_killed)
        CHECK(last[READER_A][WRITER_A] == last[READER_B][WRITER_A] && last[READER_A][WRITER_B] == MESSAGES);
    for (int role = 0; role < ROLES; role++) {
        close(party[role].socket);
        if (party[role].fd >= 0)
            close(party[role].fd);
    }
    return party[victim].is_killed;
}

/* ---- all of them ---- */

#define STEP_TEXT(name) #name,
static const char *const step_name[] = {TOWPATH_RING_STEPS(STEP_TEXT)};

/* Whose store each step is. -1: a new step that this test does not know yet. */
static int victim_of(int step) {
    switch (step) {
    case TPR_STEP_RING_HEADER:
    case TPR_STEP_PADDING:
    case TPR_STEP_RECORD_HEADER:
    case TPR_STEP_RECORD_HEADERS:
    case TPR_STEP_RECORD_PAYLOAD:
    case TPR_STEP_LAST_SEQ:
    case TPR_STEP_TAIL:
    case TPR_STEP_WAITS_SET:
    case TPR_STEP_WAITS_CLEAR:
    case TPR_STEP_TAIL_CLOSED: return WRITER_A;
    case TPR_STEP_CONTROL_HEADER:
    case TPR_STEP_SLOT_RESET:
    case TPR_STEP_SLOT_SOURCE:
    case TPR_STEP_SLOT_START:
    case TPR_STEP_CURSOR:
    case TPR_STEP_SLOT_LEFT:
    case TPR_STEP_SLEEP_FUTEX:
    case TPR_STEP_SLEEP_DOORBELL:
    case TPR_STEP_SLEEP_AWAKE: return READER_A;
    case TPR_STEP_TABLE_HEADER:
    case TPR_STEP_GENERATION: return CORE;
    default: return -1;
    }
}

static bool is_copy(int step) {
    return step == TPR_STEP_RING_HEADER || step == TPR_STEP_PADDING || step == TPR_STEP_RECORD_HEADER ||
           step == TPR_STEP_RECORD_HEADERS || step == TPR_STEP_RECORD_PAYLOAD || step == TPR_STEP_CONTROL_HEADER ||
           step == TPR_STEP_TABLE_HEADER;
}

int main(int count, char **argument) {
    const int hits[] = {1, 2, 7};
    int killed = 0;
    begin_test();
    signal(SIGPIPE, SIG_IGN);
    if (count > 1 && strcmp(argument[1], "guard") == 0) {
        is_guarded = true;
        for (int victim = CORE; victim < ROLES; victim += 1)
            CHECK(victim == WRITER_B || victim == READER_B || !trial((enum role)victim, -1, 0, 0));
        puts("ok");
        return 0;
    }
    for (int step = 0; step < TPR_STEP_COUNT; step++) {
        int victim = victim_of(step);
        CHECK(victim >= 0);
        for (int phase = TPR_BEFORE; phase <= TPR_AFTER; phase++) {
            if (phase == TPR_MIDDLE && !is_copy(step))
                continue;
            for (size_t i = 0; i < sizeof hits / sizeof *hits; i++) {
                bool is_killed = trial((enum role)victim, step, phase, hits[i]);
                if (hits[i] == 1 && !is_killed) {
                    fprintf(stderr, "step %s was never reached\n", step_name[step]);
                    CHECK(is_killed);
                }
                killed += is_killed;
                if (!is_killed)
                    break; /* it has no later hit either */
            }
        }
        printf("%s\n", step_name[step]);
    }
    printf("%d killed\nok\n", killed);
    return 0;
}
