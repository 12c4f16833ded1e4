//! The ClientHello under the fuzzer.

use super::client_hello::{ClientHello, NoHello, Records, whole};

fn pushed(data: &[u8], at_once: usize) -> Result<Option<ClientHello>, NoHello> {
    let mut records = Records::default();
    for part in data.chunks(at_once) {
        match records.push(part) {
            Ok(None) => {}
            end => return end,
        }
    }
    Ok(None)
}

/// However the bytes are cut they say the same, and the names are what may be routed by; with records around it, a
/// handshake is the handshake that it is without.
pub fn client_hello(data: &[u8]) {
    let found = pushed(data, usize::MAX);
    // Only how early an excess is seen depends on the cuts.
    let short = data.len() <= super::client_hello::MOST;
    for at_once in [1, 5, 7, 1400] {
        assert!(!short || pushed(data, at_once) == found, "cut every {at_once}");
    }
    if let Ok(Some(hello)) = &found {
        looked_at(hello);
    }
    let bare = whole(data);
    if let Ok(Some(hello)) = &bare {
        looked_at(hello);
        let records: Vec<u8> =
            data.chunks(11).flat_map(|part| [&[22, 3, 3, 0, part.len() as u8][..], part].concat()).collect();
        if records.len() <= super::client_hello::MOST {
            assert_eq!(pushed(&records, 3), bare);
        }
    }
}

fn looked_at(hello: &ClientHello) {
    if let Some(name) = &hello.server_name {
        assert!(!name.is_empty() && name.len() <= 253 && name.is_ascii());
        assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase() || byte.is_ascii_control() || byte == b' '));
    }
    assert!(hello.offered().all(|name| !name.is_empty()));
}
