# %% [markdown]
# # 90 A sample
#
# After this notebook you can tell that the notebook tool works.
#
# Run time: seconds on a CPU, a T4 or a big GPU.
#
# - one goal, see [the exercise](#the-exercise)

# %%
import minidiff
import torch
torch.manual_seed(0)

# %% [markdown]
# ## A picture
# The text between two code cells.

# %% tags=["picture"]
import sys

import matplotlib.pyplot as plt

for done in range(3):
    print(f"\r{done + 1} of 3", end="", file=sys.stderr)
plt.figure(figsize=(1, 1))
plt.imshow(torch.rand(4, 4));

# %% [markdown]
# ## The exercise
# Checks come from an object with the same manners as `minidiff.course.exercises`.

# %%
import os


class exercises:
    def check_double(function):
        right = function(3) == 6
        print("double(3) is right." if right else f"double(3) should be 6, not {function(3)}.")
        assert right or not os.environ.get("MINIDIFF_STRICT")
        return right

# %% [markdown]
# Write it.

# %% tags=["exercise"] name="double"
def double(x):
    ...  # your code

# %% [markdown]
# Then run the check.

# %%
exercises.check_double(double)
