"""Autocast over loops of which the last alone carry gradient."""

import torch


def forget_casts(device: torch.device) -> None:
    """Forget what autocast has cast, where it is on, so that it casts anew.

    Older versions of torch take a weight that was cast without gradient for runs that carry it, and lose its gradient
    (pytorch/pytorch, issue 65766 and pull request 165068).
    """
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()
