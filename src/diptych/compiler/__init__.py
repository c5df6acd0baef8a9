"""From graphs to LLVM text; its parts are imported at the first compile."""

ENTRY = "diptych_run"  # the function of a module that runs its kernels
TASK, TAKEN = (
    56,
    2,
)  # the word of the pool about a call in flight, and what it is while a worker runs it
