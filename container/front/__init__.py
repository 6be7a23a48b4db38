"""The HTTP side: routes, pages, and the one table from error code to status. No torch."""
