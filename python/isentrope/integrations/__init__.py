"""Isentrope inside other libraries. Each module but methods, which they share, needs the library it is named after; isentrope imports none."""
