/* One writer of a value page and two readers as threads, on one mapping, so that ThreadSanitizer sees both sides of every
 * access. A value may be overwritten while it is copied, on purpose; so that this is no race by the letter of C, copies
 * are atomic here, byte by byte, which hides nothing: each byte is checked. The argument is how many values are written.
 */
#include "towpath_ring_layout.h"

#include <pthread.h>

static inline void copy_atomically(void *target, const void *origin, size_t count) {
    for (size_t i = 0; i < count; i++)
        __atomic_store_n((uint8_t *)target + i, __atomic_load_n((const uint8_t *)origin + i, __ATOMIC_RELAXED),
                         __ATOMIC_RELAXED);
}
#define TOWPATH_RING_MEMCPY copy_atomically
#include "testing.h"
#include "towpath_value.h"

#define BYTES_MAX 300u

static struct tpr_value_writer writer;
static uint64_t count;

static void *write_all(void *argument) {
    for (uint64_t version = 1; version <= count; version++) {
        uint8_t bytes[BYTES_MAX];
        struct tpr_value_about about = {version, version * 3, 0, (uint32_t)(version % BYTES_MAX), TPR_VALUE_SET, 0};
        memset(bytes, (int)(version % 251), sizeof bytes);
        CHECK(tpr_value_write(&writer, &about, "", bytes) == TPR_OK);
    }
    return argument;
}

static void *read_all(void *argument) {
    struct tpr_value_reader reader = {writer.page, writer.memory.bytes, writer.value_bytes_max};
    uint64_t newest = 0;
    while (newest < count) {
        uint8_t copy[BYTES_MAX];
        struct tpr_value_view view;
        if (tpr_value_begin(&reader, &view) == TPR_OK)
            copy_atomically(copy, view.data, view.about.payload_bytes);
        if (!tpr_value_end(&reader, &view))
            continue;
        CHECK(view.about.version >= newest && view.about.payload_bytes == view.about.version % BYTES_MAX);
        newest = view.about.version;
        CHECK(view.about.changed_at_ns == newest * 3);
        for (uint32_t i = 0; i < view.about.payload_bytes; i++)
            CHECK(copy[i] == newest % 251);
    }
    return argument;
}

int main(int argc, char **argv) {
    pthread_t thread[3];
    begin_test();
    count = argc > 1 ? (uint64_t)atoll(argv[1]) : 20000;
    CHECK(tpr_value_open(&writer, BYTES_MAX) == TPR_OK);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, i ? read_all : write_all, NULL) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    tpr_value_close(&writer);
    puts("ok");
    return 0;
}
