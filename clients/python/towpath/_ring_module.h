/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the extension `towpath._ring` share: its few globals, argument parsing, errors.
 *
 * The extension is a thin layer over towpath_ring.h. Everything is touched under the GIL; only the two sleeps
 * (Writer.wait_room, Reader.receive) release it, and what they touch meanwhile is listed at their C functions.
 */
#ifndef TOWPATH_RING_MODULE_H
#define TOWPATH_RING_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#include "towpath_ring.h"

/* A sleep is cut into slices of this length, because a signal that comes between the last look for signals and the
 * sleep does not interrupt it. */
#define TP_SLICE_NS UINT64_C(500000000)
#define TP_SLICE_MAX_NS (UINT64_C(128) * TP_SLICE_NS) /* of those that grow, a power of two of them */

/* The most messages that one call of Reader.receive returns, whatever it is asked for. */
#define TP_RECEIVE_COUNT_MAX 1024

/* What one visit of QuickSubscription takes along: RECEIVE_COUNT and RECEIVE_BYTES of waiting.py. */
#define TP_QUICK_COUNT 256
#define TP_QUICK_BYTES (1 << 17)

/* A loaned message that is held counts for this part of its bytes against the bound of Reader.receive, and for so many bytes
 * besides: by default one visit takes 8 MiB along at most, or 32 messages, or one. What waits here for its turn its publisher
 * cannot use: it would go on in memory that is not in the cache. */
#define TP_HELD_SHARE 64
#define TP_HELD_LEAST 4096

extern PyObject *tp_ring_error;
extern PyObject *tp_message_too_large;

/* Each adds its type to the module; -1 with an exception set on failure. */
int tp_add_message(PyObject *module);
int tp_add_writer(PyObject *module);
int tp_add_reader(PyObject *module);
int tp_add_table(PyObject *module);
int tp_add_value(PyObject *module);
int tp_add_parcel(PyObject *module);
int tp_add_parcel_read(PyObject *module);
int tp_add_loan(PyObject *module);
int tp_add_quick(PyObject *module);
int tp_add_lock(PyObject *module);
int tp_add_lane(PyObject *module);

PyObject *tp_set_headers_decoder(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *tp_decode_headers(PyObject *raw); /* bytes; the headers, as Message.headers gives them */

/* The numbers of a Message. */
struct tp_numbers {
    uint64_t seq, source, time_ns, missed, origin_source, origin_seq;
};

/* A Message with a copy of what the view shows. */
PyObject *tp_message_of(const struct tpr_view *view);

/* The same of a loaned message, `payload` (taken over, also on failure) being a view of it. */
PyObject *tp_message_of_loan(const struct tpr_view *view, PyObject *payload);

/* A Message; takes over `payload` and `headers_raw` (NULL: none), also on failure. */
PyObject *tp_message_new(PyObject *payload, PyObject *headers_raw, PyObject *channel, const struct tp_numbers *numbers);

/* Set the exception for an error code of the ring; returns NULL. */
PyObject *tp_raise(int code);

/* ---- Writer, in three files ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_writer ring;
    int is_made; /* `ring` needs closing */
    int is_open; /* the user has not closed it */
    uint32_t notified, notified_seen;
    Py_ssize_t exports; /* views of its loans: their memory stays mapped */
} WriterObject;

/* 0 with an exception set when it is closed, or another process's. */
int tp_writer_usable(WriterObject *self);

/* The last view of a loan has gone: a writer that was closed meanwhile is closed for real. */
void tp_writer_finish(WriterObject *self);

/* Back from a sleep, which had ring.is_waiting set, under the GIL. The code; TPR_OK for the end of a mere slice. */
int tp_writer_slept(WriterObject *self, int code, int is_slice);

/* Methods (_ring_writer_publish.c). */
PyObject *tp_writer_try_publish(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *tp_writer_try_publish_many(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

PyObject *tp_writer_try_publish_from(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

/* Publish one message of these bytes, without headers. Its seq, or 0 where anything stands against that; no exception. */
uint64_t tp_writer_publish_plain(WriterObject *self, PyObject *payload);

/* Methods (_ring_loan.c). */
PyObject *tp_writer_try_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *tp_writer_try_publish_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *tp_writer_wait_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *tp_writer_arm_loan(WriterObject *self, PyObject *value);
PyObject *tp_writer_disarm_loan(WriterObject *self, PyObject *ignored);

/* A Loan of so many bytes, after a short wait if need be. NULL without an exception: it is not to be had just like that. */
PyObject *tp_writer_quick_loan(WriterObject *self, uint64_t bytes, PyObject *publisher);

/* Is that a QuickPublisher (_ring_quick.c) of this writer's? If so, what its publish() returns once that is published. */
int tp_is_quick_publisher(PyObject *publisher, const WriterObject *writer);
PyObject *tp_quick_published(PyObject *publisher, uint64_t seq);

PyObject *tp_writer_load(WriterObject *self, PyObject *reader); /* _ring_load.c */

/* ---- Reader ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_reader ring; /* the tag of each source is its channel, a str that we own */
    int is_made;            /* `ring` needs closing */
    int is_open;            /* the user has not closed it */
    uint32_t notified, notified_seen;
    int is_plain; /* see _ring_quick.c */
} ReaderObject;

/* 0 with an exception set when it is closed, or another process's. */
int tp_reader_usable(ReaderObject *self);

/* One pass: takes up to the two bounds, but one message at least where there is one. Returns how many; -1 with an exception
 * set: nothing was taken. */
Py_ssize_t tp_reader_take(ReaderObject *self, int64_t count_max, int64_t bytes_max, PyObject **message);

/* A list of messages, which are taken over, also on failure. */
PyObject *tp_message_list(PyObject **message, Py_ssize_t count);

/* One sleep, the GIL released. The next one may be twice as long as `slice_ns`: a signal that just misses a sleep is heard
 * after as long again as has been slept, and who waits for hours wakes only a few times. TPR_FOREVER: in one
 * piece. A code of the ring. */
int tp_reader_sleep(ReaderObject *self, uint64_t *slice_ns, uint64_t deadline_ns);

PyObject *tp_reader_hand_on(ReaderObject *self, PyObject *capsule); /* _ring_hand.c */

/* Hold the loaned message that `view` shows: a memoryview of it (_ring_loan.c). NULL with `is_full` set: there is no entry for it,
 * and no exception; copy it. */
PyObject *tp_held_view(ReaderObject *reader, const struct tpr_view *view, int *is_full);

PyObject *tp_reader_set_load(ReaderObject *self, PyObject *load); /* _ring_load.c */

PyObject *tp_pump(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

extern PyTypeObject *tp_writer_type, *tp_reader_type;

/* ---- arguments ---- */

/* Names of a function's parameters, the first `required` of them needed. */
struct tp_signature {
    const char *function;
    const char *const *name;
    Py_ssize_t required, count;
};

/* Sort the arguments of a METH_FASTCALL | METH_KEYWORDS call into `out` (borrowed; NULL where not given). */
int tp_arguments(const struct tp_signature *signature, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                 PyObject **out);

/* Converters; -1 with an exception set on failure. */
int tp_uint64(PyObject *value, const char *name, uint64_t *out);
int tp_uint32(PyObject *value, const char *name, uint32_t *out);
int tp_int64(PyObject *value, const char *name, int64_t *out);
int tp_int(PyObject *value, const char *name, int *out);
int tp_start(PyObject *value, enum tpr_start *out);

#define TP_METHOD(name) ((PyCFunction)(void (*)(void))(name))
#define TP_KEYWORDS (METH_FASTCALL | METH_KEYWORDS)

#endif
