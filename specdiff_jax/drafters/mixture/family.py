"""The mixture's name and the parts of its drafter, which are of other families.

Any drafters of windows; the third may be left out.
"""

from specdiff_jax.drafters import family

FAMILY = family.Family()
