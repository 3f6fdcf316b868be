"""A bucket over S3's HTTP API, as far as s3fs uses it: objects, multipart uploads, listings. Checked by hand against moto's server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.app.fakes.http_server import serving

BUCKET = "bucket"


class Bucket:
    """`objects` by key, `uploads` in progress; `refused`: answers every write with 503. key_id: the one that may."""

    def __init__(self, key_id: str) -> None:
        self.key_id, self.refused = key_id, False
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.headers: list[str] = []  # all that were sent
        self.numbers = count(1)
        self.url = ""


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.connection.settimeout(30)

        def answer(self, status: int = 200, text: str | bytes = "", **headers: str) -> None:
            body = text.encode() if isinstance(text, str) else text
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("length", str(len(body))))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def error(self, status: int, code: str) -> None:
            self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")

        def handle_one(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bucket.headers.append(str(self.headers))
            parts = urlsplit(self.path)
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            if f"Credential={bucket.key_id}/" not in self.headers.get("Authorization", ""):
                return self.error(403, "InvalidAccessKeyId")
            if name != BUCKET:
                return self.error(404, "NoSuchBucket")
            if bucket.refused and self.command in ("PUT", "POST"):
                return self.error(503, "SlowDown")
            getattr(self, f"on_{self.command.lower()}")(key, query, sent)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

        def on_put(self, key: str, query: dict[str, str], sent: bytes) -> None:
            if "uploadId" in query:
                bucket.uploads[query["uploadId"]][int(query["partNumber"])] = sent
            else:
                bucket.objects[key] = sent
            self.answer(ETag=f'"{hashlib.md5(sent).hexdigest()}"')

        def on_post(self, key: str, query: dict[str, str], sent: bytes) -> None:
            if "uploads" in query:
                number = f"upload-{next(bucket.numbers)}"
                bucket.uploads[number] = {}
                self.answer(
                    200, f"<R><Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><UploadId>{number}</UploadId></R>"
                )
            elif "delete" in query:
                for one in sent.decode().split("<Key>")[1:]:
                    bucket.objects.pop(one.partition("</Key>")[0], None)
                self.answer(200, "<DeleteResult></DeleteResult>")
            else:
                parts = bucket.uploads.pop(query["uploadId"])
                bucket.objects[key] = b"".join(parts[number] for number in sorted(parts))
                self.answer(200, f"<R><Key>{escape(key)}</Key><ETag>x</ETag></R>")

        def on_delete(self, key: str, query: dict[str, str], sent: bytes) -> None:
            if "uploadId" in query:
                bucket.uploads.pop(query["uploadId"])
            else:
                bucket.objects.pop(key, None)
            self.answer(204)

        def on_head(self, key: str, query: dict[str, str], sent: bytes) -> None:
            if key not in bucket.objects:
                return self.answer(404)
            self.answer(200, length=str(len(bucket.objects[key])), ETag='"x"')

        def on_get(self, key: str, query: dict[str, str], sent: bytes) -> None:
            if not key:
                return self.listing(query)
            if key not in bucket.objects:
                return self.error(404, "NoSuchKey")
            content = bucket.objects[key]
            first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
            self.answer(206, content[int(first) : int(last) + 1 if last else None], ETag='"x"')

        def listing(self, query: dict[str, str]) -> None:
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
            keys, inside = [], set()
            for key in sorted(bucket.objects):
                if key.startswith(prefix):
                    below = key[len(prefix) :]
                    if delimiter and delimiter in below:
                        inside.add(prefix + below.partition(delimiter)[0] + delimiter)
                    else:
                        keys.append(key)
            text = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(bucket.objects[key])}</Size><ETag>x</ETag></Contents>"
                for key in keys
            )
            text += "".join(
                f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(inside)
            )
            self.answer(
                200,
                f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{text}</ListBucketResult>",
            )

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def bucket_server(key_id: str, host: str = "127.0.0.1") -> Iterator[Bucket]:
    bucket = Bucket(key_id)
    with serving(_handler(bucket), host) as bucket.url:
        yield bucket
