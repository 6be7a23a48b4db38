"""The built-in tasks, one file each. Adding one: handlers/README.md."""
