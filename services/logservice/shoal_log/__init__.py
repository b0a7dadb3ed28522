"""The log service: append with group commit, read index, tails, trimming. `LogService` is the way in."""

from shoal_log.heads import CommittedHeads
from shoal_log.log import LogService
from shoal_log.settings import AppendSettings, LogCounters, LogSettings, TailSettings, TrimSettings
from shoal_log.trim import TrimReport

__all__ = [
    "AppendSettings",
    "CommittedHeads",
    "LogCounters",
    "LogService",
    "LogSettings",
    "TailSettings",
    "TrimReport",
    "TrimSettings",
]
