"""The sections of a page: each a function from a run, or several, to markup."""
