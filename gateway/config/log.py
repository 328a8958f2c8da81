"""What may stand under ``log`` in a configuration file? Where requests are recorded, and how much of what is said."""

from typing import Annotated

import msgspec
from msgspec import Meta

from flywheel.content import Mode
from flywheel.log import Durability
from gateway.config.values import Seconds, Size


class RequestLog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where requests are recorded; without this section, nowhere."""

    path: Annotated[str, Meta(description="the folder, which belongs to Penstock alone")]
    content: Annotated[
        Mode,
        Meta(
            description="what is kept of what is said: full, redacted (without e-mail addresses, card numbers and the "
            "like), hash (so that equal texts are seen to be equal) or none"
        ),
    ] = "full"
    durability: Annotated[
        Durability,
        Meta(
            description="os: what is answered is recorded even if the process is killed; disk: also if the machine "
            "stops, for a few milliseconds more before each answer's end"
        ),
    ] = "os"
    retain: Annotated[
        Seconds | None, Meta(description="how long requests are kept, in whole days, such as 30d; default: for ever")
    ] = None
    retain_size: Annotated[
        Size | None, Meta(description="how large the table may become before its oldest days go; default: any")
    ] = None
