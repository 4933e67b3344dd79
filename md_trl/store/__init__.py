"""The store: every thought that was ever sampled, in one SQLite file, each paid for once.

| file | holds |
| --- | --- |
| `store.py` | [`Store`]: the parts below over one connection |
| `schema.py` | tables, opening the file, transactions |
| `questions.py`, `settings.py` | questions; what thoughts were sampled with |
| `claims.py`, `owner.py` | which process may request which sample, and whether it is still running |
| `batches.py` | jobs of the Batch API |
| `selection.py` | which thoughts to use, and their digest |
| `status.py` | what there is, what is missing, what it took |
| `transfer.py`, `thought_file.py` | import and export; the file format |
| `merge.py` | adding another store |
"""

from .claims import Claim, Granted
from .merge import MergeSummary
from .selection import Selection
from .status import Spending, StatusRow
from .store import Store, open_store
from .transfer import ImportSummary


__all__ = [
    "Claim",
    "Granted",
    "ImportSummary",
    "MergeSummary",
    "Selection",
    "Spending",
    "StatusRow",
    "Store",
    "open_store",
]
