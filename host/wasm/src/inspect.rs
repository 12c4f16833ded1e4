//! What a component is and what it needs, found out without a configuration that uses it.

use std::sync::Arc;

use serde_json::Value;

use crate::artifact::{self, Binary};
use crate::plugin::{Limits, LoadError, PluginSpec, Questions, check_component, core};
use crate::prepared::{Exports, Granted, Http, Need};
use crate::runtime::Runtime;
use crate::{Grants, Isolation, QUESTIONS, Share, instances};

/// All that can be said of a component by looking at it, and by asking for its settings' schema.
#[derive(Debug)]
pub struct Inspection {
    /// Bytes.
    pub size: usize,
    /// SHA-256, in hexadecimal.
    pub digest: String,
    /// Names of the questions it answers.
    pub questions: Vec<&'static str>,
    pub imports: Vec<Import>,
    /// Names of all that it exports.
    pub exports: Vec<String>,
    /// JSON Schema of its settings; `None` where it states none, or cannot be asked.
    pub schema: Option<Value>,
    /// Why no configuration could use it as a plugin.
    pub problem: Option<LoadError>,
}

/// What a component asks of its host.
#[derive(Debug)]
pub struct Import {
    pub name: String,
    pub need: Need,
}

impl Runtime {
    /// Looks at `bytes`. None of the component's code runs but what states its settings' schema, within `limits` and an
    /// instance of its own, and that only where all of its imports are ones a plugin can have.
    ///
    /// # Errors
    /// They are no component, or one that does not compile.
    pub fn inspect(self: &Arc<Self>, bytes: &Binary, limits: Limits) -> Result<Inspection, LoadError> {
        check_component(bytes.as_bytes())?;
        let component = artifact::policy(&self.engine, bytes, self.cache.as_deref())
            .map_err(|error| LoadError::NotAComponent(format!("{error:#}")))?;
        let questions = Questions::of(&Exports::of(&component));
        let kind = component.component_type();
        let imports: Vec<Import> = kind
            .imports(&self.engine)
            .map(|(name, _)| Import { name: name.to_owned(), need: Need::of(name, questions) })
            .collect();
        let exports = kind.exports(&self.engine).map(|(name, _)| name.to_owned()).collect();
        let needs = |need: Need| imports.iter().any(|import| import.need == need);
        // To say what its settings are it need not wait for anything.
        let http = if needs(Need::Http) { Http::WithoutWaits } else { Http::No };
        let granted = Granted { wasi: needs(Need::Wasi), kv: needs(Need::Kv), http };
        let (schema, problem) = match self.schema_of(bytes, granted, limits) {
            Ok(schema) => (schema, None),
            Err(problem) => (None, Some(problem)),
        };
        let questions = QUESTIONS.into_iter().zip(questions.list());
        Ok(Inspection {
            size: bytes.as_bytes().len(),
            digest: artifact::hex(&bytes.digest),
            questions: questions.filter_map(|(name, answers)| answers.then_some(name)).collect(),
            imports,
            exports,
            schema,
            problem,
        })
    }

    fn schema_of(
        self: &Arc<Self>,
        bytes: &Binary,
        granted: Granted,
        limits: Limits,
    ) -> Result<Option<Value>, LoadError> {
        let prepared = self.prepare(bytes, granted)?;
        let spec = PluginSpec {
            name: "inspected".into(),
            bytes: bytes.clone(),
            settings: Value::Null,
            deny: false,
            limits,
            grants: Grants { headers: Some(Vec::new()), wasi: granted.wasi },
            isolation: Isolation::Request,
            memoise: false,
            share: Share::default(),
        };
        let core = Arc::new(core(self, &spec, prepared, false));
        let schema = instances::settings_schema(&core).map_err(instances::Failed::at_load)?;
        let parse = |text: String| serde_json::from_str(&text).map_err(|error| LoadError::Schema(error.to_string()));
        schema.map(parse).transpose()
    }
}
