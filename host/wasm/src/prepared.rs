//! A component that is compiled, checked and linked: all that plugins made of it share, whatever their settings and limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use jsonschema::Validator;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use crate::artifact::{self, Binary, ComponentDigest};
use crate::host::{self, HTTP_CLIENT, INTERFACES, KV, full_name};
use crate::plugin::{LoadError, Questions};
use crate::runtime::Runtime;
use crate::state::State;
use crate::stats::QUESTIONS;
use crate::wasi;

/// Where the functions of a component are.
pub(crate) struct Exports {
    pub(crate) configure: Option<ComponentExportIndex>,
    pub(crate) settings_schema: Option<ComponentExportIndex>,
    pub(crate) questions: [Option<ComponentExportIndex>; QUESTIONS.len()],
    /// The same questions with facts that come along.
    pub(crate) prefetched: [Option<ComponentExportIndex>; QUESTIONS.len()],
}

/// Interface and function of each question.
const FUNCTIONS: [(&str, &str); QUESTIONS.len()] = [
    ("router", "route"),
    ("balancer", "pick"),
    ("forwarding", "identify"),
    ("retry", "decide"),
    ("tunnel-router", "route"),
];

impl Exports {
    pub(crate) fn of(component: &Component) -> Self {
        let find = |interface: &str, function: &str| {
            let instance = component.get_export_index(None, full_name(interface).as_str())?;
            component.get_export_index(Some(&instance), function)
        };
        Self {
            configure: find("plugin", "configure"),
            settings_schema: find("plugin", "settings-schema"),
            questions: FUNCTIONS.map(|(interface, function)| find(interface, function)),
            prefetched: FUNCTIONS.map(|(interface, function)| find(&format!("prefetched-{interface}"), function)),
        }
    }
}

/// What is linked only for those that were granted it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Granted {
    pub(crate) wasi: bool,
    pub(crate) kv: bool,
    pub(crate) http: Http,
}

/// How a guest may call out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Http {
    No,
    Yes,
    /// It may import `http-client`, and is answered at once: it is in the shadow, or in a simulation.
    WithoutWaits,
}

pub(crate) struct Prepared {
    pub(crate) pre: InstancePre<State>,
    pub(crate) exports: Exports,
    pub(crate) questions: Questions,
    /// It calls out: its store is one that must be called on a fiber.
    pub(crate) waits: bool,
    /// What it says of its settings, once it was asked.
    pub(crate) schema: OnceLock<Option<Validator>>,
}

/// Those in use, by digest and by what is linked: a thousand plugins of one component are compiled, mapped and
/// linked once.
#[derive(Default)]
pub(crate) struct Preparations(Mutex<HashMap<(ComponentDigest, Granted), Weak<Prepared>>>);

impl Runtime {
    pub(crate) fn prepare(self: &Arc<Self>, binary: &Binary, granted: Granted) -> Result<Arc<Prepared>, LoadError> {
        let key = (binary.digest, granted);
        let lock = || self.preparations.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = lock().get(&key).and_then(Weak::upgrade) {
            return Ok(prepared);
        }
        // Not under the lock: it takes a while, and twice does no harm.
        let prepared = Arc::new(self.prepare_anew(binary, granted)?);
        let mut known = lock();
        known.retain(|_, prepared| prepared.strong_count() > 0);
        known.insert(key, Arc::downgrade(&prepared));
        Ok(prepared)
    }

    fn prepare_anew(&self, binary: &Binary, granted: Granted) -> Result<Prepared, LoadError> {
        let component = artifact::policy(&self.engine, binary, self.cache.as_deref())
            .map_err(|error| LoadError::NotAComponent(format!("{error:#}")))?;
        let exports = Exports::of(&component);
        let questions = Questions::of(&exports);
        check_imports(self, &component, questions, granted)?;
        if questions == Questions::default() {
            return Err(LoadError::NoQuestion);
        }
        let mut linker = Linker::new(&self.engine);
        let linked = host::link(&mut linker, questions.list(), granted)
            .and_then(|()| if granted.wasi { wasi::link(&mut linker) } else { Ok(()) });
        linked.map_err(|error| LoadError::Link(format!("{error:#}")))?;
        let pre = linker.instantiate_pre(&component).map_err(|error| LoadError::Link(format!("{error:#}")))?;
        let client = full_name(HTTP_CLIENT);
        let imported = component.component_type();
        let waits = granted.http == Http::Yes && imported.imports(&self.engine).any(|(import, _)| import == client);
        Ok(Prepared { pre, exports, questions, waits, schema: OnceLock::new() })
    }
}

/// What it takes for an import to be there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// Every component has it.
    Nothing,
    /// `grants.kv`
    Kv,
    /// `grants.wasi`
    Wasi,
    /// `grants.http`
    Http,
    /// It would wait for it, and answers a question that is not waited for.
    Waits,
    /// It belongs to a question that the component does not answer.
    Question,
    /// This gateway does not have it.
    Unknown,
}

impl Need {
    /// Of an import, by its full name, of a component that answers `questions`.
    pub(crate) fn of(import: &str, questions: Questions) -> Self {
        if import.starts_with("wasi:") {
            return if wasi::known(import) { Self::Wasi } else { Self::Unknown };
        }
        let Some(interface) = INTERFACES.iter().find(|interface| full_name(interface.name) == import) else {
            return Self::Unknown;
        };
        match interface.name {
            KV => return Self::Kv,
            HTTP_CLIENT if questions.tunnel => return Self::Waits,
            HTTP_CLIENT => return Self::Http,
            _ => {}
        }
        let belongs = interface.questions.iter().zip(questions.list()).any(|(belongs, asked)| *belongs && asked);
        if belongs { Self::Nothing } else { Self::Question }
    }

    /// Why an import of this kind is refused that has not got what it takes; `None` where it takes nothing.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Kv => Some("was not granted; set grants.kv, as in kv = \"1MiB\""),
            Self::Wasi => Some("was not granted; set grants.wasi = true, or build it without WASI"),
            Self::Http => Some("was not granted; set grants.http, as in http = { clusters = [\"auth\"] }"),
            Self::Waits => Some("a tunnel-router cannot wait for; answer that question in a component of its own"),
            Self::Question => Some("belongs to a question that it does not answer"),
            Self::Unknown => Some("this gateway does not have"),
        }
    }
}

/// Names the import that is unknown, not granted, or not of this component's questions.
fn check_imports(
    runtime: &Runtime,
    component: &Component,
    questions: Questions,
    granted: Granted,
) -> Result<(), LoadError> {
    for (import, _) in component.component_type().imports(&runtime.engine) {
        let need = Need::of(import, questions);
        let met = match need {
            Need::Kv => granted.kv,
            Need::Wasi => granted.wasi,
            Need::Http => granted.http != Http::No,
            Need::Nothing | Need::Waits | Need::Question | Need::Unknown => false,
        };
        if let Some(why) = need.refusal().filter(|_| !met) {
            return Err(LoadError::Import { import: import.to_owned(), why: why.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RuntimeOptions;

    /// A tunnel's router is not waited for, whatever it is granted; a request's is.
    #[test]
    fn who_would_wait_where_nobody_waits_is_refused() {
        let component = |interface: &str| -> Binary {
            let text = format!(
                r#"(component
                  (import "tidegate:policy/http-client@0.1.0" (instance))
                  (core module $policy (func (export "route")))
                  (core instance $policy (instantiate $policy))
                  (func $route (canon lift (core func $policy "route")))
                  (instance $router (export "route" (func $route)))
                  (export "tidegate:policy/{interface}@0.1.0" (instance $router)))"#
            );
            wat::parse_str(text).expect("a component").into()
        };
        let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 1 }).expect("an engine");
        let prepare = |interface: &str, http: Http| {
            let granted = Granted { wasi: false, kv: false, http };
            runtime.prepare(&component(interface), granted).map(|prepared| prepared.waits)
        };
        for http in [Http::No, Http::Yes, Http::WithoutWaits] {
            let refused = prepare("tunnel-router", http).expect_err("it imports what waits").to_string();
            assert!(refused.contains("a tunnel-router cannot wait for"), "{refused}");
        }
        assert!(prepare("router", Http::Yes).expect("granted"));
        assert!(!prepare("router", Http::WithoutWaits).expect("granted"));
        let refused = prepare("router", Http::No).expect_err("not granted").to_string();
        assert!(refused.contains("grants.http"), "{refused}");
    }
}
