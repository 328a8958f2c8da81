"""The write-ahead log: what was appended is there after a SIGKILL, and what can't be written stops nobody.

`Log` is what a gateway process has. One folder holds the log of all of them:

    segments/0/           one writer's: a process at a time, whoever has its lock
        0000000007.log    a closed segment: nothing is added to it any more
        0000000008.open   the one that is being written
        lock, id          who may write here, and what the table calls this writer
    table/, feedback/     where closed segments go (`flywheel.table`)
"""

from flywheel.log.appending import Durability, Log

__all__ = ["Durability", "Log"]
