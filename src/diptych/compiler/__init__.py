"""From graphs to LLVM text; its parts are imported at the first compile."""

ENTRY = "diptych_run"  # the function of a module that runs its kernels
