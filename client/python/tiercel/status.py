"""What came of one block."""

from enum import Enum


class Status(str, Enum):
    """Equal to the strings in BlockResult.status."""

    OK = "OK"  # Served; or stored, or there already.
    MISS = "MISS"  # BlockResult.reason says why.
    EXISTS = "EXISTS"
    BUSY = "BUSY"  # A queue or limit was full: try later.
    CORRUPT = "CORRUPT"  # It was there and failed its checksum.
    TIMEOUT = "TIMEOUT"
    NO_SPACE = "NO_SPACE"  # Put: no room. Get: the buffer is smaller than the value.
    NEEDS_ARTIFACT = "NEEDS_ARTIFACT"  # Get: BlockResult.artifact names it; Client.load_artifact.
    REFUSED = "REFUSED"  # Put: not in this name space, or not by that codec.
    UNAVAILABLE = "UNAVAILABLE"  # The node is down or its breaker is open.

    def __str__(self) -> str:
        return self.value
