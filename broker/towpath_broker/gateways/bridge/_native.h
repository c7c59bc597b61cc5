/* SPDX-License-Identifier: Apache-2.0
 *
 * The extension `_native` of the bridge: what signals and foreign memory need of the kernel and Python cannot say.
 * Documentation for users: _native.pyi.
 */
#ifndef TOWPATH_BRIDGE_NATIVE_H
#define TOWPATH_BRIDGE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Methods of each file, ended by an empty one. */
extern PyMethodDef tpn_signal_methods[];
extern PyMethodDef tpn_memory_methods[];
extern PyMethodDef tpn_thread_methods[];

/* Types. */
extern PyTypeObject tpn_futex_waiter_type;
extern PyTypeObject tpn_semaphore_waiter_type;
extern PyTypeObject tpn_signal_taker_type;

/* A signal's number, 1 to 64; -1 with an exception set. */
int tpn_to_number(PyObject *value);

/* Send a signal with a value, as sigqueue(3) does. Returns the system call's result. */
void tpn_begin_siginfo(siginfo_t *info, int number);
long tpn_send_signal(int pidfd, siginfo_t *info, uint64_t value);

/* Start a thread that no signal is ever delivered to. Returns an error number. */
int tpn_start_thread(pthread_t *thread, void *(*run)(void *), void *argument);

/* Add to a word of memory that may have gone, and wake whoever waits on it: the kernel reports EFAULT where a store
 * would raise SIGBUS. Returns the system call's result; an atomic read-modify-write and a full barrier. */
static inline long tpn_add_and_wake(uint32_t *word, int amount, int wake_count) {
    return syscall(SYS_futex, word, FUTEX_WAKE_OP, wake_count, 0L, word,
                   FUTEX_OP(FUTEX_OP_ADD, amount, FUTEX_OP_CMP_EQ, 0));
}

#endif
