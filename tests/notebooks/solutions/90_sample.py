# %% tags=["exercise"] name="double"
def double(x):
    return 2 * x
