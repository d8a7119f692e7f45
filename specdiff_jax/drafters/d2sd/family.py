"""D2SD's name and the parts of its drafter, which are of other families.

Any drafter of windows over a shared context drafts first; the second is one
that has learned to go on from a prefix (loss variable_prefix).
"""

from specdiff_jax.drafters import family

FAMILY = family.Family()
