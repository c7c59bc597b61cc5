/* SPDX-License-Identifier: Apache-2.0
 *
 * Value, ValueWriter and ValueReader: the value page for Python. Documentation for users: _ring.pyi.
 */
#include "_ring_module.h"

#include "towpath_value.h"

static PyTypeObject *value_type;

typedef struct {
    PyObject_HEAD
    PyObject *payload, *headers_raw; /* bytes */
    uint64_t version, changed_at_ns;
    char is_set;
} ValueObject;

/* Takes over both references; they may be NULL (empty). */
static PyObject *value_make(PyObject *payload, PyObject *headers_raw, const struct tpr_value_about *about) {
    ValueObject *self = (ValueObject *)value_type->tp_alloc(value_type, 0);
    if (!payload)
        payload = PyBytes_FromStringAndSize(NULL, 0);
    if (!headers_raw)
        headers_raw = PyBytes_FromStringAndSize(NULL, 0);
    if (!self || !payload || !headers_raw) {
        Py_XDECREF(payload);
        Py_XDECREF(headers_raw);
        Py_XDECREF(self);
        return NULL;
    }
    self->payload = payload;
    self->headers_raw = headers_raw;
    self->version = about->version;
    self->changed_at_ns = about->changed_at_ns;
    self->is_set = (about->flags & TPR_VALUE_SET) != 0;
    return (PyObject *)self;
}

static PyObject *value_new(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"payload", "version", "changed_at_ns", "headers_raw", "is_set", NULL};
    PyObject *payload, *version = NULL, *changed = NULL, *headers_raw = NULL;
    int is_set = 1;
    struct tpr_value_about about = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "S|$OOSp:Value", names, &payload, &version, &changed, &headers_raw,
                                     &is_set))
        return NULL;
    if (!version || !changed)
        return PyErr_Format(PyExc_TypeError, "Value() needs version and changed_at_ns");
    if (tp_uint64(version, "version", &about.version) < 0 ||
        tp_uint64(changed, "changed_at_ns", &about.changed_at_ns) < 0)
        return NULL;
    about.flags = is_set ? TPR_VALUE_SET : 0;
    return value_make(Py_NewRef(payload), Py_XNewRef(headers_raw), &about);
}

static void value_dealloc(ValueObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->payload);
    Py_XDECREF(self->headers_raw);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *value_repr(ValueObject *self) {
    return self->is_set
               ? PyUnicode_FromFormat("<Value version %llu, %zd bytes>", (unsigned long long)self->version,
                                      PyBytes_GET_SIZE(self->payload))
               : PyUnicode_FromFormat("<Value version %llu, not set>", (unsigned long long)self->version);
}

static PyObject *value_compare(PyObject *one, PyObject *two, int operation) {
    if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(two) != value_type)
        Py_RETURN_NOTIMPLEMENTED;
    ValueObject *a = (ValueObject *)one, *b = (ValueObject *)two;
    int same = a->version == b->version && a->changed_at_ns == b->changed_at_ns && a->is_set == b->is_set;
    if (same)
        same = PyObject_RichCompareBool(a->payload, b->payload, Py_EQ);
    if (same == 1)
        same = PyObject_RichCompareBool(a->headers_raw, b->headers_raw, Py_EQ);
    if (same < 0)
        return NULL;
    return PyBool_FromLong((operation == Py_EQ) == same);
}

static Py_hash_t value_hash(ValueObject *self) {
    Py_hash_t hash = PyObject_Hash(self->payload);
    if (hash == -1)
        return -1;
    hash ^= (Py_hash_t)(self->version * UINT64_C(0x9E3779B97F4A7C15));
    return hash == -1 ? -2 : hash;
}

static PyObject *value_headers(ValueObject *self, void *Py_UNUSED(closure)) {
    return tp_decode_headers(self->headers_raw);
}

static PyMemberDef value_members[] = {
    {"payload", T_OBJECT, offsetof(ValueObject, payload), READONLY, "The bytes that were set; empty when there are none."},
    {"headers_raw", T_OBJECT, offsetof(ValueObject, headers_raw), READONLY, "Serialized headers; empty for none."},
    {"version", T_ULONGLONG, offsetof(ValueObject, version), READONLY, "Grows by one with each change; 0: none yet."},
    {"changed_at_ns", T_ULONGLONG, offsetof(ValueObject, changed_at_ns), READONLY, "Nanoseconds since the epoch."},
    {"is_set", T_BOOL, offsetof(ValueObject, is_set), READONLY, "False: nothing was ever set, or it was deleted."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef value_getters[] = {
    {"headers", (getter)value_headers, NULL, "The headers, decoded.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot value_slots[] = {
    {Py_tp_doc, "What a state channel held at one moment; immutable."},
    {Py_tp_new, value_new},
    {Py_tp_dealloc, value_dealloc},
    {Py_tp_repr, value_repr},
    {Py_tp_richcompare, value_compare},
    {Py_tp_hash, value_hash},
    {Py_tp_members, value_members},
    {Py_tp_getset, value_getters},
    {0, NULL},
};

static PyType_Spec value_spec = {"towpath._ring.Value", sizeof(ValueObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, value_slots};

/* ---- ValueWriter ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_value_writer page;
    int is_open;
} WriterPage;

static PyObject *page_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"value_bytes_max", NULL};
    PyObject *value;
    uint32_t value_bytes_max;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:ValueWriter", names, &value) ||
        tp_uint32(value, "value_bytes_max", &value_bytes_max) < 0)
        return NULL;
    if (value_bytes_max < 1 || value_bytes_max > TPR_VALUE_BYTES_MAX)
        return PyErr_Format(PyExc_ValueError, "value_bytes_max must be from 1 to %u", TPR_VALUE_BYTES_MAX);
    WriterPage *self = (WriterPage *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_value_open(&self->page, value_bytes_max);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_open = 1;
    return (PyObject *)self;
}

static void page_dealloc(WriterPage *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->is_open)
        tpr_value_close(&self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

static int page_usable(WriterPage *self) {
    if (!self->is_open)
        PyErr_SetString(PyExc_ValueError, "the value page is closed");
    return self->is_open;
}

static PyObject *page_share(WriterPage *self, PyObject *Py_UNUSED(ignored)) {
    if (!page_usable(self))
        return NULL;
    int fd = tpr_value_share(&self->page);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *page_write(WriterPage *self, PyObject *args) {
    PyObject *version, *changed, *headers, *payload;
    struct tpr_value_about about = {0};
    if (!page_usable(self) || !PyArg_ParseTuple(args, "OOSO:write", &version, &changed, &headers, &payload) ||
        tp_uint64(version, "version", &about.version) < 0 ||
        tp_uint64(changed, "changed_at_ns", &about.changed_at_ns) < 0)
        return NULL;
    if (payload != Py_None && !PyBytes_Check(payload))
        return PyErr_Format(PyExc_TypeError, "payload must be bytes or None");
    if (PyBytes_GET_SIZE(headers) > UINT32_MAX || (payload != Py_None && PyBytes_GET_SIZE(payload) > UINT32_MAX))
        return PyErr_Format(PyExc_ValueError, "a value has at most 4294967295 bytes");
    if (payload != Py_None) {
        about.flags = TPR_VALUE_SET;
        about.headers_bytes = (uint32_t)PyBytes_GET_SIZE(headers);
        about.payload_bytes = (uint32_t)PyBytes_GET_SIZE(payload);
    }
    int code = tpr_value_write(&self->page, &about, PyBytes_AS_STRING(headers),
                               payload == Py_None ? "" : PyBytes_AS_STRING(payload));
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *page_withdraw(WriterPage *self, PyObject *Py_UNUSED(ignored)) {
    struct tpr_value_about about = {0};
    if (!page_usable(self))
        return NULL;
    about.flags = TPR_VALUE_ELSEWHERE;
    int code = tpr_value_write(&self->page, &about, "", "");
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *page_close(WriterPage *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_open) {
        self->is_open = 0;
        tpr_value_close(&self->page);
    }
    Py_RETURN_NONE;
}

static PyMethodDef page_methods[] = {
    {"share", TP_METHOD(page_share), METH_NOARGS, "A new O_RDONLY descriptor, owned by the caller."},
    {"write", TP_METHOD(page_write), METH_VARARGS, "Show (version, changed_at_ns, headers_raw, payload or None)."},
    {"withdraw", TP_METHOD(page_withdraw), METH_NOARGS, "Have everybody ask from now on."},
    {"close", TP_METHOD(page_close), METH_NOARGS, "Release the page; those who mapped it keep it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot page_slots[] = {
    {Py_tp_doc, "The one writer of a value page."}, {Py_tp_new, page_new}, {Py_tp_dealloc, page_dealloc},
    {Py_tp_methods, page_methods},                   {0, NULL},
};

static PyType_Spec page_spec = {"towpath._ring.ValueWriter", sizeof(WriterPage), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, page_slots};

/* ---- ValueReader ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_value_reader page;
    int is_open;
} ReaderPage;

static PyObject *seen_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", NULL};
    int fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:ValueReader", names, &fd))
        return NULL;
    ReaderPage *self = (ReaderPage *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_value_map(&self->page, fd);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_open = 1;
    return (PyObject *)self;
}

static void seen_dealloc(ReaderPage *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->is_open)
        tpr_value_unmap(&self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

/* One look. 1: `value` has it; 0: it changed meanwhile; -1 with an exception set. */
static int seen_look(ReaderPage *self, int only_set, PyObject **value) {
    struct tpr_value_view view;
    PyObject *payload = NULL, *headers_raw = NULL;
    int code = tpr_value_begin(&self->page, &view);
    int is_here = code == TPR_OK && !(view.about.flags & TPR_VALUE_ELSEWHERE);
    if (is_here && view.about.flags & TPR_VALUE_SET) {
        payload = PyBytes_FromStringAndSize(NULL, view.about.payload_bytes);
        if (view.about.headers_bytes)
            headers_raw = PyBytes_FromStringAndSize((const char *)view.data, view.about.headers_bytes);
        if (!payload || (view.about.headers_bytes && !headers_raw)) {
            Py_XDECREF(payload);
            Py_XDECREF(headers_raw);
            return -1;
        }
        memcpy(PyBytes_AS_STRING(payload), view.data + view.about.headers_bytes, view.about.payload_bytes);
    }
    if (!tpr_value_end(&self->page, &view)) {
        Py_XDECREF(payload);
        Py_XDECREF(headers_raw);
        return 0;
    }
    if (!is_here)
        *value = Py_NewRef(Py_False);
    else if (only_set && !payload)
        *value = Py_NewRef(Py_None);
    else
        *value = value_make(payload, headers_raw, &view.about);
    return *value ? 1 : -1;
}

static PyObject *seen_get(ReaderPage *self, int only_set) {
    PyObject *value = NULL;
    if (!self->is_open) {
        PyErr_SetString(PyExc_ValueError, "the value page is closed");
        return NULL;
    }
    for (unsigned i = 0; i < TPR_VALUE_TRIES; i++) {
        int found = seen_look(self, only_set, &value);
        if (found)
            return found > 0 ? value : NULL;
    }
    Py_RETURN_FALSE;
}

static PyObject *reader_get(ReaderPage *self, PyObject *Py_UNUSED(ignored)) {
    return seen_get(self, 1);
}

static PyObject *reader_look(ReaderPage *self, PyObject *Py_UNUSED(ignored)) {
    return seen_get(self, 0);
}

static PyObject *seen_close(ReaderPage *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_open) {
        self->is_open = 0;
        tpr_value_unmap(&self->page);
    }
    Py_RETURN_NONE;
}

static PyMethodDef seen_methods[] = {
    {"get", TP_METHOD(reader_get), METH_NOARGS, "The value; None when there is none; False: ask the core."},
    {"look", TP_METHOD(reader_look), METH_NOARGS, "The same, but a Value also when there is none."},
    {"close", TP_METHOD(seen_close), METH_NOARGS, "Let go of the page."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot seen_slots[] = {
    {Py_tp_doc, "A reader of a value page."}, {Py_tp_new, seen_new}, {Py_tp_dealloc, seen_dealloc},
    {Py_tp_methods, seen_methods},            {0, NULL},
};

static PyType_Spec seen_spec = {"towpath._ring.ValueReader", sizeof(ReaderPage), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, seen_slots};

int tp_add_value(PyObject *module) {
    value_type = (PyTypeObject *)PyType_FromSpec(&value_spec);
    PyObject *writer = PyType_FromSpec(&page_spec), *reader = PyType_FromSpec(&seen_spec);
    int result = -1;
    if (value_type && writer && reader &&
        PyModule_AddObjectRef(module, "Value", (PyObject *)value_type) == 0 &&
        PyModule_AddObjectRef(module, "ValueWriter", writer) == 0)
        result = PyModule_AddObjectRef(module, "ValueReader", reader);
    Py_XDECREF(writer);
    Py_XDECREF(reader);
    return result;
}
