//! From a core module to a component, and whether a component is one that the gateway takes.

use std::path::Path;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use wit_component::{ComponentEncoder, DecodedWasm, StringEncoding};
use wit_parser::{PackageId, Resolve, WorldId};

use crate::words::Question;

/// Answers WASI within the component.
const STUB: &str = include_str!("stub.wat");

/// The contract in a plugin's `wit` folder, and the world it is built for.
pub(crate) fn contract(wit: &Path, world: &str) -> anyhow::Result<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    let (package, _): (PackageId, _) =
        resolve.push_dir(wit).with_context(|| format!("the contract in {} does not read", wit.display()))?;
    let world = resolve
        .select_world(&[package], Some(world))
        .with_context(|| format!("{} has no world {world:?}", wit.display()))?;
    Ok((resolve, world))
}

/// Makes a component of a core module that carries its own types, as Rust's and C's bindings leave them.
pub(crate) fn from_module(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let stub = wat::parse_str(STUB).context("the stub of WASI")?;
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .context("the module's types do not read")?
        .adapter("wasi_snapshot_preview1", &stub)
        .context("the stub of WASI")?
        .encode()
        .context("the module cannot be made a component")
}

/// Makes a component of a core module whose bindings leave no types in it, as Go's do.
pub(crate) fn from_bare_module(mut module: Vec<u8>, resolve: &Resolve, world: WorldId) -> anyhow::Result<Vec<u8>> {
    wit_component::embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8, false)?;
    from_module(&module)
}

/// Refuses what the gateway would refuse: another format, an import that is not the contract's, a question that is not
/// answered.
pub(crate) fn check(component: &[u8], question: Question) -> anyhow::Result<()> {
    let decoded = wit_component::decode(component).context("the build gave no WebAssembly that reads")?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        bail!("the build gave a WIT package, not a component");
    };
    let world = &resolve.worlds[world];
    let names = |items: &wit_parser::IndexMap<wit_parser::WorldKey, wit_parser::WorldItem>| -> Vec<String> {
        items.keys().map(|key| resolve.name_world_key(key)).collect()
    };
    let foreign: Vec<_> =
        names(&world.imports).into_iter().filter(|name| !name.starts_with("tidegate:policy/")).collect();
    if !foreign.is_empty() {
        bail!(
            "the component imports what the gateway does not give: {}; leave out what needs files, network, time or \
             chance of the system",
            foreign.join(", ")
        );
    }
    let exports = names(&world.exports);
    for wanted in ["plugin", question.name()] {
        let wanted = format!("tidegate:policy/{wanted}@");
        if !exports.iter().any(|name| name.starts_with(&wanted)) {
            bail!("the component does not export {:?}, which its world asks for", wanted.trim_end_matches('@'));
        }
    }
    Ok(())
}

/// SHA-256 in hexadecimal, by which gateways name a component.
pub(crate) fn digest(component: &[u8]) -> String {
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn a_committed_component_passes_for_its_own_question_only() {
        let bytes = std::fs::read(root().join("plugins/tenant-canary/tenant_canary.wasm")).expect("a component");
        check(&bytes, Question::Router).expect("it routes");
        let error = check(&bytes, Question::Retry).expect_err("it does not retry");
        assert!(error.to_string().contains("tidegate:policy/retry"), "{error}");
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn what_is_no_component_or_imports_wasi_is_refused() {
        assert!(check(b"\0asm\x01\0\0\0", Question::Router).is_err());
        assert!(check(b"no wasm at all", Question::Router).is_err());
        let wasi = r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance (export "x" (func)))))"#;
        let error = check(&wat::parse_str(wasi).expect("a component"), Question::Router).expect_err("it is foreign");
        assert!(error.to_string().contains("wasi:clocks"), "{error}");
    }

    /// A module that asks WASI for the time becomes a component that asks nobody.
    #[test]
    fn the_stub_answers_wasi() {
        let (resolve, world) = contract(&root().join("wit"), "forwarding-plugin").expect("the contract");
        let module = wat::parse_str(
            r#"(module
              (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
              (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
              (memory (export "memory") 1)
              (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
              (func (export "tidegate:policy/plugin@0.1.0#configure") (param i32 i32) (result i32) i32.const 64)
              (func (export "tidegate:policy/plugin@0.1.0#settings-schema") (result i32) i32.const 64)
              (func (export "tidegate:policy/forwarding@0.1.0#identify")
                (drop (call $time (i32.const 0) (i64.const 0) (i32.const 8)))))"#,
        )
        .expect("a module");
        let component = from_bare_module(module, &resolve, world).expect("a component");
        check(&component, Question::Forwarding).expect("it imports nothing");
    }
}
