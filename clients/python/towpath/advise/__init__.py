"""``towpath advise``: which mechanism suits a conversation, found by measuring on this machine.

Theory of operation
    ``model`` says what is asked for (requirements), what there is (mechanisms, with what each does by itself)
    and what was measured. ``rules`` ranks by nothing but these: a pure function, so that an advice can be
    explained and tested. ``ways`` opens the ends of each mechanism as a program would, ``measuring`` puts
    them into processes of their own and takes the time. ``recipes`` has the commands that set a mechanism up.

Not here: options, progress, what is printed and drawn (``towpath.cli.advise``). Nothing here imports the
daemon; the ring is measured with one that is started as a process.
"""
