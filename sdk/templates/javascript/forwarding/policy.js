// Tells the upstream a label in place of the client's address, and nothing of the hops before it.

import { proposed, setElements } from "tidegate:policy/identity@0.1.0";

/// An obfuscated identifier: it begins with an underscore (RFC 7239, section 6.3).
let label = "_client";

export const plugin = {
  // An error is thrown as the text that the gateway shows.
  configure(given) {
    const settings = JSON.parse(given);
    for (const key of Object.keys(settings)) {
      if (key !== "label") throw `${key}: no such setting`;
    }
    label = settings.label ?? "_client";
    if (typeof label !== "string" || !/^_[A-Za-z0-9._-]*$/.test(label)) {
      throw `label: ${JSON.stringify(label)} is not an underscore and letters, digits, . _ or -`;
    }
  },
  settingsSchema() {
    return undefined;
  },
};

export const forwarding = {
  identify() {
    const nearest = proposed().at(-1);
    if (nearest === undefined) return;
    nearest.for = { tag: "obfuscated", val: label };
    try {
      setElements([nearest]);
    } catch {
      // A chain that cannot be written leaves the configured rule in force.
    }
  },
};
