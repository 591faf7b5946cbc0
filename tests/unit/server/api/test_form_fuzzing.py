"""Broken and hostile multipart forms: an upload is stored, or refused by name, and nothing else happens.

More, at random, by hand: REFT_TEST_FUZZ_EXAMPLES=100000.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.hostile_files import GOOD

NUM_EXAMPLES = int(os.environ.get("REFT_TEST_FUZZ_EXAMPLES", "300"))
FILE = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
NAME = b'--edge\r\nContent-Disposition: form-data; name="name"\r\n\r\nstyle\r\n'
PIECES = st.one_of(
    st.sampled_from(
        [
            *(
                FILE,
                NAME,
                FILE + GOOD + b"\r\n",
                b"--edge\r\n",
                b"--edge--\r\n",
                b"\r\n--edge\r\n",
                b"\r\n--edge--\r\n",
                b"--edge",
                b"\r\n",
                b"\n",
                b"",
            ),
            b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
            b'Content-Disposition: form-data; name="file"\r\n\r\n',
            b'Content-Disposition: form-data; name="name"\r\n\r\nstyle',
            b'Content-Disposition: form-data; name="name"\r\n\r\n../../x',
            b'Content-Disposition: form-data; name="' + b"n" * 3000 + b'"\r\n\r\n',
            b"Content-Disposition: form-data; name*=utf-8''f%69le; filename*=utf-8''%2e%2e%2fx\r\n\r\n",
            b"Content-Disposition: form-data\r\nContent-Disposition: form-data; name=file\r\n\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"Content-Encoding: gzip\r\n",
            b"X-" + b"h" * 5000 + b": v\r\n",
            b"v" * 2000,
            b"\x00\xff\r\n: \r\n",
            GOOD,
            GOOD[:200],
        ]
    ),
    st.binary(max_size=40),
)
TYPES = st.sampled_from(
    [
        *["multipart/form-data; boundary=edge"] * 6,
        'multipart/form-data; boundary="edge"; charset=utf-16',
        "multipart/form-data; boundary=" + "e" * 300,
        "multipart/form-data; boundary=",
        "multipart/form-data",
        "multipart/form-data; boundary=edge; boundary=other",
        "multipart/mixed; boundary=edge",
        "application/x-www-form-urlencoded",
        "\x7f;=;",
        "",
    ]
)


@settings(
    max_examples=NUM_EXAMPLES,
    derandomize=NUM_EXAMPLES <= 300,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@example([NAME, FILE, GOOD, b"\r\n--edge--\r\n"], "multipart/form-data; boundary=edge", 0)
@given(pieces=st.lists(PIECES, max_size=12), kind=TYPES, cut=st.integers(0, 3))
def test_form_is_stored_or_refused_by_name(
    client: TestClient, tmp_path: Path, pieces: list[bytes], kind: str, cut: int
) -> None:
    body = b"".join(pieces)
    response = client.post(
        "/v1/interventions?name=style", content=body[: len(body) - cut], headers={"content-type": kind}
    )
    assert len(response.content) < 4096
    if response.status_code != 201:
        assert response.status_code in (400, 413, 422), response.text
        error = json.loads(response.text)["error"]
        assert error["message"].isprintable()
        assert (error["param"] or "-").isprintable()
    listed = client.get("/v1/interventions").json()["data"]
    assert {info["name"] for info in listed} <= {"style"}
    assert not list(tmp_path.rglob("*.upload"))
