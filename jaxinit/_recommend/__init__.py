"""`recommend`: which start to take, and why."""

from jaxinit._recommend._recommend import Recommendation as Recommendation
from jaxinit._recommend._recommend import recommend as recommend
