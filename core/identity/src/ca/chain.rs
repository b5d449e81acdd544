//! The reply of the certificate authority: leaf, intermediates, and the roots in the last element.

use rustls::pki_types::CertificateDer;

use crate::tls::pem_certificates;

/// Certificates taken from one reply; no mesh needs more.
const CERTIFICATES_MAX: usize = 64;

/// Why a reply is no chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The reply has no element.
    #[error("the certificate authority returned no certificate")]
    Empty,
    /// The reply has a leaf but no root.
    #[error("the certificate authority returned a certificate without a root")]
    NoRoot,
    /// An element holds no certificate, or broken text.
    #[error("element {0} of the returned chain holds no readable certificate")]
    Unreadable(usize),
    /// An element other than the last holds several certificates.
    #[error("element {0} of the returned chain holds several certificates")]
    Several(usize),
    /// The reply is absurdly long.
    #[error("the returned chain has more than {CERTIFICATES_MAX} certificates")]
    TooLong,
}

/// Chain, leaf first; then the roots.
pub(crate) type Parsed = (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>);

/// Reads `cert_chain`: the last element holds the roots, possibly several PEM blocks; all others hold one.
pub(crate) fn parse(elements: &[String]) -> Result<Parsed, ChainError> {
    let (roots_at, chain) = match elements {
        [] => return Err(ChainError::Empty),
        [_] => return Err(ChainError::NoRoot),
        [chain @ .., _] => (chain.len(), chain),
    };
    if elements.len() > CERTIFICATES_MAX {
        return Err(ChainError::TooLong);
    }
    let chain: Result<Vec<_>, _> = chain
        .iter()
        .enumerate()
        .map(|(at, element)| single(at, element))
        .collect();
    Ok((chain?, several(roots_at, &elements[roots_at])?))
}

fn single(at: usize, element: &str) -> Result<CertificateDer<'static>, ChainError> {
    let mut found = several(at, element)?;
    match (found.pop(), found.is_empty()) {
        (Some(certificate), true) => Ok(certificate),
        _ => Err(ChainError::Several(at)),
    }
}

fn several(at: usize, element: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    match pem_certificates(element.as_bytes()) {
        Ok(found) if found.len() > CERTIFICATES_MAX => Err(ChainError::TooLong),
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(ChainError::Unreadable(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    fn root() -> String {
        TestCa::new().root_pem()
    }

    #[test]
    fn the_last_element_holds_the_roots() {
        let (leaf, intermediate, roots) = (root(), root(), [root(), root()].concat());
        let (chain, roots) = parse(&[leaf, intermediate, roots]).unwrap();
        assert_eq!((chain.len(), roots.len()), (2, 2));
    }

    #[test]
    fn a_reply_without_root_is_refused() {
        assert_eq!(parse(&[]), Err(ChainError::Empty));
        assert_eq!(parse(&[root()]), Err(ChainError::NoRoot));
    }

    #[test]
    fn elements_must_hold_what_they_should() {
        assert_eq!(parse(&[String::new(), root()]), Err(ChainError::Unreadable(0)));
        assert_eq!(parse(&[root(), "no PEM".into()]), Err(ChainError::Unreadable(1)));
        let cut = root().replace("END", "AND");
        assert_eq!(parse(&[root(), cut]), Err(ChainError::Unreadable(1)));
        assert_eq!(
            parse(&[[root(), root()].concat(), root()]),
            Err(ChainError::Several(0))
        );
    }

    #[test]
    fn an_endless_reply_is_refused() {
        let one = root();
        assert_eq!(parse(&vec![one.clone(); 65]), Err(ChainError::TooLong));
        assert_eq!(parse(&[one.clone(), one.repeat(65)]), Err(ChainError::TooLong));
    }
}
