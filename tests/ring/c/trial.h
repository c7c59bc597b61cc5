/* Trials: two writers, two readers and a core as processes of their own, the test in the middle carrying descriptors;
 * and a signal that one of them, the victim, sends itself at the n-th hit of a step, before the store, in the middle of a
 * copy, or after it. What must become of the others is for kill_test.c and stop_test.c to say.
 *
 * Each party ends by itself: writers after MESSAGES messages, readers when both rings are drained. What a reader read is
 * whole, seq contiguous from 1 but for what it says it missed, or it ends with a failure.
 */
#ifndef TRIAL_H
#define TRIAL_H

#include "towpath_ring_layout.h"

#include <stdlib.h>
#include <sys/types.h>

static void on_step(int step, int phase);
static void *guarded_map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
#define TOWPATH_RING_ON_STEP(step, phase) on_step((step), (phase))
#define TOWPATH_RING_MMAP guarded_map
#define TOWPATH_RING_MUNMAP munmap
#include "loans.h"
#include "testing.h"

/* ---- hooks ---- */

struct moment {
    int step, phase, hit, signal;
};
static struct moment moment = {-1, 0, 0, 0}; /* when the victim sends itself what */
static bool is_guarded;                      /* pages are unwritable but during a step */
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
    if (step == moment.step && phase == moment.phase && --moment.hit == 0)
        kill(getpid(), moment.signal);
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
enum { HERE = ROLES, GO, GONE, DRAINED }; /* notes; those before them carry the descriptor of that role */
#define MESSAGES 150
#define ENOUGH 60 /* messages after which a writer that never waits lets the readers begin */
#define MOST 600
#define CAPACITY 4096
#define STALL_NS UINT64_C(50000000)

static struct mode {
    const char *name;
    uint32_t overflow, history;
    uint64_t slab_bytes; /* three of four messages are loaned, and held by who reads them; fewer than they would like */
} mode;
static const struct mode modes[] = {{"block", TPR_OVERFLOW_BLOCK, 0, 0},
                                    {"history", TPR_OVERFLOW_BLOCK, 5, 0},
                                    {"drop", TPR_OVERFLOW_DROP, 5, 0},
                                    {"loans", TPR_OVERFLOW_BLOCK, 2, 8 * TPR_SLAB_GRAIN},
                                    {"loans, drop", TPR_OVERFLOW_DROP, 0, 8 * TPR_SLAB_GRAIN}};
#define HELD_MAX 2

static bool detaches_stalled; /* writers do, after STALL_NS */

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

/* Every fourth message has an origin. */
static struct tpr_loan loan; /* its data is NULL: there is none */
static int writer_put(struct tpr_writer *writer) {
    if (mode.slab_bytes && (writer->last_seq + 1) % 4)
        return pattern_put_loan(writer, MOST, &loan);
    struct tpr_origin origin = {writer->source, writer->last_seq + 1, 1};
    return pattern_put_from(writer, MOST, origin.seq % 4 ? NULL : &origin);
}

/* The ring is full, or the slab is. Where readers stop, parts from READER_A when it is stalled (another one that is only slow
 * is spared). */
static void writer_wait(struct tpr_writer *writer) {
    struct tpr_room_wait wait;
    struct tpr_loan_wait loan_wait;
    uint64_t deadline_ns = detaches_stalled ? tpr_deadline_ns((int64_t)STALL_NS / 5) : within_limit(), stalled = 0;
    int code;
    if (mode.slab_bytes && !loan.data && (writer->last_seq + 1) % 4) {
        code = tpr_writer_arm_loan(writer, MOST);
        CHECK(code >= 0 || code == TPR_E_LOANS);
        tpr_writer_disarm_loan(writer);
        if (tpr_writer_loan_wait_begin(writer, MOST, &loan_wait) != TPR_FULL)
            return;
        code = tpr_loan_wait_sleep(&loan_wait, deadline_ns);
    } else {
        CHECK(tpr_writer_arm_room(writer, MOST) >= 0); /* as an event loop does; the sleep takes it over */
        if (tpr_writer_wait_begin(writer, MOST, &wait) != TPR_FULL)
            return;
        code = tpr_room_wait_sleep(&wait, deadline_ns);
    }
    CHECK(code == TPR_OK || (code == TPR_TIMEOUT && detaches_stalled));
    if (detaches_stalled && tpr_writer_stalled(writer, STALL_NS, &stalled) && stalled == READER_A)
        CHECK(tpr_writer_part(writer, stalled) == 1);
}

static void writer_main(int middle, enum role role) {
    struct tpr_writer writer;
    struct note note;
    int fd;
    bool has_told = false;
    CHECK(tpr_writer_open_loaning(&writer, role, CAPACITY, mode.overflow, mode.history, mode.slab_bytes) == TPR_OK);
    tpr_writer_begin_at(&writer, 1); /* where it would anyway */
    no_spin(&writer.spin);
    send_note(middle, HERE, role, tpr_writer_share(&writer));
    while (receive_note(middle, &note, &fd) && note.what != GO) {
        if (note.what == CORE)
            CHECK(tpr_writer_set_table(&writer, fd, 0) == TPR_OK);
        else
            CHECK(tpr_writer_attach(&writer, note.number, fd, role, -1, TPR_START_BEGIN) == TPR_OK);
        close(fd);
    }
    if (writer.generation_cell)
        tpr_writer_install(&writer, *writer.generation_cell);
    while (writer.last_seq < MESSAGES) {
        int code = writer_put(&writer);
        CHECK(code >= TPR_OK);
        if (code == TPR_OK && writer.last_seq % 3 == 0)
            tpr_writer_flush(&writer);
        if (code == TPR_NEEDS_READERS)
            writer_news(middle, &writer);
        if (!has_told && (code == TPR_FULL || writer.last_seq >= ENOUGH)) {
            /* The readers hold still until now, so that a writer that may wait does so in every trial. */
            has_told = true;
            send_note(middle, GO, 0, -1);
        }
        if (code == TPR_FULL)
            writer_wait(&writer);
    }
    tpr_writer_close(&writer);
}

/* One pass; `last` and `missed` are by source. */
static void reader_pass(struct tpr_reader *reader, struct shelf *shelf, uint64_t *last, uint64_t *missed) {
    struct tpr_view view;
    tpr_reader_begin(reader);
    for (int i = 0; i < 5 && tpr_reader_peek(reader, &view); i++) {
        uint8_t copy[MOST];
        struct tpr_view copied = view;
        struct kept *kept = view.is_loan ? shelf_hold(shelf, reader, &view) : NULL;
        CHECK(view.headers_bytes <= MOST && view.payload_bytes <= MOST - view.headers_bytes);
        memcpy(copy, view.headers, view.headers_bytes);
        memcpy(copy + view.headers_bytes, view.payload, view.payload_bytes);
        copied.headers = copy;
        copied.payload = copy + view.headers_bytes;
        int is_consumed = tpr_reader_consume(reader, &view);
        if (kept)
            shelf_keep(shelf, kept, is_consumed);
        if (!is_consumed)
            continue;
        uint64_t source = copied.from->source;
        pattern_check_view(&copied, MOST);
        CHECK(copied.origin_seq == (copied.seq % 4 ? 0 : copied.seq));
        CHECK(copied.seq == last[source] + 1 + copied.missed);
        CHECK(copied.missed == 0 || mode.overflow == TPR_OVERFLOW_DROP);
        last[source] = copied.seq;
        missed[source] += copied.missed;
    }
    tpr_reader_end(reader);
}

/* What a reader saw, as its last words: the last seq of each writer. */
static void reader_main(int middle, enum role role) {
    struct tpr_reader reader;
    struct note note;
    int fd;
    uint64_t last[ROLES] = {0}, missed[ROLES] = {0};
    struct shelf shelf;
    memset(&shelf, 0, sizeof shelf);
    CHECK(tpr_reader_open_holding(&reader, role, ROLES, mode.slab_bytes ? HELD_MAX : 0) == TPR_OK);
    no_spin(&reader.spin);
    send_note(middle, HERE, role, tpr_reader_share(&reader));
    while (receive_note(middle, &note, &fd) && note.what != GO) {
        CHECK(tpr_reader_add(&reader, fd, (uint32_t)note.number, note.number, TPR_START_BEGIN, -1, NULL) == TPR_OK);
        close(fd);
    }
    CHECK(tpr_reader_wait(&reader, 1) == TPR_NOTIFIED); /* the adds; also makes every trial sleep once */
    tpr_reader_arm(&reader);
    tpr_reader_disarm(&reader);
    send_note(middle, HERE, role, -1);
    CHECK(receive_note(middle, &note, NULL) && note.what == GO);
    while (reader.count) {
        reader_pass(&reader, &shelf, last, missed);
        CHECK(tpr_reader_set_load(&reader, tpr_reader_pending_bytes(&reader)) == TPR_OK);
        for (uint32_t i = 0; i < reader.count; i++) {
            struct tpr_source *source = reader.source[i];
            CHECK(source->state != TPR_SOURCE_VIOLATED);
            CHECK(source->state != TPR_SOURCE_DETACHED || role == READER_A);
            if (source->state <= TPR_SOURCE_FINISHED)
                continue;
            send_note(middle, DRAINED, source->source, -1);
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
    shelf_clear_all(&shelf); /* what is held outlives its source and its reader */
}

/* ---- from the middle ---- */

struct party {
    pid_t pid;
    int socket, fd;
    bool has_ended, is_killed;
};

static void begin_party(struct party *party, enum role role, const struct moment *at) {
    int pair[2];
    make_socketpair(pair);
    party->pid = begin_child();
    if (party->pid == 0) {
        close(pair[0]);
        if (at)
            moment = *at;
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
    party->has_ended = party->is_killed = false;
}

/* The party has ended, or will now: of SIGKILL if it may be killed, and else well. */
static void end_party(struct party *party, bool may_be_killed) {
    if (party->has_ended)
        return;
    int status = wait_child(party->pid);
    party->has_ended = true;
    party->is_killed = WIFSIGNALED(status);
    if (status != 0 && !(may_be_killed && party->is_killed && WTERMSIG(status) == SIGKILL)) {
        fprintf(stderr, "%s: a party ended with status %#x\n", mode.name, (unsigned)status);
        CHECK(!"only the victim may be killed, and only by SIGKILL");
    }
}

/* Introduce the writers to the readers. */
static void introduce(struct party *party) {
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
}

/* A reader's last words, into `last`; what else it said is passed over. */
static void hear_last_words(const struct party *party, uint64_t *last) {
    struct note note;
    int heard = 0;
    while (heard < 2 && receive_note(party->socket, &note, NULL)) {
        if (note.what == DRAINED)
            continue;
        last[note.what] = note.number;
        heard++;
    }
}

static void close_parties(struct party *party) {
    for (int role = 0; role < ROLES; role++) {
        close(party[role].socket);
        if (party[role].fd >= 0)
            close(party[role].fd);
    }
}

/* ---- the steps ---- */

#define STEP_TEXT(name) #name,
static const char *const step_name[] = {TOWPATH_RING_STEPS(STEP_TEXT)};

/* Whose store each step is. -1: a new step that this test does not know yet. */
static int victim_of(int step) {
    switch (step) {
    case TPR_STEP_RING_HEADER:
    case TPR_STEP_BASE_SEQ:
    case TPR_STEP_PADDING:
    case TPR_STEP_RECORD_HEADER:
    case TPR_STEP_RECORD_ORIGIN:
    case TPR_STEP_RECORD_HEADERS:
    case TPR_STEP_RECORD_PAYLOAD:
    case TPR_STEP_RECORD_LOAN:
    case TPR_STEP_OLDEST:
    case TPR_STEP_ANCHOR:
    case TPR_STEP_LAST_SEQ:
    case TPR_STEP_TAIL:
    case TPR_STEP_HISTORY:
    case TPR_STEP_WAITS_SET:
    case TPR_STEP_WAITS_DOORBELL:
    case TPR_STEP_WAITS_CLEAR:
    case TPR_STEP_LOANS_WANTED:
    case TPR_STEP_TAIL_CLOSED: return WRITER_A;
    case TPR_STEP_CONTROL_HEADER:
    case TPR_STEP_SLOT_RESET:
    case TPR_STEP_SLOT_TAKEN:
    case TPR_STEP_SLOT_SOURCE:
    case TPR_STEP_SLOT_START:
    case TPR_STEP_CURSOR:
    case TPR_STEP_HELD_UNTIL:
    case TPR_STEP_HELD_SOURCE:
    case TPR_STEP_HELD_SEQ:
    case TPR_STEP_HELD_FREE:
    case TPR_STEP_RELEASED:
    case TPR_STEP_SLOT_LEFT:
    case TPR_STEP_SLEEP_FUTEX:
    case TPR_STEP_SLEEP_DOORBELL:
    case TPR_STEP_SLEEP_AWAKE:
    case TPR_STEP_LOAD: return READER_A;
    case TPR_STEP_TABLE_HEADER:
    case TPR_STEP_GENERATION: return CORE;
    default: return -1;
    }
}

static bool is_copy(int step) {
    return step == TPR_STEP_RING_HEADER || step == TPR_STEP_PADDING || step == TPR_STEP_RECORD_HEADER ||
           step == TPR_STEP_RECORD_ORIGIN || step == TPR_STEP_RECORD_HEADERS || step == TPR_STEP_RECORD_PAYLOAD ||
           step == TPR_STEP_RECORD_LOAN ||
           step == TPR_STEP_CONTROL_HEADER || step == TPR_STEP_TABLE_HEADER;
}

/* Run `trial` at the given hits of every phase of every step in every mode, printing each step when it is done. Each must
 * be reached in some mode. */
static void try_all_steps(int signal, const int *hits, size_t hit_count,
                          bool (*trial)(enum role victim, const struct moment *at)) {
    int reached_all = 0;
    for (int step = 0; step < TPR_STEP_COUNT; step++) {
        int reached = 0;
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
            mode = modes[m];
            CHECK(victim_of(step) >= 0);
            for (int phase = TPR_BEFORE; phase <= TPR_AFTER; phase++) {
                for (size_t i = 0; i < hit_count && (phase != TPR_MIDDLE || is_copy(step)); i++) {
                    struct moment at = {step, phase, hits[i], signal};
                    if (!trial((enum role)victim_of(step), &at))
                        break; /* it has no later hit either */
                    reached++;
                }
            }
        }
        if (!reached) {
            fprintf(stderr, "step %s was never reached\n", step_name[step]);
            CHECK(reached);
        }
        reached_all += reached;
        printf("%s\n", step_name[step]);
    }
    printf("%d reached\nok\n", reached_all);
}

#endif
