//! `identity`: what the upstream will learn of the client.

use tidegate_policy as policy;
use tidegate_policy::native::{parse_forwarded, render_forwarded};
use wasmtime::StoreContextMut;

use super::Instance;
use crate::memo::Read;
use crate::state::State;
use crate::types::{EditError, Element, FieldFamilies};

type Store<'a> = StoreContextMut<'a, State>;

/// Most elements of a chain.
const MAX_ELEMENTS: usize = 32;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("received", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Received);
        Ok((state.facts.received().iter().map(Element::from).collect::<Vec<_>>(),))
    })?;
    linker.func_wrap("proposed", |mut store: Store<'_>, (): ()| {
        let state = store.data_mut();
        state.trace.note(|| Read::Proposed);
        let elements =
            state.facts.identity.as_ref().map(|identity| identity.elements.iter().map(Element::from).collect());
        let elements: Vec<Element> = elements.unwrap_or_default();
        Ok((elements,))
    })?;
    linker.func_wrap("set-elements", |mut store: Store<'_>, (elements,): (Vec<Element>,)| {
        let elements: Vec<policy::Element> = elements.into_iter().map(Into::into).collect();
        let checked = check(&elements);
        if checked.is_ok() {
            store.data_mut().identity.elements = Some(elements);
        }
        Ok((checked,))
    })?;
    linker.func_wrap("set-families", |mut store: Store<'_>, (families,): (FieldFamilies,)| {
        store.data_mut().identity.families = Some(families.into());
        Ok(())
    })
}

/// A chain must survive being written and read: no guest can break out of the field's grammar.
fn check(elements: &[policy::Element]) -> Result<(), EditError> {
    if elements.len() > MAX_ELEMENTS {
        return Err(EditError::Other(Some(format!("more than {MAX_ELEMENTS} elements"))));
    }
    let plain = |text: &Option<String>| {
        text.as_deref().is_none_or(|text| text.len() <= 512 && text.bytes().all(|b| (0x20..0x7f).contains(&b)))
    };
    if !elements.iter().all(|element| plain(&element.host) && plain(&element.proto)) {
        return Err(EditError::InvalidValue);
    }
    // An element that says nothing would vanish from the list.
    let written = render_forwarded(elements);
    if elements.iter().any(|element| *element == policy::Element::default()) {
        return Err(EditError::InvalidValue);
    }
    if written.len() > 8192 {
        return Err(EditError::Other(Some("the chain is too long".to_owned())));
    }
    let read: Option<Vec<_>> = parse_forwarded(written.as_bytes()).into_iter().collect();
    if read.as_deref() == Some(elements) { Ok(()) } else { Err(EditError::InvalidValue) }
}
