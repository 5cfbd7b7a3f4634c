"""Studies: any starts × seeds × learning rates on the user's model, and the statistics that compare them.

In: starts, a function, data and a loss. Out: a `StudyResult`, arrays of every run with comparisons, which can be saved
and continued. `_options.py` checks the user's options and `_starts.py` turns each start into a function of a key.
`_train.py` trains one seed, with the convolutions of `_convolutions.py`, and `_programs.py` compiles many seeds into
one program. `_run.py` is the loop with its checkpoints, `_processes.py` divides it among processes, `_progress.py`
is its progress bar, `_records.py` and `_store.py` decide what is saved and how. `_statistics.py` has intervals and
tests for plain arrays, `_comparisons.py` applies them to starts, `_table.py` prints.
"""

from jaxinit._study._metrics import LOSS as LOSS
from jaxinit._study._result import StudyResult as StudyResult
from jaxinit._study._statistics import interval as interval
from jaxinit._study._study import study as study
