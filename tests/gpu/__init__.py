"""Everything of the course that needs a GPU, in one command: ``python -m tests.gpu --minutes 8 --out FILE``.

Rows run most valuable first, each in a process of its own. The file is rewritten after every figure, so a run that is cut
off keeps what it has. On a machine without a GPU, ``--toy`` runs every row at toy size, which checks the code and measures
nothing.
"""
