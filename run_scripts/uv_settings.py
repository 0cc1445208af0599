"""What pip's variables and configuration files say, as uv's variables: a line each, ``NAME=value``.

uv reads nothing of pip's: an index, a certificate or a folder of wheels that pip was told of would be unknown to it.
Exit status 3, and the name on stderr, where pip was told something that has no word here: then pip has to install.
"""

import ast
import subprocess
import sys

# pip's option -> uv's variable; the values of lists are separated by white space in pip
ONE = {
    "index-url": "UV_DEFAULT_INDEX",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "no-index": "UV_NO_INDEX",
    "cache-dir": "UV_CACHE_DIR",
    "no-cache-dir": "UV_NO_CACHE",
}
SEVERAL = {
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}
# what changes neither what is installed nor from where
QUIET = {
    "break-system-packages", "config-file", "disable-pip-version-check", "exists-action", "log", "no-color", "no-input",
    "no-warn-script-location", "prefer-binary", "progress-bar", "quiet", "require-virtualenv", "retries",
    "root-user-action", "use-deprecated", "use-feature", "verbose",
}  # fmt: skip


def said(listing: str) -> dict[str, str]:
    """Options of ``pip config list``; what stands nearer wins: variables over ``install`` over ``global``."""
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section, -1)
        if rank >= found.get(option, (0, ""))[0]:
            found[option] = rank, ast.literal_eval(value)
    return {option: value for option, (_, value) in found.items()}


def settings(options: dict[str, str]) -> dict[str, str]:
    """uv's variables. Raises ``KeyError`` with the name of an option that has no word in uv's."""
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # all indexes are one, as for pip
    for option, value in options.items():
        if option in SEVERAL:
            name, separator = SEVERAL[option]
            variables[name] = separator.join(value.split())
        elif option in ONE:
            variables[ONE[option]] = value
        elif option not in QUIET:
            raise KeyError(option)
    return variables


if __name__ == "__main__":
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    try:
        print("\n".join(f"{name}={value}" for name, value in settings(said(listing.stdout)).items()))
    except KeyError as unknown:
        print(f"pip's option {unknown.args[0]!r} has no counterpart", file=sys.stderr)
        sys.exit(3)
