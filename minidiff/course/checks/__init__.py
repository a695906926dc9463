"""The checks of the exercises, one file a notebook: notebook_NN.py. `minidiff.course.exercises` finds them by name.

A file begins with `from minidiff.course.exercises import compare, exercise, unpack`; its functions called `check_...`
are the checks, and no two files may use one name. tests/test_course_checks_NN.py proves each with `exercises.prove`.
"""
