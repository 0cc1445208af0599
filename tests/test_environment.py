"""What run_scripts/setup_env.sh hands to uv: what pip was told. That both install the same, CI's own start shows."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests import ROOT

SCRIPT = ROOT / "run_scripts/uv_settings.py"
specification = importlib.util.spec_from_file_location("uv_settings", SCRIPT)
uv_settings = importlib.util.module_from_spec(specification)
specification.loader.exec_module(uv_settings)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"index-url": "https://a/simple"}, {"UV_DEFAULT_INDEX": "https://a/simple"}),
        ({"extra-index-url": "https://a\nhttps://b"}, {"UV_INDEX": "https://a https://b"}),
        ({"find-links": "/wheels /more"}, {"UV_FIND_LINKS": "/wheels,/more"}),
        ({"constraint": "/c.txt", "trusted-host": "a b"}, {"UV_CONSTRAINT": "/c.txt", "UV_INSECURE_HOST": "a b"}),
        ({"cert": "/ca.crt", "client-cert": "/me.pem"}, {"SSL_CERT_FILE": "/ca.crt", "SSL_CLIENT_CERT": "/me.pem"}),
        ({"proxy": "http://p:1", "no-index": "1"}, {"ALL_PROXY": "http://p:1", "UV_NO_INDEX": "1"}),
        ({"timeout": "9", "quiet": "1", "progress-bar": "off"}, {"UV_HTTP_TIMEOUT": "9"}),
    ],
)
def test_each_word_of_pips_has_its_word_of_uvs(said, meant):
    assert uv_settings.settings(said) == {"UV_INDEX_STRATEGY": "unsafe-best-match", **meant}


def test_what_uv_could_not_be_told_leaves_it_to_pip(tmp_path):
    (tmp_path / "pip.conf").write_text("[install]\nrequire-hashes = yes\n")
    environment = {**os.environ, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "require-hashes" in done.stderr and not done.stdout


def test_variables_win_over_files_and_sections_over_the_global_one(tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://far\nfind-links = /far\n[install]\nfind-links =\n  /near\n  /too\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_INDEX_URL": "https://near"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert "UV_DEFAULT_INDEX=https://near" in told and "UV_FIND_LINKS=/near,/too" in told
