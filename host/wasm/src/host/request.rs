//! `request`: the head in question.

use std::net::{IpAddr, Ipv4Addr};

use wasmtime::StoreContextMut;
use wasmtime::component::WasmStr;

use super::Instance;
use crate::read::Read;
use crate::state::State;
use crate::types::{Field, HttpVersion, IpAddress, UrlScheme};

/// Most bytes of header fields that one list carries into a guest; what is beyond is left out.
const MAX_LIST: usize = 256 * 1024;

type Store<'a> = StoreContextMut<'a, State>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("client", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::ClientIp);
        Ok((IpAddress::from(state.facts.client().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),))
    })?;
    linker.func_wrap("version", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Version);
        let version = state.facts.asked.as_ref().map(|asked| asked.request.version);
        Ok((HttpVersion::from(version.unwrap_or(tidegate_policy::HttpVersion::Http11)),))
    })?;
    linker.func_wrap("method", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Method);
        Ok((text(state, |request| request.method.as_str().to_owned()),))
    })?;
    linker.func_wrap("scheme", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Scheme);
        let scheme = state.facts.asked.as_ref().map(|asked| asked.request.scheme);
        Ok((UrlScheme::from(scheme.unwrap_or(tidegate_policy::Scheme::Http)),))
    })?;
    linker.func_wrap("authority", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Authority);
        Ok((text(state, |request| request.authority.to_string()),))
    })?;
    linker.func_wrap("path", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Path);
        Ok((text(state, |request| request.target.path().to_owned()),))
    })?;
    linker.func_wrap("query", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Query);
        let query = state.facts.asked.as_ref().and_then(|asked| asked.request.target.query());
        Ok((query.map(str::to_owned),))
    })?;
    linker.func_wrap("header", |mut store: Store<'_>, (name,): (WasmStr,)| {
        // Read where it lies in the guest's memory: most names need no copy.
        let name = name.to_str(&store)?;
        let state = store.data();
        let value = match &state.facts.asked {
            Some(asked) if state.granted(&name) => {
                asked.request.headers.get(&*name).map(|value| value.as_bytes().to_vec())
            }
            _ => None,
        };
        if let Some(name) = state.trace.field(&name) {
            store.data_mut().trace.note(|| Read::Header(name));
        }
        Ok((value,))
    })?;
    linker.func_wrap("header-values", |mut store: Store<'_>, (name,): (String,)| {
        let state = store.data_mut();
        let mut values: Vec<Vec<u8>> = Vec::new();
        if let Some(asked) = state.facts.asked.as_ref().filter(|_| state.granted(&name)) {
            let mut size = 0;
            values.extend(
                asked.request.headers.get_all(&*name).iter().map(|value| value.as_bytes().to_vec()).take_while(
                    |value| {
                        size += value.len();
                        size <= MAX_LIST
                    },
                ),
            );
        }
        state.trace.note(|| Read::HeaderValues(name.into()));
        Ok((values,))
    })?;
    linker.func_wrap("headers", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Headers);
        let mut fields = Vec::new();
        if let Some(asked) = &state.facts.asked {
            let mut size = 0;
            for (name, value) in asked.request.headers.iter().filter(|(name, _)| state.granted(name.as_str())) {
                size += name.as_str().len() + value.len();
                if size > MAX_LIST {
                    break;
                }
                fields.push(Field { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() });
            }
        }
        Ok((fields,))
    })?;
    linker.func_wrap("cookie", |mut store: Store<'_>, (name,): (String,)| {
        let state = store.data_mut();
        let cookie =
            state.facts.asked.as_ref().filter(|_| state.granted("cookie")).and_then(|asked| asked.cookie(&name));
        state.trace.note(|| Read::Cookie(name.into()));
        Ok((cookie.and_then(|value| String::from_utf8(value.to_vec()).ok()),))
    })?;
    linker.func_wrap("note", |mut store: Store<'_>, (name,): (String,)| {
        let state = store.data_mut();
        let note = state.facts.asked.as_ref().and_then(|asked| asked.note(&name));
        state.trace.note(|| Read::Note(name.into()));
        Ok((note,))
    })
}

fn text(state: &State, of: impl Fn(&tidegate_policy::RequestHead) -> String) -> String {
    state.facts.asked.as_ref().map_or_else(String::new, |asked| of(&asked.request))
}
