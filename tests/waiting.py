"""Calls that wait for a GPU raise."""

import warnings
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting():
    """Inside, a call that waits for the device raises; outside, none does, whatever happened inside."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "a prototype", says torch after it has set the mode
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
