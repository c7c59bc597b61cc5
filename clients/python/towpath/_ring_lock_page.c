/* SPDX-License-Identifier: Apache-2.0
 *
 * LockPage and LockMember: a lock page, and who of this process is in it, for Python. Documentation for users: _ring.pyi.
 *
 * Most of it is the core's. Locks are taken in _ring_lock.c.
 */
#include "_ring_lock.h"

static PyTypeObject *member_type;
PyTypeObject *tp_lock_page_type;
_Thread_local TP_TLS_MODEL struct tp_lock_here tp_lock_here;

static uint64_t last_serial;

static int page_usable(PageObject *self) {
    if (!self->serial || tpr_is_forked_(&self->memory)) {
        PyErr_SetString(PyExc_ValueError, "the lock page is closed");
        return 0;
    }
    return 1;
}

/* ---- LockPage ---- */

static PyObject *page_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "identity", NULL};
    int fd = -1;
    unsigned long long identity = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|iK:LockPage", names, &fd, &identity))
        return NULL;
    PageObject *self = (PageObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->memory.fd = -1;
    int code = fd < 0 ? tpl_page_make(&self->memory, identity) : tpl_page_map(&self->memory, fd);
    self->members = code == TPR_OK ? PyList_New(0) : NULL;
    if (!self->members) {
        Py_DECREF(self);
        return code == TPR_OK ? NULL : tp_raise(code);
    }
    self->serial = ++last_serial;
    return (PyObject *)self;
}

static void page_dealloc(PageObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tpr_memory_free_(&self->memory);
    Py_XDECREF(self->members);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *page_close(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    self->serial = 0; /* the memory stays mapped: somebody may sleep in it */
    Py_RETURN_NONE;
}

static PyObject *page_share(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    char path[64];
    if (!page_usable(self))
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", self->memory.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static int page_at(PyObject *args, const char *format, PageObject *self, unsigned int *at) {
    if (!page_usable(self) || !PyArg_ParseTuple(args, format, at))
        return 0;
    if (*at >= TPL_SLOTS) {
        PyErr_SetString(PyExc_ValueError, "there is no such slot");
        return 0;
    }
    return 1;
}

static int check_member(unsigned int number) {
    if (number >= TPL_FIRST_MEMBER && number < TPL_MEMBERS)
        return 1;
    PyErr_SetString(PyExc_ValueError, "there is no such member");
    return 0;
}

static PyObject *page_admit(PageObject *self, PyObject *args) {
    unsigned int number;
    unsigned long long session, owner;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "IKK:admit", &number, &session, &owner) || !check_member(number))
        return NULL;
    tpl_admit(tp_lock_page(self), number, session, owner);
    Py_RETURN_NONE;
}

static PyObject *page_dismiss(PageObject *self, PyObject *args) {
    unsigned int number;
    int is_gone;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "Ip:dismiss", &number, &is_gone) || !check_member(number))
        return NULL;
    tpl_dismiss(tp_lock_page(self), number, is_gone ? TPL_UNUSED : TPL_MEMBER_CLOSED);
    Py_RETURN_NONE;
}

static PyObject *page_member(PageObject *self, PyObject *args) {
    unsigned int number;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "I:member", &number) || !check_member(number))
        return NULL;
    struct tpl_member *member = &tp_lock_page(self)->member[number];
    return Py_BuildValue("IKK", tpl_look32_(&member->state), (unsigned long long)tpl_look_(&member->session),
                         (unsigned long long)tpl_look_(&member->owner));
}

static PyObject *page_open(PageObject *self, PyObject *args) {
    unsigned int at;
    unsigned long long base;
    int is_busy, is_shared = 0;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "IKp|p:open", &at, &base, &is_busy, &is_shared))
        return NULL;
    if (at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "there is no such slot");
    tpl_open(tp_lock_page(self), at, base, !is_busy ? TPL_FREE : is_shared ? TPL_BUSY_SHARED : TPL_BUSY);
    Py_RETURN_NONE;
}

/* (is_open, owner, used, base, since_ns) */
static PyObject *told(struct tpl_slot *slot, uint64_t word) {
    return Py_BuildValue("NIKKK", PyBool_FromLong((word & TPL_IS_OPEN) != 0), tpl_owner(word),
                         (unsigned long long)tpl_used(word), (unsigned long long)tpl_look_(&slot->base),
                         (unsigned long long)tpl_look_(&slot->since_ns));
}

static PyObject *page_look(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:look", self, &at))
        return NULL;
    struct tpl_slot *slot = &tp_lock_page(self)->slot[at];
    return told(slot, tpl_look_(&slot->word));
}

static PyObject *page_shut(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:shut", self, &at))
        return NULL;
    return told(&tp_lock_page(self)->slot[at], tpl_shut(tp_lock_page(self), at));
}

/* [(member, used, since_ns)] */
static PyObject *page_readers(PageObject *self, PyObject *args) {
    unsigned int at;
    struct tpl_reader found[TPL_READERS];
    if (!page_at(args, "I:readers", self, &at))
        return NULL;
    uint32_t count = tpl_find_readers(tp_lock_page(self), at, found);
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *each = Py_BuildValue("IKK", tpl_cell_member(found[i].cell),
                                       (unsigned long long)tpl_cell_used(found[i].cell),
                                       (unsigned long long)found[i].since_ns);
        if (each)
            PyList_SET_ITEM(list, i, each);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* [(member, number, remaining_ms or -1)], in the order of the queue */
static PyObject *page_take_waiters(PageObject *self, PyObject *args) {
    unsigned int at;
    uint32_t number[TPL_PLACES];
    if (!page_at(args, "I:take_waiters", self, &at))
        return NULL;
    uint32_t count = tpl_take_waiters(tp_lock_page(self), at, number);
    uint64_t now_ns = tpr_monotonic_ns();
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list && i < count; i++) {
        struct tpl_member *member = &tp_lock_page(self)->member[number[i]];
        uint64_t deadline_ns = tpl_look_(&member->deadline_ns);
        long long left_ms = -1;
        if (deadline_ns != TPR_FOREVER) {
            left_ms = deadline_ns <= now_ns ? 0 : (long long)((deadline_ns - now_ns) / 1000000 + 1);
            if (left_ms > UINT32_MAX)
                left_ms = UINT32_MAX;
        }
        PyObject *each = Py_BuildValue("IKL", number[i], (unsigned long long)tpl_look_(&member->number), left_ms);
        if (each)
            PyList_SET_ITEM(list, i, each);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *page_hand_over(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:hand_over", self, &at))
        return NULL;
    return PyBool_FromLong(tpl_drained(tp_lock_page(self), at) == TPL_OK);
}

static PyObject *page_wake(PageObject *self, PyObject *args) {
    unsigned int number;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "I:wake", &number) || !check_member(number))
        return NULL;
    tpl_wake(tp_lock_page(self), number);
    Py_RETURN_NONE;
}

static PyObject *page_names(PageObject *self, PyObject *args) {
    unsigned int at, member;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "II:names", &at, &member))
        return NULL;
    if (at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "there is no such slot");
    return PyBool_FromLong(tpl_names(tp_lock_page(self), at, member));
}

/* Whether a member is of this process; then what it has by a token's number goes to the list. Returns -1 on an error. */
static int held_by(PageObject *self, PyObject *list, uint32_t at, uint32_t number, uint64_t used) {
    struct tpl_slot *slot = &tp_lock_page(self)->slot[at];
    for (Py_ssize_t i = 0; number && i < PyList_GET_SIZE(self->members); i++) {
        if (((MemberObject *)PyList_GET_ITEM(self->members, i))->number != number)
            continue;
        PyObject *each = Py_BuildValue("KN", (unsigned long long)(tpl_look_(&slot->base) + used),
                                       PyBool_FromLong(!(tpl_look_(&slot->word) & TPL_IS_OPEN)));
        int code = each ? PyList_Append(list, each) : -1;
        Py_XDECREF(each);
        return code;
    }
    return 0;
}

/* [(token, is_shut)] of what this process's members have */
static PyObject *page_held(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = page_usable(self) ? PyList_New(0) : NULL;
    for (uint32_t at = 0; list && at < TPL_SLOTS; at++) {
        struct tpl_reader found[TPL_READERS];
        uint64_t word = tpl_look_(&tp_lock_page(self)->slot[at].word);
        uint32_t count = tpl_find_readers(tp_lock_page(self), at, found);
        int code = held_by(self, list, at, tpl_owner(word), tpl_used(word));
        for (uint32_t i = 0; !code && i < count; i++)
            code = held_by(self, list, at, tpl_cell_member(found[i].cell), tpl_cell_used(found[i].cell));
        if (code)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *page_add(PageObject *self, PyObject *value) {
    unsigned long number = PyLong_AsUnsignedLong(value);
    if (!page_usable(self) || PyErr_Occurred() || !check_member((unsigned int)number))
        return NULL;
    MemberObject *member = (MemberObject *)member_type->tp_alloc(member_type, 0);
    if (!member)
        return NULL;
    member->page = self;
    member->number = (uint32_t)number;
    member->spin_ns = TPL_SPIN_NS;
    if (PyList_Append(self->members, (PyObject *)member) < 0)
        Py_CLEAR(member);
    return (PyObject *)member;
}

static PyMethodDef page_methods[] = {
    {"close", (PyCFunction)page_close, METH_NOARGS, NULL},
    {"share", (PyCFunction)page_share, METH_NOARGS, NULL},
    {"admit", (PyCFunction)page_admit, METH_VARARGS, NULL},
    {"dismiss", (PyCFunction)page_dismiss, METH_VARARGS, NULL},
    {"member", (PyCFunction)page_member, METH_VARARGS, NULL},
    {"open", (PyCFunction)page_open, METH_VARARGS, NULL},
    {"look", (PyCFunction)page_look, METH_VARARGS, NULL},
    {"shut", (PyCFunction)page_shut, METH_VARARGS, NULL},
    {"readers", (PyCFunction)page_readers, METH_VARARGS, NULL},
    {"take_waiters", (PyCFunction)page_take_waiters, METH_VARARGS, NULL},
    {"hand_over", (PyCFunction)page_hand_over, METH_VARARGS, NULL},
    {"wake", (PyCFunction)page_wake, METH_VARARGS, NULL},
    {"names", (PyCFunction)page_names, METH_VARARGS, NULL},
    {"held", (PyCFunction)page_held, METH_NOARGS, NULL},
    {"add", (PyCFunction)page_add, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *page_is_open(PageObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->serial && !tpr_is_forked_(&self->memory));
}

static PyObject *page_identity(PageObject *self, void *Py_UNUSED(closure)) {
    return page_usable(self) ? PyLong_FromUnsignedLongLong(tpl_look_(&tp_lock_page(self)->identity)) : NULL;
}

static PyGetSetDef page_getset[] = {
    {"is_open", (getter)page_is_open, NULL, NULL, NULL},
    {"identity", (getter)page_identity, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot page_slots[] = {{Py_tp_new, page_new},
                                   {Py_tp_dealloc, page_dealloc},
                                   {Py_tp_methods, page_methods},
                                   {Py_tp_getset, page_getset},
                                   {0, NULL}};
static PyType_Spec page_spec = {"towpath._ring.LockPage", sizeof(PageObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, page_slots};

/* ---- LockMember ---- */

static void member_dealloc(MemberObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *member_use(MemberObject *self, PyObject *Py_UNUSED(ignored)) {
    tp_lock_here.serial = self->page->serial;
    tp_lock_here.member = self;
    Py_RETURN_NONE;
}

static PyMethodDef member_methods[] = {
    {"use", (PyCFunction)member_use, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef member_members[] = {
    {"number", T_UINT, offsetof(MemberObject, number), READONLY, NULL},
    {"held", T_PYSSIZET, offsetof(MemberObject, held), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot member_slots[] = {{Py_tp_dealloc, member_dealloc},
                                     {Py_tp_methods, member_methods},
                                     {Py_tp_members, member_members},
                                     {0, NULL}};
static PyType_Spec member_spec = {
    "towpath._ring.LockMember", sizeof(MemberObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, member_slots};

/* ---- the module ---- */

int tp_add_lock_page(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } numbers[] = {{"LOCK_OK", TPL_OK},       {"LOCK_HELD", TPL_HELD},     {"LOCK_SHUT", TPL_SHUT},
                   {"LOCK_SPENT", TPL_SPENT}, {"LOCK_CLOSED", TPL_CLOSED}, {"LOCK_LOST", TPL_LOST},
                   {"LOCK_FULL", TPL_FULL},   {"LOCK_OVER", TPL_OVER},     {"LOCK_ASK", TPL_ASK},
                   {"LOCK_CORE", TPL_CORE},   {"LOCK_MEMBERS", TPL_MEMBERS}, {"LOCK_FIRST_MEMBER", TPL_FIRST_MEMBER},
                   {"LOCK_SLOTS", TPL_SLOTS}, {"LOCK_READERS", TPL_READERS}, {"LOCK_TOKENS", (long)TPL_TOKENS}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0)
            return -1;
    tp_lock_page_type = (PyTypeObject *)PyType_FromSpec(&page_spec);
    member_type = (PyTypeObject *)PyType_FromSpec(&member_spec);
    if (!tp_lock_page_type || !member_type)
        return -1;
    return PyModule_AddObjectRef(module, "LockPage", (PyObject *)tp_lock_page_type) < 0
               ? -1
               : PyModule_AddObjectRef(module, "LockMember", (PyObject *)member_type);
}
