/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Message: one received message, immutable.
 *
 * Made by the million, so: no dict, not tracked by the garbage collector (what it refers to never refers back), and
 * dead ones are kept for reuse, TP_FREE_MESSAGES_MAX of them. Headers stay bytes until somebody asks. A small payload that
 * nobody else has a reference to dies with its message, and is kept with it: bytes are not changed while anybody could
 * see it, and the next message's are mostly of the same size.
 */
#include "_ring_module.h"

#define TP_FREE_MESSAGES_MAX 1024
#define TP_KEPT_PAYLOAD_MAX 512 /* bytes of a payload that is kept */

typedef struct {
    PyObject_HEAD
    PyObject *payload;     /* bytes; of a loaned message a memoryview */
    PyObject *headers_raw; /* bytes, or NULL for none */
    PyObject *headers;     /* decoded, or NULL when nobody asked yet */
    PyObject *channel;     /* str */
    struct tp_numbers numbers;
} MessageObject;

static PyTypeObject *message_type;
static MessageObject *free_message[TP_FREE_MESSAGES_MAX]; /* `payload`: kept, or NULL; the rest is void */
static int free_messages;
static PyObject *headers_decoder, *headers_empty;

/* A message, its fields still to be filled in: `payload` is NULL or one that was kept, ours alone. */
static MessageObject *message_alloc(void) {
    if (free_messages) {
        MessageObject *self = free_message[--free_messages];
        PyObject_Init((PyObject *)self, message_type);
        return self;
    }
    MessageObject *self = PyObject_New(MessageObject, message_type);
    if (self)
        self->payload = NULL;
    return self;
}

/* Is this payload the message's alone, and worth keeping? (Those of 0 and 1 bytes are Python's own.) */
static int message_keeps(PyObject *payload) {
    return Py_REFCNT(payload) == 1 && PyBytes_CheckExact(payload) && PyBytes_GET_SIZE(payload) > 1 &&
           PyBytes_GET_SIZE(payload) <= TP_KEPT_PAYLOAD_MAX;
}

/* Bytes of this content: `kept` (taken over; or NULL) anew if it has the size, else others. */
static PyObject *message_payload(PyObject *kept, const uint8_t *data, uint32_t count) {
    if (kept && PyBytes_GET_SIZE(kept) == (Py_ssize_t)count) {
        memcpy(PyBytes_AS_STRING(kept), data, count);
        _Py_COMP_DIAG_PUSH
        _Py_COMP_DIAG_IGNORE_DEPR_DECLS
        ((PyBytesObject *)kept)->ob_shash = -1; /* not hashed yet */
        _Py_COMP_DIAG_POP
        return kept;
    }
    Py_XDECREF(kept);
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)count);
}

/* A message of a view, but for its payload, which is taken over (NULL: there was no memory for it). */
static PyObject *message_fill(MessageObject *self, const struct tpr_view *view, PyObject *payload) {
    self->headers_raw = self->headers = NULL;
    self->channel = Py_NewRef((PyObject *)view->from->tag);
    self->payload = payload;
    if (view->headers_bytes && self->payload)
        self->headers_raw = PyBytes_FromStringAndSize((const char *)view->headers, (Py_ssize_t)view->headers_bytes);
    if (!self->payload || (view->headers_bytes && !self->headers_raw)) {
        Py_DECREF(self);
        return NULL;
    }
    struct tp_numbers numbers = {view->seq,    view->from->source,  view->time_ns,
                                 view->missed, view->origin_source, view->origin_seq};
    self->numbers = numbers;
    return (PyObject *)self;
}

PyObject *tp_message_of(const struct tpr_view *view) {
    MessageObject *self = message_alloc();
    if (!self)
        return NULL;
    return message_fill(self, view, message_payload(self->payload, view->payload, view->payload_bytes));
}

PyObject *tp_message_of_loan(const struct tpr_view *view, PyObject *payload) {
    MessageObject *self = message_alloc();
    if (!self) {
        Py_DECREF(payload);
        return NULL;
    }
    Py_XDECREF(self->payload);
    return message_fill(self, view, payload);
}

PyObject *tp_message_new(PyObject *payload, PyObject *headers_raw, PyObject *channel,
                         const struct tp_numbers *numbers) {
    MessageObject *self = message_alloc();
    if (!self) {
        Py_DECREF(payload);
        Py_XDECREF(headers_raw);
        return NULL;
    }
    Py_XDECREF(self->payload);
    self->payload = payload;
    self->headers_raw = headers_raw;
    self->headers = NULL;
    self->channel = Py_NewRef(channel);
    self->numbers = *numbers;
    return (PyObject *)self;
}

static void message_dealloc(MessageObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    int is_kept = free_messages < TP_FREE_MESSAGES_MAX;
    if (!is_kept || (self->payload && !message_keeps(self->payload)))
        Py_CLEAR(self->payload);
    Py_DECREF(self->channel);
    Py_XDECREF(self->headers_raw);
    Py_XDECREF(self->headers);
    if (is_kept)
        free_message[free_messages++] = self;
    else
        PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *message_make(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"payload", "seq",    "source",        "time_ns",    "channel",
                            "headers_raw", "missed", "origin_source", "origin_seq", NULL};
    PyObject *payload, *channel = NULL, *headers_raw = NULL, *value[6] = {NULL};
    struct tp_numbers numbers = {0};
    uint64_t *number[6] = {&numbers.seq,    &numbers.source,        &numbers.time_ns,
                           &numbers.missed, &numbers.origin_source, &numbers.origin_seq};
    static const char *const number_name[6] = {"seq", "source", "time_ns", "missed", "origin_source", "origin_seq"};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "S|$OOOUSOOO:Message", names, &payload, &value[0], &value[1],
                                     &value[2], &channel, &headers_raw, &value[3], &value[4], &value[5]))
        return NULL;
    if (!value[0] || !value[1] || !value[2] || !channel) { /* the parser knows no required keywords */
        PyErr_SetString(PyExc_TypeError, "Message() needs seq, source, time_ns and channel");
        return NULL;
    }
    for (int i = 0; i < 6; i++)
        if (value[i] && tp_uint64(value[i], number_name[i], number[i]) < 0)
            return NULL;
    if (headers_raw && PyBytes_GET_SIZE(headers_raw) == 0)
        headers_raw = NULL;
    return tp_message_new(Py_NewRef(payload), Py_XNewRef(headers_raw), channel, &numbers);
}

static PyObject *message_get_headers_raw(MessageObject *self, void *Py_UNUSED(closure)) {
    return self->headers_raw ? Py_NewRef(self->headers_raw) : PyBytes_FromStringAndSize(NULL, 0);
}

static PyObject *message_get_headers(MessageObject *self, void *Py_UNUSED(closure)) {
    if (!headers_decoder) {
        PyErr_SetString(PyExc_RuntimeError, "no decoder of headers; call set_headers_decoder() first");
        return NULL;
    }
    if (!self->headers_raw)
        return Py_NewRef(headers_empty);
    if (!self->headers) {
        PyObject *headers = PyObject_CallOneArg(headers_decoder, self->headers_raw);
        /* The decoder may have let another thread in, which decoded them too: the first one stays. */
        if (headers && self->headers)
            Py_DECREF(headers);
        else
            self->headers = headers;
    }
    return Py_XNewRef(self->headers);
}

/* Both may be NULL. -1 with an exception set. */
static int message_same_bytes(PyObject *a, PyObject *b) {
    if (a == b)
        return 1;
    if (a && b && !(PyBytes_Check(a) && PyBytes_Check(b)))
        return PyObject_RichCompareBool(a, b, Py_EQ);
    return a && b && PyBytes_GET_SIZE(a) == PyBytes_GET_SIZE(b) &&
           memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)PyBytes_GET_SIZE(a)) == 0;
}

static PyObject *message_compare(PyObject *left, PyObject *right, int operation) {
    if (!Py_IS_TYPE(right, message_type) || (operation != Py_EQ && operation != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    MessageObject *a = (MessageObject *)left, *b = (MessageObject *)right;
    int is_equal = memcmp(&a->numbers, &b->numbers, sizeof a->numbers) == 0 &&
                   message_same_bytes(a->headers_raw, b->headers_raw);
    if (is_equal && (is_equal = message_same_bytes(a->payload, b->payload)) < 0)
        return NULL;
    if (is_equal && a->channel != b->channel) {
        is_equal = PyUnicode_Compare(a->channel, b->channel) == 0;
        if (PyErr_Occurred())
            return NULL;
    }
    return PyBool_FromLong(operation == Py_EQ ? is_equal : !is_equal);
}

static Py_hash_t message_hash(MessageObject *self) {
    /* (source, seq) is unique for ever; the odd factor keeps runs of seq of different sources apart. */
    Py_hash_t hash = (Py_hash_t)(self->numbers.source * UINT64_C(0x9E3779B97F4A7C15) + self->numbers.seq);
    return hash == -1 ? -2 : hash;
}

static PyObject *message_repr(MessageObject *self) {
    char missed[48] = "";
    if (self->numbers.missed)
        snprintf(missed, sizeof missed, " after %llu lost", (unsigned long long)self->numbers.missed);
    return PyUnicode_FromFormat("<Message %U #%llu of source %llu%s, %zd bytes>", self->channel,
                                (unsigned long long)self->numbers.seq, (unsigned long long)self->numbers.source, missed,
                                PyObject_Size(self->payload));
}

/* A message is bytes-like, its payload's: whoever takes bytes (join, write, hash) can be given it as it is. */
static int message_getbuffer(MessageObject *self, Py_buffer *view, int flags) {
    return PyObject_GetBuffer(self->payload, view, flags);
}

#define TP_NUMBER(name, text)                                                                                 \
    {#name, T_ULONGLONG, offsetof(MessageObject, numbers) + offsetof(struct tp_numbers, name), READONLY, text}
static PyMemberDef message_members[] = {
    {"payload", T_OBJECT_EX, offsetof(MessageObject, payload), READONLY, "The bytes that were published; of a loaned message a view of them."},
    {"channel", T_OBJECT_EX, offsetof(MessageObject, channel), READONLY, "The channel's name."},
    TP_NUMBER(seq, "Number within its source, contiguous from 1."),
    TP_NUMBER(source, "The writer's presence on the channel."),
    TP_NUMBER(time_ns, "Publish time, ns since the epoch."),
    TP_NUMBER(missed, "How many of this source were lost just before it."),
    TP_NUMBER(origin_source, "Who published it first, where the core orders the channel; else 0."),
    TP_NUMBER(origin_seq, "Its number there; else 0."),
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef message_getters[] = {
    {"headers", (getter)message_get_headers, NULL, "The headers, decoded when first asked for.", NULL},
    {"headers_raw", (getter)message_get_headers_raw, NULL, "The headers as bytes; empty when there are none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *message_behind(MessageObject *self, PyObject *value) {
    uint64_t nbytes;
    PyObject *headers_raw = NULL;
    if (tp_uint64(value, "nbytes", &nbytes) < 0)
        return NULL;
    size_t size = self->headers_raw ? (size_t)PyBytes_GET_SIZE(self->headers_raw) : 0;
    if (size > nbytes) {
        headers_raw = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self->headers_raw) + nbytes, (Py_ssize_t)(size - nbytes));
        if (!headers_raw)
            return NULL;
    }
    return tp_message_new(Py_NewRef(self->payload), headers_raw, self->channel, &self->numbers);
}

static PyMethodDef message_methods[] = {
    {"behind", TP_METHOD(message_behind), METH_O, "The same without the first bytes of headers_raw."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot message_slots[] = {
    {Py_tp_doc, "One received message; immutable."},
    {Py_tp_new, message_make},
    {Py_tp_dealloc, message_dealloc},
    {Py_tp_members, message_members},
    {Py_tp_getset, message_getters},
    {Py_tp_methods, message_methods},
    {Py_tp_richcompare, message_compare},
    {Py_tp_hash, message_hash},
    {Py_tp_repr, message_repr},
    {Py_bf_getbuffer, message_getbuffer},
    {0, NULL},
};

static PyType_Spec message_spec = {"towpath._ring.Message", sizeof(MessageObject), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, message_slots};

PyObject *tp_decode_headers(PyObject *raw) {
    if (!headers_decoder) {
        PyErr_SetString(PyExc_RuntimeError, "no decoder of headers; call set_headers_decoder() first");
        return NULL;
    }
    return PyBytes_GET_SIZE(raw) ? PyObject_CallOneArg(headers_decoder, raw) : Py_NewRef(headers_empty);
}

PyObject *tp_set_headers_decoder(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyCallable_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "set_headers_decoder() takes a callable and the empty headers");
        return NULL;
    }
    Py_XSETREF(headers_decoder, Py_NewRef(args[0]));
    Py_XSETREF(headers_empty, Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

int tp_add_message(PyObject *module) {
    message_type = (PyTypeObject *)PyType_FromSpec(&message_spec);
    return message_type ? PyModule_AddObjectRef(module, "Message", (PyObject *)message_type) : -1;
}
