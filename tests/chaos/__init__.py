"""Breaking the real server on purpose: ``make chaos`` (faults, fuzzing) and ``make soak``. Not collected by pytest."""
