//! `identity`: what the upstream will learn of the client.

use tidegate_policy as policy;
use tidegate_policy::native::{parse_forwarded, render_forwarded};
use wasmtime::StoreContextMut;
use wasmtime::component::WasmList;

use super::Instance;
use crate::chain::elements_of;
use crate::read::Read;
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
        Ok((set(store.data_mut(), elements.into_iter().map(Into::into).collect()),))
    })?;
    linker.func_wrap("set-encoded", |mut store: Store<'_>, (encoded,): (WasmList<u8>,)| {
        let Some(elements) = elements_of(encoded.as_le_slice(&store), MAX_ELEMENTS) else {
            return Ok((Err(EditError::InvalidValue),));
        };
        Ok((set(store.data_mut(), elements),))
    })?;
    linker.func_wrap("set-families", |mut store: Store<'_>, (families,): (FieldFamilies,)| {
        store.data_mut().identity.families = Some(families.into());
        Ok(())
    })
}

fn set(state: &mut State, elements: Vec<policy::Element>) -> Result<(), EditError> {
    check(&elements)?;
    state.identity.elements = Some(elements);
    Ok(())
}

/// What need not be quoted, nor brought into another form: lower-case letters, digits and these.
const fn plain(others: &[u8]) -> [bool; 256] {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_lowercase() || (byte as u8).is_ascii_digit();
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        plain[others[index] as usize] = true;
        index += 1;
    }
    plain
}

const IN_NAMES: [bool; 256] = plain(b"._-");
const IN_TEXTS: [bool; 256] = plain(b"._-:[]");

/// Whether it is made of nothing that has to be escaped or brought into another form: what is written then is what is read.
fn is_plain(element: &policy::Element) -> bool {
    let all = |text: &str, plain: &[bool; 256]| text.bytes().all(|byte| plain[usize::from(byte)]);
    let node = |node: &Option<policy::Node>| match node {
        None | Some(policy::Node::Unknown) => true,
        Some(policy::Node::Ip(ip)) => ip.is_ipv4(),
        Some(policy::Node::Address(address)) => address.is_ipv4(),
        Some(policy::Node::Obfuscated(name)) => {
            (2..=64).contains(&name.len()) && name.starts_with('_') && all(name, &IN_NAMES)
        }
    };
    let text = |text: &Option<String>| {
        text.as_deref().is_none_or(|text| (1..=255).contains(&text.len()) && all(text, &IN_TEXTS))
    };
    *element != policy::Element::default()
        && node(&element.r#for)
        && node(&element.by)
        && text(&element.host)
        && text(&element.proto)
}

/// A chain must survive being written and read: no guest can break out of the field's grammar.
fn check(elements: &[policy::Element]) -> Result<(), EditError> {
    if elements.len() > MAX_ELEMENTS {
        return Err(EditError::Other(Some(format!("more than {MAX_ELEMENTS} elements"))));
    }
    // The usual chain need not be written to know that. Eight of the longest stay below the length that is allowed.
    if elements.len() <= 8 && elements.iter().all(is_plain) {
        return Ok(());
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

#[cfg(test)]
mod tests {
    use tidegate_policy::{Element, Node};

    use super::*;

    /// What is let through without being written would survive it.
    #[test]
    fn plain_elements_survive_being_written_and_read() {
        let name = |length: usize| Some(Node::Obfuscated(format!("_{}", "z-.9".repeat(16).split_at(length).0)));
        let nodes = [
            None,
            Some(Node::Unknown),
            Some(Node::Ip([192, 0, 2, 1].into())),
            Some(Node::Address(([192, 0, 2, 1], 80).into())),
            name(1),
            name(63),
        ];
        let texts = [None, Some("a".to_owned()), Some("_x-1.".repeat(51)), Some("[::1]:8443".to_owned())];
        let mut seen = 0;
        for (r#for, by) in nodes.iter().flat_map(|one| nodes.iter().map(move |other| (one, other))) {
            for (host, proto) in texts.iter().flat_map(|one| texts.iter().map(move |other| (one, other))) {
                let element =
                    Element { r#for: r#for.clone(), by: by.clone(), host: host.clone(), proto: proto.clone() };
                if !is_plain(&element) {
                    assert_eq!(element, Element::default());
                    continue;
                }
                seen += 1;
                let chain = vec![element; 8];
                let written = render_forwarded(&chain);
                assert!(written.len() <= 8192, "{} bytes", written.len());
                let read: Option<Vec<_>> = parse_forwarded(written.as_bytes()).into_iter().collect();
                assert_eq!(read, Some(chain), "{written}");
            }
        }
        assert_eq!(seen, 6 * 6 * 16 - 1);
    }

    #[test]
    fn what_would_break_out_or_vanish_is_refused() {
        let host = |host: &str| vec![Element { host: Some(host.to_owned()), ..Element::default() }];
        for bad in ["a\r\nb", "a\u{e9}", &"a".repeat(513)] {
            assert!(check(&host(bad)).is_err(), "{bad:?}");
        }
        assert!(check(&[Element::default()]).is_err());
        assert!(check(&host("A b\"c;d=e,f")).is_ok(), "what can be quoted may be said");
        assert!(check(&vec![host("a").remove(0); 33]).is_err());
    }
}
