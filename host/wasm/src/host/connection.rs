//! `connection`: where the request came on.

use super::Instance;
use crate::read::Read;
use crate::state::State;
use crate::types::SocketAddress;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("peer", |mut store, (): ()| Ok((address(store.data_mut(), Read::Peer, |c| c.peer),)))?;
    linker.func_wrap("client", |mut store, (): ()| {
        Ok((address(store.data_mut(), Read::ConnectionClient, |c| c.client),))
    })?;
    linker.func_wrap("local", |mut store, (): ()| Ok((address(store.data_mut(), Read::Local, |c| c.local),)))?;
    linker.func_wrap("listener", |mut store, (): ()| {
        let state: &mut State = store.data_mut();
        state.trace.note(|| Read::Listener);
        Ok((state.facts.asked.as_ref().map_or_else(String::new, |asked| asked.connection.listener.to_string()),))
    })?;
    linker.func_wrap("server-name", |mut store, (): ()| {
        let state: &mut State = store.data_mut();
        state.trace.note(|| Read::ServerName);
        let name = state.facts.asked.as_ref().and_then(|asked| asked.connection.server_name.as_ref());
        Ok((name.map(|name| name.to_string()),))
    })?;
    linker.func_wrap("alpn", |mut store, (): ()| {
        let state: &mut State = store.data_mut();
        state.trace.note(|| Read::Alpn);
        let alpn = state.facts.asked.as_ref().and_then(|asked| asked.connection.alpn.as_ref());
        Ok((alpn.map(|alpn| alpn.to_string()),))
    })?;
    linker.func_wrap("client-certificate", |mut store, (): ()| {
        let state: &mut State = store.data_mut();
        state.trace.note(|| Read::ClientCertificate);
        let certificate = state.facts.asked.as_ref().and_then(|asked| asked.connection.client_certificate.as_ref());
        Ok((certificate.map(|certificate| certificate.to_vec()),))
    })?;
    linker.func_wrap("proxy-tlv", |mut store, (kind,): (u8,)| {
        let state: &mut State = store.data_mut();
        state.trace.note(|| Read::ProxyTlv(kind));
        let value = state.facts.asked.as_ref().and_then(|asked| asked.connection.proxy_tlvs.get(kind));
        Ok((value.map(<[u8]>::to_vec),))
    })
}

fn address(
    state: &mut State,
    read: Read,
    of: impl Fn(&tidegate_policy::ConnectionHead) -> std::net::SocketAddr,
) -> SocketAddress {
    state.trace.note(|| read);
    let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    state.facts.asked.as_ref().map_or(nowhere, |asked| of(&asked.connection)).into()
}
