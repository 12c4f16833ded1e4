//! The common name in a certificate's subject: what receivers of the ssl field usually look for.

/// `id-at-commonName` (RFC 5280, appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const OBJECT_ID: u8 = 0x06;
/// UTF8String, PrintableString, IA5String: all are UTF-8.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

/// Of a certificate in DER that was verified (RFC 5280, section 4.1): the first, if it is text.
pub(super) fn common_name(certificate: &[u8]) -> Option<&str> {
    let mut certificate = Der(certificate).within(SEQUENCE)?;
    let mut body = certificate.within(SEQUENCE)?;
    if body.0.first() == Some(&VERSION) {
        body.next()?;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        body.next()?;
    }
    let mut subject = body.within(SEQUENCE)?;
    while let Some(mut names) = subject.within(SET) {
        while let Some(mut name) = names.within(SEQUENCE) {
            let (OBJECT_ID, COMMON_NAME) = name.next()? else { continue };
            let (tag, value) = name.next()?;
            return std::str::from_utf8(value).ok().filter(|_| TEXTS.contains(&tag));
        }
    }
    None
}

/// What is left of a run of values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Tag and content of the next value.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (length, rest) = match (first, rest) {
            (0..=0x7f, rest) => (usize::from(*first), rest),
            (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
            (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// What is within the next value, which must have this tag.
    fn within(&mut self, wanted: u8) -> Option<Der<'a>> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| Der(content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }

    #[test]
    fn it_is_found_among_others() {
        let long = "x".repeat(300);
        let with = |name| certificate(&[(DnType::OrganizationName, "an org"), (DnType::CommonName, name)]);
        for name in ["a client", "Žofie", "", &long] {
            assert_eq!(common_name(&with(name)), Some(name));
        }
        assert_eq!(common_name(&certificate(&[(DnType::OrganizationName, "an org")])), None);
        assert_eq!(common_name(&certificate(&[])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..400, with in any::<u8>(), cut in 0_usize..600) {
            let mut certificate = certificate(&[(DnType::CommonName, "a client")]);
            let at = at.min(certificate.len() - 1);
            certificate[at] = with;
            certificate.truncate(cut);
            let _ = common_name(&certificate);
        }
    }
}
