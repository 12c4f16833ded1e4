//! The plugins that come with the program.

/// Name and component.
pub(crate) const BUILTIN: [(&str, &[u8]); 4] = [
    ("tenant-canary", include_bytes!("../../../plugins/tenant-canary/tenant_canary.wasm")),
    ("latency-aware", include_bytes!("../../../plugins/latency-aware/latency_aware.wasm")),
    ("private-forwarding", include_bytes!("../../../plugins/private-forwarding/private_forwarding.wasm")),
    ("careful-retry", include_bytes!("../../../plugins/careful-retry/careful_retry.wasm")),
];

pub(crate) fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}
