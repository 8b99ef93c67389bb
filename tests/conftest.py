"""What every test runs under: one torch thread a pytest process, so that results repeat and the workers share the cores; Ctrl-C works."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what tests start would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything imports torch; child processes inherit them
    os.environ[name] = "1"

from hypothesis import settings  # noqa: E402

settings.register_profile("prunetrain", deadline=None)  # the machine's other work must not fail a test
settings.load_profile("prunetrain")
