"""What run_scripts/setup_env.sh hands to uv: what pip was told. That both install the same, CI's own start shows."""

import os
import runpy
import subprocess
import sys

import pytest

from tests import ROOT

SCRIPT = ROOT / "run_scripts/uv_settings.py"
settings = runpy.run_path(str(SCRIPT))["settings"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"extra-index-url": "https://a\nhttps://b"}, {"UV_INDEX": "https://a https://b"}),
        ({"find-links": "/wheels /more"}, {"UV_FIND_LINKS": "/wheels,/more"}),
        ({"cert": "/ca.crt", "client-cert": "/me.pem"}, {"SSL_CERT_FILE": "/ca.crt", "SSL_CLIENT_CERT": "/me.pem"}),
        ({"timeout": "9", "quiet": "1", "progress-bar": "off"}, {"UV_HTTP_TIMEOUT": "9"}),
    ],
)
def test_each_word_of_pips_has_its_word_of_uvs(said, meant):
    assert settings(said) == {"UV_INDEX_STRATEGY": "unsafe-best-match", **meant}


def told(conf, text: str, **variables: str) -> subprocess.CompletedProcess:
    """What the script says where pip reads this file and these variables."""
    conf.write_text(text)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment = {**clean, "PIP_CONFIG_FILE": str(conf), **variables}
    return subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)


def test_what_uv_could_not_be_told_leaves_it_to_pip(tmp_path):
    done = told(tmp_path / "pip.conf", "[install]\nrequire-hashes = yes\n")
    assert done.returncode == 3 and "require-hashes" in done.stderr and not done.stdout


def test_variables_win_over_files_and_sections_over_the_global_one(tmp_path):
    text = "[global]\nindex-url = https://far\nfind-links = /far\n[install]\nfind-links =\n  /near\n  /too\n"
    lines = told(tmp_path / "pip.conf", text, PIP_INDEX_URL="https://near").stdout.splitlines()
    assert "UV_DEFAULT_INDEX=https://near" in lines and "UV_FIND_LINKS=/near,/too" in lines
