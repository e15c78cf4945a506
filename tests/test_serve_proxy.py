"""The page behind real proxies, configured as docs/serve.md says."""

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`")

from test_serve_browser import needs_chromium, opened, served_in_thread, text
from test_serve_page import make_certificate
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from recipes.study.screenshot import chromium
from speech.console import DEMO
from speech.serve.security import Access, Machines

DOCS = Path(__file__).parents[1] / "docs" / "serve.md"
OPTIONS = {"nginx": ["-g", "daemon off;", "-c"], "caddyfile": ["run", "--adapter", "caddyfile", "--config"]}
PREAMBLE = {"nginx": "pid {}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n",
            "caddyfile": "{{\nadmin off\nauto_https off\n}}\n"}  # fmt: skip


def configuration(block: str, folder: Path, port: int, server_port: int) -> Path:
    """The block of docs/serve.md for a server at another port, with a certificate for `localhost`."""
    found = re.search(rf"```{block}\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found
    certificate, key = map(str, make_certificate(folder))
    config = found[1]
    for old, new in (
        (":8765", f":{server_port}"),
        ("listen 443", f"listen {port}"),
        ("speech.example.org {", f"https://localhost:{port} {{"),
        ("speech.example.org", "localhost"),
        ("/etc/ssl/speech.pem", certificate),
        ("/etc/ssl/speech.key", key),
        ("    redir ", f"    tls {certificate} {key}\n    redir "),
    ):
        config = config.replace(old, new)
    path = folder / "proxy.conf"
    path.write_text(PREAMBLE[block].format(folder) + config + ("}\n" if block == "nginx" else ""))
    return path


@pytest.fixture(params=["nginx", "caddyfile"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of the page through a proxy, without the last slash."""
    name = request.param.removesuffix("file")
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"needs {name}")
    access = Access("127.0.0.1", 0, "right-token", names=("localhost",), base_path="/speech",
                    proxies=Machines(["127.0.0.1"]))  # fmt: skip
    with served_in_thread(access) as server, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        config = configuration(request.param, tmp_path, port, server.access.port)
        probe.close()
        command = [program, *OPTIONS[request.param], config]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={"HOME": str(tmp_path)}) as proxy:
            try:
                while socket.socket().connect_ex(("127.0.0.1", port)):
                    assert proxy.poll() is None
                    time.sleep(0.05)
                yield f"https://localhost:{port}/speech"
            finally:
                proxy.terminate()


def test_only_the_page_of_the_proxy_opens_the_socket(address: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    more: dict[str, Any] = {"ssl": context, "subprotocols": ["speech.v1", "token.right-token"]}
    place, origin = f"{address}/socket".replace("https", "wss"), address.removesuffix("/speech")
    with connect(place, origin=origin, **more) as client:
        assert '"ready"' in str(client.recv())
    for wrong in ("https://evil.example", origin.replace("https", "http"), "https://localhost"):
        with pytest.raises(InvalidStatus, match="403"), connect(place, origin=wrong, **more):
            pass


@needs_chromium
def test_the_page_works_in_a_browser(address: str) -> None:
    with chromium(DEMO) as browser:
        browser.get(f"{address}#right-token")
        assert browser.current_url == f"{address}/#right-token", "the proxy or the server adds the slash"
        opened(browser, f"{address}/#right-token")
        assert "20 words" in text(browser, "about")
