//! nginx. It is extended by njs, its own JavaScript: a variable is what a function answers.

use std::path::Path;

use super::super::{Behind, Decided};
use super::{Config, Ports};
use crate::peer;

const SCRIPT: &str = "function pool(request) {
  return request.headersIn['x-tenant'] === 't42' ? 'beta' : 'alpha';
}
export default { pool };
";

/// `None` where the JavaScript module is asked for and not there: `tests/setup` fetches it.
pub(super) fn config(behind: &Behind, ports: Ports, decided: Decided, own: &Path) -> Option<Config> {
    let Behind { alpha, beta, folder, .. } = behind;
    let folder = folder.display();
    let Ports { clear, tls, .. } = ports;
    let (mut module, mut rule, mut pass) = (String::new(), "", "http://alpha");
    match decided {
        Decided::Native => {
            (rule, pass) = ("map $http_x_tenant $pool { t42 beta; default alpha; }", "http://$pool");
        }
        Decided::Plugin => {
            module = format!("load_module {};\n", peer::nginx_module("ngx_http_js_module.so")?.display());
            let _ = std::fs::write(own.join("decide.js"), SCRIPT);
            (rule, pass) = ("js_import decide from decide.js; js_set $pool decide.pool;", "http://$pool");
        }
        _ => {}
    }
    let location = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_pass";
    let locations = format!("location /api/ {{ {location} {pass}; }} location / {{ {location} http://alpha; }}");
    let text = format!(
        r#"{module}daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; user root; worker_rlimit_nofile 60000;
events {{ worker_connections 30000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_max_body_size 0;
  client_body_temp_path body; proxy_temp_path proxied; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {rule}
  upstream alpha {{ server {alpha}; keepalive 1024; keepalive_requests 1000000000; }}
  upstream beta {{ server {beta}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen {clear}; {locations} }}
  server {{
    listen {tls} ssl http2; ssl_certificate {folder}/edge.pem; ssl_certificate_key {folder}/edge.key;
    ssl_protocols TLSv1.2 TLSv1.3; http2_max_concurrent_streams 256; {locations}
  }}
}}
"#
    );
    Some(Config { name: "nginx.conf", text, arguments: vec!["-p", ".", "-e", "stderr", "-c", "FILE"] })
}
