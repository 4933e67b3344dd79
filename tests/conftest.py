import os
import signal

from hypothesis import settings


# Torch with several threads spins itself to death on a small machine when anything else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A shell starts a job in the background with Ctrl-C ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is about wall time: a busy machine is slow once
settings.register_profile("md_trl", deadline=None)
settings.load_profile("md_trl")
