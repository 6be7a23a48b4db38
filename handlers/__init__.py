"""The built-in tasks, one file a task; reached by name only (``model/resolve``)."""
