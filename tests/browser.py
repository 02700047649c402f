"""What a headless Chromium makes of a page."""

import shutil
import subprocess

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
"""None where there is none."""


def rendered(page, profile, size="1200,900"):
    """The document of a file after its scripts ran, as HTML; ``profile``: a folder for the browser."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}", "--dump-dom")
    return subprocess.run(
        [BROWSER, *options, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
