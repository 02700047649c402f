"""``python -m we_kernels``: print what is available here."""

import sys

from .info import format_info, info

known = sys.stdout.encoding or "ascii"  # the locale's, which may not have all letters of a path or a compiler's message
print(format_info(info()).encode(known, "backslashreplace").decode(known))
