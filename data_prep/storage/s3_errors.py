"""What goes wrong with S3: which failures may pass, and the others in words. Of an answer only its code is told, so
that no message holds credentials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mcjepa.data_prep.errors import AbsentKey, DataError

ABSENT_CODES = ("NoSuchKey", "NotFound", "404")
PASSING_CODES = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
CREDENTIAL_CODES = (
    "403",
    "401",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
)
CONDITION_FAILED, BEHIND_THE_END, TOO_MANY_REQUESTS, NOT_FOUND = 412, 416, 429, 404


class ConditionFailed(DataError):
    """A conditional request found another object under the key.

    Attributes:
        repeated: The request was sent more than once: the object may be its own, put when an answer was lost.
    """

    def __init__(self, message: str, repeated: bool) -> None:
        """Keep whether the request was repeated."""
        super().__init__(message)
        self.repeated = repeated


class EmptySpan(DataError):
    """A range begins at or behind the end of its object."""


class UploadLost(DataError):
    """The server does not know an upload in parts: never begun, or ended already."""


@dataclass(frozen=True)
class ObjectPlace:
    """What a request was about, for messages."""

    location: str
    bucket: str
    endpoint: str
    key: str

    @property
    def server(self) -> str:
        """The server's URL without a user name or password in it."""
        parts = urlsplit(self.endpoint)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "the S3 endpoint"

    def __str__(self) -> str:
        """The location, and the object if there is one."""
        return f"{self.location} (object {self.key})" if self.key else self.location


def client_errors() -> tuple[type[Exception], ...]:
    """Everything that boto3 raises for a request."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError


def broken_body_errors() -> tuple[type[Exception], ...]:
    """What reading a body raises when the connection is lost within it."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    return HTTPClientError, IncompleteReadError, ResponseStreamingError, HTTPError, OSError


def wrong_checksum_error() -> type[Exception]:
    """What botocore raises at the end of a body that does not have its checksum."""
    from botocore.exceptions import FlexibleChecksumError

    return FlexibleChecksumError


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the server is away, overloaded, or an answer broke off."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, ClientError):
        return status_of(error) >= 500 or status_of(error) == TOO_MANY_REQUESTS or code_of(error) in PASSING_CODES
    passing = (ConnectionError, HTTPClientError, ResponseParserError)
    return isinstance(error, passing) and not _is_certificate(error)


def silence(error: Exception, place: ObjectPlace) -> str:
    """What the server does instead of answering."""
    code = code_of(error)
    what = f"answers {code}" if code else f"does not answer ({type(error).__name__})"
    return f"S3 at {place.server} {what}"


def explain(error: Exception, place: ObjectPlace, *, repeated: bool, has_bucket: bool) -> DataError:
    """The error in words: what was found, what was expected, what to do.

    Args:
        error: The client's.
        place: What the request was about.
        repeated: Whether the request was sent before.
        has_bucket: Whether the bucket is known to be there.
    """
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError) and not may_pass(error):
        repeated = repeated or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
        return _explain_refusal(code_of(error), status_of(error), place, repeated, has_bucket)
    if may_pass(error):
        return DataError(
            f"{silence(error, place)}, asked for {place}; expected a working S3 server there; check it and "
            "AWS_ENDPOINT_URL, then run again: finished parts are kept"
        )
    if _is_certificate(error):
        return DataError(
            f"the certificate of {place.server} is not trusted, asked for {place}; expected one that a known "
            "authority signed; set AWS_CA_BUNDLE to the authority's file"
        )
    return DataError(
        f"S3 cannot be used for {place} ({type(error).__name__}: {str(error).partition(chr(10))[0]}); expected "
        "credentials and settings in the standard AWS variables or profile; correct them and run again"
    )


def _explain_refusal(code: str, status: int, place: ObjectPlace, repeated: bool, has_bucket: bool) -> DataError:
    answer = f"{place.server} answered {code} for {place}"
    if code == "NoSuchBucket" or (code in ABSENT_CODES and not has_bucket):
        return DataError(
            f"there is no bucket {place.bucket} at {place.server} (NoSuchBucket), asked for {place}; expected it "
            "there; create it, or correct the location or AWS_ENDPOINT_URL"
        )
    if code in ABSENT_CODES:
        return AbsentKey(f"{answer}: it is absent; expected it there; check the location")
    if code == "NoSuchUpload":
        return UploadLost(f"{answer}; expected the upload that was begun; check what removes uploads, then run again")
    if status == CONDITION_FAILED:
        return ConditionFailed(f"{answer}; expected it unchanged; run again", repeated)
    if status == BEHIND_THE_END:
        return EmptySpan(f"{answer}: it ends before the range; expected a longer object; list the inputs again")
    if code in CREDENTIAL_CODES:
        return DataError(
            f"{answer} (status {status}): the credentials are wrong, expired or may not do this; expected ones that "
            f"may list, read and write in bucket {place.bucket}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, and the machine's clock"
        )
    return DataError(
        f"{answer} (status {status}); expected success; check the server, the bucket's region and AWS_ENDPOINT_URL"
    )


def _is_certificate(error: Exception) -> bool:
    from botocore.exceptions import SSLError

    return isinstance(error, SSLError) and "CERTIFICATE" in str(error).upper()


def code_of(error: Exception) -> str:
    """The code in an answer of the server; empty without an answer."""
    answer = getattr(error, "response", None) or {}  # None for a connection that was lost
    return str(answer.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    """The HTTP status of an answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
