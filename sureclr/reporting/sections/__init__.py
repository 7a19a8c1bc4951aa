"""The sections of the page: one module a question."""
