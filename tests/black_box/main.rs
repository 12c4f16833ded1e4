//! Black-box tests: a module per subject, each test starts the real program. See `tidegate_tests` for the harness.

mod admin;
mod buffering;
mod callouts;
mod cli;
mod client_cert;
mod compression;
mod connect;
mod connect_udp;
mod drain;
mod early_data;
mod edge;
mod examples;
mod faults;
mod framing;
mod grpc;
mod handshakes;
mod health;
mod hedging;
mod hostile;
mod hot_reload;
mod http1;
mod http2;
mod http2_upstream;
mod http3;
mod http3_loss;
mod http3_upstream;
mod matrix;
mod passthrough;
mod plugin_toolkit;
mod plugins;
mod pooling;
mod proxy_peers;
mod proxy_protocol;
mod proxy_upstream;
mod quic_passthrough;
mod reload;
mod retry;
mod rollout;
mod shadow;
mod shipping;
mod shipping_versions;
mod soak;
mod steer;
mod streaming;
mod tenants;
mod timeouts;
mod tls;
mod tunnel;
mod tunnel_router;
mod udp_tunnel;
mod websocket;

use tidegate_tests::{Client, Gateway, Origin};

/// A clear-text listener, one cluster of these endpoints, one route to it; `more` goes into the cluster.
fn simple(endpoints: &[std::net::SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n\
         [[cluster]]\nname = \"api\"\nendpoints = [{}]\n{more}\n\
         [[route]]\nname = \"all\"\ncluster = \"api\"\n",
        endpoints.join(", ")
    )
}

async fn gateway_to(endpoint: std::net::SocketAddr) -> Gateway {
    Gateway::start(&simple(&[endpoint], "")).await
}

/// 24 clients at once are all answered, and the origin sees fewer connections than clients.
async fn streams_share_connections(gateway: &Gateway, origin: &Origin) {
    let clients = (0..24).map(|_| {
        let client = Client::http1(gateway.edge());
        tokio::spawn(async move {
            client.get("/").await.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.expect("no panic"), Ok(200));
    }
    assert_eq!(origin.record().len(), 24);
    assert!(origin.connections() < 24, "{} connections", origin.connections());
}
