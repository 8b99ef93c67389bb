"""Names for the parts of a network file: layers and tensors that tracing finds or a change declares, and local variables."""

from collections.abc import Collection


def free_name(base: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: `base`, or `base` with a number from 2, such as `branch_2`."""
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
