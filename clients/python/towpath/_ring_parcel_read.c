/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring: the type Parcel, which checks a parcel and hands out its messages.
 *
 * A Parcel keeps its bytes for itself (immutable): what was checked cannot change afterwards.
 */
#include "_ring_module.h"

typedef struct {
    PyObject_HEAD
    PyObject *data, *channel;
    struct tpr_parcel_header header;
    uint64_t first_seq, source;
    uint64_t at, next_seq; /* of the next message: its offset and seq */
    uint64_t missed;       /* lost before the next message */
} ParcelObject;

static PyObject *parcel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "first_seq", "channel", "source", "missed", NULL};
    PyObject *value, *first_value, *channel = NULL, *source_value = NULL, *missed_value = NULL;
    uint64_t first_seq, source = 0, missed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|UOO:Parcel", names, &value, &first_value, &channel,
                                     &source_value, &missed_value) ||
        (missed_value && tp_uint64(missed_value, "missed", &missed) < 0) ||
        tp_uint64(first_value, "first_seq", &first_seq) < 0 || (source_value && tp_uint64(source_value, "source", &source) < 0))
        return NULL;
    PyObject *data = PyBytes_CheckExact(value) ? Py_NewRef(value) : PyBytes_FromObject(value);
    if (!data)
        return NULL;
    ParcelObject *self = (ParcelObject *)type->tp_alloc(type, 0);
    if (!self) {
        Py_DECREF(data);
        return NULL;
    }
    self->data = data;
    self->channel = channel ? Py_NewRef(channel) : PyUnicode_FromString("");
    self->source = source;
    self->missed = missed;
    self->at = TPR_PARCEL_HEADER_BYTES;
    if (self->channel && tpr_parcel_open((const uint8_t *)PyBytes_AS_STRING(data), (uint64_t)PyBytes_GET_SIZE(data),
                                         first_seq, &self->header) != TPR_OK)
        tp_raise(TPR_E_PARCEL);
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    self->first_seq = self->next_seq = first_seq;
    return (PyObject *)self;
}

static void parcel_dealloc(ParcelObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->data);
    Py_XDECREF(self->channel);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The message at an offset, which is that of a message; its seq is its number. */
static void parcel_look(const ParcelObject *self, uint64_t at, struct tpr_view *view) {
    tpr_parcel_view((const uint8_t *)PyBytes_AS_STRING(self->data), &self->header, at, view);
    view->seq += self->first_seq;
}

static PyObject *parcel_message(ParcelObject *self, const struct tpr_view *view) {
    PyObject *headers = NULL;
    PyObject *payload = PyBytes_FromStringAndSize((const char *)view->payload, (Py_ssize_t)view->payload_bytes);
    if (!payload)
        return NULL;
    if (view->headers_bytes &&
        !(headers = PyBytes_FromStringAndSize((const char *)view->headers, (Py_ssize_t)view->headers_bytes))) {
        Py_DECREF(payload);
        return NULL;
    }
    struct tp_numbers numbers = {view->seq,    self->source,        view->time_ns,
                                 self->missed, view->origin_source, view->origin_seq};
    self->missed = 0;
    return tp_message_new(payload, headers, self->channel, &numbers);
}

static PyObject *parcel_receive(ParcelObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"count_max", "bytes_max"};
    static const struct tp_signature signature = {"receive", names, 2, 2};
    PyObject *value[2], *message[TP_RECEIVE_COUNT_MAX], *list;
    Py_ssize_t count = 0;
    int64_t count_max, bytes_max, bytes = 0;
    struct tpr_view view;
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_int64(value[0], "count_max", &count_max) < 0 ||
        tp_int64(value[1], "bytes_max", &bytes_max) < 0)
        return NULL;
    if (count_max < 1 || bytes_max < 1) {
        PyErr_SetString(PyExc_ValueError, "count_max and bytes_max must be at least 1");
        return NULL;
    }
    while (count < count_max && count < TP_RECEIVE_COUNT_MAX && self->at < self->header.parcel_bytes) {
        parcel_look(self, self->at, &view);
        int64_t more = (int64_t)view.headers_bytes + view.payload_bytes;
        if ((bytes + more > bytes_max && count) || !(message[count] = parcel_message(self, &view)))
            break;
        self->at = view.end;
        self->next_seq = view.seq + 1;
        bytes += more;
        count++;
    }
    if (PyErr_Occurred() && !count)
        return NULL;
    PyErr_Clear(); /* out of memory after some: those are handed over */
    list = PyList_New(count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (list)
            PyList_SET_ITEM(list, i, message[i]);
        else
            Py_DECREF(message[i]);
    }
    return list;
}

static PyObject *parcel_skip_to(ParcelObject *self, PyObject *value) {
    uint64_t seq;
    struct tpr_view view;
    if (tp_uint64(value, "seq", &seq) < 0)
        return NULL;
    while (self->at < self->header.parcel_bytes && self->next_seq < seq) {
        parcel_look(self, self->at, &view);
        self->at = view.end;
        self->next_seq = view.seq + 1;
    }
    Py_RETURN_NONE;
}

/* Append the parts of one message to the lists of unpack(). -1 with an exception. */
static int parcel_append(PyObject *const *list, const struct tpr_view *view) {
    PyObject *item[4] = {
        PyBytes_FromStringAndSize((const char *)view->payload, (Py_ssize_t)view->payload_bytes),
        PyBytes_FromStringAndSize((const char *)view->headers, (Py_ssize_t)view->headers_bytes),
        PyLong_FromUnsignedLongLong(view->time_ns),
        Py_BuildValue("KK", (unsigned long long)view->origin_source, (unsigned long long)view->origin_seq),
    };
    int result = 0;
    for (int i = 0; i < 4; i++) {
        if (!item[i] || !list[i] || PyList_Append(list[i], item[i]) < 0)
            result = -1;
        Py_XDECREF(item[i]);
    }
    return result;
}

static PyObject *parcel_unpack(ParcelObject *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list[4] = {PyList_New(0), PyList_New(0), PyList_New(0), PyList_New(0)}, *all = NULL;
    struct tpr_view view;
    int result = 0;
    for (uint64_t at = TPR_PARCEL_HEADER_BYTES; result == 0 && at < self->header.parcel_bytes; at = view.end) {
        parcel_look(self, at, &view);
        result = parcel_append(list, &view);
    }
    if (result == 0)
        all = PyTuple_Pack(4, list[0], list[1], list[2], list[3]);
    for (int i = 0; i < 4; i++)
        Py_XDECREF(list[i]);
    return all;
}

static PyObject *parcel_get_first_seq(ParcelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->first_seq);
}

static PyObject *parcel_get_count(ParcelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->header.count);
}

static PyObject *parcel_get_next_seq(ParcelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->next_seq);
}

static PyObject *parcel_get_offset(ParcelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->at);
}

static PyObject *parcel_get_end_seq(ParcelObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->first_seq + self->header.count);
}

static PyGetSetDef parcel_getters[] = {
    {"first_seq", (getter)parcel_get_first_seq, NULL, "Of its first message.", NULL},
    {"count", (getter)parcel_get_count, NULL, "How many messages it has.", NULL},
    {"next_seq", (getter)parcel_get_next_seq, NULL, "Of the message that receive() gives next.", NULL},
    {"offset", (getter)parcel_get_offset, NULL, "Of the message that receive() gives next, for show().", NULL},
    {"end_seq", (getter)parcel_get_end_seq, NULL, "What follows its last message's.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef parcel_methods[] = {
    {"receive", TP_METHOD(parcel_receive), TP_KEYWORDS, "The next messages."},
    {"skip_to", TP_METHOD(parcel_skip_to), METH_O, "Leave out messages before this seq."},
    {"unpack", TP_METHOD(parcel_unpack), METH_NOARGS, "All of it in columns: payloads, headers, times, origins."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot parcel_slots[] = {
    {Py_tp_doc, "A parcel that was checked, and how far its messages were handed out."},
    {Py_tp_new, parcel_new},
    {Py_tp_dealloc, parcel_dealloc},
    {Py_tp_methods, parcel_methods},
    {Py_tp_getset, parcel_getters},
    {0, NULL},
};

static PyType_Spec parcel_spec = {"towpath._ring.Parcel", sizeof(ParcelObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, parcel_slots};

int tp_add_parcel_read(PyObject *module) {
    PyObject *type = PyType_FromSpec(&parcel_spec);
    int result = type ? PyModule_AddObjectRef(module, "Parcel", type) : -1;
    Py_XDECREF(type);
    return result;
}
