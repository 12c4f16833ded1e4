//! Tenants: what each crate knows of them, and what a plugin may use of its tenant's.

use std::sync::Arc;

use tidegate_config::{Config, Kv, PluginVersion, Role, Tenant as TenantConfig};
use tidegate_policy::Breaker;
use tidegate_wasm::{CpuShare, HttpGrant, KvGrant, Share, TenantLimits};

use super::{Compiled, Scope};

/// A tenant, to exchanges and to plugins.
pub(crate) struct Tenant {
    pub(crate) proxy: Arc<tidegate_proxy::Tenant>,
    pub(crate) wasm: Arc<tidegate_wasm::Tenant>,
}

/// What is in use under `previous` counts on.
pub(super) fn compile(config: &Config, previous: Option<&Compiled>) -> Vec<Tenant> {
    let known = |name: &str| previous?.tenants.iter().find(|tenant| *tenant.proxy.name == *name);
    config.tenants.iter().map(|tenant| compile_one(tenant, known(&tenant.name))).collect()
}

fn compile_one(config: &TenantConfig, previous: Option<&Tenant>) -> Tenant {
    let limits = TenantLimits {
        cpu: config.limits.cpu.map(cpu),
        memory: config.limits.memory,
        instances: config.limits.instances,
        log_lines: config.limits.log_lines,
        callouts: config.limits.callouts,
        callouts_in_flight: config.limits.callouts_in_flight,
    };
    let requests = Breaker::new(config.limits.requests, None, previous.map(|previous| &previous.proxy.requests));
    Tenant {
        proxy: Arc::new(tidegate_proxy::Tenant { name: config.name.as_str().into(), requests }),
        wasm: tidegate_wasm::Tenant::new(&config.name, limits, previous.map(|previous| &previous.wasm)),
    }
}

pub(super) fn cpu(share: tidegate_config::CpuShare) -> CpuShare {
    CpuShare { per_second: share.per_second, burst: share.burst }
}

pub(super) fn share(scope: &Scope<'_>, version: PluginVersion<'_>) -> Share {
    let plugin = version.plugin;
    Share {
        tenant: plugin.tenant.as_deref().and_then(|name| scope.tenant(name)).map(|tenant| tenant.wasm.clone()),
        cpu: plugin.cpu.map(cpu),
        instances: plugin.instances,
        log_lines: plugin.log_lines,
        kv: plugin.kv.as_ref().map(|kv| keys(version, kv)),
        http: plugin.http.as_ref().map(|http| HttpGrant {
            clusters: http.clusters.iter().map(|(name, _)| name.clone()).collect(),
            max_request: http.max_request,
            max_response: http.max_response,
            max_in_flight: http.max_in_flight,
            per_second: plugin.callouts,
            wait: plugin.wait,
        }),
    }
}

/// Whose keys a version has.
fn keys(version: PluginVersion<'_>, kv: &Kv) -> KvGrant {
    let Kv { bytes, of_tenant, persist } = kv.clone();
    let plugins = KvGrant { bytes, owner: Some(version.plugin.name.clone()), of_tenant, persist };
    match version.role {
        Role::Current => plugins,
        Role::Next if version.plugin.rollout.as_ref().is_some_and(|rollout| rollout.shares_kv) => plugins,
        Role::Next => KvGrant { owner: None, of_tenant: false, ..plugins },
        // What it keeps is nobody else's: its answers are not used, and neither is what it writes.
        Role::Shadow => KvGrant { owner: None, of_tenant: false, persist: None, ..plugins },
    }
}
