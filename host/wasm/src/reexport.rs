//! A component as it is compiled: the core functions behind its exports go by way of a module that does nothing but export them
//! again.
//!
//! At every call wasmtime looks up the core function that an exported one is lifted from. One that a module defines is searched
//! for in ordered tables of all of the component's code, four searches that are two fifths of what it takes to enter a guest; one
//! that a module imported is at a known place. So a module is added that imports those functions and exports them as they are, and
//! the exports are lifted from it. It has no code, no call goes through it, and no guest sees it: what it exports is the very
//! function that it was given.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use wasm_encoder::{
    Alias, ComponentSection, ComponentSectionId, Encode, EntityType, ExportKind, ExportSection, ImportSection,
    InstanceSection, Module, ModuleArg, ModuleSection, RawSection, TypeSection, ValType,
};
use wasmparser::types::Types;
use wasmparser::{
    CanonicalFunction, ComponentAlias, CompositeInnerType, ExternalKind, Parser, Payload, ValidPayload, Validator,
};

/// Part of the name of what was compiled, and not zero: to be changed with what this file makes of a component.
pub(crate) const FORM: u32 = 1;

/// The component with its exports lifted from a module of their own. `None` where it has none, where it is built as no tool builds
/// them, and where it is not valid, which those say who compile it.
pub(crate) fn reexported(bytes: &[u8]) -> Option<Vec<u8>> {
    let outline = Outline::of(bytes)?;
    // A function that is lifted twice can be imported but once.
    let (mut lifted, mut numbers) = (Vec::new(), HashMap::new());
    for aliased in outline.lifted() {
        numbers.entry((aliased.instance, aliased.name)).or_insert_with(|| {
            lifted.push(aliased);
            lifted.len() - 1
        });
    }
    // Those there are keep their numbers.
    let (modules, instances) = (outline.types.as_ref().module_count(), outline.types.as_ref().core_instance_count());
    if lifted.is_empty() || outline.modules != modules {
        return None;
    }
    let module = module(&lifted, &outline.types)?;
    let mut component = bytes[..outline.instances_end].to_vec();
    ModuleSection(&module).append_to_component(&mut component);
    instance(&lifted, modules).append_to_component(&mut component);
    let mut copied = outline.instances_end;
    for section in &outline.aliases {
        component.extend_from_slice(&bytes[copied..section.place.start]);
        let data = section.exported_by(instances, &numbers, bytes);
        RawSection { id: ComponentSectionId::Alias.into(), data: &data }.append_to_component(&mut component);
        copied = section.place.end;
    }
    component.extend_from_slice(&bytes[copied..]);
    // Whatever was not thought of is compiled as it was.
    Outline::of(&component).is_some().then_some(component)
}

/// What has to be known of a component.
struct Outline<'a> {
    types: Types,
    /// Where its last section of core instances ends.
    instances_end: usize,
    /// Core modules up to there.
    modules: u32,
    /// The sections of aliases after it.
    aliases: Vec<Aliases<'a>>,
    /// Core functions that others are lifted from.
    lifted: HashSet<u32>,
}

/// A section of aliases, its place with the header.
struct Aliases<'a> {
    place: Range<usize>,
    /// Place and, if it is a core function's, what it is an alias of.
    items: Vec<(Range<usize>, Option<Aliased<'a>>)>,
}

/// An alias of a core function that an instance exports.
#[derive(Clone, Copy)]
struct Aliased<'a> {
    instance: u32,
    name: &'a str,
    /// Its number among the component's core functions.
    function: u32,
}

impl<'a> Outline<'a> {
    /// All is validated but the code of functions.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut validator = Validator::new();
        let (mut instances_end, mut modules) = (0, 0);
        let (mut aliases, mut lifted) = (Vec::new(), HashSet::new());
        // Of modules and components within; where the last section of this one ended.
        let (mut depth, mut end) = (0_usize, 0);
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.ok()?;
            let functions = validator.types(0).filter(|_| depth == 0).map_or(0, |types| types.function_count());
            let valid = validator.payload(&payload).ok()?;
            if let (0, Some((_, section))) = (depth, payload.as_section()) {
                let place = end..section.end;
                end = section.end;
                match &payload {
                    Payload::InstanceSection(_) => {
                        instances_end = end;
                        modules = validator.types(0)?.module_count();
                        aliases.clear();
                        lifted.clear();
                    }
                    Payload::ComponentAliasSection(section) => {
                        let items = Aliases::items(section.clone(), functions)?;
                        aliases.push(Aliases { place, items });
                    }
                    Payload::ComponentCanonicalSection(section) => {
                        for function in section.clone() {
                            if let CanonicalFunction::Lift { core_func_index, .. } = function.ok()? {
                                lifted.insert(core_func_index);
                            }
                        }
                    }
                    _ => {}
                }
            }
            match (payload, valid) {
                (Payload::Version { range, .. }, _) if depth == 0 => end = range.end,
                (Payload::ModuleSection { .. } | Payload::ComponentSection { .. }, _) => depth += 1,
                (Payload::End(_), ValidPayload::End(types)) if depth == 0 => {
                    return Some(Self { types, instances_end, modules, aliases, lifted });
                }
                (Payload::End(_), _) => depth -= 1,
                _ => {}
            }
        }
        None
    }

    /// The aliases that exports are lifted from.
    fn lifted(&self) -> impl Iterator<Item = Aliased<'a>> {
        let items = self.aliases.iter().flat_map(|section| &section.items);
        items.filter_map(|(_, alias)| *alias).filter(|alias| self.lifted.contains(&alias.function))
    }
}

impl<'a> Aliases<'a> {
    /// `functions`: how many core functions there are before it.
    fn items(
        section: wasmparser::ComponentAliasSectionReader<'a>,
        mut functions: u32,
    ) -> Option<Vec<(Range<usize>, Option<Aliased<'a>>)>> {
        let mut end = section.range().end;
        let items: Result<Vec<_>, _> = section.into_iter_with_offsets().collect();
        let mut items: Vec<_> = items
            .ok()?
            .into_iter()
            .map(|(start, alias)| {
                let aliased = match alias {
                    ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } => {
                        functions += 1;
                        Some(Aliased { instance: instance_index, name, function: functions - 1 })
                    }
                    _ => None,
                };
                (start..start, aliased)
            })
            .collect();
        for (place, _) in items.iter_mut().rev() {
            place.end = std::mem::replace(&mut end, place.start);
        }
        Some(items)
    }

    /// The section's content, with those that have a number as exports of `instance`.
    fn exported_by(&self, instance: u32, numbers: &HashMap<(u32, &str), usize>, bytes: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        self.items.len().encode(&mut data);
        for (place, aliased) in &self.items {
            match aliased.and_then(|aliased| numbers.get(&(aliased.instance, aliased.name))) {
                Some(number) => {
                    let name = &number.to_string();
                    Alias::CoreInstanceExport { instance, kind: ExportKind::Func, name }.encode(&mut data);
                }
                None => data.extend_from_slice(&bytes[place.clone()]),
            }
        }
        data
    }
}

/// What exports functions again, each by its number in the list. `None` if one has a type that no lifted function has.
fn module(lifted: &[Aliased], types: &Types) -> Option<Module> {
    let (mut signatures, mut imports, mut exports) = (TypeSection::new(), ImportSection::new(), ExportSection::new());
    for (number, aliased) in (0..).zip(lifted) {
        let CompositeInnerType::Func(signature) =
            &types[types.as_ref().core_function_at(aliased.function)].composite_type.inner
        else {
            return None;
        };
        signatures.ty().function(flat(signature.params())?, flat(signature.results())?);
        imports.import(&aliased.instance.to_string(), aliased.name, EntityType::Function(number));
        exports.export(&number.to_string(), ExportKind::Func, number);
    }
    let mut module = Module::new();
    module.section(&signatures).section(&imports).section(&exports);
    Some(module)
}

/// The types that lifted functions are made of.
fn flat(types: &[wasmparser::ValType]) -> Option<Vec<ValType>> {
    let one = |kind: &wasmparser::ValType| match kind {
        wasmparser::ValType::I32 => Some(ValType::I32),
        wasmparser::ValType::I64 => Some(ValType::I64),
        wasmparser::ValType::F32 => Some(ValType::F32),
        wasmparser::ValType::F64 => Some(ValType::F64),
        _ => None,
    };
    types.iter().map(one).collect()
}

fn instance(lifted: &[Aliased], module: u32) -> InstanceSection {
    let mut from: Vec<u32> = lifted.iter().map(|aliased| aliased.instance).collect();
    from.sort_unstable();
    from.dedup();
    let mut instances = InstanceSection::new();
    instances.instantiate(module, from.iter().map(|instance| (instance.to_string(), ModuleArg::Instance(*instance))));
    instances
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(text: &str) -> Vec<u8> {
        let bytes = wat::parse_str(text).expect("it has the form");
        Validator::new().validate_all(&bytes).expect("it is valid");
        bytes
    }

    /// Of each lifted function: who exports it, and by what name.
    fn lifted(component: &[u8]) -> Vec<(u32, String)> {
        let outline = Outline::of(component).expect("it is valid");
        outline.lifted().map(|aliased| (aliased.instance, aliased.name.to_owned())).collect()
    }

    const TWO: &str = r#"(component
        (core module $one (func (export "run") (result i32) (i32.const 1)))
        (core module $two
          (memory (export "memory") 1)
          (func (export "run") (param i64 f32) (result i32) (i32.const 8))
          (func (export "done") (param i32)))
        (core instance $a (instantiate $one))
        (core instance $b (instantiate $two))
        (func (export "one") (result u32) (canon lift (core func $a "run")))
        (func (export "two") (param "a" u64) (param "b" f32) (result string)
          (canon lift (core func $b "run") (memory (core memory $b "memory")) (post-return (core func $b "done"))))
        (func (export "again") (result u32) (canon lift (core func $a "run"))))"#;

    #[test]
    fn exports_are_lifted_from_one_more_instance() {
        let (before, after) = (component(TWO), reexported(&component(TWO)).expect("it exports"));
        assert_eq!(lifted(&before), [(0, "run".to_owned()), (1, "run".to_owned()), (0, "run".to_owned())]);
        assert_eq!(lifted(&after), [(2, "0".to_owned()), (2, "1".to_owned()), (2, "0".to_owned())]);
        Validator::new().validate_all(&after).expect("it is valid");
    }

    /// And they are the same functions, by what they answer.
    #[test]
    fn what_is_exported_answers_as_before() {
        let engine = wasmtime::Engine::default();
        for bytes in [component(TWO), reexported(&component(TWO)).expect("it exports")] {
            let component = wasmtime::component::Component::from_binary(&engine, &bytes).expect("it compiles");
            let mut store = wasmtime::Store::new(&engine, ());
            let linker = wasmtime::component::Linker::new(&engine);
            let instance = linker.instantiate(&mut store, &component).expect("an instance");
            for name in ["one", "again"] {
                let function = instance.get_typed_func::<(), (u32,)>(&mut store, name).expect(name);
                assert_eq!(function.call(&mut store, ()).expect(name), (1,));
            }
            let two = instance.get_typed_func::<(u64, f32), (String,)>(&mut store, "two").expect("two");
            assert_eq!(two.call(&mut store, (1, 2.0)).expect("two"), (String::new(),));
        }
    }

    /// All that this program's own tools make.
    #[test]
    fn components_as_tools_build_them_are_taken() {
        for file in ["tenant-canary/tenant_canary", "latency-aware/latency_aware", "careful-retry/careful_retry"] {
            let file = format!("{}/../../plugins/{file}.wasm", env!("CARGO_MANIFEST_DIR"));
            let before = std::fs::read(&file).expect(&file);
            let after = reexported(&before).expect(&file);
            Validator::new().validate_all(&after).expect(&file);
            let from = lifted(&after)[0].0;
            assert!(lifted(&after).iter().all(|(instance, _)| *instance == from), "{file}");
            assert_eq!(lifted(&after).len(), lifted(&before).len(), "{file}");
        }
    }

    #[test]
    fn what_is_built_otherwise_stays() {
        let others = [
            ("no export", "(component)"),
            ("no component", "(module)"),
            (
                "a module after the last instance",
                r#"(component
                  (core module $m (func (export "run")))
                  (core instance $i (instantiate $m))
                  (core module)
                  (func (export "run") (canon lift (core func $i "run"))))"#,
            ),
            (
                "lifted before the last instance",
                r#"(component
                  (core module $m (func (export "run")))
                  (core instance $i (instantiate $m))
                  (func (export "run") (canon lift (core func $i "run")))
                  (core instance (instantiate $m)))"#,
            ),
            (
                "lifted from a lowered function",
                r#"(component
                  (import "run" (func $run))
                  (core func $lowered (canon lower (func $run)))
                  (func (export "run") (canon lift (core func $lowered))))"#,
            ),
        ];
        for (name, text) in others {
            assert!(reexported(&component(text)).is_none(), "{name}");
        }
    }

    /// Bytes that are bent anywhere: nothing panics, and what comes of it is valid but for code, which is left as it was.
    #[test]
    fn bent_components_are_refused_or_hold() {
        let whole = component(TWO);
        let mut taken = 0;
        for place in 0..whole.len() {
            for bend in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bent = whole.clone();
                bent[place] ^= bend;
                taken += u32::from(reexported(&bent).is_some());
            }
            // Where a section ends it is whole, and exports less.
            if let Some(less) = reexported(&whole[..place]) {
                assert!(Outline::of(&less).is_some(), "cut off at {place}");
            }
        }
        assert!(taken > whole.len() as u32, "{taken}");
    }
}
