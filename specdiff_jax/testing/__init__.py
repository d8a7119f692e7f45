"""A tiny verifier, a scripted drafter, and the contract that drafters keep.

import specdiff_jax as sd

sd.testing.check_drafter(MyDrafter(), params)
"""

from specdiff_jax.testing import contract
from specdiff_jax.testing import models
from specdiff_jax.testing import scripted

check_drafter = contract.check_drafter
tiny_verifier = models.tiny_verifier
Script = scripted.Script
Scripted = scripted.Scripted
