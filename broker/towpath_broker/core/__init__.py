"""The pure core: ``Machine.apply(command, now_ns) -> effects``. No I/O, clock, randomness, logging or await
in here."""
