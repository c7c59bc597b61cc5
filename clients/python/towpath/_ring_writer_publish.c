/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Writer: publishing.
 *
 * Taking a payload's buffer may run Python code, which may do anything, close the writer too: so whatever comes after it
 * looks again.
 */
#include "_ring_module.h"

/* Put one message. Returns the ring's code, or -1000 with an exception set. */
#define TP_FAILED (-1000)

static int writer_put(WriterObject *self, PyObject *payload, PyObject *headers, const struct tpr_origin *origin) {
    const char *header_bytes = NULL;
    Py_ssize_t header_count = 0;
    if (headers && headers != Py_None) {
        if (!PyBytes_Check(headers)) {
            PyErr_Format(PyExc_TypeError, "headers must be bytes or None, not %.100s", Py_TYPE(headers)->tp_name);
            return TP_FAILED;
        }
        header_bytes = PyBytes_AS_STRING(headers);
        header_count = PyBytes_GET_SIZE(headers);
    }
    if (PyBytes_CheckExact(payload))
        return tpr_writer_put_from(&self->ring, header_bytes, (size_t)header_count, PyBytes_AS_STRING(payload),
                                   (size_t)PyBytes_GET_SIZE(payload), origin);
    Py_buffer view;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) < 0)
        return TP_FAILED;
    int code = TP_FAILED;
    if (tp_writer_usable(self)) /* taking the buffer may have run Python, and that may have closed us */
        code = tpr_writer_put_from(&self->ring, header_bytes, (size_t)header_count, view.buf, (size_t)view.len, origin);
    PyBuffer_Release(&view);
    return code;
}

/* One message at once. */
static PyObject *writer_publish_one(WriterObject *self, PyObject *payload, PyObject *headers,
                                    const struct tpr_origin *origin) {
    int code = writer_put(self, payload, headers, origin);
    switch (code) {
    case TPR_OK:
        if (self->is_made) /* else the payload's own code has closed it, and closing has published this */
            tpr_writer_flush(&self->ring);
        return PyLong_FromUnsignedLongLong(self->ring.last_seq);
    case TPR_FULL: return PyLong_FromLong(0);
    case TPR_NEEDS_READERS: return PyLong_FromLong(-1);
    case TP_FAILED: return NULL;
    case TPR_E_TOO_LARGE:
        return PyErr_Format(tp_message_too_large, "headers and payload together exceed %llu bytes; use a larger ring",
                            (unsigned long long)tpr_message_bytes_max(self->ring.capacity));
    default: return tp_raise(code);
    }
}

uint64_t tp_writer_publish_plain(WriterObject *self, PyObject *payload) {
    if (!self->is_open || tpr_writer_publish(&self->ring, NULL, 0, PyBytes_AS_STRING(payload),
                                             (size_t)PyBytes_GET_SIZE(payload)) != TPR_OK)
        return 0;
    return self->ring.last_seq;
}

PyObject *tp_writer_try_publish(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"payload", "headers"};
    static const struct tp_signature signature = {"try_publish", names, 1, 2};
    PyObject *value[2];
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0)
        return NULL;
    return writer_publish_one(self, value[0], value[1], NULL);
}

PyObject *tp_writer_try_publish_from(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"payload", "headers", "origin_source", "origin_seq"};
    static const struct tp_signature signature = {"try_publish_from", names, 4, 4};
    struct tpr_origin origin = {0};
    PyObject *value[4];
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[2], "origin_source", &origin.source) < 0 || tp_uint64(value[3], "origin_seq", &origin.seq) < 0)
        return NULL;
    return writer_publish_one(self, value[0], value[1], &origin);
}

/* The headers of message `i`: one for all, one each (borrowed), or none. -1 with an exception set. */
static int writer_headers_of(PyObject *all, PyObject *each, Py_ssize_t i, PyObject **out) {
    *out = all;
    if (!each)
        return 0;
    if (i >= PySequence_Fast_GET_SIZE(each)) {
        PyErr_Format(PyExc_ValueError, "there are payloads, but no headers, from index %zd on", i);
        return -1;
    }
    *out = PySequence_Fast_GET_ITEM(each, i);
    return 0;
}

/* Put payloads from `start` on until one is not taken. Returns how many were; `*why` is that one's code. */
static Py_ssize_t writer_put_many(WriterObject *self, PyObject *payloads, Py_ssize_t start, PyObject *all,
                                  PyObject *each, int *why) {
    Py_ssize_t i = start;
    *why = TPR_OK;
    /* The size is asked for each time: taking a buffer may run Python that changes the list. */
    for (; i < PySequence_Fast_GET_SIZE(payloads); i++) {
        PyObject *headers;
        if (writer_headers_of(all, each, i, &headers) < 0) {
            *why = TP_FAILED;
            break;
        }
        PyObject *payload = Py_NewRef(PySequence_Fast_GET_ITEM(payloads, i));
        Py_XINCREF(headers);
        *why = writer_put(self, payload, headers, NULL);
        Py_XDECREF(headers);
        Py_DECREF(payload);
        if (*why != TPR_OK)
            break;
    }
    return i - start;
}

PyObject *tp_writer_try_publish_many(WriterObject *self, PyObject *const *args, Py_ssize_t nargs,
                                         PyObject *kwnames) {
    static const char *const names[] = {"payloads", "start", "headers"};
    static const struct tp_signature signature = {"try_publish_many", names, 1, 3};
    PyObject *value[3], *payloads, *all = NULL, *each = NULL;
    int64_t start = 0;
    int why;
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        (value[1] && tp_int64(value[1], "start", &start) < 0))
        return NULL;
    payloads = PySequence_Fast(value[0], "payloads must be a sequence of bytes-like objects");
    if (!payloads)
        return NULL;
    if (start < 0 || start > PySequence_Fast_GET_SIZE(payloads)) {
        PyErr_Format(PyExc_ValueError, "start must be from 0 to %zd", PySequence_Fast_GET_SIZE(payloads));
        goto failed;
    }
    if (value[2] && PyBytes_Check(value[2]))
        all = value[2];
    else if (value[2] && value[2] != Py_None &&
             !(each = PySequence_Fast(value[2], "headers must be bytes, None, or a sequence of them")))
        goto failed;

    Py_ssize_t taken = writer_put_many(self, payloads, (Py_ssize_t)start, all, each, &why);
    if (self->is_made)
        tpr_writer_flush(&self->ring);
    if (taken == 0) {
        if (why == TPR_E_TOO_LARGE)
            PyErr_Format(tp_message_too_large,
                         "message %lld: headers and payload together exceed %llu bytes; use a larger ring",
                         (long long)start, (unsigned long long)tpr_message_bytes_max(self->ring.capacity));
        else if (why < 0 && why != TP_FAILED)
            tp_raise(why);
        if (why < 0)
            goto failed;
    } else {
        PyErr_Clear(); /* what was taken is published, and must be told; the rest fails when it comes first */
    }
    Py_DECREF(payloads);
    Py_XDECREF(each);
    return PyLong_FromSsize_t(taken == 0 && why == TPR_NEEDS_READERS ? -1 : taken);

failed:
    Py_DECREF(payloads);
    Py_XDECREF(each);
    return NULL;
}

/* ---- the pump ---- */

PyObject *tp_pump(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"reader", "writer", "count_max", "bytes_max"};
    static const struct tp_signature signature = {"pump", names, 2, 4};
    uint64_t count_max = TPR_BATCH_COUNT, bytes_max = 1 << 20, moved = 0;
    PyObject *value[4];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        (value[2] && tp_uint64(value[2], "count_max", &count_max) < 0) ||
        (value[3] && tp_uint64(value[3], "bytes_max", &bytes_max) < 0))
        return NULL;
    if (!Py_IS_TYPE(value[0], tp_reader_type) || !Py_IS_TYPE(value[1], tp_writer_type)) {
        PyErr_SetString(PyExc_TypeError, "pump() takes a Reader and a Writer");
        return NULL;
    }
    ReaderObject *reader = (ReaderObject *)value[0];
    WriterObject *writer = (WriterObject *)value[1];
    if (!tp_reader_usable(reader) || !tp_writer_usable(writer))
        return NULL;
    int code = tpr_pump(&reader->ring, &writer->ring, count_max, bytes_max, &moved);
    if (code < 0)
        return tp_raise(code);
    if (moved || code == TPR_OK)
        return PyLong_FromUnsignedLongLong(moved);
    return PyLong_FromLong(code == TPR_FULL ? -1 : -2);
}
