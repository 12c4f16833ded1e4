//! Listeners: addresses, limits, certificates.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_config::{
    CertificateFiles, ClientAuthMode, Listener as ListenerConfig, ListenerTls, TrustedFields, Tunnel,
};
use tidegate_policy::native::{TrustedFamily, TunnelRule, TunnelTable};
use tidegate_proxy::snapshot::{AcceptProxyHeader, Cluster, Limits, Listener, Otherwise, Protocols, TunnelRules};
use tidegate_proxy::{
    Allowance, CertificatePair, ClientAuth, LeastRate, NamedCertificate, Remembered, ServerTls, ServerTlsSpec,
};

use super::Scope;
use super::clusters::Kept;
use super::routes::host;

pub(super) fn compile(scope: &mut Scope<'_>, clusters: &HashMap<String, Kept>) -> Option<Vec<Arc<Listener>>> {
    let config = scope.config;
    // All of them first: what is wrong with the others is told too.
    let compiled: Vec<_> = config.listeners.iter().map(|listener| compile_one(scope, listener, clusters)).collect();
    compiled.into_iter().collect()
}

fn compile_one(
    scope: &mut Scope<'_>,
    config: &ListenerConfig,
    clusters: &HashMap<String, Kept>,
) -> Option<Arc<Listener>> {
    let tunnel = config.tunnel.as_ref().map(|tunnel| tunnel_rules(scope, config, tunnel, clusters));
    let tls = match &config.tls {
        None => None,
        Some(tls) => Some(server_tls(scope, config, tls)?),
    };
    // One whose cluster or plugin did not compile was noted.
    let tunnel = match tunnel {
        Some(rules) => Some(rules?),
        None => None,
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
        tunnel,
        alt_svc: config.alt_svc && config.http3,
        buffer_memory: config.buffer_memory.map(|most| {
            let held = previous.as_ref().and_then(|previous| previous.buffer_memory.as_ref());
            Allowance::new(most, held)
        }),
    }))
}

fn tunnel_rules(
    scope: &mut Scope<'_>,
    config: &ListenerConfig,
    tunnel: &Tunnel,
    clusters: &HashMap<String, Kept>,
) -> Option<TunnelRules> {
    let cluster = |name: &String| -> Option<Arc<Cluster>> { clusters.get(name).map(|kept| kept.cluster.clone()) };
    let rule = |route: &tidegate_config::TunnelRoute| TunnelRule {
        names: route.server_names.iter().map(host).collect(),
        alpn: route.alpn.iter().map(|name| name.clone().into_bytes()).collect(),
    };
    let router = scope.asked(tunnel.router.as_deref(), tunnel.router_line, "tunnel", |plugin| plugin.tunnel_router());
    Some(TunnelRules {
        tcp: tunnel.tcp,
        udp: tunnel.udp,
        table: TunnelTable::new(tunnel.routes.iter().map(rule).collect()),
        clusters: tunnel.routes.iter().map(|route| cluster(&route.cluster)).collect::<Option<_>>()?,
        router,
        otherwise: match &tunnel.cluster {
            Some(name) => Otherwise::Cluster(cluster(name)?),
            None if config.tls.is_some() => Otherwise::Terminate,
            None => Otherwise::Close,
        },
        hello_timeout: tunnel.hello_timeout,
        connect_attempts: tunnel.connect_attempts,
        idle_timeout: tunnel.idle_timeout,
        udp_idle_timeout: tunnel.udp_idle_timeout,
        max_lifetime: tunnel.max_lifetime,
    })
}

/// The previous configuration's, where nothing it is made of has changed: then the tickets that clients hold stay good.
fn server_tls(scope: &mut Scope<'_>, listener: &ListenerConfig, tls: &ListenerTls) -> Option<Arc<ServerTls>> {
    // All of them first, as above.
    let certificates: Vec<_> = tls.certificates.iter().map(|files| named_certificate(scope, files)).collect();
    let spec = ServerTlsSpec {
        certificates: certificates.into_iter().collect::<Option<_>>()?,
        tls13_only: tls.tls13_only,
        http1: listener.http1,
        http2: listener.http2,
        http3: listener.http3,
        early_data: tls
            .early_data
            .then_some(Remembered { max_streams: listener.max_streams, max_header_bytes: listener.max_header_bytes }),
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
            scope.error(listener.line, format!("listener {:?}: tls: {error}", listener.name));
            None
        }
    }
}

/// Built once by itself, so that an error names the pair, or the roots.
fn named_certificate(scope: &mut Scope<'_>, files: &CertificateFiles) -> Option<NamedCertificate> {
    let chain = scope.read(files.line, &files.certificate);
    let key = scope.read(files.line, &files.key);
    let client = files.client.as_ref().map(|client| scope.read(client.line, &client.ca).map(|pem| (pem, client)));
    let pair = CertificatePair { chain: chain?, key: key? };
    let alone = |named: NamedCertificate| {
        let (http1, http2, http3) = (true, true, false);
        ServerTls::new(ServerTlsSpec {
            certificates: vec![named],
            tls13_only: false,
            http1,
            http2,
            http3,
            early_data: None,
        })
    };
    let mut named = NamedCertificate { pair, names: files.names.clone(), client: None };
    if let Err(error) = alone(named.clone()) {
        scope.error(files.line, format!("{}: {error}", files.certificate.display()));
        return None;
    }
    if let Some(client) = client {
        let (pem, client) = client?;
        let auth = match client.auth {
            ClientAuthMode::Required => ClientAuth::Required,
            ClientAuthMode::Optional => ClientAuth::Optional,
        };
        named.client = Some((pem, auth));
        if let Err(error) = alone(named.clone()) {
            scope.error(client.line, format!("{}: {error}", client.ca.display()));
            return None;
        }
    }
    Some(named)
}
