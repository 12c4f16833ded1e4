//! HAProxy. It is extended by Lua: a fetch of its own names the backend.

use std::path::Path;

use super::super::{Behind, Decided};
use super::{Config, Ports};

const SCRIPT: &str = r#"core.register_fetches("pool", function(txn)
  if txn.sf:req_hdr("x-tenant") == "t42" then return "beta" end
  return "alpha"
end)
"#;

pub(super) fn config(behind: &Behind, ports: Ports, decided: Decided, own: &Path) -> Config {
    let Behind { alpha, beta, http2, folder } = behind;
    let folder = folder.display();
    let Ports { clear, tls, .. } = ports;
    let (lua, rule) = match decided {
        Decided::No => (String::new(), ""),
        Decided::Native => (String::new(), "use_backend beta if { path_beg /api/ } { req.hdr(x-tenant) -m str t42 }"),
        _ => {
            let script = own.join("decide.lua");
            let _ = std::fs::write(&script, SCRIPT);
            (format!("lua-load {}", script.display()), "use_backend %[lua.pool] if { path_beg /api/ }")
        }
    };
    let text = format!(
        r#"global
  nbthread 1
  maxconn 9000
  {lua}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  option forwardfor
  http-reuse always
  default_backend alpha
frontend clear
  bind {clear}
  use_backend two if {{ path_beg /h2/ }}
  {rule}
frontend tls
  bind {tls} ssl crt {folder}/edge.both alpn h2,http/1.1
  use_backend two if {{ path_beg /h2/ }}
  {rule}
backend alpha
  server one {alpha}
backend beta
  server one {beta}
backend two
  server one {http2} ssl verify none alpn h2 sni str(bench.test)
"#
    );
    Config { name: "haproxy.cfg", text, arguments: vec!["-db", "-f", "FILE"] }
}
