"""What every test runs under: one torch thread for each pytest process, so that results repeat and the workers share the cores."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything imports torch; child processes inherit them
    os.environ[name] = "1"

from hypothesis import settings  # noqa: E402

settings.register_profile("prunetrain", deadline=None)  # the machine's other work must not fail a test
settings.load_profile("prunetrain")
