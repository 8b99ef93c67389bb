"""Names that other programs give to settings of `prunetrain train`, for messages. In: a name as a user wrote it. Out: ours."""

from typing import Final

_SYNONYMS: Final = {  # setting: what other programs call it
    "model": ("arch", "architecture", "net", "network", "model_name", "backbone"),
    "weights": ("pretrained", "init_weights"),
    "data-dir": ("data", "data_path", "data_root", "dataset_path", "dataset_dir", "root"),
    "val-split": ("val_ratio", "val_share", "validation_split", "test_split"),
    "image-size": ("img_size", "imgsz", "input_size", "resolution", "size", "crop_size"),
    "grey": ("gray", "grayscale", "greyscale"),
    "epochs": ("num_epochs", "n_epochs", "max_epochs", "epoch"),
    "batch-size": ("batch", "bs", "train_batch_size"),
    "optimizer": ("opt", "optim", "optimiser"),
    "lr": ("learning_rate", "base_lr", "init_lr", "initial_lr"),
    "weight-decay": ("wd", "decay", "l2"),
    "schedule": ("scheduler", "lr_scheduler", "lr_schedule", "lr_policy"),
    "milestones": ("lr_milestones", "lr_steps", "lr_epochs"),
    "lr-gamma": ("gamma", "lr_decay"),
    "warmup-epochs": ("warmup", "warm_up"),
    "label-smoothing": ("smoothing",),
    "augment": ("augmentation", "aug"),
    "target-macs": ("target_flops", "flops", "macs", "keep_macs"),
    "rate": ("pruning_rate", "prune_rate", "pruning_ratio", "prune_ratio", "sparsity"),
    "amp": ("mixed_precision", "precision", "fp16", "bf16", "half"),
    "workers": ("num_workers", "loader_workers"),
    "device": ("cuda",),
    "seed": ("random_seed", "manual_seed"),
    "name": ("run_name", "exp_name", "experiment", "run"),
    "output-dir": ("output", "out", "out_dir", "output_path", "save_dir", "save_path", "log_dir"),
}


def synonym_of(word: str) -> str | None:
    """The setting that other programs call this; None if there is none."""
    name = word.lower().replace("-", "_")
    return next((setting for setting, words in _SYNONYMS.items() if name in words), None)
