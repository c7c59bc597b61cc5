/* SPDX-License-Identifier: Apache-2.0
 *
 * LockBase, and the type of guards: locks that are taken in a lock page, for Python. Documentation for users: _ring.pyi.
 *
 * What must be quick is here and nothing else: taking a lock that is free, alone or shared, and giving one back. Both find
 * the calling thread's member in a variable of the thread; it counts only for the page whose number it has, and pages live
 * as long as the locks and guards that point to them.
 *
 * A guard is made for each time that a lock is taken, and that is most of what taking it costs. So its type is made here,
 * of a class in Python that has all that need not be quick, and the interpreter calls its methods directly; and a guard
 * that nobody has any more stays with its lock as its spare, with all that it refers to but the lock, to be used again.
 */
#include "_ring_lock.h"

static PyTypeObject *lock_type;
static PyObject *name_acquire_slow, *name_enter_slow, *name_exit_slow, *name_release_slow, *name_shared;

#define ALONE UINT32_MAX /* in place of a reader's cell */

struct guard;

typedef struct {
    PyObject_HEAD
    PageObject *page; /* NULL: this lock is the core's */
    PyTypeObject *guard_type;
    PyObject *context; /* what guards of this page have, for their Python side */
    struct guard *spare; /* NULL: there is none; else of this page, type and context */
    uint32_t at;
    PyObject *entered; /* the guard of `with`, by the thread that is in it */
    unsigned long entered_by;
} LockObject;

typedef struct guard {
    PyObject_HEAD
    PyObject *slots[2];   /* of the class in Python; it has others in their place */
    PageObject *page;
    MemberObject *member; /* borrowed from the page */
    LockObject *lock;     /* NULL: a spare one */
    PyObject *hold, *context;
    uint64_t token;
    uint32_t at, cell; /* ALONE: it is held exclusively */
    int is_here; /* it is held in the page, as far as this process knows; else it is given back, or the core's */
    int result;  /* of giving it back; TPL_OK: not tried, or done */
} GuardObject;

/* ---- guards ---- */

/* It is not held in the page any more. */
static void guard_leave(GuardObject *self) {
    self->member->held--;
    self->is_here = 0;
}

static int give_back(PageObject *page, uint32_t at, uint32_t cell, MemberObject *member, uint64_t token) {
    struct tpl_page *memory = tp_lock_page(page);
    return cell == ALONE ? tpl_release(memory, at, member->number, token)
                         : tpl_release_shared(memory, at, cell, member->number, token);
}

/* Whether that was all: given back in the page. If not, `result` says why, also when it is tried again. */
static int guard_give_back(GuardObject *self) {
    PageObject *page = self->page;
    if (!self->is_here || self->result != TPL_OK)
        return 0;
    if (!page->serial || tpr_is_forked_(&page->memory))
        self->result = TPL_CLOSED;
    else
        self->result = give_back(page, self->at, self->cell, self->member, self->token);
    if (self->result != TPL_OK)
        return 0;
    guard_leave(self);
    return 1;
}

static int guard_traverse(GuardObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->slots[0]);
    Py_VISIT(self->slots[1]);
    Py_VISIT(self->lock);
    Py_VISIT(self->hold);
    Py_VISIT(self->context);
    return 0;
}

static int guard_clear(GuardObject *self) {
    Py_CLEAR(self->slots[0]);
    Py_CLEAR(self->slots[1]);
    Py_CLEAR(self->hold);
    return 0; /* the lock and the context clear theirs */
}

static void guard_free(GuardObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->page);
    Py_DECREF(self->context);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static void guard_dealloc(GuardObject *self) {
    LockObject *lock = self->lock;
    PyObject_GC_UnTrack(self);
    if (self->hold || self->slots[0] || self->slots[1])
        guard_clear(self);
    self->lock = NULL;
    if (!lock->spare && lock->page == self->page && lock->context == self->context && lock->at == self->at)
        lock->spare = self;
    else
        guard_free(self);
    Py_DECREF(lock);
}

static GuardObject *guard_new(LockObject *lock) {
    GuardObject *self = PyObject_GC_New(GuardObject, lock->guard_type);
    if (!self)
        return NULL;
    self->slots[0] = self->slots[1] = self->hold = NULL;
    self->page = (PageObject *)Py_NewRef(lock->page);
    self->context = Py_NewRef(lock->context);
    self->at = lock->at;
    return self;
}

/* A guard of what the member has taken; the lock is given back when there is no memory for it. */
static inline PyObject *guard_make(LockObject *lock, MemberObject *member, uint32_t cell, uint64_t token) {
    GuardObject *self = lock->spare;
    if (self) {
        lock->spare = NULL;
        _Py_NewReference((PyObject *)self);
    } else if (!(self = guard_new(lock))) {
        give_back(lock->page, lock->at, cell, member, token);
        return NULL;
    }
    self->member = member;
    self->cell = cell;
    self->lock = (LockObject *)Py_NewRef(lock);
    self->token = token;
    self->is_here = 1;
    self->result = TPL_OK;
    member->held++;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyObject *guard_release(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    if (guard_give_back(self))
        Py_RETURN_NONE;
    return PyObject_CallMethodNoArgs((PyObject *)self, name_release_slow);
}

static PyObject *guard_set_hold(GuardObject *self, PyObject *hold) {
    Py_XSETREF(self->hold, Py_NewRef(hold));
    Py_RETURN_NONE;
}

/* leave_page() -> whether it was in the page: it is not the page's affair any more. */
static PyObject *guard_leave_page(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    int is_in_page = self->is_here;
    if (is_in_page)
        guard_leave(self);
    return PyBool_FromLong(is_in_page);
}

/* look() -> (is_in_page, has, is_shut) */
static PyObject *guard_look(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    int has = 0, is_shut = 1;
    PageObject *page = self->page;
    if (self->is_here && page->serial && !tpr_is_forked_(&page->memory)) {
        struct tpl_page *memory = tp_lock_page(page);
        uint32_t me = self->member->number;
        has = self->cell == ALONE ? tpl_has(memory, self->at, me, self->token, &is_shut)
                                  : tpl_has_shared(memory, self->at, self->cell, me, self->token, &is_shut);
    }
    return Py_BuildValue("NNN", PyBool_FromLong(self->is_here), PyBool_FromLong(has), PyBool_FromLong(is_shut));
}

/* since_ns() -> when it was taken; 0: the page is closed */
static PyObject *guard_since_ns(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->page->serial || tpr_is_forked_(&self->page->memory))
        return PyLong_FromLong(0);
    struct tpl_page *memory = tp_lock_page(self->page);
    uint64_t *since_ns = self->cell == ALONE ? &memory->slot[self->at].since_ns
                                             : &memory->reader[self->at][self->cell].since_ns;
    return PyLong_FromUnsignedLongLong(tpl_look_(since_ns));
}

static PyObject *guard_is_shared(GuardObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->cell != ALONE);
}

static PyObject *guard_enter(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    return Py_NewRef(self);
}

static PyObject *guard_exit(GuardObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (guard_give_back(self))
        Py_RETURN_NONE;
    PyObject *slow = PyObject_GetAttr((PyObject *)self, name_exit_slow);
    PyObject *done = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, NULL) : NULL;
    Py_XDECREF(slow);
    return done;
}

static PyMethodDef guard_methods[] = {
    {"release", (PyCFunction)guard_release, METH_NOARGS, NULL},
    {"__enter__", (PyCFunction)guard_enter, METH_NOARGS, NULL},
    {"__exit__", TP_METHOD(guard_exit), METH_FASTCALL, NULL},
    {"set_hold", (PyCFunction)guard_set_hold, METH_O, NULL},
    {"leave_page", (PyCFunction)guard_leave_page, METH_NOARGS, NULL},
    {"look", (PyCFunction)guard_look, METH_NOARGS, NULL},
    {"since_ns", (PyCFunction)guard_since_ns, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef guard_getset[] = {
    {"page_is_shared", (getter)guard_is_shared, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef guard_members[] = {
    {"page_lock", T_OBJECT, offsetof(GuardObject, lock), READONLY, NULL},
    {"page_hold", T_OBJECT, offsetof(GuardObject, hold), READONLY, NULL},
    {"page_context", T_OBJECT, offsetof(GuardObject, context), READONLY, NULL},
    {"page_result", T_INT, offsetof(GuardObject, result), READONLY, NULL},
    {"page_slot", T_UINT, offsetof(GuardObject, at), READONLY, NULL},
    {"page_token", T_ULONGLONG, offsetof(GuardObject, token), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot guard_slots[] = {{Py_tp_dealloc, guard_dealloc}, {Py_tp_traverse, guard_traverse},
                                    {Py_tp_clear, guard_clear},     {Py_tp_methods, guard_methods},
                                    {Py_tp_members, guard_members}, {Py_tp_getset, guard_getset},
                                    {0, NULL}};
static PyType_Spec guard_spec = {NULL, sizeof(GuardObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, guard_slots};

/* lock_guard_type(base): the type of guards whose slow part is `base`, a class with two slots. */
static PyObject *guard_type_of(PyObject *Py_UNUSED(module), PyObject *base) {
    if (!PyType_Check(base) || ((PyTypeObject *)base)->tp_basicsize != offsetof(GuardObject, page) ||
        ((PyTypeObject *)base)->tp_itemsize)
        return PyErr_Format(PyExc_TypeError, "lock_guard_type takes a class with two slots, and no more");
    char name[128];
    PyType_Spec spec = guard_spec;
    snprintf(name, sizeof name, "towpath.locks.%s", ((PyTypeObject *)base)->tp_name);
    spec.name = name;
    return PyType_FromSpecWithBases(&spec, base);
}

/* ---- LockBase ---- */

static int lock_is_quick(LockObject *self) {
    PageObject *page = self->page;
    return page && page->serial && tp_lock_here.serial == page->serial && !tpr_is_forked_(&page->memory);
}

/* Take it for the calling thread: NULL without an exception: `result` says why it is not to be had like this. */
static inline PyObject *lock_take(LockObject *self, int is_shared, int *result) {
    uint32_t cell = ALONE;
    uint64_t token;
    *result = TPL_SHUT;
    if (!lock_is_quick(self))
        return NULL;
    MemberObject *member = tp_lock_here.member;
    struct tpl_page *page = tp_lock_page(self->page);
    *result = is_shared ? tpl_try_shared(page, self->at, member->number, &cell, &token)
                        : tpl_try(page, self->at, member->number, &token);
    if (*result == TPL_OK)
        return guard_make(self, member, cell, token);
    if (*result == TPL_DENY) {
        *result = TPL_SHUT;
        PyObject *context = Py_NewRef(self->context);
        Py_XDECREF(PyObject_CallMethod(context, "deny", "K", (unsigned long long)token));
        Py_DECREF(context);
    }
    return NULL;
}

/* Whether arguments are `shared=True` and nothing else. */
static int is_shared_only(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    return nargs == 0 && PyTuple_GET_SIZE(kwnames) == 1 && PyTuple_GET_ITEM(kwnames, 0) == name_shared &&
           args[0] == Py_True;
}

static PyObject *lock_acquire(LockObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (kwnames ? is_shared_only(args, nargs, kwnames) : nargs == 0) {
        int result;
        PyObject *guard = lock_take(self, kwnames != NULL, &result);
        if (guard || PyErr_Occurred())
            return guard;
    }
    PyObject *slow = PyObject_GetAttr((PyObject *)self, name_acquire_slow);
    PyObject *guard = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, kwnames) : NULL;
    Py_XDECREF(slow);
    return guard;
}

static PyObject *lock_enter(LockObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->entered) {
        int result;
        PyObject *guard = lock_take(self, 0, &result);
        if (guard) {
            if (self->entered) { /* making the guard has run other code */
                PyObject *given = PyObject_CallMethodOneArg((PyObject *)self, name_enter_slow, guard);
                Py_DECREF(guard);
                return given;
            }
            self->entered = Py_NewRef(guard);
            self->entered_by = PyThread_get_thread_ident();
            return guard;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    return PyObject_CallMethodOneArg((PyObject *)self, name_enter_slow, Py_None);
}

static PyObject *lock_exit(LockObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (self->entered && self->entered_by == PyThread_get_thread_ident()) {
        PyObject *entered = self->entered;
        self->entered = NULL;
        if (guard_give_back((GuardObject *)entered)) {
            Py_DECREF(entered);
            Py_RETURN_NONE;
        }
        PyObject *slow = PyObject_GetAttr(entered, name_exit_slow);
        PyObject *done = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, NULL) : NULL;
        Py_XDECREF(slow);
        Py_DECREF(entered);
        return done;
    }
    PyObject *slow = PyObject_GetAttr((PyObject *)self, name_exit_slow);
    PyObject *done = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, NULL) : NULL;
    Py_XDECREF(slow);
    return done;
}

static void lock_drop_spare(LockObject *self) {
    GuardObject *spare = self->spare;
    self->spare = NULL;
    if (spare)
        guard_free(spare);
}

/* set_page(page or None, slot, guard type, context) */
static PyObject *lock_set_page(LockObject *self, PyObject *args) {
    PyObject *page, *guard_type, *context;
    unsigned int at;
    if (!PyArg_ParseTuple(args, "OIO!O:set_page", &page, &at, &PyType_Type, &guard_type, &context))
        return NULL;
    if ((page != Py_None && Py_TYPE(page) != tp_lock_page_type) || at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "set_page takes a LockPage or None, and a slot of it");
    if (((PyTypeObject *)guard_type)->tp_dealloc != (destructor)guard_dealloc)
        return PyErr_Format(PyExc_TypeError, "set_page takes a type that lock_guard_type has made");
    PageObject *page_before = self->page;
    PyObject *context_before = self->context;
    GuardObject *spare_before = self->spare;
    self->page = page == Py_None ? NULL : (PageObject *)Py_NewRef(page);
    self->at = at;
    self->context = Py_NewRef(context);
    self->spare = NULL;
    Py_XSETREF(self->guard_type, (PyTypeObject *)Py_NewRef(guard_type));
    if (spare_before)
        guard_free(spare_before);
    Py_XDECREF(context_before);
    Py_XDECREF(page_before);
    Py_RETURN_NONE;
}

/* try_page(is_shared) -> (result, guard or None): as acquire() without waiting, and it says why not. */
static PyObject *lock_try_page(LockObject *self, PyObject *shared) {
    int result, is_shared = PyObject_IsTrue(shared);
    PyObject *guard = is_shared < 0 ? NULL : lock_take(self, is_shared, &result);
    if (guard)
        return Py_BuildValue("iN", TPL_OK, guard);
    return PyErr_Occurred() ? NULL : Py_BuildValue("iO", result, Py_None);
}

/* wait_page(number, deadline_ns) -> (result, guard or None). Signals are seen to; what they raise ends the wait. */
static PyObject *lock_wait_page(LockObject *self, PyObject *args) {
    unsigned long long number, deadline_ns;
    uint64_t token = 0;
    if (!PyArg_ParseTuple(args, "KK:wait_page", &number, &deadline_ns))
        return NULL;
    if (!lock_is_quick(self))
        return Py_BuildValue("iO", TPL_SHUT, Py_None);
    PageObject *page = (PageObject *)Py_NewRef(self->page); /* this thread waits in it, whatever becomes of the lock */
    MemberObject *member = tp_lock_here.member;
    struct tpl_wait wait = {tp_lock_page(page), self->at, member->number, 0, 0, deadline_ns, &member->spin_ns};
    int result = tpl_wait_begin(&wait, number);
    uint64_t slice_ns = TP_SLICE_NS;
    while (result == TPL_OK) {
        Py_BEGIN_ALLOW_THREADS
        result = tpl_wait_on(&wait, tpr_monotonic_ns() + slice_ns, &token);
        Py_END_ALLOW_THREADS
        if (slice_ns < TP_SLICE_MAX_NS)
            slice_ns *= 2;
        if (result != TPL_SLICE)
            break;
        result = TPL_OK;
        if (PyErr_CheckSignals() < 0) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            result = tpl_wait_end(&wait, &token);
            if (result == TPL_OK)
                tpl_release(tp_lock_page(page), wait.at, member->number, token);
            PyErr_Restore(type, value, traceback);
            Py_DECREF(page);
            return NULL;
        }
    }
    PyObject *guard = NULL;
    if (result == TPL_OK) {
        /* Not self->page, which may be another by now. */
        guard = self->page == page ? guard_make(self, member, ALONE, token) : NULL;
        if (!guard && !PyErr_Occurred()) {
            tpl_release(tp_lock_page(page), wait.at, member->number, token);
            result = TPL_SHUT;
        }
    }
    Py_DECREF(page);
    if (PyErr_Occurred())
        return NULL;
    return guard ? Py_BuildValue("iN", TPL_OK, guard) : Py_BuildValue("iO", result, Py_None);
}

static int lock_traverse(LockObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->guard_type);
    Py_VISIT(self->context);
    Py_VISIT(self->entered);
    if (self->spare) {
        Py_VISIT(Py_TYPE(self->spare));
        Py_VISIT(self->spare->context);
    }
    return 0;
}

static int lock_clear(LockObject *self) {
    lock_drop_spare(self);
    Py_CLEAR(self->guard_type);
    Py_CLEAR(self->context);
    Py_CLEAR(self->entered);
    return 0;
}

static void lock_dealloc(LockObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lock_clear(self);
    Py_XDECREF(self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    {"acquire", TP_METHOD(lock_acquire), METH_FASTCALL | METH_KEYWORDS, NULL}, /* the first: see own_acquire */
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS, NULL},
    {"__exit__", TP_METHOD(lock_exit), METH_FASTCALL, NULL},
    {"set_page", (PyCFunction)lock_set_page, METH_VARARGS, NULL},
    {"try_page", (PyCFunction)lock_try_page, METH_O, NULL},
    {"wait_page", (PyCFunction)lock_wait_page, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef lock_members[] = {
    {"page", T_OBJECT, offsetof(LockObject, page), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot lock_slots[] = {{Py_tp_dealloc, lock_dealloc},   {Py_tp_traverse, lock_traverse},
                                   {Py_tp_clear, lock_clear},       {Py_tp_methods, lock_methods},
                                   {Py_tp_members, lock_members},   {0, NULL}};
static PyType_Spec lock_spec = {"towpath._ring.LockBase", sizeof(LockObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, lock_slots};

/* ---- the module ---- */

/* lock_own_acquire(type): give a subclass of LockBase `acquire` as its very own, which the interpreter calls directly. */
static PyObject *own_acquire(PyObject *Py_UNUSED(module), PyObject *type) {
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, lock_type))
        return PyErr_Format(PyExc_TypeError, "lock_own_acquire takes a subclass of LockBase");
    PyObject *method = PyDescr_NewMethod((PyTypeObject *)type, lock_methods);
    int code = method ? PyObject_SetAttrString(type, lock_methods->ml_name, method) : -1;
    Py_XDECREF(method);
    if (code < 0)
        return NULL;
    return Py_NewRef(type);
}

static PyMethodDef functions[] = {
    {"lock_guard_type", guard_type_of, METH_O, NULL},
    {"lock_own_acquire", own_acquire, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int tp_add_lock(PyObject *module) {
    name_acquire_slow = PyUnicode_InternFromString("_acquire_slow");
    name_enter_slow = PyUnicode_InternFromString("_enter_slow");
    name_exit_slow = PyUnicode_InternFromString("_exit_slow");
    name_release_slow = PyUnicode_InternFromString("_release_slow");
    name_shared = PyUnicode_InternFromString("shared");
    if (!name_acquire_slow || !name_enter_slow || !name_exit_slow || !name_release_slow || !name_shared)
        return -1;
    lock_type = (PyTypeObject *)PyType_FromSpec(&lock_spec);
    if (!lock_type || PyModule_AddFunctions(module, functions) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "LockBase", (PyObject *)lock_type) < 0 ? -1 : tp_add_lock_page(module);
}
