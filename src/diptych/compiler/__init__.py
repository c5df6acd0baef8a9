"""From graphs to LLVM text; its parts are imported at the first compile."""

ENTRY = "diptych_run"  # the function of a module that runs its kernels
TASK = 56  # the word of the pool that tells of a call in flight
TAKEN = 2  # what it is while a worker runs that call
