//! Other versions of plugins: those that are rolled out, and those in the shadow. Each is loaded under a name of its own,
//! and asked once, before anything serves it.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;
use tidegate_config::{PluginVersion, Role, Rollout as RolloutConfig, StickyBy as StickyConfig};
use tidegate_wasm::{
    Binary, Deployment, Guard, LoadError, Plugin, PluginSpec, Rollout, RolloutSpec, Runtime, Shadow, ShadowSpec,
    StickyBy,
};

use super::Scope;
use super::plugins::spec;
use crate::shipping::Stage;

/// Puts what was loaded to use, with the other versions that the configuration has of it. `find` loads one of these beside
/// the current one; it notes what is wrong.
pub(super) fn deploy<'a>(
    scope: &mut Scope<'a>,
    mut find: impl FnMut(&mut Scope<'a>, PluginVersion<'a>, &Plugin) -> Option<Arc<Plugin>>,
) {
    let config = scope.config;
    let loaded: HashMap<String, Arc<Plugin>> = scope.plugins.list.iter().cloned().collect();
    for plugin in &config.plugins {
        let Some(current) = loaded.get(&plugin.name) else { continue };
        let mut deployment = Deployment::of(current.clone());
        for version in plugin.versions().filter(|version| version.role != Role::Current) {
            let Some(found) = find(scope, version, current) else { continue };
            scope.plugins.list.push((version.name(), found.clone()));
            let before = scope.previous.and_then(|previous| previous.plugins.deployment(&plugin.name));
            if let (Role::Next, Some(rollout)) = (version.role, &plugin.rollout) {
                let previous = before.and_then(|before| before.rollout.as_ref()).map(|(_, rollout)| rollout);
                deployment.rollout = rollout_spec(rollout).map(|spec| {
                    let rollout = Rollout::new(plugin.name.as_str().into(), &found, spec, previous);
                    (found, rollout)
                });
            } else if let Some(shadow) = &plugin.shadow {
                let spec = ShadowSpec { share: shadow.share, rate: shadow.rate };
                let previous = before.and_then(|before| before.shadow.as_ref());
                deployment.shadow = Some(Shadow::new(&found, current, spec, previous));
            }
        }
        scope.plugins.deployments.push((plugin.name.clone(), deployment));
    }
}

/// Why a component is no version of a plugin.
pub(super) struct Unfit {
    pub(super) stage: Stage,
    pub(super) why: String,
}

impl Unfit {
    /// Where the configuration says what is wrong.
    pub(super) fn line(&self, version: PluginVersion<'_>) -> usize {
        if self.stage == Stage::Configure { version.settings_line } else { version.source_line }
    }
}

impl From<LoadError> for Unfit {
    fn from(error: LoadError) -> Self {
        let stage = if error.of_settings() { Stage::Configure } else { Stage::Compile };
        Self { stage, why: error.to_string() }
    }
}

/// A plugin's version of these bytes. One that is to stand beside `current` is asked once, and answers the same questions.
pub(super) fn make(
    scope: &Scope<'_>,
    runtime: &Arc<Runtime>,
    version: PluginVersion<'_>,
    bytes: Binary,
    current: Option<&Plugin>,
) -> Result<Arc<Plugin>, Unfit> {
    let spec = spec(scope, version, bytes);
    let previous = scope.previous.and_then(|previous| previous.plugins.get(&version.name()));
    let load = |spec: &PluginSpec| match version.role {
        Role::Current | Role::Next => runtime.load(spec, previous),
        Role::Shadow => runtime.load_shadow(spec, previous),
    };
    let Some(current) = current else { return Ok(load(&spec)?) };
    // One that is taken over was asked before.
    if !previous.is_some_and(|previous| previous.is_made_of(&spec)) {
        let mut trial = spec.clone();
        if let Some(kv) = &mut trial.share.kv {
            // What it writes on trial nobody is to find: not the version that serves, if they share their keys.
            (kv.owner, kv.of_tenant, kv.persist) = (Some(format!("{}@trial", spec.name)), false, None);
        }
        let tried = load(&trial)?;
        alike(&tried, current)?;
        tried.rehearse()?;
        if spec.share.kv.is_none() {
            return Ok(tried);
        }
    }
    let loaded = load(&spec)?;
    alike(&loaded, current)?;
    Ok(loaded)
}

/// Whether one could stand for the other.
pub(super) fn alike(version: &Plugin, current: &Plugin) -> Result<(), Unfit> {
    if version.questions() == current.questions() {
        return Ok(());
    }
    let why = format!(
        "it does not answer the same questions as {:?}: its answers could not take their place",
        &**current.name()
    );
    Err(Unfit { stage: Stage::Compile, why })
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
