//! Caddy. It is extended by expressions in CEL, compiled as it starts.

use std::net::SocketAddr;

use super::super::{Behind, Decided};
use super::{Config, Ports};

pub(super) fn config(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { alpha, beta, http2, folder } = behind;
    let folder = folder.display();
    let to = |origin: &SocketAddr| {
        format!(
            "reverse_proxy {origin} {{\n      transport http {{\n        keepalive_idle_conns_per_host 1024\n      }}\n    }}"
        )
    };
    let (pass, pass_beta) = (to(alpha), to(beta));
    let rule = match decided {
        Decided::No => String::new(),
        Decided::Native => {
            format!(
                "@beta {{\n    path /api/*\n    header x-tenant t42\n  }}\n  handle @beta {{\n    {pass_beta}\n  }}\n  "
            )
        }
        _ => format!(
            "@beta expression `{{http.request.uri.path}}.startsWith(\"/api/\") && {{http.request.header.x-tenant}} == \"t42\"`\n  \
             handle @beta {{\n    {pass_beta}\n  }}\n  "
        ),
    };
    let site = format!(
        "{rule}handle /h2/* {{\n    reverse_proxy https://{http2} {{\n      transport http {{\n        versions 2\n        \
         tls_server_name bench.test\n        tls_trust_pool file {folder}/ca.pem\n      }}\n    }}\n  }}\n  handle {{\n    {pass}\n  }}\n"
    );
    let text = format!(
        "{{\n  admin off\n  auto_https off\n  persist_config off\n  log {{\n    level ERROR\n  }}\n}}\nhttp://:{clear} {{\n  bind 127.0.0.1\n  {site}}}\n\
         https://bench.test:{tls} {{\n  bind 127.0.0.1\n  tls {folder}/edge.pem {folder}/edge.key\n  {site}}}\n",
        clear = ports.clear.port(),
        tls = ports.tls.port(),
    );
    Config { name: "Caddyfile", text, arguments: vec!["run", "--config", "FILE", "--adapter", "caddyfile"] }
}
