"""Checks of user input: values, keys, patterns of paths, calls of functions.

In: an argument, and the name it was given as. Out: the argument in canonical form, or an error that says what was
expected, what was received and what to do. `_values` checks values, keys and calls, `_trees` trees and path patterns.
"""

from jaxinit._checks._trees import check_finite as check_finite
from jaxinit._checks._trees import check_patterns as check_patterns
from jaxinit._checks._trees import check_values as check_values
from jaxinit._checks._trees import first_match as first_match
from jaxinit._checks._trees import matches as matches
from jaxinit._checks._values import calling as calling
from jaxinit._checks._values import check_choice as check_choice
from jaxinit._checks._values import check_flag as check_flag
from jaxinit._checks._values import check_initializer as check_initializer
from jaxinit._checks._values import check_integer as check_integer
from jaxinit._checks._values import check_key as check_key
from jaxinit._checks._values import check_no_module as check_no_module
from jaxinit._checks._values import check_number as check_number
from jaxinit._checks._values import check_ordered as check_ordered
from jaxinit._checks._values import check_rank as check_rank
from jaxinit._checks._values import is_module as is_module
from jaxinit._checks._values import is_raw_key as is_raw_key
from jaxinit._checks._values import is_typed_key as is_typed_key
from jaxinit._checks._values import shown as shown
