"""What every test runs under: one torch thread a pytest process, so that results repeat and the workers share the cores; Ctrl-C works.

And the images that most runs of the tests train on.
"""

import os
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what tests start would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything imports torch; child processes inherit them
    os.environ[name] = "1"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from runs import write_images  # noqa: E402

settings.register_profile("prunetrain", deadline=None)  # the machine's other work must not fail a test
settings.load_profile("prunetrain")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 320 images for training and 80 for validation."""
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")
