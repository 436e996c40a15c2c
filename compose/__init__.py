"""How the parts are put together: the command, settings, the local stack, the demo, and files for Docker."""

import os

# One worker is one core: threads inside polars and XGBoost would only compete with other workers, and handing small batches to them
# costs more than the work. Both read this when they are first imported, which comes after this.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
