"""``python -m we_kernels``: print what is available here."""

from .info import format_info, info

print(format_info(info()))
