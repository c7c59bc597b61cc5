/* The value page: what a reader sees at each step of a write, what it makes of writes while it copies, what a writer
 * that is killed leaves behind, and both sides at full speed.
 *
 * A value's bytes follow from its version alone, so a torn one is known.
 */

static void on_step(int step);
#define TOWPATH_VALUE_ON_STEP(step) on_step(step)

#include "testing.h"
#include "towpath_value.h"

#define BYTES_MAX 5000u

static struct tpr_value_writer writer;
static struct tpr_value_reader reader;
static uint64_t written;      /* the newest version that is whole */
static int looking, dying_at; /* look at each step; die at this one */

static uint32_t payload_bytes(uint64_t version) {
    return (uint32_t)(version * 977 % (BYTES_MAX - 16));
}

static void fill(uint8_t *bytes, uint64_t version) {
    for (uint32_t i = 0; i < BYTES_MAX; i++)
        bytes[i] = (uint8_t)(version * 31 + i * 7);
}

static void write_version(uint64_t version) {
    uint8_t bytes[BYTES_MAX];
    struct tpr_value_about about = {version, version * 3, (uint32_t)(version % 16), payload_bytes(version),
                                    TPR_VALUE_SET, 0};
    fill(bytes, version);
    CHECK(tpr_value_write(&writer, &about, bytes, bytes + about.headers_bytes) == TPR_OK);
}

/* Copy, with `between` called halfway; 0 when it must be tried again. */
static int read_once(uint64_t *version, void (*between)(void)) {
    static uint8_t copy[BYTES_MAX], expected[BYTES_MAX];
    struct tpr_value_view view;
    if (tpr_value_begin(&reader, &view) != TPR_OK) {
        CHECK(!tpr_value_end(&reader, &view));
        return 0;
    }
    uint32_t bytes = view.about.headers_bytes + view.about.payload_bytes;
    memcpy(copy, view.data, bytes / 2);
    if (between)
        between();
    memcpy(copy + bytes / 2, view.data + bytes / 2, bytes - bytes / 2);
    if (!tpr_value_end(&reader, &view))
        return 0;
    *version = view.about.version;
    if (*version) {
        fill(expected, *version);
        CHECK(view.about.payload_bytes == payload_bytes(*version));
        CHECK(view.about.changed_at_ns == *version * 3);
    }
    CHECK(memcmp(copy, expected, *version ? bytes : 0) == 0);
    return 1;
}

static void on_step(int step) {
    uint64_t version = 0;
    if (dying_at == step + 1)
        kill(getpid(), SIGKILL);
    if (looking) {
        CHECK(read_once(&version, NULL)); /* nobody waits for a writer, wherever it stands */
        CHECK(version == written + (step == TPR_VALUE_CURRENT));
    }
}

static void write_one(void) {
    write_version(++written);
}

static void write_two(void) {
    write_one();
    write_one();
}

static void open_both(void) {
    CHECK(tpr_value_open(&writer, BYTES_MAX) == TPR_OK);
    int fd = tpr_value_share(&writer);
    CHECK(fd >= 0 && tpr_value_map(&reader, fd) == TPR_OK);
    close(fd);
    written = 0;
}

static void close_both(void) {
    tpr_value_unmap(&reader);
    tpr_value_close(&writer);
}

static void test_one_process(void) {
    uint64_t version = 99;
    open_both();
    CHECK(read_once(&version, NULL) && version == 0);
    for (int i = 0; i < 200; i++) {
        looking = 1;
        write_version(written + 1);
        looking = 0;
        written++;
        CHECK(read_once(&version, NULL) && version == written);
        if (read_once(&version, write_one)) /* one write meanwhile: it went to the other buffer */
            CHECK(version == written - 1);
        else
            CHECK(!"one write must not disturb");
        CHECK(!read_once(&version, write_two)); /* two: one of them went over what was copied */
        CHECK(read_once(&version, NULL) && version == written);
    }
    struct tpr_value_about large = {1000, 1, 0, BYTES_MAX + 1, TPR_VALUE_SET, 0};
    struct tpr_value_view view;
    CHECK(tpr_value_write(&writer, &large, "", "") == TPR_OK && tpr_value_begin(&reader, &view) == TPR_OK);
    CHECK(view.about.flags == (TPR_VALUE_SET | TPR_VALUE_ELSEWHERE) && view.about.payload_bytes == 0);
    close_both();
}

/* A child with a page of its own writes; its page reaches the parent by socket. */
static pid_t start_child(int step, int endless) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        CHECK(tpr_value_open(&writer, BYTES_MAX) == TPR_OK);
        written = 0;
        write_one();
        send_note(pair[1], 0, 0, tpr_value_share(&writer));
        dying_at = step + 1;
        do
            write_one();
        while (endless);
        _exit(98); /* the step was never reached */
    }
    close(pair[1]);
    struct note note;
    int fd = -1;
    CHECK(receive_note(pair[0], &note, &fd));
    CHECK(tpr_value_map(&reader, fd) == TPR_OK);
    close(fd);
    close(pair[0]);
    return child;
}

static void await_killed(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_killed_at_every_step(void) {
    for (int step = 0; step < TPR_VALUE_STEP_COUNT; step++) {
        uint64_t version = 0;
        await_killed(start_child(step, 0));
        for (int i = 0; i < 3; i++)
            CHECK(read_once(&version, NULL) && version == (uint64_t)(step == TPR_VALUE_CURRENT ? 2 : 1));
        tpr_value_unmap(&reader);
    }
}

static void test_full_speed(unsigned reads) {
    uint64_t version = 0, before = 0, tries = 0;
    pid_t child = start_child(-2, 1);
    for (unsigned i = 0; i < reads; i++) {
        while (!read_once(&version, NULL))
            tries++;
        CHECK(version >= before);
        before = version;
    }
    CHECK(tries < reads * UINT64_C(1000));
    CHECK(kill(child, SIGKILL) == 0);
    await_killed(child);
    CHECK(read_once(&version, NULL) && version >= before);
    tpr_value_unmap(&reader);
}

int main(int argc, char **argv) {
    begin_test();
    test_one_process();
    test_killed_at_every_step();
    test_full_speed(argc > 1 ? (unsigned)atoi(argv[1]) : 20000);
    puts("ok");
    return 0;
}
