"""Goes elsewhere where the origin was not reached, and waits for one that is overloaded."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import retry
from wit_world.imports import attempt

UNREACHED = (attempt.Cause_Connect, attempt.Cause_Tls, attempt.Cause_RefusedStream, attempt.Cause_GoAway)

# Most attempts that are followed by another; milliseconds that an overloaded origin is given.
attempts, pause_ms = 2, 50


class Plugin(exports.Plugin):
    def configure(self, given):
        global attempts, pause_ms
        settings = json.loads(given)
        for key in settings:
            if key not in ("attempts", "pause_ms"):
                raise Err(f"{key}: no such setting")
        attempts = number(settings, "attempts", 2, 1, 10)
        pause_ms = number(settings, "pause_ms", 50, 0, 10_000)

    def settings_schema(self):
        return None


def number(settings, key, default, least, most):
    value = settings.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise Err(f"{key}: not from {least} to {most}")
    return value


class Retry(exports.Retry):
    def decide(self):
        if attempt.number() > attempts:
            return retry.Verdict_Stop()
        failure = attempt.failure()
        if isinstance(failure, UNREACHED):
            return retry.Verdict_Elsewhere(0)
        if isinstance(failure, attempt.Cause_Status) and failure.value == 503:
            return retry.Verdict_Again(pause_ms * 1_000_000)
        return retry.Verdict_Stop()
