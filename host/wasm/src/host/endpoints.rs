//! `endpoints`: the cluster in question, as it is now. Nothing here can be remembered: load and health change.

use tidegate_policy::EndpointsView;
use wasmtime::StoreContextMut;

use super::Instance;
use crate::read::Read;
use crate::state::State;
use crate::types::{EndpointLoad, SocketAddress};

type Store<'a> = StoreContextMut<'a, State>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("cluster", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut(), Read::Cluster).map_or_else(String::new, |view| view.set.cluster.to_string()),))
    })?;
    linker.func_wrap("generation", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut(), Read::Generation).map_or(0, |view| view.set.current_generation()),))
    })?;
    linker.func_wrap("size", |mut store: Store<'_>, (): ()| {
        Ok((read(store.data_mut(), Read::Size).map_or(0, |view| view.len() as u32),))
    })?;
    linker.func_wrap("address", |mut store: Store<'_>, (index,): (u32,)| {
        let endpoint = view(store.data_mut()).and_then(|view| view.get(index));
        let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        Ok((SocketAddress::from(endpoint.map_or(nowhere, |endpoint| endpoint.address)),))
    })?;
    linker.func_wrap("weight", |mut store: Store<'_>, (index,): (u32,)| {
        Ok((view(store.data_mut()).and_then(|view| view.get(index)).map_or(0, |endpoint| endpoint.weight),))
    })?;
    linker.func_wrap("zone", |mut store: Store<'_>, (index,): (u32,)| {
        let zone = view(store.data_mut()).and_then(|view| view.get(index)?.zone.as_ref());
        Ok((zone.map(|zone| zone.to_string()),))
    })?;
    linker.func_wrap("label", |mut store: Store<'_>, (index, key): (u32, String)| {
        let endpoint = view(store.data_mut()).and_then(|view| view.get(index));
        let label = endpoint.and_then(|endpoint| endpoint.labels.iter().find(|(name, _)| **name == *key));
        Ok((label.map(|(_, value)| value.to_string()),))
    })?;
    linker.func_wrap("available", |mut store: Store<'_>, (index,): (u32,)| {
        Ok((read(store.data_mut(), Read::Loads).is_some_and(|view| view.available(index)),))
    })?;
    linker.func_wrap("in-flight", |mut store: Store<'_>, (index,): (u32,)| {
        Ok((read(store.data_mut(), Read::Loads).map_or(0, |view| view.in_flight(index)),))
    })?;
    linker.func_wrap("latency", |mut store: Store<'_>, (index,): (u32,)| {
        Ok((read(store.data_mut(), Read::Loads).map_or(0, |view| view.latency(index).as_nanos() as u64),))
    })?;
    linker.func_wrap("load", |mut store: Store<'_>, (index,): (u32,)| {
        let view = read(store.data_mut(), Read::Loads);
        Ok((EndpointLoad {
            available: view.is_some_and(|view| view.available(index)),
            in_flight: view.map_or(0, |view| view.in_flight(index)),
            latency: view.map_or(0, |view| view.latency(index).as_nanos() as u64),
        },))
    })?;
    linker.func_wrap("availables", |mut store: Store<'_>, (): ()| {
        let list: Vec<u32> = read(store.data_mut(), Read::Loads)
            .map(|view| (0..view.len() as u32).filter(|index| view.available(*index)).collect())
            .unwrap_or_default();
        Ok((list,))
    })?;
    linker.func_wrap("in-flights", |mut store: Store<'_>, (): ()| {
        let list: Vec<u32> = read(store.data_mut(), Read::Loads)
            .map(|view| (0..view.len() as u32).map(|index| view.in_flight(index)).collect())
            .unwrap_or_default();
        Ok((list,))
    })?;
    linker.func_wrap("latencies", |mut store: Store<'_>, (): ()| {
        let list: Vec<u64> = read(store.data_mut(), Read::Loads)
            .map(|view| (0..view.len() as u32).map(|index| view.latency(index).as_nanos() as u64).collect())
            .unwrap_or_default();
        Ok((list,))
    })
}

/// For a fact that may come along with the next question.
fn read(state: &mut State, read: Read) -> Option<&EndpointsView> {
    state.trace.note(|| read);
    view(state)
}

fn view(state: &mut State) -> Option<&EndpointsView> {
    state.trace.taint();
    state.facts.endpoints.as_ref()
}
