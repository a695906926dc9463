"""`minidiff recipes`: one line for each."""

from minidiff.recipes import RECIPES


def main(words):
    """Print the recipes, all or those that contain one of the words."""
    rows = [("recipe", "data", "size", "steps", "batch", "guesses", "source")]
    for name, one in RECIPES.items():
        if not words or any(word in name for word in words):
            training = one.training
            rows.append((name, one.data or "(your own)", str(one.size), f"{training['steps']:,}",
                         str(training["batch_size"]), str(len(one.guesses)), one.source))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
