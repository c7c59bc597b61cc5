"""The lock service's core: pure, journaled, replayed.

How the engine runs it
----------------------
One :class:`machine.LockMachine` for a scope. Time is ``now_ns``, never going back: ``max(clock,
machine.now_ns)``.

*Start.* Restore the snapshot, if there is one (``snapshot.restore``), replay the records after it
(``codec.decode_command`` and ``apply``; effects are dropped), then apply and journal ``Begin(boot, limits)``.
For each session that is there (``reports.sessions``) call ``Leases.recovered``: holders keep their locks,
waiters their places, until that grace has passed.

*A round*, of all commands that have come meanwhile:

1. ``reserve = machine.reservation(commands)``; if it is not None, journal ``reserve``, sync, apply it.
2. For each command: ``before = machine.revision; effects = machine.apply(command, now_ns)``; if the revision
rose,
   its record (``codec.encode_command``) belongs to the round's.
3. Append the round's records in one transaction: written, not synced (they survive a crash of the core), but
synced
   if one of them is ``Reserve``, ``Begin``, ``DefineSpace``, or has ``is_durable``.
4. Emit the effects, in order. If the append fails, nothing is emitted and the core ends: the machine was
ahead of
   the journal, and it is the journal that counts.

Commands that changed nothing get no record, so nobody fills the disk with what is refused.

*Time.* At ``machine.next_deadline_ns()`` submit ``Tick``. At ``Leases.next_deadline_ns()`` take the expired
sessions and submit ``EndSession(session, LEASE_EXPIRED)`` for each. A local session whose process died
(socket's end, pidfd) ends at once: ``EndSession(session, SESSION_DIED)``. A client that closes:
``SESSION_CLOSED``.

Commands and what answers them
------------------------------
Commands that may wait name a session and a *request*, a number of the client's choosing; effects find their
way back by these two, also after the client has reconnected, and asking again with the same number tells how
it stands. What would begin anew (a wait for a condition, at a barrier) has a third, ``ask``: its end is
remembered, so that it can be told again. All others have a ``reference`` of the engine's choosing, above 0,
or 0 for "do not answer".

========================= ====================================================================================
OpenSession               SessionOpened(reference, session), or Failed
Acquire                   Granted; or Waiting, and later Granted or Refused; or Refused
Upgrade                   the same, for the request that holds (Refused: it is still shared)
WaitCondition             Released(CONDITION) and Waiting, later Granted (``is_timed_out``); or Refused
ArriveBarrier             BarrierOpened; or Waiting, and later BarrierOpened or Refused; or Refused
Release, Downgrade        Done or Failed; Released tells watchers
WriteGuarded              Done or Failed
NotifyCondition           Done(count) or Failed
Cancel                    Done; Refused(CANCELLED), Released, or (a condition) Granted for the request
ForceRelease              Done(taken) or Failed; Released and Revoked for each holder
DeclareClaims             Done or Failed
DefineSpace               Done or Failed
EndSession                Done or Failed; Refused and Released for what it had, at last SessionEnded
Delegate                  Delegated (reference), or Failed
Recall                    Granted for what was held; Waiting, Granted, Refused for who waited
Begin, Reserve, Tick      nothing of their own
========================= ====================================================================================

Effects
-------
``Granted``, ``Waiting``, ``Refused``, ``BarrierOpened``: to the session's call with that request; if nobody
is connected they are dropped, since a client that comes back asks again. A command may bring about any number
of them for others. ``Released``: to nobody but watchers (``WatchLocks`` is the door's: it passes on Granted,
Waiting, Refused and Released whose locks' names begin as asked). ``Revoked``, ``Wounded``: to the session's
stream; a guard of that grant is not valid any more (Revoked), or should be given up soon (Wounded).
``SessionEnded``: ``LockSessionLost`` on its stream unless it closed, forget its resume token,
``Leases.close``.

*Lock pages.* A lock that is given out (``Delegate``) is judged in shared memory until it is taken back. The
engine takes it back, by a ``Recall`` before it, for each command that names the lock, or a request that it
knows from the page (``delegating.is_page_request``), or a session that is in the page. ``Drained``: the core
gives its own part in the page up.

What is asked without a command: ``fencing.check_fence`` (before something is written on the mediated path),
``reports`` (list, why, graphs; also the details of a wait), ``elections.leader``, ``LockMachine.statistics``.

Who may open a session, resume one, force a release or define a space is for the door to judge, as for all
else.

Files, in reading order: ``grants`` (the records), ``modes``, ``table`` (the steps), ``queue`` (who is
next), ``acquiring``, ``waits`` and ``deadlock``, ``avoidance``, ``spaces``, ``conditions``, ``barriers``,
``guarded``, ``operating``, ``delegating``, ``machine``; ``commands``, ``effects``, ``codec``, ``snapshot``;
``fencing``, ``leases``, ``reports``, ``elections``.
"""

from __future__ import annotations
