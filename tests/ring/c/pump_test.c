/* A core that moves messages from two publishers' rings into its own, killed around every store that it makes, and
 * followed by another that takes up the same ring and control page: whatever the subscriber gets is there once, in each
 * publisher's order, from the first message to the last.
 *
 * The test holds what the supervisor and the clients would: the descriptors for recovering, the publishers' rings (it is
 * the publishers), the subscriber's page (it is the subscriber). Between cores it publishes on behalf of somebody else, as
 * a core does for who has no ring, so that the newest message is then not of what the dead one was moving.
 *
 * One of the publishers breaks its ring after a few good messages: these are there once, too.
 *
 * The argument is how many hits of each step to try, of four.
 */
#include "towpath_ring_layout.h"

static void on_step(int step, int phase);
#define TOWPATH_RING_ON_STEP(step, phase) on_step((step), (phase))
#include "testing.h"

static struct {
    int step, phase, hit;
} moment = {-1, 0, 0};

static void on_step(int step, int phase) {
    if (step == moment.step && phase == moment.phase && --moment.hit == 0)
        kill(getpid(), SIGKILL);
}

enum { PUBLISHERS = 3, LIAR = 3, LIAR_MESSAGES = 5, CORE = 50, SUBSCRIBER = 60, GUEST = 70 };
#define MESSAGES 120
#define MOST 300

static struct tpr_writer publisher[PUBLISHERS];
static struct tpr_reader subscriber;
static uint64_t seen[GUEST + 1], guest_seq;
static struct mode {
    uint32_t overflow, history;
} mode;
static int keep_ring, keep_page, subscriber_page, publisher_ring[PUBLISHERS];

/* What the core does: make or take up its ring and page, then move all there is. */
static void core_main(int test, bool is_first) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct tpr_origin origin;
    struct note note;
    uint64_t moved;
    if (is_first) {
        CHECK(tpr_writer_open_with(&writer, CORE, 32768, mode.overflow, mode.history) == TPR_OK);
        CHECK(tpr_reader_open(&reader, CORE, PUBLISHERS) == TPR_OK);
        send_note(test, 0, 0, tpr_writer_keep(&writer));
        send_note(test, 0, 0, tpr_reader_keep(&reader));
        CHECK(receive_note(test, &note, NULL)); /* it has them */
    } else {
        CHECK(tpr_writer_recover(&writer, keep_ring) == TPR_OK);
        CHECK(tpr_reader_recover(&reader, keep_page) == TPR_OK);
        if (tpr_writer_last_origin(&writer, &origin) && origin.source != GUEST)
            tpr_reader_pass_over(&reader, origin.source, origin.seq);
    }
    /* One that has not begun yet stands at the oldest that a dead core has left, so "tail" loses it nothing. */
    CHECK(tpr_writer_attach(&writer, SUBSCRIBER, subscriber_page, 0, -1,
                            is_first ? TPR_START_BEGIN : TPR_START_TAIL) == TPR_OK);
    for (uint32_t i = 0; i < PUBLISHERS; i++) {
        int code = tpr_reader_add(&reader, publisher_ring[i], i, i + 1, TPR_START_CURSOR, -1, NULL);
        if (code == TPR_E_NO_CURSOR)
            code = tpr_reader_add(&reader, publisher_ring[i], i, i + 1, TPR_START_BEGIN, -1, NULL);
        CHECK(code == TPR_OK);
    }
    if (!is_first) {
        struct tpr_origin guest = {GUEST, guest_seq, 0};
        CHECK(tpr_writer_put_from(&writer, NULL, 0, "guest", 5, &guest) == TPR_OK);
        tpr_writer_flush(&writer);
    }
    do
        CHECK(tpr_pump(&reader, &writer, 7, 1000, &moved) == TPR_OK);
    while (moved);
    send_note(test, 0, 0, -1);
    CHECK(receive_note(test, &note, NULL));
    _exit(0);
}

/* Take all that the core's ring holds: each publisher's messages in order, none twice. */
static uint64_t subscribe_all(void) {
    struct tpr_view view;
    uint64_t count = 0;
    CHECK(tpr_reader_begin(&subscriber) == TPR_OK);
    while (tpr_reader_peek(&subscriber, &view)) {
        CHECK(view.missed == 0 && view.origin_source && view.origin_seq == seen[view.origin_source] + 1);
        if (view.origin_source != GUEST) {
            struct tpr_source origin = {.source = view.origin_source};
            struct tpr_view original = view;
            original.from = &origin;
            original.seq = view.origin_seq;
            pattern_check_view(&original, MOST);
            CHECK(view.time_ns >= publisher[0].batch_time_ns / 2);
        }
        seen[view.origin_source]++;
        CHECK(tpr_reader_consume(&subscriber, &view));
        count++;
    }
    tpr_reader_end(&subscriber);
    CHECK(!subscriber.count || subscriber.source[0]->state == TPR_SOURCE_LIVE);
    return count;
}

static void publish_some(uint64_t up_to) {
    for (int i = 0; i < PUBLISHERS; i++) {
        while (publisher[i].last_seq < up_to) {
            uint64_t at = publisher[i].position;
            int code = pattern_put(&publisher[i], MOST);
            CHECK(code == TPR_OK);
            if (i == LIAR - 1 && publisher[i].last_seq == LIAR_MESSAGES + 1)
                publisher[i].data[at + offsetof(struct tpr_record, flags)] = 77;
            if (publisher[i].last_seq % 4 == 0)
                tpr_writer_flush(&publisher[i]);
        }
        tpr_writer_flush(&publisher[i]);
    }
}

/* Run one core to its end or death; the subscriber takes what came of it. Returns whether it was killed. */
static bool run_core(bool is_first, int step, int phase, int hit) {
    struct note note;
    int pair[2], fd;
    make_socketpair(pair);
    pid_t core = begin_child();
    if (core == 0) {
        close(pair[0]);
        moment.step = step;
        moment.phase = phase;
        moment.hit = hit;
        core_main(pair[1], is_first);
    }
    close(pair[1]);
    if (is_first && receive_note(pair[0], &note, &keep_ring) && receive_note(pair[0], &note, &keep_page))
        send_note(pair[0], 0, 0, -1);
    receive_note(pair[0], &note, &fd); /* done; or dead */
    send_note(pair[0], 0, 0, -1);
    int status = wait_child(core);
    CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && step >= 0));
    close(pair[0]);
    if (keep_ring >= 0 && !subscriber.count) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", keep_ring);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0 && tpr_reader_add(&subscriber, fd, 0, CORE, TPR_START_BEGIN, -1, NULL) == TPR_OK);
        close(fd);
    }
    return status != 0;
}

static bool trial(int step, int phase, int hit) {
    memset(seen, 0, sizeof seen);
    guest_seq = 0;
    keep_ring = keep_page = -1;
    CHECK(tpr_reader_open(&subscriber, SUBSCRIBER, 1) == TPR_OK);
    subscriber_page = tpr_reader_share(&subscriber);
    for (uint64_t i = 0; i < PUBLISHERS; i++) {
        CHECK(tpr_writer_open(&publisher[i], i + 1, 65536) == TPR_OK);
        publisher_ring[i] = tpr_writer_share(&publisher[i]);
    }
    bool is_killed = false, is_alive = false;
    uint64_t up_to = 0;
    /* Kill the first core in its second go, so that there is something to take up; but if it dies while it makes its
     * ring, there is nothing to recover, and the trial is over. */
    for (int round = 0; round < 8; round++) {
        up_to += MESSAGES / 8;
        publish_some(up_to);
        bool is_first = keep_ring < 0;
        guest_seq += !is_first;
        bool is_due = round == 0 || round == 3;
        bool was_killed = run_core(is_first, is_due ? step : -1, phase, hit);
        is_killed = is_killed || was_killed;
        if (keep_ring < 0 || keep_page < 0) {
            CHECK(was_killed);
            break;
        }
        is_alive = true;
        subscribe_all();
        if (guest_seq > seen[GUEST])
            guest_seq = seen[GUEST]; /* it died before that */
    }
    if (is_alive)
        CHECK(seen[1] == up_to && seen[2] == up_to && seen[LIAR] == LIAR_MESSAGES && seen[GUEST] >= 5);
    tpr_reader_close(&subscriber);
    close(subscriber_page);
    for (int i = 0; i < PUBLISHERS; i++) {
        tpr_writer_close(&publisher[i]);
        close(publisher_ring[i]);
    }
    if (keep_ring >= 0)
        close(keep_ring);
    if (keep_page >= 0)
        close(keep_page);
    return is_killed;
}

int main(int count, char **argument) {
    const struct mode modes[] = {{TPR_OVERFLOW_BLOCK, 0}, {TPR_OVERFLOW_BLOCK, 9}, {TPR_OVERFLOW_DROP, 9}};
    const int hits[] = {1, 2, 3, 9};
    size_t hit_count = count > 1 ? (size_t)atoi(argument[1]) : sizeof hits / sizeof *hits;
    int killed = 0;
    begin_test();
    signal(SIGPIPE, SIG_IGN);
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        mode = modes[m];
        CHECK(!trial(-1, 0, 0));
        for (int step = 0; step < TPR_STEP_COUNT; step++)
            for (int phase = TPR_BEFORE; phase <= TPR_AFTER; phase++)
                for (size_t i = 0; i < hit_count && trial(step, phase, hits[i]); i++)
                    killed++;
    }
    printf("%d killed\nok\n", killed);
    return 0;
}
