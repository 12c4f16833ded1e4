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
    fn of(component: &Component) -> Self {
        let find = |interface: &str, function: &str| {
            let instance = component.get_export_index(None, full_name(interface).as_str())?;
            component.get_export_index(Some(&instance), function)
        };
        Self {
            configure: find("plugin", "configure"),
            settings_schema: find("plugin", "settings-schema"),
            questions: FUNCTIONS.map(|(interface, function)| find(interface, function)),
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
        let component = artifact::component(&self.engine, binary, self.cache.as_deref())
            .map_err(|error| LoadError::NotAComponent(format!("{error:#}")))?;
        let exports = Exports::of(&component);
        let answers = |index: usize| exports.questions[index].is_some();
        let questions = Questions {
            route: answers(0),
            pick: answers(1),
            identify: answers(2),
            decide: answers(3),
            tunnel: answers(4),
        };
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

/// Names the import that is unknown, not granted, or not of this component's questions.
fn check_imports(
    runtime: &Runtime,
    component: &Component,
    questions: Questions,
    granted: Granted,
) -> Result<(), LoadError> {
    let refuse = |import: &str, why: &str| Err(LoadError::Import { import: import.to_owned(), why: why.to_owned() });
    for (import, _) in component.component_type().imports(&runtime.engine) {
        if import.starts_with("wasi:") {
            if !granted.wasi {
                return refuse(import, "was not granted; set grants.wasi = true, or build it without WASI");
            }
            if wasi::known(import) {
                continue;
            }
            return refuse(import, "this gateway does not have");
        }
        let known = INTERFACES.iter().find(|interface| full_name(interface.name) == import);
        match known {
            Some(interface) if interface.name == KV && !granted.kv => {
                return refuse(import, "was not granted; set grants.kv, as in kv = \"1MiB\"");
            }
            Some(interface) if interface.name == HTTP_CLIENT && granted.http == Http::No => {
                return refuse(import, "was not granted; set grants.http, as in http = { clusters = [\"auth\"] }");
            }
            Some(interface) if interface.name == HTTP_CLIENT && questions.tunnel => {
                return refuse(
                    import,
                    "a tunnel-router cannot wait for; answer that question in a component of its own",
                );
            }
            Some(interface)
                if interface.questions.iter().zip(questions.list()).any(|(belongs, asked)| *belongs && asked) => {}
            Some(_) => return refuse(import, "belongs to a question that it does not answer"),
            None => return refuse(import, "this gateway does not have"),
        }
    }
    Ok(())
}
