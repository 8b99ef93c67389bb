"""The kinds of cases in `fuzz.py`: each damages one of the original files, in the current folder, and names commands that read it."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz_archives import spoil_archive, with_part
from fuzz_arrays import spoil_npz, spoil_safetensors
from fuzz_bytes import spoil
from fuzz_contents import spoil_content
from fuzz_originals import LAST, NETWORK
from fuzz_pickles import spoil_pickle
from fuzz_texts import spoil_metrics, spoil_network, spoil_settings

from prunetrain.graph.load import sha256_of

Command = list[str]
_NEW = "train --dataset npz --data-dir images.npz --model lenet-300-100 --epochs 1 --name y --device cpu --compile off --round-to 1"
_ON_A_CHECKPOINT = (
    f"train --resume {LAST} --epochs 3 --round-to 1",
    f"train --resume {LAST} --epochs 3",
    f"evaluate {LAST} --device cpu",
    f"inspect {LAST} --json",
    f"inspect {LAST} net.py",
    f"reconfigure {LAST} --name y",
    f"export {LAST} -o y.safetensors",
)
_ON_WEIGHTS = "flatten tiny2.py:Net -o z.py --input-shape 1,8,8 --num-classes 4 --weights"
EVERY_COMMAND = (*_ON_A_CHECKPOINT, "inspect x", "inspect net.py", _NEW, f"{_NEW} --config settings.toml", f"{_ON_WEIGHTS} weights.pt")


def _checkpoint(spoil_file: Callable[[random.Random, bytes, str], bytes]) -> Callable[[random.Random, str], list[Command]]:
    def prepare(rng: random.Random, canary: str) -> list[Command]:
        path = Path(LAST)
        path.write_bytes(spoil_file(rng, path.read_bytes(), canary))
        return [rng.choice(_ON_A_CHECKPOINT).split()]

    return prepare


def _content(rng: random.Random, canary: str) -> list[Command]:
    spoil_content(rng, Path(LAST))
    return [rng.choice(_ON_A_CHECKPOINT).split()]


def _network(rng: random.Random, canary: str) -> list[Command]:
    """A forged network file, with the right fingerprint in its checkpoint."""
    path = Path(NETWORK)
    path.write_bytes(spoil_network(rng, path.read_text(encoding="utf-8"), canary))
    content = torch.load(LAST, weights_only=True)
    try:
        content["network_sha256"] = sha256_of(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        pass
    torch.save(content, LAST)
    return [rng.choice((*_ON_A_CHECKPOINT, f"inspect {NETWORK}", f"inspect net.py {NETWORK}", "inspect x")).split()]


def _network_alone(rng: random.Random, canary: str) -> list[Command]:
    """A network file with weights beside it."""
    Path("net.py").write_bytes(spoil_network(rng, Path("net.py").read_text(encoding="utf-8"), canary))
    Path("weights.pt").rename("net.pt")
    return [rng.choice(("export net.py -o y.safetensors", "inspect net.py --json", "inspect net.py")).split()]


def _settings(rng: random.Random, canary: str) -> list[Command]:
    path = Path(rng.choice(("settings.toml", "settings.json")))
    path.write_bytes(spoil_settings(rng, path.read_text()))
    return [f"{_NEW} --config {path}".split()]


def _npz(rng: random.Random, canary: str) -> list[Command]:
    path = Path("images.npz")
    path.write_bytes(spoil_npz(rng, path.read_bytes(), canary))
    return [rng.choice((_NEW, f"evaluate {LAST}", f"evaluate {LAST}")).split()]


def _weights(rng: random.Random, canary: str) -> list[Command]:
    path = Path(rng.choice(("weights.pt", "weights.safetensors")))
    if not path.exists():
        path = Path("weights.pt")
    if path.suffix == ".safetensors":
        path.write_bytes(spoil_safetensors(rng, path.read_bytes()))
    elif (choice := rng.random()) < 0.3:
        spoil_content(rng, path)
    else:
        path.write_bytes((_spoil_bytes, spoil_archive_of, _pickle)[int(choice * 3)](rng, path.read_bytes(), canary))
    return [f"{_ON_WEIGHTS} {path}".split()]


def _metrics(rng: random.Random, canary: str) -> list[Command]:
    path = Path("checkpoints/x/metrics.jsonl")
    path.write_bytes(spoil_metrics(rng, path.read_bytes()))
    return [rng.choice(("inspect x", "inspect x --json", "inspect checkpoints/x")).split()]


def _places(rng: random.Random, canary: str) -> list[Command]:
    """Files that are links, pipes, folders or devices, and links that lead out of the run's folders."""
    path = Path(
        rng.choice(
            (
                LAST,
                NETWORK,
                "images.npz",
                "checkpoints/x/metrics.jsonl",
                "generated_nets/x/epoch_000.py",
                "settings.toml",
                "net.py",
                "weights.pt",
            )
        )
    )
    outside = Path("outside")
    outside.mkdir()
    choice = rng.randrange(8)
    if choice == 0:
        path.unlink()
        os.mkfifo(path)
    elif choice == 1:
        path.unlink()
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/dev/full", "/proc/self/mem", "/nowhere", path.name, "/etc/passwd")))
    elif choice == 2:
        path.unlink()
        path.mkdir()
    elif choice == 3:
        path.write_bytes(b"")
        os.truncate(path, 10**13)  # a sparse file
    elif choice == 4:
        shutil.move(path, outside / path.name)
        path.symlink_to((outside / path.name).absolute())
    else:
        folder = Path(rng.choice(("generated_nets/x", "checkpoints/x")))
        shutil.move(folder, outside / folder.name)
        folder.symlink_to((outside / folder.name).absolute())
    return [rng.choice(EVERY_COMMAND).split()]


def _spoil_bytes(rng: random.Random, data: bytes, canary: str) -> bytes:
    return spoil(rng, data)


def spoil_archive_of(rng: random.Random, data: bytes, canary: str) -> bytes:
    """`spoil_archive` with the signature of the others."""
    return spoil_archive(rng, data)


def _pickle(rng: random.Random, data: bytes, canary: str) -> bytes:
    return with_part(data, "data.pkl", lambda pickle: spoil_pickle(rng, pickle, canary))


KINDS: dict[str, Callable[[random.Random, str], list[Command]]] = {
    "checkpoint-bytes": _checkpoint(_spoil_bytes),
    "checkpoint-archive": _checkpoint(spoil_archive_of),
    "checkpoint-pickle": _checkpoint(_pickle),
    "checkpoint-content": _content,
    "network": _network,
    "network-alone": _network_alone,
    "settings": _settings,
    "npz": _npz,
    "weights": _weights,
    "metrics": _metrics,
    "places": _places,
}
"""Each prepares the files, given a random generator and the path that foreign code would create, and returns the commands to run."""
