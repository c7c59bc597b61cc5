/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring: parcels, towpath_ring_parcel.h for Python: the functions that take them out of rings, make them of
 * payloads, and show them in rings. What is in one is read in _ring_parcel_read.c.
 */
#include "_ring_module.h"

static PyTypeObject *packed_type;

static PyStructSequence_Field packed_fields[] = {
    {"data", "The parcel."},
    {"message_count", "How many messages."},
    {"content_bytes", "Of their headers and payloads."},
    {"headers_bytes", "Of their headers."},
    {"first_time_ns", "The earliest time of a message."},
    {"last_time_ns", "The latest."},
    {"taken", "By source: the seqs of the first and the last message taken."},
    {NULL, NULL},
};

static PyStructSequence_Desc packed_desc = {"towpath._ring.Packed", "A parcel that was made.", packed_fields, 7};

/* The outcome of a take or pack; takes over `data` and `taken`, also on failure. */
static PyObject *packed_new(const struct tpr_parcel *parcel, PyObject *data, PyObject *taken) {
    PyObject *packed = NULL;
    if (data && taken && _PyBytes_Resize(&data, (Py_ssize_t)parcel->bytes) == 0)
        packed = PyStructSequence_New(packed_type);
    if (!packed) {
        Py_XDECREF(data);
        Py_XDECREF(taken);
        return NULL;
    }
    PyObject *item[7] = {data,
                         PyLong_FromUnsignedLong(parcel->count),
                         PyLong_FromUnsignedLongLong(parcel->content_bytes),
                         PyLong_FromUnsignedLongLong(parcel->headers_bytes),
                         PyLong_FromUnsignedLongLong(parcel->first_time_ns),
                         PyLong_FromUnsignedLongLong(parcel->last_time_ns),
                         taken};
    int is_whole = 1;
    for (Py_ssize_t i = 0; i < 7; i++) {
        is_whole &= item[i] != NULL;
        PyStructSequence_SET_ITEM(packed, i, item[i]);
    }
    if (!is_whole)
        Py_CLEAR(packed);
    return packed;
}

/* ---- taking, releasing, showing ---- */

static void parcel_told(void *taken, uint64_t source, uint64_t first, uint64_t last) {
    PyObject *key = PyLong_FromUnsignedLongLong(source);
    PyObject *seqs = Py_BuildValue("KK", (unsigned long long)first, (unsigned long long)last);
    if (key && seqs)
        (void)PyDict_SetItem((PyObject *)taken, key, seqs); /* no memory: the caller sees the exception */
    Py_XDECREF(key);
    Py_XDECREF(seqs);
}

static PyObject *parcel_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"reader", "count_max", "bytes_max", "message_bytes_max"};
    static const struct tp_signature signature = {"take", names, 4, 4};
    uint64_t count_max, bytes_max, message_bytes_max;
    PyObject *value[4];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[1], "count_max", &count_max) < 0 || tp_uint64(value[2], "bytes_max", &bytes_max) < 0 ||
        tp_uint64(value[3], "message_bytes_max", &message_bytes_max) < 0)
        return NULL;
    if (!Py_IS_TYPE(value[0], tp_reader_type))
        return PyErr_Format(PyExc_TypeError, "take() takes a Reader");
    ReaderObject *reader = (ReaderObject *)value[0];
    if (!tp_reader_usable(reader))
        return NULL;
    if (bytes_max > TPR_PARCEL_BYTES_MAX / 2)
        bytes_max = TPR_PARCEL_BYTES_MAX / 2;
    struct tpr_parcel parcel;
    uint64_t room = tpr_parcel_room(&reader->ring, bytes_max);
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room), *taken = PyDict_New();
    if (!data || !taken) {
        Py_XDECREF(data);
        Py_XDECREF(taken);
        return NULL;
    }
    tpr_parcel_begin(&parcel, PyBytes_AS_STRING(data), room);
    int code = tpr_parcel_take(&reader->ring, &parcel, count_max, bytes_max, message_bytes_max, parcel_told, taken);
    if (code == TPR_OK && parcel.count && !PyErr_Occurred())
        return packed_new(&parcel, data, taken);
    Py_DECREF(data);
    Py_DECREF(taken);
    if (PyErr_Occurred())
        return NULL;
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *parcel_release(PyObject *Py_UNUSED(module), PyObject *value) {
    if (!Py_IS_TYPE(value, tp_reader_type))
        return PyErr_Format(PyExc_TypeError, "release() takes a Reader");
    if (!tp_reader_usable((ReaderObject *)value))
        return NULL;
    tpr_parcel_release(&((ReaderObject *)value)->ring);
    Py_RETURN_NONE;
}

static WriterObject *parcel_writer(PyObject *value, const char *function) {
    if (!Py_IS_TYPE(value, tp_writer_type)) {
        PyErr_Format(PyExc_TypeError, "%s() takes a Writer", function);
        return NULL;
    }
    return tp_writer_usable((WriterObject *)value) ? (WriterObject *)value : NULL;
}

static PyObject *parcel_unread_from(PyObject *Py_UNUSED(module), PyObject *value) {
    WriterObject *writer = parcel_writer(value, "unread_from");
    return writer ? PyLong_FromUnsignedLongLong(tpr_writer_unread_from(&writer->ring)) : NULL;
}

static PyObject *parcel_seed(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"reader", "slot", "source", "position"};
    static const struct tp_signature signature = {"seed", names, 4, 4};
    uint64_t source, position;
    uint32_t slot;
    PyObject *value[4];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint32(value[1], "slot", &slot) < 0 ||
        tp_uint64(value[2], "source", &source) < 0 || tp_uint64(value[3], "position", &position) < 0)
        return NULL;
    if (!Py_IS_TYPE(value[0], tp_reader_type))
        return PyErr_Format(PyExc_TypeError, "seed() takes a Reader");
    if (!tp_reader_usable((ReaderObject *)value[0]))
        return NULL;
    int code = tpr_reader_seed(&((ReaderObject *)value[0])->ring, slot, source, position);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *parcel_next_seq(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames) {
    static const char *const names[] = {"reader", "source"};
    static const struct tp_signature signature = {"next_seq", names, 2, 2};
    uint64_t source;
    PyObject *value[2];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint64(value[1], "source", &source) < 0)
        return NULL;
    if (!Py_IS_TYPE(value[0], tp_reader_type))
        return PyErr_Format(PyExc_TypeError, "next_seq() takes a Reader");
    if (!tp_reader_usable((ReaderObject *)value[0]))
        return NULL;
    const struct tpr_source *found = tpr_reader_find(&((ReaderObject *)value[0])->ring, source);
    return PyLong_FromUnsignedLongLong(found ? found->next_seq : 0);
}

static PyObject *parcel_begin_at(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames) {
    static const char *const names[] = {"writer", "first_seq"};
    static const struct tp_signature signature = {"begin_at", names, 2, 2};
    uint64_t first_seq;
    PyObject *value[2];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint64(value[1], "first_seq", &first_seq) < 0)
        return NULL;
    WriterObject *writer = parcel_writer(value[0], "begin_at");
    if (!writer)
        return NULL;
    if (first_seq == 0 || writer->ring.tail || writer->ring.position || writer->ring.peer_count) {
        PyErr_SetString(PyExc_ValueError, "first_seq must be above 0, and the ring new");
        return NULL;
    }
    tpr_writer_begin_at(&writer->ring, first_seq);
    Py_RETURN_NONE;
}

static PyObject *parcel_show(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"writer", "data", "first_seq", "at"};
    static const struct tp_signature signature = {"show", names, 3, 4};
    struct tpr_parcel_header header;
    struct tpr_view view;
    uint64_t first_seq, at = 0, next = TPR_PARCEL_HEADER_BYTES;
    PyObject *value[4];
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint64(value[2], "first_seq", &first_seq) < 0 ||
        (value[3] && tp_uint64(value[3], "at", &at) < 0))
        return NULL;
    WriterObject *writer = parcel_writer(value[0], "show");
    if (!writer)
        return NULL;
    if (!PyBytes_Check(value[1]))
        return PyErr_Format(PyExc_TypeError, "data must be bytes, not %.100s", Py_TYPE(value[1])->tp_name);
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(value[1]);
    int code = tpr_parcel_open(data, (uint64_t)PyBytes_GET_SIZE(value[1]), first_seq, &header);
    while (code == TPR_OK && next < at && next < header.parcel_bytes) {
        tpr_parcel_view(data, &header, next, &view);
        next = view.end;
    }
    if (code == TPR_OK && at && next != at) {
        PyErr_SetString(PyExc_ValueError, "at must be what show() returned for this parcel");
        return NULL;
    }
    if (code == TPR_OK)
        code = tpr_parcel_show(data, &header, first_seq, &writer->ring, &next);
    return code < 0 ? tp_raise(code) : PyLong_FromUnsignedLongLong(next);
}

/* ---- making ---- */

/* New bytes, `room` of them, with a parcel begun in them. */
static PyObject *parcel_made(struct tpr_parcel *parcel, uint64_t room) {
    if (room > TPR_PARCEL_BYTES_MAX)
        return PyErr_Format(PyExc_ValueError, "a parcel has at most %llu bytes",
                            (unsigned long long)TPR_PARCEL_BYTES_MAX);
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (data)
        tpr_parcel_begin(parcel, PyBytes_AS_STRING(data), room);
    return data;
}

/* What pack() was given. The columns are sequences; those after `payloads` may be NULL. */
struct parcel_columns {
    PyObject *payloads, *headers, *times, *origins;
    uint64_t time_ns;
};

/* Borrow a sequence as a fast one with `count` items; an empty one, or none at all, is NULL. -1 with an exception. */
static int parcel_column(PyObject *value, Py_ssize_t count, const char *name, PyObject **out) {
    *out = NULL;
    if (!value || value == Py_None)
        return 0;
    *out = PySequence_Fast(value, "a column must be a sequence");
    if (!*out)
        return -1;
    if (PySequence_Fast_GET_SIZE(*out) == 0)
        Py_CLEAR(*out);
    else if (PySequence_Fast_GET_SIZE(*out) != count) {
        PyErr_Format(PyExc_ValueError, "%s must be empty, or have an item for each payload", name);
        return -1;
    }
    return 0;
}

/* Add message `index`; with `parcel` NULL only count its bytes into `room`. -1 with an exception. */
static int parcel_add(const struct parcel_columns *from, Py_ssize_t index, struct tpr_parcel *parcel, uint64_t *room) {
    struct tpr_origin origin = {0, 0, from->time_ns};
    PyObject *first = from->origins ? PySequence_Fast_GET_ITEM(from->origins, index) : NULL;
    PyObject *payload = PySequence_Fast_GET_ITEM(from->payloads, index);
    PyObject *headers = from->headers ? PySequence_Fast_GET_ITEM(from->headers, index) : NULL;
    if (headers == Py_None)
        headers = NULL;
    if (!PyBytes_Check(payload) || (headers && !PyBytes_Check(headers))) {
        PyErr_SetString(PyExc_TypeError, "payloads and headers must be bytes");
        return -1;
    }
    if (from->times && tp_uint64(PySequence_Fast_GET_ITEM(from->times, index), "times_ns", &origin.time_ns) < 0)
        return -1;
    if (first && (!PyTuple_Check(first) || PyTuple_GET_SIZE(first) != 2)) {
        PyErr_SetString(PyExc_TypeError, "origins must be pairs of source and seq");
        return -1;
    }
    if (first && (tp_uint64(PyTuple_GET_ITEM(first, 0), "source", &origin.source) < 0 ||
                  tp_uint64(PyTuple_GET_ITEM(first, 1), "seq", &origin.seq) < 0))
        return -1;
    uint64_t headers_bytes = headers ? (uint64_t)PyBytes_GET_SIZE(headers) : 0;
    uint64_t payload_bytes = (uint64_t)PyBytes_GET_SIZE(payload);
    if (headers_bytes + payload_bytes > TPR_PARCEL_BYTES_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "a message is too large for a parcel");
        return -1;
    }
    *room += tpr_record_bytes(headers_bytes, payload_bytes) + TPR_ORIGIN_BYTES;
    if (parcel)
        tpr_parcel_put(parcel, headers ? PyBytes_AS_STRING(headers) : NULL, (uint32_t)headers_bytes,
                       PyBytes_AS_STRING(payload), (uint32_t)payload_bytes, &origin);
    return 0;
}

static PyObject *parcel_fill(const struct parcel_columns *from) {
    Py_ssize_t count = PySequence_Fast_GET_SIZE(from->payloads);
    uint64_t room = TPR_PARCEL_HEADER_BYTES, used = 0;
    struct tpr_parcel parcel;
    int result = 0;
    for (Py_ssize_t i = 0; i < count && result == 0; i++)
        result = parcel_add(from, i, NULL, &room);
    PyObject *data = result == 0 ? parcel_made(&parcel, room) : NULL;
    if (!data)
        return NULL;
    for (Py_ssize_t i = 0; i < count && result == 0; i++)
        result = parcel_add(from, i, &parcel, &used);
    if (result < 0) {
        Py_DECREF(data);
        return NULL;
    }
    tpr_parcel_end(&parcel);
    return packed_new(&parcel, data, PyDict_New());
}

static PyObject *parcel_pack(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"payloads", "headers", "time_ns", "times_ns", "origins"};
    static const struct tp_signature signature = {"pack", names, 3, 5};
    struct parcel_columns columns = {0};
    PyObject *value[5], *packed = NULL;
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[2], "time_ns", &columns.time_ns) < 0)
        return NULL;
    columns.payloads = PySequence_Fast(value[0], "payloads must be a sequence of bytes");
    if (!columns.payloads)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(columns.payloads);
    if (count == 0)
        PyErr_SetString(PyExc_ValueError, "a parcel has one message at least");
    else if (parcel_column(value[1], count, "headers", &columns.headers) == 0 &&
             parcel_column(value[3], count, "times_ns", &columns.times) == 0 &&
             parcel_column(value[4], count, "origins", &columns.origins) == 0)
        packed = parcel_fill(&columns);
    Py_DECREF(columns.payloads);
    Py_XDECREF(columns.headers);
    Py_XDECREF(columns.times);
    Py_XDECREF(columns.origins);
    return packed;
}

static PyObject *parcel_crc32c(PyObject *Py_UNUSED(module), PyObject *value) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t crc = tpr_crc32c(buffer.buf, (uint64_t)buffer.len);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef parcel_functions[] = {
    {"take", TP_METHOD(parcel_take), TP_KEYWORDS, "Copy messages out of a reader's sources into a parcel."},
    {"release", TP_METHOD(parcel_release), METH_O, "Move a reader's cursors past what was taken."},
    {"unread_from", TP_METHOD(parcel_unread_from), METH_O, "Where the reader stands that is furthest behind."},
    {"next_seq", TP_METHOD(parcel_next_seq), TP_KEYWORDS, "The seq that a reader expects next of a source."},
    {"seed", TP_METHOD(parcel_seed), TP_KEYWORDS, "Have a reader's page say up to where a source was read."},
    {"begin_at", TP_METHOD(parcel_begin_at), TP_KEYWORDS, "The seqs of a new ring begin here."},
    {"show", TP_METHOD(parcel_show), TP_KEYWORDS, "Write a parcel's messages into a ring."},
    {"pack", TP_METHOD(parcel_pack), TP_KEYWORDS, "Make a parcel of payloads and headers."},
    {"crc32c", TP_METHOD(parcel_crc32c), METH_O, "CRC-32C of bytes."},
    {NULL, NULL, 0, NULL},
};

int tp_add_parcel(PyObject *module) {
    packed_type = PyStructSequence_NewType(&packed_desc);
    if (!packed_type || PyModule_AddObjectRef(module, "Packed", (PyObject *)packed_type) < 0)
        return -1;
    PyObject *read_to = PyLong_FromUnsignedLongLong(TPR_READ_TO);
    int result = read_to ? PyModule_AddObjectRef(module, "READ_TO", read_to) : -1;
    Py_XDECREF(read_to);
    if (result < 0)
        return -1;
    return PyModule_AddFunctions(module, parcel_functions);
}
