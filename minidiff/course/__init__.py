"""What only the notebooks need: set-up and budgets, figures, sliders, and exercises that check themselves."""

from minidiff.course import exercises, plots, runtime, widgets
from minidiff.course.runtime import budget, setup

__all__ = ["budget", "exercises", "plots", "runtime", "setup", "widgets"]
