"""Advice: which initial weights to use, and what would fix a fault that was measured.

In: a description, a program, or measurements. Out: a `Recommendation`, or a remedy in words. `_recommend.py` decides by
what a network is, `_remedies.py` by what its weights do. The latter also finds out which initialization a model was
given, so that no remedy names that one.
"""

from jaxinit._advice._recommend import Recommendation as Recommendation
from jaxinit._advice._recommend import recommend as recommend
from jaxinit._advice._remedies import LOST as LOST
from jaxinit._advice._remedies import LSUV as LSUV
from jaxinit._advice._remedies import for_dead as for_dead
from jaxinit._advice._remedies import for_likeness as for_likeness
from jaxinit._advice._remedies import for_saturated as for_saturated
from jaxinit._advice._remedies import for_size as for_size
from jaxinit._advice._remedies import start as start
