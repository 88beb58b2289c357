"""The official npm client, where Node.js is installed."""

import json
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="Node.js is not installed")
def test_npm_openai(proxy):
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=HERE, check=True, capture_output=True)
    out = subprocess.run(["node", "client.mjs", proxy.url + "/v1", proxy.key], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    seen = json.loads(out.stdout)
    assert seen["streamed"] == seen["whole"] and len(seen["whole"]) > 20
    assert seen["error"] == 404
    assert "oracle" in seen["models"]
