// Goes elsewhere where the origin was not reached, and waits for one that is overloaded.

import { failure, number } from "tidegate:policy/attempt@0.1.0";

const unreached = ["connect", "tls", "refused-stream", "go-away"];

/// Most attempts that are followed by another; milliseconds that an overloaded origin is given.
let attempts = 2;
let pauseMs = 50;

export const plugin = {
  // An error is thrown as the text that the gateway shows.
  configure(given) {
    const settings = JSON.parse(given);
    for (const key of Object.keys(settings)) {
      if (key !== "attempts" && key !== "pause_ms") throw `${key}: no such setting`;
    }
    attempts = whole(settings, "attempts", 2, 1, 10);
    pauseMs = whole(settings, "pause_ms", 50, 0, 10000);
  },
  settingsSchema() {
    return undefined;
  },
};

function whole(settings, key, usual, least, most) {
  const value = settings[key] ?? usual;
  if (!Number.isInteger(value) || value < least || value > most) throw `${key}: not from ${least} to ${most}`;
  return value;
}

export const retry = {
  decide() {
    if (number() > attempts) return { tag: "stop" };
    const cause = failure();
    if (unreached.includes(cause.tag)) return { tag: "elsewhere", val: 0n };
    if (cause.tag === "status" && cause.val === 503) return { tag: "again", val: BigInt(pauseMs) * 1000000n };
    return { tag: "stop" };
  },
};
