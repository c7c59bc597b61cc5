/* Writers and readers as threads of one process, on one mapping of each page, so that ThreadSanitizer sees both sides
 * of every access: a read of a record must be ordered after its writing, and before its overwriting, by the tail and
 * the cursor alone. Runs without the sanitizer too, as a stress test of sleeping and waking.
 *
 * Built WITH_LAPPING, the rings drop: then a record may be overwritten while it is read, on purpose. So that this is no
 * race by the letter of C, all copies are atomic there, word by word (which hides nothing from the test: each byte is
 * checked, and received and missed must add up).
 *
 * Built WITH_LOANS, all payloads are loaned, and held where they lie: the reader's looks at them, until it lets go, must be
 * ordered before the pages are written again.
 *
 * The argument is how many messages each writer writes (in the last of three runs; fewer before).
 */
#include "towpath_ring_layout.h"

#include <pthread.h>
#include <sys/types.h>

#ifdef WITH_LAPPING
#define OVERFLOW TPR_OVERFLOW_DROP
/* Like memcpy(3), of relaxed atomic accesses: words where both sides are aligned alike, else bytes. */
static inline void copy_atomically(void *target, const void *origin, size_t count) {
    uint8_t *to = (uint8_t *)target;
    const uint8_t *from = (const uint8_t *)origin;
    int is_aligned = ((uintptr_t)to | (uintptr_t)from) % 8 == 0;
    while (count) {
        size_t step = is_aligned && count >= 8 ? 8 : 1;
        if (step == 8)
            __atomic_store_n((uint64_t *)(void *)to, __atomic_load_n((const uint64_t *)(const void *)from, __ATOMIC_RELAXED),
                             __ATOMIC_RELAXED);
        else
            __atomic_store_n(to, __atomic_load_n(from, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
        to += step, from += step, count -= step;
    }
}
#define TOWPATH_RING_MEMCPY copy_atomically
#else
#define OVERFLOW TPR_OVERFLOW_BLOCK
#define copy_atomically memcpy
#endif

#ifdef WITH_LOANS
#define LOANING 1
#else
#define LOANING 0
#endif

static void *shared_map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
static int shared_unmap(void *page, size_t bytes);
#define TOWPATH_RING_MMAP shared_map
#define TOWPATH_RING_MUNMAP shared_unmap
#include "loans.h"
#include "testing.h"

#define MAPPINGS_MAX 16
static struct {
    ino_t inode;
    void *page;
    int users;
} mapping[MAPPINGS_MAX];
static pthread_mutex_t mapping_lock = PTHREAD_MUTEX_INITIALIZER;

static void *shared_map(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    struct stat status;
    void *page = NULL;
    CHECK(fstat(fd, &status) == 0);
    pthread_mutex_lock(&mapping_lock);
    for (int i = 0; i < MAPPINGS_MAX && !page; i++) {
        if (mapping[i].users && mapping[i].inode == status.st_ino) {
            mapping[i].users++;
            page = mapping[i].page;
        }
    }
    for (int i = 0; i < MAPPINGS_MAX && !page; i++) {
        if (!mapping[i].users) {
            CHECK(protection & PROT_WRITE); /* whoever makes it maps it first */
            mapping[i].inode = status.st_ino;
            mapping[i].users = 1;
            page = mapping[i].page = mmap(address, bytes, protection, flags, fd, offset);
        }
    }
    pthread_mutex_unlock(&mapping_lock);
    CHECK(page);
    return page;
}

static int shared_unmap(void *page, size_t bytes) {
    pthread_mutex_lock(&mapping_lock);
    for (int i = 0; i < MAPPINGS_MAX; i++)
        if (mapping[i].users && mapping[i].page == page && --mapping[i].users == 0)
            munmap(page, bytes);
    pthread_mutex_unlock(&mapping_lock);
    return 0;
}

#define WRITERS 2
#define READERS 2
#define MOST 96

struct party {
    struct tpr_writer writer;
    struct tpr_reader reader;
    uint64_t messages;
};

static void *write_all(void *argument) {
    struct party *party = (struct party *)argument;
    struct tpr_writer *writer = &party->writer;
    struct tpr_loan loan;
    memset(&loan, 0, sizeof loan);
    while (writer->last_seq < party->messages) {
        int code = LOANING ? pattern_put_loan(writer, MOST, &loan) : pattern_put(writer, MOST);
        if (code == TPR_OK) {
            if (writer->last_seq % 5 == 0)
                tpr_writer_flush(writer);
            continue;
        }
        CHECK(code == TPR_FULL);
        if (LOANING && !loan.data)
            CHECK(tpr_writer_loan_wait(writer, MOST, within_limit()) == TPR_OK);
        else
            CHECK(tpr_writer_wait_room(writer, MOST, within_limit()) == TPR_OK);
    }
    tpr_writer_close(writer);
    return NULL;
}

static void *read_all(void *argument) {
    struct party *party = (struct party *)argument;
    struct tpr_reader *reader = &party->reader;
    uint64_t received = 0, missed = 0, last[WRITERS] = {0};
    struct tpr_view view;
    struct shelf shelf;
    memset(&shelf, 0, sizeof shelf);
    for (;;) {
        CHECK(tpr_reader_begin(reader) == TPR_OK);
        for (int i = 0; i < 20 && tpr_reader_peek(reader, &view); i++) {
            uint8_t copy[MOST];
            struct tpr_view copied = view;
            struct kept *kept = view.is_loan ? shelf_hold(&shelf, reader, &view) : NULL;
            CHECK((uint64_t)view.headers_bytes + view.payload_bytes <= MOST || OVERFLOW == TPR_OVERFLOW_DROP);
            if ((uint64_t)view.headers_bytes + view.payload_bytes <= MOST) { /* else it is torn: consume() will say so */
                copy_atomically(copy, view.headers, view.headers_bytes);
                copy_atomically(copy + view.headers_bytes, view.payload, view.payload_bytes);
            }
            int is_consumed = tpr_reader_consume(reader, &view);
            if (kept)
                shelf_keep(&shelf, kept, is_consumed);
            if (!is_consumed)
                continue;
            copied.headers = copy;
            copied.payload = copy + copied.headers_bytes;
            pattern_check_view(&copied, MOST);
            uint64_t *seq = &last[copied.from->source - 100];
            CHECK(copied.seq == *seq + 1 + copied.missed);
            *seq = copied.seq;
            received++;
            missed += copied.missed;
        }
        tpr_reader_end(reader);
        int live = 0;
        for (uint32_t i = 0; i < reader->count; i++) {
            CHECK(reader->source[i]->state != TPR_SOURCE_VIOLATED);
            live += reader->source[i]->state != TPR_SOURCE_DRAINED;
        }
        if (!live)
            break;
        int code = tpr_reader_wait(reader, within_limit());
        CHECK(code == TPR_OK || code == TPR_NOTIFIED);
    }
    shelf_clear_all(&shelf);
    CHECK(received + missed == WRITERS * party->messages);
    CHECK(received >= WRITERS); /* whatever is lost, the newest are there at the end */
    CHECK(missed == reader->lost && (missed == 0 || OVERFLOW == TPR_OVERFLOW_DROP));
    tpr_reader_close(reader);
    return NULL;
}

static void run(uint64_t capacity, uint64_t messages, int with_spin) {
    static struct party party[WRITERS + READERS];
    pthread_t thread[WRITERS + READERS];
    struct party *writers = party, *readers = party + WRITERS;
    for (uint64_t w = 0; w < WRITERS; w++)
        CHECK(tpr_writer_open_loaning(&writers[w].writer, 100 + w, capacity, OVERFLOW, 0, LOANING * 12 * TPR_SLAB_GRAIN) ==
              TPR_OK);
    for (uint64_t r = 0; r < READERS; r++) {
        CHECK(tpr_reader_open_holding(&readers[r].reader, 200 + r, WRITERS, LOANING * 2) == TPR_OK);
        int control = tpr_reader_share(&readers[r].reader);
        for (uint32_t w = 0; w < WRITERS; w++) {
            int ring = tpr_writer_share(&writers[w].writer);
            CHECK(tpr_writer_attach(&writers[w].writer, 200 + r, control, w, -1, 1) == TPR_OK);
            CHECK(tpr_reader_add(&readers[r].reader, ring, w, 100 + w, 1, -1, NULL) == TPR_OK);
            close(ring);
        }
        close(control);
    }
    for (int i = 0; i < WRITERS + READERS; i++) {
        party[i].messages = messages;
        if (!with_spin) {
            no_spin(&party[i].writer.spin);
            no_spin(&party[i].reader.spin);
        }
        CHECK(pthread_create(&thread[i], NULL, i < WRITERS ? write_all : read_all, &party[i]) == 0);
    }
    for (int i = 0; i < WRITERS + READERS; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
}

int main(int count, char **argument) {
    uint64_t messages = count > 1 ? strtoull(argument[1], NULL, 10) : 20000;
    begin_test();
    run(4096, messages / 4, 1);
    run(4096, messages / 4, 0);
    run(65536, messages, 0);
    puts("ok");
    return 0;
}
