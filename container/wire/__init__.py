"""What crosses a process border, and how: front to engine, engine to host children, with the same seven verbs."""
