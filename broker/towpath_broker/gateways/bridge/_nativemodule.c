/* SPDX-License-Identifier: Apache-2.0
 *
 * The module itself, and signals.
 *
 * Sending: pidfd_send_signal(2) with a siginfo of ours, so that a value goes along and no recycled pid is ever hit.
 *
 * Receiving: a handler writes what the kernel told into a pipe, which an event loop watches. A handler, and not a
 * signalfd, because that would need the signal blocked in every thread and would be inherited, blocked, by every
 * command that the bridge starts; handlers end with execve(2).
 * When the pipe is full the handler keeps that one record and has its own return block the signal (by the mask that
 * is restored then). So what follows stays in the kernel's queue, and where that is full too a sender is told EAGAIN:
 * nothing is lost here, until resume_signal() takes the record and unblocks the signal.
 * A handler stays for good: a signal that comes when its binding has gone is counted and does not end the process.
 * Order: the handler masks every signal, and one thread only takes them, the one that opened. Threads of ours block all
 * signals from their start; should another thread be hit, it passes that one on with all that is known of it
 * (rt_tgsigqueueinfo(2)), and blocks the signal for itself from then on. The kernel takes from a thread that is not its
 * process's first no code that says "from kill(2)" or "from the kernel": so the code is passed on moved below those that
 * anybody uses (PASSED_ON), and moved back where it is taken.
 */
#include "_native.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

#define SIGNALS 65 /* 1 to 64 */
#define PASSED_ON (-0x10000) /* added to the code of a signal that another thread was hit by */

struct record {
    int32_t number, code, pid;
    uint32_t uid;
    uint64_t value;
};
_Static_assert(sizeof(struct record) == 24, "read by Python: iiiIQ");

static struct {
    _Atomic int descriptor; /* the pipe's write end; -1 for none */
    _Atomic int thread;     /* who takes them */
    _Atomic int is_held;    /* `held` is one that the pipe had no room for */
    _Atomic unsigned long dropped;
    struct record held;
} slots[SIGNALS];

static void on_signal(int number, siginfo_t *info, void *context) {
    int saved = errno;
    int descriptor = atomic_load(&slots[number].descriptor), thread = atomic_load(&slots[number].thread);
    if (descriptor >= 0 && thread != syscall(SYS_gettid)) {
        sigaddset(&((ucontext_t *)context)->uc_sigmask, number);
        siginfo_t passed = *info;
        passed.si_code += PASSED_ON;
        if (syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, number, &passed) < 0)
            atomic_fetch_add(&slots[number].dropped, 1);
        errno = saved;
        return;
    }
    int code = info->si_code < PASSED_ON / 2 ? info->si_code - PASSED_ON : info->si_code;
    struct record record = {.number = number, .code = code};
    /* Only what a process sent says who it was; the kernel's own signals have other fields there. */
    if (code <= 0) {
        record.pid = (int32_t)info->si_pid;
        record.uid = (uint32_t)info->si_uid;
    }
    if (code == SI_QUEUE)
        memcpy(&record.value, &info->si_value, sizeof info->si_value);
    if (descriptor < 0 || atomic_load(&slots[number].is_held)) {
        atomic_fetch_add(&slots[number].dropped, 1);
    } else if (write(descriptor, &record, sizeof record) < 0) {
        slots[number].held = record;
        atomic_store(&slots[number].is_held, 1);
        sigaddset(&((ucontext_t *)context)->uc_sigmask, number);
    }
    errno = saved;
}

int tpn_to_number(PyObject *value) {
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < 1 || number >= SIGNALS) {
        PyErr_SetString(PyExc_ValueError, "a signal's number is from 1 to 64");
        return -1;
    }
    return (int)number;
}

static PyObject *open_signal(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *value;
    int descriptor;
    if (!PyArg_ParseTuple(args, "Oi", &value, &descriptor))
        return NULL;
    int number = tpn_to_number(value);
    if (number < 0)
        return NULL;
    atomic_store(&slots[number].dropped, 0);
    atomic_store(&slots[number].is_held, 0);
    atomic_store(&slots[number].thread, (int)syscall(SYS_gettid));
    atomic_store(&slots[number].descriptor, descriptor);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    if (sigaction(number, &action, NULL) < 0) {
        atomic_store(&slots[number].descriptor, -1);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static void unblock(int number) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static PyObject *resume_signal(PyObject *self, PyObject *value) {
    (void)self;
    int number = tpn_to_number(value);
    if (number < 0)
        return NULL;
    if (!atomic_load(&slots[number].is_held))
        Py_RETURN_NONE;
    PyObject *record = PyBytes_FromStringAndSize((const char *)&slots[number].held, sizeof(struct record));
    if (!record)
        return NULL;
    atomic_store(&slots[number].is_held, 0);
    unblock(number);
    return record;
}

static PyObject *close_signal(PyObject *self, PyObject *value) {
    (void)self;
    int number = tpn_to_number(value);
    if (number < 0)
        return NULL;
    atomic_store(&slots[number].descriptor, -1);
    atomic_store(&slots[number].is_held, 0);
    unblock(number);
    Py_RETURN_NONE;
}

static PyObject *dropped_signals(PyObject *self, PyObject *value) {
    (void)self;
    int number = tpn_to_number(value);
    return number < 0 ? NULL : PyLong_FromUnsignedLong(atomic_load(&slots[number].dropped));
}

void tpn_begin_siginfo(siginfo_t *info, int number) {
    memset(info, 0, sizeof *info);
    info->si_signo = number;
    info->si_code = SI_QUEUE; /* the kernel takes no other from us: see rt_sigqueueinfo(2) */
    info->si_pid = getpid();
    info->si_uid = getuid();
}

long tpn_send_signal(int pidfd, siginfo_t *info, uint64_t value) {
    memcpy(&info->si_value, &value, sizeof info->si_value);
    return syscall(SYS_pidfd_send_signal, pidfd, info->si_signo, info, 0);
}

static PyObject *send_signal(PyObject *self, PyObject *args) {
    (void)self;
    int descriptor;
    PyObject *signal_number;
    unsigned long long value;
    if (!PyArg_ParseTuple(args, "iOK", &descriptor, &signal_number, &value))
        return NULL;
    int number = tpn_to_number(signal_number);
    if (number < 0)
        return NULL;
    siginfo_t info;
    tpn_begin_siginfo(&info, number);
    if (tpn_send_signal(descriptor, &info, value) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyMethodDef tpn_signal_methods[] = {
    {"open_signal", open_signal, METH_VARARGS, NULL},
    {"resume_signal", resume_signal, METH_O, NULL},
    {"close_signal", close_signal, METH_O, NULL},
    {"dropped_signals", dropped_signals, METH_O, NULL},
    {"send_signal", send_signal, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int tpn_start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 << 10);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the new thread */
    int error = pthread_create(thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = tpn_signal_methods,
};

PyMODINIT_FUNC PyInit__native(void) {
    for (int number = 0; number < SIGNALS; number++)
        atomic_store(&slots[number].descriptor, -1);
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (PyModule_AddFunctions(module, tpn_memory_methods) < 0 ||
        PyModule_AddFunctions(module, tpn_thread_methods) < 0 ||
        PyModule_AddType(module, &tpn_futex_waiter_type) < 0 ||
        PyModule_AddType(module, &tpn_semaphore_waiter_type) < 0 ||
        PyModule_AddType(module, &tpn_signal_taker_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
