"""Isentrope inside other libraries. Each module needs the library it is named after, and none is imported by isentrope."""
