//! `forward`: a router's edits. Kept until the answer is accepted.

use std::time::Duration;

use tidegate_policy as policy;
use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;
use crate::types::{Buffering, EditError};

type Store<'a> = StoreContextMut<'a, State>;
type Edited = wasmtime::Result<(Result<(), EditError>,)>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("set-path", |mut store: Store<'_>, (path,): (String,)| {
        done(store.data_mut().edits.set_path(&path))
    })?;
    linker.func_wrap("set-query", |mut store: Store<'_>, (query,): (Option<String>,)| {
        done(store.data_mut().edits.set_query(query.as_deref()))
    })?;
    linker.func_wrap("set-authority", |mut store: Store<'_>, (authority,): (String,)| {
        done(store.data_mut().edits.set_authority(&authority))
    })?;
    linker.func_wrap("set-header", |mut store: Store<'_>, (name, value): (String, Vec<u8>)| {
        granted(store.data_mut(), &name, |edits| edits.headers.set(&name, &value))
    })?;
    linker.func_wrap("append-header", |mut store: Store<'_>, (name, value): (String, Vec<u8>)| {
        granted(store.data_mut(), &name, |edits| edits.headers.append(&name, &value))
    })?;
    linker.func_wrap("remove-header", |mut store: Store<'_>, (name,): (String,)| {
        granted(store.data_mut(), &name, |edits| edits.headers.remove(&name))
    })?;
    linker.func_wrap("set-response-header", |mut store: Store<'_>, (name, value): (String, Vec<u8>)| {
        granted(store.data_mut(), &name, |edits| edits.response_headers.set(&name, &value))
    })?;
    linker.func_wrap("remove-response-header", |mut store: Store<'_>, (name,): (String,)| {
        granted(store.data_mut(), &name, |edits| edits.response_headers.remove(&name))
    })?;
    linker.func_wrap("set-timeout", |mut store: Store<'_>, (total,): (u64,)| {
        store.data_mut().edits.timeout = Some(Duration::from_nanos(total));
        Ok(())
    })?;
    linker.func_wrap("set-attempt-timeout", |mut store: Store<'_>, (each,): (u64,)| {
        store.data_mut().edits.attempt_timeout = Some(Duration::from_nanos(each));
        Ok(())
    })?;
    linker.func_wrap("set-buffering", |mut store: Store<'_>, (mode,): (Buffering,)| {
        store.data_mut().edits.buffering = Some(match mode {
            Buffering::Stream => policy::Buffering::Stream,
            Buffering::Request => policy::Buffering::Request,
            Buffering::Both => policy::Buffering::Both,
        });
        Ok(())
    })?;
    linker.func_wrap("set-note", |mut store: Store<'_>, (name, value): (String, String)| {
        // Has no result: what is too much is dropped.
        let _ = store.data_mut().edits.set_note(name, value);
        Ok(())
    })
}

fn done(edited: Result<(), policy::EditError>) -> Edited {
    Ok((edited.map_err(Into::into),))
}

fn granted(
    state: &mut State,
    name: &str,
    edit: impl FnOnce(&mut policy::RequestEdits) -> Result<(), policy::EditError>,
) -> Edited {
    if !state.granted(name) {
        return Ok((Err(EditError::NotGranted),));
    }
    done(edit(&mut state.edits))
}
