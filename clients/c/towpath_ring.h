/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring of Towpath: messages from one writer to many readers through shared memory. C11 (and C++), header-only,
 * gcc and clang, x86-64 and aarch64, Linux. Include this file first (or define _GNU_SOURCE); link with -pthread.
 *
 *     struct tpr_writer w;                            struct tpr_reader r;
 *     tpr_writer_open(&w, source, 1 << 20);           tpr_reader_open(&r, id, TPR_SLOTS_DEFAULT);
 *     int ring_fd = tpr_writer_share(&w);             int control_fd = tpr_reader_share(&r);
 *            ... the core carries ring_fd to the reader, control_fd to the writer ...
 *     tpr_writer_attach(&w, id, control_fd, 0,        tpr_reader_add(&r, ring_fd, 0, source,
 *                       -1, TPR_START_BEGIN);                        TPR_START_BEGIN, -1, NULL);
 *     tpr_writer_publish(&w, NULL, 0, "hello", 5);    tpr_reader_begin(&r);
 *     if (... == TPR_FULL)                            while (tpr_reader_peek(&r, &view)) {
 *         tpr_writer_wait_room(&w, 5, deadline);          copy(view.payload, view.payload_bytes);
 *                                                         if (tpr_reader_consume(&r, &view))
 *                                                             use(the copy);
 *                                                     }
 *                                                     tpr_reader_end(&r);
 *                                                     tpr_reader_wait(&r, deadline);
 *
 * THEORY OF OPERATION
 *
 * Every page has one writer. The writer owns the ring: records, and the tail that publishes them. A reader owns
 * its control page: per source a cursor, and one word that says whether it sleeps. The core owns the generation
 * table. Everyone maps the others' pages read-only, so nobody can break another's, no lock is held in shared
 * memory, and a process killed at any instruction leaves nothing to repair: what it had not published is not
 * there, and what it had is whole.
 *
 * OVERFLOW. With *block* the writer overwrites nothing that an attached reader has not moved its cursor past. (When to
 * give up on a reader is decided by the core: tpr_writer_stalled() says who does not move, tpr_writer_detach() lets it go.)
 * With *drop* it overwrites the oldest, and readers learn exactly how many messages they missed.
 *
 * In either case a reader may find itself overwritten: lapped, or let go by a writer that it could not see, stopped in the
 * middle of a copy perhaps. So the writer, before it overwrites anything, publishes oldest_pos, past all that it will
 * overwrite next, then (release fence) writes; and a reader copies, then (acquire fence) looks at oldest_pos: a copy of
 * what lies before it is thrown away. Whoever has read a byte that was written after the fence sees the oldest_pos before
 * it, so nothing torn is ever handed out. The look costs one load of a line that changes 64 times per turn of the ring. One
 * word is enough: it bounds what is overwritten, and with drop it is the start of a record, where the lapped go on.
 *
 * Sleeping. A reader sleeps on the tails (futex_waitv), a writer on the slowest cursor. Each side, before it sleeps,
 * stores that it will, fences, and looks once more; each side, after it moved its own word, fences, and looks
 * whether the other sleeps. With both fences sequentially consistent one of the two must see the other's store
 * (Dekker). What a side sees only after that look changes the very word it sleeps on, which the kernel compares
 * under its own lock. Nobody wakes who need not: a reader is rung twice per sleep (epoch) at most, or once by doorbell (why
 * twice: tpr_writer_wake_()); a writer only when a cursor crosses the position that it named in writer_waits_for.
 *
 * ATTACHING, and why nothing published after a subscription is missed
 *
 *     core                        reader                              writer, each batch
 *     G: store generation                                             L: load generation, as before: go on
 *        fence                                                           write records
 *     R: load tail ------------>  cursor := R                         S: store tail
 *                                                                        fence
 *                                                                     L': load generation
 *
 * Say the core's R does not see S. G and its fence come before R, S before L', with a fence between each pair: so
 * L' sees G (else both would have missed the other, which the fences forbid). Hence a batch can go unseen by R
 * only if it is the last one before the writer learns of G; the one after begins with a load no older than L',
 * is refused with TPR_NEEDS_READERS, and is written only when the reader is attached. So R is no earlier than the
 * tail before the writer's newest batch, `previous_tail`, and there the writer takes a reader to stand while its
 * cursor is unset. Nothing from there on is overwritten, as a batch never exceeds the ring. Conversely R may lie
 * after S: then the message was published before R, that is before the core told anybody of the subscriber, and none
 * of it is due. Whoever has seen that the subscriber is there, and then publishes, reaches it, also when it has not come
 * to read yet. (A reader that is not told R loads the tail itself, later, with a fence before: the same argument holds, and
 * all that is published from subscribe()'s return on is due. With drop R may be overwritten: then it does that too.)
 *
 * The reader may go to sleep before S, and the writer, not knowing its page, cannot see that. But L' then sees G: the
 * writer wakes everyone who sleeps on the tail, and says readers_changed, so that its shell attaches the reader now
 * rather than at its next message; attaching rings the doorbell of a reader found asleep.
 *
 * A source that appears after the reader subscribed is read from position 0 (TPR_START_BEGIN); its writer attaches the
 * reader before its first message, pinned at 0.
 *
 * HISTORY. A late reader may begin at the writer's N-th last message (TPR_START_HISTORY): it loads history_pos
 * itself, as its R, and the writer pins it at what history_pos was before its newest batch. By the same argument that is no later
 * than what R loaded. But in that very batch, not knowing of the reader, the writer may have overwritten what R chose. Then
 * oldest_pos is past it, the writer takes the reader to stand at oldest_pos and goes no further, and the reader, when it
 * sees that it is overrun, goes on at history_pos as it is now, which is never before oldest_pos. This can happen to it
 * only before it has read up to the tail as it was when it came (catch_up_until): all after that is kept for it.
 *
 * DEATH. A reader told that a writer is gone calls finish(): it drains to the tail. A writer told that a reader is gone
 * detaches it. Either side dead without the other being told costs nothing but the room that a dead reader's
 * cursor holds. SLOTS are reused: a reader leaving stores LEFT, and the slot carries the source it is for, so a
 * writer can always tell its own cursor from somebody else's.
 *
 * HOSTILE PEERS. Everything loaded from another's page is loaded once and checked. A reader whose cursor is
 * impossible is ignored and listed (violator); a ring that is malformed is marked and left (violation).
 *
 * FORK. Handles are void in a forked child (TPR_E_FORKED); its own ones work.
 *
 * PROOF. tests/ring/model runs these protocols in every order of events, store buffers included; tests/ring/c kills and
 * stops each party around every store; tests/ring/test_faults.py seeds one fault after the other and shows that the tests
 * find it.
 *
 * LOANS. Large payloads are made and read where they lie, in the writer's slab: towpath_ring_loan.h.
 *
 * Not here: names, permissions, who may map what, how long to wait for whom (the core).
 *
 * Reading order: towpath_ring_layout.h, _steps.h, _wait.h, _memfd.h, _record.h, _generation.h, _slab.h, _writer.h, _publish.h,
 * _attach.h, _writer_wait.h, _loan.h, _reader.h, _read.h, _hold.h, _reader_wait.h, _load.h; and for the core _recover.h,
 * _pump.h and _parcel.h.
 * Sources: futex(2), memfd_create(2), fcntl(2) "File Sealing", Documentation/userspace-api/futex2.rst.
 */
#ifndef TOWPATH_RING_H
#define TOWPATH_RING_H

#include "towpath_ring_layout.h"
#include "towpath_ring_steps.h"
#include "towpath_ring_wait.h"
#include "towpath_ring_memfd.h"
#include "towpath_ring_record.h"
#include "towpath_ring_generation.h"
#include "towpath_ring_slab.h"
#include "towpath_ring_writer.h"
#include "towpath_ring_publish.h"
#include "towpath_ring_attach.h"
#include "towpath_ring_writer_wait.h"
#include "towpath_ring_loan.h"
#include "towpath_ring_reader.h"
#include "towpath_ring_read.h"
#include "towpath_ring_hold.h"
#include "towpath_ring_reader_wait.h"
#include "towpath_ring_load.h"
#include "towpath_ring_recover.h"
#include "towpath_ring_pump.h"
#include "towpath_ring_parcel.h"

#endif
