"""Makes data/digits.npz, the 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

python tools/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
np.savez_compressed(
    Path(__file__).resolve().parent.parent / "data" / "digits.npz",
    images=digits.images.astype(np.uint8),  # (1797, 8, 8), 0 to 16
    labels=digits.target.astype(np.uint8),  # (1797,)
)
