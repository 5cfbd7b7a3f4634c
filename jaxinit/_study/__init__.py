"""Studies: any starts × seeds × learning rates on the user's model, and the statistics that compare them."""

from jaxinit._study._result import StudyResult as StudyResult
from jaxinit._study._study import study as study
