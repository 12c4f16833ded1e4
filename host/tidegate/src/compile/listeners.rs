//! Listeners: addresses, limits, certificates.

use std::sync::Arc;

use tidegate_config::{ClientAuthMode, Listener as ListenerConfig, ListenerTls, TrustedFields};
use tidegate_policy::native::TrustedFamily;
use tidegate_proxy::snapshot::{AcceptProxyHeader, Limits, Listener, Protocols};
use tidegate_proxy::{Allowance, CertificatePair, ClientAuth, LeastRate, ServerTls, ServerTlsSpec};

use super::Scope;

pub(super) fn compile(scope: &mut Scope<'_>) -> Option<Vec<Arc<Listener>>> {
    let config = scope.config;
    // All of them first: what is wrong with the others is told too.
    let compiled: Vec<_> = config.listeners.iter().map(|listener| compile_one(scope, listener)).collect();
    compiled.into_iter().collect()
}

fn compile_one(scope: &mut Scope<'_>, config: &ListenerConfig) -> Option<Arc<Listener>> {
    let tls = match &config.tls {
        None => None,
        Some(tls) => Some(server_tls(scope, config, tls)?),
    };
    let rate = |bytes_per_second| LeastRate { bytes_per_second, grace: config.rate_grace };
    let previous = scope
        .previous
        .and_then(|previous| previous.snapshot.listeners.iter().find(|known| *known.name == *config.name).cloned());
    Some(Arc::new(Listener {
        name: config.name.as_str().into(),
        address: config.address,
        protocols: Protocols { http1: config.http1, http2: config.http2, http3: config.http3 },
        limits: Limits {
            max_connections: config.max_connections,
            max_header_bytes: config.max_header_bytes,
            max_headers: config.max_headers,
            max_streams: config.max_streams,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            body_idle_timeout: config.body_idle_timeout,
            handshake_timeout: config.handshake_timeout,
            max_requests_per_connection: config.max_requests_per_connection,
            upload_rate: config.min_upload_rate.map(rate),
            download_rate: config.min_download_rate.map(rate),
        },
        trusted_proxies: config.trusted_proxies.clone().into(),
        proxy_protocol: config.proxy_protocol.as_ref().map(|accept| AcceptProxyHeader {
            required: accept.required,
            trusted: accept.trusted.clone().into(),
            timeout: accept.timeout,
        }),
        trusted_family: match config.trusted_family {
            TrustedFields::Auto => TrustedFamily::Auto,
            TrustedFields::Forwarded => TrustedFamily::Forwarded,
            TrustedFields::XForwarded => TrustedFamily::XForwarded,
        },
        tls,
        alt_svc: config.alt_svc && config.http3,
        buffer_memory: config.buffer_memory.map(|most| {
            let held = previous.as_ref().and_then(|previous| previous.buffer_memory.as_ref());
            Allowance::new(most, held)
        }),
    }))
}

/// The previous configuration's, where nothing it is made of has changed: then the tickets that clients hold stay good.
fn server_tls(scope: &mut Scope<'_>, listener: &ListenerConfig, tls: &ListenerTls) -> Option<Arc<ServerTls>> {
    let mut certificates = Vec::new();
    let mut whole = true;
    for pair in &tls.certificates {
        let chain = scope.read(pair.line, &pair.certificate);
        let key = scope.read(pair.line, &pair.key);
        match (chain, key) {
            (Some(chain), Some(key)) => {
                let pair_of = |pair: &CertificatePair| ServerTlsSpec {
                    certificates: vec![pair.clone()],
                    tls13_only: false,
                    client_ca: None,
                    http1: true,
                    http2: true,
                    http3: false,
                };
                let files = CertificatePair { chain, key };
                // One by one first, so that the error names the pair.
                if let Err(error) = ServerTls::new(pair_of(&files)) {
                    scope.error(pair.line, format!("{}: {error}", pair.certificate.display()));
                    whole = false;
                }
                certificates.push(files);
            }
            _ => whole = false,
        }
    }
    let client_ca = match &tls.client_ca {
        None => None,
        Some((path, mode)) => {
            let auth = match mode {
                ClientAuthMode::Required => ClientAuth::Required,
                ClientAuthMode::Optional => ClientAuth::Optional,
            };
            Some((scope.read(tls.client_ca_line, path)?, auth))
        }
    };
    if !whole {
        return None;
    }
    let spec = ServerTlsSpec {
        certificates,
        tls13_only: tls.tls13_only,
        client_ca,
        http1: listener.http1,
        http2: listener.http2,
        http3: listener.http3,
    };
    let previous = scope.previous.and_then(|previous| {
        let listeners = &previous.snapshot.listeners;
        listeners.iter().find(|known| *known.name == *listener.name)?.tls.clone()
    });
    if let Some(same) = previous.filter(|tls| tls.is_of(&spec)) {
        return Some(same);
    }
    match ServerTls::new(spec) {
        Ok(tls) => Some(Arc::new(tls)),
        Err(error) => {
            scope.error(tls.client_ca_line, format!("listener {:?}: tls: {error}", listener.name));
            None
        }
    }
}
