"""Studies: any starts × seeds × learning rates on the user's model, and the statistics that compare them.

In: starts, a function, data and a loss. Out: a `StudyResult`, arrays of every run with comparisons, which can be saved
and continued. `_options.py` checks what the user chose and `_starts.py` turns each start into a function of a key;
`_train.py` is one seed, with convolutions as `_convolutions.py` has them, and `_programs.py` many in one program.
`_run.py` is the loop with its checkpoints, `_progress.py` its bar, `_records.py` and `_store.py` what is kept and how.
`_statistics.py` has intervals and tests of plain arrays, `_comparisons.py` applies them to starts, `_table.py` prints.
"""

from jaxinit._study._metrics import LOSS as LOSS
from jaxinit._study._result import StudyResult as StudyResult
from jaxinit._study._statistics import interval as interval
from jaxinit._study._study import study as study
