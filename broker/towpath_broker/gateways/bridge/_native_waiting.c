/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting for words of foreign memory, and for System V semaphores, on behalf of an event loop.
 *
 * FutexWaiter: one thread sleeps in futex_waitv(2) on all armed words and one of its own, by which it is told that the
 * list has changed. A slot fires when its word is not what was expected, when it was woken, or when its memory has
 * gone; it is then disarmed, and the eventfd told. Words are looked at by the kernel only (FUTEX_WAIT that does not
 * wait), since the memory may go. Where words are those of POSIX semaphores, their count of sleepers is raised while
 * the slot is armed, as sem_wait(3) does; a process that is killed meanwhile leaves it raised, as sem_wait(3) does,
 * which costs sem_post(3) a system call each.
 *
 * SemaphoreWaiter: System V semaphores can be waited for in semop(2) only, so each has a thread, which takes what is
 * posted and counts it in an eventfd. It is cancelled inside semop(2), where it holds nothing.
 *
 * No thread here takes a lock of the C library's or of Python's, so a fork(2) elsewhere does not find one held.
 */
#include "_native.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/sem.h>
#include <time.h>

#ifndef FUTEX_32
#define FUTEX_32 2
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define SLOTS 127 /* FUTEX_WAITV_MAX less our own word */

struct waitv { /* struct futex_waitv of linux/futex.h, which may be older than the kernel */
    uint64_t value, address;
    uint32_t flags, reserved;
};

struct slot {
    uint32_t *word;     /* NULL: free */
    uint32_t *sleepers; /* to be raised while armed; or NULL */
    uint32_t expected;
    char is_armed, has_fired;
};

struct futex_waiter {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t mutex;
    char is_running, is_closing;
    int error; /* the thread's end, if not asked for */
    int eventfd;
    _Atomic uint32_t changes;
    struct slot slot[SLOTS];
};

/* With the mutex held. */
static void disarm(struct slot *slot) {
    if (slot->is_armed && slot->sleepers)
        tpn_add_and_wake(slot->sleepers, -1, 0);
    slot->is_armed = 0;
}

/* Whether the word is another than expected, or has gone; with the mutex held. */
static int has_changed(const struct slot *slot) {
    struct timespec none = {0, 0};
    return syscall(SYS_futex, slot->word, FUTEX_WAIT, slot->expected, &none, NULL, 0) == 0 || errno != ETIMEDOUT;
}

static void tell(int descriptor) {
    uint64_t one = 1;
    ssize_t done = write(descriptor, &one, sizeof one);
    (void)done; /* full: it is readable as it is */
}

/* Make the list for futex_waitv; with the mutex held. Returns its length. */
static unsigned gather(struct futex_waiter *self, struct waitv *list, struct slot **of) {
    unsigned count = 0;
    list[count++] = (struct waitv){.value = atomic_load(&self->changes),
                                   .address = (uint64_t)(uintptr_t)&self->changes,
                                   .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG};
    for (struct slot *slot = self->slot; slot < self->slot + SLOTS; slot++) {
        if (!slot->is_armed)
            continue;
        of[count] = slot;
        list[count++] = (struct waitv){
            .value = slot->expected, .address = (uint64_t)(uintptr_t)slot->word, .flags = FUTEX_32};
    }
    return count;
}

static void *wait_for_words(void *argument) {
    struct futex_waiter *self = argument;
    struct waitv list[SLOTS + 1];
    struct slot *of[SLOTS + 1];
    pthread_mutex_lock(&self->mutex);
    while (!self->is_closing) {
        unsigned count = gather(self, list, of);
        pthread_mutex_unlock(&self->mutex);
        long woken = syscall(SYS_futex_waitv, list, count, 0, NULL, CLOCK_MONOTONIC);
        int error = woken < 0 ? errno : 0;
        pthread_mutex_lock(&self->mutex);
        if (error && error != EAGAIN && error != EFAULT && error != EINTR) {
            self->error = error;
            tell(self->eventfd);
            break;
        }
        int fired = 0;
        for (unsigned i = 1; i < count; i++) {
            /* Meanwhile it may have been disarmed, or armed for another word. */
            if (!of[i]->is_armed || (uint64_t)(uintptr_t)of[i]->word != list[i].address)
                continue;
            if (woken == (long)i || has_changed(of[i])) {
                disarm(of[i]);
                of[i]->has_fired = 1;
                fired = 1;
            }
        }
        if (fired)
            tell(self->eventfd);
    }
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

/* Have the thread look at the list again; with the mutex held. */
static void bump(struct futex_waiter *self) {
    atomic_fetch_add(&self->changes, 1);
    syscall(SYS_futex, &self->changes, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

static PyObject *futex_waiter_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    if (!PyArg_ParseTuple(args, "") || (keywords && PyDict_GET_SIZE(keywords)))
        return NULL;
    struct futex_waiter *self = (struct futex_waiter *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    pthread_mutex_init(&self->mutex, NULL);
    self->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->eventfd >= 0) {
        errno = tpn_start_thread(&self->thread, wait_for_words, self);
        self->is_running = errno == 0;
    }
    if (self->is_running)
        return (PyObject *)self;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}

static PyObject *futex_waiter_close(struct futex_waiter *self, PyObject *nothing) {
    (void)nothing;
    if (self->is_running) {
        self->is_running = 0;
        pthread_mutex_lock(&self->mutex);
        self->is_closing = 1;
        for (int i = 0; i < SLOTS; i++)
            disarm(&self->slot[i]);
        bump(self);
        pthread_mutex_unlock(&self->mutex);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(self->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    if (self->eventfd >= 0)
        close(self->eventfd);
    self->eventfd = -1;
    Py_RETURN_NONE;
}

static void futex_waiter_dealloc(struct futex_waiter *self) {
    Py_XDECREF(futex_waiter_close(self, NULL));
    pthread_mutex_destroy(&self->mutex);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *futex_waiter_fileno(struct futex_waiter *self, PyObject *nothing) {
    (void)nothing;
    return PyLong_FromLong(self->eventfd);
}

static PyObject *futex_waiter_arm(struct futex_waiter *self, PyObject *args) {
    unsigned long long word, sleepers;
    unsigned int expected;
    if (!PyArg_ParseTuple(args, "KIK", &word, &expected, &sleepers))
        return NULL;
    if (!self->is_running) {
        PyErr_SetString(PyExc_ValueError, "the waiter is closed");
        return NULL;
    }
    int found = -1;
    pthread_mutex_lock(&self->mutex);
    for (int i = 0; i < SLOTS && found < 0; i++) {
        if (!self->slot[i].word)
            found = i;
    }
    if (found >= 0) {
        self->slot[found] = (struct slot){.word = (uint32_t *)(uintptr_t)word,
                                          .sleepers = (uint32_t *)(uintptr_t)sleepers,
                                          .expected = expected,
                                          .is_armed = 1};
        if (sleepers)
            tpn_add_and_wake(self->slot[found].sleepers, 1, 0);
        bump(self);
    }
    pthread_mutex_unlock(&self->mutex);
    if (found < 0) {
        errno = ENOSPC;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(found);
}

static PyObject *futex_waiter_disarm(struct futex_waiter *self, PyObject *value) {
    long index = PyLong_AsLong(value);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    if (index < 0 || index >= SLOTS) {
        PyErr_SetString(PyExc_ValueError, "no such slot");
        return NULL;
    }
    pthread_mutex_lock(&self->mutex);
    disarm(&self->slot[index]);
    self->slot[index] = (struct slot){.word = NULL};
    bump(self);
    pthread_mutex_unlock(&self->mutex);
    Py_RETURN_NONE;
}

static PyObject *futex_waiter_fired(struct futex_waiter *self, PyObject *nothing) {
    (void)nothing;
    uint64_t count;
    ssize_t done = read(self->eventfd, &count, sizeof count);
    (void)done; /* empty: nothing has fired since */
    PyObject *list = PyList_New(0);
    if (!list)
        return NULL;
    pthread_mutex_lock(&self->mutex);
    int error = self->error;
    for (int i = 0; i < SLOTS; i++) {
        if (!self->slot[i].has_fired)
            continue;
        self->slot[i].has_fired = 0;
        PyObject *index = PyLong_FromLong(i);
        if (!index || PyList_Append(list, index) < 0) {
            Py_XDECREF(index);
            Py_CLEAR(list);
            break;
        }
        Py_DECREF(index);
    }
    pthread_mutex_unlock(&self->mutex);
    if (error && list) {
        Py_DECREF(list);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return list;
}

static PyMethodDef futex_waiter_methods[] = {
    {"fileno", (PyCFunction)futex_waiter_fileno, METH_NOARGS, NULL},
    {"arm", (PyCFunction)futex_waiter_arm, METH_VARARGS, NULL},
    {"disarm", (PyCFunction)futex_waiter_disarm, METH_O, NULL},
    {"fired", (PyCFunction)futex_waiter_fired, METH_NOARGS, NULL},
    {"close", (PyCFunction)futex_waiter_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject tpn_futex_waiter_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "towpath_broker.gateways.bridge._native.FutexWaiter",
    .tp_basicsize = sizeof(struct futex_waiter),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = futex_waiter_new,
    .tp_dealloc = (destructor)futex_waiter_dealloc,
    .tp_methods = futex_waiter_methods,
};

/* -- System V semaphores ------------------------------------------------------------------------------------- */

struct semaphore_waiter {
    PyObject_HEAD
    pthread_t thread;
    char is_running;
    _Atomic int error;
    int eventfd, semaphores;
    unsigned short index;
};

static void *wait_for_semaphore(void *argument) {
    struct semaphore_waiter *self = argument;
    struct sembuf operation = {.sem_num = self->index, .sem_op = -1};
    int old;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    while (!atomic_load(&self->error)) {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
        int result = semop(self->semaphores, &operation, 1);
        int error = errno;
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
        if (result < 0 && error != EINTR)
            atomic_store(&self->error, error);
        if (result == 0 || error != EINTR)
            tell(self->eventfd);
    }
    return NULL;
}

static PyObject *semaphore_waiter_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    int semaphores;
    unsigned short index;
    if (!PyArg_ParseTuple(args, "iH", &semaphores, &index) || (keywords && PyDict_GET_SIZE(keywords)))
        return NULL;
    struct semaphore_waiter *self = (struct semaphore_waiter *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->semaphores = semaphores;
    self->index = index;
    self->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->eventfd >= 0) {
        errno = tpn_start_thread(&self->thread, wait_for_semaphore, self);
        self->is_running = errno == 0;
    }
    if (self->is_running)
        return (PyObject *)self;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}

static PyObject *semaphore_waiter_close(struct semaphore_waiter *self, PyObject *nothing) {
    (void)nothing;
    if (self->is_running) {
        self->is_running = 0;
        pthread_cancel(self->thread);
        Py_BEGIN_ALLOW_THREADS
        pthread_join(self->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    if (self->eventfd >= 0)
        close(self->eventfd);
    self->eventfd = -1;
    Py_RETURN_NONE;
}

static void semaphore_waiter_dealloc(struct semaphore_waiter *self) {
    Py_XDECREF(semaphore_waiter_close(self, NULL));
    Py_TYPE(self)->tp_free(self);
}

static PyObject *semaphore_waiter_fileno(struct semaphore_waiter *self, PyObject *nothing) {
    (void)nothing;
    return PyLong_FromLong(self->eventfd);
}

static PyObject *semaphore_waiter_taken(struct semaphore_waiter *self, PyObject *nothing) {
    (void)nothing;
    uint64_t count = 0;
    if (read(self->eventfd, &count, sizeof count) < 0 && errno != EAGAIN)
        return PyErr_SetFromErrno(PyExc_OSError);
    if ((errno = atomic_load(&self->error)))
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromUnsignedLongLong(count);
}

static PyMethodDef semaphore_waiter_methods[] = {
    {"fileno", (PyCFunction)semaphore_waiter_fileno, METH_NOARGS, NULL},
    {"taken", (PyCFunction)semaphore_waiter_taken, METH_NOARGS, NULL},
    {"close", (PyCFunction)semaphore_waiter_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject tpn_semaphore_waiter_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "towpath_broker.gateways.bridge._native.SemaphoreWaiter",
    .tp_basicsize = sizeof(struct semaphore_waiter),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = semaphore_waiter_new,
    .tp_dealloc = (destructor)semaphore_waiter_dealloc,
    .tp_methods = semaphore_waiter_methods,
};
