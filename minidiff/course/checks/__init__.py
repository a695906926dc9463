"""The checks of the exercises, one file a notebook: notebook_NN.py. `minidiff.course.exercises` finds them by name."""
