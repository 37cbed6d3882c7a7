"""Where events go: one module a place, each imported when it is asked for, with the package that it needs."""
