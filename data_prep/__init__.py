"""Data sets and models in the form that verl reads; one module a data set, each with its own command line."""
