//! What the benchmark asks of every proxy, as a filter for Envoy: a field names the cluster of each request, and the route goes by
//! that field. Written over, not added: clients do not choose.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Error);
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Filter))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Filter;

impl Context for Filter {}

impl HttpContext for Filter {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let tenant = self.get_http_request_header("x-tenant");
        let pool = if tenant.as_deref() == Some("t42") { "beta" } else { "alpha" };
        self.set_http_request_header("x-pool", Some(pool));
        Action::Continue
    }
}
