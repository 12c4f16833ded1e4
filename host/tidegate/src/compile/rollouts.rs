//! Other versions of plugins: those that are rolled out, and those in the shadow. Each is loaded under a name of its own,
//! and asked once, before anything serves it.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;
use tidegate_config::{OtherVersion, Plugin as PluginConfig, Rollout as RolloutConfig, StickyBy as StickyConfig};
use tidegate_wasm::{Deployment, Guard, Plugin, Rollout, RolloutSpec, Runtime, Shadow, ShadowSpec, StickyBy};

use super::Scope;
use super::plugins::{Binaries, explain, read, spec};

/// What stands between a plugin's name and its version: no name that a configuration gives has it.
const NEXT: &str = "@next";
const SHADOW: &str = "@shadow";

/// Whether a version of this name is one that a plugin has beside its current one.
pub(super) fn is_other(name: &str) -> bool {
    name.ends_with(NEXT) || name.ends_with(SHADOW)
}

/// How a version is loaded.
#[derive(Clone, Copy)]
enum As {
    Next,
    Shadow,
}

impl As {
    fn suffix(self) -> &'static str {
        match self {
            Self::Next => NEXT,
            Self::Shadow => SHADOW,
        }
    }
}

/// Puts what was loaded to use, with the other versions that the configuration has of it.
pub(super) fn deploy<'a>(scope: &mut Scope<'a>, runtime: &Arc<Runtime>, binaries: &mut Binaries<'a>) {
    let config = scope.config;
    let loaded: HashMap<String, Arc<Plugin>> = scope.plugins.list.iter().cloned().collect();
    for plugin in &config.plugins {
        let Some(current) = loaded.get(&plugin.name) else { continue };
        let mut deployment = Deployment::of(current.clone());
        if let Some(rollout) = &plugin.rollout {
            let next = other(scope, runtime, binaries, plugin, &rollout.next, current, As::Next);
            deployment.rollout = next.and_then(|next| {
                let spec = rollout_spec(rollout)?;
                let previous = before(scope, &plugin.name).and_then(|before| before.rollout.as_ref());
                let rollout =
                    Rollout::new(plugin.name.as_str().into(), &next, spec, previous.map(|(_, rollout)| rollout));
                Some((next, rollout))
            });
        }
        if let Some(shadow) = &plugin.shadow {
            let version = other(scope, runtime, binaries, plugin, &shadow.version, current, As::Shadow);
            deployment.shadow = version.map(|version| {
                let spec = ShadowSpec { share: shadow.share, rate: shadow.rate };
                let previous = before(scope, &plugin.name).and_then(|before| before.shadow.as_ref());
                Shadow::new(&version, current, spec, previous)
            });
        }
        scope.plugins.deployments.push((plugin.name.clone(), deployment));
    }
}

fn before<'a>(scope: &Scope<'a>, name: &str) -> Option<&'a Deployment> {
    scope.previous?.plugins.deployment(name)
}

/// Another version of a plugin. What is wrong with it is noted.
fn other<'a>(
    scope: &mut Scope<'a>,
    runtime: &Arc<Runtime>,
    binaries: &mut Binaries<'a>,
    plugin: &'a PluginConfig,
    version: &'a OtherVersion,
    current: &Plugin,
    load_as: As,
) -> Option<Arc<Plugin>> {
    let name = format!("{}{}", plugin.name, load_as.suffix());
    let bytes = read(scope, binaries, &version.source, version.source_line)?;
    let mut spec = spec(scope, plugin, bytes);
    spec.name = name.as_str().into();
    if let (As::Shadow, Some(kv)) = (load_as, &mut spec.share.kv) {
        // What it keeps is nobody else's: its answers are not used, and neither is what it writes.
        (kv.of_tenant, kv.persist) = (false, None);
    }
    if let Some(settings) = &version.settings {
        spec.settings.clone_from(settings);
    }
    let previous = scope.previous.and_then(|previous| previous.plugins.get(&name));
    let loaded = match load_as {
        As::Next => runtime.load(&spec, previous),
        As::Shadow => runtime.load_shadow(&spec, previous),
    };
    // One that is taken over was asked before.
    let asked = loaded.and_then(|loaded| {
        let known = previous.is_some_and(|previous| Arc::ptr_eq(previous, &loaded));
        if known { Ok(loaded) } else { loaded.rehearse().map(|()| loaded) }
    });
    let found = match asked {
        Ok(found) => found,
        Err(error) => {
            scope.error(version.source_line, explain(&name, &error));
            return None;
        }
    };
    let (has, wanted) = (found.questions(), current.questions());
    if has != wanted {
        let message = format!(
            "plugin {name:?}: it does not answer the same questions as {:?}: its answers could not take their place",
            plugin.name
        );
        scope.error(version.source_line, message);
        return None;
    }
    scope.plugins.list.push((name, found.clone()));
    Some(found)
}

fn rollout_spec(config: &RolloutConfig) -> Option<RolloutSpec> {
    Some(RolloutSpec {
        share: config.share,
        sticky_by: match &config.sticky_by {
            StickyConfig::ClientIp => StickyBy::ClientIp,
            StickyConfig::Header(name) => StickyBy::Header(name.parse::<HeaderName>().ok()?),
            StickyConfig::Cookie(name) => StickyBy::Cookie(name.clone()),
            StickyConfig::Random => StickyBy::Random,
        },
        guard: Guard {
            faults: config.faults,
            error_rate: config.error_rate,
            latency: config.latency,
            window: config.window,
            min: config.min,
        },
    })
}
